//! Wire formats and stream translation: pure, no I/O.
//!
//! The neutral types ([`chat`], [`completion`], [`embedding`], [`event`], [`usage`], [`fault`]) are the hub; every dialect folder
//! translates between its wire format and the hub. Same-dialect traffic skips the hub: [`passthrough`].

pub mod chat;
pub mod completion;
pub mod embedding;
pub mod event;
pub mod fault;
pub mod openai;
pub mod passthrough;
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
}

impl Operation {
    /// The name in metrics, logs and the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
            Self::Embeddings => "embeddings",
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
}
