//! Tests of compaction: it loses nothing, can be proved, and cannot be forged unnoticed.

use super::*;
use crate::lease::Payer;
use crate::ledger::attempt::{Attempt, Closing};
use crate::ledger::row::Kind;
use crate::ledger::writer::seal;
use crate::report::{
    CompactError, ExportFilter, Format, SpendGroup, SpendQuery, SpendSum, VerifyError, VerifyReport, compact, export,
    spend_by, verify,
};
use crate::setup::{growing, nano_per_token, spend as a_spend};
use crate::{Clock, Policies, Spend};
use jiff::Timestamp;
use proptest::prelude::*;
use std::path::PathBuf;
use std::time::Duration;
use tollkeeper_config::Usd;
use tollkeeper_protocol::usage::Usage;

/// 2026-03-04T05:06:07.5Z
const NOW: i64 = 1_772_600_767_500_000;
const DAY: i64 = 86_400_000_000;

/// What happens next in a ledger's history, so many seconds later.
#[derive(Debug, Clone)]
enum Step {
    Admit { agent: usize, run: bool, model: usize },
    Extend { which: usize },
    Close { which: usize, kind: Kind, output: u64 },
    Change,
}

fn steps() -> impl Strategy<Value = Vec<(i64, Step)>> {
    let kind = proptest::sample::select(&[Kind::Settlement, Kind::Settlement, Kind::Release, Kind::Unknown]);
    let step = prop_oneof![
        4 => (0..2_usize, any::<bool>(), 0..2_usize).prop_map(|(agent, run, model)| Step::Admit { agent, run, model }),
        2 => (0..9_usize).prop_map(|which| Step::Extend { which }),
        4 => (0..9_usize, kind, 0..60_u64).prop_map(|(which, kind, output)| Step::Close { which, kind, output }),
        1 => Just(Step::Change),
    ];
    proptest::collection::vec((0..4 * 86_400_i64, step), 1..60)
}

struct Ledger {
    store: Sqlite,
    now: i64,
    open: Vec<(Attempt, u64)>,
}

impl Ledger {
    fn add(&mut self, row: Row) -> i64 {
        let mut rows = [row];
        let mut tail = self.store.tail().unwrap();
        tail.oldest_open = 1;
        let tail = seal(tail, &mut rows, &mut Vec::new());
        self.store.append(&rows, &[]).unwrap();
        tail.seq
    }

    fn step(&mut self, seconds: i64, step: &Step) {
        self.now += seconds * 1_000_000;
        let which = |which: usize, count: usize| which.checked_rem(count);
        match step {
            Step::Admit { agent, run, model } => {
                let payer = Payer {
                    team: (*agent == 0).then(|| "red".into()),
                    run: run.then(|| "r-1".into()),
                    task: Some("t".into()),
                    ..Payer::agent(["scout", "digger"][*agent])
                };
                let spend = a_spend(nano_per_token(), 10, growing(4));
                let backend = crate::ledger::row::backend(["openai/small", "tiny"][*model]);
                let attempt = Attempt::new(payer.into(), Spend { backend, ..spend }, self.now, 4);
                let next = self.store.tail().unwrap().seq + 1;
                self.add(attempt.intent_row(next));
                self.open.push((attempt, 4));
            }
            Step::Extend { which: at } => {
                let Some(at) = which(*at, self.open.len()) else { return };
                self.open[at].1 += 4;
                let (attempt, covered) = &self.open[at];
                let row = attempt.covering_row(Kind::Extension, self.now, *covered);
                self.add(row);
            }
            Step::Close { which: at, kind, output } => {
                let Some(at) = which(*at, self.open.len()) else { return };
                let (attempt, covered) = self.open.remove(at);
                self.close(&attempt, covered, *kind, *output);
            }
            Step::Change => _ = self.add(Row::note(Kind::Change, self.now, "ops", "agent/scout", "{}".into())),
        }
    }

    fn close(&mut self, attempt: &Attempt, covered: u64, kind: Kind, output: u64) {
        let held = i64::try_from(10 + covered).unwrap();
        let usage = match kind {
            Kind::Release => Usage::default(),
            Kind::Unknown => Usage { input: 10, output: covered, ..Usage::default() },
            _ => Usage { input: 10, cached_input: 3, output, reasoning: output / 2, ..Usage::default() },
        };
        let cost = i64::try_from(usage.input + usage.output).unwrap();
        let end = Closing {
            at: self.now,
            kind,
            usage,
            estimated: output > 50,
            leased: Usd(held),
            cost: Usd(cost),
            overrun: Usd((cost - held).max(0)),
            outcome: "done",
            ttft: None,
            duration: Duration::from_millis(3),
        };
        self.add(attempt.closing_row(&end));
    }
}

fn ledger(path: &Path, steps: &[(i64, Step)]) -> Ledger {
    let store = Sqlite::open(path, Durability::Process).unwrap();
    let mut ledger = Ledger { store, now: NOW, open: Vec::new() };
    steps.iter().for_each(|(seconds, step)| ledger.step(*seconds, step));
    ledger
}

/// All that is ever told of a ledger but what its rows are, and the counters at some times.
fn told(path: &Path, now: i64) -> (VerifyReport, Vec<Vec<SpendSum>>, Vec<Vec<Settled>>) {
    let report = verify(path).unwrap();
    let day = Some(Timestamp::from_microsecond((NOW + 9 * DAY) / DAY * DAY).unwrap());
    let (agent, backend, of_day) = (SpendGroup::Agent, SpendGroup::Model, SpendGroup::Day);
    let queries = [
        (vec![agent, of_day, backend], None, None),
        (vec![agent, of_day], day, None),
        (vec![agent, backend], None, day),
        (vec![agent], None, None),
    ];
    let spent = queries
        .map(|(groups, since, until)| spend_by(path, &SpendQuery { groups, agent: None, since, until }).unwrap());
    let db = Connection::open(path).unwrap();
    let settled = [now, now + 3_600_000_000, now + 99 * DAY].map(|at| sums::settled(&db, at).unwrap());
    let report = VerifyReport {
        rows: 0,
        intents: 0,
        extensions: 0,
        settlements: 0,
        releases: 0,
        unknown: 0,
        summaries: 0,
        checkpoints: 0,
        compacted: 0,
        head: String::new(),
        ..report
    };
    (report, spent.to_vec(), settled.to_vec())
}

fn time(at: i64) -> Timestamp {
    Timestamp::from_microsecond(at).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn sums_stay_what_they_were(steps in steps(), later in steps(), cut in 0..150_i64, again in 0..99_i64) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let mut kept = ledger(&path, &steps);
        let (now, open) = (kept.now + 40 * DAY, std::mem::take(&mut kept.open));
        drop(kept);
        let before = told(&path, now);
        let cut = time((NOW + cut * DAY).min(now - 34 * DAY));
        let mut removable = Vec::new();
        let filter = ExportFilter { removable_before: Some(cut), ..ExportFilter::default() };
        let exported = export(&path, &filter, Format::JsonLines, &mut removable).unwrap();
        let rows = verify(&path).unwrap().rows;
        let done = compact(&path, cut, time(now)).unwrap();
        prop_assert_eq!(&told(&path, now), &before);
        let after = verify(&path).unwrap();
        if done.summaries > 0 {
            prop_assert_eq!((exported.rows, &exported.head), (done.removed, &done.head), "what went was exported before");
            prop_assert_eq!(after.rows, rows - done.removed + done.summaries + 1);
        } else {
            prop_assert_eq!(after.rows, rows);
        }
        prop_assert_eq!(compact(&path, cut, time(now)).unwrap().removed, 0, "once is enough");
        // The attempts that were open can still end, and life goes on; then more goes.
        let store = Sqlite::open(&path, Durability::Process).unwrap();
        let mut more = Ledger { store, now, open };
        later.iter().for_each(|(seconds, step)| more.step(*seconds, step));
        let now = more.now + 40 * DAY;
        drop(more);
        let before = told(&path, now);
        compact(&path, time((NOW + again * 4 * DAY).min(now - 34 * DAY)), time(now)).unwrap();
        prop_assert_eq!(&told(&path, now), &before);
    }
}

/// A ledger of three closed attempts, an open one and a change, compacted but for the last day.
fn compacted(folder: &Path) -> PathBuf {
    let path = folder.join("a.db");
    let admit = |model| (60, Step::Admit { agent: 0, run: false, model });
    let close = |kind| (60, Step::Close { which: 0, kind, output: 9 });
    let steps = [
        admit(0),
        close(Kind::Settlement),
        admit(1),
        close(Kind::Unknown),
        admit(0),
        (60, Step::Change),
        (60 * 60 * 24, Step::Admit { agent: 1, run: true, model: 0 }),
        close(Kind::Settlement),
    ];
    let store = ledger(&path, &steps);
    drop(store);
    let done = compact(&path, time(NOW + DAY), time(NOW + 40 * DAY)).unwrap();
    assert_eq!((done.removed, done.summaries), (4, 2));
    path
}

#[test]
fn what_a_checkpoint_stands_for_cannot_be_changed_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = compacted(folder.path());
    let sound = verify(&path).unwrap();
    assert_eq!((sound.summaries, sound.checkpoints, sound.compacted, sound.changes, sound.open), (2, 1, 2, 1, 1));
    let cases = [
        "UPDATE ledger SET cost_nano = cost_nano + 1 WHERE kind = 'summary' AND backend = 'tiny'",
        "UPDATE ledger SET attempts = 2 WHERE kind = 'summary' AND backend = 'tiny'",
        "DELETE FROM ledger WHERE kind = 'summary' AND backend = 'tiny'",
        "DELETE FROM ledger WHERE kind = 'checkpoint'",
        "DELETE FROM ledger WHERE kind = 'change'",
        "DELETE FROM ledger WHERE seq = 5",
        "UPDATE ledger SET agent = 'x' WHERE kind = 'change'",
        "UPDATE ledger SET note = '{}' WHERE kind = 'checkpoint'",
        "UPDATE ledger SET note = replace(note, '\"through\":6', '\"through\":5') WHERE kind = 'checkpoint'",
        "UPDATE ledger SET note = replace(note, '\"head\":\"', '\"head\":\"0') WHERE kind = 'checkpoint'",
        "UPDATE ledger SET prev_hash = zeroblob(32) WHERE seq = 7",
    ];
    for sql in cases {
        let copy = folder.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        let db = Connection::open(&copy).unwrap();
        db.execute_batch("DROP TRIGGER ledger_keeps_rows; DROP TRIGGER ledger_keeps_values").unwrap();
        assert!(db.execute(sql, []).unwrap() > 0, "{sql}");
        drop(db);
        assert!(matches!(verify(&copy), Err(VerifyError::Row { .. })), "{sql}");
    }
}

#[test]
fn an_unsound_ledger_is_not_compacted_and_a_new_one_neither() {
    let folder = tempfile::tempdir().unwrap();
    let path = compacted(folder.path());
    let before = verify(&path).unwrap();
    let error = compact(&path, time(NOW + 8 * DAY), time(NOW + 40 * DAY)).unwrap_err();
    assert!(matches!(error, CompactError::TooNew { latest } if latest <= time(NOW + 7 * DAY)), "{error}");
    let db = Connection::open(&path).unwrap();
    db.execute_batch("DROP TRIGGER ledger_keeps_values; UPDATE ledger SET agent = 'x' WHERE seq = 8").unwrap();
    let error = compact(&path, time(NOW + 4 * DAY), time(NOW + 40 * DAY)).unwrap_err();
    assert!(matches!(error, CompactError::Unsound(_)), "{error}");
    db.execute_batch("UPDATE ledger SET agent = 'scout' WHERE seq = 8").unwrap();
    assert_eq!(verify(&path).unwrap(), before);
}

#[test]
fn a_gateway_at_work_is_left_alone_and_a_restart_closes_what_was_kept_open() {
    let folder = tempfile::tempdir().unwrap();
    let path = compacted(folder.path());
    let mut config = crate::setup::stored(folder.path(), &[]);
    config.store.path = path.clone();
    let (policies, recovered) = Policies::open(&config, Clock::system()).unwrap();
    assert_eq!((recovered.unknown, recovered.amount), (1, Usd(14)));
    let error = compact(&path, time(NOW), time(NOW + 40 * DAY)).unwrap_err();
    assert!(matches!(error, CompactError::Open(OpenError::Locked { .. })), "{error}");
    drop(policies);
    assert_eq!(verify(&path).unwrap().open, 0);
}

#[test]
fn a_start_compacts_what_is_older_than_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let close = Step::Close { which: 0, kind: Kind::Settlement, output: 9 };
    let steps = [(0, Step::Admit { agent: 0, run: false, model: 0 }), (1, close)];
    drop(ledger(&path, &steps));
    let mut config = crate::setup::stored(folder.path(), &[]);
    config.store.path = path.clone();
    let mut start = |keep: Option<u64>, days: i64| {
        config.store.keep = keep.map(|days| Duration::from_secs(days * 86_400));
        let at = std::sync::Arc::new(std::sync::atomic::AtomicI64::new((NOW + days * DAY) / 1000));
        drop(Policies::open(&config, Clock::fixed(at)).unwrap());
        verify(&path).unwrap().summaries
    };
    assert_eq!((start(None, 99), start(Some(60), 59), start(Some(60), 61)), (0, 0, 1));
    assert_eq!(verify(&path).unwrap().cost, Usd(19));
}

#[test]
fn sums_that_one_row_cannot_hold_are_split() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let mut store = Sqlite::open(&path, Durability::Process).unwrap();
    let (mut buffer, mut rows) = (Vec::new(), Vec::new());
    for seq in [1, 3, 5] {
        let dear = crate::setup::price(1_000, 1_000);
        let spend = Spend { input_tokens: i64::MAX.unsigned_abs(), ..a_spend(dear, 0, growing(1)) };
        let attempt = Attempt::new(Payer::agent("scout").into(), spend, NOW, 0);
        let intent = attempt.intent_row(seq);
        let unknown = Row {
            kind: Kind::Unknown,
            intent: Some(seq),
            cost: intent.leased,
            outcome: Some("unknown".into()),
            ..intent.clone()
        };
        rows.extend([intent, unknown]);
    }
    seal(Tail { oldest_open: 1, ..Tail::default() }, &mut rows, &mut buffer);
    store.append(&rows, &[]).unwrap();
    drop(store);
    let before = sums::settled(&Connection::open(&path).unwrap(), NOW + 40 * DAY).unwrap();
    let done = compact(&path, time(NOW + DAY), time(NOW + 40 * DAY)).unwrap();
    assert_eq!((done.removed, done.summaries), (6, 3));
    assert_eq!(sums::settled(&Connection::open(&path).unwrap(), NOW + 40 * DAY).unwrap(), before);
}
