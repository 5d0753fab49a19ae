//! The read-only side of a SQLite ledger: rows and sums, while a gateway may be writing it.

use super::connect;
use super::sums::{halves, settled, whole};
use super::tables::{known_version, version};
use crate::ledger::read::{Bad, Values};
use crate::ledger::row::{COLUMNS, HASH, Row, Value};
use crate::report::{SpendGroup, SpendQuery, SpendSum};
use crate::store::StoreError;
use crate::store::settled::Settled;
use crate::store::sums::{date, tokens, usd};
use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, params};
use std::ops::ControlFlow;
use std::path::Path;

/// A ledger opened for reading, while a gateway may be writing it.
pub(crate) struct Reader(Connection);

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.is_file() {
            return Err(StoreError("there is no such file".into()));
        }
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        match version(&db)? {
            0 => Err(StoreError("it is empty".into())),
            found if found > known_version() => {
                let known = known_version();
                Err(StoreError(format!("it has schema version {found}, known here are versions up to {known}").into()))
            }
            1 => {
                // What version 1 did not know is null; the file stays as it is.
                let missing: Vec<_> = COLUMNS[HASH + 1..].iter().map(|column| format!("NULL AS {column}")).collect();
                let view = format!("CREATE TEMP VIEW ledger AS SELECT *, {} FROM main.ledger", missing.join(", "));
                db.execute_batch(&view)?;
                Ok(Self(db))
            }
            _ => Ok(Self(db)),
        }
    }

    /// Visits every row in order, as they all were at one instant. A row that cannot be read is given as its number and
    /// the bad column.
    pub(crate) fn rows(&self, mut visit: impl FnMut(Result<Row, Bad>) -> ControlFlow<()>) -> Result<(), StoreError> {
        let mut query = self.0.prepare(&format!("SELECT {} FROM ledger ORDER BY seq", COLUMNS.join(", ")))?;
        let mut found = query.query([])?;
        while let Some(row) = found.next()? {
            if visit(read(row)).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The newest checkpoint.
    pub(crate) fn checkpoint(&self) -> Result<Option<Row>, StoreError> {
        let columns = COLUMNS.join(", ");
        let sql = format!("SELECT {columns} FROM ledger WHERE kind = 'checkpoint' ORDER BY seq DESC LIMIT 1");
        let mut query = self.0.prepare(&sql)?;
        let mut found = query.query([])?;
        found.next()?.map(|row| read(row).map_err(StoreError::bad)).transpose()
    }

    /// Has what is read from now on be of one instant, until the reader is dropped.
    pub(crate) fn hold_still(&self) -> Result<(), StoreError> {
        Ok(self.0.execute_batch("BEGIN")?)
    }

    /// See [`crate::store::Store::settled`].
    pub(crate) fn settled(&self, now: i64) -> Result<Vec<Settled>, StoreError> {
        settled(&self.0, now)
    }

    /// Sums of closed attempts by groups, ordered by them.
    pub(crate) fn spend(&self, query: &SpendQuery) -> Result<Vec<SpendSum>, StoreError> {
        let sums = [
            "input_tokens",
            "cached_input_tokens",
            "cache_write_tokens",
            "output_tokens",
            "reasoning_tokens",
            "cost_nano",
            "overrun_nano",
        ]
        .map(|column| halves(column, ""))
        .join(", ");
        let columns: Vec<&str> = query.groups.iter().map(|group| column(*group)).collect();
        let places: Vec<String> = (1..=columns.len()).map(|place| place.to_string()).collect();
        let (columns, places) = (columns.join(", "), places.join(", "));
        let mut sql = self.0.prepare(&format!(
            "SELECT {columns}, SUM(COALESCE(attempts, 1)), SUM(COALESCE(unknowns, kind = 'unknown')), {sums}
             FROM ledger WHERE outcome IS NOT NULL AND admitted_us >= ?1 AND admitted_us < ?2 AND agent = COALESCE(?3, agent)
             GROUP BY {places} ORDER BY {places}"
        ))?;
        let since = query.since.map_or(i64::MIN, Timestamp::as_microsecond);
        let until = query.until.map_or(i64::MAX, Timestamp::as_microsecond);
        let mut found = sql.query(params![since, until, query.agent])?;
        let mut rows = Vec::new();
        while let Some(row) = found.next()? {
            rows.push(spend_sum(row, &query.groups)?);
        }
        Ok(rows)
    }
}

/// What a group is selected as.
fn column(group: SpendGroup) -> &'static str {
    match group {
        SpendGroup::Agent => "agent",
        SpendGroup::Team => "team",
        SpendGroup::Model => "backend",
        SpendGroup::Alias => "alias",
        SpendGroup::Run => "run",
        SpendGroup::Day => "admitted_us / 86400000000",
        SpendGroup::Gateway => "NULL",
    }
}

fn spend_sum(row: &rusqlite::Row<'_>, groups: &[SpendGroup]) -> Result<SpendSum, StoreError> {
    let first = groups.len();
    let mut group = Vec::with_capacity(first);
    for (place, by) in groups.iter().enumerate() {
        group.push(match by {
            SpendGroup::Day => row.get::<_, Option<i64>>(place)?.and_then(date),
            _ => row.get(place)?,
        });
    }
    Ok(SpendSum {
        group,
        attempts: row.get(first)?,
        unknown: row.get(first + 1)?,
        input: tokens(whole(row, first + 2)?)?,
        cached_input: tokens(whole(row, first + 4)?)?,
        cache_write: tokens(whole(row, first + 6)?)?,
        output: tokens(whole(row, first + 8)?)?,
        reasoning: tokens(whole(row, first + 10)?)?,
        cost: usd(whole(row, first + 12)?)?,
        overrun: usd(whole(row, first + 14)?)?,
    })
}

/// Reads a row selected as [`COLUMNS`].
pub(super) fn read(row: &rusqlite::Row<'_>) -> Result<Row, Bad> {
    Values(std::array::from_fn(|column| value(row, column))).row()
}

/// What no column of ours holds is given as an empty blob, which none can have.
fn value<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> Value<'a> {
    let odd = Value::Blob(&[]);
    match row.get_ref(column) {
        Ok(ValueRef::Null) => Value::Null,
        Ok(ValueRef::Integer(number)) => Value::Int(number),
        Ok(ValueRef::Text(text)) => std::str::from_utf8(text).map_or(odd, |text| Value::Text(text.into())),
        Ok(ValueRef::Blob(bytes)) => Value::Blob(bytes),
        Ok(ValueRef::Real(_)) | Err(_) => odd,
    }
}
