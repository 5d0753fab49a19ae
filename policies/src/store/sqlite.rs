//! Rows in a SQLite file: the writer's side, and a read-only side for reports.

use super::lock::Lock;
use super::mover::Mover;
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

/// Pages of the write-ahead log (32 MiB) at which the writer itself moves it into the database: the bound of its size.
/// Mostly little is left to move then.
const MOST_LOG_PAGES: i64 = 8192;

/// The ledger's file, opened for writing by this process alone. What it holds is dropped in order: the lock last.
pub(crate) struct Sqlite {
    mover: Mover,
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
        let connect = || connect(&real, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed);
        let (mut db, known) = (connect()?, known_version());
        match version(&db).map_err(failed)? {
            found if found > known => return Err(OpenError::Newer { path: path.to_owned(), found, known }),
            found => set_up(&db, durability).and_then(|()| migrate(&mut db, found)).map_err(failed)?,
        }
        let second = connect()?;
        let move_log = move || Ok(second.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?);
        let mover = Mover::start(move_log).map_err(failed)?;
        let places: Vec<String> = (1..=COLUMNS.len()).map(|place| format!("?{place}")).collect();
        let insert = format!("INSERT INTO ledger ({}) VALUES ({})", COLUMNS.join(", "), places.join(", "));
        Ok(Self { mover, db, insert, _lock: lock })
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

/// Without SQLite's own locking: a connection belongs to one thread at a time.
fn connect(path: &Path, access: OpenFlags) -> Result<Connection, StoreError> {
    let db = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(BUSY)?;
    Ok(db)
}

fn set_up(db: &Connection, durability: Durability) -> Result<(), StoreError> {
    let mode: String = db.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(StoreError(format!("no write-ahead log is possible there (SQLite stays in mode `{mode}`)").into()));
    }
    let synchronous = match durability {
        Durability::Process => "normal",
        Durability::Power => "full",
    };
    db.pragma_update(None, "synchronous", synchronous)?;
    Ok(db.pragma_update(None, "wal_autocheckpoint", MOST_LOG_PAGES)?)
}

fn known_version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Brings the schema from version `found` up to date.
fn migrate(db: &mut Connection, found: i64) -> Result<(), StoreError> {
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
    Ok(())
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
        self.mover.wake();
        Ok(written?)
    }

    fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
        let sql = format!("SELECT {} FROM ledger WHERE seq >= ?1 ORDER BY seq", COLUMNS.join(", "));
        let mut query = self.db.prepare(&sql)?;
        let mut found = query.query([seq])?;
        let mut open = BTreeMap::new();
        while let Some(row) = found.next()? {
            let row =
                read(row).map_err(|(seq, column)| StoreError(format!("row {seq} is bad in column {column}").into()))?;
            match row.intent {
                None => _ = open.insert(row.seq, row),
                Some(intent) if row.kind.closes() => _ = open.remove(&intent),
                Some(intent) => _ = open.insert(intent, row),
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
        let db = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        match version(&db)? {
            0 => Err(StoreError("it is empty".into())),
            found if found > known_version() => {
                let known = known_version();
                Err(StoreError(format!("it has schema version {found}, known here are versions up to {known}").into()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Payer;
    use crate::report::{VerifyError, verify};
    use crate::setup::{clock, growing, nano_per_token, price, scout, spend, stored, used};
    use crate::{Clock, Denied, Outcome, OutputBound, Policies, Spend};
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use tollkeeper_config::Window;

    /// A store on a disk of so many pages.
    struct Cramped {
        store: Sqlite,
        pages: Arc<AtomicU32>,
    }

    impl Store for Cramped {
        fn tail(&mut self) -> Result<Tail, StoreError> {
            self.store.tail()
        }

        fn append(&mut self, rows: &[Row]) -> Result<(), StoreError> {
            self.store.db.pragma_update(None, "max_page_count", self.pages.load(SeqCst))?;
            self.store.append(rows)
        }

        fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
            self.store.open_attempts(seq)
        }

        fn spent(&mut self, since: &[i64; 6]) -> Result<Vec<(Arc<str>, Sums)>, StoreError> {
            self.store.spent(since)
        }
    }

    #[tokio::test]
    async fn a_full_disk_refuses_and_forgets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let config = stored(folder.path(), &[(Window::Total, 1_000_000)]);
        let pages = Arc::new(AtomicU32::new(30));
        let store = Sqlite::open(&config.store.path, Durability::Process).unwrap();
        let store = Box::new(Cramped { store, pages: pages.clone() });
        let (policies, _) = Policies::start(&config, Clock::system(), store, true).unwrap();
        let agent = scout(&policies);
        let mut leases = Vec::new();
        let denied = loop {
            match policies.admit(&agent, spend(nano_per_token(), 10, OutputBound::Whole(10))).await {
                Ok(lease) => leases.push(lease),
                Err(denied) => break denied,
            }
        };
        assert!(matches!(&denied, Denied::StoreDown { reason } if reason.contains("full")), "{denied}");
        let admitted = leases.len();
        assert!(admitted > 10 && !policies.store_up());
        leases.into_iter().for_each(|lease| _ = lease.settle(used(10, 1)));
        assert!(!policies.flush().await);
        let spent = policies.budgets(&agent)[0];
        assert_eq!((spent.spent.0, spent.reserved.0), (i64::try_from(admitted).unwrap() * 11, 0));
        pages.store(10_000, SeqCst);
        policies
            .admit(&agent, spend(nano_per_token(), 10, OutputBound::Whole(10)))
            .await
            .unwrap()
            .release(Outcome::Done);
        assert!(policies.flush().await && policies.store_up());
        let report = verify(&config.store.path).unwrap();
        assert_eq!((report.settlements, report.open), (u64::try_from(admitted).unwrap(), 0));
        assert_eq!(report.cost, spent.spent);
    }

    /// A ledger with every kind of row: 1 intent, 2 intent, 3 extension of 2, 4 settlement of 1, 5 settlement of 2 with
    /// an overrun, 6 intent, 7 release of 6, 8 intent that stays open, 9 unknown of 8.
    async fn sample(folder: &Path) -> PathBuf {
        let config = stored(folder, &[]);
        let clock = clock("2026-03-04T05:06:07Z").0;
        let (policies, _) = Policies::open(&config, clock.clone()).unwrap();
        let agent = scout(&policies);
        let admit = |attempt, bound| policies.admit(&agent, Spend { attempt, ..spend(price(1_500, 700), 10, bound) });
        let first = admit(1, OutputBound::Whole(10)).await.unwrap();
        let mut second = admit(2, growing(4)).await.unwrap();
        second.cover(5).unwrap();
        second.secured().await.unwrap();
        first.settle(used(10, 3));
        second.settle(used(10, 30));
        admit(3, OutputBound::Whole(10)).await.unwrap().release(Outcome::Drained);
        let forgotten = admit(4, OutputBound::Whole(10)).await.unwrap();
        policies.close().await;
        drop((forgotten, policies));
        drop(Policies::open(&config, clock).unwrap());
        config.store.path
    }

    #[tokio::test]
    async fn verify_names_the_first_bad_row_and_column() {
        let folder = tempfile::tempdir().unwrap();
        let path = sample(folder.path()).await;
        let sound = verify(&path).unwrap();
        assert_eq!((sound.rows, sound.intents, sound.extensions), (9, 4, 1));
        assert_eq!((sound.settlements, sound.releases, sound.unknown, sound.open), (2, 1, 1, 0));
        // Costs in nano-dollars: 15 + 2.1 and 15 + 21, of which 15.4 (rounded up) were not leased, and 15 + 7 for the
        // forgotten one.
        assert_eq!((sound.cost, sound.overrun), (Usd(18 + 36 + 22), Usd(36 - 21)));
        let rewrite = |cost: i64| {
            format!(
                "UPDATE ledger SET cost_nano = {cost}, input_tokens = {cost}, output_tokens = 0, input_pico = 1000 WHERE seq = 4"
            )
        };
        let cases: &[(&str, i64, &str)] = &[
            ("UPDATE ledger SET cost_nano = 17 WHERE seq = 4", 4, "cost_nano"),
            ("UPDATE ledger SET output_tokens = 2 WHERE seq = 4", 4, "cost_nano"),
            ("UPDATE ledger SET output_pico = 500 WHERE seq = 4", 4, "cost_nano"),
            ("UPDATE ledger SET overrun_nano = 0 WHERE seq = 5", 5, "overrun_nano"),
            ("UPDATE ledger SET leased_nano = 36, overrun_nano = 0 WHERE seq = 5", 5, "leased_nano"),
            ("UPDATE ledger SET leased_nano = 1 WHERE seq = 3", 3, "leased_nano"),
            ("UPDATE ledger SET agent = 'digger' WHERE seq = 5", 5, "agent"),
            ("UPDATE ledger SET agent = 'digger' WHERE seq = 1", 1, "hash"),
            ("UPDATE ledger SET agent = 'digger' WHERE seq IN (1, 4)", 1, "hash"),
            ("UPDATE ledger SET backend = 'other/small' WHERE seq = 7", 7, "hash"),
            ("UPDATE ledger SET outcome = 'done' WHERE seq = 7", 7, "hash"),
            ("UPDATE ledger SET cost_nano = 5 WHERE seq = 7", 7, "cost_nano"),
            ("UPDATE ledger SET cost_nano = 0 WHERE seq = 9", 9, "cost_nano"),
            ("UPDATE ledger SET ttft_ms = NULL WHERE seq = 4", 4, "hash"),
            ("UPDATE ledger SET estimated = 7 WHERE seq = 4", 4, "estimated"),
            ("UPDATE ledger SET kind = 'gift' WHERE seq = 4", 4, "kind"),
            ("UPDATE ledger SET input_tokens = -1 WHERE seq = 4", 4, "input_tokens"),
            ("UPDATE ledger SET admitted_us = 0 WHERE seq = 4", 4, "admitted_us"),
            ("UPDATE ledger SET request_id = 'x' WHERE seq = 4", 4, "request_id"),
            ("UPDATE ledger SET prev_hash = zeroblob(32) WHERE seq = 4", 4, "prev_hash"),
            ("UPDATE ledger SET hash = zeroblob(32) WHERE seq = 4", 4, "hash"),
            ("UPDATE ledger SET hash = x'00' WHERE seq = 4", 4, "hash"),
            ("DELETE FROM ledger WHERE seq = 4", 5, "seq"),
            ("DELETE FROM ledger WHERE seq = 1", 2, "seq"),
            ("UPDATE ledger SET intent = 2 WHERE seq = 4", 4, "attempt"),
            ("UPDATE ledger SET intent = 1, attempt = 1 WHERE seq = 5", 5, "intent"),
            ("UPDATE ledger SET intent = 99 WHERE seq = 4", 4, "intent"),
            (&rewrite(3), 4, "hash"),
        ];
        for (sql, seq, field) in cases {
            let copy = folder.path().join("copy.db");
            std::fs::copy(&path, &copy).unwrap();
            let db = Connection::open(&copy).unwrap();
            db.execute_batch("PRAGMA ignore_check_constraints = ON; DROP TRIGGER ledger_keeps_rows; DROP TRIGGER ledger_keeps_values")
                .unwrap();
            db.execute_batch(sql).unwrap();
            drop(db);
            let error = verify(&copy).unwrap_err();
            let VerifyError::Row { seq: bad, field: column, .. } = &error else { panic!("{sql}: {error}") };
            assert_eq!((bad, column), (seq, field), "{sql}: {error}");
        }
    }

    #[tokio::test]
    async fn the_table_refuses_changes() {
        let folder = tempfile::tempdir().unwrap();
        let db = Connection::open(sample(folder.path()).await).unwrap();
        for sql in ["UPDATE ledger SET cost_nano = 0", "DELETE FROM ledger", "DELETE FROM ledger WHERE seq = 9"] {
            assert!(db.execute(sql, []).unwrap_err().to_string().contains("append-only"), "{sql}");
        }
    }

    #[tokio::test]
    async fn files_of_a_newer_version_or_of_something_else_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = sample(folder.path()).await;
        let db = Connection::open(&path).unwrap();
        let migrations: i64 = db.query_row("SELECT MAX(version) FROM migrations", [], |row| row.get(0)).unwrap();
        assert_eq!(migrations, known_version());
        db.pragma_update(None, "user_version", 99).unwrap();
        drop(db);
        let error = Sqlite::open(&path, Durability::Process).err().unwrap();
        assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
        assert!(verify(&path).unwrap_err().to_string().contains("version 99"));

        let other = folder.path().join("other.db");
        Connection::open(&other).unwrap().execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
        let before = std::fs::read(&other).unwrap();
        let error = Sqlite::open(&other, Durability::Process).err().unwrap().to_string();
        assert_eq!(std::fs::read(&other).unwrap(), before, "it is left as it was");
        assert!(error.contains("other.db") && error.contains("something else"), "{error}");
    }

    #[tokio::test]
    async fn a_row_is_read_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut rows = Vec::new();
        let all = Reader::open(&sample(folder.path()).await).unwrap();
        all.rows(|row| {
            rows.push(row.unwrap());
            ControlFlow::Continue(())
        })
        .unwrap();
        let mut odd = rows[3].clone();
        odd.request_id = "zero \0 inside, \u{1f980} and '".into();
        odd.backend = backend("openrouter/openai/gpt/4");
        odd.rates.output = PicoUsd(u64::MAX);
        odd.usage.reasoning = i64::MAX.unsigned_abs();
        (odd.seq, odd.attempt, odd.intent, odd.kind, odd.outcome) = (1, u32::MAX, None, Kind::Intent, None);
        let path = folder.path().join("odd.db");
        Sqlite::open(&path, Durability::Power).unwrap().append(std::slice::from_ref(&odd)).unwrap();
        Reader::open(&path)
            .unwrap()
            .rows(|row| {
                assert_eq!(row.unwrap(), odd);
                ControlFlow::Continue(())
            })
            .unwrap();
    }

    #[test]
    fn a_failed_batch_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Sqlite::open(&folder.path().join("a.db"), Durability::Process).unwrap();
        let row = |seq| Row {
            seq,
            ..crate::ledger::attempt::Attempt::new(
                Payer::agent("scout").into(),
                spend(nano_per_token(), 1, growing(1)),
                0,
                1,
            )
            .intent_row(seq)
        };
        assert!(store.append(&[row(1), row(2), row(1)]).is_err());
        assert_eq!(store.tail().unwrap(), Tail::default());
        store.append(&[row(1), row(2)]).unwrap();
        assert_eq!(store.tail().unwrap().seq, 2);
    }
}
