//! The metadata of a chat model: architecture, tokenizer and template, in the keys that llama.cpp and candle read.

use std::collections::HashSet;

use crate::data::TEMPLATE;
use crate::gguf::{Header, Value};
use crate::quant::Quant;

/// A byte-level BPE vocabulary whose first three tokens are `<|endoftext|>`, `<|im_start|>` and `<|im_end|>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Every token's text in byte-level letters, by id.
    pub tokens: Vec<String>,
    /// Merges in order, the two parts with a space between.
    pub merges: Vec<String>,
}

impl Vocabulary {
    /// The vocabulary of a file with such a header, if it has one.
    pub fn of(header: &Header) -> Option<Self> {
        let texts = |key: &str| match header.get(key) {
            Some(Value::Texts(texts)) => Some(texts.clone()),
            _ => None,
        };
        Some(Self { tokens: texts("tokenizer.ggml.tokens")?, merges: texts("tokenizer.ggml.merges")? })
    }

    /// The three special tokens and the 256 bytes: every text has tokens, one for each of its bytes.
    pub fn bytes() -> Self {
        let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
        Self { tokens: special.into_iter().chain((0..=255).map(letter)).collect(), merges: Vec::new() }
    }

    /// Cuts or fills up with tokens that no text has, to exactly `size`; the special tokens and bytes always stay.
    #[must_use]
    pub fn sized(mut self, size: usize) -> Self {
        let kept = size.max(BASE);
        if kept < self.tokens.len() {
            self.tokens.truncate(kept);
            let known: HashSet<&str> = self.tokens.iter().map(String::as_str).collect();
            let joined = |merge: &String| known.contains(merge.replacen(' ', "", 1).as_str());
            self.merges = self.merges.iter().filter(|merge| joined(merge)).cloned().collect();
        }
        self.tokens.extend((self.tokens.len()..kept).map(|id| format!("<|unused_{id}|>")));
        self
    }
}

/// Special tokens and bytes.
const BASE: usize = 3 + 256;

/// How byte-level vocabularies write a byte: itself where it is visible in Latin-1, else a letter from U+0100 on.
fn letter(byte: u8) -> String {
    let visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden_before = (0..byte).filter(|other| !visible(other)).count() as u32;
    let code = if visible(&byte) { u32::from(byte) } else { 0x100 + hidden_before };
    char::from_u32(code).map_or_else(String::new, |letter| letter.to_string())
}

/// The sizes that stand in the metadata.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Longest sequence that engines accept, in tokens.
    pub context: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of the feed-forward layer.
    pub ff: usize,
    /// Base frequency of the rotary embedding.
    pub rope_base: f32,
}

/// All metadata of a Llama-architecture chat model.
pub fn metadata(name: &str, sizes: &Sizes, vocabulary: &Vocabulary, quant: Quant) -> Vec<(String, Value)> {
    let number = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let text = |t: &str| Value::Text(t.to_owned());
    // 3 marks a control token, 1 a normal one.
    let kinds = (0..vocabulary.tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect();
    [
        ("general.architecture", text("llama")),
        ("general.name", text(name)),
        ("general.license", text("apache-2.0")),
        ("general.file_type", Value::U32(quant.file_type())),
        ("general.quantization_version", Value::U32(2)),
        ("llama.context_length", number(sizes.context)),
        ("llama.embedding_length", number(sizes.dim)),
        ("llama.block_count", number(sizes.layers)),
        ("llama.feed_forward_length", number(sizes.ff)),
        ("llama.attention.head_count", number(sizes.heads)),
        ("llama.attention.head_count_kv", number(sizes.kv_heads)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.dimension_count", number(sizes.dim / sizes.heads)),
        ("llama.rope.freq_base", Value::F32(sizes.rope_base)),
        ("llama.vocab_size", number(vocabulary.tokens.len())),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("qwen2")),
        ("tokenizer.ggml.tokens", Value::Texts(vocabulary.tokens.clone())),
        ("tokenizer.ggml.token_type", Value::I32s(kinds)),
        ("tokenizer.ggml.merges", Value::Texts(vocabulary.merges.clone())),
        // As in Qwen2's own files, the beginning token is named but never added.
        ("tokenizer.ggml.bos_token_id", Value::U32(0)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.padding_token_id", Value::U32(0)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.chat_template", text(TEMPLATE)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}
