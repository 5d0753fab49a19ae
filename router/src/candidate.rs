//! A backend as it stands now: what it can do, what it costs, how it is.

use std::sync::Arc;
use tollkeeper_config::{BackendId, ModelFacts};

/// A backend that may answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Which backend.
    pub id: BackendId,
    /// Its place in the pyramid; 0 is the bottom.
    pub tier: u8,
    /// Price, context and abilities.
    pub facts: Arc<ModelFacts>,
    /// How it is.
    pub health: Health,
    /// Requests it works on now.
    pub in_flight: u32,
    /// Tokens that wait there before a new request gets its turn.
    pub queue_tokens: u64,
}

/// How a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Ready,
    /// It answers as soon as its model is in memory.
    Absent {
        /// About how long that takes, in milliseconds.
        ready_in_ms: u64,
    },
    /// It failed lately and should be left alone until then (Unix milliseconds); it is tried after all others.
    Cooling {
        /// Until when.
        until_ms: u64,
    },
    /// It cannot answer, for this reason.
    Unavailable(Arc<str>),
}
