//! Rows in a PostgreSQL database: the writer's side.
//!
//! A gateway writes its own chain over one connection, which holds a lock on its name. Every batch is one statement. When
//! an answer is lost, the batch is in doubt: the next connection first ends the one before, takes the lock, which proves
//! that the one before is gone with all that it did, and compares the end of the chain with what it may be.

mod compact;
mod link;
mod read;
mod rows;
mod sums;
mod tables;

pub(crate) use read::Reader;
pub(crate) use tables::Tables;

use super::settled::Settled;
use super::{Kept, Open, StateChange, Store, StoreError, Tail};
use crate::OpenError;
use crate::ledger::row::{Hash, Row};
use crate::place::{Database, Place};
use link::{Address, Backend, Driver, Fault, Link, PATIENT, within};
use sqlx::Row as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long nobody tries again after the database did not answer.
const RETRY: Duration = Duration::from_millis(250);

/// The end of a chain: number and hash of its last row.
type End = (i64, Hash);

/// One gateway's chain, written by this process alone.
pub(crate) struct Postgres {
    link: Option<Link>,
    driver: Driver,
    address: Address,
    gateway: Arc<str>,
    /// The link before, which may still be at work.
    before: Option<Backend>,
    /// Where the chain ends, as far as it was answered.
    end: End,
    /// A batch may be there or not: where the chain ends if it is; `Some(None)` for a batch without rows.
    doubt: Option<Option<End>>,
    /// Nobody tries until then, and why.
    closed: Option<(Instant, StoreError)>,
}

impl Postgres {
    /// Connects, brings the tables up to date, and takes the gateway's name.
    pub(crate) fn open(database: &Database) -> Result<Self, OpenError> {
        let place = || Place::Database(database.clone());
        let failed = |StoreError(reason)| OpenError::Store { place: place(), reason: reason.to_string() };
        let Some(gateway) = database.gateway.as_deref() else {
            return Err(failed(StoreError("it needs the name of a gateway".into())));
        };
        tables::bring_up_to_date(database)?;
        let mut store = Self {
            link: None,
            driver: Driver::start().map_err(failed)?,
            address: Address::new(database).map_err(failed)?,
            gateway: gateway.into(),
            before: None,
            end: End::default(),
            doubt: None,
            closed: None,
        };
        let link = store.connect().map_err(|fault| match fault {
            Fault::Held(holder) => OpenError::Held { place: place(), holder },
            fault => failed(fault.into()),
        })?;
        store.link = Some(link);
        Ok(store)
    }

    /// A new link. The chain must end where this gateway knows, or where it ends with the batch that is in doubt.
    fn connect(&mut self) -> Result<Link, Fault> {
        let (address, gateway, before) = (&self.address, &*self.gateway, self.before.as_ref());
        let mut link = self.driver.wait(within(address.timeout, address.connect()))?;
        let end = self.driver.wait(within(address.timeout, async {
            link.must_be_writable()?;
            if let Some(before) = before {
                link.end(before).await?;
            }
            link.take(gateway, address.timeout / 4 * 3).await?;
            tables::must_be_known(&mut link).await?;
            let known = "INSERT INTO gateways (name) VALUES ($1) ON CONFLICT DO NOTHING";
            sqlx::query(known).bind(gateway).execute(&mut link.connection).await?;
            tail(&mut link, gateway).await.map(|tail| (tail.seq, tail.hash))
        }))?;
        let first = self.before.is_none();
        let as_in_doubt = self.doubt.flatten() == Some(end);
        if !first && end != self.end && !as_in_doubt {
            return Err(Fault::Store(foreign(end, self.end)));
        }
        if first {
            self.end = end;
        }
        if !as_in_doubt {
            self.doubt = None;
        }
        self.before = Some(link.backend.clone());
        Ok(link)
    }

    /// Takes the link out of its place, or makes one; that is not tried again at once when it failed.
    fn linked(&mut self) -> Result<Link, StoreError> {
        if let Some(link) = self.link.take() {
            return Ok(link);
        }
        if let Some((_, why)) = self.closed.as_ref().filter(|(until, _)| Instant::now() < *until) {
            return Err(why.clone());
        }
        let connected = self.connect().map_err(StoreError::from);
        self.closed = connected.as_ref().err().map(|why| (Instant::now() + RETRY, why.clone()));
        connected
    }

    /// Keeps the link for the next question, unless this one failed.
    fn heard<T>(&mut self, link: Link, answer: Result<T, Fault>) -> Result<T, StoreError> {
        match answer {
            Ok(answer) => {
                self.link = Some(link);
                Ok(answer)
            }
            Err(fault) => {
                let why = StoreError::from(fault);
                self.closed = Some((Instant::now() + RETRY, why.clone()));
                Err(why)
            }
        }
    }
}

fn foreign((found, _): End, (known, _): End) -> StoreError {
    let text = format!(
        "its chain does not end with the row that this gateway wrote last (it ends with row {found}, that was row {known}): \
         somebody else has written it, or the database has lost rows; restart this gateway to go on from there"
    );
    StoreError(text.into())
}

async fn tail(link: &mut Link, gateway: &str) -> Result<Tail, Fault> {
    let sql = "SELECT seq, hash, oldest_open FROM ledger WHERE gateway = $1 ORDER BY seq DESC LIMIT 1";
    let Some(row) = sqlx::query(sql).bind(gateway).fetch_optional(&mut link.connection).await? else {
        return Ok(Tail::default());
    };
    let hash: &[u8] = row.try_get(1)?;
    let seq = row.try_get(0)?;
    let hash = hash.try_into().map_err(|_| Fault::Store(StoreError::bad((seq, "hash"))))?;
    Ok(Tail { seq, hash, oldest_open: row.try_get(2)? })
}

impl Store for Postgres {
    fn tail(&mut self) -> Result<Tail, StoreError> {
        let mut link = self.linked()?;
        let answer = self.driver.wait(within(self.address.timeout, tail(&mut link, &self.gateway)));
        self.heard(link, answer)
    }

    fn append(&mut self, rows: &[Row], state: &[StateChange]) -> Result<(), StoreError> {
        let mut link = self.linked()?;
        let end = rows.last().map(|row| (row.seq, row.hash));
        if let Some(found) = self.doubt.flatten() {
            self.link = Some(link);
            if end != Some(found) {
                return Err(StoreError("another batch than the one that was in doubt was given".into()));
            }
            (self.end, self.doubt) = (found, None);
            return Ok(());
        }
        let write = rows::append(&mut link, &self.gateway, rows, state);
        let answer = self.driver.wait(within(self.address.timeout, write));
        match &answer {
            Ok(()) => self.end = end.unwrap_or(self.end),
            Err(Fault::Lost(_)) => self.doubt = Some(end),
            Err(_) => {}
        }
        self.heard(link, answer)
    }

    fn in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    fn state(&mut self, kind: &str) -> Result<Kept, StoreError> {
        let mut link = self.linked()?;
        let answer = self.driver.wait(within(PATIENT, rows::state(&mut link, &self.gateway, kind)));
        self.heard(link, answer)
    }

    fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
        let (mut open, mut next) = (Open::default(), seq);
        loop {
            let mut link = self.linked()?;
            let answer = self.driver.wait(within(PATIENT, rows::page(&mut link, &self.gateway, next)));
            let page = self.heard(link, answer)?;
            let Some(last) = page.last() else { return Ok(open.rows()) };
            next = rows::number(last)? + 1;
            for row in &page {
                open.see(rows::read(row).map_err(StoreError::bad)?);
            }
        }
    }

    fn settled(&mut self, now: i64) -> Result<Vec<Settled>, StoreError> {
        let mut link = self.linked()?;
        let answer = self.driver.wait(within(PATIENT, sums::settled(&mut link, &self.gateway, now)));
        self.heard(link, answer)
    }
}

#[cfg(test)]
mod tests;
