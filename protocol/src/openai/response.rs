//! Encodes whole answers, and adds the gateway's figures to those of providers.

use super::wire::{CallBody, ChatLogprobs, Head, TextLogprobs, UsageBody, finish_reason, to_json, to_text};
use crate::chat::{ChatResponse, Choice, FinishReason};
use crate::embedding::{EmbeddingResponse, Encoding};
use crate::passthrough::{splice, top_level};
use crate::usage::Usage;
use base64::Engine as _;
use bytes::Bytes;
use serde::Serialize;

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerMeta {
    /// The answer's id, e.g. `chatcmpl-…`.
    pub id: String,
    /// When it was made, in Unix seconds.
    pub created: u64,
    /// The model named in the answer.
    pub model: String,
}

/// What the gateway adds to an answer: `"cost_usd"` in `usage`, and a top-level `"tollkeeper":{"backend":…,"cost_usd":…}`.
/// The cost is written as a JSON string, so that no reader makes a float of it unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Extension {
    /// The backend that answered.
    pub backend: String,
    /// The charge in USD, an exact decimal.
    pub cost_usd: String,
    /// Why the gateway ended the answer before its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// Why the gateway ended an answer before its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stopped {
    /// As in an error of the same cause, such as `budget_exceeded`.
    pub code: String,
    /// For people.
    pub message: String,
}

impl AnswerMeta {
    pub(super) fn head(&self, object: &'static str) -> Head<'_> {
        Head { id: &self.id, object, created: self.created, model: &self.model }
    }
}

#[derive(Serialize)]
struct AnswerBody<'a, C: Serialize> {
    #[serde(flatten)]
    head: Head<'a>,
    choices: Vec<C>,
    usage: Option<UsageBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tollkeeper: Option<&'a Extension>,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    message: MessageBody<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    #[serde(serialize_with = "finish_reason")]
    finish_reason: Option<FinishReason>,
}

#[derive(Serialize)]
struct MessageBody<'a> {
    role: &'static str,
    /// Null when the answer is nothing but tool calls.
    content: Option<&'a str>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "str::is_empty")]
    reasoning_content: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<CallBody<'a>>,
}

#[derive(Serialize)]
struct TextChoice<'a> {
    text: &'a str,
    index: usize,
    logprobs: Option<TextLogprobs<'a>>,
    #[serde(serialize_with = "finish_reason")]
    finish_reason: Option<FinishReason>,
}

/// A `chat.completion` body.
pub fn encode_chat(meta: &AnswerMeta, answer: &ChatResponse, extension: Option<&Extension>) -> Bytes {
    encode(meta, "chat.completion", answer, extension, |(index, choice)| ChatChoice {
        index,
        message: MessageBody {
            role: "assistant",
            content: (choice.tool_calls.is_empty() || !choice.text.is_empty()).then_some(choice.text.as_str()),
            refusal: None,
            reasoning_content: &choice.reasoning,
            tool_calls: choice.tool_calls.iter().map(CallBody::whole).collect(),
        },
        logprobs: ChatLogprobs::new(&choice.logprobs),
        finish_reason: choice.finish,
    })
}

/// A `text_completion` body.
pub fn encode_completion(meta: &AnswerMeta, answer: &ChatResponse, extension: Option<&Extension>) -> Bytes {
    encode(meta, "text_completion", answer, extension, |(index, choice)| TextChoice {
        text: &choice.text,
        index,
        logprobs: TextLogprobs::new(&choice.logprobs, &mut 0),
        finish_reason: choice.finish,
    })
}

fn encode<'a, C: Serialize>(
    meta: &'a AnswerMeta,
    object: &'static str,
    answer: &'a ChatResponse,
    extension: Option<&'a Extension>,
    choice: impl FnMut((usize, &'a Choice)) -> C,
) -> Bytes {
    to_json(&AnswerBody {
        head: meta.head(object),
        choices: answer.choices.iter().enumerate().map(choice).collect(),
        usage: answer.usage.as_ref().map(|usage| UsageBody::new(usage, extension)),
        tollkeeper: extension,
    })
}

#[derive(Serialize)]
struct EmbeddingsBody<'a> {
    object: &'static str,
    data: Vec<EmbeddingBody<'a>>,
    model: &'a str,
    usage: UnaryUsage<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tollkeeper: Option<&'a Extension>,
}

#[derive(Serialize)]
struct EmbeddingBody<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Float(&'a [f32]),
    Base64(String),
}

/// The `usage` object of what generates nothing.
#[derive(Serialize)]
pub(super) struct UnaryUsage<'a> {
    prompt_tokens: u64,
    total_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<&'a str>,
}

impl<'a> UnaryUsage<'a> {
    pub(super) fn new(usage: &Usage, extension: Option<&'a Extension>) -> Self {
        Self {
            prompt_tokens: usage.input,
            total_tokens: usage.input.saturating_add(usage.output),
            cost_usd: extension.map(|extension| extension.cost_usd.as_str()),
        }
    }
}

/// An embeddings body; vectors as numbers, or as little-endian f32 in base64.
pub fn encode_embeddings(
    meta: &AnswerMeta,
    answer: &EmbeddingResponse,
    encoding: Encoding,
    extension: Option<&Extension>,
) -> Bytes {
    let vector = |vector: &'_ [f32]| -> String {
        let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        base64::engine::general_purpose::STANDARD.encode(bytes)
    };
    let data = answer.vectors.iter().enumerate().map(|(index, numbers)| EmbeddingBody {
        object: "embedding",
        index,
        embedding: match encoding {
            Encoding::Float => Vector::Float(numbers),
            Encoding::Base64 => Vector::Base64(vector(numbers)),
        },
    });
    to_json(&EmbeddingsBody {
        object: "list",
        data: data.collect(),
        model: &meta.model,
        usage: UnaryUsage::new(&answer.usage, extension),
        tollkeeper: extension,
    })
}

/// Adds the extension to a provider's usage chunk (its data) or unary body. Every other byte is kept; without a `usage` object
/// nothing is added.
pub fn extend_usage(json: &[u8], extension: &Extension) -> Bytes {
    let body = Bytes::copy_from_slice(json);
    try_extend(&body, extension).unwrap_or(body)
}

fn try_extend(body: &Bytes, extension: &Extension) -> Option<Bytes> {
    let usage = body.slice_ref(top_level(body, "usage")?);
    let usage = splice(&usage, &[("cost_usd", to_text(&extension.cost_usd))]).ok()?;
    let usage = String::from_utf8(usage.into()).ok()?;
    splice(body, &[("usage", usage), ("tollkeeper", to_text(extension))]).ok()
}
