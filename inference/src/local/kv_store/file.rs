//! The files of the store: a header, the tokens, the state, and a checksum over all of it. Little-endian throughout.
//!
//! `TKKV`, version (u32), fingerprint (32 bytes), number of tokens (u64), length of the state (u64), tokens (u32 each), state, CRC-32 of
//! everything before it (u32). Prompts can be told from tokens, so only the owner may read the files.

use super::{Fingerprint, Token};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 4] = b"TKKV";
const VERSION: u32 = 1;
const HEADER: usize = 4 + 4 + 32 + 8 + 8;
/// Part of a model's file that goes into its fingerprint, and how many of them.
const SAMPLE: usize = 64 << 10;
const SAMPLES: u64 = 64;

/// An entry as it is on disk.
pub(super) struct Kept {
    pub(super) tokens: Arc<[Token]>,
    pub(super) state: Arc<[u8]>,
}

/// Where an entry is written: a folder for each model, a name for each beginning.
pub(super) fn path(folder: &Path, model: &Fingerprint, tokens: &[Token]) -> PathBuf {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
    of(folder, model).join(format!("{}.kv", hex(&hash.finalize()[..16])))
}

fn of(folder: &Path, model: &Fingerprint) -> PathBuf {
    folder.join(hex(&model[..16]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files of a model with their lengths, the oldest first.
pub(super) fn of_model(folder: &Path, model: &Fingerprint) -> Vec<(PathBuf, u64)> {
    let Ok(files) = fs::read_dir(of(folder, model)) else { return Vec::new() };
    let mut files: Vec<_> = files
        .flatten()
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "kv"))
        .filter_map(|file| {
            let metadata = file.metadata().ok()?;
            Some((metadata.modified().ok()?, file.path(), metadata.len()))
        })
        .collect();
    files.sort();
    files.into_iter().map(|(_, path, bytes)| (path, bytes)).collect()
}

/// Writes an entry; a reader never sees half of it.
pub(super) fn write(path: &Path, model: &Fingerprint, tokens: &[Token], state: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let unfinished = path.with_extension("part");
    let mut bytes = Vec::with_capacity(HEADER + tokens.len() * 4);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(model);
    bytes.extend((tokens.len() as u64).to_le_bytes());
    bytes.extend((state.len() as u64).to_le_bytes());
    tokens.iter().for_each(|token| bytes.extend(token.to_le_bytes()));
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&bytes);
    checksum.update(state);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(&bytes)?;
    file.write_all(state)?;
    file.write_all(&checksum.finalize().to_le_bytes())?;
    drop(file);
    fs::rename(unfinished, path)
}

/// The tokens of an entry, and whether its length is what its header says. The checksum is for [`read`].
pub(super) fn read_tokens(path: &Path, model: &Fingerprint) -> io::Result<Arc<[Token]>> {
    let mut file = File::open(path)?;
    let (tokens, _) = lengths(&mut file, model)?;
    let mut bytes = vec![0; tokens * 4];
    file.read_exact(&mut bytes)?;
    Ok(words(&bytes))
}

/// An entry, checked.
pub(super) fn read(path: &Path, model: &Fingerprint) -> io::Result<Kept> {
    let mut file = File::open(path)?;
    let (tokens, state) = lengths(&mut file, model)?;
    let mut bytes = vec![0; HEADER + tokens * 4 + state + 4];
    file.read_exact_at(&mut bytes, 0)?;
    let (content, checksum) = bytes.split_at(bytes.len() - 4);
    if crc32fast::hash(content).to_le_bytes() != *checksum {
        return Err(refused("its checksum is wrong"));
    }
    let state = &content[HEADER + tokens * 4..];
    Ok(Kept { tokens: words(&content[HEADER..HEADER + tokens * 4]), state: state.into() })
}

/// The numbers of tokens and of bytes of state, which the file's own length bears out.
fn lengths(file: &mut File, model: &Fingerprint) -> io::Result<(usize, usize)> {
    let mut header = [0; HEADER];
    file.read_exact(&mut header)?;
    let number = |at: usize| header[at..at + 8].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    if header[..4] != *MAGIC || header[4..8] != VERSION.to_le_bytes() {
        return Err(refused("it is not a file of this version"));
    }
    if header[8..40] != *model {
        return Err(refused("it belongs to another model"));
    }
    let (tokens, state) = (number(40), number(48));
    let length = tokens.checked_mul(4).and_then(|tokens| tokens.checked_add(state)?.checked_add(HEADER as u64 + 4));
    if length != Some(file.metadata()?.len()) {
        return Err(refused("it is not as long as it says"));
    }
    let fits = |number: u64| usize::try_from(number).map_err(|_| refused("it is too long for this machine"));
    Ok((fits(tokens)?, fits(state)?))
}

fn words(bytes: &[u8]) -> Arc<[Token]> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Shows the length of a file, its beginning, its end and places in between.
pub(super) fn sample(path: &Path, mut show: impl FnMut(&[u8])) -> io::Result<()> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    show(&length.to_le_bytes());
    let last = length.saturating_sub(SAMPLE as u64);
    let mut piece = vec![0; SAMPLE];
    for number in 0..=SAMPLES {
        let from = (u128::from(last) * u128::from(number) / u128::from(SAMPLES)) as u64;
        let read = file.read_at(&mut piece, from)?;
        show(&piece[..read]);
    }
    Ok(())
}

/// Reads a file of these bytes: as they are, or behind a header that is right up to the lengths, and with the right checksum.
#[cfg(feature = "fuzzing")]
pub(in crate::local) fn fuzz(path: &Path, data: &[u8]) {
    let model = [0; 32];
    let Some((how, data)) = data.split_first() else { return };
    let mut bytes = data.to_vec();
    if how & 1 == 1 {
        bytes = [MAGIC, &VERSION.to_le_bytes()[..], &model, data].concat();
        let checksum = crc32fast::hash(&bytes);
        bytes.extend(checksum.to_le_bytes());
    }
    if fs::write(path, bytes).is_ok() {
        let kept = read(path, &model);
        let tokens = read_tokens(path, &model);
        if let Ok(kept) = kept {
            assert_eq!(tokens.ok(), Some(kept.tokens));
        }
    }
}
