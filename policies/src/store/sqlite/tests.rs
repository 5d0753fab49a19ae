//! Tests of the SQLite store: full disks, changed rows, foreign files.

use super::read::Reader;
use super::tables::{known_version, version};
use super::*;
use crate::lease::Payer;
use crate::ledger::postings::{Balances, Book, postings};
use crate::ledger::row::{Kind, backend};
use crate::report::{AgentTotals, MigrateError, VerifyError, migrate, verify};
use crate::setup::{clock, growing, nano_per_token, own, price, scout, spend, stored, used};
use crate::store::memory::Memory;
use crate::{Clock, Denied, Outcome, OutputBound, Policies, Spend};
use proptest::prelude::*;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use tollkeeper_config::Window;
use tollkeeper_config::{PicoUsd, Usd};

/// A store on a disk of so many pages.
struct Cramped {
    store: Sqlite,
    pages: Arc<AtomicU32>,
}

impl Store for Cramped {
    fn tail(&mut self) -> Result<Tail, StoreError> {
        self.store.tail()
    }

    fn append(&mut self, rows: &[Row], state: &[StateChange]) -> Result<(), StoreError> {
        self.store.db.pragma_update(None, "max_page_count", self.pages.load(SeqCst))?;
        self.store.append(rows, state)
    }

    fn state(&mut self, kind: &str) -> Result<Kept, StoreError> {
        self.store.state(kind)
    }

    fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
        self.store.open_attempts(seq)
    }

    fn settled(&mut self, now: i64) -> Result<Vec<Settled>, StoreError> {
        self.store.settled(now)
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[(Window::Total, 1_000_000)]);
    let pages = Arc::new(AtomicU32::new(30));
    let store = Sqlite::open(&config.store.path, Durability::Process).unwrap();
    let store = Box::new(Cramped { store, pages: pages.clone() });
    let (policies, _) = Policies::start(&config, Clock::system(), store, true).unwrap();
    let agent = scout(&policies);
    let mut leases = Vec::new();
    let denied = loop {
        match policies.admit(&agent, spend(nano_per_token(), 10, OutputBound::Whole(10))).await {
            Ok(lease) => leases.push(lease),
            Err(denied) => break denied,
        }
    };
    assert!(matches!(&denied, Denied::StoreDown { reason } if reason.contains("full")), "{denied}");
    let admitted = leases.len();
    assert!(admitted > 10 && !policies.store_up());
    leases.into_iter().for_each(|lease| _ = lease.settle(used(10, 1)));
    assert!(!policies.flush().await);
    let spent = own(&policies, &agent)[0];
    assert_eq!((spent.spent.0, spent.reserved.0), (i64::try_from(admitted).unwrap() * 11, 0));
    pages.store(10_000, SeqCst);
    policies.admit(&agent, spend(nano_per_token(), 10, OutputBound::Whole(10))).await.unwrap().release(Outcome::Done);
    assert!(policies.flush().await && policies.store_up());
    let report = verify(&config.store.path).unwrap();
    assert_eq!((report.settlements, report.open), (u64::try_from(admitted).unwrap(), 0));
    assert_eq!(report.cost, spent.spent);
}

/// A ledger with every kind of row: 1 intent, 2 intent, 3 extension of 2, 4 settlement of 1, 5 settlement of 2 with
/// an overrun, 6 intent, 7 release of 6, 8 intent that stays open, 9 unknown of 8.
async fn sample(folder: &Path) -> PathBuf {
    let config = stored(folder, &[]);
    let clock = clock("2026-03-04T05:06:07Z").0;
    let (policies, _) = Policies::open(&config, clock.clone()).unwrap();
    let agent = scout(&policies);
    let admit = |attempt, bound| policies.admit(&agent, Spend { attempt, ..spend(price(1_500, 700), 10, bound) });
    let first = admit(1, OutputBound::Whole(10)).await.unwrap();
    let mut second = admit(2, growing(4)).await.unwrap();
    second.cover(5).unwrap();
    second.secured().await.unwrap();
    first.settle(used(10, 3));
    second.settle(used(10, 30));
    admit(3, OutputBound::Whole(10)).await.unwrap().release(Outcome::Drained);
    let forgotten = admit(4, OutputBound::Whole(10)).await.unwrap();
    policies.close().await;
    drop((forgotten, policies));
    drop(Policies::open(&config, clock).unwrap());
    config.store.path
}

#[tokio::test]
async fn verify_names_the_first_bad_row_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let path = sample(folder.path()).await;
    let sound = verify(&path).unwrap();
    assert_eq!((sound.rows, sound.intents, sound.extensions), (9, 4, 1));
    assert_eq!((sound.settlements, sound.releases, sound.unknown, sound.open), (2, 1, 1, 0));
    // Costs in nano-dollars: 15 + 2.1 and 15 + 21, of which 15.4 (rounded up) were not leased, and 15 + 7 for the
    // forgotten one.
    assert_eq!((sound.cost, sound.overrun), (Usd(18 + 36 + 22), Usd(36 - 21)));
    let rewrite = |cost: i64| {
        format!(
            "UPDATE ledger SET cost_nano = {cost}, input_tokens = {cost}, output_tokens = 0, input_pico = 1000 WHERE seq = 4"
        )
    };
    let cases: &[(&str, i64, &str)] = &[
        ("UPDATE ledger SET cost_nano = 17 WHERE seq = 4", 4, "cost_nano"),
        ("UPDATE ledger SET output_tokens = 2 WHERE seq = 4", 4, "cost_nano"),
        ("UPDATE ledger SET output_pico = 500 WHERE seq = 4", 4, "cost_nano"),
        ("UPDATE ledger SET overrun_nano = 0 WHERE seq = 5", 5, "overrun_nano"),
        ("UPDATE ledger SET leased_nano = 36, overrun_nano = 0 WHERE seq = 5", 5, "leased_nano"),
        ("UPDATE ledger SET leased_nano = 1 WHERE seq = 3", 3, "leased_nano"),
        ("UPDATE ledger SET agent = 'digger' WHERE seq = 5", 5, "agent"),
        ("UPDATE ledger SET agent = 'digger' WHERE seq = 1", 1, "hash"),
        ("UPDATE ledger SET agent = 'digger' WHERE seq IN (1, 4)", 1, "hash"),
        ("UPDATE ledger SET backend = 'other/small' WHERE seq = 7", 7, "hash"),
        ("UPDATE ledger SET outcome = 'done' WHERE seq = 7", 7, "hash"),
        ("UPDATE ledger SET cost_nano = 5 WHERE seq = 7", 7, "cost_nano"),
        ("UPDATE ledger SET cost_nano = 0 WHERE seq = 9", 9, "cost_nano"),
        ("UPDATE ledger SET ttft_ms = NULL WHERE seq = 4", 4, "hash"),
        ("UPDATE ledger SET estimated = 7 WHERE seq = 4", 4, "estimated"),
        ("UPDATE ledger SET kind = 'gift' WHERE seq = 4", 4, "kind"),
        ("UPDATE ledger SET input_tokens = -1 WHERE seq = 4", 4, "input_tokens"),
        ("UPDATE ledger SET team = 'red' WHERE seq = 4", 4, "team"),
        ("UPDATE ledger SET run = 'r' WHERE seq = 1", 1, "hash"),
        ("UPDATE ledger SET run = 'r' WHERE seq IN (1, 4)", 1, "hash"),
        ("UPDATE ledger SET task = 't' WHERE seq = 9", 9, "task"),
        ("UPDATE ledger SET note = '{}' WHERE seq = 9", 9, "hash"),
        ("UPDATE ledger SET kind = 'change' WHERE seq = 8", 8, "leased_nano"),
        ("UPDATE ledger SET kind = 'change', leased_nano = 0 WHERE seq = 7", 7, "hash"),
        ("UPDATE ledger SET admitted_us = 0 WHERE seq = 4", 4, "admitted_us"),
        ("UPDATE ledger SET request_id = 'x' WHERE seq = 4", 4, "request_id"),
        ("UPDATE ledger SET prev_hash = zeroblob(32) WHERE seq = 4", 4, "prev_hash"),
        ("UPDATE ledger SET hash = zeroblob(32) WHERE seq = 4", 4, "hash"),
        ("UPDATE ledger SET hash = x'00' WHERE seq = 4", 4, "hash"),
        ("DELETE FROM ledger WHERE seq = 4", 5, "seq"),
        ("DELETE FROM ledger WHERE seq = 1", 2, "seq"),
        ("UPDATE ledger SET intent = 2 WHERE seq = 4", 4, "attempt"),
        ("UPDATE ledger SET intent = 1, attempt = 1 WHERE seq = 5", 5, "intent"),
        ("UPDATE ledger SET intent = 99 WHERE seq = 4", 4, "intent"),
        (&rewrite(3), 4, "hash"),
    ];
    for (sql, seq, field) in cases {
        let copy = folder.path().join("copy.db");
        std::fs::copy(&path, &copy).unwrap();
        let db = Connection::open(&copy).unwrap();
        db.execute_batch(
            "PRAGMA ignore_check_constraints = ON; DROP TRIGGER ledger_keeps_rows; DROP TRIGGER ledger_keeps_values",
        )
        .unwrap();
        db.execute_batch(sql).unwrap();
        drop(db);
        let error = verify(&copy).unwrap_err();
        let VerifyError::Row { seq: bad, field: column, .. } = &error else { panic!("{sql}: {error}") };
        assert_eq!((bad, column), (seq, field), "{sql}: {error}");
    }
}

#[tokio::test]
async fn the_table_refuses_changes() {
    let folder = tempfile::tempdir().unwrap();
    let db = Connection::open(sample(folder.path()).await).unwrap();
    for sql in ["UPDATE ledger SET cost_nano = 0", "DELETE FROM ledger", "DELETE FROM ledger WHERE seq = 9"] {
        assert!(db.execute(sql, []).unwrap_err().to_string().contains("append-only"), "{sql}");
    }
}

#[tokio::test]
async fn files_of_a_newer_version_or_of_something_else_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = sample(folder.path()).await;
    let db = Connection::open(&path).unwrap();
    let migrations: i64 = db.query_row("SELECT MAX(version) FROM migrations", [], |row| row.get(0)).unwrap();
    assert_eq!(migrations, known_version());
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let error = Sqlite::open(&path, Durability::Process).err().unwrap();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
    assert!(verify(&path).unwrap_err().to_string().contains("version 99"));

    let other = folder.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
    let before = std::fs::read(&other).unwrap();
    let error = Sqlite::open(&other, Durability::Process).err().unwrap().to_string();
    assert_eq!(std::fs::read(&other).unwrap(), before, "it is left as it was");
    assert!(error.contains("other.db") && error.contains("something else"), "{error}");
}

#[tokio::test]
async fn a_row_is_read_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    let all = Reader::open(&sample(folder.path()).await).unwrap();
    all.rows(|row| {
        rows.push(row.unwrap());
        ControlFlow::Continue(())
    })
    .unwrap();
    let mut odd = rows[3].clone();
    odd.request_id = "zero \0 inside, \u{1f980} and '".into();
    odd.backend = backend("openrouter/openai/gpt/4");
    odd.rates.output = PicoUsd(u64::MAX);
    (odd.team, odd.run, odd.task) = (Some("".into()), Some("r-1".into()), Some("fix \0 it".into()));
    odd.usage.audio_input = 7;
    odd.usage.cache_write_1h = u64::try_from(i64::MAX).unwrap();
    odd.usage.tier = tollkeeper_protocol::usage::ServiceTier::Priority;
    (odd.rates.audio_output, odd.rates.cache_write_1h) = (Some(PicoUsd(u64::MAX)), Some(PicoUsd(0)));
    odd.usage.reasoning = i64::MAX.unsigned_abs();
    (odd.seq, odd.attempt, odd.intent, odd.kind, odd.outcome) = (1, u32::MAX, None, Kind::Intent, None);
    let path = folder.path().join("odd.db");
    Sqlite::open(&path, Durability::Power).unwrap().append(std::slice::from_ref(&odd), &[]).unwrap();
    Reader::open(&path)
        .unwrap()
        .rows(|row| {
            assert_eq!(row.unwrap(), odd);
            ControlFlow::Continue(())
        })
        .unwrap();
}

#[test]
fn a_failed_batch_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Sqlite::open(&folder.path().join("a.db"), Durability::Process).unwrap();
    assert!(store.append(&[a_row(1), a_row(2), a_row(1)], &[]).is_err());
    assert_eq!(store.tail().unwrap(), Tail::default());
    store.append(&[a_row(1), a_row(2)], &[]).unwrap();
    assert_eq!(store.tail().unwrap().seq, 2);
}

/// A row of an attempt, closed or not.
pub(crate) fn a_row(seq: i64) -> Row {
    let payer = Payer::agent("scout").into();
    let row = crate::ledger::attempt::Attempt::new(payer, spend(nano_per_token(), 1, growing(1)), 0, 1).intent_row(seq);
    Row { seq, ..row }
}

/// Rows as they may be found: of a few payers, at any time of the last 40 days.
pub(crate) fn rows() -> impl Strategy<Value = Vec<Row>> {
    let name = |names: &'static [&'static str]| proptest::sample::select(names);
    let maybe = |names| proptest::option::of(name(names));
    let at = prop_oneof![0..3_i64 * 3600, 0..40_i64 * 86400, Just(2 * 3600), Just(32 * 86400)];
    let kind = proptest::sample::select(&[Kind::Settlement, Kind::Release, Kind::Unknown, Kind::Intent]);
    let row = (
        (name(&["a", "b"]), maybe(&["red", "blue", ""]), name(&["x", "y"]), name(&["p/m", "local"]), maybe(&["r"])),
        (kind, at, prop_oneof![0..9_i64, Just(i64::MAX)], 0..1000_u64, 0..1000_u64),
    );
    proptest::collection::vec(row, 0..60).prop_map(|all| {
        let rows =
            (1..).zip(all).map(|(seq, ((agent, team, alias, target, run), (kind, ago, cost, input, output)))| {
                let closes = kind.closes();
                Row {
                    kind,
                    intent: closes.then_some(seq),
                    outcome: closes.then_some("done".into()),
                    agent: agent.into(),
                    team: team.map(Into::into),
                    alias: alias.into(),
                    backend: backend(target),
                    run: run.map(Into::into),
                    admitted: NOW - ago * 1_000_000,
                    cost: if closes { Usd(cost) } else { Usd::ZERO },
                    usage: tollkeeper_protocol::usage::Usage { input, output, ..Default::default() },
                    ..a_row(seq)
                }
            });
        rows.collect()
    })
}

/// 2026-03-04T05:06:07.5Z
pub(crate) const NOW: i64 = 1_772_600_767_500_000;

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn sqlite_and_memory_agree_on_sums(rows in rows()) {
        let folder = tempfile::tempdir().unwrap();
        let (mut sqlite, mut memory) =
            (Sqlite::open(&folder.path().join("a.db"), Durability::Process).unwrap(), Memory::default());
        sqlite.append(&rows, &[]).unwrap();
        memory.append(&rows, &[]).unwrap();
        let sums = memory.settled(NOW).unwrap();
        prop_assert_eq!(&sqlite.settled(NOW).unwrap(), &sums);
        // Whatever the stretches are, nothing is lost in them.
        let closed = || rows.iter().filter(|row| row.outcome.is_some());
        prop_assert_eq!(sums.iter().map(|sum| sum.nano).sum::<i128>(), closed().map(|row| i128::from(row.cost.0)).sum::<i128>());
        for sum in sums.iter().filter(|sum| sum.start != i64::MIN) {
            let (age, quarter) = (NOW - sum.start, 900_000_000);
            let length = if age <= 7_200_000_000 { 60_000_000 } else { quarter };
            prop_assert!(age <= 32 * 86_400_000_000 + quarter, "older ones are one");
            prop_assert!(sum.start % length == 0 || age < 7_200_000_000 + quarter && sum.start % 60_000_000 == 0);
        }
    }
}

#[test]
fn state_is_kept_with_its_row_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let change = |id: &str, body: Option<&str>| StateChange {
        kind: "agent",
        id: id.into(),
        body: body.map(Into::into),
        changed: 7,
    };
    let mut store = Sqlite::open(&path, Durability::Process).unwrap();
    let row = |seq| Row { seq, ..Row::note(Kind::Change, 7, "ops", "agent/b", "{}".into()) };
    store.append(&[row(1)], &[change("b", Some("1")), change("a", Some("2")), change("c", None)]).unwrap();
    assert!(store.append(&[row(2), row(1)], &[change("b", None), change("d", Some("4"))]).is_err());
    store.append(&[row(2)], &[change("b", Some("3"))]).unwrap();
    drop(store);
    let mut store = Sqlite::open(&path, Durability::Process).unwrap();
    assert_eq!(store.state("agent").unwrap(), [("a".into(), "2".into()), ("b".into(), "3".into())]);
    assert_eq!(store.state("run").unwrap(), []);
    store.append(&[row(3)], &[change("a", None)]).unwrap();
    assert_eq!(store.state("agent").unwrap(), [("b".into(), "3".into())]);
}

#[tokio::test]
async fn the_view_says_what_the_postings_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = sample(folder.path()).await;
    let mut derived = Vec::new();
    let mut held = std::collections::HashMap::new();
    let mut book = Book::default();
    let read = |row: Result<Row, _>| {
        let row = row.unwrap();
        let before = row.intent.map_or(Usd::ZERO, |intent| held[&intent]);
        derived.extend(postings(&row, before).map(|it| (row.seq, it.debit.name(), it.credit.name(), it.amount.0)));
        held.insert(row.intent.unwrap_or(row.seq), row.leased);
        book.post(&row, before);
        ControlFlow::Continue(())
    };
    Reader::open(&path).unwrap().rows(read).unwrap();
    let db = Connection::open(&path).unwrap();
    let mut query = db.prepare("SELECT seq, debit, credit, nano FROM postings ORDER BY seq, nano").unwrap();
    let viewed: Vec<(i64, String, String, i64)> = query
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    derived.sort_by_key(|(seq, _, _, nano)| (*seq, *nano));
    let derived: Vec<_> = derived
        .into_iter()
        .map(|(seq, debit, credit, nano)| (seq, debit.to_owned(), credit.to_owned(), nano))
        .collect();
    assert_eq!(viewed, derived);
    // 15.4 rounded up were not leased, and 4 of the first lease came back.
    assert!(viewed.contains(&(5, "spent".into(), "available".into(), 36 - 21)), "{viewed:?}");
    assert!(viewed.contains(&(4, "available".into(), "leased".into(), 22 - 18)), "{viewed:?}");
    let spent = 18 + 36 + 22;
    assert_eq!(book.0["scout"], Balances { available: -spent, leased: 0, spent });
    let report = verify(&path).unwrap();
    assert_eq!(report.agents, [AgentTotals { agent: "scout".into(), leased: Usd::ZERO, spent: Usd(18 + 36 + 22) }]);
}

/// A ledger as version 1 left it: its schema, and rows whose hashes were made without the columns that came later.
async fn version_1(folder: &Path) -> PathBuf {
    let now = sample(folder).await;
    let old = folder.join("old.db");
    migrate(&old, Some(1), false).unwrap();
    let db = Connection::open(&old).unwrap();
    db.execute("ATTACH ?1 AS now", [now.to_str().unwrap()]).unwrap();
    let columns = COLUMNS[..=crate::ledger::row::HASH].join(", ");
    db.execute(&format!("INSERT INTO main.ledger SELECT {columns} FROM now.ledger"), []).unwrap();
    old
}

/// What SQLite knows of the file's content.
fn schema(path: &Path) -> Vec<String> {
    let db = Connection::open(path).unwrap();
    let mut query = db.prepare("SELECT type || ' ' || name FROM sqlite_schema ORDER BY 1").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn migrations_go_up_from_nothing_and_down_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let mut seen = vec![Vec::new()];
    for version in 1..=known_version() {
        let done = migrate(&path, Some(version), false).unwrap();
        assert_eq!((done.from, done.to), (version - 1, version));
        seen.push(schema(&path));
    }
    for version in (0..known_version()).rev() {
        assert_eq!(migrate(&path, Some(version), false).unwrap().to, version);
        assert_eq!(schema(&path), seen[usize::try_from(version).unwrap()], "as it was at version {version}");
    }
    assert_eq!(migrate(&path, None, false).unwrap().to, known_version());
    let Err(MigrateError::Unknown { known, .. }) = migrate(&path, Some(99), false) else { panic!("no version 99") };
    assert_eq!(known, known_version());
}

#[tokio::test]
async fn a_way_down_loses_nothing_that_it_was_not_allowed_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = version_1(folder.path()).await;
    let before = verify(&path).unwrap();
    // Rows that version 1 can hold survive the whole way, and prove themselves at every version.
    for version in [3, 2, 1, 3] {
        migrate(&path, Some(version), false).unwrap();
        assert_eq!(verify(&path).unwrap(), before, "version {version}");
    }
    let mut store = Sqlite::open(&path, Durability::Process).unwrap();
    let tail = store.tail().unwrap();
    let mut rows = [
        Row { team: Some("red".into()), ..a_row(10) },
        Row {
            kind: Kind::Release,
            intent: Some(10),
            outcome: Some("done".into()),
            team: Some("red".into()),
            ..a_row(11)
        },
    ];
    crate::ledger::writer::seal(Tail { oldest_open: 10, ..tail }, &mut rows, &mut Vec::new());
    let kept = StateChange { kind: "agent", id: "a".into(), body: Some("1".into()), changed: 7 };
    store.append(&rows, &[kept]).unwrap();
    assert!(matches!(migrate(&path, Some(1), true), Err(MigrateError::Open(OpenError::Locked { .. }))));
    drop(store);
    let after = verify(&path).unwrap();
    assert_eq!(after.rows, 11);
    let Err(MigrateError::Loses { losses, .. }) = migrate(&path, Some(1), false) else { panic!("that loses a row") };
    assert_eq!((losses.rows, losses.kept), (2, 1));
    assert_eq!(verify(&path).unwrap(), after, "refused, and nothing happened");
    assert_eq!(migrate(&path, Some(1), true).unwrap().lost, losses);
    assert_eq!(verify(&path).unwrap(), before, "what is left is whole");
    let Err(MigrateError::Loses { losses, .. }) = migrate(&path, Some(0), false) else { panic!("that loses all") };
    assert_eq!((losses.rows, losses.kept), (9, 0));
    migrate(&path, Some(0), true).unwrap();
    assert_eq!(schema(&path), Vec::<String>::new());
}

#[tokio::test]
async fn ledgers_of_version_1_are_read_as_they_are_and_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = version_1(folder.path()).await;
    let before = verify(&path).unwrap();
    let spent = crate::report::spend_by(&path, &Default::default()).unwrap();
    assert_eq!((before.rows, before.cost), (9, Usd(18 + 36 + 22)));
    assert_eq!(version(&Connection::open(&path).unwrap()).unwrap(), 1, "reading changes nothing");
    let mut config = stored(folder.path(), &[]);
    config.store.path = path.clone();
    let (policies, _) = Policies::open(&config, clock("2026-03-04T06:00:00Z").0).unwrap();
    assert_eq!(version(&Connection::open(&path).unwrap()).unwrap(), known_version());
    assert_eq!((verify(&path).unwrap(), crate::report::spend_by(&path, &Default::default()).unwrap()), (before, spent));
    policies.admit(&scout(&policies), spend(nano_per_token(), 10, growing(4))).await.unwrap().settle(used(10, 1));
    policies.close().await;
    assert_eq!(verify(&path).unwrap().cost, Usd(18 + 36 + 22 + 11));
    let db = Connection::open(&path).unwrap();
    assert!(db.execute("DELETE FROM ledger", []).unwrap_err().to_string().contains("append-only"));
}
