//! Replaces old rows of a chain by sums, in one transaction.

use super::link::{Fault, Link, PATIENT, within};
use super::{Postgres, rows, sums, tail};
use crate::ledger::compaction::{Replaced, Scan, gaps};
use crate::ledger::writer::seal;
use crate::store::StoreError;

impl Postgres {
    /// Whether an attempt ended before a time, and is not a sum already.
    pub(crate) fn can_compact(&mut self, before: i64) -> Result<bool, StoreError> {
        let mut link = self.linked()?;
        let answer = self.driver.wait(within(PATIENT, scan(&mut link, &self.gateway, before)));
        self.heard(link, answer).map(|scan| scan.is_worth_it())
    }

    /// Replaces the closed attempts before a time by their sums, or changes nothing. What counters are restored from
    /// must be the same before and after, or it fails. Nothing can be written afterwards: open the store anew.
    pub(crate) fn compact(&mut self, before: i64, now: i64) -> Result<Replaced, StoreError> {
        let mut link = self.linked()?;
        let answer = self.driver.wait(within(PATIENT, replace(&mut link, &self.gateway, before, now)));
        self.heard(link, answer)
    }
}

/// Looks through the rows before a time, in microseconds since 1970.
async fn scan(link: &mut Link, gateway: &str, before: i64) -> Result<Scan, Fault> {
    let (mut scan, mut next) = (Scan::default(), i64::MIN);
    loop {
        let page = rows::page(link, gateway, next).await?;
        let Some(last) = page.last() else { return Ok(scan) };
        next = rows::number(last).map_err(Fault::Store)?.saturating_add(1);
        for row in &page {
            let row = rows::read(row).map_err(|bad| Fault::Store(StoreError::bad(bad)))?;
            if !scan.see(&row, before) {
                return Ok(scan);
            }
        }
    }
}

/// What fails half way is undone with the connection.
async fn replace(link: &mut Link, gateway: &str, before: i64, now: i64) -> Result<Replaced, Fault> {
    sqlx::query("BEGIN").execute(&mut link.connection).await?;
    let scan = scan(link, gateway, before).await?;
    if !scan.is_worth_it() {
        sqlx::query("ROLLBACK").execute(&mut link.connection).await?;
        return Ok(Replaced::default());
    }
    let settled = sums::settled(link, gateway, now).await?;
    let mut summaries = scan.replacement(now, before);
    seal(tail(link, gateway).await?, &mut summaries, &mut Vec::new());
    rows::append(link, gateway, &summaries, &[]).await?;
    let through = sqlx::query("UPDATE gateways SET through = $2 WHERE name = $1").bind(gateway).bind(scan.through);
    through.execute(&mut link.connection).await?;
    for (first, last) in gaps(scan.through, &scan.kept().into_keys().collect()) {
        let delete = sqlx::query("DELETE FROM ledger WHERE gateway = $1 AND seq BETWEEN $2 AND $3");
        delete.bind(gateway).bind(first).bind(last).execute(&mut link.connection).await?;
    }
    if sums::settled(link, gateway, now).await? != settled {
        return Err(Fault::Store(StoreError("the sums after would not be those before: nothing was removed".into())));
    }
    sqlx::query("COMMIT").execute(&mut link.connection).await?;
    Ok(scan.replaced(summaries.len()))
}
