//! The read-only side of a SQLite ledger: rows and sums, while a gateway may be writing it.

use super::compact::scan;
use super::sums::{halves, settled, whole};
use super::{connect, known_version, version};
use crate::ledger::compaction::Scan;
use crate::ledger::row::{COLUMNS, Counts, HASH, Kind, Row, backend};
use crate::report::{SpendGroup, SpendQuery, SpendSum};
use crate::store::StoreError;
use crate::store::settled::Settled;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rusqlite::{Connection, OpenFlags, params};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use tollkeeper_config::{PicoUsd, Rates, Usd};
use tollkeeper_protocol::usage::{ServiceTier, Usage};

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
    pub(crate) fn rows(
        &self,
        mut visit: impl FnMut(Result<Row, (i64, &'static str)>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut query = self.0.prepare(&format!("SELECT {} FROM ledger ORDER BY seq", COLUMNS.join(", ")))?;
        let mut found = query.query([])?;
        while let Some(row) = found.next()? {
            if visit(read(row)).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The rows that are older than a time.
    pub(crate) fn scan(&self, before: i64) -> Result<Scan, StoreError> {
        scan(&self.0, before)
    }

    /// The newest checkpoint.
    pub(crate) fn checkpoint(&self) -> Result<Option<Row>, StoreError> {
        let columns = COLUMNS.join(", ");
        let sql = format!("SELECT {columns} FROM ledger WHERE kind = 'checkpoint' ORDER BY seq DESC LIMIT 1");
        let mut query = self.0.prepare(&sql)?;
        let mut found = query.query([])?;
        let bad = |(seq, column)| StoreError(format!("row {seq} is bad in column {column}").into());
        found.next()?.map(|row| read(row).map_err(bad)).transpose()
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
    }
}

fn spend_sum(row: &rusqlite::Row<'_>, groups: &[SpendGroup]) -> Result<SpendSum, StoreError> {
    let first = groups.len();
    let tokens = |column| {
        u64::try_from(whole(row, column)?).map_err(|_| StoreError("a sum of tokens does not fit 64 bits".into()))
    };
    let usd = |column| {
        let sum =
            i64::try_from(whole(row, column)?).map_err(|_| StoreError("a sum of money does not fit 64 bits".into()));
        sum.map(Usd)
    };
    let date = |day: i64| {
        let midnight = Timestamp::UNIX_EPOCH.checked_add((day.saturating_mul(24)).hours());
        midnight.map(|midnight| TimeZone::UTC.to_datetime(midnight).date().to_string()).ok()
    };
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
        input: tokens(first + 2)?,
        cached_input: tokens(first + 4)?,
        cache_write: tokens(first + 6)?,
        output: tokens(first + 8)?,
        reasoning: tokens(first + 10)?,
        cost: usd(first + 12)?,
        overrun: usd(first + 14)?,
    })
}

/// Reads a row selected as [`COLUMNS`]; an error names the row and the column that no writer of ours can have written.
pub(super) fn read(row: &rusqlite::Row<'_>) -> Result<Row, (i64, &'static str)> {
    let seq: i64 = row.get(0).unwrap_or(0);
    let bad = |column: usize| (seq, COLUMNS[column]);
    let int = |column: usize| row.get::<_, i64>(column).map_err(|_| bad(column));
    let text = |column: usize| row.get::<_, String>(column).map_err(|_| bad(column));
    let optional = |column: usize| row.get::<_, Option<i64>>(column).map_err(|_| bad(column));
    let maybe = |column: usize| row.get::<_, Option<Arc<str>>>(column).map_err(|_| bad(column));
    let count = |column: usize| int(column).and_then(|count| u64::try_from(count).map_err(|_| bad(column)));
    let rate = |column: usize| int(column).map(|rate| PicoUsd(rate.cast_unsigned()));
    let some = |column: usize| optional(column)?.map_or(Ok(0), |count| u64::try_from(count).map_err(|_| bad(column)));
    let extra = |column: usize| Ok(optional(column)?.map(|rate| PicoUsd(rate.cast_unsigned())));
    let kind = text(2)?;
    Ok(Row {
        seq,
        at: int(1)?,
        kind: Kind::ALL.into_iter().find(|known| known.name() == kind).ok_or(bad(2))?,
        intent: optional(3)?,
        admitted: int(4)?,
        request_id: text(5)?.into(),
        attempt: int(6)?.try_into().map_err(|_| bad(6))?,
        agent: text(7)?.into(),
        operation: text(8)?.into(),
        alias: text(9)?.into(),
        backend: backend(&text(10)?),
        usage: Usage {
            input: count(11)?,
            cached_input: count(12)?,
            cache_write: count(13)?,
            output: count(14)?,
            reasoning: count(15)?,
            audio_input: some(38)?,
            audio_output: some(39)?,
            cache_write_1h: some(40)?,
            tier: match maybe(41)? {
                None => ServiceTier::Standard,
                Some(name) => ServiceTier::ALL.into_iter().find(|tier| tier.name() == &*name).ok_or(bad(41))?,
            },
        },
        estimated: [0, 1].contains(&int(16)?).then_some(int(16)? == 1).ok_or(bad(16))?,
        leased: Usd(int(17)?),
        rates: Rates {
            input: rate(18)?,
            cached_input: rate(19)?,
            cache_write: rate(20)?,
            output: rate(21)?,
            audio_input: extra(42)?,
            audio_output: extra(43)?,
            cache_write_1h: extra(44)?,
        },
        catalog: text(22)?.into(),
        cost: Usd(int(23)?),
        overrun: Usd(int(24)?),
        outcome: row.get::<_, Option<String>>(25).map_err(|_| bad(25))?.map(Into::into),
        ttft_ms: optional(26)?,
        duration_ms: optional(27)?,
        oldest_open: int(28)?,
        prev_hash: row.get(29).map_err(|_| bad(29))?,
        hash: row.get(HASH).map_err(|_| bad(HASH))?,
        team: maybe(31)?,
        run: maybe(32)?,
        task: maybe(33)?,
        note: maybe(34)?,
        sums: match optional(35)? {
            None => None,
            Some(attempts) => Some(Counts { attempts, unknowns: int(36)?, releases: int(37)? }),
        },
    })
}
