//! The tables of a SQLite ledger, and their versions.

use super::connect;
use crate::OpenError;
use crate::store::StoreError;
use crate::store::lock::Lock;
use crate::store::schema::{self, Losses, Migration, migrations, step};
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};
use std::path::{Path, PathBuf};

/// Each lies between its number's version and the one before.
const MIGRATIONS: &[Migration] = migrations!["0001_ledger", "0002_accounts", "0003_postings"];

/// "Toll": tells our files from other SQLite files.
const APPLICATION_ID: i64 = 0x546f_6c6c;

/// A file that this process has locked.
pub(crate) struct Tables {
    pub(super) db: Connection,
    /// Its path without links.
    pub(super) real: PathBuf,
    pub(super) lock: Lock,
}

impl Tables {
    /// Opens or makes the file and its folder, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |StoreError(reason)| OpenError::Store { place: path.into(), reason: reason.to_string() };
        let real = real_path(path).map_err(|cause| failed(StoreError(cause.to_string().into())))?;
        let lock = Lock::take(&real)?;
        let db = connect(&real, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
        Ok(Self { db, real, lock })
    }

    fn begin(&mut self) -> Result<Transaction<'_>, StoreError> {
        Ok(self.db.transaction_with_behavior(TransactionBehavior::Immediate)?)
    }
}

impl schema::Tables for Tables {
    fn known(&self) -> i64 {
        known_version()
    }

    fn version(&mut self) -> Result<i64, StoreError> {
        version(&self.db)
    }

    fn losses(&mut self, to: i64) -> Result<Losses, StoreError> {
        let from = self.version()?;
        let count = |sql: &str| -> Result<u64, StoreError> {
            let found: i64 = self.db.query_row(sql, [], |row| row.get(0))?;
            Ok(found.unsigned_abs())
        };
        if to > 1 || from < 1 {
            return Ok(Losses::default());
        }
        let kept = if from > 1 { count("SELECT COUNT(*) FROM state")? } else { 0 };
        let rows = match (from, to) {
            (_, 0) => count("SELECT COUNT(*) FROM ledger")?,
            (1, _) => 0,
            _ => count(NOT_OF_VERSION_1)?,
        };
        Ok(Losses { rows, kept })
    }

    fn up(&mut self, from: i64) -> Result<(), StoreError> {
        let migration = step(MIGRATIONS, from)?;
        let step = self.begin()?;
        step.execute_batch(
            "CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, at_us INTEGER NOT NULL) STRICT",
        )?;
        step.execute_batch(migration.up)?;
        step.execute(
            "INSERT INTO migrations (version, at_us) VALUES (?1, ?2)",
            params![from + 1, Timestamp::now().as_microsecond()],
        )?;
        step.pragma_update(None, "application_id", APPLICATION_ID)?;
        step.pragma_update(None, "user_version", from + 1)?;
        Ok(step.commit()?)
    }

    fn down(&mut self, from: i64) -> Result<(), StoreError> {
        let migration = step(MIGRATIONS, from - 1)?;
        let step = self.begin()?;
        step.execute("DELETE FROM migrations WHERE version = ?1", [from])?;
        step.execute_batch(migration.down)?;
        step.pragma_update(None, "application_id", if from == 1 { 0 } else { APPLICATION_ID })?;
        step.pragma_update(None, "user_version", from - 1)?;
        Ok(step.commit()?)
    }
}

/// How many rows the way down to version 1 cuts off; see its step.
const NOT_OF_VERSION_1: &str = "
    SELECT COUNT(*) FROM ledger
    WHERE (SELECT through FROM compacted) > 0 OR seq >= (
        SELECT MIN(seq) FROM ledger
        WHERE kind = 'change' OR kind = 'summary' OR kind = 'checkpoint'
           OR COALESCE(team, run, task, note, tier) IS NOT NULL
           OR COALESCE(audio_input_tokens, audio_output_tokens, cache_write_1h_tokens) IS NOT NULL
           OR COALESCE(audio_input_pico, audio_output_pico, cache_write_1h_pico) IS NOT NULL)";

/// The file's path without links, so that it has one lock however it is named; its folder is made when it is not there.
fn real_path(path: &Path) -> std::io::Result<PathBuf> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    // SQLite takes an empty file for a new one.
    std::fs::File::options().create(true).append(true).open(path)?;
    path.canonicalize()
}

pub(super) fn known_version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// The schema's version; 0 for an empty file; an error for a file that is not ours.
pub(super) fn version(db: &Connection) -> Result<i64, StoreError> {
    let number = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let tables: i64 = db.query_row("SELECT COUNT(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (number("application_id")?, tables) {
        (APPLICATION_ID, _) => Ok(number("user_version")?),
        (_, 0) => Ok(0),
        _ => Err(StoreError("it is a SQLite file of something else".into())),
    }
}
