//! Rows in a SQLite file: the writer's side, and a read-only side for reports.

use super::lock::Lock;
use super::{Store, StoreError, Tail};
use crate::OpenError;
use crate::budget::Sums;
use crate::ledger::row::{COLUMNS, Kind, Row, Value, backend};
use crate::report::{SpendFilter, SpendRow};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql, params};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{Durability, PicoUsd, Rates, Usd};
use tollkeeper_protocol::usage::Usage;

/// Each brings the file from its number's version to the next.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001_ledger.sql")];

/// "Toll": tells our files from other SQLite files.
const APPLICATION_ID: i64 = 0x546f_6c6c;

/// How long to wait for another process's lock on the file. Readers do not lock; somebody with a database shell may.
const BUSY: Duration = Duration::from_secs(2);

/// The ledger's file, opened for writing by this process alone.
pub(crate) struct Sqlite {
    db: Connection,
    insert: String,
    _lock: Lock,
}

impl Sqlite {
    /// Opens or makes the file and its folder, locks it, and brings its schema up to date.
    pub(crate) fn open(path: &Path, durability: Durability) -> Result<Self, OpenError> {
        let failed = |StoreError(reason)| OpenError::Store { path: path.to_owned(), reason: reason.to_string() };
        let real = real_path(path).map_err(|cause| failed(StoreError(cause.to_string().into())))?;
        let lock = Lock::take(&real)?;
        let mut db = Connection::open(&real).map_err(|cause| failed(cause.into()))?;
        set_up(&db, durability).map_err(failed)?;
        match migrate(&mut db).map_err(failed)? {
            found if found > known_version() => {
                Err(OpenError::Newer { path: path.to_owned(), found, known: known_version() })
            }
            _ => {
                let places: Vec<String> = (1..=COLUMNS.len()).map(|place| format!("?{place}")).collect();
                let insert = format!("INSERT INTO ledger ({}) VALUES ({})", COLUMNS.join(", "), places.join(", "));
                Ok(Self { db, insert, _lock: lock })
            }
        }
    }

    fn run(&self, sql: &str) -> rusqlite::Result<()> {
        self.db.prepare_cached(sql)?.execute([]).map(drop)
    }

    fn insert(&self, rows: &[Row]) -> rusqlite::Result<()> {
        let mut insert = self.db.prepare_cached(&self.insert)?;
        for row in rows {
            for (place, value) in (1..).zip(row.values()) {
                insert.raw_bind_parameter(place, value)?;
            }
            insert.raw_execute()?;
        }
        Ok(())
    }
}

/// The file's path without links, so that it has one lock however it is named; its folder is made when it is not there.
fn real_path(path: &Path) -> std::io::Result<PathBuf> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    // SQLite takes an empty file for a new one.
    std::fs::File::options().create(true).append(true).open(path)?;
    path.canonicalize()
}

fn set_up(db: &Connection, durability: Durability) -> Result<(), StoreError> {
    db.busy_timeout(BUSY)?;
    let mode: String = db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(StoreError(format!("no write-ahead log is possible there (SQLite stays in mode `{mode}`)").into()));
    }
    let synchronous = match durability {
        Durability::Process => "normal",
        Durability::Power => "full",
    };
    Ok(db.pragma_update(None, "synchronous", synchronous)?)
}

fn known_version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Brings the schema up to date unless it is newer than what is known here. Returns the version found.
fn migrate(db: &mut Connection) -> Result<i64, StoreError> {
    let found = version(db)?;
    for (migration, version) in MIGRATIONS.iter().zip(1..).skip(usize::try_from(found).unwrap_or(0)) {
        let step = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        step.execute_batch(
            "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, at_us INTEGER NOT NULL) STRICT",
        )?;
        step.execute_batch(migration)?;
        step.execute(
            "INSERT INTO migrations (version, at_us) VALUES (?1, ?2)",
            params![version, Timestamp::now().as_microsecond()],
        )?;
        step.pragma_update(None, "application_id", APPLICATION_ID)?;
        step.pragma_update(None, "user_version", version)?;
        step.commit()?;
    }
    Ok(found)
}

/// The schema's version; 0 for an empty file; an error for a file that is not ours.
fn version(db: &Connection) -> Result<i64, StoreError> {
    let number = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let tables: i64 = db.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (number("application_id")?, tables) {
        (APPLICATION_ID, _) => Ok(number("user_version")?),
        (_, 0) => Ok(0),
        _ => Err(StoreError("it is a SQLite file of something else".into())),
    }
}

impl Store for Sqlite {
    fn tail(&mut self) -> Result<Tail, StoreError> {
        let tail =
            self.db.query_row("SELECT seq, hash, oldest_open FROM ledger ORDER BY seq DESC LIMIT 1", [], |row| {
                Ok(Tail { seq: row.get(0)?, hash: row.get(1)?, oldest_open: row.get(2)? })
            });
        Ok(tail.optional()?.unwrap_or_default())
    }

    fn append(&mut self, rows: &[Row]) -> Result<(), StoreError> {
        self.run("BEGIN IMMEDIATE")?;
        let written = self.insert(rows).and_then(|()| self.run("COMMIT"));
        // Some errors end the transaction by themselves.
        if written.is_err() && !self.db.is_autocommit() {
            self.run("ROLLBACK")?;
        }
        Ok(written?)
    }

    fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
        let sql = format!(
            "SELECT {} FROM ledger AS l
             WHERE seq >= ?1 AND (kind = 'extension' OR kind = 'intent'
                AND NOT EXISTS (SELECT 1 FROM ledger AS e WHERE e.intent = l.seq AND e.outcome IS NOT NULL))
             ORDER BY seq",
            COLUMNS.join(", ")
        );
        let mut query = self.db.prepare(&sql)?;
        let mut found = query.query([seq])?;
        let mut open = BTreeMap::new();
        while let Some(row) = found.next()? {
            let row =
                read(row).map_err(|(seq, column)| StoreError(format!("row {seq} is bad in column {column}").into()))?;
            match row.intent {
                None => _ = open.insert(row.seq, row),
                Some(intent) => _ = open.get_mut(&intent).map(|held| *held = row),
            }
        }
        Ok(open.into_values().collect())
    }

    fn spent(&mut self, since: &[i64; 6]) -> Result<Vec<(Arc<str>, Sums)>, StoreError> {
        // SQLite's sums are 64 bits wide: the halves of the amounts are added up apart.
        let sum = |window| {
            format!(
                "COALESCE(SUM(cost_nano >> 32) FILTER (WHERE admitted_us >= ?{window}), 0),
                 COALESCE(SUM(cost_nano & 4294967295) FILTER (WHERE admitted_us >= ?{window}), 0)"
            )
        };
        let sums: Vec<String> = (1..=since.len()).map(sum).collect();
        let sql = format!("SELECT agent, {} FROM ledger WHERE outcome IS NOT NULL GROUP BY agent", sums.join(", "));
        let mut query = self.db.prepare(&sql)?;
        let mut found = query.query(*since)?;
        let mut agents = Vec::new();
        while let Some(row) = found.next()? {
            let mut sums = Sums::default();
            for (window, sum) in sums.iter_mut().enumerate() {
                *sum = whole(row, 1 + 2 * window)?;
            }
            agents.push((row.get::<_, String>(0)?.into(), sums));
        }
        Ok(agents)
    }
}

/// A sum from its halves in this column and the next.
fn whole(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<i128> {
    Ok((i128::from(row.get::<_, i64>(column)?) << 32) + i128::from(row.get::<_, i64>(column + 1)?))
}

/// A ledger opened for reading, while a gateway may be writing it.
pub(crate) struct Reader(Connection);

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.is_file() {
            return Err(StoreError("there is no such file".into()));
        }
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        db.busy_timeout(BUSY)?;
        match version(&db)? {
            0 => Err(StoreError("it is empty".into())),
            found if found > known_version() => {
                let known = known_version();
                Err(StoreError(format!("it has schema version {found}, known here are versions up to {known}").into()))
            }
            _ => Ok(Self(db)),
        }
    }

    /// Visits every row in order, as they all were at one instant. A row that cannot be read is given as its number and the bad column.
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

    /// Sums of closed attempts, ordered by agent, day and backend.
    pub(crate) fn spend(&self, filter: &SpendFilter) -> Result<Vec<SpendRow>, StoreError> {
        let sums = [
            "input_tokens",
            "cached_input_tokens",
            "cache_write_tokens",
            "output_tokens",
            "reasoning_tokens",
            "cost_nano",
            "overrun_nano",
        ]
        .map(|column| format!("SUM({column} >> 32), SUM({column} & 4294967295)"))
        .join(", ");
        let mut query = self.0.prepare(&format!(
            "SELECT agent, CASE WHEN ?1 THEN admitted_us / 86400000000 END AS day, CASE WHEN ?2 THEN backend END AS target,
                    COUNT(*), SUM(kind = 'unknown'), {sums}
             FROM ledger WHERE outcome IS NOT NULL AND admitted_us >= ?3 AND admitted_us < ?4 AND agent = COALESCE(?5, agent)
             GROUP BY agent, day, target ORDER BY agent, day, target"
        ))?;
        let since = filter.since.map_or(i64::MIN, Timestamp::as_microsecond);
        let until = filter.until.map_or(i64::MAX, Timestamp::as_microsecond);
        let mut found = query.query(params![filter.by_day, filter.by_backend, since, until, filter.agent])?;
        let mut rows = Vec::new();
        while let Some(row) = found.next()? {
            rows.push(spend_row(row)?);
        }
        Ok(rows)
    }
}

fn spend_row(row: &rusqlite::Row<'_>) -> Result<SpendRow, StoreError> {
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
        midnight.map(|midnight| TimeZone::UTC.to_datetime(midnight).date()).ok()
    };
    Ok(SpendRow {
        agent: row.get(0)?,
        day: row.get::<_, Option<i64>>(1)?.and_then(date),
        backend: row.get(2)?,
        attempts: row.get(3)?,
        unknown: row.get(4)?,
        input: tokens(5)?,
        cached_input: tokens(7)?,
        cache_write: tokens(9)?,
        output: tokens(11)?,
        reasoning: tokens(13)?,
        cost: usd(15)?,
        overrun: usd(17)?,
    })
}

/// Reads a row selected as [`COLUMNS`]; an error names the row and the column that no writer of ours can have written.
fn read(row: &rusqlite::Row<'_>) -> Result<Row, (i64, &'static str)> {
    let seq: i64 = row.get(0).unwrap_or(0);
    let bad = |column: usize| (seq, COLUMNS[column]);
    let int = |column: usize| row.get::<_, i64>(column).map_err(|_| bad(column));
    let text = |column: usize| row.get::<_, String>(column).map_err(|_| bad(column));
    let optional = |column: usize| row.get::<_, Option<i64>>(column).map_err(|_| bad(column));
    let count = |column: usize| int(column).and_then(|count| u64::try_from(count).map_err(|_| bad(column)));
    let rate = |column: usize| int(column).map(|rate| PicoUsd(rate.cast_unsigned()));
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
        },
        estimated: [0, 1].contains(&int(16)?).then_some(int(16)? == 1).ok_or(bad(16))?,
        leased: Usd(int(17)?),
        rates: Rates { input: rate(18)?, cached_input: rate(19)?, cache_write: rate(20)?, output: rate(21)? },
        catalog: text(22)?.into(),
        cost: Usd(int(23)?),
        overrun: Usd(int(24)?),
        outcome: row.get::<_, Option<String>>(25).map_err(|_| bad(25))?.map(Into::into),
        ttft_ms: optional(26)?,
        duration_ms: optional(27)?,
        oldest_open: int(28)?,
        prev_hash: row.get(29).map_err(|_| bad(29))?,
        hash: row.get(30).map_err(|_| bad(30))?,
    })
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self(error.to_string().into())
    }
}
