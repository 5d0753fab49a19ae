//! The neutral text-completion request (`POST /v1/completions`); its answer is a [`crate::chat::ChatResponse`] of plain text.

use crate::chat::Sampling;
use serde_json::{Map, Value};

/// A text completion of one or more prompts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CompletionRequest {
    /// The model or alias the client asked for.
    pub model: String,
    /// The prompts; never empty.
    pub prompts: Vec<Prompt>,
    /// Text after the gap to fill; backends without infill refuse it.
    pub suffix: Option<String>,
    /// Whether the prompt is repeated before the answer; together with `logprobs` with the log-probabilities of its tokens.
    pub echo: bool,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The most tokens to generate; OpenAI's default is 16.
    pub max_tokens: Option<u32>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Answers per prompt.
    pub n: u32,
    /// Answers per prompt that a provider writes, and bills, to give the best `n` of them.
    pub best_of: Option<u32>,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether the client asked for the usage chunk of a stream.
    pub include_usage: bool,
    /// `Some(k)`: log-probabilities with the k best alternatives.
    pub logprobs: Option<u8>,
    /// Fields this gateway does not know.
    pub extra: Map<String, Value>,
}

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text, tokenised by the backend.
    Text(String),
    /// Token ids of the backend's own vocabulary.
    Tokens(Vec<u32>),
}
