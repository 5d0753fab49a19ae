//! Same dialect on both sides: bytes go through as they came, single fields are spliced, usage is peeked.

use crate::DecodeError;
use crate::chat::FinishReason;
use crate::fault::ProviderFault;
use crate::usage::Usage;
use bytes::Bytes;

/// What the gateway needs to know of a stream's chunk.
#[derive(Debug, Clone, Default)]
pub struct ChunkPeek {
    /// Token counts, when this chunk reports them (all zero counts as reported).
    pub usage: Option<Usage>,
    /// `choices` is there and empty.
    pub no_choices: bool,
    /// Bytes of generated text: content, reasoning, refusal, names and arguments of tool calls.
    pub text_bytes: usize,
    /// Some choice has ended.
    pub finished: bool,
    /// The chunk is an error.
    pub error: Option<ProviderFault>,
}

/// What the gateway needs to know of a whole answer.
#[derive(Debug, Clone, Default)]
pub struct BodyPeek {
    /// Token counts, when reported.
    pub usage: Option<Usage>,
    /// Bytes of generated text.
    pub text_bytes: usize,
    /// Why the first choice ended.
    pub finish: Option<FinishReason>,
    /// The body is an error, whatever its status said.
    pub error: Option<ProviderFault>,
}

/// Sets top-level fields of a JSON object to raw JSON values.
pub fn splice(_body: &Bytes, _changes: &[(&str, String)]) -> Result<Bytes, DecodeError> {
    todo!()
}

/// Reads a `chat.completion.chunk` or `text_completion` chunk.
pub fn peek_chunk(_data: &[u8]) -> Result<ChunkPeek, DecodeError> {
    todo!()
}

/// Reads a unary chat, completion or embeddings answer.
pub fn peek_body(_body: &[u8]) -> Result<BodyPeek, DecodeError> {
    todo!()
}

/// Whether a frame's data is the end marker `[DONE]`.
pub fn is_done(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]"
}
