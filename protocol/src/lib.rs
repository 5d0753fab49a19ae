//! Wire formats and stream translation: pure, no I/O.
//!
//! The neutral types ([`chat`], [`completion`], [`embedding`], [`rerank`], [`event`], [`usage`], [`fault`]) are the hub; every dialect folder
//! translates between its wire format and the hub. Same-dialect traffic skips the hub: [`passthrough`].

pub mod chat;
pub mod completion;
pub mod embedding;
pub mod event;
pub mod fault;
pub mod openai;
pub mod passthrough;
pub mod rerank;
pub mod sse;
pub mod usage;

pub use fault::DecodeError;

use serde::{Deserialize, Serialize};

/// What kind of work a request asks for; the GenAI conventions' `gen_ai.operation.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    TextCompletion,
    /// `POST /v1/embeddings`
    Embeddings,
    /// `POST /v1/rerank`
    Rerank,
}

impl Operation {
    /// The name in metrics, logs and the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
        }
    }

    /// Whether its answer is generated text; the others only read.
    pub fn generates(self) -> bool {
        match self {
            Self::Chat | Self::TextCompletion => true,
            Self::Embeddings | Self::Rerank => false,
        }
    }
}

/// A decoded request of any operation.
#[derive(Debug, Clone)]
pub enum Request {
    /// A chat completion.
    Chat(chat::ChatRequest),
    /// A text completion.
    Completion(completion::CompletionRequest),
    /// An embedding of one or more inputs.
    Embedding(embedding::EmbeddingRequest),
    /// Documents to order by a query.
    Rerank(rerank::RerankRequest),
}

impl Request {
    /// The model or alias the client asked for.
    pub fn model(&self) -> &str {
        match self {
            Self::Chat(request) => &request.model,
            Self::Completion(request) => &request.model,
            Self::Embedding(request) => &request.model,
            Self::Rerank(request) => &request.model,
        }
    }

    /// What kind of work it is.
    pub fn operation(&self) -> Operation {
        match self {
            Self::Chat(_) => Operation::Chat,
            Self::Completion(_) => Operation::TextCompletion,
            Self::Embedding(_) => Operation::Embeddings,
            Self::Rerank(_) => Operation::Rerank,
        }
    }

    /// Whether the answer is streamed.
    pub fn stream(&self) -> bool {
        match self {
            Self::Chat(request) => request.stream,
            Self::Completion(request) => request.stream,
            Self::Embedding(_) | Self::Rerank(_) => false,
        }
    }

    /// Whether it may wait for more urgent ones: OpenAI's `service_tier` `"flex"`.
    pub fn is_flexible(&self) -> bool {
        self.service_tier() == Some("flex")
    }

    /// The tariff that the client asks for, by OpenAI's name.
    pub fn service_tier(&self) -> Option<&str> {
        let extra = match self {
            Self::Chat(request) => &request.extra,
            Self::Completion(request) => &request.extra,
            Self::Embedding(_) | Self::Rerank(_) => return None,
        };
        extra.get("service_tier").and_then(serde_json::Value::as_str)
    }

    /// Whether the answer can be nothing but words: no tools may be called.
    pub fn is_tool_free(&self) -> bool {
        match self {
            Self::Chat(request) => request.tools.is_empty() || request.tool_choice == chat::ToolChoice::None,
            Self::Completion(_) | Self::Embedding(_) | Self::Rerank(_) => true,
        }
    }

    /// Whether the client asked for the usage chunk of a stream.
    pub fn include_usage(&self) -> bool {
        match self {
            Self::Chat(request) => request.include_usage,
            Self::Completion(request) => request.include_usage,
            Self::Embedding(_) | Self::Rerank(_) => false,
        }
    }

    /// A top-level field that this gateway does not know; one that is null is none.
    pub fn extra(&self, name: &str) -> Option<&serde_json::Value> {
        let extra = match self {
            Self::Chat(request) => &request.extra,
            Self::Completion(request) => &request.extra,
            Self::Embedding(_) | Self::Rerank(_) => return None,
        };
        extra.get(name).filter(|value| !value.is_null())
    }

    /// The most tokens each answer may have, when the client said so.
    pub fn max_tokens(&self) -> Option<u32> {
        match self {
            Self::Chat(request) => request.max_tokens,
            Self::Completion(request) => request.max_tokens,
            Self::Embedding(_) | Self::Rerank(_) => None,
        }
    }

    /// How many answers are asked for in all: `n`, for each prompt of a completion; 0 for embeddings and reranking, which generate nothing.
    pub fn answers(&self) -> u64 {
        match self {
            Self::Chat(request) => u64::from(request.n.max(1)),
            Self::Completion(request) => u64::from(request.n.max(1)) * request.prompts.len() as u64,
            Self::Embedding(_) | Self::Rerank(_) => 0,
        }
    }

    /// How many answers a provider writes, and bills, for that: with `best_of` more than are asked for.
    pub fn written_answers(&self) -> u64 {
        match self {
            Self::Completion(request) => {
                self.answers().max(u64::from(request.best_of.unwrap_or(1)) * request.prompts.len() as u64)
            }
            Self::Chat(_) | Self::Embedding(_) | Self::Rerank(_) => self.answers(),
        }
    }
}
