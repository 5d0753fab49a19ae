//! What happened that somebody may want to hear of: a bounded broadcast that never holds up a request.

use crate::denied::{Blocked, Stop};
use crate::velocity::Transition;
use jiff::Timestamp;
use std::sync::Arc;
use tokio::sync::broadcast;
use tollkeeper_config::{BackendId, BudgetConfig, Owner, Usd};
use tollkeeper_protocol::usage::Usage;

/// Events that a slow listener may be behind; then it misses the oldest.
const KEPT: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// The agent that it concerns, if it is one's.
    pub agent: Option<Arc<str>>,
    /// The run and the runs above it, the innermost first.
    pub runs: Vec<Arc<str>>,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum What {
    /// A budget got past one of its thresholds.
    Threshold {
        /// The budget.
        rule: BudgetConfig,
        /// The threshold.
        percent: u8,
        /// Settled in its window, in the limit's measure.
        spent: i128,
    },
    /// A request was refused for want of money.
    Denied(Box<Blocked>),
    /// A request went to a cheaper target.
    Degraded {
        /// The target that it would have gone to.
        from: BackendId,
        /// Why it did not.
        reason: Arc<str>,
    },
    /// An agent or a run was stopped.
    Stopped(Owner, Stop),
    /// It may go on.
    Resumed(Owner),
    /// An agent or run spends faster, or no longer faster, than is normal for it.
    Velocity(Owner, Transition),
    /// A backend reported more than it was allowed.
    Overrun {
        /// The backend.
        backend: BackendId,
        /// The cost above what was leased.
        amount: Usd,
    },
    /// An attempt was charged.
    Charged {
        /// The backend.
        backend: BackendId,
        /// Its tokens.
        usage: Usage,
        /// What it cost.
        cost: Usd,
    },
    /// A run ended.
    RunEnded {
        /// Why: `done`, `cancelled` or `over`.
        why: &'static str,
    },
}

/// Where events come from.
#[derive(Debug)]
pub(crate) struct Events(broadcast::Sender<Arc<Event>>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(KEPT).0)
    }
}

impl Events {
    pub(crate) fn listen(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.subscribe()
    }

    /// Tells whoever listens.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if self.0.receiver_count() > 0 {
            // An error means that the last listener has just gone.
            _ = self.0.send(Arc::new(event()));
        }
    }
}
