//! Proves a ledger from its rows alone.

use super::{ReportError, unreadable};
use crate::lease::Payer;
use crate::ledger::compaction::{Checkpoint, Totals, hex};
use crate::ledger::postings::{Balances, Book};
use crate::ledger::row::{Hash, Kind, Row};
use crate::metering::Pieces;
use crate::place::Place;
use crate::store::reader::Reader;
use crate::store::settled::Settled;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
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
    /// Rows of sums that stand for attempts that were removed.
    pub summaries: u64,
    /// Rows that stand for the part of the chain that was removed.
    pub checkpoints: u64,
    /// Attempts of which only sums are left.
    pub compacted: u64,
    /// Attempts not yet closed.
    pub open: u64,
    /// The sum of all costs.
    pub cost: Usd,
    /// The sum of all overruns.
    pub overrun: Usd,
    /// What each agent has leased and spent, by name.
    pub agents: Vec<AgentTotals>,
    /// Hash of the last row, in hexadecimal. A chain cannot show that its end was cut off: who keeps this elsewhere
    /// can.
    pub head: String,
}

/// An agent's accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentTotals {
    /// The agent.
    pub agent: Arc<str>,
    /// What its open attempts hold.
    pub leased: Usd,
    /// What it was charged.
    pub spent: Usd,
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
    /// Every row is good, but a sum of them is not what it must be.
    #[error("`{agent}` has {rows} USD {account} by the postings of its rows, but {other} USD by {what}")]
    Sums {
        /// The agent.
        agent: Arc<str>,
        /// Which of its accounts.
        account: &'static str,
        /// What its postings come to.
        rows: Usd,
        /// What it must be.
        other: Usd,
        /// By what.
        what: &'static str,
    },
}

/// Proves the hash chain, that every attempt is closed at most once, that every cost is its tokens times its rates,
/// rounded up, that the double entry balances, and that counters restored from the ledger are the sums of its rows. Reads
/// one instant of the ledger; a gateway may be writing it. Of a database with several gateways' ledgers, one must be
/// named; see [`ledgers`](super::ledgers).
pub fn verify(place: impl Into<Place>) -> Result<VerifyReport, VerifyError> {
    let place = place.into();
    let unreadable = unreadable(&place);
    let mut ledger = Reader::open(&place).map_err(unreadable)?;
    ledger.hold_still().map_err(unreadable)?;
    let chain = ledger.only_chain().map_err(unreadable)?;
    let mut check = Check::default();
    if let Some(row) = ledger.checkpoint(&chain).map_err(unreadable)? {
        let problem = "says nothing that a proof can begin with".to_owned();
        check.begin = Some(Checkpoint::read(&row).ok_or(VerifyError::Row { seq: row.seq, field: "note", problem })?);
        check.begins_at = row.seq;
    }
    let mut bad = None;
    let read = ledger.rows(&chain, |row| {
        let checked = match row {
            Ok(row) => check.row(&row).map_err(|(field, problem)| (row.seq, field, problem)),
            Err((seq, field)) => Err((seq, field, "holds what no gateway writes".to_owned())),
        };
        bad = checked.err();
        if bad.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    read.map_err(unreadable)?;
    let bad = bad.or_else(|| check.end().err().map(|(field, problem)| (check.seq, field, problem)));
    if let Some((seq, field, problem)) = bad {
        return Err(VerifyError::Row { seq, field, problem });
    }
    let counters = ledger.settled(&chain, Timestamp::now().as_microsecond()).map_err(unreadable)?;
    check.counters(&counters)?;
    Ok(check.report())
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
    book: Book,
    /// The newest checkpoint, until the rows that it kept are behind, and the row that it is.
    begin: Option<Checkpoint>,
    begins_at: i64,
    kept: BTreeMap<i64, Hash>,
    /// Sums of the summaries since the last checkpoint.
    summed: Totals,
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
        if self.begin.as_ref().is_some_and(|begin| row.seq <= begin.through) {
            return self.kept(row);
        }
        self.begin()?;
        self.seq += 1;
        expect("seq", row.seq, self.seq)?;
        self.place(row)?;
        self.amounts(row)?;
        if row.prev_hash != self.head {
            return Err(("prev_hash", "is not the hash of the row before".into()));
        }
        self.hash(row)?;
        self.head = row.hash;
        self.count(row);
        Ok(())
    }

    fn hash(&mut self, row: &Row) -> Result<(), Problem> {
        if row.hash == row.digest(&mut self.buffer) {
            return Ok(());
        }
        Err(("hash", "does not match the row: one of its columns was changed".into()))
    }

    /// A row that a compaction kept among those that went: the checkpoint vouches for its hash.
    fn kept(&mut self, row: &Row) -> Result<(), Problem> {
        self.seq = row.seq;
        if row.kind != Kind::Checkpoint {
            self.place(row)?;
            self.amounts(row)?;
        }
        self.hash(row)?;
        self.kept.insert(row.seq, row.hash);
        self.count(row);
        Ok(())
    }

    /// The kept rows are behind: the chain goes on where the checkpoint says.
    fn begin(&mut self) -> Result<(), Problem> {
        let Some(begin) = self.begin.take() else { return Ok(()) };
        if !begin.keeps(&self.kept) {
            return Err(("seq", format!("follows on rows that are not those that checkpoint {} kept", self.begins_at)));
        }
        self.seq = begin.through;
        self.head = begin.head().ok_or_else(|| ("note", format!("of checkpoint {} has no hash", self.begins_at)))?;
        Ok(())
    }

    /// That nothing is missing at the end.
    fn end(&mut self) -> Result<(), Problem> {
        self.begin()?;
        if self.summed == Totals::default() {
            Ok(())
        } else {
            Err(("kind", "should be followed by a checkpoint".into()))
        }
    }

    /// That a checkpoint stands behind the summaries that it sums up.
    fn checkpoint(&mut self, row: &Row) -> Result<(), Problem> {
        let said = Checkpoint::read(row).ok_or_else(|| ("note", "is not what a compaction writes".to_owned()))?;
        if said.sums(&std::mem::take(&mut self.summed)) {
            Ok(())
        } else {
            Err(("note", "has other sums than the summaries before it".into()))
        }
    }

    /// That every agent's accounts balance, that what is leased is what the open attempts hold, and that counters would
    /// be restored to what is spent.
    fn counters(&self, settled: &[Settled]) -> Result<(), VerifyError> {
        let mut counters: HashMap<&str, i128> = HashMap::new();
        for sum in settled {
            *counters.entry(&sum.agent).or_default() += sum.nano;
        }
        let mut held: HashMap<&str, i128> = HashMap::new();
        for open in self.open.values() {
            *held.entry(&open.payer.agent).or_default() += i128::from(open.leased.0);
        }
        let none = Balances::default();
        let agents = self.book.0.keys().map(AsRef::as_ref).chain(counters.keys().copied()).chain(held.keys().copied());
        for agent in agents {
            let book = self.book.0.get(agent).unwrap_or(&none);
            let sums = [
                ("spent", book.spent, counters.get(agent), "the sums that counters are restored from"),
                ("leased", book.leased, held.get(agent), "its open attempts"),
                ("available", book.available, Some(&-(book.leased + book.spent)), "its other accounts"),
            ];
            for (account, rows, other, what) in sums {
                let other = *other.unwrap_or(&0);
                if rows != other {
                    return Err(VerifyError::Sums {
                        agent: agent.into(),
                        account,
                        rows: usd(rows),
                        other: usd(other),
                        what,
                    });
                }
            }
        }
        Ok(())
    }

    /// That the row stands where it may in its attempt's story.
    fn place(&mut self, row: &Row) -> Result<(), Problem> {
        let intent = match (row.kind, row.intent) {
            (Kind::Intent, None) => {
                self.book.post(row, Usd::ZERO);
                self.open.insert(row.seq, Held::of(row));
                return Ok(());
            }
            (Kind::Change, None) => return Ok(()),
            (Kind::Checkpoint, None) => return self.checkpoint(row),
            (Kind::Summary, None) => {
                self.book.post(row, Usd::ZERO);
                self.summed.add(row);
                return Ok(());
            }
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
        self.book.post(row, held.leased);
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
            // Of the attempts that a summary stands for, each overran by itself.
            Kind::Summary => return expect("leased_nano", row.leased, Usd::ZERO),
            Kind::Change | Kind::Checkpoint => {
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
        report.compacted += row.sums.map_or(0, |sums| sums.attempts.unsigned_abs());
        *match row.kind {
            Kind::Summary => &mut report.summaries,
            Kind::Checkpoint => &mut report.checkpoints,
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
        let totals = |(agent, balances): (Arc<str>, Balances)| AgentTotals {
            agent,
            leased: usd(balances.leased),
            spent: usd(balances.spent),
        };
        VerifyReport {
            open: self.open.len().try_into().unwrap_or(u64::MAX),
            cost: usd(self.cost),
            overrun: usd(self.overrun),
            agents: self.book.0.into_iter().map(totals).collect(),
            head: hex(&self.head),
            ..self.report
        }
    }
}

/// The amount, or the nearest that can be told.
fn usd(nano: i128) -> Usd {
    Usd(i64::try_from(nano).unwrap_or(i64::MAX))
}

fn expect<T: PartialEq + std::fmt::Display>(field: &'static str, found: T, right: T) -> Result<(), Problem> {
    if found == right { Ok(()) } else { Err((field, format!("is {found}, but {right} would be right"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollkeeper_config::BackendId;

    fn check(leased: i64, spent: i64) -> Check {
        let balances = Balances { available: -i128::from(leased + spent), leased: leased.into(), spent: spent.into() };
        let held =
            Held { request_id: "r".into(), attempt: 1, payer: Payer::agent("scout"), admitted: 0, leased: Usd(7) };
        Check { open: HashMap::from([(1, held)]), book: Book([("scout".into(), balances)].into()), ..Check::default() }
    }

    fn counter(agent: &str, nano: i128) -> Settled {
        Settled {
            agent: agent.into(),
            team: None,
            alias: "a".into(),
            backend: BackendId::Local("m".into()),
            run: None,
            start: 0,
            nano,
            tokens: 0,
            requests: 1,
        }
    }

    #[test]
    fn counters_and_leases_that_differ_from_the_rows_are_told() {
        check(7, 5).counters(&[counter("scout", 2), counter("scout", 3)]).unwrap();
        let told = check(7, 5).counters(&[counter("scout", 4)]).unwrap_err().to_string();
        assert!(told.contains("`scout` has 0.000000005 USD spent") && told.contains("0.000000004"), "{told}");
        assert!(check(7, 5).counters(&[]).is_err(), "a counter is missing");
        assert!(check(7, 5).counters(&[counter("scout", 5), counter("digger", 1)]).is_err(), "one is too many");
        assert!(check(6, 5).counters(&[counter("scout", 5)]).is_err(), "more is open than is leased");
    }
}
