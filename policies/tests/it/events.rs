//! What is told of: thresholds, refusals, overruns, pauses; and that a pause outlives a restart.

use crate::setup::{budget, clock, config, growing, nano_per_token, scout, spend, stored, used};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tollkeeper_config::{Config, Limit, OnLimit, Owner, Scope, Usd, Window};
use tollkeeper_policies::{Denied, Event, OutputBound, Policies, Stop, What};

fn ask(config: &mut Config, on_limit: OnLimit, notify_at: &[u8]) {
    for rule in &mut config.budgets {
        (rule.on_limit, rule.notify_at) = (on_limit, notify_at.to_vec());
    }
}

/// What was told since this was asked before, by name.
fn told(events: &mut Receiver<Arc<Event>>) -> Vec<String> {
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        assert_eq!(event.agent.as_deref(), Some("scout"));
        told.push(match &event.what {
            What::Threshold { percent, spent, .. } => format!("threshold {percent} at {spent}"),
            What::Denied(blocked) => format!("denied by {}", blocked.owner),
            What::Stopped(who, Stop::Paused { .. }) => format!("{who} paused"),
            What::Resumed(who) => format!("{who} resumed"),
            What::Overrun { amount, .. } => format!("overrun {}", amount.0),
            What::Charged { .. } | What::Velocity(..) => continue,
            other => format!("{other:?}"),
        });
    }
    told
}

async fn charge(policies: &Policies, tokens: u64) {
    let lease = policies.admit(&scout(policies), spend(nano_per_token(), tokens, OutputBound::Whole(0))).await.unwrap();
    lease.settle(used(tokens, 0));
}

#[tokio::test]
async fn a_threshold_is_told_once_in_each_window_the_highest_of_several() {
    let mut config = config(&[(Window::Minute, 100)]);
    ask(&mut config, OnLimit::Deny, &[50, 80, 95]);
    let (clock, hand) = clock("2026-03-04T05:06:00Z");
    let policies = Policies::in_memory(&config, clock);
    let mut events = policies.listen();
    charge(&policies, 49).await;
    assert!(told(&mut events).is_empty());
    charge(&policies, 1).await;
    assert_eq!(told(&mut events), ["threshold 50 at 50"]);
    charge(&policies, 10).await;
    assert!(told(&mut events).is_empty());
    charge(&policies, 36).await;
    assert_eq!(told(&mut events), ["threshold 95 at 96"], "the one at 80 was passed on the way");
    hand.advance(Duration::from_secs(60));
    charge(&policies, 80).await;
    assert_eq!(told(&mut events), ["threshold 80 at 80"]);
    // Another limit that is passed already is no news.
    config.budgets[0].limit = Limit::Usd(Usd(60));
    policies.reload(&config);
    assert!(told(&mut events).is_empty());
}

#[tokio::test]
async fn a_rolling_window_can_cross_a_threshold_again() {
    let mut config = config(&[(Window::Rolling(Duration::from_secs(64)), 100)]);
    ask(&mut config, OnLimit::Deny, &[50]);
    let (clock, hand) = clock("2026-03-04T05:06:00Z");
    let policies = Policies::in_memory(&config, clock);
    let mut events = policies.listen();
    charge(&policies, 50).await;
    assert_eq!(told(&mut events), ["threshold 50 at 50"]);
    hand.advance(Duration::from_secs(64));
    let denied = policies.admit(&scout(&policies), spend(nano_per_token(), 60, OutputBound::Whole(0))).await;
    assert!(denied.is_err(), "it counts up to a slot longer");
    hand.advance(Duration::from_secs(1));
    charge(&policies, 10).await;
    charge(&policies, 45).await;
    assert_eq!(told(&mut events), ["denied by agent `scout`", "threshold 50 at 55"]);
}

#[tokio::test]
async fn what_a_provider_bills_beyond_its_lease_is_told_and_counted() {
    let policies = Policies::in_memory(&config(&[(Window::Day, 100)]), clock("2026-03-04T05:06:07Z").0);
    let mut events = policies.listen();
    let lease = policies.admit(&scout(&policies), spend(nano_per_token(), 10, growing(5))).await.unwrap();
    lease.settle(used(10, 25));
    assert_eq!(told(&mut events), ["overrun 20"]);
    assert_eq!(policies.overruns(), (1, Usd(20)));
}

#[tokio::test]
async fn a_budget_that_asks_pauses_its_agent_until_it_is_resumed_even_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = stored(folder.path(), &[(Window::Total, 100)]);
    config.budgets.push(budget(Owner::everything(), Window::Total, Limit::Usd(Usd(1000))));
    ask(&mut config, OnLimit::Ask, &[]);
    let clock = clock("2026-03-04T05:06:07Z").0;
    let (policies, _) = Policies::open(&config, clock.clone()).unwrap();
    let mut events = policies.listen();
    let dear = || spend(nano_per_token(), 200, OutputBound::Whole(0));
    assert!(matches!(policies.admit(&scout(&policies), dear()).await, Err(Denied::Budget(_))));
    assert_eq!(told(&mut events), ["denied by agent `scout`", "agent `scout` paused"]);
    let cheap = || spend(nano_per_token(), 1, OutputBound::Whole(0));
    policies.close().await;
    drop(policies);

    let (policies, _) = Policies::open(&config, clock).unwrap();
    let mut events = policies.listen();
    let paused = policies.admit(&scout(&policies), cheap()).await.unwrap_err();
    assert!(matches!(&paused, Denied::Stopped { stop: Stop::Paused { .. }, .. }), "{paused}");
    assert!(paused.to_string().contains("asks whether it may go on: agent `scout` cannot pay"), "{paused}");
    let owner = Owner::new(Scope::Agent, "scout");
    assert!(policies.resume("ops", &owner).await.unwrap());
    assert!(!policies.resume("ops", &owner).await.unwrap(), "it was not paused any more");
    assert_eq!(told(&mut events), ["agent `scout` resumed"]);
    policies.admit(&scout(&policies), cheap()).await.unwrap().settle(used(1, 0));
    policies.close().await;
    let report = tollkeeper_policies::report::verify(&config.store.path).unwrap();
    assert!(report.changes >= 2, "a pause and its end are in the chain: {report:?}");
}

#[tokio::test]
async fn a_budget_that_cuts_an_answer_does_what_it_does_when_it_refuses_one() {
    for (policy, expected) in [
        (OnLimit::Deny, vec!["denied by agent `scout`"]),
        // Nobody can find a cheaper target in the middle of an answer.
        (OnLimit::Degrade, vec!["denied by agent `scout`"]),
        (OnLimit::Ask, vec!["denied by agent `scout`", "agent `scout` paused"]),
    ] {
        let mut config = config(&[(Window::Total, 100)]);
        ask(&mut config, policy, &[]);
        let policies = Policies::in_memory(&config, clock("2026-03-04T05:06:07Z").0);
        let mut events = policies.listen();
        let mut lease = policies.admit(&scout(&policies), spend(nano_per_token(), 10, growing(20))).await.unwrap();
        lease.cover(90).unwrap();
        for _ in 0..3 {
            assert!(matches!(lease.cover(91), Err(Denied::Budget(_))), "{policy:?}");
        }
        while policies.pauses().is_empty() && policy == OnLimit::Ask {
            tokio::task::yield_now().await;
        }
        assert_eq!(told(&mut events), expected, "{policy:?}: once, however often it is asked");
        let other = policies.admit(&scout(&policies), spend(nano_per_token(), 0, OutputBound::Whole(0))).await;
        let is_paused = matches!(&other, Err(Denied::Stopped { stop: Stop::Paused { .. }, .. }));
        assert_eq!(is_paused, policy == OnLimit::Ask, "{other:?}");
        lease.settle(used(10, 90));
    }
}

#[tokio::test]
async fn an_answer_that_only_others_leases_cut_pauses_nobody() {
    let mut config = config(&[(Window::Total, 100)]);
    ask(&mut config, OnLimit::Ask, &[]);
    let policies = Policies::in_memory(&config, clock("2026-03-04T05:06:07Z").0);
    let other = policies.admit(&scout(&policies), spend(nano_per_token(), 60, OutputBound::Whole(0))).await.unwrap();
    let mut events = policies.listen();
    let mut lease = policies.admit(&scout(&policies), spend(nano_per_token(), 10, growing(20))).await.unwrap();
    assert!(lease.cover(31).is_err());
    assert_eq!(told(&mut events), ["denied by agent `scout`"]);
    other.settle(used(0, 0));
    lease.cover(31).unwrap();
    lease.settle(used(10, 31));
    assert!(policies.pauses().is_empty(), "it may go on now");
}

#[tokio::test]
async fn days_begin_where_the_budget_says() {
    let mut config = config(&[(Window::Day, 100)]);
    config.budgets[0].zone = jiff::tz::TimeZone::get("Europe/Berlin").unwrap();
    let (clock, hand) = clock("2026-11-21T22:59:59Z");
    let policies = Policies::in_memory(&config, clock);
    charge(&policies, 100).await;
    let denied =
        policies.admit(&scout(&policies), spend(nano_per_token(), 1, OutputBound::Whole(0))).await.unwrap_err();
    let Denied::Budget(blocked) = &denied else { panic!("{denied}") };
    assert_eq!(blocked.resets_at, Some("2026-11-21T23:00:00Z".parse().unwrap()));
    hand.advance(Duration::from_secs(1));
    charge(&policies, 100).await;
}
