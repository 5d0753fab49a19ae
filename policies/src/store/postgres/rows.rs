//! Rows of the ledger as the database holds them.

use super::link::{Fault, Link};
use crate::ledger::read::{Bad, Values};
use crate::ledger::row::{COLUMNS, Row, Value};
use crate::store::{Kept, StateChange, StoreError};
use sqlx::Row as _;
use sqlx::postgres::{PgArguments, PgRow};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Columns that hold text; those that are neither these nor the next hold integers.
const TEXTS: [&str; 13] = [
    "kind",
    "request_id",
    "agent",
    "operation",
    "alias",
    "backend",
    "catalog",
    "outcome",
    "team",
    "run",
    "task",
    "note",
    "tier",
];
const BYTES: [&str; 2] = ["prev_hash", "hash"];

/// So many rows are read at once.
const PAGE: i64 = 2000;

/// Stands before what is written for a character that the database cannot hold.
const ESCAPE: char = '\u{e000}';

/// What kind of values a column holds.
#[derive(Clone, Copy)]
enum Kind {
    Int,
    Text,
    Bytes,
}

fn kind(column: &str) -> Kind {
    match column {
        column if TEXTS.contains(&column) => Kind::Text,
        column if BYTES.contains(&column) => Kind::Bytes,
        _ => Kind::Int,
    }
}

/// A text as it is written: the database cannot hold U+0000.
pub(super) fn written(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    let mut written = String::with_capacity(text.len() + 4);
    for character in text.chars() {
        match character {
            '\0' => written.extend([ESCAPE, '0']),
            ESCAPE => written.extend([ESCAPE, ESCAPE]),
            other => written.push(other),
        }
    }
    Cow::Owned(written)
}

/// A text as it was before it was written.
pub(super) fn unwritten(text: &str) -> Cow<'_, str> {
    if !text.contains(ESCAPE) {
        return Cow::Borrowed(text);
    }
    let mut characters = text.chars();
    let mut read = String::with_capacity(text.len());
    while let Some(character) = characters.next() {
        match character {
            ESCAPE => {
                read.push(characters.next().map_or(ESCAPE, |escaped| if escaped == '0' { '\0' } else { escaped }))
            }
            other => read.push(other),
        }
    }
    Cow::Owned(read)
}

/// The insertion of rows that are given as one array for each column, as parameters from the second on.
fn insertion() -> String {
    let places: Vec<String> = (2..)
        .zip(COLUMNS)
        .map(|(place, column)| match kind(column) {
            Kind::Int => format!("${place}::bigint[]"),
            Kind::Text => format!("${place}::text[]"),
            Kind::Bytes => format!("${place}::bytea[]"),
        })
        .collect();
    format!("INSERT INTO ledger (gateway, {}) SELECT $1, * FROM UNNEST({})", COLUMNS.join(", "), places.join(", "))
}

/// The same, and at once changes of state: two arrays of what goes, four of what comes.
fn insertion_and_state() -> String {
    let first = COLUMNS.len() + 2;
    let [a, b, c, d, e, f] = std::array::from_fn(|at| first + at);
    format!(
        "WITH inserted AS ({}),
              removed AS (DELETE FROM state WHERE gateway = $1 AND (kind, id) IN (SELECT * FROM UNNEST(${a}::text[], ${b}::text[])))
         INSERT INTO state (gateway, kind, id, body, changed_us)
         SELECT $1, * FROM UNNEST(${c}::text[], ${d}::text[], ${e}::text[], ${f}::bigint[])
         ON CONFLICT (gateway, kind, id) DO UPDATE SET body = EXCLUDED.body, changed_us = EXCLUDED.changed_us",
        insertion()
    )
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, PgArguments>;

/// Appends rows and makes changes of state, in one statement: all or nothing, and one round trip.
pub(super) async fn append(link: &mut Link, gateway: &str, rows: &[Row], state: &[StateChange]) -> Result<(), Fault> {
    if state.is_empty() {
        let sql = insertion();
        bind_rows(sqlx::query(&sql).bind(gateway), rows).execute(&mut link.connection).await?;
        return Ok(());
    }
    // Of changes of one thing the last counts.
    let last: BTreeMap<(&str, &str), &StateChange> =
        state.iter().map(|change| ((change.kind, &*change.id), change)).collect();
    let (mut gone, mut ids) = (Vec::new(), Vec::new());
    let (mut kinds, mut names, mut bodies, mut changed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for ((kind, id), change) in last {
        match &change.body {
            None => {
                gone.push(kind);
                ids.push(written(id));
            }
            Some(body) => {
                kinds.push(kind);
                names.push(written(id));
                bodies.push(written(body));
                changed.push(change.changed);
            }
        }
    }
    let sql = insertion_and_state();
    let query = bind_rows(sqlx::query(&sql).bind(gateway), rows).bind(gone).bind(ids);
    query.bind(kinds).bind(names).bind(bodies).bind(changed).execute(&mut link.connection).await?;
    Ok(())
}

fn bind_rows<'q>(mut query: Query<'q>, rows: &'q [Row]) -> Query<'q> {
    let all: Vec<_> = rows.iter().map(Row::values).collect();
    for (place, column) in COLUMNS.iter().enumerate() {
        let values = all.iter().map(|values| &values[place]);
        query = match kind(column) {
            Kind::Int => query.bind(values.map(int).collect::<Vec<Option<i64>>>()),
            Kind::Text => query.bind(values.map(text).collect::<Vec<Option<String>>>()),
            Kind::Bytes => query.bind(values.map(bytes).collect::<Vec<Option<Vec<u8>>>>()),
        };
    }
    query
}

fn int(value: &Value<'_>) -> Option<i64> {
    if let Value::Int(number) = value { Some(*number) } else { None }
}

fn text(value: &Value<'_>) -> Option<String> {
    if let Value::Text(text) = value { Some(written(text).into_owned()) } else { None }
}

fn bytes(value: &Value<'_>) -> Option<Vec<u8>> {
    if let Value::Blob(bytes) = value { Some(bytes.to_vec()) } else { None }
}

/// What is kept of a kind.
pub(super) async fn state(link: &mut Link, gateway: &str, kind: &str) -> Result<Kept, Fault> {
    let sql = "SELECT id, body FROM state WHERE gateway = $1 AND kind = $2 ORDER BY id";
    let rows = sqlx::query(sql).bind(gateway).bind(kind).fetch_all(&mut link.connection).await?;
    let text =
        |row: &PgRow, column: usize| -> Result<Arc<str>, Fault> { Ok(Arc::from(&*unwritten(row.try_get(column)?))) };
    rows.iter().map(|row| Ok((text(row, 0)?, text(row, 1)?))).collect()
}

/// The next rows of a chain, from this number on; none at its end.
pub(super) async fn page(link: &mut Link, gateway: &str, from: i64) -> Result<Vec<PgRow>, Fault> {
    let columns = COLUMNS.join(", ");
    let sql = format!("SELECT {columns} FROM ledger WHERE gateway = $1 AND seq >= $2 ORDER BY seq LIMIT {PAGE}");
    Ok(sqlx::query(&sql).bind(gateway).bind(from).fetch_all(&mut link.connection).await?)
}

/// A row's number, whatever else it holds.
pub(super) fn number(row: &PgRow) -> Result<i64, StoreError> {
    row.try_get(0).map_err(|error| StoreError(error.to_string().into()))
}

/// Reads a row selected as [`COLUMNS`].
pub(super) fn read(row: &PgRow) -> Result<Row, Bad> {
    Values(std::array::from_fn(|column| value(row, column))).row()
}

/// What no column of ours holds is given as an empty blob, which none can have.
fn value(row: &PgRow, column: usize) -> Value<'_> {
    let read = match kind(COLUMNS[column]) {
        Kind::Int => row.try_get::<Option<i64>, _>(column).map(|number| number.map(Value::Int)),
        Kind::Text => row.try_get::<Option<&str>, _>(column).map(|text| text.map(|text| Value::Text(unwritten(text)))),
        Kind::Bytes => row.try_get::<Option<&[u8]>, _>(column).map(|bytes| bytes.map(Value::Blob)),
    };
    read.map_or(Value::Blob(&[]), |value| value.unwrap_or(Value::Null))
}

#[cfg(test)]
mod tests {
    use super::{unwritten, written};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_text_can_be_written_and_read_back(text in "[a\u{0}0\u{e000}é]{0,8}") {
            let held = written(&text);
            prop_assert!(!held.contains('\0'));
            prop_assert_eq!(unwritten(&held), text.as_str());
        }
    }
}
