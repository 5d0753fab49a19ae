//! The right to spend up to an amount, held while one attempt runs.

use crate::denied::Denied;
use crate::metering::Charge;
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{BackendId, Price};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::fault::FaultKind;
use tollkeeper_protocol::usage::Usage;

/// What one attempt of one request wants to spend.
#[derive(Debug, Clone)]
pub struct Spend {
    /// The request's id.
    pub request_id: Arc<str>,
    /// Which attempt of the request; each has a lease of its own.
    pub attempt: u32,
    /// The kind of work.
    pub operation: Operation,
    /// What the client named.
    pub alias: Arc<str>,
    /// Who will do it.
    pub backend: BackendId,
    /// At what price.
    pub price: Price,
    /// The catalogue that the price comes from.
    pub catalog_version: Arc<str>,
    /// Prompt tokens: exact, or an estimate padded upwards.
    pub input_tokens: u64,
    /// How much output to lease.
    pub output: OutputBound,
}

/// How much output a lease covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputBound {
    /// This many tokens at once (unary calls to the cloud, embeddings with 0), or as many as the budgets afford, at least one.
    Whole(u64),
    /// Start with a slice, or with what is affordable but at least one token, and extend with [`Lease::cover`].
    Growing {
        /// Tokens per extension; 0 counts as 1.
        slice: u64,
        /// No more than this is leased ahead of need.
        max: Option<u64>,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Answered in full.
    Done,
    /// The client left.
    ClientGone,
    /// The backend failed.
    Fault(FaultKind),
    /// A budget could not pay for more.
    BudgetStop,
    /// The gateway was drained.
    Drained,
}

/// What an attempt used.
#[derive(Debug, Clone, Copy)]
pub struct Settlement {
    /// Its tokens.
    pub usage: Usage,
    /// Whether they were estimated, because the backend did not report them.
    pub estimated: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// Time to the first token.
    pub ttft: Option<Duration>,
    /// Time to the end.
    pub duration: Duration,
}

/// The right to spend on one attempt. End it with [`settle`](Self::settle) or [`release`](Self::release); dropped without, it is charged as
/// "aborted": its input and what [`cover`](Self::cover) was told.
#[must_use = "a lease that is dropped charges its input"]
#[derive(Debug)]
pub struct Lease(());

impl Lease {
    /// `Some(n)`: the answer must be limited to `n` tokens because the budgets afford no more than that of an [`OutputBound::Whole`].
    pub fn output_limit(&self) -> Option<u64> {
        todo!()
    }

    /// Makes sure that so many output tokens in all are paid for, extending the lease when needed: call it before tokens are delivered.
    /// On refusal the lease stays as it was.
    pub fn cover(&mut self, output_tokens: u64) -> Result<(), Denied> {
        let _ = output_tokens;
        todo!()
    }

    /// Output tokens that are paid for so far.
    pub fn covered(&self) -> u64 {
        todo!()
    }

    /// Charges what was used and hands the row to the ledger, without waiting.
    pub fn settle(self, s: Settlement) -> Charge {
        let _ = s;
        todo!()
    }

    /// Nothing was used: costs nothing, and is recorded.
    pub fn release(self, outcome: Outcome) {
        let _ = outcome;
    }
}
