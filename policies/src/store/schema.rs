//! Brings a store's tables from one version to another: numbered steps up, and down again.

use super::StoreError;
use crate::OpenError;
use crate::place::Place;
use crate::store::postgres::Tables as DatabaseTables;
use crate::store::sqlite::Tables as FileTables;

/// One step, between a version and the one before it.
pub(super) struct Migration {
    pub(super) up: &'static str,
    pub(super) down: &'static str,
}

/// The steps of these names, in the folder `migrations` beside the file.
macro_rules! migrations {
    ($($name:literal),* $(,)?) => {
        &[$($crate::store::schema::Migration {
            up: include_str!(concat!("migrations/", $name, ".up.sql")),
            down: include_str!(concat!("migrations/", $name, ".down.sql")),
        }),*]
    };
}
pub(super) use migrations;

/// Tables that nobody else uses meanwhile.
pub(super) trait Tables {
    /// The newest version known here.
    fn known(&self) -> i64;

    /// The version that they have; 0 when there are none.
    fn version(&mut self) -> Result<i64, StoreError>;

    /// What would be lost on the way down to this version.
    fn losses(&mut self, to: i64) -> Result<Losses, StoreError>;

    /// From this version to the next, in one transaction.
    fn up(&mut self, from: i64) -> Result<(), StoreError>;

    /// From this version to the one before, in one transaction.
    fn down(&mut self, from: i64) -> Result<(), StoreError>;
}

/// What an older version cannot hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Rows of the ledger.
    pub rows: u64,
    /// Agents, keys, budgets, runs and pauses that were made while a gateway ran.
    pub kept: u64,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// The version before.
    pub from: i64,
    /// The version now.
    pub to: i64,
    /// What went.
    pub lost: Losses,
}

/// Why a ledger was not migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// It could not be opened; a gateway may be using it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is no such version.
    #[error("there is no version {to}: known here are 0 (nothing) to {known}")]
    Unknown {
        /// What was asked for.
        to: i64,
        /// The newest.
        known: i64,
    },
    /// Something would be lost.
    #[error(
        "version {to} cannot hold {} rows of the ledger and {} agents, keys, budgets, runs and pauses; export them and allow their loss (--discard)",
        .losses.rows, .losses.kept
    )]
    Loses {
        /// The version that was asked for.
        to: i64,
        /// What.
        losses: Losses,
    },
    /// A step failed; those before it are done.
    #[error("cannot migrate the ledger {place}: {reason}")]
    Store {
        /// Where.
        place: Place,
        /// What went wrong.
        reason: String,
    },
}

/// Brings the tables of a file or a database to a version; without one to the newest. Refused while a gateway uses them,
/// and when something would be lost that may not be.
///
/// # Errors
/// See [`MigrateError`].
pub fn migrate(place: impl Into<Place>, to: Option<i64>, discard: bool) -> Result<Migrated, MigrateError> {
    let place = place.into();
    match &place {
        Place::File(path) => walk(&mut FileTables::open(path)?, &place, to, discard),
        Place::Database(database) => walk(&mut DatabaseTables::open(database)?, &place, to, discard),
    }
}

fn walk(tables: &mut dyn Tables, place: &Place, to: Option<i64>, discard: bool) -> Result<Migrated, MigrateError> {
    let failed = |StoreError(reason)| MigrateError::Store { place: place.clone(), reason: reason.to_string() };
    let (from, known) = (tables.version().map_err(failed)?, tables.known());
    let to = to.unwrap_or(known);
    if from > known {
        return Err(OpenError::Newer { place: place.clone(), found: from, known }.into());
    }
    if !(0..=known).contains(&to) {
        return Err(MigrateError::Unknown { to, known });
    }
    let lost = if to < from { tables.losses(to).map_err(failed)? } else { Losses::default() };
    if lost != Losses::default() && !discard {
        return Err(MigrateError::Loses { to, losses: lost });
    }
    raise(tables, from, to).map_err(failed)?;
    for version in (to + 1..=from).rev() {
        tables.down(version).map_err(failed)?;
    }
    Ok(Migrated { from, to, lost })
}

/// Goes up from one version to another, or nowhere.
pub(super) fn raise(tables: &mut dyn Tables, from: i64, to: i64) -> Result<(), StoreError> {
    (from..to).try_for_each(|version| tables.up(version))
}

/// The step from this version up.
pub(super) fn step(migrations: &'static [Migration], from: i64) -> Result<&'static Migration, StoreError> {
    let known = usize::try_from(from).ok().and_then(|from| migrations.get(from));
    known.ok_or_else(|| StoreError(format!("version {from} has no step up").into()))
}
