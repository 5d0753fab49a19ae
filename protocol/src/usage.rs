//! Token counts of one answer, by the types that are priced differently.

use serde::{Deserialize, Serialize};

/// Tokens of one answer. `cached_input` and `cache_write` are parts of `input`; `reasoning` is a part of `output`
/// (OpenAI's way of counting; other dialects are converted to it).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// All prompt tokens, cached ones included.
    pub input: u64,
    /// Prompt tokens read from a prefix cache.
    pub cached_input: u64,
    /// Prompt tokens written to a prefix cache at a price of their own.
    pub cache_write: u64,
    /// All generated tokens, reasoning included.
    pub output: u64,
    /// Generated tokens that were reasoning.
    pub reasoning: u64,
}
