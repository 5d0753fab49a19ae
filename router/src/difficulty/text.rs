//! A prompt cut to a bounded size and taken apart into tokens, once for all features.

/// The bytes that are looked at: half of them from the beginning of a prompt, half from its end.
pub const MOST_BYTES: usize = 6_000;

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Number,
    Mark,
}

/// A run of letters, a run of digits, or one mark. Letters outside ASCII are letters, whatever they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Where it begins.
    pub(super) at: usize,
    pub(super) length: usize,
    /// Of the word in lower case; of a number its count of digits only, so that no figure is learned by heart.
    pub(super) hash: u64,
}

/// FNV-1a over bytes that are in lower case already.
pub(super) fn hash(text: &[u8]) -> u64 {
    text.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

/// Two hashes in this order as one (the finaliser of SplitMix64, so that every bit counts).
pub(super) fn mix(first: u64, second: u64) -> u64 {
    let mut hash = first.rotate_left(23) ^ second.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The last place at or before this one at which a text can be cut.
pub(crate) fn boundary(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|place| text.is_char_boundary(*place)).unwrap_or(0)
}

/// Beginning and end of a long text, with a line between them; a short one as it is.
pub(super) fn sample(text: &str) -> std::borrow::Cow<'_, str> {
    if text.len() <= MOST_BYTES {
        return text.into();
    }
    let head = &text[..boundary(text, MOST_BYTES / 2)];
    let tail = &text[boundary(text, text.len() - MOST_BYTES / 2)..];
    format!("{head}\n{tail}").into()
}

/// The tokens of a text.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::with_capacity(bytes.len() / 4 + 8);
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let kind = kind(byte);
        let length = match kind {
            None => {
                at += 1;
                continue;
            }
            Some(Kind::Mark) => 1,
            Some(_) => 1 + bytes[at + 1..].iter().take_while(|next| self::kind(**next) == kind).count(),
        };
        let raw = &bytes[at..at + length];
        if let Some(kind) = kind {
            let hash = match kind {
                Kind::Number => hash(b"#").wrapping_add(length.min(7) as u64),
                Kind::Word | Kind::Mark => raw
                    .iter()
                    .fold(OFFSET, |hash, byte| (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(PRIME)),
            };
            tokens.push(Token { kind, at, length, hash });
        }
        at += length;
    }
    tokens
}

fn kind(byte: u8) -> Option<Kind> {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | 0x80.. => Some(Kind::Word),
        b'0'..=b'9' => Some(Kind::Number),
        byte if byte.is_ascii_graphic() => Some(Kind::Mark),
        _ => None,
    }
}
