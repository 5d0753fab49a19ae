//! Pictures in prompts: from a client's data URL to pixels, and the tokens that stand for one.
//!
//! A picture has no tokens of the vocabulary, but it takes places in a sequence like text does. Each of its places has a token of its own,
//! beyond every vocabulary and made from the hash of its pixels. So a prompt stays a list of tokens: two prompts that begin alike
//! begin with the same pictures, in a slot, in kept KV and on disk. The pictures themselves are beside the prompt.

use super::engine::Token;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder as _, ImageReader, Limits};
use sha2::{Digest, Sha256};
use std::io::Cursor;
use std::sync::Arc;

/// Most pictures of a request.
pub(crate) const MOST_PICTURES: usize = 16;
/// Most pixels of all pictures of a request; each takes three bytes until it was read.
pub(crate) const MOST_PIXELS: u64 = 1 << 24;
/// Longest side of a picture, in pixels.
const LONGEST_SIDE: u32 = 16_384;
/// How much longer one side may be than the other: engines divide by the shorter one.
const MOST_OBLONG: u32 = 100;
/// Most memory that decoding one picture may take, in bytes: its pixels with 16 bits and four channels, and as much again.
const DECODER_BYTES: u64 = MOST_PIXELS * 16;

/// Set in the tokens that stand for pictures; no vocabulary is so large.
const PICTURE: Token = 1 << 31;
/// Set in the first token of each picture.
const FIRST: Token = 1 << 30;
/// Bits of a picture's hash in each of its tokens.
const NAMING: usize = 30;
/// Pictures with fewer tokens cannot be told apart surely enough by them, so they are always read again.
const NAMED: usize = 128usize.div_ceil(NAMING);

/// The first of the characters that stand for pictures while a chat template is filled in. They are noncharacters: no text for
/// interchange has them.
const MARKS: char = '\u{FDD1}';

/// A picture.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    rgb: Arc<[u8]>,
    hash: [u8; 32],
}

impl std::fmt::Debug for Picture {
    /// Without its pixels: they are the client's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

impl Picture {
    /// A picture of pixels of one byte each of red, green and blue, row by row; `None` if their number is not `width` times `height`, or
    /// zero.
    pub fn new(width: u32, height: u32, rgb: impl Into<Arc<[u8]>>) -> Option<Self> {
        let rgb = rgb.into();
        let wanted = (u64::from(width) * u64::from(height)).saturating_mul(3);
        if wanted == 0 || rgb.len() as u64 != wanted {
            return None;
        }
        let mut hash = Sha256::new();
        hash.update(width.to_le_bytes());
        hash.update(height.to_le_bytes());
        hash.update(&rgb);
        Some(Self { width, height, rgb, hash: hash.finalize().into() })
    }

    /// The picture in the data URL of a client, of at most `room` pixels. The reason against it is for the client.
    pub(crate) fn of_url(url: &str, room: u64) -> Result<Self, String> {
        let (head, data) = match url.split_at_checked(5) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("data:") => {
                rest.split_once(',').ok_or("it is a data URL without data")?
            }
            _ => {
                return Err("a local model takes pictures as data URLs (data:image/png;base64,...) only: the gateway \
                            fetches nothing from other addresses"
                    .into());
            }
        };
        if !head.rsplit(';').next().is_some_and(|coding| coding.eq_ignore_ascii_case("base64")) {
            return Err("its data URL is not marked as base64 (data:image/png;base64,...)".into());
        }
        let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let bytes = GeneralPurpose::new(&STANDARD, config).decode(data);
        Self::decode(&bytes.map_err(|error| format!("its data is no base64: {error}"))?, room)
    }

    /// The picture in a PNG, JPEG, WebP or GIF (its first frame), upright. What it would take is checked before it is decoded.
    fn decode(bytes: &[u8], room: u64) -> Result<Self, String> {
        let broken = |error: image::ImageError| format!("it cannot be decoded as PNG, JPEG, WebP or GIF: {error}");
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
        let mut decoder = reader.map_err(|error| broken(error.into()))?.into_decoder().map_err(broken)?;
        let (width, height) = decoder.dimensions();
        let (short, long) = (width.min(height), width.max(height));
        if long > LONGEST_SIDE || u64::from(width) * u64::from(height) > room {
            return Err(format!(
                "it has {width} x {height} pixels; no side may be longer than {LONGEST_SIDE}, and all pictures of a request together \
                 may have {MOST_PIXELS} pixels; send it smaller"
            ));
        }
        if long > short.saturating_mul(MOST_OBLONG) {
            return Err(format!(
                "it has {width} x {height} pixels, and one side may be at most {MOST_OBLONG} times the other"
            ));
        }
        let mut limits = Limits::default();
        limits.max_alloc = Some(DECODER_BYTES);
        decoder.set_limits(limits).map_err(broken)?;
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut decoded = DynamicImage::from_decoder(decoder).map_err(broken)?;
        decoded.apply_orientation(orientation);
        let rgb = decoded.into_rgb8();
        Self::new(rgb.width(), rgb.height(), rgb.into_raw()).ok_or_else(|| "it has no pixels".to_owned())
    }

    /// Pixels from left to right.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Pixels from top to bottom.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Three bytes for each pixel, row by row.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }

    /// What no other picture has.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The tokens that stand for it where it takes so many.
    pub(crate) fn tokens(&self, count: u32) -> Vec<Token> {
        let mut tokens = Vec::with_capacity(count as usize);
        for block in 0..count.div_ceil(8) {
            let mut hash = Sha256::new();
            hash.update(self.hash);
            hash.update(block.to_le_bytes());
            let hash: [u8; 32] = hash.finalize().into();
            let words = hash.as_chunks::<4>().0.iter().map(|word| Token::from_le_bytes(*word));
            tokens.extend(words.map(|word| PICTURE | (word & (FIRST - 1))));
        }
        tokens.truncate(count as usize);
        if let Some(first) = tokens.first_mut() {
            *first |= FIRST;
        }
        tokens
    }
}

/// Whether a token stands for a part of a picture, or for a picture whose length is not known yet.
pub(crate) fn is_picture(token: Token) -> bool {
    token & PICTURE != 0
}

fn is_first(token: Token) -> bool {
    token & (PICTURE | FIRST) == PICTURE | FIRST
}

/// What stands for the picture of this number in a prompt whose pictures were not measured.
pub(crate) fn placeholder(number: usize) -> Token {
    PICTURE | FIRST | number as Token
}

/// How many tokens the picture has that `tokens` begins with; 0 if it begins with text, or in the middle of a picture.
pub(crate) fn length_of_first(tokens: &[Token]) -> usize {
    match tokens.split_first() {
        Some((first, rest)) if is_first(*first) => {
            1 + rest.iter().take_while(|token| is_picture(**token) && !is_first(**token)).count()
        }
        _ => 0,
    }
}

/// How many pictures begin in these tokens.
pub(crate) fn count(tokens: &[Token]) -> usize {
    tokens.iter().filter(|token| is_first(**token)).count()
}

/// What of the first `common` tokens of a prompt, which something else begins with too, is surely the same: whole pictures, with enough
/// tokens to name them.
pub(crate) fn surely_common(prompt: &[Token], common: usize) -> usize {
    let common = common.min(prompt.len());
    let mut at = 0;
    while let Some(next) = prompt[at..common].iter().position(|token| is_picture(*token)) {
        let length = length_of_first(&prompt[at + next..]);
        if length < NAMED || at + next + length > common {
            return at + next;
        }
        at += next + length;
    }
    common
}

/// The pictures of a prompt, in its order.
#[derive(Debug, Clone, Default)]
pub(crate) enum Pictures {
    /// It is text.
    #[default]
    None,
    /// Only the engine knows how many tokens they take: each has a [`placeholder`].
    Unmeasured(Arc<[Picture]>),
    /// The prompt has the tokens of each.
    Measured(Arc<[Picture]>),
}

impl Pictures {
    pub(crate) fn of(pictures: Vec<Picture>) -> Self {
        if pictures.is_empty() { Self::None } else { Self::Unmeasured(pictures.into()) }
    }
}

/// A prompt with the tokens of its pictures instead of their placeholders; `lengths` says how many each takes.
pub(crate) fn expand(prompt: &[Token], pictures: &[Picture], lengths: &[u32]) -> Arc<[Token]> {
    let mut whole = Vec::with_capacity(prompt.len() + lengths.iter().sum::<u32>() as usize);
    let mut named = pictures.iter().zip(lengths);
    for token in prompt {
        match is_picture(*token).then(|| named.next()).flatten() {
            Some((picture, length)) => whole.extend(picture.tokens(*length)),
            None => whole.push(*token),
        }
    }
    whole.into()
}

/// The character that stands for the picture of this number while a template is filled in.
pub(crate) fn mark(number: usize) -> char {
    debug_assert!(number < MOST_PICTURES, "there are characters for no more");
    char::from_u32(MARKS as u32 + number as u32).unwrap_or(MARKS)
}

/// The number of the picture that a character stands for.
pub(crate) fn number_of(mark: char) -> Option<usize> {
    (mark as usize).checked_sub(MARKS as usize).filter(|number| *number < MOST_PICTURES)
}

#[cfg(test)]
mod tests;
