//! May this agent spend it: identity, budgets, leases, metering and the ledger.

pub mod agent;
pub mod budget;
pub mod clock;
pub mod denied;
pub mod lease;
pub mod metering;
pub mod report;

pub use agent::Agent;
pub use budget::{BudgetView, window_name};
pub use clock::Clock;
pub use denied::{Denied, Scope};
pub use lease::{Lease, Outcome, OutputBound, Settlement, Spend};
pub use metering::{Charge, Pieces};

use std::path::PathBuf;
use std::sync::Arc;
use tollkeeper_config::{Config, Usd};

/// Agents, budgets and the ledger; a cheap handle.
#[derive(Debug, Clone)]
pub struct Policies(Arc<()>);

/// What start-up found of requests that an earlier gateway left open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// How many.
    pub unknown: u64,
    /// What they were charged: what they had leased.
    pub amount: Usd,
}

/// Why the ledger could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another gateway uses it.
    #[error("the ledger {path} is in use by another gateway (process {pid}); give each gateway its own `store.path`")]
    Locked {
        /// The ledger's file.
        path: PathBuf,
        /// The other gateway's process id, as far as its lock file tells.
        pid: String,
    },
    /// A newer version wrote it.
    #[error(
        "the ledger {path} has schema version {found}, but this gateway knows only versions up to {known}; use a newer gateway"
    )]
    Newer {
        /// The ledger's file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// It could not be opened or read.
    #[error("cannot open the ledger {path}: {reason}")]
    Store {
        /// The ledger's file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

impl Policies {
    /// Opens the ledger, charges what an earlier gateway left open, and counts what is already spent.
    pub fn open(config: &Config, clock: Clock) -> Result<(Self, Recovered), OpenError> {
        let _ = (config, clock);
        todo!()
    }

    /// The agent with this key.
    pub fn authenticate(&self, key: &str) -> Option<Arc<Agent>> {
        let _ = key;
        todo!()
    }

    /// Takes over agents and limits from a new configuration; what was spent stays spent, leases go on. The store's path cannot change.
    pub fn reload(&self, config: &Config) {
        let _ = config;
    }

    /// Leases what an attempt may cost from every budget that covers it, all or none, and waits until the intent is recorded.
    /// Cancelling the wait releases the lease.
    pub async fn admit(&self, agent: &Arc<Agent>, spend: Spend) -> Result<Lease, Denied> {
        let _ = (agent, spend);
        todo!()
    }

    /// The agent's budgets as they stand.
    pub fn budgets(&self, agent: &Agent) -> Vec<BudgetView> {
        let _ = agent;
        todo!()
    }

    /// Leases that are not settled.
    pub fn open_leases(&self) -> usize {
        todo!()
    }

    /// Ledger rows that wait to be written.
    pub fn queue_depth(&self) -> usize {
        todo!()
    }

    /// Whether the ledger could record the last rows it was given.
    pub fn store_up(&self) -> bool {
        todo!()
    }

    /// Charges above what was leased since the start: how many, and their sum.
    pub fn overruns(&self) -> (u64, Usd) {
        todo!()
    }

    /// Writes what is queued and stops the ledger; later admissions are refused.
    pub async fn close(&self) {}
}
