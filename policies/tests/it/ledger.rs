//! The ledger on disk: what a restart finds, what reports say, who may open it.

use crate::setup::{add_agent, clock, growing, nano_per_token, own, scout, spend, stored, used};
use std::path::Path;
use std::time::Duration;
use tollkeeper_config::{BackendId, Durability, Price, Usd, Window};
use tollkeeper_policies::report::{self, SpendGroup, SpendQuery, SpendSum, VerifyError, VerifyReport};
use tollkeeper_policies::{Clock, Denied, OpenError, Outcome, OutputBound, Policies, Recovered, Settlement, Spend};
use tollkeeper_protocol::fault::FaultKind;
use tollkeeper_protocol::usage::Usage;

const WHOLE: OutputBound = OutputBound::Whole(10);

fn verified(path: &Path) -> VerifyReport {
    report::verify(path).unwrap()
}

#[tokio::test]
async fn counters_survive_a_restart_to_the_nano_dollar() {
    for durability in [Durability::Process, Durability::Power] {
        let folder = tempfile::tempdir().unwrap();
        let (clock, hand) = clock("2026-03-04T05:06:07Z");
        let mut config = stored(folder.path(), &[(Window::Day, 1000), (Window::Total, 5000)]);
        config.store.durability = durability;
        let (policies, recovered) = Policies::open(&config, clock.clone()).unwrap();
        assert_eq!(recovered, Recovered::default());
        let agent = scout(&policies);
        for output in 1..=9 {
            policies.admit(&agent, spend(nano_per_token(), 10, WHOLE)).await.unwrap().settle(used(10, output));
        }
        policies
            .admit(&agent, spend(nano_per_token(), 10, WHOLE))
            .await
            .unwrap()
            .release(Outcome::Fault(FaultKind::Timeout));
        policies.close().await;
        drop(policies);

        let (policies, recovered) = Policies::open(&config, clock.clone()).unwrap();
        assert_eq!(recovered, Recovered::default());
        let spent: Vec<_> = own(&policies, &scout(&policies)).iter().map(|budget| budget.spent).collect();
        assert_eq!(spent, [Usd(135), Usd(135)]);
        drop(policies);

        hand.set("2026-03-05T00:00:00Z");
        let (policies, _) = Policies::open(&config, clock).unwrap();
        let spent: Vec<_> = own(&policies, &scout(&policies)).iter().map(|budget| budget.spent).collect();
        assert_eq!(spent, [Usd(0), Usd(135)], "the day is over, the total is not");
        let report = verified(&config.store.path);
        assert_eq!((report.rows, report.intents, report.settlements, report.releases), (20, 10, 9, 1));
        assert_eq!((report.cost, report.overrun, report.open), (Usd(135), Usd(0), 0));
        assert_eq!(report.head.len(), 64);
    }
}

#[tokio::test]
async fn every_end_is_on_record() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[(Window::Day, 1000)]);
    let (policies, _) = Policies::open(&config, clock("2026-03-04T05:06:07Z").0).unwrap();
    let agent = scout(&policies);
    let admit = |attempt, price, bound| policies.admit(&agent, Spend { attempt, ..spend(price, 10, bound) });
    admit(1, nano_per_token(), WHOLE).await.unwrap().settle(used(10, 25)); // 15 more than leased
    drop(admit(2, nano_per_token(), WHOLE).await.unwrap());
    let mut stream = admit(3, nano_per_token(), growing(4)).await.unwrap();
    stream.cover(5).unwrap();
    stream.cover(9).unwrap();
    stream.secured().await.unwrap();
    drop(stream);
    admit(4, Price::free(), growing(4)).await.unwrap().settle(used(10, 3));
    admit(5, nano_per_token(), WHOLE).await.unwrap().release(Outcome::Drained);
    assert!(policies.flush().await);
    assert_eq!((policies.open_leases(), policies.queue_depth()), (0, 0));
    assert_eq!(own(&policies, &agent)[0].spent, Usd(35 + 10 + 19));
    let report = verified(&config.store.path);
    assert_eq!((report.intents, report.settlements, report.releases, report.open), (5, 4, 1, 0));
    assert_eq!((report.cost, report.overrun), (Usd(64), Usd(15)));
    assert!((1..=2).contains(&report.extensions), "extensions that were made together may share a row: {report:?}");
}

#[tokio::test]
async fn what_a_dead_process_left_open_is_charged_at_what_it_held() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[(Window::Day, 1000)]);
    let (clock, hand) = clock("2026-03-04T23:59:00Z");
    let (policies, _) = Policies::open(&config, clock.clone()).unwrap();
    let agent = scout(&policies);
    let settled = policies.admit(&agent, spend(nano_per_token(), 10, WHOLE)).await.unwrap();
    let whole = policies.admit(&agent, spend(nano_per_token(), 10, WHOLE)).await.unwrap();
    let mut stream = policies.admit(&agent, spend(nano_per_token(), 10, growing(4))).await.unwrap();
    stream.cover(13).unwrap();
    stream.secured().await.unwrap();
    settled.settle(used(10, 1));
    assert!(policies.flush().await);
    // The files as a crash would leave them now.
    let crashed = folder.path().join("crashed");
    std::fs::create_dir(&crashed).unwrap();
    for name in ["tollkeeper.db", "tollkeeper.db-wal"] {
        std::fs::copy(folder.path().join(name), crashed.join(name)).unwrap();
    }
    drop((whole, stream));

    let config = stored(&crashed, &[(Window::Day, 1000), (Window::Total, 1000)]);
    hand.set("2026-03-05T00:01:00Z");
    let (policies, recovered) = Policies::open(&config, clock.clone()).unwrap();
    assert_eq!(recovered, Recovered { unknown: 2, amount: Usd(20 + 26) });
    let spent: Vec<_> = own(&policies, &scout(&policies)).iter().map(|budget| budget.spent).collect();
    assert_eq!(spent, [Usd(0), Usd(11 + 46)], "they count on the day on which they were admitted");
    policies.close().await;
    let report = verified(&config.store.path);
    assert_eq!((report.settlements, report.unknown, report.open, report.cost), (1, 2, 0, Usd(57)));
    drop(policies);
    // Once only.
    assert_eq!(Policies::open(&config, clock).unwrap().1, Recovered::default());
}

#[tokio::test]
async fn one_gateway_per_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[]);
    let (policies, _) = Policies::open(&config, Clock::system()).unwrap();
    let mut through_link = config.clone();
    through_link.store.path = folder.path().join("link.db");
    std::os::unix::fs::symlink(&config.store.path, &through_link.store.path).unwrap();
    for config in [&config, &through_link] {
        let error = Policies::open(config, Clock::system()).unwrap_err();
        let OpenError::Locked { pid, .. } = &error else { panic!("{error}") };
        assert_eq!(*pid, std::process::id().to_string());
        assert!(error.to_string().contains("tollkeeper.db"), "{error}");
    }
    policies.close().await;
    // Closed is closed, although the handle is still there.
    Policies::open(&config, Clock::system()).unwrap();
    let denied = policies.admit(&scout(&policies), spend(nano_per_token(), 1, WHOLE)).await.unwrap_err();
    assert!(matches!(&denied, Denied::StoreDown { reason } if &**reason == "the ledger is closed"), "{denied}");
    assert_eq!(own(&policies, &scout(&policies)), []);
    policies.close().await;
}

#[tokio::test]
async fn the_last_handle_or_lease_writes_all_and_closes() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[]);
    let (policies, _) = Policies::open(&config, Clock::system()).unwrap();
    let lease = policies.admit(&scout(&policies), spend(nano_per_token(), 10, WHOLE)).await.unwrap();
    drop(policies);
    assert!(matches!(Policies::open(&config, Clock::system()), Err(OpenError::Locked { .. })));
    lease.settle(used(10, 3));
    let (_, recovered) = Policies::open(&config, Clock::system()).unwrap();
    assert_eq!(recovered, Recovered::default());
    assert_eq!(verified(&config.store.path).cost, Usd(13));
}

#[tokio::test]
async fn a_lease_that_outlives_the_ledger_is_charged_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[]);
    let (policies, _) = Policies::open(&config, Clock::system()).unwrap();
    let lease = policies.admit(&scout(&policies), spend(nano_per_token(), 10, WHOLE)).await.unwrap();
    policies.close().await;
    lease.settle(used(10, 3));
    drop(policies);
    let (_, recovered) = Policies::open(&config, Clock::system()).unwrap();
    assert_eq!(recovered, Recovered { unknown: 1, amount: Usd(20) });
}

#[test]
fn files_that_are_no_ledger_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[]);
    std::fs::write(&config.store.path, "this is no database, and it is longer than a header of SQLite's".repeat(20))
        .unwrap();
    let error = Policies::open(&config, Clock::system()).unwrap_err().to_string();
    assert!(error.contains("tollkeeper.db") && error.contains("not a database"), "{error}");
    assert!(report::verify(&config.store.path).is_err());
    let missing = folder.path().join("missing.db");
    let error = report::spend_by(&missing, &SpendQuery::default()).unwrap_err().to_string();
    assert!(error.contains("missing.db") && error.contains("no such file"), "{error}");
    assert!(!missing.exists(), "a report makes no file");
    let mut config = config;
    config.store.path = folder.path().join("tollkeeper.db/inside.db");
    assert!(matches!(Policies::open(&config, Clock::system()), Err(OpenError::Store { .. })));
}

#[tokio::test]
async fn a_new_folder_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(&folder.path().join("data/deep"), &[]);
    let (policies, _) = Policies::open(&config, Clock::system()).unwrap();
    policies.close().await;
    assert_eq!(verified(&config.store.path).rows, 0);
}

#[tokio::test]
async fn spend_is_added_up_by_agent_backend_and_day_while_the_gateway_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = stored(folder.path(), &[]);
    add_agent(&mut config, "digger", &[]);
    let (clock, hand) = clock("2026-03-04T23:00:00Z");
    let (policies, _) = Policies::open(&config, clock).unwrap();
    let (scout, digger) = (scout(&policies), policies.authenticate("digger-key").unwrap());
    let local = || Spend { backend: BackendId::Local("toll-tiny".into()), ..spend(Price::free(), 10, WHOLE) };
    let usage = Usage { input: 10, cached_input: 4, cache_write: 2, output: 6, reasoning: 5, ..Usage::default() };
    policies
        .admit(&scout, spend(nano_per_token(), 10, WHOLE))
        .await
        .unwrap()
        .settle(Settlement { usage, ..used(0, 0) });
    policies.admit(&scout, local()).await.unwrap().settle(used(10, 6));
    policies.admit(&digger, spend(nano_per_token(), 10, WHOLE)).await.unwrap().settle(used(10, 12));
    hand.advance(Duration::from_secs(3600));
    policies.admit(&scout, spend(nano_per_token(), 10, WHOLE)).await.unwrap().settle(used(10, 1));
    let open = policies.admit(&scout, spend(nano_per_token(), 10, WHOLE)).await.unwrap();
    assert!(policies.flush().await);

    let spend = |query| report::spend_by(&config.store.path, &query).unwrap();
    let row = |group: &[&str], attempts, (input, output): (u64, u64), cost| SpendSum {
        group: group.iter().map(|name| Some((*name).to_owned())).collect(),
        attempts,
        unknown: 0,
        input,
        cached_input: 0,
        cache_write: 0,
        output,
        reasoning: 0,
        cost: Usd(cost),
        overrun: Usd(0),
    };
    let cached = |row| SpendSum { cached_input: 4, cache_write: 2, reasoning: 5, ..row };
    let dug = SpendSum { overrun: Usd(2), ..row(&["digger"], 1, (10, 12), 22) };
    let all = SpendQuery::default;
    assert_eq!(spend(all()), [dug.clone(), cached(row(&["scout"], 3, (30, 13), 27))]);
    let groups = vec![SpendGroup::Agent, SpendGroup::Day, SpendGroup::Model];
    assert_eq!(
        spend(SpendQuery { agent: Some("scout".into()), groups, ..all() }),
        [
            cached(row(&["scout", "2026-03-04", "openai/small"], 1, (10, 6), 16)),
            row(&["scout", "2026-03-04", "toll-tiny"], 1, (10, 6), 0),
            row(&["scout", "2026-03-05", "openai/small"], 1, (10, 1), 11),
        ]
    );
    let midnight = Some("2026-03-05T00:00:00Z".parse().unwrap());
    assert_eq!(spend(SpendQuery { since: midnight, ..all() }), [row(&["scout"], 1, (10, 1), 11)]);
    assert_eq!(spend(SpendQuery { until: midnight, ..all() }), [dug, cached(row(&["scout"], 2, (20, 12), 16))]);
    assert_eq!(spend(SpendQuery { agent: Some("nobody".into()), ..all() }), []);
    let report = verified(&config.store.path);
    assert_eq!((report.intents, report.open, report.cost), (5, 1, Usd(49)));
    open.release(Outcome::Done);
}

#[tokio::test]
async fn sums_are_exact_beyond_64_bits_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[]);
    let (policies, _) = Policies::open(&config, Clock::system()).unwrap();
    let agent = scout(&policies);
    for _ in 0..3 {
        let dear = spend(crate::setup::price(1_000, u64::MAX), 1, OutputBound::Whole(1));
        policies.admit(&agent, dear).await.unwrap().settle(used(1, u64::MAX));
    }
    policies.close().await;
    let error = report::spend_by(&config.store.path, &SpendQuery::default()).unwrap_err().to_string();
    assert!(error.contains("does not fit 64 bits"), "{error}");
    assert_eq!(verified(&config.store.path).cost, Usd(i64::MAX));
    drop(policies);
    Policies::open(&config, Clock::system()).unwrap();
}

#[test]
fn an_error_of_a_report_names_the_row() {
    let error = VerifyError::Row { seq: 7, field: "cost_nano", problem: "is 3, but 4 would be right".into() };
    assert_eq!(error.to_string(), "row 7 of the ledger is bad: cost_nano is 3, but 4 would be right");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_is_recorded_completely() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[(Window::Total, 137 * 20 + 19)]);
    let (policies, _) = Policies::open(&config, Clock::system()).unwrap();
    let agent = scout(&policies);
    let tasks: Vec<_> = (0..1000)
        .map(|_| {
            let (policies, agent) = (policies.clone(), agent.clone());
            tokio::spawn(async move {
                let Ok(lease) = policies.admit(&agent, spend(nano_per_token(), 10, WHOLE)).await else { return false };
                if lease.output_limit().is_some() {
                    lease.release(Outcome::Done);
                    return false;
                }
                lease.settle(used(10, 10));
                true
            })
        })
        .collect();
    let mut served = 0;
    for task in tasks {
        served += i64::from(task.await.unwrap());
    }
    assert_eq!(served, 137);
    policies.close().await;
    let report = verified(&config.store.path);
    assert_eq!((report.settlements, report.open, report.cost), (137, 0, Usd(137 * 20)));
    assert_eq!(report.intents, report.settlements + report.releases);
}
