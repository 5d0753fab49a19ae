//! The neutral embedding request and answer (`POST /v1/embeddings`).

use crate::completion::Prompt;
use crate::usage::Usage;

/// A request for embeddings.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingRequest {
    /// The model or alias the client asked for.
    pub model: String,
    /// The inputs, 1 to 2,048.
    pub inputs: Vec<Prompt>,
    /// How vectors are written.
    pub encoding: Encoding,
    /// Shorten vectors to this many dimensions (and normalise again).
    pub dimensions: Option<u32>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    /// A JSON array of numbers.
    #[default]
    Float,
    /// Little-endian f32 in base64 (the official Python client's default).
    Base64,
}

/// Embeddings, in the order of the inputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EmbeddingResponse {
    /// One vector an input.
    pub vectors: Vec<Vec<f32>>,
    /// Token counts.
    pub usage: Usage,
}
