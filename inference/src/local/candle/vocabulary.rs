//! The tokenizer of a GGUF file, rebuilt from its metadata: byte-level BPE (`gpt2`) and SentencePiece (`llama`), token for token as
//! llama.cpp reads them.

use super::gguf::Metadata;
use super::splits;
use crate::local::engine::{ControlToken, LoadError, Token, Tokenizer};
use crate::local::formats::Format;
use candle_core::quantized::gguf_file::Value;
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Inner};
use tollkeeper_config::LocalModel;

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// Names of tokens that end an answer, whatever else the file says.
const ENDS: &[&str] = &[
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "<|fim_pad|>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

/// What a token is for, by its number in GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    /// Means something of its own; text never becomes it.
    Control,
    /// Text that is always one token.
    Fixed,
    /// One byte, named `<0x0A>`.
    Byte,
    Unused,
}

impl Kind {
    fn of(number: i64) -> Self {
        match number {
            1 => Self::Normal,
            2 | 3 => Self::Control,
            4 => Self::Fixed,
            6 => Self::Byte,
            _ => Self::Unused,
        }
    }
}

/// The tokens of a file as it lists them.
struct Listed<'a> {
    names: Vec<&'a str>,
    kinds: Vec<Kind>,
}

impl<'a> Listed<'a> {
    fn of(metadata: Metadata<'a>) -> Result<Self, LoadError> {
        let names = metadata.texts("tokenizer.ggml.tokens");
        if names.is_empty() {
            return Err(LoadError("the model has no tokenizer".into()));
        }
        let numbers = metadata.list("tokenizer.ggml.token_type", |item| match item {
            Value::I32(number) => Some(i64::from(*number)),
            number => number.to_i64().ok(),
        });
        let mut kinds: Vec<Kind> = numbers.into_iter().map(Kind::of).collect();
        kinds.resize(names.len(), Kind::Normal);
        for (name, kind) in names.iter().zip(&mut kinds) {
            if ENDS.contains(name) {
                *kind = Kind::Control;
            }
        }
        Ok(Self { names, kinds })
    }

    fn iter(&self) -> impl Iterator<Item = (Token, &'a str, Kind)> {
        (0..).zip(&self.names).zip(&self.kinds).map(|((token, name), kind)| (token, *name, *kind))
    }

    /// What text can become. Control tokens are left out, so that no text becomes one.
    fn writable(&self) -> HashMap<&'a str, Token> {
        let writable = self.iter().filter(|(_, _, kind)| !matches!(kind, Kind::Control | Kind::Unused));
        writable.map(|(token, name, _)| (name, token)).collect()
    }

    fn name(&self, token: Option<Token>) -> String {
        token.and_then(|token| self.names.get(token as usize)).map_or(String::new(), ToString::to_string)
    }
}

/// A model's tokenizer.
pub(super) struct Vocabulary {
    inner: Inner,
    /// The bytes of every token.
    pieces: Vec<Vec<u8>>,
    control: Vec<ControlToken>,
    ends: HashSet<Token>,
    first: Option<Token>,
    last: Option<Token>,
    template: Option<String>,
    edges: (String, String),
}

impl Vocabulary {
    /// Rebuilds the tokenizer.
    ///
    /// # Errors
    /// There is none in the file, or one that is not known.
    pub(super) fn of(metadata: Metadata<'_>, model: &LocalModel) -> Result<Self, LoadError> {
        let listed = Listed::of(metadata)?;
        let kind = metadata.text("tokenizer.ggml.model").unwrap_or_default();
        let refuse = |error: tokenizers::Error| LoadError(format!("the tokenizer of the file is broken: {error}"));
        let (mut inner, mut pieces, opens) = match kind {
            "gpt2" => {
                let rule = metadata.text("tokenizer.ggml.pre").unwrap_or("default");
                let split = splits::find(rule).ok_or_else(|| {
                    LoadError(format!(
                        "the file's text is cut by the rule `{rule}`, which the candle engine does not know; use `engine = \"llama.cpp\"`"
                    ))
                })?;
                let inner = byte_level(&listed, &metadata.texts("tokenizer.ggml.merges"), split).map_err(refuse)?;
                (inner, byte_level_pieces(&listed), split.opens)
            }
            "llama" => {
                let scores = metadata.list("tokenizer.ggml.scores", |item| match item {
                    Value::I32(score) => Some(*score as f32),
                    score => score.to_f32().ok(),
                });
                let prefix = metadata.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
                let inner = sentence_piece(&listed, &scores, prefix).map_err(refuse)?;
                (inner, sentence_piece_pieces(&listed), true)
            }
            other => {
                return Err(LoadError(format!(
                    "the candle engine does not know tokenizers of the kind `{other}`; use `engine = \"llama.cpp\"`"
                )));
            }
        };
        let fixed = listed.iter().filter(|(_, _, kind)| *kind == Kind::Fixed);
        let fixed: Vec<_> = fixed.map(|(_, name, _)| AddedToken::from(name, false).normalized(false)).collect();
        inner.add_tokens(fixed).map_err(refuse)?;

        // Control tokens have no text, but some of them are marks in the text of an answer.
        let template = metadata.text("tokenizer.chat_template");
        let marks = Format::chosen(template.unwrap_or_default(), model.tool_format, model.reasoning_format).spoken();
        for (token, name, _) in listed.iter().filter(|(_, name, kind)| *kind == Kind::Control && marks.contains(name)) {
            pieces[token as usize] = name.into();
        }
        let special = |key: &str| metadata.number(&format!("tokenizer.ggml.{key}_token_id"));
        let default = |token: Token| (kind == "llama").then_some(token);
        let (begin, end) = (special("bos").or(default(1)), special("eos").or(default(2)));
        let wanted = |key: &str, usual: bool| metadata.flag(&format!("tokenizer.ggml.{key}")).unwrap_or(usual);
        let named = listed.iter().filter(|(_, name, _)| ENDS.contains(name)).map(|(token, _, _)| token);
        Ok(Self {
            inner,
            pieces,
            control: control_tokens(&listed, metadata.text("general.name").unwrap_or_default()),
            ends: named.chain(end).chain(special("eot")).chain(special("eom")).collect(),
            first: begin.filter(|_| wanted("add_bos_token", opens)),
            last: end.filter(|_| wanted("add_eos_token", false)),
            template: template.map(str::to_owned),
            edges: (listed.name(begin), listed.name(end)),
        })
    }

    /// How many tokens the file lists.
    ///
    /// # Errors
    /// There are none.
    pub(super) fn count(metadata: Metadata<'_>) -> Result<u32, LoadError> {
        Ok(u32::try_from(Listed::of(metadata)?.names.len()).unwrap_or(u32::MAX))
    }
}

impl Tokenizer for Vocabulary {
    fn encode(&self, text: &str, whole: bool) -> Vec<Token> {
        let mut tokens = Vec::new();
        tokens.extend(self.first.filter(|_| whole));
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => tokens.extend_from_slice(encoding.get_ids()),
            Err(error) => tracing::error!(%error, "text could not be read as tokens"),
        }
        tokens.extend(self.last.filter(|_| whole));
        tokens
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        self.pieces.get(token as usize).cloned().unwrap_or_default()
    }

    fn is_end(&self, token: Token) -> bool {
        self.ends.contains(&token)
    }

    fn vocabulary(&self) -> u32 {
        u32::try_from(self.pieces.len()).unwrap_or(u32::MAX)
    }

    fn control_tokens(&self) -> Vec<ControlToken> {
        self.control.clone()
    }

    fn required_first(&self) -> Option<Token> {
        self.first
    }

    fn chat_template(&self) -> Option<String> {
        self.template.clone()
    }

    fn edge_names(&self) -> (String, String) {
        self.edges.clone()
    }
}

fn control_tokens(listed: &Listed<'_>, model: &str) -> Vec<ControlToken> {
    // Phi-3's control tokens swallow the whitespace behind them, and no file says so.
    let model = model.to_lowercase();
    let strips = model.contains("phi-3") || model.contains("phi3");
    let control = listed.iter().filter(|(_, name, kind)| *kind == Kind::Control && !name.is_empty());
    let control = control.map(|(token, name, _)| ControlToken {
        token,
        name: name.to_owned(),
        strips_left: false,
        strips_right: strips && !["<unk>", "<s>", "<|endoftext|>"].contains(&name),
    });
    control.collect()
}

/// A tokenizer whose letters are bytes.
fn byte_level(listed: &Listed<'_>, merges: &[&str], split: &splits::Split) -> tokenizers::Result<Inner> {
    let writable = listed.writable();
    // The space that parts the two halves of a merge is never its first character.
    let halves = |merge: &str| {
        let from = merge.chars().next()?.len_utf8();
        let at = from + merge.get(from..)?.find(' ')?;
        Some((merge[..at].to_owned(), merge[at + 1..].to_owned()))
    };
    let merges = merges.iter().filter_map(|merge| halves(merge)).collect();
    let mut inner = Inner::new(bpe(&writable, merges).ignore_merges(split.whole_words).build()?);
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for rule in split.rules {
        let rule = SplitPattern::Regex((*rule).to_owned());
        steps.push(Split::new(rule, SplitDelimiterBehavior::Isolated, false)?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    Ok(inner)
}

/// A tokenizer whose letters are characters, and whose merges are told by the scores of what they make.
fn sentence_piece(listed: &Listed<'_>, scores: &[f32], prefix: bool) -> tokenizers::Result<Inner> {
    let writable = listed.writable();
    let mut merges = Vec::new();
    for (token, name, kind) in listed.iter().filter(|(_, _, kind)| matches!(kind, Kind::Normal | Kind::Fixed)) {
        let score = scores.get(token as usize).copied().unwrap_or(0.0);
        for (at, _) in name.char_indices().skip(1) {
            let (left, right) = name.split_at(at);
            if kind != Kind::Unused && writable.contains_key(left) && writable.contains_key(right) {
                merges.push((score, token, (left.to_owned(), right.to_owned())));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then_with(|| Reverse(&a.2.0).cmp(&Reverse(&b.2.0))));
    let merges = merges.into_iter().map(|(_, _, halves)| halves).collect();
    let mut inner = Inner::new(bpe(&writable, merges).byte_fallback(true).build()?);
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if prefix {
        steps.push(Prepend::new(SPACE.into()).into());
    }
    steps.push(Replace::new(" ", SPACE)?.into());
    inner.with_normalizer(Some(Normalizers::new(steps)))?;
    Ok(inner)
}

/// The part that both have in common. A merge that makes or takes what text cannot become is left out.
fn bpe(writable: &HashMap<&str, Token>, mut merges: Vec<(String, String)>) -> BpeBuilder {
    let mut joined = String::new();
    merges.retain(|(left, right)| {
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        [left.as_str(), right, &joined].iter().all(|name| writable.contains_key(name))
    });
    let vocabulary = writable.iter().map(|(name, token)| ((*name).to_owned(), *token)).collect::<Vocab>();
    BPE::builder().vocab_and_merges(vocabulary, merges)
}

fn byte_level_pieces(listed: &Listed<'_>) -> Vec<Vec<u8>> {
    let letters = letters();
    let bytes = |name: &str| {
        let mut bytes = Vec::with_capacity(name.len());
        for letter in name.chars() {
            match letters.get(&letter) {
                Some(byte) => bytes.push(*byte),
                None => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        bytes
    };
    let pieces = listed.iter().map(|(_, name, kind)| match kind {
        Kind::Control | Kind::Unused => Vec::new(),
        Kind::Fixed => name.into(),
        Kind::Normal | Kind::Byte => bytes(name),
    });
    pieces.collect()
}

/// The letters that stand for bytes: printable ones for themselves, the others for a row of letters from U+0100 on.
fn letters() -> HashMap<char, u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let plain = (0..=255).filter(printable).map(|byte| (char::from(byte), byte));
    let others = ('\u{100}'..).zip((0..=255).filter(|byte| !printable(byte)));
    plain.chain(others).collect()
}

fn sentence_piece_pieces(listed: &Listed<'_>) -> Vec<Vec<u8>> {
    let byte = |name: &str| {
        let digits = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).into_iter().collect()
    };
    let pieces = listed.iter().map(|(_, name, kind)| match kind {
        Kind::Control | Kind::Unused => Vec::new(),
        Kind::Fixed => name.into(),
        Kind::Byte => byte(name),
        Kind::Normal => name.replace(SPACE, " ").into_bytes(),
    });
    pieces.collect()
}
