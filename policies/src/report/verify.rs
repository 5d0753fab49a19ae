//! Proves a ledger from its rows alone.

use super::ReportError;
use crate::lease::Payer;
use crate::ledger::row::{Hash, Kind, Row};
use crate::metering::Pieces;
use crate::store::StoreError;
use crate::store::sqlite::Reader;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use tollkeeper_config::Usd;

/// What a sound ledger holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// All rows.
    pub rows: u64,
    /// Attempts admitted.
    pub intents: u64,
    /// Leases extended.
    pub extensions: u64,
    /// Attempts charged by usage.
    pub settlements: u64,
    /// Attempts that used nothing.
    pub releases: u64,
    /// Attempts that a crash left open, charged at what they had leased.
    pub unknown: u64,
    /// Administrative changes.
    pub changes: u64,
    /// Attempts not yet closed.
    pub open: u64,
    /// The sum of all costs.
    pub cost: Usd,
    /// The sum of all overruns.
    pub overrun: Usd,
    /// Hash of the last row, in hexadecimal. A chain cannot show that its end was cut off: who keeps this elsewhere
    /// can.
    pub head: String,
}

/// Why a ledger is not sound.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It could not be read.
    #[error(transparent)]
    Unreadable(#[from] ReportError),
    /// The first bad row.
    #[error("row {seq} of the ledger is bad: {field} {problem}")]
    Row {
        /// Its sequence number.
        seq: i64,
        /// The column.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// Proves the hash chain, that every attempt is closed at most once, and that every cost is its tokens times its rates,
/// rounded up. Reads one instant of the ledger; a gateway may be writing it.
pub fn verify(path: &Path) -> Result<VerifyReport, VerifyError> {
    let unreadable = |StoreError(reason)| ReportError::Unreadable { path: path.to_owned(), reason };
    let ledger = Reader::open(path).map_err(unreadable)?;
    let mut check = Check::default();
    let mut bad = None;
    let read = ledger.rows(|row| {
        let checked = match row {
            Ok(row) => check.row(&row).map_err(|(field, problem)| (row.seq, field, problem)),
            Err((seq, field)) => Err((seq, field, "holds what no gateway writes".to_owned())),
        };
        bad = checked.err();
        if bad.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    read.map_err(unreadable)?;
    match bad {
        Some((seq, field, problem)) => Err(VerifyError::Row { seq, field, problem }),
        None => Ok(check.report()),
    }
}

/// A column and what is wrong with it.
type Problem = (&'static str, String);

#[derive(Default)]
struct Check {
    report: VerifyReport,
    cost: i128,
    overrun: i128,
    seq: i64,
    head: Hash,
    /// Attempts that are open at this point, by the number of their intent. All that is kept of the rows.
    open: HashMap<i64, Held>,
    buffer: Vec<u8>,
}

/// What an open attempt's rows so far say.
struct Held {
    request_id: Arc<str>,
    attempt: u32,
    payer: Payer,
    admitted: i64,
    leased: Usd,
}

impl Held {
    fn of(row: &Row) -> Self {
        Self {
            request_id: row.request_id.clone(),
            attempt: row.attempt,
            payer: row.payer(),
            admitted: row.admitted,
            leased: row.leased,
        }
    }
}

impl Check {
    fn row(&mut self, row: &Row) -> Result<(), Problem> {
        self.seq += 1;
        expect("seq", row.seq, self.seq)?;
        self.place(row)?;
        self.amounts(row)?;
        if row.prev_hash != self.head {
            return Err(("prev_hash", "is not the hash of the row before".into()));
        }
        if row.hash != row.digest(&mut self.buffer) {
            return Err(("hash", "does not match the row: one of its columns was changed".into()));
        }
        self.head = row.hash;
        self.count(row);
        Ok(())
    }

    /// That the row stands where it may in its attempt's story.
    fn place(&mut self, row: &Row) -> Result<(), Problem> {
        let intent = match (row.kind, row.intent) {
            (Kind::Intent, None) => {
                self.open.insert(row.seq, Held::of(row));
                return Ok(());
            }
            (Kind::Change, None) => return Ok(()),
            (_, Some(intent)) => intent,
            (_, None) => return Err(("intent", "is missing".into())),
        };
        let Some(held) = self.open.get_mut(&intent) else {
            return Err(("intent", format!("names row {intent}, which is not an attempt that is open here")));
        };
        expect("request_id", &row.request_id, &held.request_id)?;
        expect("attempt", row.attempt, held.attempt)?;
        expect("agent", &row.agent, &held.payer.agent)?;
        let same = |field, found: &Option<Arc<str>>, right: &Option<Arc<str>>| {
            expect(field, found.as_deref().unwrap_or("null"), right.as_deref().unwrap_or("null"))
        };
        same("team", &row.team, &held.payer.team)?;
        same("run", &row.run, &held.payer.run)?;
        same("task", &row.task, &held.payer.task)?;
        expect("admitted_us", row.admitted, held.admitted)?;
        if row.kind.closes() {
            expect("leased_nano", row.leased, held.leased)?;
            self.open.remove(&intent);
        } else {
            held.leased = row.leased;
        }
        Ok(())
    }

    /// That the amounts follow from tokens and rates.
    fn amounts(&self, row: &Row) -> Result<(), Problem> {
        let worth = Pieces::of(&row.rates, &row.usage).total();
        match row.kind {
            Kind::Intent | Kind::Extension => {
                expect("leased_nano", row.leased, worth)?;
                expect("cost_nano", row.cost, Usd::ZERO)?;
            }
            Kind::Release => expect("cost_nano", row.cost, Usd::ZERO)?,
            Kind::Change => {
                expect("leased_nano", row.leased, Usd::ZERO)?;
                expect("cost_nano", row.cost, Usd::ZERO)?;
            }
            Kind::Settlement => expect("cost_nano", row.cost, worth)?,
            Kind::Unknown => {
                expect("cost_nano", row.cost, row.leased)?;
                expect("cost_nano", row.cost, worth)?;
            }
        }
        expect("overrun_nano", row.overrun, row.cost.saturating_sub(row.leased).max(Usd::ZERO))
    }

    fn count(&mut self, row: &Row) {
        let report = &mut self.report;
        report.rows += 1;
        *match row.kind {
            Kind::Intent => &mut report.intents,
            Kind::Extension => &mut report.extensions,
            Kind::Settlement => &mut report.settlements,
            Kind::Release => &mut report.releases,
            Kind::Unknown => &mut report.unknown,
            Kind::Change => &mut report.changes,
        } += 1;
        self.cost += i128::from(row.cost.0);
        self.overrun += i128::from(row.overrun.0);
    }

    fn report(self) -> VerifyReport {
        let sum = |nano: i128| Usd(i64::try_from(nano).unwrap_or(i64::MAX));
        VerifyReport {
            open: self.open.len().try_into().unwrap_or(u64::MAX),
            cost: sum(self.cost),
            overrun: sum(self.overrun),
            head: self.head.iter().map(|byte| format!("{byte:02x}")).collect(),
            ..self.report
        }
    }
}

fn expect<T: PartialEq + std::fmt::Display>(field: &'static str, found: T, right: T) -> Result<(), Problem> {
    if found == right { Ok(()) } else { Err((field, format!("is {found}, but {right} would be right"))) }
}
