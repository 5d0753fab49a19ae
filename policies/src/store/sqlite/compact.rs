//! Replaces old rows of the SQLite ledger by sums, in one transaction.

use super::{Sqlite, read, sums};
use crate::ledger::compaction::{Replaced, Scan, gaps};
use crate::ledger::row::COLUMNS;
use crate::ledger::writer::seal;
use crate::store::{Store, StoreError};
use rusqlite::{Connection, params};

/// Looks through the rows before a time, in microseconds since 1970.
fn scan(db: &Connection, before: i64) -> Result<Scan, StoreError> {
    let mut query = db.prepare(&format!("SELECT {} FROM ledger ORDER BY seq", COLUMNS.join(", ")))?;
    let mut found = query.query([])?;
    let mut scan = Scan::default();
    while let Some(row) = found.next()? {
        if !scan.see(&read::read(row).map_err(StoreError::bad)?, before) {
            break;
        }
    }
    Ok(scan)
}

impl Sqlite {
    /// Whether an attempt ended before a time, and is not a sum already.
    pub(crate) fn can_compact(&self, before: i64) -> Result<bool, StoreError> {
        Ok(scan(&self.db, before)?.is_worth_it())
    }

    /// Replaces the closed attempts before a time by their sums, or changes nothing. What counters are restored from
    /// must be the same before and after, or it fails.
    pub(crate) fn compact(&mut self, before: i64, now: i64) -> Result<Replaced, StoreError> {
        self.run("BEGIN IMMEDIATE")?;
        let replaced = self.replace(before, now).and_then(|replaced| Ok((replaced, self.run("COMMIT")?)));
        if replaced.is_err() && !self.db.is_autocommit() {
            self.run("ROLLBACK")?;
        }
        self.mover.wake();
        Ok(replaced?.0)
    }

    fn replace(&mut self, before: i64, now: i64) -> Result<Replaced, StoreError> {
        let scan = scan(&self.db, before)?;
        if !scan.is_worth_it() {
            return Ok(Replaced::default());
        }
        let settled = sums::settled(&self.db, now)?;
        let mut rows = scan.replacement(now, before);
        seal(self.tail()?, &mut rows, &mut Vec::new());
        self.insert(&rows)?;
        self.db.execute("UPDATE compacted SET through = ?1", [scan.through])?;
        for (first, last) in gaps(scan.through, &scan.kept().into_keys().collect()) {
            self.db.execute("DELETE FROM ledger WHERE seq BETWEEN ?1 AND ?2", params![first, last])?;
        }
        if sums::settled(&self.db, now)? != settled {
            return Err(StoreError("the sums after would not be those before: nothing was removed".into()));
        }
        Ok(scan.replaced(rows.len()))
    }
}
