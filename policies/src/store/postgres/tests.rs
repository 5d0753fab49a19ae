//! Tests of the PostgreSQL store on a real server: what it keeps, who may write, batches in doubt, versions.

use super::*;
use crate::ledger::row::{COLUMNS, Kind};
use crate::ledger::writer::seal;
use crate::place::Place;
use crate::report::{CompactError, MigrateError, VerifyError, compact, ledgers, migrate, spend_by, verify};
use crate::setup::{clock, growing, nano_per_token, price, scout, spend as a_spend, stored_in, used};
use crate::store::memory::Memory;
use crate::store::reader::Reader;
use crate::store::sqlite::tests::{NOW, a_row, rows};
use crate::{Outcome, OutputBound, Policies, Spend};
use proptest::prelude::*;
use std::ops::ControlFlow;
use tollkeeper_config::{PicoUsd, Secret, Usd};
use tollkeeper_servers::PostgresServer;

fn database(url: &str, gateway: &str) -> Database {
    Database { url: Secret::new(url), gateway: Some(gateway.to_owned()), timeout: Duration::from_secs(2) }
}

fn place(url: &str, gateway: &str) -> Place {
    Place::Database(database(url, gateway))
}

/// The name at the end of a URL.
fn name(url: &str) -> &str {
    url.split('?').next().unwrap().rsplit('/').next().unwrap()
}

/// Rows as the next of a chain.
fn sealed(tail: Tail, mut rows: Vec<Row>) -> Vec<Row> {
    seal(Tail { oldest_open: 1, ..tail }, &mut rows, &mut Vec::new());
    rows
}

#[test]
fn rows_are_read_back_as_they_were_written() {
    let url = PostgresServer::shared().database();
    let mut store = Postgres::open(&database(&url, "left")).unwrap();
    let mut odd = a_row(1);
    odd.request_id = "zero \0 inside, \u{1f980}, \u{e000}0 and '".into();
    odd.backend = crate::ledger::row::backend("openrouter/openai/gpt/4");
    odd.rates.output = PicoUsd(u64::MAX);
    (odd.team, odd.run, odd.task) = (Some("".into()), Some("r-1".into()), Some("fix \0 it".into()));
    odd.usage.audio_input = 7;
    odd.usage.cache_write_1h = i64::MAX.unsigned_abs();
    odd.usage.tier = tollkeeper_protocol::usage::ServiceTier::Priority;
    (odd.rates.audio_output, odd.rates.cache_write_1h) = (Some(PicoUsd(u64::MAX)), Some(PicoUsd(0)));
    odd.attempt = u32::MAX;
    let written = sealed(Tail::default(), vec![odd, a_row(2)]);
    store.append(&written, &[]).unwrap();
    let tail = store.tail().unwrap();
    assert_eq!((tail.seq, tail.hash), (2, written[1].hash));
    assert_eq!(store.open_attempts(1).unwrap(), written);
    assert_eq!(store.open_attempts(2).unwrap(), written[1..]);
    let mut read = Vec::new();
    let visit = |row: Result<Row, _>| {
        read.push(row.unwrap());
        ControlFlow::Continue(())
    };
    Reader::open(&place(&url, "left")).unwrap().rows(&Some("left".into()), visit).unwrap();
    assert_eq!(read, written);
}

#[test]
fn a_failed_batch_leaves_nothing_behind_and_the_next_is_written() {
    let url = PostgresServer::shared().database();
    let mut store = Postgres::open(&database(&url, "left")).unwrap();
    let change = |id: &str, body: Option<&str>| StateChange {
        kind: "agent",
        id: id.into(),
        body: body.map(Into::into),
        changed: 7,
    };
    let row = |seq| Row { seq, ..Row::note(Kind::Change, 7, "ops", "agent/b", "{}".into()) };
    let first = [change("b", Some("0")), change("b", Some("1")), change("a", Some("2")), change("c", None)];
    store.append(&[row(1)], &first).unwrap();
    assert!(store.append(&[row(2), row(1)], &[change("b", None), change("d", Some("4"))]).is_err());
    assert!(!store.in_doubt(), "the server has said that it did not");
    std::thread::sleep(RETRY);
    store.append(&[row(2)], &[change("b", Some("3")), change("e\0", Some("5"))]).unwrap();
    drop(store);
    let mut store = Postgres::open(&database(&url, "left")).unwrap();
    let kept =
        |pairs: &[(&str, &str)]| -> Kept { pairs.iter().map(|(id, body)| ((*id).into(), (*body).into())).collect() };
    assert_eq!(store.state("agent").unwrap(), kept(&[("a", "2"), ("b", "3"), ("e\0", "5")]));
    assert_eq!(store.state("run").unwrap(), []);
    store.append(&[], &[change("a", None), change("e\0", None)]).unwrap();
    assert_eq!(store.state("agent").unwrap(), kept(&[("b", "3")]));
    // Another gateway has its own.
    assert_eq!(Postgres::open(&database(&url, "right")).unwrap().state("agent").unwrap(), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn postgres_and_memory_agree_on_sums(rows in rows(), which in any::<u64>()) {
        static URL: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        let url = URL.get_or_init(|| PostgresServer::shared().database());
        let mut memory = Memory::default();
        let mut postgres = Postgres::open(&database(url, &format!("g{which}"))).unwrap();
        if !rows.is_empty() && postgres.tail().unwrap() == Tail::default() {
            postgres.append(&rows, &[]).unwrap();
            memory.append(&rows, &[]).unwrap();
            prop_assert_eq!(postgres.settled(NOW).unwrap(), memory.settled(NOW).unwrap());
            prop_assert_eq!(postgres.open_attempts(1).unwrap(), memory.open_attempts(1).unwrap());
        }
    }
}

#[test]
fn one_process_writes_under_a_name() {
    let url = PostgresServer::shared().database();
    let left = Postgres::open(&database(&url, "left")).unwrap();
    let right = Postgres::open(&database(&url, "right")).unwrap();
    let error =
        Postgres::open(&Database { timeout: Duration::from_millis(300), ..database(&url, "left") }).err().unwrap();
    let OpenError::Held { holder, .. } = &error else { panic!("{error}") };
    assert!(holder.contains(&format!("tollkeeper left (process {})", std::process::id())), "{holder}");
    assert!(!error.to_string().contains("postgres@"), "{error}");
    drop((left, right));
    Postgres::open(&database(&url, "left")).unwrap();
}

/// Ends every connection that a gateway writes by.
fn cut(server: &PostgresServer, gateway: &str) {
    let sql = format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE 'tollkeeper {gateway} %'"
    );
    assert_eq!(server.sql("postgres", &sql), "t");
}

#[test]
fn who_has_lost_its_name_writes_only_when_the_chain_is_still_its_own() {
    let server = PostgresServer::shared();
    let url = server.database();
    let mut store = Postgres::open(&database(&url, "cut")).unwrap();
    let first = sealed(Tail::default(), vec![a_row(1)]);
    store.append(&first, &[]).unwrap();
    cut(server, "cut");
    let second = sealed(store.end.into_tail(), vec![a_row(2)]);
    // Whether the first try finds the connection gone or not: in the end it is written, once.
    while store.append(&second, &[]).is_err() {
        std::thread::sleep(RETRY / 4);
    }
    assert_eq!(server.sql(name(&url), "SELECT string_agg(seq::text, ',') FROM ledger"), "1,2");
    // Somebody else takes the name meanwhile, and writes.
    cut(server, "cut");
    let mut other = Postgres::open(&database(&url, "cut")).unwrap();
    let theirs = sealed(other.tail().unwrap(), vec![Row { agent: "other".into(), ..a_row(3) }]);
    other.append(&theirs, &[]).unwrap();
    let third = sealed(store.end.into_tail(), vec![a_row(3)]);
    for _ in 0..2 {
        let error = store.append(&third, &[]).unwrap_err().to_string();
        assert!(!error.contains("somebody else"), "{error}");
        std::thread::sleep(RETRY);
    }
    drop(other);
    let error = store.append(&third, &[]).unwrap_err().to_string();
    assert!(error.contains("somebody else has written it"), "{error}");
    assert_eq!(server.sql(name(&url), "SELECT string_agg(agent, ',' ORDER BY seq) FROM ledger"), "scout,scout,other");
}

trait IntoTail {
    fn into_tail(self) -> Tail;
}

impl IntoTail for End {
    fn into_tail(self) -> Tail {
        Tail { seq: self.0, hash: self.1, oldest_open: 1 }
    }
}

/// A ledger with every kind of row, as that of the tests of SQLite: 9 rows, 18 + 36 + 22 nano-dollars.
async fn sample(url: &str) {
    let config = stored_in(url, "left", &[]);
    let clock = clock("2026-03-04T05:06:07Z").0;
    let (policies, _) = Policies::open(&config, clock.clone()).unwrap();
    let agent = scout(&policies);
    let admit = |attempt, bound| policies.admit(&agent, Spend { attempt, ..a_spend(price(1_500, 700), 10, bound) });
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
    let (_, recovered) = Policies::open(&config, clock).unwrap();
    assert_eq!((recovered.unknown, recovered.amount), (1, Usd(22)));
}

#[tokio::test]
async fn verify_names_the_first_bad_row_and_column() {
    let server = PostgresServer::shared();
    let url = server.database();
    sample(&url).await;
    let sound = verify(place(&url, "left")).unwrap();
    assert_eq!((sound.rows, sound.intents, sound.extensions, sound.open), (9, 4, 1, 0));
    assert_eq!((sound.settlements, sound.releases, sound.unknown), (2, 1, 1));
    assert_eq!((sound.cost, sound.overrun), (Usd(18 + 36 + 22), Usd(36 - 21)));
    for sql in ["UPDATE ledger SET cost_nano = 0", "DELETE FROM ledger WHERE seq = 9", "TRUNCATE ledger"] {
        assert!(server.ask(name(&url), sql).unwrap_err().contains("append-only"), "{sql}");
    }
    server.sql(name(&url), "ALTER TABLE ledger DISABLE TRIGGER USER");
    let cases = [
        ("cost_nano = 17 WHERE seq = 4", 4, "cost_nano"),
        ("leased_nano = 1 WHERE seq = 3", 3, "leased_nano"),
        ("agent = 'digger' WHERE seq = 1", 1, "hash"),
        ("ttft_ms = NULL WHERE seq = 4", 4, "hash"),
        ("hash = '\\x00' WHERE seq = 4", 4, "hash"),
        ("team = 'red' WHERE seq = 4", 4, "team"),
        ("gateway = 'right' WHERE seq = 4", 5, "seq"),
    ];
    for (change, row, column) in cases {
        server.sql(name(&url), &format!("CREATE TABLE copy AS TABLE ledger; UPDATE ledger SET {change}"));
        let error = verify(place(&url, "left")).unwrap_err();
        let VerifyError::Row { seq, field, .. } = &error else { panic!("{change}: {error}") };
        assert_eq!((*seq, *field), (row, column), "{change}: {error}");
        server.sql(name(&url), "DELETE FROM ledger; INSERT INTO ledger SELECT * FROM copy; DROP TABLE copy");
    }
    assert_eq!(verify(place(&url, "left")).unwrap(), sound);
}

#[tokio::test]
async fn the_view_balances() {
    let server = PostgresServer::shared();
    let url = server.database();
    sample(&url).await;
    let sql = "SELECT debit, credit, nano FROM postings WHERE seq = 5 ORDER BY nano";
    assert_eq!(server.sql(name(&url), sql), "spent|available|15\nspent|leased|21");
    let sum = "SELECT SUM(CASE 'spent' WHEN debit THEN nano ELSE 0 END),
                      SUM(CASE 'leased' WHEN debit THEN nano WHEN credit THEN -nano ELSE 0 END) FROM postings";
    assert_eq!(server.sql(name(&url), sum), "76|0");
}

/// The tables and all about them, as the server tells it.
fn schema(server: &PostgresServer, url: &str) -> String {
    let sql = "SELECT relkind, relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
               UNION ALL SELECT 'f', proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
               UNION ALL SELECT 't', tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2";
    server.sql(name(url), sql)
}

#[tokio::test]
async fn migrations_go_up_from_nothing_and_down_to_nothing_and_keep_rows() {
    let server = PostgresServer::shared();
    let url = server.database();
    let all = Place::Database(Database { gateway: None, ..database(&url, "") });
    let mut seen = vec![String::new()];
    for version in 1..=tables::known_version() {
        let done = migrate(&all, Some(version), false).unwrap();
        assert_eq!((done.from, done.to), (version - 1, version));
        seen.push(schema(server, &url));
    }
    for version in (0..tables::known_version()).rev() {
        assert_eq!(migrate(&all, Some(version), false).unwrap().to, version);
        assert_eq!(schema(server, &url), seen[usize::try_from(version).unwrap()], "as it was at version {version}");
    }
    assert!(verify(&all).unwrap_err().to_string().contains("it holds no ledger"));
    sample(&url).await;
    let before = verify(&all).unwrap();
    // An older version is read as it is, and a gateway brings it up.
    migrate(&all, Some(1), false).unwrap();
    assert_eq!(verify(&all).unwrap(), before);
    let gateway = Postgres::open(&database(&url, "left")).unwrap();
    assert_eq!(schema(server, &url), seen[2]);
    assert_eq!(verify(&all).unwrap(), before);
    let error = migrate(
        Place::Database(Database { timeout: Duration::from_millis(300), ..database(&url, "") }),
        Some(1),
        false,
    );
    assert!(matches!(error, Err(MigrateError::Open(OpenError::Held { .. }))), "a gateway uses it: {error:?}");
    drop(gateway);
    let Err(MigrateError::Loses { losses, .. }) = migrate(&all, Some(0), false) else { panic!("that loses all") };
    assert_eq!(losses.rows, 9);
    assert_eq!(verify(&all).unwrap(), before, "refused, and nothing happened");
    assert_eq!(migrate(&all, Some(0), true).unwrap().lost, losses);
    assert_eq!(schema(server, &url), "");
    server.sql(
        name(&url),
        "CREATE TABLE ledger_migrations (version BIGINT, at_us BIGINT); INSERT INTO ledger_migrations VALUES (99, 0)",
    );
    let error = Postgres::open(&database(&url, "left")).err().unwrap();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn a_chain_is_compacted_and_others_are_left_alone() {
    let server = PostgresServer::shared();
    let url = server.database();
    sample(&url).await;
    server.sql(name(&url), "INSERT INTO gateways VALUES ('right')");
    let columns = COLUMNS.join(", ");
    server.sql(name(&url), &format!("INSERT INTO ledger (gateway, {columns}) SELECT 'right', {columns} FROM ledger"));
    let (left, right) = (place(&url, "left"), place(&url, "right"));
    let (before, other) = (verify(&left).unwrap(), verify(&right).unwrap());
    let spent = spend_by(&left, &Default::default()).unwrap();
    let (cut, now) = ("2026-03-06T00:00:00Z".parse().unwrap(), "2026-05-06T00:00:00Z".parse().unwrap());
    let gateway = Postgres::open(&database(&url, "left")).unwrap();
    let busy = Place::Database(Database { timeout: Duration::from_millis(300), ..database(&url, "left") });
    assert!(matches!(compact(busy, cut, now), Err(CompactError::Open(OpenError::Held { .. }))));
    drop(gateway);
    let done = compact(&left, cut, now).unwrap();
    assert_eq!((done.removed, done.summaries), (9, 2));
    let after = verify(&left).unwrap();
    assert_eq!((after.cost, after.agents, after.rows), (before.cost, before.agents, 3));
    assert_eq!(spend_by(&left, &Default::default()).unwrap(), spent);
    assert_eq!(verify(&right).unwrap(), other);
    assert_eq!(compact(&left, cut, now).unwrap().removed, 0, "once is enough");
    assert!(server.ask(name(&url), "DELETE FROM ledger WHERE gateway = 'right'").is_err());
    // Life goes on after it.
    let (policies, _) = Policies::open(&stored_in(&url, "left", &[]), clock("2026-05-06T01:00:00Z").0).unwrap();
    policies.admit(&scout(&policies), a_spend(nano_per_token(), 10, growing(4))).await.unwrap().settle(used(10, 1));
    policies.close().await;
    assert_eq!(verify(&left).unwrap().cost, Usd(76 + 11));
    assert_eq!(ledgers(Place::Database(Database { gateway: None, ..database(&url, "") })).unwrap(), [left, right]);
}

#[test]
fn what_is_no_database_of_ours_is_told() {
    let timeout = Duration::from_millis(300);
    let open = |url: &str| {
        let error = Postgres::open(&Database { timeout, ..database(url, "left") }).err().unwrap().to_string();
        assert!(!error.contains("s3cret"), "{error}");
        error
    };
    assert!(open("postgres://me:s3cret@127.0.0.1:1/x").contains("127.0.0.1:1/x"));
    assert!(open("postgres://me:s3cret@[x").contains("no URL"));
    let server = PostgresServer::shared();
    server.sql("postgres", "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
    assert!(open(&server.url("latin")).contains("LATIN1"));
}

#[test]
fn tls_is_used_and_the_server_must_prove_who_it_is() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.pem();
    let server = PostgresServer::with_tls(&certificate, &made.signing_key.serialize_pem());
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, pem: &str| {
        std::fs::write(folder.path().join(name), pem).unwrap();
        folder.path().join(name).display().to_string()
    };
    let open = |host: &str, root: &str| {
        let url = format!("{}?sslmode=verify-full&sslrootcert={root}", server.tcp_url("postgres", host));
        Postgres::open(&database(&url, "left"))
    };
    let right = write("right.pem", &certificate);
    let store = open("localhost", &right).unwrap();
    let sql =
        "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'tollkeeper left %'";
    assert_eq!(server.sql("postgres", sql), "t");
    drop(store);
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    assert!(open("localhost", &write("wrong.pem", &other.cert.pem())).is_err(), "it is signed by somebody else");
    assert!(open("127.0.0.1", &right).is_err(), "it is of another name");
}

#[test]
fn a_gateway_needs_no_more_rights_than_the_docs_say() {
    let server = PostgresServer::shared();
    let url = server.database();
    migrate(place(&url, "left"), None, false).unwrap();
    let role = format!("gateway_{}", name(&url));
    let grants = [
        "SELECT, INSERT ON ledger",
        "SELECT, INSERT, UPDATE, DELETE ON state",
        "SELECT, INSERT ON gateways",
        "SELECT ON ledger_migrations",
    ];
    let grants: Vec<String> = grants.iter().map(|grant| format!("GRANT {grant} TO {role};")).collect();
    server.sql(name(&url), &format!("CREATE ROLE {role} LOGIN; {}", grants.concat()));
    let as_role = url.replace("//postgres@", &format!("//{role}@"));
    let mut store = Postgres::open(&database(&as_role, "left")).unwrap();
    let change =
        |body: Option<&str>| StateChange { kind: "agent", id: "a".into(), body: body.map(Into::into), changed: 7 };
    for (seq, change) in [(1, change(Some("1"))), (2, change(Some("2"))), (3, change(None))] {
        let rows = sealed(store.end.into_tail(), vec![a_row(seq)]);
        store.append(&rows, &[change]).unwrap();
    }
    // It may end its own connection before, and take its name again.
    store.link = None;
    store.append(&sealed(store.end.into_tail(), vec![a_row(4)]), &[]).unwrap();
    assert_eq!(verify(place(&as_role, "left")).unwrap().rows, 4);
    assert!(store.settled(NOW).unwrap().is_empty() && store.open_attempts(1).unwrap().len() == 4);
    let refused = server.ask(name(&url), &format!("SET ROLE {role}; DELETE FROM ledger")).unwrap_err();
    assert!(refused.contains("permission denied"), "{refused}");
}
