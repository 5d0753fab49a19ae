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
    /// How fast it is.
    pub pace: Pace,
    /// What speaks against it although it answers.
    pub strain: Strain,
    /// Its share where work is dealt out by lot.
    pub weight: u32,
}

/// Signs that a backend that answers may not answer the next request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Strain {
    /// The share of tries that failed lately, in thousandths.
    pub failing_permille: u16,
    /// Requests that its provider takes before it limits the rate, as of its last answer; `None` if it does not tell.
    pub requests_left: Option<u64>,
    /// The same in tokens.
    pub tokens_left: Option<u64>,
}

/// Who fails so often is asked only when no other can answer: two failures in a row, or one of five in the long run.
const FAILING_PERMILLE: u16 = 200;

impl Candidate {
    /// Whether it fails often, or its provider would probably refuse so many tokens more.
    pub(crate) fn is_strained(&self, tokens: u64) -> bool {
        let Strain { failing_permille, requests_left, tokens_left } = self.strain;
        failing_permille >= FAILING_PERMILLE
            || requests_left.is_some_and(|left| left <= u64::from(self.in_flight))
            || tokens_left.is_some_and(|left| left < tokens)
    }
}

/// How fast a backend is, as far as is known from what it did lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    /// From the request to the first token, in milliseconds: of backends that do not tell how they work.
    pub ttft_ms: Option<u64>,
    /// Prompt tokens read in a second: of local models.
    pub prefill: Option<u32>,
    /// Tokens of one answer written in a second, beside as many others as there are now.
    pub decode: Option<u32>,
    /// Tokens of this very prompt that need not be read again.
    pub cached: u64,
    /// Of the tokens that wait, those of prompts: of local models.
    pub unread: u64,
    /// Requests that wait there for others to end.
    pub waiting: u32,
    /// Requests that it works on at once, if that is known.
    pub slots: Option<u32>,
    /// Tokens that it reads and writes in a second, all requests together, while it is busy.
    pub overall: Option<u32>,
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
