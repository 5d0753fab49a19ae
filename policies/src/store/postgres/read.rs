//! The read-only side: rows and sums of all gateways or of one, while they may be writing.

use super::link::{Address, Driver, Fault, Link, PATIENT, within};
use super::tables::{known_version, version};
use super::{rows, sums};
use crate::ledger::read::Bad;
use crate::ledger::row::{COLUMNS, Row};
use crate::place::Database;
use crate::report::{SpendQuery, SpendSum};
use crate::store::settled::Settled;
use crate::store::{Chain, StoreError};
use sqlx::Row as _;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A connection that only reads.
pub(crate) struct Reader {
    link: Link,
    driver: Driver,
    /// Whose chain; `None` for all.
    gateway: Option<Arc<str>>,
}

impl Reader {
    pub(crate) fn open(database: &Database) -> Result<Self, StoreError> {
        let (driver, address) = (Driver::start()?, Address::new(database)?);
        let link = driver.wait(within(address.timeout, async {
            let mut link = address.connect().await?;
            sqlx::query("SET default_transaction_read_only = on").execute(&mut link.connection).await?;
            match (version(&mut link).await?, known_version()) {
                (0, _) => Err(Fault::Store(StoreError("it holds no ledger".into()))),
                (found, known) if found > known => Err(Fault::Store(StoreError(
                    format!("it has schema version {found}, known here are versions up to {known}").into(),
                ))),
                _ => Ok(link),
            }
        }))?;
        Ok(Self { link, driver, gateway: database.gateway.as_deref().map(Into::into) })
    }

    /// See [`crate::store::reader::Reader::hold_still`].
    pub(crate) fn hold_still(&mut self) -> Result<(), StoreError> {
        let begin = sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
        let held = async { Ok(begin.execute(&mut self.link.connection).await.map(drop)?) };
        Ok(self.driver.wait(within(PATIENT, held))?)
    }

    /// See [`crate::store::reader::Reader::chains`].
    pub(crate) fn chains(&mut self) -> Result<Vec<Chain>, StoreError> {
        let sql = "SELECT name FROM gateways WHERE name = COALESCE($1::text, name) ORDER BY name";
        let names = async {
            let found = sqlx::query(sql).bind(self.gateway.as_deref()).fetch_all(&mut self.link.connection).await?;
            found.iter().map(|row| Ok(Some(row.try_get::<&str, _>(0)?.into()))).collect::<Result<Vec<Chain>, Fault>>()
        };
        Ok(self.driver.wait(within(PATIENT, names))?)
    }

    /// See [`crate::store::reader::Reader::rows`].
    pub(crate) fn rows(
        &mut self,
        chain: &Chain,
        visit: &mut dyn FnMut(Result<Row, Bad>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let gateway = chain.as_deref().unwrap_or_default();
        let mut next = i64::MIN;
        loop {
            let page = self.driver.wait(within(PATIENT, rows::page(&mut self.link, gateway, next)))?;
            let Some(last) = page.last() else { return Ok(()) };
            next = rows::number(last)?.saturating_add(1);
            for row in &page {
                if visit(rows::read(row)).is_break() {
                    return Ok(());
                }
            }
        }
    }

    /// See [`crate::store::reader::Reader::checkpoint`].
    pub(crate) fn checkpoint(&mut self, chain: &Chain) -> Result<Option<Row>, StoreError> {
        let columns = COLUMNS.join(", ");
        let sql = format!(
            "SELECT {columns} FROM ledger WHERE gateway = $1 AND kind = 'checkpoint' ORDER BY seq DESC LIMIT 1"
        );
        let query = sqlx::query(&sql).bind(chain.as_deref());
        let found = async { Ok(query.fetch_optional(&mut self.link.connection).await?) };
        let row = self.driver.wait(within(PATIENT, found))?;
        row.map(|row| rows::read(&row).map_err(StoreError::bad)).transpose()
    }

    /// See [`crate::store::Store::settled`].
    pub(crate) fn settled(&mut self, chain: &Chain, now: i64) -> Result<Vec<Settled>, StoreError> {
        let gateway = chain.as_deref().unwrap_or_default();
        Ok(self.driver.wait(within(PATIENT, sums::settled(&mut self.link, gateway, now)))?)
    }

    /// See [`crate::store::reader::Reader::spend`].
    pub(crate) fn spend(&mut self, query: &SpendQuery) -> Result<Vec<SpendSum>, StoreError> {
        let gateway = self.gateway.clone();
        Ok(self.driver.wait(within(PATIENT, sums::spend(&mut self.link, gateway.as_deref(), query)))?)
    }
}
