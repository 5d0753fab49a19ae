//! What the rest of the gateway may know of a backend at this moment.

use crate::remote::Headroom;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The state of one backend, cheap to take and already old when read.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendState {
    /// Whether it can answer.
    pub health: BackendHealth,
    /// Requests being answered (remote: sent and not yet ended, and those of others that its server tells of; local: in a slot).
    pub in_flight: u32,
    /// Requests waiting for a slot; 0 for remote backends that do not tell.
    pub waiting: u32,
    /// Tokens still to be read and generated for the requests it has (estimate; remote: for those that wait); 0 for remote backends that do
    /// not tell.
    pub queue_tokens: u64,
    /// Of these, tokens of prompts still to be read; 0 for remote backends.
    pub unread: u64,
    /// Requests that it answers at once; `None` for remote backends.
    pub slots: Option<u32>,
    /// Smoothed time to the first token (unary: to the whole answer); `None` before the first answer.
    pub ttft: Option<Duration>,
    /// Prompt tokens that it reads in a second; `None` for remote backends, and before it has read any.
    pub prefill: Option<u32>,
    /// Tokens of one answer that it writes in a second beside as many others as there would be; `None` likewise.
    pub decode: Option<u32>,
    /// Tokens that it reads and writes in a second, all requests together, while busy; `None` likewise.
    pub overall: Option<u32>,
    /// Smoothed share of tries that failed lately, in thousandths; 0 for local models.
    pub failing_permille: u16,
    /// What is left of the provider's rate limits, as far as it tells.
    pub headroom: Headroom,
    /// Share of the KV cache in use, 0 to 1; `None` for remote backends that do not tell.
    pub kv_usage: Option<f32>,
}

/// Whether a backend can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendHealth {
    /// As far as is known.
    Ready,
    /// A local model that is not in memory, or not yet; requests to it wait.
    Absent {
        /// About how long until it could serve.
        ready_in: Duration,
    },
    /// It failed lately and should not be the first choice before this moment of tokio's clock. A request may still be sent.
    Cooling {
        /// When it may be tried again.
        until: Instant,
    },
    /// It cannot answer as configured; the text says why and what to do.
    Unavailable(Arc<str>),
}

impl BackendState {
    /// A state with this health and nothing in flight.
    pub fn idle(health: BackendHealth) -> Self {
        Self {
            health,
            in_flight: 0,
            waiting: 0,
            queue_tokens: 0,
            unread: 0,
            slots: None,
            ttft: None,
            prefill: None,
            decode: None,
            overall: None,
            failing_permille: 0,
            headroom: Headroom::default(),
            kv_usage: None,
        }
    }
}
