//! Encodes whole answers.

use crate::chat::ChatResponse;
use crate::embedding::{EmbeddingResponse, Encoding};
use bytes::Bytes;

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

/// What the gateway adds to an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// The charge in USD, an exact decimal.
    pub cost_usd: String,
    /// The backend that answered.
    pub backend: String,
}

/// A `chat.completion` body.
pub fn encode_chat(_meta: &AnswerMeta, _r: &ChatResponse, _extension: Option<&Extension>) -> Bytes {
    todo!()
}

/// A `text_completion` body.
pub fn encode_completion(_meta: &AnswerMeta, _r: &ChatResponse, _extension: Option<&Extension>) -> Bytes {
    todo!()
}

/// An embeddings body.
pub fn encode_embeddings(
    _meta: &AnswerMeta,
    _r: &EmbeddingResponse,
    _encoding: Encoding,
    _extension: Option<&Extension>,
) -> Bytes {
    todo!()
}

/// Adds the extension to a provider's usage chunk or unary body; every other byte is kept.
pub fn extend_usage(_json: &[u8], _extension: &Extension) -> Bytes {
    todo!()
}
