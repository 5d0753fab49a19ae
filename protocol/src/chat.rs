//! The neutral chat request and answer.

use crate::event::TokenLogprob;
use crate::usage::Usage;
use serde_json::{Map, Value};

/// A chat request as every backend understands it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatRequest {
    /// The model or alias the client asked for.
    pub model: String,
    /// The conversation, oldest first; never empty.
    pub messages: Vec<Message>,
    /// The tools the model may call.
    pub tools: Vec<Tool>,
    /// Whether and which tool must be called.
    pub tool_choice: ToolChoice,
    /// Whether several tools may be called in one turn.
    pub parallel_tool_calls: Option<bool>,
    /// The form the answer must have.
    pub response_format: ResponseFormat,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The most tokens to generate (`max_completion_tokens`, else `max_tokens`).
    pub max_tokens: Option<u32>,
    /// Texts that end the answer and are not part of it; at most 16.
    pub stop: Vec<String>,
    /// How many answers; 1 unless asked, at most 16.
    pub n: u32,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether the client asked for the usage chunk of a stream.
    pub include_usage: bool,
    /// `Some(k)`: log-probabilities with the `k` (0 to 20) best alternatives.
    pub top_logprobs: Option<u8>,
    /// Fields this gateway does not know, kept as they came.
    pub extra: Map<String, Value>,
}

/// How tokens are drawn. `None` leaves the backend's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Nucleus.
    pub top_p: Option<f32>,
    /// The k most likely.
    pub top_k: Option<u32>,
    /// A share of the best token's probability.
    pub min_p: Option<f32>,
    /// Makes the draw repeatable.
    pub seed: Option<u64>,
    /// OpenAI's additive penalty by count.
    pub frequency_penalty: Option<f32>,
    /// OpenAI's additive penalty by presence.
    pub presence_penalty: Option<f32>,
    /// llama.cpp's multiplicative penalty.
    pub repeat_penalty: Option<f32>,
    /// Added to the logits of tokens (by token id).
    pub logit_bias: Vec<(u32, f32)>,
    /// Locally typical sampling: the share of probability to keep, 0 to 1.
    pub typical_p: Option<f32>,
    /// XTC; `None` is off.
    pub xtc: Option<Xtc>,
    /// DRY; `None` is off. Boxed, since it is large and few requests have it.
    pub dry: Option<Box<Dry>>,
}

/// XTC, "exclude top choices": now and then all likely tokens but the least likely of them are left out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xtc {
    /// How often, 0 to 1; 0 is never.
    pub probability: f32,
    /// The probability from which on a token counts as likely, 0 to 1. Above 0.5 there is never a second one, so nothing is left out.
    pub threshold: f32,
}

/// DRY, "don't repeat yourself": a token that would go on repeating what was said before is made less likely, the more the longer
/// the repetition already is.
#[derive(Debug, Clone, PartialEq)]
pub struct Dry {
    /// How strong the penalty is; above 0.
    pub multiplier: f32,
    /// By what the penalty grows with each further repeated token; at least 1.
    pub base: f32,
    /// Tokens that may be repeated without a penalty.
    pub allowed_length: u32,
    /// How many of the last tokens are looked at; `None` is all of them.
    pub last_n: Option<u32>,
    /// Texts that no repetition reaches across; at most 64, of at most 256 bytes each.
    pub breakers: Vec<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions (`system`).
    System,
    /// Instructions (`developer`, OpenAI's later name for the system role).
    Developer,
    /// The human or calling program.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
}

/// One turn of the conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; empty when an assistant only calls tools.
    pub content: Vec<Part>,
    /// The speaker's name.
    pub name: Option<String>,
    /// The calls an assistant made.
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool message answers.
    pub tool_call_id: Option<String>,
    /// Reasoning an assistant message carries back.
    pub reasoning: Option<String>,
}

/// A part of a message's content.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text.
    Text(String),
    /// An image by URL or data URL.
    Image(String),
    /// A part of another type (audio, file …), kept as it came.
    Other(Value),
}

/// A function the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// The function's name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub parameters: Option<Value>,
    /// Whether the arguments must follow the schema exactly.
    pub strict: Option<bool>,
}

/// A call the model made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Unique within the conversation.
    pub id: String,
    /// The function's name.
    pub name: String,
    /// The arguments as JSON text.
    pub arguments: String,
}

/// Whether and which tool must be called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No tool.
    None,
    /// Some tool.
    Required,
    /// This tool.
    Named(String),
}

/// The form the answer must have.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ResponseFormat {
    /// Any text.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON by this schema (the value of `json_schema`: name, schema, strict).
    JsonSchema(Value),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// A natural end or a stop text.
    Stop,
    /// The token limit.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// The provider's filter.
    ContentFilter,
}

impl FinishReason {
    /// OpenAI's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
        }
    }

    /// The reason a word stands for, with the words of other dialects that OpenAI-compatible providers let through.
    /// An unknown word is a natural end.
    pub fn from_name(name: &str) -> Self {
        match name {
            "length" | "max_tokens" | "model_length" => Self::Length,
            "tool_calls" | "function_call" | "tool_use" => Self::ToolCalls,
            "content_filter" | "safety" | "refusal" => Self::ContentFilter,
            _ => Self::Stop,
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatResponse {
    /// The answers, by choice index.
    pub choices: Vec<Choice>,
    /// Token counts; `None` when the backend did not say.
    pub usage: Option<Usage>,
}

/// One of the `n` answers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// The text; empty when only tools are called.
    pub text: String,
    /// Reasoning text.
    pub reasoning: String,
    /// The calls made.
    pub tool_calls: Vec<ToolCall>,
    /// Why it ended; `None` when the stream broke off.
    pub finish: Option<FinishReason>,
    /// Log-probabilities, when asked for.
    pub logprobs: Vec<TokenLogprob>,
}
