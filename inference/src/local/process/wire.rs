//! What a gateway and its engine process say to each other, as frames: two lengths, a head (postcard) and a tail of raw bytes.
//!
//! A frame is `u32` bytes of head, `u64` bytes of tail, head, tail; all numbers are little-endian, as on every machine that this is
//! built for. The tail is logits, vectors or kept KV: it goes from the engine's memory to the socket and from the socket to where it is
//! read, without a copy between. Lengths are not believed: memory grows with what has really come, or is bounded by what was asked for.

use super::super::engine::{EngineError, Limits, Row, Token};
use super::super::picture::Picture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use tollkeeper_config::LocalModel;

/// Longest head in bytes: the tokens of an embedding input of the longest context there can be.
const LONGEST_HEAD: u32 = 128 << 20;
const LENGTHS: usize = 12;

/// What the gateway wants. The engine process answers every request, in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Request<'a> {
    /// The first request: load this model. Answered by `Loaded` or `NotLoaded`.
    Load(Box<LocalModel>),
    /// Answered by `Warm`.
    WarmUp,
    /// Answered by `Decoded`.
    Decode(Cow<'a, [Row]>),
    /// Answered by `Done`.
    Truncate { sequence: u32, keep: u32 },
    /// Answered by `Done`.
    Share { from: u32, to: u32, length: u32 },
    /// Answered by `Saved`, or by `Done` if it could not.
    Save { sequence: u32 },
    /// The tail has the state. Answered by `Done`.
    Restore { sequence: u32, length: u32 },
    /// The tail has the picture's pixels. Answered by `Measured`.
    Measure(Frame),
    /// The tail has the picture's pixels. Answered by `Done`.
    Show { frame: Frame, sequence: u32, position: u32 },
    /// All inputs one after the other, and how long each is. Answered by `Vectors`.
    Embed { lengths: Vec<u32>, tokens: Vec<Token> },
    /// Answered by `Guessed`.
    Guess(Vec<Guessing>),
}

/// A sequence to guess for. Both sides remember its text of the last time, of which this keeps so many tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Guessing {
    pub(super) sequence: u32,
    pub(super) keep: u32,
    pub(super) more: Vec<Token>,
    pub(super) next: Token,
    pub(super) most: u32,
    pub(super) reach: u32,
}

/// The size of a picture whose pixels follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frame {
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Frame {
    pub(super) fn of(picture: &Picture) -> Self {
        Self { width: picture.width(), height: picture.height() }
    }

    /// The picture of these pixels.
    pub(super) fn filled(self, rgb: Vec<u8>) -> io::Result<Picture> {
        let bytes = rgb.len();
        Picture::new(self.width, self.height, rgb)
            .ok_or_else(|| strange(format!("a picture {self:?} of {bytes} bytes")))
    }
}

/// What the engine process answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// No answer yet, but it lives; while it loads, how much of that is done, if it can tell.
    Beat {
        loaded: Option<f32>,
    },
    Loaded {
        limits: Limits,
        memory: Option<u64>,
    },
    NotLoaded(String),
    Warm {
        memory: Option<u64>,
    },
    /// The tail has the logits of each row that wanted some.
    Decoded,
    /// Whether it could.
    Done(bool),
    /// Tokens that the picture takes.
    Measured(u32),
    /// The tail has the state.
    Saved,
    /// The tail has one vector of this many numbers for each input.
    Vectors {
        width: u32,
    },
    /// The tokens for each sequence that was asked about.
    Guessed(Vec<Vec<Token>>),
    Failed(EngineError),
}

/// Writes one frame; `scratch` saves the allocation.
pub(super) fn write(
    out: &mut impl Write,
    scratch: &mut Vec<u8>,
    head: &impl Serialize,
    tail: &[&[u8]],
) -> io::Result<()> {
    scratch.clear();
    scratch.resize(LENGTHS, 0);
    postcard::to_io(head, &mut *scratch).map_err(io::Error::other)?;
    let head = u32::try_from(scratch.len() - LENGTHS).ok().filter(|head| *head <= LONGEST_HEAD);
    let head = head.ok_or_else(|| io::Error::other("a message to the engine process is too long"))?;
    let bytes: usize = tail.iter().map(|part| part.len()).sum();
    scratch[..4].copy_from_slice(&head.to_le_bytes());
    scratch[4..LENGTHS].copy_from_slice(&(bytes as u64).to_le_bytes());
    let mut parts: Vec<IoSlice<'_>> = [IoSlice::new(scratch)].into_iter().collect();
    parts.extend(tail.iter().map(|part| IoSlice::new(part)));
    let mut left = parts.as_mut_slice();
    while !left.is_empty() {
        match out.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads the head of a frame, and how many bytes its tail has; the caller reads that.
///
/// # Errors
/// `UnexpectedEof`: the other side has gone. `InvalidData`: it speaks another language.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read, scratch: &mut Vec<u8>) -> io::Result<(T, u64)> {
    let mut lengths = [0; LENGTHS];
    from.read_exact(&mut lengths)?;
    let [h0, h1, h2, h3, tail @ ..] = lengths;
    let (head, tail) = (u32::from_le_bytes([h0, h1, h2, h3]), u64::from_le_bytes(tail));
    if head > LONGEST_HEAD {
        return Err(strange(format!("a head of {head} bytes")));
    }
    scratch.clear();
    if from.take(u64::from(head)).read_to_end(scratch)? < head as usize {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    match postcard::take_from_bytes(scratch) {
        Ok((head, [])) => Ok((head, tail)),
        Ok((_, rest)) => Err(strange(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(strange(error.to_string())),
    }
}

/// Reads a tail of exactly so many numbers.
///
/// # Errors
/// As [`read`]; `InvalidData` too if it has another length.
pub(super) fn read_numbers(from: &mut impl Read, tail: u64, count: usize, into: &mut Vec<f32>) -> io::Result<()> {
    if tail != count as u64 * 4 {
        return Err(strange(format!("{tail} bytes instead of {count} numbers")));
    }
    into.resize(count, 0.0);
    from.read_exact(bytemuck::cast_slice_mut(into))
}

/// Reads a tail of any length; memory is taken as it comes.
///
/// # Errors
/// As [`read`].
pub(super) fn read_bytes(from: &mut impl Read, tail: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(tail).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < tail { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

pub(super) fn strange(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("what the engine process said makes no sense: {what}"))
}

#[cfg(test)]
mod tests;
