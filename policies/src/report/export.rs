//! Writes the ledger's rows for other programs, as CSV or as JSON lines: every column as it is stored, so that who has
//! the export can check every hash, and what people read besides.

use super::{ReportError, unreadable};
use crate::ledger::compaction::{DAY, hex};
use crate::ledger::postings::{Balances, postings};
use crate::ledger::row::{COLUMNS, Row, Value};
use crate::place::Place;
use crate::store::reader::Reader;
use crate::store::{Chain, StoreError};
use jiff::Timestamp;
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::sync::Arc;
use tollkeeper_config::Usd;

/// What an export is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RFC 4180, with a header; null is an empty field.
    Csv,
    /// One JSON object a line; null columns are left out.
    JsonLines,
}

/// Which rows to export.
#[derive(Debug, Clone, Default)]
pub struct ExportFilter {
    /// Only rows of this agent (or by this actor).
    pub agent: Option<String>,
    /// Admitted at or after.
    pub since: Option<Timestamp>,
    /// Admitted before.
    pub until: Option<Timestamp>,
    /// Only rows that [`compact`](super::compact) with this time would remove.
    pub removable_before: Option<Timestamp>,
}

/// What was exported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// How many rows.
    pub rows: u64,
    /// The hash of the last of them, in hexadecimal; empty when there are none. Of rows to be removed, the hash that the
    /// chain had reached there, which the checkpoint will hold. Of several gateways' ledgers, that of the last.
    pub head: String,
    /// Of a database: each gateway whose rows these are, how many of them, and their head.
    pub gateways: Vec<(Arc<str>, u64, String)>,
}

/// Why an export could not be made, or not in full.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The ledger could not be read.
    #[error(transparent)]
    Unreadable(#[from] ReportError),
    /// A row holds what no gateway writes.
    #[error("row {seq} of the ledger is bad in column {field}; `tollkeeper ledger verify` tells more")]
    Row {
        /// Its number.
        seq: i64,
        /// The column.
        field: &'static str,
    },
    /// It could not be written to where it should go.
    #[error("cannot write the export: {0}")]
    Write(#[from] std::io::Error),
}

/// Columns behind those of the table: times as text, money as exact decimals in USD, and what the row moves to its
/// agent's accounts in nano-dollars (what is available changes by minus their sum).
const DERIVED: [&str; 7] =
    ["at", "admitted", "leased_usd", "cost_usd", "overrun_usd", "to_leased_nano", "to_spent_nano"];

/// The column behind all others in an export of a database: whose ledger the row is of.
const GATEWAY: &str = "gateway";

/// Writes the rows as they all are at one instant, in order, one gateway's after the other's; gateways may be writing
/// them. Nothing is held in memory but which attempts are open.
pub fn export(
    place: impl Into<Place>,
    filter: &ExportFilter,
    format: Format,
    out: &mut dyn Write,
) -> Result<Exported, ExportError> {
    let place = place.into();
    let unreadable = unreadable(&place);
    let mut ledger = Reader::open(&place).map_err(unreadable)?;
    ledger.hold_still().map_err(unreadable)?;
    let chains = ledger.chains().map_err(unreadable)?;
    let mut sink = Sink::new(format, matches!(place, Place::Database(_)), out)?;
    let mut exported = Exported::default();
    for chain in chains {
        let (rows, head) = one_chain(&mut ledger, &chain, filter, &mut sink, unreadable)?;
        exported.rows += rows;
        if rows > 0 {
            exported.head.clone_from(&head);
        }
        exported.gateways.extend(chain.map(|gateway| (gateway, rows, head)));
    }
    sink.end()?;
    Ok(exported)
}

/// Writes the rows of one gateway; returns how many, and their head.
fn one_chain(
    ledger: &mut Reader,
    chain: &Chain,
    filter: &ExportFilter,
    sink: &mut Sink<'_>,
    unreadable: impl Fn(StoreError) -> ReportError + Copy,
) -> Result<(u64, String), ExportError> {
    let old = filter.removable_before.map(|before| ledger.scan(chain, before.as_microsecond().div_euclid(DAY) * DAY));
    let old = old.transpose().map_err(unreadable)?.map(|scan| (scan.through, scan.kept(), scan.head));
    let goes = |seq| old.as_ref().is_none_or(|(through, kept, _)| seq <= *through && !kept.contains_key(&seq));
    let mut held: HashMap<i64, Usd> = HashMap::new();
    let (mut rows, mut head) = (0, String::new());
    let mut failed = None;
    let read = ledger.rows(chain, |row| {
        let written = row.map_err(|(seq, field)| ExportError::Row { seq, field }).and_then(|row| {
            let before = account(&mut held, &row);
            if filter.takes(&row) && goes(row.seq) {
                sink.write(&row, before, chain.as_deref())?;
                rows += 1;
                head = hex(&row.hash);
            }
            Ok(())
        });
        failed = written.err();
        if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    read.map_err(unreadable)?;
    if let Some(error) = failed {
        return Err(error);
    }
    if let Some((_, _, through)) = old.filter(|_| rows > 0) {
        head = hex(&through);
    }
    Ok((rows, head))
}

impl ExportFilter {
    fn takes(&self, row: &Row) -> bool {
        self.agent.as_deref().is_none_or(|agent| *agent == *row.agent)
            && self.since.is_none_or(|since| row.admitted >= since.as_microsecond())
            && self.until.is_none_or(|until| row.admitted < until.as_microsecond())
    }
}

/// What the row's attempt held before it; keeps account of what it holds after.
fn account(held: &mut HashMap<i64, Usd>, row: &Row) -> Usd {
    let attempt = row.intent.unwrap_or(row.seq);
    if row.kind.closes() {
        return held.remove(&attempt).unwrap_or_default();
    }
    if row.leased == Usd::ZERO {
        return Usd::ZERO;
    }
    held.insert(attempt, row.leased).unwrap_or_default()
}

enum Sink<'a> {
    Csv(Box<csv::Writer<&'a mut dyn Write>>),
    JsonLines(&'a mut dyn Write),
}

impl<'a> Sink<'a> {
    fn new(format: Format, of_gateways: bool, out: &'a mut dyn Write) -> std::io::Result<Self> {
        match format {
            Format::JsonLines => Ok(Self::JsonLines(out)),
            Format::Csv => {
                let mut csv = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(out);
                let gateway = of_gateways.then_some(&GATEWAY);
                csv.write_record(COLUMNS.iter().chain(&DERIVED).chain(gateway))?;
                Ok(Self::Csv(Box::new(csv)))
            }
        }
    }

    fn write(&mut self, row: &Row, held: Usd, gateway: Option<&str>) -> std::io::Result<()> {
        let gateway = gateway.map(|name| Value::Text(name.into()));
        let values = row.values().into_iter().chain(derived(row, held)).chain(gateway);
        match self {
            Self::Csv(csv) => {
                for value in values {
                    csv.write_field(&*text(&value))?;
                }
                Ok(csv.write_record(None::<&[u8]>)?)
            }
            Self::JsonLines(out) => {
                let fields = COLUMNS
                    .iter()
                    .chain(&DERIVED)
                    .chain(&[GATEWAY])
                    .zip(values)
                    .filter(|(_, value)| *value != Value::Null);
                let object: serde_json::Map<_, _> =
                    fields.map(|(name, value)| ((*name).to_owned(), json(&value))).collect();
                serde_json::to_writer(&mut **out, &object)?;
                out.write_all(b"\n")
            }
        }
    }

    fn end(self) -> std::io::Result<()> {
        match self {
            Self::Csv(mut csv) => csv.flush(),
            Self::JsonLines(out) => out.flush(),
        }
    }
}

/// The values of [`DERIVED`].
fn derived(row: &Row, held: Usd) -> [Value<'static>; DERIVED.len()] {
    let mut moved = Balances::default();
    postings(row, held).for_each(|posting| moved.post(posting));
    let time = |at| Timestamp::from_microsecond(at).map_or(Value::Null, |at| owned(format!("{at:.6}")));
    let nano = |nano: i128| Value::Int(i64::try_from(nano).unwrap_or(i64::MAX));
    [
        time(row.at),
        time(row.admitted),
        owned(row.leased.to_string()),
        owned(row.cost.to_string()),
        owned(row.overrun.to_string()),
        nano(moved.leased),
        nano(moved.spent),
    ]
}

fn owned(text: String) -> Value<'static> {
    Value::Text(text.into())
}

fn text<'a>(value: &'a Value<'_>) -> Cow<'a, str> {
    match value {
        Value::Null => Cow::Borrowed(""),
        Value::Int(number) => Cow::Owned(number.to_string()),
        Value::Text(text) => Cow::Borrowed(text),
        Value::Blob(bytes) => Cow::Owned(hex(bytes)),
    }
}

fn json(value: &Value<'_>) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Int(number) => (*number).into(),
        Value::Text(text) => (**text).into(),
        Value::Blob(bytes) => hex(bytes).into(),
    }
}
