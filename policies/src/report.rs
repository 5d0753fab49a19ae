//! Reads the ledger for people, while the gateway may be running.

mod compact;
mod export;
mod invoice;
mod reconcile;
mod verify;

pub(crate) use compact::keep;
pub use compact::{CompactError, Compacted, compact};
pub use export::{ExportError, ExportFilter, Exported, Format, export};
pub use invoice::InvoiceError;
pub use reconcile::{Figures, Reconcile, ReconcileError, ReconcileLine, reconcile};
pub use verify::{AgentTotals, VerifyError, VerifyReport, verify};

use crate::store::StoreError;
use crate::store::sqlite::Reader;
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tollkeeper_config::Usd;

/// Which charges to add up, and by what.
#[derive(Debug, Clone, Default)]
pub struct SpendFilter {
    /// Only this agent.
    pub agent: Option<String>,
    /// Admitted at or after.
    pub since: Option<Timestamp>,
    /// Admitted before.
    pub until: Option<Timestamp>,
    /// One row per backend as well.
    pub by_backend: bool,
    /// One row per day (UTC) as well.
    pub by_day: bool,
}

/// The spend of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpendRow {
    /// The agent.
    pub agent: String,
    /// The backend, when grouped by it.
    pub backend: Option<String>,
    /// The day of admission in UTC, when grouped by it.
    pub day: Option<jiff::civil::Date>,
    /// Closed attempts, free and released ones included.
    pub attempts: u64,
    /// Of them, attempts that a crash left open; charged at what they had leased.
    pub unknown: u64,
    /// Prompt tokens, cached ones included.
    pub input: u64,
    /// Of them, read from a cache.
    pub cached_input: u64,
    /// Of them, written to a cache.
    pub cache_write: u64,
    /// Generated tokens.
    pub output: u64,
    /// Of them, reasoning.
    pub reasoning: u64,
    /// What it cost.
    pub cost: Usd,
    /// Of it, above what was leased.
    pub overrun: Usd,
}

/// Why a ledger could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It could not be opened or read.
    #[error("cannot read the ledger {path}: {reason}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        reason: Arc<str>,
    },
}

/// Adds up charges, grouped by agent, ordered by agent, day and backend. Attempts in flight are not in it.
pub fn spend(path: &Path, filter: &SpendFilter) -> Result<Vec<SpendRow>, ReportError> {
    let unreadable = |StoreError(reason)| ReportError::Unreadable { path: path.to_owned(), reason };
    Reader::open(path).and_then(|ledger| ledger.spend(filter)).map_err(unreadable)
}
