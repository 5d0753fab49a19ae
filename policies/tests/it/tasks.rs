//! Runs over time: what is forgotten of them, and what is not.

use crate::setup::{add_agent, clock, config, nano_per_token, spend, stored, used};
use std::time::Duration;
use tollkeeper_config::{Usd, Window};
use tollkeeper_policies::{Denied, NewRun, OutputBound, Policies, RunError, RunLimits, RunPolicy};

fn limits(nano: i64) -> RunLimits {
    RunLimits { usd: Some(Usd(nano)), ..RunLimits::default() }
}

#[tokio::test]
async fn a_parent_remembers_what_children_spent_that_ended_long_ago() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[(Window::Total, 1_000_000)]);
    let (clock, hand) = clock("2026-03-04T05:06:07Z");
    let (policies, _) = Policies::open(&config, clock.clone()).unwrap();
    let new = |parent, nano| NewRun { parent, limits: limits(nano), ..NewRun::default() };
    let (parent, _) = policies.create_run("test", "scout", new(None, 100)).await.unwrap();
    let (child, key) = policies.create_run("test", "scout", new(Some(parent.run.clone()), 90)).await.unwrap();
    let caller = policies.authenticate(&key).unwrap();
    let lease = policies.admit(&caller, spend(nano_per_token(), 80, OutputBound::Whole(0))).await.unwrap();
    lease.settle(used(80, 0));
    policies.cancel_run("test", &child.run).await.unwrap();
    hand.advance(Duration::from_secs(25 * 3600));
    policies.tick().await;
    policies.close().await;
    drop((policies, caller));

    let (policies, _) = Policies::open(&config, clock.clone()).unwrap();
    let parent = policies.run(&parent.run.id).unwrap();
    assert_eq!((parent.spent, parent.reserved), (Usd(80), Usd(0)));
    // With the parent all of them are forgotten, a day after it ended.
    policies.cancel_run("test", &parent.run).await.unwrap();
    hand.advance(Duration::from_secs(25 * 3600));
    policies.tick().await;
    assert!(policies.run(&parent.run.id).is_none() && policies.run(&child.run.id).is_none());
    policies.close().await;
    drop(policies);
    let (policies, _) = Policies::open(&config, clock).unwrap();
    assert!(policies.runs(|_| true).is_empty());
}

#[tokio::test]
async fn a_child_cannot_have_what_its_parent_keeps_for_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[]);
    let (policies, _) = Policies::open(&config, clock("2026-03-04T05:06:07Z").0).unwrap();
    let policy = RunPolicy { wrap_up_pct: 20, ..RunPolicy::default() };
    let new = NewRun { limits: limits(100), policy, ..NewRun::default() };
    let (parent, key) = policies.create_run("test", "scout", new).await.unwrap();
    let child = |nano| NewRun { parent: Some(parent.run.clone()), limits: limits(nano), ..NewRun::default() };
    let refused = policies.create_run("test", "scout", child(81)).await.unwrap_err();
    assert!(matches!(refused, RunError::Unaffordable { left: Usd(80), .. }), "{refused}");
    policies.create_run("test", "scout", child(80)).await.unwrap();
    let caller = policies.authenticate(&key).unwrap();
    let denied = policies.admit(&caller, spend(nano_per_token(), 1, OutputBound::Whole(0))).await.unwrap_err();
    assert!(matches!(&denied, Denied::Budget(blocked) if blocked.kept_pct == Some(20)), "{denied}");
    let last = tollkeeper_policies::Spend { final_answer: true, ..spend(nano_per_token(), 20, OutputBound::Whole(0)) };
    policies.admit(&caller, last).await.unwrap().settle(used(20, 0));
}

#[tokio::test]
async fn an_agent_that_makes_runs_without_end_stops_itself_alone() {
    let mut config = config(&[]);
    add_agent(&mut config, "other", &[]);
    let policies = Policies::in_memory(&config, clock("2026-01-01T12:00:00Z").0);
    let new = || NewRun { limits: limits(100), ..NewRun::default() };
    let refused = loop {
        match policies.create_run("test", "scout", new()).await {
            Ok((made, _)) => _ = policies.cancel_run("test", &made.run).await.unwrap(),
            Err(refused) => break refused,
        }
    };
    assert!(refused.to_string().contains("10000 runs"), "{refused}");
    policies.create_run("test", "other", new()).await.unwrap();
}
