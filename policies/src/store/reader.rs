//! Reads ledgers from wherever they are, while gateways may be writing them.

use super::postgres::Reader as DatabaseReader;
use super::settled::Settled;
use super::sqlite::Reader as FileReader;
use super::{Chain, StoreError};
use crate::ledger::compaction::Scan;
use crate::ledger::read::Bad;
use crate::ledger::row::Row;
use crate::place::Place;
use crate::report::{SpendQuery, SpendSum};
use std::ops::ControlFlow;

/// One ledger, or those of a fleet.
pub(crate) enum Reader {
    File(FileReader),
    Database(DatabaseReader),
}

impl Reader {
    pub(crate) fn open(place: &Place) -> Result<Self, StoreError> {
        Ok(match place {
            Place::File(path) => Self::File(FileReader::open(path)?),
            Place::Database(database) => Self::Database(DatabaseReader::open(database)?),
        })
    }

    /// Has what is read from now on be of one instant, until the reader is dropped.
    pub(crate) fn hold_still(&mut self) -> Result<(), StoreError> {
        match self {
            Self::File(file) => file.hold_still(),
            Self::Database(database) => database.hold_still(),
        }
    }

    /// The chains that there are, of those that were asked for: of a file one, of a database those of its gateways.
    pub(crate) fn chains(&mut self) -> Result<Vec<Chain>, StoreError> {
        match self {
            Self::File(_) => Ok(vec![Chain::default()]),
            Self::Database(database) => database.chains(),
        }
    }

    /// The one chain there is.
    pub(crate) fn only_chain(&mut self) -> Result<Chain, StoreError> {
        match &self.chains()?[..] {
            [chain] => Ok(chain.clone()),
            [] => Err(StoreError("no gateway has written there".into())),
            _ => Err(StoreError("several gateways have written there: name one".into())),
        }
    }

    /// Visits every row of a chain in order. A row that cannot be read is given as its number and the bad column.
    pub(crate) fn rows(
        &mut self,
        chain: &Chain,
        mut visit: impl FnMut(Result<Row, Bad>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        match self {
            Self::File(file) => file.rows(visit),
            Self::Database(database) => database.rows(chain, &mut visit),
        }
    }

    /// The rows of a chain that are older than a time.
    pub(crate) fn scan(&mut self, chain: &Chain, before: i64) -> Result<Scan, StoreError> {
        let (mut scan, mut bad) = (Scan::default(), None);
        self.rows(chain, |row| {
            let goes_on = row.map(|row| scan.see(&row, before)).unwrap_or_else(|at| {
                bad = Some(at);
                false
            });
            if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        bad.map_or(Ok(scan), |bad| Err(StoreError::bad(bad)))
    }

    /// A chain's newest checkpoint.
    pub(crate) fn checkpoint(&mut self, chain: &Chain) -> Result<Option<Row>, StoreError> {
        match self {
            Self::File(file) => file.checkpoint(),
            Self::Database(database) => database.checkpoint(chain),
        }
    }

    /// See [`crate::store::Store::settled`].
    pub(crate) fn settled(&mut self, chain: &Chain, now: i64) -> Result<Vec<Settled>, StoreError> {
        match self {
            Self::File(file) => file.settled(now),
            Self::Database(database) => database.settled(chain, now),
        }
    }

    /// Sums of closed attempts by groups, ordered by them.
    pub(crate) fn spend(&mut self, query: &SpendQuery) -> Result<Vec<SpendSum>, StoreError> {
        match self {
            Self::File(file) => file.spend(query),
            Self::Database(database) => database.spend(query),
        }
    }
}
