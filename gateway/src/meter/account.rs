//! The account of one attempt: its lease, and what was seen and reported of its answer.

use crate::economics::Stake;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_config::{BackendId, Price, Usd};
use tollkeeper_policies::Lease;
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::usage::Usage;
use tollkeeper_router::TimeEstimate;

/// Text bytes per token when nobody counted: fewer than real tokenisers need for English (about four), so that an estimate is not too low.
const BYTES_PER_TOKEN: u64 = 3;

/// One attempt at one backend, while it runs.
pub(crate) struct Running {
    pub(crate) lease: Lease,
    pub(crate) backend: Arc<str>,
    pub(crate) provider: &'static str,
    pub(crate) price: Price,
    pub(crate) id: BackendId,
    /// What it was expected to take.
    pub(crate) predicted: Predicted,
    /// What it is to local models.
    pub(crate) stake: Stake,
    /// Prompt tokens, as estimated: what is charged where nobody reports them.
    pub(crate) input_tokens: u64,
    /// Whether tokens are seen as they are made, because the backend streams to us; or that there are none.
    pub(crate) seen: bool,
    /// Tokens a second that it may have made, and bills, before the first that is seen; `None` for those that do not reason.
    pub(crate) unseen_rate: Option<u64>,
    pub(crate) started: Instant,
}

/// What an attempt was expected to take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Predicted {
    pub(crate) time: TimeEstimate,
    pub(crate) cost: Usd,
}

/// The account of one attempt.
#[derive(Default)]
pub(super) struct Account {
    pub(super) running: Option<Running>,
    pub(super) output: Seen,
    /// What the backend reported, and what had been seen when it did.
    pub(super) usage: Option<(Usage, u64)>,
    /// Pieces that were counted before they go to the client.
    pub(super) ahead: u32,
    /// When its first token came, counted from the attempt's start.
    pub(super) begun: Option<Duration>,
    /// The price of the target above, which need not be asked since this answer is fit.
    pub(super) spares: Option<Price>,
}

/// Output as it was seen go by.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    /// Tokens that the backend counted.
    pub(super) tokens: u64,
    /// Bytes and frames of what it did not count.
    pub(super) bytes: u64,
    pub(super) frames: u64,
}

impl Account {
    /// What the answer has used: as reported, else as estimated; and whether it is estimated.
    pub(super) fn usage(&self, whole: bool) -> (Usage, bool) {
        let Some((usage, seen)) = self.usage else {
            let running = self.running.as_ref();
            let input = running.map_or(0, |running| running.input_tokens);
            let mut output = self.output.tokens();
            if let Some(running) = running.filter(|running| !running.seen && output == 0) {
                // Nobody knows how much of the answer there was, and the provider may bill all of it.
                output = running.lease.covered();
            } else if let Some(running) = running {
                // No more of it than the provider was allowed, or was seen.
                output = output.saturating_add(self.unseen(running)).min(running.lease.covered().max(output));
            }
            return (Usage { input, output, ..Usage::default() }, true);
        };
        let tokens = self.output.tokens();
        if whole || tokens <= seen {
            return (usage, false);
        }
        (Usage { output: usage.output.max(tokens), ..usage }, true)
    }

    /// Tokens that may have been made before the first one that was seen.
    fn unseen(&self, running: &Running) -> u64 {
        let silent = || self.begun.unwrap_or_else(|| running.started.elapsed());
        let made = |rate: u64| u64::try_from(u128::from(rate) * silent().as_millis() / 1000).unwrap_or(u64::MAX);
        running.unseen_rate.map_or(0, |rate| made(rate).max(1))
    }

    /// What it costs while it runs.
    pub(super) fn cost(&self, whole: bool) -> Usd {
        self.running.as_ref().map_or(Usd::ZERO, |running| running.price.charge(&self.usage(whole).0))
    }
}

/// The tokens that an event tells of; none for those that are no content.
pub(super) fn made(event: &ChatEvent) -> Option<u64> {
    match event {
        ChatEvent::Text { tokens, .. } | ChatEvent::Reasoning { tokens, .. } | ChatEvent::ToolCall { tokens, .. } => {
            Some(u64::from(*tokens))
        }
        ChatEvent::Certainty { .. } | ChatEvent::Finish { .. } | ChatEvent::Usage(_) => None,
    }
}

impl Seen {
    pub(super) fn tokens(self) -> u64 {
        self.tokens + self.bytes.div_ceil(BYTES_PER_TOKEN).max(self.frames)
    }
}
