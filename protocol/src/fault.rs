//! What went wrong at a backend, in words that routing and the client-facing error can act on.

use std::time::Duration;

/// The kinds of failure that lead to different decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The backend says the request itself is wrong (400, 413, 422): trying elsewhere does not help.
    BadRequest,
    /// The backend refuses our credentials (401, 403): the operator must act; another target may work.
    Auth,
    /// The backend does not know the model (404).
    NotFound,
    /// The prompt does not fit the model's context.
    ContextLength,
    /// Rate limited (429).
    RateLimited,
    /// Overloaded or out of capacity (503, 529, local queue full).
    Overloaded,
    /// No connection, or it broke before or in the middle of an answer.
    Connection,
    /// Connect, first byte, or idle time ran out.
    Timeout,
    /// The backend failed (500, 502, 504, an engine error).
    Internal,
    /// The backend sent something that is not its dialect.
    Malformed,
    /// The backend is not usable as configured (no key, model file missing or corrupt).
    Unavailable,
}

impl FaultKind {
    /// Whether another attempt (here or at another target) may succeed.
    pub fn is_retryable(self) -> bool {
        !matches!(self, Self::BadRequest | Self::ContextLength)
    }

    /// The name in metrics and logs (`error.type`).
    pub fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Auth => "auth",
            Self::NotFound => "not_found",
            Self::ContextLength => "context_length",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Connection => "connection",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
            Self::Malformed => "malformed",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A failure of one attempt at one backend.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ProviderFault {
    /// What kind of failure, for retry and fallback decisions.
    pub kind: FaultKind,
    /// The backend's HTTP status, when there was one. 200 with a fault of the connection: the answer had begun and broke off.
    pub status: Option<u16>,
    /// Whether the backend may have worked, and bill that, although nothing of it is there to be seen.
    pub worked: bool,
    /// For the caller: what happened, without secrets.
    pub message: String,
    /// How long the backend asked us to wait.
    pub retry_after: Option<Duration>,
    /// The backend's own error `type`, `code` and `param` when it sent an OpenAI-shaped error, to be passed on.
    pub detail: Option<Box<FaultDetail>>,
}

/// The provider's own words about an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultDetail {
    /// OpenAI's `error.type`.
    pub r#type: Option<String>,
    /// OpenAI's `error.code`.
    pub code: Option<String>,
    /// OpenAI's `error.param`.
    pub param: Option<String>,
}

impl ProviderFault {
    /// A fault that carries nothing but its kind and a message.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, status: None, worked: false, message: message.into(), retry_after: None, detail: None }
    }
}

/// A text that is not what its dialect says. The message tells whoever wrote it what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DecodeError {
    /// What is wrong and what is expected.
    pub message: String,
    /// The field at fault, e.g. `messages[2].content`.
    pub param: Option<String>,
}

impl DecodeError {
    /// An error of the whole text.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), param: None }
    }

    /// An error of one field.
    pub fn at(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()) }
    }
}
