//! Gateways whose ledgers are in PostgreSQL: a real server that is killed, stopped, restarted and cut off while they work.
//! Nothing is admitted that is not on record, nothing is written twice or forgotten.

use crate::setup::{add_agent, clock, growing, nano_per_token, own, scout, spend, stored_in, used};
use std::time::{Duration, Instant};
use tollkeeper_config::{Config, Secret, Usd, Window};
use tollkeeper_policies::report::{
    ExportFilter, Format, MigrateError, Reconcile, SpendGroup, SpendQuery, VerifyReport, export, ledgers, migrate,
    reconcile, spend_by, verify,
};
use tollkeeper_policies::{
    AgentSpec, Clock, Denied, Lease, OpenError, Outcome, OutputBound, Place, Policies, Recovered,
};
use tollkeeper_servers::{PostgresServer, Proxy};

/// How long anything may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(60);
const WHOLE: OutputBound = OutputBound::Whole(10);

/// A gateway's configuration; it waits no longer than a test can.
fn config(url: &str, gateway: &str) -> Config {
    let mut config = stored_in(url, gateway, &[(Window::Total, 1_000_000)]);
    config.store.timeout = Duration::from_millis(700);
    config
}

fn verified(config: &Config) -> VerifyReport {
    verify(Place::own(&config.store)).unwrap()
}

/// What a database holds, through the server's own client.
fn count(server: &PostgresServer, url: &str, condition: &str) -> u64 {
    let database = url.split('?').next().unwrap().rsplit('/').next().unwrap();
    server.sql(database, &format!("SELECT COUNT(*) FROM ledger WHERE {condition}")).parse().unwrap()
}

async fn admit(policies: &Policies) -> Result<Lease, Denied> {
    policies.admit(&scout(policies), spend(nano_per_token(), 10, WHOLE)).await
}

/// Admits as soon as the database takes it.
async fn admitted_at_last(policies: &Policies) -> Lease {
    let start = Instant::now();
    loop {
        match admit(policies).await {
            Ok(lease) => return lease,
            Err(Denied::StoreDown { .. }) if start.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(denied) => panic!("{denied}"),
        }
    }
}

/// (spent, reserved) of the one budget.
fn stands(policies: &Policies) -> (i64, i64) {
    let budget = own(policies, &scout(policies))[0];
    (budget.spent.0, budget.reserved.0)
}

#[tokio::test]
async fn counters_and_what_was_made_survive_a_restart_and_a_crash() {
    let url = PostgresServer::shared().database();
    let config = config(&url, "left");
    let clock = clock("2026-03-04T05:06:07Z").0;
    let (policies, recovered) = Policies::open(&config, clock.clone()).unwrap();
    assert_eq!(recovered, Recovered::default());
    policies.create_agent("ops", "digger", AgentSpec::default()).await.unwrap();
    for output in 1..=9 {
        admit(&policies).await.unwrap().settle(used(10, output));
    }
    let forgotten = admit(&policies).await.unwrap();
    policies.close().await;
    drop((forgotten, policies));
    let (policies, recovered) = Policies::open(&config, clock.clone()).unwrap();
    assert_eq!(recovered, Recovered { unknown: 1, amount: Usd(20) });
    assert_eq!(stands(&policies), (135 + 20, 0));
    assert!(policies.agents().iter().any(|agent| &*agent.name == "digger"));
    drop(policies);
    let report = verified(&config);
    assert_eq!((report.settlements, report.unknown, report.open, report.cost), (9, 1, 0, Usd(155)));
    // Once only.
    assert_eq!(Policies::open(&config, clock).unwrap().1, Recovered::default());
}

#[tokio::test]
async fn gateways_write_side_by_side_and_reports_read_them_all() {
    let server = PostgresServer::shared();
    let url = server.database();
    let gates = ["left", "right"].map(|gateway| {
        let mut config = config(&url, gateway);
        add_agent(&mut config, "digger", &[]);
        let (policies, _) = Policies::open(&config, clock("2026-03-04T05:06:07Z").0).unwrap();
        (config, policies)
    });
    let mut tasks = tokio::task::JoinSet::new();
    for (_, policies) in &gates {
        for _ in 0..4 {
            let policies = policies.clone();
            tasks.spawn(async move {
                for _ in 0..25 {
                    admit(&policies).await.unwrap().settle(used(10, 1));
                }
            });
        }
    }
    tasks.join_all().await;
    // A name is used by one process only.
    let error = Policies::open(&gates[0].0, Clock::system()).unwrap_err();
    assert!(matches!(error, OpenError::Held { .. }), "{error}");
    for (config, policies) in &gates {
        assert_eq!(stands(policies), (1100, 0), "each gateway counts its own");
        assert!(policies.flush().await);
        assert_eq!(verified(config).cost, Usd(1100));
    }
    let fleet = Place::fleet(&gates[0].0.store);
    let names: Vec<_> =
        ledgers(&fleet).unwrap().iter().map(|place| place.gateway().unwrap_or_default().to_owned()).collect();
    assert_eq!(names, ["left", "right"]);
    assert!(verify(&fleet).unwrap_err().to_string().contains("name one"));
    let groups = vec![SpendGroup::Gateway, SpendGroup::Agent, SpendGroup::Day];
    let query = SpendQuery { groups, ..SpendQuery::default() };
    let spent = |place: &Place| -> Vec<(String, u64, i64)> {
        let sums = spend_by(place, &query).unwrap();
        sums.into_iter()
            .map(|sum| (sum.group.into_iter().flatten().collect::<Vec<_>>().join(" "), sum.attempts, sum.cost.0))
            .collect()
    };
    let line = |gateway: &str| (format!("{gateway} scout 2026-03-04"), 100, 1100);
    assert_eq!(spent(&fleet), [line("left"), line("right")]);
    assert_eq!(spent(&fleet.clone().of_gateway("right").unwrap()), [line("right")]);
    let mut csv = Vec::new();
    let exported = export(&fleet, &ExportFilter::default(), Format::Csv, &mut csv).unwrap();
    assert_eq!((exported.rows, exported.gateways.len()), (400, 2));
    let mut reader = csv::Reader::from_reader(&csv[..]);
    assert_eq!(reader.headers().unwrap().iter().next_back(), Some("gateway"));
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.iter().filter(|row| row.iter().next_back() == Some("right")).count(), 200);
    let how =
        Reconcile { provider: "openai".into(), zone: jiff::tz::TimeZone::UTC, tolerance: Usd(0), token_tolerance: 0 };
    let invoice = "day,model,input_tokens,output_tokens,cost_usd\n2026-03-04,small,2000,200,0.0000022\n";
    let lines = reconcile(&fleet, invoice.as_bytes(), &how).unwrap();
    assert!(lines.len() == 1 && !lines[0].differs, "{lines:?}");
    assert!(matches!(migrate(&fleet, Some(0), true), Err(MigrateError::Open(OpenError::Held { .. }))), "they use it");
}

#[tokio::test]
async fn a_server_that_is_killed_refuses_and_forgets_nothing() {
    let mut server = PostgresServer::start();
    let config = config(&server.database(), "left");
    let (policies, _) = Policies::open(&config, Clock::system()).unwrap();
    let kept = admit(&policies).await.unwrap();
    let mut stream = policies.admit(&scout(&policies), spend(nano_per_token(), 10, growing(4))).await.unwrap();
    server.kill();
    let denied = admit(&policies).await.unwrap_err();
    assert!(matches!(denied, Denied::StoreDown { .. }), "{denied}");
    assert!(!policies.store_up());
    assert_eq!(stands(&policies), (0, 20 + 14), "the refused one gave everything back");
    assert!(matches!(stream.cover(5), Err(Denied::StoreDown { .. })), "more is not granted");
    let asked = Instant::now();
    policies.create_agent("ops", "digger", AgentSpec::default()).await.unwrap_err();
    assert!(asked.elapsed() < Duration::from_secs(20), "nobody is left waiting");
    kept.settle(used(10, 3));
    stream.settle(used(10, 4));
    server.restart();
    admitted_at_last(&policies).await.settle(used(10, 1));
    assert!(policies.flush().await && policies.store_up());
    assert_eq!(stands(&policies), (13 + 14 + 11, 0));
    let report = verified(&config);
    assert_eq!((report.settlements, report.unknown, report.open, report.cost), (3, 0, 0, Usd(38)));
    policies.close().await;
    assert_eq!(Policies::open(&config, Clock::system()).unwrap().1, Recovered::default());
}

#[tokio::test]
async fn a_server_that_stops_refuses_in_time_and_nothing_is_written_twice() {
    let server = PostgresServer::start();
    let config = config(&server.database(), "left");
    let (policies, _) = Policies::open(&config, Clock::system()).unwrap();
    let kept = admit(&policies).await.unwrap();
    server.stop(true);
    let start = Instant::now();
    // The first intent is sent and not answered; it may be written once the server goes on.
    let denied = admit(&policies).await.unwrap_err();
    assert!(matches!(denied, Denied::StoreDown { .. }), "{denied}");
    kept.settle(used(10, 3));
    while start.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        let denied = admit(&policies).await.unwrap_err();
        assert!(matches!(denied, Denied::StoreDown { .. }), "{denied}");
        assert!(asked.elapsed() < Duration::from_secs(4), "refused after {:?}", asked.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop(false);
    admitted_at_last(&policies).await.settle(used(10, 1));
    assert!(policies.flush().await);
    assert_eq!(stands(&policies), (13 + 11, 0));
    let report = verified(&config);
    assert_eq!((report.settlements, report.open, report.cost), (2, 0, Usd(24)), "{report:?}");
    assert_eq!(report.intents, report.settlements + report.releases);
    policies.close().await;
}

/// A gateway behind a wire that a test can cut.
async fn wired(url: &str, name: &str, gateway: &str) -> (Proxy, Config, Policies) {
    let proxy = Proxy::to(PostgresServer::shared().socket()).await;
    let mut config = config(url, gateway);
    config.store.url = Some(Secret::new(format!("postgres://postgres@{}/{name}?sslmode=disable", proxy.addr())));
    let opened = config.clone();
    // It waits for the proxy, which runs here.
    let policies =
        tokio::task::spawn_blocking(move || Policies::open(&opened, Clock::system()).unwrap().0).await.unwrap();
    (proxy, config, policies)
}

fn database_of(url: &str) -> &str {
    url.split('?').next().unwrap().rsplit('/').next().unwrap()
}

/// The rows of attempts: their kinds, in order.
fn kinds(server: &PostgresServer, url: &str) -> String {
    server.sql(database_of(url), "SELECT string_agg(kind, ' ' ORDER BY seq) FROM ledger WHERE kind <> 'change'")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_answer_is_lost_is_found_and_not_written_again() {
    let server = PostgresServer::shared();
    let url = server.database();
    let (proxy, _, policies) = wired(&url, database_of(&url), "left").await;
    let first = admit(&policies).await.unwrap();
    // The intent is written, but nobody hears of it: refused, and taken back once that is known.
    proxy.cut();
    let denied = admit(&policies).await.unwrap_err();
    assert!(matches!(denied, Denied::StoreDown { .. }) && proxy.has_cut(), "{denied}");
    assert_eq!(stands(&policies), (0, 20));
    admitted_at_last(&policies).await.settle(used(10, 1));
    assert!(policies.flush().await);
    assert_eq!(kinds(server, &url), "intent intent release intent settlement");
    // The same with a settlement.
    proxy.cut();
    first.settle(used(10, 3));
    while !proxy.has_cut() || !policies.flush().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(kinds(server, &url), "intent intent release intent settlement settlement");
    // And with a change: who made it hears of it when it is known.
    proxy.cut();
    policies.create_agent("ops", "digger", AgentSpec::default()).await.unwrap();
    assert!(proxy.has_cut());
    assert_eq!(count(server, &url, "kind = 'change'"), 1);
    assert_eq!(stands(&policies), (11 + 13, 0));
    policies.close().await;
    let report = verified(&config(&url, "left"));
    assert_eq!((report.cost, report.open, report.releases), (Usd(24), 0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_arrives_late_is_not_written_any_more() {
    let server = PostgresServer::shared();
    let url = server.database();
    let (proxy, _, policies) = wired(&url, database_of(&url), "left").await;
    admit(&policies).await.unwrap().settle(used(10, 3));
    assert!(policies.flush().await);
    proxy.hold();
    let denied = admit(&policies).await.unwrap_err();
    assert!(matches!(denied, Denied::StoreDown { .. }), "{denied}");
    // Another connection has taken over; what comes over the old one now is too late.
    let lease = admitted_at_last(&policies).await;
    proxy.let_go();
    lease.settle(used(10, 1));
    assert!(policies.flush().await);
    policies.close().await;
    let report = verified(&config(&url, "left"));
    assert_eq!((report.cost, report.open, report.settlements), (Usd(24), 0, 2), "{report:?}");
    assert_eq!(report.intents, report.settlements + report.releases);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_cuts_lose_nothing_and_double_nothing() {
    let server = PostgresServer::shared();
    let url = server.database();
    let (proxy, _, policies) = wired(&url, database_of(&url), "left").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let policies = policies.clone();
        tasks.spawn(async move {
            let mut spent = 0;
            for _ in 0..60 {
                admitted_at_last(&policies).await.settle(used(10, 1));
                spent += 11;
            }
            spent
        });
    }
    let cutter = tokio::spawn(async move {
        for round in 0..12 {
            tokio::time::sleep(Duration::from_millis(30 + 7 * round)).await;
            proxy.cut();
        }
    });
    let spent: i64 = tasks.join_all().await.into_iter().sum();
    cutter.await.unwrap();
    // The last cut may have come after the last answer.
    let start = Instant::now();
    while !policies.flush().await {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    admitted_at_last(&policies).await.release(Outcome::Done);
    assert_eq!(stands(&policies), (spent, 0));
    policies.close().await;
    let report = verified(&config(&url, "left"));
    assert_eq!((report.cost, report.settlements, report.open, report.unknown), (Usd(spent), 360, 0, 0), "{report:?}");
    assert_eq!(report.intents, report.settlements + report.releases);
}
