//! Replaces what is old in the ledger by sums that count the same.

use super::{VerifyError, verify};
use crate::OpenError;
use crate::ledger::compaction::Replaced;
use crate::place::Place;
use crate::store::StoreError;
use crate::store::postgres::Postgres;
use crate::store::settled::KEPT_FOR;
use crate::store::sqlite::Sqlite;
use jiff::Timestamp;
use tollkeeper_config::{Durability, Store};

/// What was replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Rows that went.
    pub removed: u64,
    /// Rows of sums that came.
    pub summaries: u64,
    /// The hash that the chain had reached where rows went, in hexadecimal; empty when there was nothing to do.
    pub head: String,
}

/// Why a ledger was not compacted. It is then as it was.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// It could not be opened; a gateway may be using it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is not sound: that must be looked into while the rows are there.
    #[error("the ledger is left as it is: {0}")]
    Unsound(#[from] VerifyError),
    /// Budgets still look at that time.
    #[error(
        "only what is at least 33 days old can be replaced, because budgets look back for 32: the latest is {latest}"
    )]
    TooNew {
        /// The latest time that can be given.
        latest: Timestamp,
    },
    /// The store could not do it.
    #[error("the ledger is left as it is: {0}")]
    Store(Box<str>),
}

/// Replaces the attempts that closed before a time (the UTC midnight at or before it) by one row of sums for each day,
/// agent, team, run, alias, backend and catalogue, and proves the ledger before and after. All in one transaction: a
/// crash leaves it as it was. Refused while a gateway uses the ledger. Of a database, a gateway must be named.
pub fn compact(place: impl Into<Place>, before: Timestamp, now: Timestamp) -> Result<Compacted, CompactError> {
    let place = place.into();
    let failed = |StoreError(reason): StoreError| CompactError::Store((*reason).into());
    let day = crate::ledger::compaction::DAY;
    let midnight = |at: i64| at.div_euclid(day) * day;
    let (before, now) = (midnight(before.as_microsecond()), now.as_microsecond());
    let latest = midnight(now.saturating_sub(KEPT_FOR));
    if before > latest {
        return Err(CompactError::TooNew { latest: Timestamp::from_microsecond(latest).unwrap_or_default() });
    }
    let mut store = match &place {
        Place::File(path) => Writer::File(Box::new(Sqlite::open(path, Durability::Power)?)),
        Place::Database(database) => Writer::Database(Box::new(Postgres::open(database)?)),
    };
    if !store.can_compact(before).map_err(failed)? {
        return Ok(Compacted::default());
    }
    let sound = verify(&place)?;
    let replaced = store.compact(before, now).map_err(failed)?;
    let after = verify(&place)?;
    if (after.cost, after.overrun, &after.agents) != (sound.cost, sound.overrun, &sound.agents) {
        return Err(CompactError::Store("its sums changed: restore it from a copy".into()));
    }
    Ok(Compacted { removed: replaced.removed, summaries: replaced.summaries, head: replaced.head })
}

/// A ledger that nobody else writes.
enum Writer {
    File(Box<Sqlite>),
    Database(Box<Postgres>),
}

impl Writer {
    fn can_compact(&mut self, before: i64) -> Result<bool, StoreError> {
        match self {
            Self::File(file) => file.can_compact(before),
            Self::Database(database) => database.can_compact(before),
        }
    }

    fn compact(&mut self, before: i64, now: i64) -> Result<Replaced, StoreError> {
        match self {
            Self::File(file) => file.compact(before, now),
            Self::Database(database) => database.compact(before, now),
        }
    }
}

/// Compacts what is older than the configuration keeps. That it could not be done keeps no gateway from starting: it is
/// told, and tried again at the next start.
pub(crate) fn keep(store: &Store, now: Timestamp) {
    let Some(before) = store.keep.and_then(|age| now.checked_sub(age).ok()) else { return };
    let place = Place::own(store);
    // A gateway that starts for the first time has no ledger yet.
    if matches!(&place, Place::File(path) if !path.is_file()) {
        return;
    }
    match compact(&place, before, now) {
        Ok(done) if done.removed == 0 => {}
        Ok(done) => tracing::info!(
            removed = done.removed,
            summaries = done.summaries,
            head = done.head,
            "old attempts in the ledger were replaced by sums"
        ),
        Err(error) => tracing::warn!(%error, "the ledger is not compacted; this start goes on without it"),
    }
}
