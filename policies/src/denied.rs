//! Why a request may not be dispatched, or a stream may not go on.

use crate::window::window_name;
use jiff::Timestamp;
use std::sync::Arc;
use tollkeeper_config::{Usd, Window};

/// A refusal to spend. Displayed for the caller: what stopped it, by how much, and when it may pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A budget cannot pay for it; the tightest one when several cannot.
    #[error(
        "{scope} `{id}` cannot pay: its budget of {limit} USD per {} has {spent} USD spent and {reserved} USD reserved, and this needs at \
         least {estimate} USD more{}",
        window_name(*.window),
        resets(*.resets_at)
    )]
    Budget {
        /// What the budget belongs to.
        scope: Scope,
        /// Its owner's name.
        id: Arc<str>,
        /// The window that is exhausted.
        window: Window,
        /// Its cap.
        limit: Usd,
        /// Settled in this window.
        spent: Usd,
        /// Leased in this window by requests in flight, this one included when it is already running.
        reserved: Usd,
        /// The least more that had to be affordable.
        estimate: Usd,
        /// When the window ends; `None` for a total.
        resets_at: Option<Timestamp>,
    },
    /// The ledger cannot record the spend, so nothing may be spent; the operator must act.
    #[error("the gateway's ledger cannot record spending now, so nothing may be spent: {reason}; try again later")]
    StoreDown {
        /// What the store said; no secrets, but paths may appear.
        reason: Arc<str>,
    },
}

/// What a budget belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One agent.
    Agent,
}

impl Scope {
    /// The name in error bodies and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn resets(at: Option<Timestamp>) -> String {
    at.map_or_else(String::new, |at| format!("; the window resets at {at}"))
}
