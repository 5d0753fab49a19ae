//! Rows in a SQLite file: the writer's side.

mod compact;
mod read;
mod sums;

pub(crate) use read::Reader;

use super::lock::Lock;
use super::mover::Mover;
use super::settled::Settled;
use super::{Kept, Open, StateChange, Store, StoreError, Tail};
use crate::OpenError;
use crate::ledger::row::{COLUMNS, Row, Value};
use jiff::Timestamp;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql, params};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tollkeeper_config::Durability;

/// Each brings the file from its number's version to the next.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_ledger.sql"),
    include_str!("migrations/0002_accounts.sql"),
    include_str!("migrations/0003_postings.sql"),
];

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

    fn keep(&self, state: &[StateChange]) -> rusqlite::Result<()> {
        for StateChange { kind, id, body, changed } in state {
            match body {
                Some(body) => {
                    let sql = "INSERT OR REPLACE INTO state (kind, id, body, changed_us) VALUES (?1, ?2, ?3, ?4)";
                    self.db.prepare_cached(sql)?.execute(params![kind, id, body, changed])?;
                }
                None => {
                    self.db
                        .prepare_cached("DELETE FROM state WHERE kind = ?1 AND id = ?2")?
                        .execute(params![kind, id])?;
                }
            }
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

    fn append(&mut self, rows: &[Row], state: &[StateChange]) -> Result<(), StoreError> {
        self.run("BEGIN IMMEDIATE")?;
        let written = self.insert(rows).and_then(|()| self.keep(state)).and_then(|()| self.run("COMMIT"));
        // Some errors end the transaction by themselves.
        if written.is_err() && !self.db.is_autocommit() {
            self.run("ROLLBACK")?;
        }
        self.mover.wake();
        Ok(written?)
    }

    fn state(&mut self, kind: &str) -> Result<Kept, StoreError> {
        let mut query = self.db.prepare("SELECT id, body FROM state WHERE kind = ?1 ORDER BY id")?;
        let pairs = query.query_map([kind], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(pairs.collect::<Result<_, _>>()?)
    }

    fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
        let sql = format!("SELECT {} FROM ledger WHERE seq >= ?1 ORDER BY seq", COLUMNS.join(", "));
        let mut query = self.db.prepare(&sql)?;
        let mut found = query.query([seq])?;
        let mut open = Open::default();
        while let Some(row) = found.next()? {
            let bad = |(seq, column)| StoreError(format!("row {seq} is bad in column {column}").into());
            open.see(read::read(row).map_err(bad)?);
        }
        Ok(open.rows())
    }

    fn settled(&mut self, now: i64) -> Result<Vec<Settled>, StoreError> {
        sums::settled(&self.db, now)
    }
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
mod compact_tests;
#[cfg(test)]
mod tests;
