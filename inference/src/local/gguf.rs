//! What a GGUF file says about its model before any of it is loaded: sizes of its tensors and the figures its KV cache follows from.
//!
//! The format is described in ggml's `docs/gguf.md`. Only the header is read; of lists that are not numbers only the length is kept.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

/// No list, text or table of a sound file is longer.
const LONGEST: u64 = 1 << 26;
/// No sound model comes in more files.
const MOST_FILES: u64 = 1000;

/// The header of a model, of all its files together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Header {
    values: HashMap<String, Value>,
    /// Names and bytes, padding included.
    pub(crate) tensors: Vec<(String, u64)>,
}

/// A value of the header.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(f64),
    Whole(u64),
    Text(String),
    Wholes(Vec<u64>),
    /// A list of something else, of this length.
    List(u64),
}

impl Header {
    /// Reads the header of a file and, when the model is split, of those that belong to it.
    ///
    /// # Errors
    /// A file cannot be read, or is not GGUF.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let mut header = Self::of_file(path)?;
        let files = header.whole("split.count").unwrap_or(1).min(MOST_FILES);
        for number in 2..=files {
            let part = part(path, number, files).ok_or_else(|| broken("a split model's file is not named like one"))?;
            header.tensors.extend(Self::of_file(&part)?.tensors);
        }
        Ok(header)
    }

    fn of_file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Self::parse(BufReader::with_capacity(1 << 16, file), length)
    }

    pub(crate) fn parse(mut input: impl Read + Seek, length: u64) -> io::Result<Self> {
        if &bytes::<4>(&mut input)? != b"GGUF" {
            return Err(broken("the file does not begin with \"GGUF\""));
        }
        if !(2..=3).contains(&u32_of(&mut input)?) {
            return Err(broken("only versions 2 and 3 of GGUF are known"));
        }
        let (tensors, keys) = (count(&mut input)?, count(&mut input)?);
        let mut header = Self::default();
        for _ in 0..keys {
            let key = text(&mut input)?;
            let kind = u32_of(&mut input)?;
            header.values.insert(key, value(&mut input, kind)?);
        }
        let mut places = Vec::new();
        for _ in 0..tensors {
            let name = text(&mut input)?;
            let dimensions = u32_of(&mut input)?;
            for _ in 0..dimensions.min(8) {
                u64_of(&mut input)?;
            }
            u32_of(&mut input)?;
            places.push((u64_of(&mut input)?, name));
        }
        let alignment = header.whole("general.alignment").unwrap_or(32).max(1);
        let data = input.stream_position()?.next_multiple_of(alignment);
        header.tensors = sizes(places, length.saturating_sub(data));
        Ok(header)
    }

    /// The architecture's name; the figures of a model are under it.
    pub(crate) fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A figure of the architecture, such as `block_count`.
    pub(crate) fn figure(&self, name: &str) -> Option<u64> {
        self.whole(&format!("{}.{name}", self.architecture()))
    }

    /// A figure that may differ from layer to layer: its sum over so many layers.
    pub(crate) fn sum_over_layers(&self, name: &str, layers: u64) -> Option<u64> {
        match self.values.get(&format!("{}.{name}", self.architecture()))? {
            Value::Wholes(each) => Some(each.iter().take(usize::try_from(layers).unwrap_or(usize::MAX)).sum()),
            Value::Whole(same) => Some(same.saturating_mul(layers)),
            _ => None,
        }
    }

    /// Words of the vocabulary.
    pub(crate) fn vocabulary(&self) -> u64 {
        match self.values.get("tokenizer.ggml.tokens") {
            Some(Value::List(length)) => *length,
            _ => self.figure("vocab_size").unwrap_or(0),
        }
    }

    fn whole(&self, key: &str) -> Option<u64> {
        match self.values.get(key)? {
            Value::Whole(value) => Some(*value),
            _ => None,
        }
    }
}

/// A tensor reaches to where the next one begins, whatever its type is.
fn sizes(mut places: Vec<(u64, String)>, end: u64) -> Vec<(String, u64)> {
    places.sort_unstable();
    let ends: Vec<u64> = places.iter().skip(1).map(|(from, _)| *from).chain([end]).collect();
    places.into_iter().zip(ends).map(|((from, name), to)| (name, to.saturating_sub(from))).collect()
}

/// `name-00001-of-00003.gguf` with another number.
fn part(path: &Path, number: u64, files: u64) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(&format!("-{:05}-of-{files:05}.gguf", 1))?;
    Some(path.with_file_name(format!("{stem}-{number:05}-of-{files:05}.gguf")))
}

fn value(input: &mut impl Read, kind: u32) -> io::Result<Value> {
    Ok(match kind {
        6 => Value::Number(f32::from_le_bytes(bytes(input)?).into()),
        12 => Value::Number(f64::from_le_bytes(bytes(input)?)),
        8 => Value::Text(text(input)?),
        9 => {
            let (kind, length) = (u32_of(input)?, count(input)?);
            list(input, kind, length)?
        }
        kind => Value::Whole(whole(input, kind)?),
    })
}

fn list(input: &mut impl Read, kind: u32, length: u64) -> io::Result<Value> {
    match kind {
        8 => (0..length).try_for_each(|_| skip_text(input))?,
        6 => (0..length).try_for_each(|_| bytes::<4>(input).map(drop))?,
        12 => (0..length).try_for_each(|_| bytes::<8>(input).map(drop))?,
        9 => return Err(broken("a list of lists")),
        // Lists of one number for each layer are wanted, those of one for each word of the vocabulary are not.
        kind if length <= 4096 => {
            return Ok(Value::Wholes((0..length).map(|_| whole(input, kind)).collect::<io::Result<_>>()?));
        }
        kind => (0..length).try_for_each(|_| whole(input, kind).map(drop))?,
    }
    Ok(Value::List(length))
}

/// A number or a truth value; what is below zero is zero.
fn whole(input: &mut impl Read, kind: u32) -> io::Result<u64> {
    let signed = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(match kind {
        0 | 7 => u64::from(bytes::<1>(input)?[0]),
        1 => signed(i8::from_le_bytes(bytes(input)?).into()),
        2 => u16::from_le_bytes(bytes(input)?).into(),
        3 => signed(i16::from_le_bytes(bytes(input)?).into()),
        4 => u32_of(input)?.into(),
        5 => signed(i32::from_le_bytes(bytes(input)?).into()),
        10 => u64_of(input)?,
        11 => signed(i64::from_le_bytes(bytes(input)?)),
        _ => return Err(broken("a value of an unknown type")),
    })
}

fn text(input: &mut impl Read) -> io::Result<String> {
    let length = count(input)?;
    let mut text = Vec::new();
    if input.take(length).read_to_end(&mut text)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn skip_text(input: &mut impl Read) -> io::Result<()> {
    let length = count(input)?;
    match io::copy(&mut input.take(length), &mut io::sink())? {
        skipped if skipped == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn count(input: &mut impl Read) -> io::Result<u64> {
    match u64_of(input)? {
        count if count <= LONGEST => Ok(count),
        _ => Err(broken("a length beyond reason")),
    }
}

fn u32_of(input: &mut impl Read) -> io::Result<u32> {
    Ok(u32::from_le_bytes(bytes(input)?))
}

fn u64_of(input: &mut impl Read) -> io::Result<u64> {
    Ok(u64::from_le_bytes(bytes(input)?))
}

fn bytes<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{why}; it is damaged, or not a model"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    /// A header with these figures (under the architecture `llama`) and tensors of these sizes.
    pub(crate) fn header(figures: &[(&str, u64)], words: u64, tensors: &[(&str, u64)]) -> Header {
        let mut values: HashMap<String, Value> =
            figures.iter().map(|(name, value)| (format!("llama.{name}"), Value::Whole(*value))).collect();
        values.insert("general.architecture".into(), Value::Text("llama".into()));
        values.insert("tokenizer.ggml.tokens".into(), Value::List(words));
        Header { values, tensors: tensors.iter().map(|(name, bytes)| ((*name).into(), *bytes)).collect() }
    }

    fn shipped() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/toll-tiny.gguf")
    }

    #[test]
    fn the_shipped_model_says_what_it_is() {
        let header = Header::read(&shipped()).unwrap();
        assert_eq!(header.architecture(), "llama");
        assert_eq!(header.figure("block_count"), Some(6));
        assert!(header.vocabulary() > 500);
        let length = std::fs::metadata(shipped()).unwrap().len();
        let data: u64 = header.tensors.iter().map(|(_, bytes)| bytes).sum();
        assert!(data < length && data > length * 9 / 10, "{data} of {length}");
    }

    #[test]
    fn the_parts_of_a_split_model_are_found_by_their_names() {
        let path = Path::new("/m/big-00001-of-00003.gguf");
        assert_eq!(part(path, 3, 3), Some("/m/big-00003-of-00003.gguf".into()));
        assert_eq!(part(Path::new("/m/big.gguf"), 2, 3), None);
    }

    #[test]
    fn a_tensor_reaches_to_the_next() {
        let places = vec![(64, "b".to_owned()), (0, "a".to_owned()), (96, "c".to_owned())];
        assert_eq!(sizes(places, 100), [("a".into(), 64), ("b".into(), 32), ("c".into(), 4)]);
    }

    proptest! {
        #[test]
        fn a_damaged_header_is_an_error_or_a_header_and_nothing_else(
            cut in 0usize..40_000,
            damage in prop::collection::vec((0usize..20_000, any::<u8>()), 0..6),
        ) {
            let mut file = std::fs::read(shipped()).unwrap();
            file.truncate(cut);
            for (at, byte) in damage {
                if let Some(place) = file.get_mut(at) {
                    *place = byte;
                }
            }
            let length = file.len() as u64;
            let _ = Header::parse(Cursor::new(file), length);
        }
    }
}
