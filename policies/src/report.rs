//! Reads the ledger for people, while the gateway may be running.

use jiff::Timestamp;
use std::path::Path;
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
        path: String,
        /// What SQLite said.
        reason: String,
    },
}

/// Adds up charges, grouped by agent, ordered by agent, day and backend.
pub fn spend(path: &Path, filter: &SpendFilter) -> Result<Vec<SpendRow>, ReportError> {
    let _ = (path, filter);
    todo!()
}

/// What a sound ledger holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// All rows.
    pub rows: u64,
    /// Attempts admitted.
    pub intents: u64,
    /// Attempts not yet closed.
    pub open: u64,
    /// Attempts charged by usage.
    pub settlements: u64,
    /// Attempts that used nothing.
    pub releases: u64,
    /// Attempts that a crash left open.
    pub unknown: u64,
    /// The sum of all costs.
    pub cost: Usd,
    /// The sum of all overruns.
    pub overrun: Usd,
    /// Hash of the last row, in hexadecimal: kept elsewhere, it proves that no later state was cut off.
    pub head: String,
}

/// Why a ledger is not sound.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It could not be read.
    #[error(transparent)]
    Unreadable(#[from] ReportError),
    /// The first bad row.
    #[error("row {seq} of the ledger is bad: {field}: {problem}")]
    Row {
        /// Its sequence number.
        seq: i64,
        /// The column.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// Proves the hash chain, that every attempt is closed at most once, and that every cost is its tokens times its rates.
pub fn verify(path: &Path) -> Result<VerifyReport, VerifyError> {
    let _ = path;
    todo!()
}
