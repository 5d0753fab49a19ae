//! Why a request may not be dispatched, or a stream may not go on.

use crate::agent::KeyRefused;
use jiff::Timestamp;
use std::sync::Arc;
use tollkeeper_config::{Limit, OnLimit, Owner, Usd, Window};

/// A refusal to spend. Displayed for the caller: what stopped it, by how much, and when it may pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A budget cannot pay for it; the tightest one when several cannot.
    #[error("{0}")]
    Budget(Box<Blocked>),
    /// The agent's limit for one request.
    #[error(
        "one request of this agent may not cost so much: {left} USD are left of its `max_request_usd` and this needs at least {estimate} USD more"
    )]
    Request {
        /// What the request may still cost.
        left: Usd,
        /// The least more that had to be affordable.
        estimate: Usd,
    },
    /// Who asks has been stopped.
    #[error("{who} {stop}")]
    Stopped {
        /// Whose requests.
        who: Owner,
        /// Why, and until when.
        stop: Stop,
    },
    /// The ledger cannot record the spend, so nothing may be spent; the operator must act.
    #[error("the gateway's ledger cannot record spending now, so nothing may be spent: {reason}; try again later")]
    StoreDown {
        /// What the store said; no secrets, but paths may appear.
        reason: Arc<str>,
    },
    /// Other gateways share a budget with this one, and the store that they do it in cannot be asked.
    #[error(
        "the store that gateways share budgets in cannot be asked now, so nothing may be spent from them: {reason}; try again soon"
    )]
    SharedDown {
        /// What the store said, or did not; no secrets, but addresses may appear.
        reason: Arc<str>,
    },
}

impl Denied {
    /// Whether nobody can say if it may be spent: not the fault of who asks, and no end of a budget.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::StoreDown { .. } | Self::SharedDown { .. })
    }
}

/// A budget that cannot pay. Amounts are in the limit's measure: nano-dollars, tokens or requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Whose budget it is.
    pub owner: Owner,
    /// Its window.
    pub window: Window,
    /// Its cap.
    pub limit: Limit,
    /// Settled in this window.
    pub spent: i128,
    /// Leased in this window by requests in flight, this one included when it is already running.
    pub reserved: i128,
    /// The least more that had to be affordable.
    pub estimate: i128,
    /// When the window ends; `None` for totals and rolling windows.
    pub resets_at: Option<Timestamp>,
    /// What the budget says is to be done.
    pub on_limit: OnLimit,
    /// The budget could pay, but its last so many percent are kept for a final answer without tools.
    pub kept_pct: Option<u8>,
}

/// What has stopped an agent or a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It spent too fast; over at that time, or when somebody resumes it.
    Velocity {
        /// When it goes on by itself.
        until: Option<Timestamp>,
    },
    /// Somebody paused it, or a budget that asks did.
    Paused {
        /// In the words of who did it.
        reason: Arc<str>,
    },
    /// The run was cancelled.
    Cancelled,
    /// The run's time is up.
    Over,
    /// The key that was used is no longer good.
    Key(KeyRefused),
}

impl Blocked {
    /// An amount in the limit's measure as people read it: USD as an exact decimal, or a count.
    pub fn shown(&self, units: i128) -> String {
        self.limit.shown(units)
    }
}

impl std::fmt::Display for Blocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = if matches!(self.limit, Limit::Usd(_)) { "USD" } else { self.limit.measure() };
        let Self { owner, window, .. } = self;
        let [limit, spent, reserved, estimate] =
            [self.limit.units(), self.spent, self.reserved, self.estimate].map(|units| self.shown(units));
        write!(
            f,
            "{owner} cannot pay: its budget of {limit} {unit} per {window} has {spent} {unit} spent and {reserved} {unit} reserved, and this \
             needs at least {estimate} {unit} more"
        )?;
        if let Some(kept) = self.kept_pct {
            write!(f, "; its last {kept} % are kept for a final answer, which is a request without tools")?;
        }
        match self.resets_at {
            Some(at) => write!(f, "; the window resets at {at}"),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Velocity { until: Some(until) } => {
                write!(f, "spends much faster than it usually does and is paused until {until}")
            }
            Self::Velocity { until: None } => {
                f.write_str("spends much faster than it usually does and is paused until somebody resumes it")
            }
            Self::Paused { reason } => write!(f, "is paused until somebody resumes it: {reason}"),
            Self::Cancelled => f.write_str("was cancelled"),
            Self::Over => f.write_str("has used up its time"),
            Self::Key(refused) => write!(f, "may not go on: {refused}"),
        }
    }
}
