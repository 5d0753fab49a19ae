//! The shapes of OpenAI's answers that we write, whole and streamed.

use super::response::Extension;
use crate::chat::{FinishReason, ToolCall};
use crate::event::TokenLogprob;
use crate::usage::Usage;
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Serialize, Serializer};

/// Appends a value as JSON.
pub(super) fn write_json(value: &impl Serialize, out: &mut BytesMut) {
    serde_json::to_writer(out.writer(), value).expect("our own shapes have text keys and a buffer takes every byte");
}

/// A value as JSON.
pub(super) fn to_json(value: &impl Serialize) -> Bytes {
    let mut out = BytesMut::with_capacity(512);
    write_json(value, &mut out);
    out.freeze()
}

/// A value as JSON text.
pub(super) fn to_text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our own shapes have text keys")
}

/// What every answer and chunk begins with.
#[derive(Serialize)]
pub(super) struct Head<'a> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
}

/// A `usage` object.
#[derive(Serialize)]
pub(super) struct UsageBody<'a> {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<&'a str>,
}

#[derive(Serialize)]
struct PromptDetails {
    cached_tokens: u64,
    /// OpenRouter's name for it; OpenAI has none.
    #[serde(skip_serializing_if = "is_zero")]
    cache_write_tokens: u64,
    #[serde(skip_serializing_if = "is_zero")]
    audio_tokens: u64,
}

#[derive(Serialize)]
struct CompletionDetails {
    reasoning_tokens: u64,
    #[serde(skip_serializing_if = "is_zero")]
    audio_tokens: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl<'a> UsageBody<'a> {
    pub(super) fn new(usage: &Usage, extension: Option<&'a Extension>) -> Self {
        Self {
            prompt_tokens: usage.input,
            completion_tokens: usage.output,
            total_tokens: usage.input.saturating_add(usage.output),
            prompt_tokens_details: PromptDetails {
                cached_tokens: usage.cached_input,
                cache_write_tokens: usage.cache_write,
                audio_tokens: usage.audio_input,
            },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: usage.reasoning,
                audio_tokens: usage.audio_output,
            },
            cost_usd: extension.map(|extension| extension.cost_usd.as_str()),
        }
    }
}

/// Why a choice ended, in OpenAI's word.
pub(super) fn finish_reason<S: Serializer>(reason: &Option<FinishReason>, out: S) -> Result<S::Ok, S::Error> {
    reason.map(FinishReason::name).serialize(out)
}

/// A whole tool call or a piece of one.
#[derive(Serialize)]
pub(super) struct CallBody<'a> {
    /// Only in streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<&'static str>,
    pub(super) function: FunctionBody<'a>,
}

#[derive(Serialize)]
pub(super) struct FunctionBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
    pub(super) arguments: &'a str,
}

impl<'a> CallBody<'a> {
    pub(super) fn whole(call: &'a ToolCall) -> Self {
        Self {
            index: None,
            id: Some(&call.id),
            kind: Some("function"),
            function: FunctionBody { name: Some(&call.name), arguments: &call.arguments },
        }
    }
}

/// The log-probabilities of a chat choice.
#[derive(Serialize)]
pub(super) struct ChatLogprobs<'a> {
    content: Vec<ChatLogprob<'a>>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatLogprob<'a> {
    #[serde(flatten)]
    token: OneLogprob<'a>,
    top_logprobs: Vec<OneLogprob<'a>>,
}

#[derive(Serialize)]
struct OneLogprob<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> ChatLogprobs<'a> {
    /// `None` when there are none.
    pub(super) fn new(tokens: &'a [TokenLogprob]) -> Option<Self> {
        let content = tokens.iter().map(|token| ChatLogprob {
            token: OneLogprob {
                token: &token.token,
                logprob: finite(token.logprob.unwrap_or(f32::NEG_INFINITY)),
                bytes: &token.bytes,
            },
            top_logprobs: token
                .top
                .iter()
                .map(|(token, bytes, logprob)| OneLogprob { token, logprob: finite(*logprob), bytes })
                .collect(),
        });
        (!tokens.is_empty()).then(|| Self { content: content.collect(), refusal: None })
    }
}

/// The log-probabilities of a text completion's choice.
#[derive(Serialize)]
pub(super) struct TextLogprobs<'a> {
    tokens: Vec<&'a str>,
    /// Null for a token that follows nothing.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<TopLogprobs<'a>>>,
    text_offset: Vec<usize>,
}

/// An object of token texts and their log-probabilities.
struct TopLogprobs<'a>(&'a [(String, Vec<u8>, f32)]);

impl Serialize for TopLogprobs<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_map(self.0.iter().map(|(token, _, logprob)| (token, finite(*logprob))))
    }
}

impl<'a> TextLogprobs<'a> {
    /// `offset` is how many characters came before; it is moved on. `None` when there are none.
    pub(super) fn new(tokens: &'a [TokenLogprob], offset: &mut usize) -> Option<Self> {
        let text_offset = tokens.iter().map(|token| {
            let start = *offset;
            *offset += token.token.chars().count();
            start
        });
        let text_offset = text_offset.collect();
        (!tokens.is_empty()).then(|| Self {
            tokens: tokens.iter().map(|token| token.token.as_str()).collect(),
            token_logprobs: tokens.iter().map(|token| token.logprob.map(finite)).collect(),
            top_logprobs: tokens.iter().map(|token| token.logprob.map(|_| TopLogprobs(&token.top))).collect(),
            text_offset,
        })
    }
}

/// JSON has no infinities; OpenAI writes -9999 for what cannot be.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}
