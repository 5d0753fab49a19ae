//! The tables, and their versions.

use super::link::{Address, Driver, Fault, Link, PATIENT, within};
use crate::OpenError;
use crate::place::{Database, Place};
use crate::store::StoreError;
use crate::store::schema::{self, Losses, Migration, Tables as _, migrations, step};
use jiff::Timestamp;
use sqlx::{Executor, Row};

/// Each lies between its number's version and the one before.
const MIGRATIONS: &[Migration] = migrations!["0001_ledger", "0002_postings"];

/// The tables, which no gateway uses meanwhile.
pub(crate) struct Tables {
    link: Link,
    driver: Driver,
}

impl Tables {
    /// Connects, and takes the tables for itself.
    pub(crate) fn open(database: &Database) -> Result<Self, OpenError> {
        let failed = |why| open_error(database, why);
        let mut tables = Self::connect(database)?;
        let longest = database.timeout;
        let taken = tables.driver.wait(within(longest * 2, tables.link.take_tables(longest / 4 * 3)));
        taken.map_err(failed)?;
        Ok(tables)
    }

    fn connect(database: &Database) -> Result<Self, OpenError> {
        let failed = |why| open_error(database, why);
        let driver = Driver::start().map_err(|why| failed(Fault::Store(why)))?;
        let address = Address::new(database).map_err(|why| failed(Fault::Store(why)))?;
        let link = driver.wait(within(address.timeout, address.connect())).map_err(failed)?;
        link.must_be_writable().map_err(failed)?;
        Ok(Self { link, driver })
    }

    /// Does it in one transaction, and notes the version before or after.
    fn change(&mut self, sql: &'static str, note: &'static str, version: i64) -> Result<(), StoreError> {
        let link = &mut self.link;
        let now = Timestamp::now().as_microsecond();
        let changed = async {
            sqlx::query("BEGIN").execute(&mut link.connection).await?;
            let table =
                "CREATE TABLE IF NOT EXISTS ledger_migrations (version BIGINT PRIMARY KEY, at_us BIGINT NOT NULL)";
            sqlx::query("SET LOCAL client_min_messages = warning").execute(&mut link.connection).await?;
            sqlx::query(table).execute(&mut link.connection).await?;
            sqlx::query(note).persistent(false).bind(version).bind(now).execute(&mut link.connection).await?;
            link.connection.execute(sql).await?;
            sqlx::query("COMMIT").execute(&mut link.connection).await?;
            Ok(())
        };
        Ok(self.driver.wait(within(PATIENT, changed))?)
    }
}

/// Brings the tables up to date, unless they are; that needs them for itself.
pub(super) fn bring_up_to_date(database: &Database) -> Result<(), OpenError> {
    let failed =
        |StoreError(reason)| OpenError::Store { place: Place::Database(database.clone()), reason: reason.to_string() };
    let is_known = |found| match known_version() {
        known if found > known => Err(OpenError::Newer { place: Place::Database(database.clone()), found, known }),
        known => Ok(found == known),
    };
    if is_known(Tables::connect(database)?.version().map_err(failed)?)? {
        return Ok(());
    }
    let mut tables = match Tables::open(database) {
        // Another gateway of the fleet may have been faster.
        Err(OpenError::Held { .. }) if is_known(Tables::connect(database)?.version().map_err(failed)?)? => {
            return Ok(());
        }
        tables => tables?,
    };
    let found = tables.version().map_err(failed)?;
    is_known(found)?;
    schema::raise(&mut tables, found, known_version()).map_err(failed)
}

fn open_error(database: &Database, why: Fault) -> OpenError {
    let place = Place::Database(database.clone());
    match why {
        Fault::Held(holder) => OpenError::Held { place, holder },
        why => OpenError::Store { place, reason: StoreError::from(why).to_string() },
    }
}

pub(super) fn known_version() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// The version of the tables; 0 when there are none.
pub(super) async fn version(link: &mut Link) -> Result<i64, Fault> {
    let sql = "SELECT to_regclass('ledger_migrations') IS NOT NULL";
    let there: bool = sqlx::query(sql).fetch_one(&mut link.connection).await?.try_get(0)?;
    if !there {
        return Ok(0);
    }
    let sql = "SELECT COALESCE(MAX(version), 0) FROM ledger_migrations";
    Ok(sqlx::query(sql).fetch_one(&mut link.connection).await?.try_get(0)?)
}

/// Nobody changed the tables, which this connection has a share of.
pub(super) async fn must_be_known(link: &mut Link) -> Result<(), Fault> {
    let (found, known) = (version(link).await?, known_version());
    let changed = || StoreError(format!("it has schema version {found} now, {known} is needed").into());
    if found == known { Ok(()) } else { Err(Fault::Store(changed())) }
}

impl schema::Tables for Tables {
    fn known(&self) -> i64 {
        known_version()
    }

    fn version(&mut self) -> Result<i64, StoreError> {
        Ok(self.driver.wait(within(PATIENT, version(&mut self.link)))?)
    }

    fn losses(&mut self, to: i64) -> Result<Losses, StoreError> {
        if to > 0 {
            return Ok(Losses::default());
        }
        let link = &mut self.link;
        let counted = async {
            let sql = "SELECT (SELECT COUNT(*) FROM ledger), (SELECT COUNT(*) FROM state)";
            let row = sqlx::query(sql).fetch_one(&mut link.connection).await?;
            let count = |column: usize| row.try_get::<i64, _>(column).map(i64::unsigned_abs);
            Ok(Losses { rows: count(0)?, kept: count(1)? })
        };
        Ok(self.driver.wait(within(PATIENT, counted))?)
    }

    fn up(&mut self, from: i64) -> Result<(), StoreError> {
        let note = "INSERT INTO ledger_migrations (version, at_us) VALUES ($1, $2)";
        self.change(step(MIGRATIONS, from)?.up, note, from + 1)
    }

    fn down(&mut self, from: i64) -> Result<(), StoreError> {
        let note = "DELETE FROM ledger_migrations WHERE version = $1 AND at_us <= $2";
        self.change(step(MIGRATIONS, from - 1)?.down, note, from)
    }
}
