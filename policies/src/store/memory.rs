//! Rows in memory: for tests and benches. Grows with every row and forgets all at the end.

use super::{Store, StoreError, Tail};
use crate::budget::Sums;
use crate::ledger::row::Row;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows in memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) rows: Vec<Row>,
}

impl Store for Memory {
    fn tail(&mut self) -> Result<Tail, StoreError> {
        let tail = |row: &Row| Tail { seq: row.seq, hash: row.hash, oldest_open: row.oldest_open };
        Ok(self.rows.last().map(tail).unwrap_or_default())
    }

    fn append(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        self.rows.extend_from_slice(rows);
        Ok(())
    }

    fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
        let mut open = BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.seq >= seq) {
            match row.intent {
                None => _ = open.insert(row.seq, row.clone()),
                Some(intent) if row.kind.closes() => _ = open.remove(&intent),
                Some(intent) => _ = open.insert(intent, row.clone()),
            }
        }
        Ok(open.into_values().collect())
    }

    fn spent(&mut self, since: &[i64; 6]) -> Result<Vec<(Arc<str>, Sums)>, StoreError> {
        let mut agents: BTreeMap<Arc<str>, Sums> = BTreeMap::new();
        for row in &self.rows {
            let sums = agents.entry(row.agent.clone()).or_default();
            for (sum, since) in sums.iter_mut().zip(since) {
                *sum += if row.admitted >= *since { i128::from(row.cost.0) } else { 0 };
            }
        }
        Ok(agents.into_iter().collect())
    }
}
