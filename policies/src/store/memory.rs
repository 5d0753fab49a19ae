//! Rows in memory: for tests and benches. Grows with every row and forgets all at the end.

use super::settled::{Settled, settled};
use super::{Kept, Open, StateChange, Store, StoreError, Tail};
use crate::ledger::row::Row;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows in memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) rows: Vec<Row>,
    state: BTreeMap<(&'static str, Arc<str>), Arc<str>>,
}

impl Store for Memory {
    fn tail(&mut self) -> Result<Tail, StoreError> {
        let tail = |row: &Row| Tail { seq: row.seq, hash: row.hash, oldest_open: row.oldest_open };
        Ok(self.rows.last().map(tail).unwrap_or_default())
    }

    fn append(&mut self, rows: &[Row], state: &[StateChange]) -> Result<(), StoreError> {
        self.rows.extend_from_slice(rows);
        for StateChange { kind, id, body, .. } in state {
            match body {
                Some(body) => _ = self.state.insert((kind, id.clone()), body.clone()),
                None => _ = self.state.remove(&(*kind, id.clone())),
            }
        }
        Ok(())
    }

    fn state(&mut self, kind: &str) -> Result<Kept, StoreError> {
        let of_kind = self.state.iter().filter(|((known, _), _)| *known == kind);
        Ok(of_kind.map(|((_, id), body)| (id.clone(), body.clone())).collect())
    }

    fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
        let mut open = Open::default();
        self.rows.iter().filter(|row| row.seq >= seq).for_each(|row| open.see(row.clone()));
        Ok(open.rows())
    }

    fn settled(&mut self, now: i64) -> Result<Vec<Settled>, StoreError> {
        Ok(settled(self.rows.iter(), now))
    }
}
