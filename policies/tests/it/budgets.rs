//! Windows: their edges with requests in flight, clocks that step, limits that change.

use crate::setup::{Hand, add_agent, clock, config, growing, nano_per_token, own, scout, spend, used};
use std::time::Duration;
use tollkeeper_config::{Usd, Window};
use tollkeeper_policies::{Caller, Denied, Lease, Outcome, OutputBound, Policies};

fn open(budgets: &[(Window, i64)], at: &str) -> (Policies, Caller, Hand) {
    let (clock, hand) = clock(at);
    let policies = Policies::in_memory(&config(budgets), clock);
    let agent = scout(&policies);
    (policies, agent, hand)
}

async fn lease(policies: &Policies, agent: &Caller, tokens: u64) -> Result<Lease, Denied> {
    policies.admit(agent, spend(nano_per_token(), tokens, OutputBound::Whole(0))).await
}

/// (spent, reserved, remaining) of each budget.
fn state(policies: &Policies, agent: &Caller) -> Vec<(i64, i64, i64)> {
    own(policies, agent).iter().map(|b| (b.spent.0, b.reserved.0, b.remaining.0)).collect()
}

#[tokio::test]
async fn a_window_resets_at_its_edge_and_a_total_never() {
    let cases = [
        (Window::Minute, "2026-03-04T05:06:59.999Z", "2026-03-04T05:07:00Z"),
        (Window::Hour, "2026-03-04T05:59:59.999Z", "2026-03-04T06:00:00Z"),
        (Window::Day, "2026-03-04T23:59:59.999Z", "2026-03-05T00:00:00Z"),
        (Window::Week, "2026-03-08T23:59:59.999Z", "2026-03-09T00:00:00Z"),
        (Window::Month, "2026-03-31T23:59:59.999Z", "2026-04-01T00:00:00Z"),
    ];
    for (window, before, after) in cases {
        let (policies, agent, hand) = open(&[(window, 10), (Window::Total, 100)], before);
        lease(&policies, &agent, 10).await.unwrap().settle(used(10, 0));
        let denied = lease(&policies, &agent, 1).await.unwrap_err();
        let Denied::Budget(blocked) = denied else { panic!("{denied}") };
        let resets_at = blocked.resets_at;
        assert_eq!(resets_at, Some(after.parse().unwrap()), "{window:?}");
        hand.set(after);
        lease(&policies, &agent, 1).await.unwrap().settle(used(1, 0));
        assert_eq!(state(&policies, &agent), [(1, 0, 9), (11, 0, 89)], "{window:?}");
    }
}

#[tokio::test]
async fn a_request_counts_where_it_was_admitted_however_long_it_runs() {
    let (policies, agent, hand) = open(&[(Window::Minute, 100)], "2026-03-04T05:06:30Z");
    let mut stream = policies.admit(&agent, spend(nano_per_token(), 10, growing(10))).await.unwrap();
    let spent = lease(&policies, &agent, 50).await.unwrap();
    spent.settle(used(50, 0));
    hand.set("2026-03-04T05:07:10Z");
    // The new minute has its whole budget, although the stream of the old one is still running and growing.
    assert_eq!(state(&policies, &agent), [(0, 0, 100)]);
    stream.cover(40).unwrap();
    assert_eq!(state(&policies, &agent), [(0, 0, 100)]);
    let whole = lease(&policies, &agent, 100).await.unwrap();
    // The stream can spend what its own minute has left, and not a token more.
    let denied = stream.cover(41).unwrap_err();
    let Denied::Budget(blocked) = denied else { panic!("{denied}") };
    assert_eq!((blocked.spent, blocked.reserved), (50, 50));
    assert_eq!(blocked.resets_at, Some("2026-03-04T05:07:00Z".parse().unwrap()));
    let charge = stream.settle(used(10, 40));
    assert_eq!((charge.cost, charge.remaining), (Usd(50), Some(Usd(0))));
    assert_eq!(state(&policies, &agent), [(0, 100, 0)]);
    whole.settle(used(60, 0));
    assert_eq!(state(&policies, &agent), [(60, 0, 40)]);
}

#[tokio::test]
async fn a_lease_may_outlive_many_windows() {
    let (policies, agent, hand) = open(&[(Window::Minute, 100)], "2026-03-04T05:06:30Z");
    let old = lease(&policies, &agent, 70).await.unwrap();
    for _ in 0..50 {
        hand.advance(Duration::from_secs(60));
        lease(&policies, &agent, 100).await.unwrap().settle(used(100, 0));
    }
    hand.advance(Duration::from_secs(60));
    old.settle(used(70, 0));
    assert_eq!(state(&policies, &agent), [(0, 0, 100)]);
}

#[tokio::test]
async fn a_clock_that_steps_back_does_not_open_a_window_again() {
    let (policies, agent, hand) = open(&[(Window::Day, 10)], "2026-03-04T23:59:59Z");
    lease(&policies, &agent, 10).await.unwrap().settle(used(10, 0));
    hand.set("2026-03-05T00:00:01Z");
    lease(&policies, &agent, 10).await.unwrap().settle(used(10, 0));
    for step in ["2026-03-04T23:59:58Z", "2026-03-03T12:00:00Z", "1970-01-01T00:00:00Z", "2026-03-05T00:00:00Z"] {
        hand.set(step);
        assert!(lease(&policies, &agent, 1).await.is_err(), "at {step}");
        assert_eq!(state(&policies, &agent), [(10, 0, 0)], "at {step}");
    }
    hand.set("2026-03-06T00:00:00Z");
    lease(&policies, &agent, 10).await.unwrap().settle(used(10, 0));
}

#[tokio::test]
async fn a_limit_below_what_is_spent_denies_and_raising_it_admits() {
    let (policies, agent, _) = open(&[(Window::Day, 100)], "2026-03-04T05:06:07Z");
    lease(&policies, &agent, 60).await.unwrap().settle(used(60, 0));
    let mut stream = policies.admit(&agent, spend(nano_per_token(), 0, growing(10))).await.unwrap();
    policies.reload(&config(&[(Window::Day, 50)]));
    assert_eq!(state(&policies, &agent), [(60, 10, 0)]);
    assert!(lease(&policies, &agent, 1).await.is_err());
    // What was granted stays granted; nothing more is.
    stream.cover(10).unwrap();
    assert!(stream.cover(11).is_err());
    // The agent as authenticated before the reload is held to the new limits too.
    policies.reload(&config(&[(Window::Day, 80)]));
    stream.cover(20).unwrap();
    assert!(stream.cover(21).is_err());
    assert_eq!(stream.settle(used(0, 20)).remaining, Some(Usd(0)));
}

#[tokio::test]
async fn a_budget_that_is_added_later_counts_what_was_spent_before() {
    let (policies, agent, _) = open(&[], "2026-03-04T05:06:07Z");
    lease(&policies, &agent, 60).await.unwrap().settle(used(60, 0));
    let open = lease(&policies, &agent, 30).await.unwrap();
    policies.reload(&config(&[(Window::Month, 100), (Window::Total, 95)]));
    assert_eq!(state(&policies, &agent), [(60, 30, 10), (60, 30, 5)]);
    open.release(Outcome::Done);
}

#[tokio::test]
async fn an_agent_that_comes_back_finds_its_spend() {
    let (policies, agent, _) = open(&[(Window::Day, 100)], "2026-03-04T05:06:07Z");
    let lease = lease(&policies, &agent, 60).await.unwrap();
    let mut other = config(&[]);
    other.agents.clear();
    add_agent(&mut other, "digger", &[(Window::Day, 5)]);
    policies.reload(&other);
    assert!(policies.authenticate("scout-key").is_err());
    lease.settle(used(60, 0));
    policies.reload(&config(&[(Window::Day, 100)]));
    assert_eq!(state(&policies, &scout(&policies)), [(60, 0, 40)]);
}
