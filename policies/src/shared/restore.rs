//! What a gateway tells a store that has forgotten, or never knew, what it spent.

use super::Counter;
use std::sync::Arc;

/// All that this gateway's ledger and memory know, read at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restore {
    /// Now, microseconds since 1970.
    pub now: i64,
    /// What its own ledger has settled, for every counter that is in use, also where that is nothing; several shares of
    /// one rolling window by time.
    pub shares: Vec<Share>,
    /// Its leases that are open.
    pub leases: Vec<OpenLease>,
    /// Marks and their reasons.
    pub marks: Vec<(Arc<str>, Arc<str>)>,
}

/// What one gateway has settled in one counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The counter.
    pub counter: Counter,
    /// How much.
    pub settled: i64,
    /// For a rolling window, when that was admitted, microseconds since 1970.
    pub admitted: i64,
}

/// An open lease of this gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenLease {
    /// Its id.
    pub lease: Arc<str>,
    /// When it was admitted, microseconds since 1970.
    pub admitted: i64,
    /// As when it was taken.
    pub memo: Arc<str>,
    /// The last step that was made.
    pub step: u32,
    /// Its counters, in the order in which they were taken, and what it holds.
    pub held: Vec<(Counter, i64)>,
}
