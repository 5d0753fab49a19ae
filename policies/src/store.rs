//! Where ledger rows are kept.

mod lock;
pub(crate) mod memory;
mod mover;
pub(crate) mod sqlite;

use crate::budget::Sums;
use crate::ledger::row::{Hash, Row};
use std::sync::Arc;

/// A place for ledger rows: append-only, written by one thread at a time. It keeps rows and knows nothing of what they
/// mean beyond their kind.
pub(crate) trait Store: Send {
    /// The end of the chain.
    fn tail(&mut self) -> Result<Tail, StoreError>;

    /// Appends all rows, or none of them. When this returns, they are as durable as the store promises.
    fn append(&mut self, rows: &[Row]) -> Result<(), StoreError>;

    /// Attempts from `seq` on that have no closing row: their last row each (intent or extension), which says what they
    /// hold.
    fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError>;

    /// The costs of every agent's attempts that were admitted since these times (microseconds since 1970), one sum for
    /// each.
    fn spent(&mut self, since: &[i64; 6]) -> Result<Vec<(Arc<str>, Sums)>, StoreError>;
}

/// The end of the chain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The last row's number; 0 when there is none.
    pub(crate) seq: i64,
    /// Its hash; zeros when there is none.
    pub(crate) hash: Hash,
    /// No attempt before this row's number was open when it was written.
    pub(crate) oldest_open: i64,
}

/// The store could not do it; the text is for operators.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct StoreError(pub(crate) Arc<str>);
