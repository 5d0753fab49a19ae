//! Rows in a SQLite file: the writer's side.

mod compact;
mod read;
mod sums;
mod tables;

pub(crate) use read::Reader;
pub(crate) use tables::Tables;

use super::lock::Lock;
use super::mover::Mover;
use super::schema::{Tables as _, raise};
use super::settled::Settled;
use super::{Kept, Open, StateChange, Store, StoreError, Tail};
use crate::OpenError;
use crate::ledger::row::{COLUMNS, Row, Value};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql, params};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;
use tollkeeper_config::Durability;

/// How long to wait for another process's lock on the file. Readers do not lock; somebody with a database shell may.
const BUSY: Duration = Duration::from_secs(2);

/// Pages of the write-ahead log (16 MiB) at which it begins anew: that takes a moment in which everything is moved, which
/// the writer's thread makes by moving it too.
const MANY_LOG_PAGES: i64 = 4096;

/// Pages at which any commit moves the log into the database: the bound of its size when nobody has done it before.
const MOST_LOG_PAGES: i64 = 8192;

/// The ledger's file, opened for writing by this process alone. What it holds is dropped in order: the lock last.
pub(crate) struct Sqlite {
    mover: Mover,
    db: Connection,
    insert: String,
    /// Whether a commit waits for no disk.
    is_quick: bool,
    /// Pages of the log when they were last counted.
    log_pages: Arc<AtomicI64>,
    _lock: Lock,
}

impl Sqlite {
    /// Opens or makes the file and its folder, locks it, and brings its schema up to date.
    pub(crate) fn open(path: &Path, durability: Durability) -> Result<Self, OpenError> {
        let failed = |StoreError(reason)| OpenError::Store { place: path.into(), reason: reason.to_string() };
        let mut tables = Tables::open(path)?;
        let (found, known) = (tables.version().map_err(failed)?, tables.known());
        if found > known {
            return Err(OpenError::Newer { place: path.into(), found, known });
        }
        set_up(&tables.db, durability).and_then(|()| raise(&mut tables, found, known)).map_err(failed)?;
        let Tables { db, real, lock } = tables;
        let second = connect(&real, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
        let log_pages = Arc::new(AtomicI64::new(0));
        let counted = log_pages.clone();
        let move_log = move || move_log(&second).map(|pages| counted.store(pages, SeqCst));
        let mover = Mover::start(move_log).map_err(failed)?;
        let places: Vec<String> = (1..=COLUMNS.len()).map(|place| format!("?{place}")).collect();
        let insert = format!("INSERT INTO ledger ({}) VALUES ({})", COLUMNS.join(", "), places.join(", "));
        let is_quick = durability == Durability::Process;
        Ok(Self { mover, db, insert, is_quick, log_pages, _lock: lock })
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

/// Moves what it can without waiting for others; returns the pages that the log has.
fn move_log(db: &Connection) -> Result<i64, StoreError> {
    Ok(db.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |row| row.get(1))?)
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

    fn may_be_quick(&self) -> bool {
        self.is_quick
    }

    fn is_quick(&self) -> bool {
        self.is_quick && self.log_pages.load(SeqCst) < MANY_LOG_PAGES
    }

    fn upkeep(&mut self) {
        if self.is_quick && self.log_pages.load(SeqCst) >= MANY_LOG_PAGES {
            // Nobody writes meanwhile: so nothing is left behind, and the next row begins the log anew. Failing that, the
            // next commit after many more does it, or fails and says why.
            _ = move_log(&self.db);
            self.log_pages.store(0, SeqCst);
        }
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
            open.see(read::read(row).map_err(StoreError::bad)?);
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
pub(super) mod tests;
