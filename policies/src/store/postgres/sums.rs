//! Sums over chains. The database's sums of 64 bits are as wide as they need to be; they are read as text.

use super::link::{Fault, Link};
use super::rows::unwritten;
use crate::ledger::row::backend;
use crate::report::{SpendGroup, SpendQuery, SpendSum};
use crate::store::StoreError;
use crate::store::settled::{MINUTE, QUARTER, Settled, edges};
use crate::store::sums::{date, tokens, usd};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::sync::Arc;

/// See [`crate::store::Store::settled`].
pub(super) async fn settled(link: &mut Link, gateway: &str, now: i64) -> Result<Vec<Settled>, Fault> {
    let (minutes, quarters) = edges(now);
    let sql = format!(
        "SELECT agent, team, alias, backend, run,
                CASE WHEN admitted_us >= $2 THEN admitted_us - (admitted_us % {MINUTE} + {MINUTE}) % {MINUTE}
                     WHEN admitted_us >= $3 THEN admitted_us - (admitted_us % {QUARTER} + {QUARTER}) % {QUARTER} END AS start,
                SUM(COALESCE(attempts - releases, (kind <> 'release')::int))::bigint,
                SUM(cost_nano)::text, SUM(input_tokens)::text, SUM(output_tokens)::text
         FROM ledger WHERE gateway = $1 AND outcome IS NOT NULL
         GROUP BY 1, 2, 3, 4, 5, 6
         ORDER BY 1, 2 NULLS FIRST, 3, 4, 5 NULLS FIRST, 6 NULLS FIRST"
    );
    let query = sqlx::query(&sql).bind(gateway).bind(minutes).bind(quarters);
    let mut sums = Vec::new();
    for row in query.fetch_all(&mut link.connection).await? {
        sums.push(Settled {
            agent: text(&row, 0)?,
            team: maybe(&row, 1)?,
            alias: text(&row, 2)?,
            backend: backend(&text(&row, 3)?),
            run: maybe(&row, 4)?,
            start: row.try_get::<Option<i64>, _>(5)?.unwrap_or(i64::MIN),
            requests: row.try_get(6)?,
            nano: sum(&row, 7)?,
            tokens: sum(&row, 8)? + sum(&row, 9)?,
        });
    }
    Ok(sums)
}

/// The figures of [`SpendSum`], in its order.
const FIGURES: [&str; 7] = [
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_nano",
    "overrun_nano",
];

/// Sums of closed attempts by groups, ordered by them; of one gateway or of all.
pub(super) async fn spend(link: &mut Link, gateway: Option<&str>, query: &SpendQuery) -> Result<Vec<SpendSum>, Fault> {
    let columns: Vec<&str> = query.groups.iter().map(|group| column(*group)).collect();
    let places: Vec<String> = (1..=columns.len()).map(|place| place.to_string()).collect();
    let order: Vec<String> = places.iter().map(|place| format!("{place} NULLS FIRST")).collect();
    let sql = format!(
        "SELECT {}, SUM(COALESCE(attempts, 1))::text, SUM(COALESCE(unknowns, (kind = 'unknown')::int))::text, {}
         FROM ledger
         WHERE outcome IS NOT NULL AND admitted_us >= $1 AND admitted_us < $2
               AND agent = COALESCE($3::text, agent) AND gateway = COALESCE($4::text, gateway)
         GROUP BY {} ORDER BY {}",
        columns.join(", "),
        FIGURES.map(|figure| format!("SUM({figure})::text")).join(", "),
        places.join(", "),
        order.join(", "),
    );
    let since = query.since.map_or(i64::MIN, Timestamp::as_microsecond);
    let until = query.until.map_or(i64::MAX, Timestamp::as_microsecond);
    let asked = sqlx::query(&sql).bind(since).bind(until).bind(&query.agent).bind(gateway);
    let rows = asked.fetch_all(&mut link.connection).await?;
    rows.iter().map(|row| spend_sum(row, &query.groups)).collect()
}

/// What a group is selected as.
fn column(group: SpendGroup) -> &'static str {
    match group {
        SpendGroup::Agent => "agent",
        SpendGroup::Team => "team",
        SpendGroup::Model => "backend",
        SpendGroup::Alias => "alias",
        SpendGroup::Run => "run",
        SpendGroup::Day => "admitted_us / 86400000000",
        SpendGroup::Gateway => "gateway",
    }
}

fn spend_sum(row: &PgRow, groups: &[SpendGroup]) -> Result<SpendSum, Fault> {
    let first = groups.len();
    let figure = |place: usize| sum(row, first + place);
    let count = |place| figure(place).and_then(|sum| tokens(sum).map_err(Fault::Store));
    let money = |place| figure(place).and_then(|sum| usd(sum).map_err(Fault::Store));
    let mut group = Vec::with_capacity(first);
    for (place, by) in groups.iter().enumerate() {
        group.push(match by {
            SpendGroup::Day => row.try_get::<Option<i64>, _>(place)?.and_then(date),
            _ => maybe(row, place)?.map(|name| name.to_string()),
        });
    }
    Ok(SpendSum {
        group,
        attempts: count(0)?,
        unknown: count(1)?,
        input: count(2)?,
        cached_input: count(3)?,
        cache_write: count(4)?,
        output: count(5)?,
        reasoning: count(6)?,
        cost: money(7)?,
        overrun: money(8)?,
    })
}

fn text(row: &PgRow, column: usize) -> Result<Arc<str>, Fault> {
    Ok(Arc::from(&*unwritten(row.try_get(column)?)))
}

fn maybe(row: &PgRow, column: usize) -> Result<Option<Arc<str>>, Fault> {
    let text: Option<&str> = row.try_get(column)?;
    Ok(text.map(|text| Arc::from(&*unwritten(text))))
}

fn sum(row: &PgRow, column: usize) -> Result<i128, Fault> {
    let digits: &str = row.try_get(column)?;
    digits.parse().map_err(|_| Fault::Store(StoreError(format!("{digits} is no sum").into())))
}
