//! Where ledger rows are kept.

mod lock;
pub(crate) mod memory;
mod mover;
pub(crate) mod postgres;
pub(crate) mod reader;
pub(crate) mod redis;
pub(crate) mod schema;
pub(crate) mod settled;
pub(crate) mod sqlite;
mod sums;

use crate::OpenError;
use crate::ledger::read::Bad;
use crate::ledger::row::{Hash, Kind, Row};
use crate::place::Place;
use postgres::Postgres;
use settled::Settled;
use sqlite::Sqlite;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Opens the store that a gateway of this configuration writes.
pub(crate) fn open(store: &tollkeeper_config::Store) -> Result<Box<dyn Store>, OpenError> {
    Ok(match Place::own(store) {
        Place::File(path) => Box::new(Sqlite::open(&path, store.durability)?),
        Place::Database(database) => Box::new(Postgres::open(&database)?),
    })
}

/// The name of the gateway that wrote a chain; `None` of the one in a file.
pub(crate) type Chain = Option<Arc<str>>;

/// A place for ledger rows: append-only, written by one thread at a time. It keeps rows and knows nothing of what they
/// mean beyond their kind.
pub(crate) trait Store: Send {
    /// The end of the chain.
    fn tail(&mut self) -> Result<Tail, StoreError>;

    /// Appends all rows and makes all changes of state, or none of them. When this returns, they are as durable as the
    /// store promises.
    fn append(&mut self, rows: &[Row], state: &[StateChange]) -> Result<(), StoreError>;

    /// Whether it is not known if the last rows, which [`append`](Self::append) failed on, are there. They must then be
    /// given again as they were before any others, until they are found there or appended, or until this is false: then
    /// they are not there.
    fn in_doubt(&self) -> bool {
        false
    }

    /// Whether appending can ever be as quick as copying memory: then who admits may do it, on a thread that others need.
    fn may_be_quick(&self) -> bool {
        false
    }

    /// Whether the next rows will probably be appended that quickly.
    fn is_quick(&self) -> bool {
        self.may_be_quick()
    }

    /// What has to be done now and then and may take long: called between batches, on a thread that nobody needs.
    fn upkeep(&mut self) {}

    /// What is kept of this kind: ids and bodies, ordered by id.
    fn state(&mut self, kind: &str) -> Result<Kept, StoreError>;

    /// Attempts from `seq` on that have no closing row: their last row each (intent or extension), which says what they
    /// hold.
    fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError>;

    /// The sums of the closed attempts, for every agent, team, alias, backend and run that has any, by time of
    /// admission: minutes of the last two hours before `now` (microseconds since 1970), quarters of an hour of the last
    /// 32 days, and all before. In order of these.
    fn settled(&mut self, now: i64) -> Result<Vec<Settled>, StoreError>;
}

/// Ids and bodies.
pub(crate) type Kept = Vec<(Arc<str>, Arc<str>)>;

/// A change of what is kept beside the ledger: things that people made while the gateway ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateChange {
    /// Such as "agent".
    pub(crate) kind: &'static str,
    /// Its name among those of its kind.
    pub(crate) id: Arc<str>,
    /// JSON; `None` removes it.
    pub(crate) body: Option<Arc<str>>,
    /// When, microseconds since 1970.
    pub(crate) changed: i64,
}

/// Finds the attempts that are open, from rows in order: the last row of each.
#[derive(Debug, Default)]
struct Open(BTreeMap<i64, Row>);

impl Open {
    fn see(&mut self, row: Row) {
        match (row.kind, row.intent) {
            (Kind::Intent, _) => _ = self.0.insert(row.seq, row),
            (Kind::Extension, Some(intent)) => _ = self.0.insert(intent, row),
            (kind, Some(intent)) if kind.closes() => _ = self.0.remove(&intent),
            _ => {}
        }
    }

    fn rows(self) -> Vec<Row> {
        self.0.into_values().collect()
    }
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

impl StoreError {
    /// A row holds what no writer of ours can have written.
    fn bad((seq, column): Bad) -> Self {
        Self(format!("row {seq} is bad in column {column}").into())
    }
}
