//! Sums over the whole SQLite ledger, from which counters are restored. SQLite's sums are 64 bits wide: the halves of
//! the figures are added up apart.

use crate::ledger::row::backend;
use crate::store::StoreError;
use crate::store::settled::{MINUTE, QUARTER, Settled, edges};
use rusqlite::{Connection, params};

/// See [`crate::store::Store::settled`].
pub(super) fn settled(db: &Connection, now: i64) -> Result<Vec<Settled>, StoreError> {
    let (minutes, quarters) = edges(now);
    let sql = format!(
        "SELECT agent, team, alias, backend, run,
                CASE WHEN admitted_us >= ?1 THEN admitted_us - (admitted_us % {MINUTE} + {MINUTE}) % {MINUTE}
                     WHEN admitted_us >= ?2 THEN admitted_us - (admitted_us % {QUARTER} + {QUARTER}) % {QUARTER} END AS start,
                SUM(COALESCE(attempts - releases, kind <> 'release')), {}, {}, {}
         FROM ledger WHERE outcome IS NOT NULL GROUP BY agent, team, alias, backend, run, start",
        halves("cost_nano", ""),
        halves("input_tokens", ""),
        halves("output_tokens", ""),
    );
    let mut query = db.prepare(&sql)?;
    let mut found = query.query(params![minutes, quarters])?;
    let mut sums = Vec::new();
    while let Some(row) = found.next()? {
        sums.push(Settled {
            agent: row.get(0)?,
            team: row.get(1)?,
            alias: row.get(2)?,
            backend: backend(&row.get::<_, String>(3)?),
            run: row.get(4)?,
            start: row.get::<_, Option<i64>>(5)?.unwrap_or(i64::MIN),
            requests: row.get(6)?,
            nano: whole(row, 7)?,
            tokens: whole(row, 9)? + whole(row, 11)?,
        });
    }
    Ok(sums)
}

/// The columns that [`whole`] puts together.
pub(super) fn halves(column: &str, filter: &str) -> String {
    format!("COALESCE(SUM({column} >> 32){filter}, 0), COALESCE(SUM({column} & 4294967295){filter}, 0)")
}

/// A sum from its halves in this column and the next.
pub(super) fn whole(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<i128> {
    Ok((i128::from(row.get::<_, i64>(column)?) << 32) + i128::from(row.get::<_, i64>(column + 1)?))
}
