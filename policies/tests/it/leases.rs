//! What a lease grants, how it grows, and what its end costs.

use crate::setup::{add_agent, clock, config, growing, nano_per_token, own, price, scout, spend, used};
use tollkeeper_config::{Limit, OnLimit, Owner, PicoUsd, Price, PriceSource, Rates, Scope, Usd, Window};
use tollkeeper_policies::{Blocked, Caller, Denied, Lease, Outcome, OutputBound, Policies, Settlement, Spend};
use tollkeeper_protocol::usage::Usage;

fn open(limit: i64) -> (Policies, Caller) {
    let policies = Policies::in_memory(&config(&[(Window::Day, limit)]), clock("2026-03-04T05:06:07Z").0);
    let agent = scout(&policies);
    (policies, agent)
}

/// Spent and reserved of the first budget.
fn state(policies: &Policies, agent: &Caller) -> (i64, i64) {
    let budget = own(policies, agent)[0];
    (budget.spent.0, budget.reserved.0)
}

#[tokio::test]
async fn a_whole_bound_is_clamped_to_what_is_affordable() {
    // (limit, input, bound) -> (covered, output limit) or a refusal
    let cases = [
        (100, 10, 90, Some((90, None))),
        (100, 10, 50, Some((50, None))),
        (100, 10, 91, Some((90, Some(90)))),
        (100, 10, u64::MAX, Some((90, Some(90)))),
        (100, 99, 1, Some((1, None))),
        (100, 99, 50, Some((1, Some(1)))),
        (100, 100, 0, Some((0, None))), // embeddings: input alone
        (100, 100, 1, None),
        (100, 101, 0, None),
        (100, u64::MAX, u64::MAX, None),
        (0, 0, 0, Some((0, None))),
        (0, 0, 1, None),
    ];
    for (limit, input, bound, expected) in cases {
        let (policies, agent) = open(limit);
        let lease = policies.admit(&agent, spend(nano_per_token(), input, OutputBound::Whole(bound))).await;
        let got = lease.as_ref().ok().map(|lease| (lease.covered(), lease.output_limit()));
        assert_eq!(got, expected, "limit {limit}, input {input}, bound {bound}");
        assert_eq!(policies.open_leases(), usize::from(expected.is_some()));
        drop(lease.map(|lease| lease.release(Outcome::Done)));
        assert_eq!(state(&policies, &agent), (0, 0));
    }
}

#[tokio::test]
async fn every_answer_needs_a_token() {
    for (limit, expected) in [(13, None), (14, Some(4)), (15, Some(5))] {
        let (policies, agent) = open(limit);
        let spend = Spend { answers: 4, ..spend(nano_per_token(), 10, OutputBound::Whole(100)) };
        let lease = policies.admit(&agent, spend).await;
        assert_eq!(lease.as_ref().ok().and_then(Lease::output_limit), expected, "limit {limit}");
    }
}

#[tokio::test]
async fn a_stream_grows_by_slices_then_by_what_is_left_and_stops_at_the_exact_token() {
    let (policies, agent) = open(100);
    let mut lease = policies.admit(&agent, spend(nano_per_token(), 10, growing(32))).await.unwrap();
    assert_eq!((lease.covered(), lease.output_limit()), (32, None));
    for tokens in 1..=90 {
        lease.cover(tokens).unwrap();
        let expected = match tokens {
            ..=32 => 32,
            33..=64 => 64,
            _ => 90,
        };
        assert_eq!(lease.covered(), expected, "at token {tokens}");
    }
    assert_eq!(state(&policies, &agent), (0, 100));
    let denied = lease.cover(91).unwrap_err();
    let Denied::Budget(blocked) = denied else { panic!("{denied}") };
    assert_eq!((blocked.estimate, blocked.reserved), (1, 100));
    lease.cover(90).unwrap();
    let charge = lease.settle(Settlement { outcome: Outcome::BudgetStop, ..used(10, 90) });
    assert_eq!((charge.cost, charge.overrun, charge.remaining), (Usd(100), Usd::ZERO, Some(Usd(0))));
    assert_eq!(state(&policies, &agent), (100, 0));
}

#[tokio::test]
async fn a_chunk_larger_than_a_slice_is_covered_at_once() {
    let (policies, agent) = open(1000);
    let mut lease = policies.admit(&agent, spend(nano_per_token(), 0, growing(10))).await.unwrap();
    lease.cover(35).unwrap();
    assert_eq!(lease.covered(), 40);
    lease.release(Outcome::Done);
}

#[tokio::test]
async fn no_more_than_the_maximum_is_leased_ahead() {
    let (policies, agent) = open(1000);
    let bound = OutputBound::Growing { slice: 32, max: Some(40) };
    let mut lease = policies.admit(&agent, spend(nano_per_token(), 0, bound)).await.unwrap();
    lease.cover(33).unwrap();
    assert_eq!(lease.covered(), 40);
    // A backend that does not keep to the maximum is still paid for.
    lease.cover(41).unwrap();
    assert_eq!(lease.covered(), 41);
    lease.release(Outcome::Done);
    let none = OutputBound::Growing { slice: 32, max: Some(0) };
    assert_eq!(policies.admit(&agent, spend(nano_per_token(), 0, none)).await.unwrap().covered(), 0);
}

#[tokio::test]
async fn a_denial_says_all_that_the_caller_needs() {
    let (policies, agent) = open(100);
    let held = policies.admit(&agent, spend(nano_per_token(), 10, OutputBound::Whole(20))).await.unwrap();
    let paid = policies.admit(&agent, spend(nano_per_token(), 10, OutputBound::Whole(20))).await.unwrap();
    paid.settle(used(10, 15));
    let denied = policies.admit(&agent, spend(nano_per_token(), 46, OutputBound::Whole(500))).await.unwrap_err();
    let expected = Denied::Budget(Box::new(Blocked {
        owner: Owner::new(Scope::Agent, "scout"),
        window: Window::Day,
        limit: Limit::Usd(Usd(100)),
        spent: 25,
        reserved: 30,
        estimate: 47,
        resets_at: Some("2026-03-05T00:00:00Z".parse().unwrap()),
        on_limit: OnLimit::Deny,
        kept_pct: None,
    }));
    assert_eq!(denied, expected);
    assert_eq!(
        denied.to_string(),
        "agent `scout` cannot pay: its budget of 0.0000001 USD per day has 0.000000025 USD spent and 0.00000003 USD reserved, and this needs \
         at least 0.000000047 USD more; the window resets at 2026-03-05T00:00:00Z"
    );
    held.release(Outcome::Done);
}

#[tokio::test]
async fn every_budget_is_charged_or_none() {
    let (clock, _) = clock("2026-03-04T05:06:07Z");
    let policies = Policies::in_memory(&config(&[(Window::Day, 1000), (Window::Total, 50), (Window::Hour, 60)]), clock);
    let agent = scout(&policies);
    let denied = policies.admit(&agent, spend(nano_per_token(), 51, OutputBound::Whole(0))).await.unwrap_err();
    let Denied::Budget(blocked) = &denied else { panic!("{denied}") };
    assert_eq!((blocked.window, blocked.resets_at), (Window::Total, None), "the tightest is named");
    assert!(own(&policies, &agent).iter().all(|budget| budget.reserved == Usd::ZERO));
    let lease = policies.admit(&agent, spend(nano_per_token(), 40, OutputBound::Whole(0))).await.unwrap();
    assert!(own(&policies, &agent).iter().all(|budget| budget.reserved == Usd(40)));
    assert_eq!(policies.remaining(&agent), Some(Usd(10)));
    let charge = lease.settle(used(30, 0));
    assert_eq!(charge.remaining, Some(Usd(20)));
    assert!(own(&policies, &agent).iter().all(|budget| (budget.spent, budget.reserved) == (Usd(30), Usd(0))));
}

#[tokio::test]
async fn how_an_end_is_charged() {
    type End = fn(Lease) -> Option<(i64, i64)>;
    let cases: [(&str, End, i64); 8] = [
        ("less than leased", |lease| charge(lease, used(10, 5)), 15),
        ("explicit zero usage", |lease| charge(lease, used(0, 0)), 0),
        ("all that was leased", |lease| charge(lease, used(10, 20)), 30),
        ("more than was leased", |lease| charge(lease, used(10, 25)), 35),
        (
            "the client left",
            |lease| charge(lease, Settlement { outcome: Outcome::ClientGone, estimated: true, ..used(10, 7) }),
            17,
        ),
        (
            "released",
            |lease| {
                lease.release(Outcome::Drained);
                None
            },
            0,
        ),
        (
            "dropped before any token",
            |lease| {
                drop(lease);
                None
            },
            10,
        ),
        (
            "dropped after four tokens",
            |mut lease| {
                lease.cover(4).unwrap();
                drop(lease);
                None
            },
            14,
        ),
    ];
    for (case, end, cost) in cases {
        let (policies, agent) = open(100);
        let lease = policies.admit(&agent, spend(nano_per_token(), 10, OutputBound::Whole(20))).await.unwrap();
        let charged = end(lease);
        let overrun = (cost - 30).max(0);
        assert!(charged.is_none_or(|charged| charged == (cost, overrun)), "{case}: {charged:?}");
        assert_eq!(state(&policies, &agent), (cost, 0), "{case}");
        assert_eq!(policies.open_leases(), 0, "{case}");
        assert_eq!(policies.overruns(), (u64::from(overrun > 0), Usd(overrun)), "{case}");
    }
}

fn charge(lease: Lease, settlement: Settlement) -> Option<(i64, i64)> {
    let charge = lease.settle(settlement);
    Some((charge.cost.0, charge.overrun.0))
}

#[tokio::test]
async fn free_targets_are_served_when_nothing_is_left_and_a_paid_fallback_is_not() {
    let (policies, agent) = open(10);
    policies.admit(&agent, spend(nano_per_token(), 10, OutputBound::Whole(0))).await.unwrap().settle(used(15, 0));
    let mut free = policies.admit(&agent, spend(Price::free(), 5000, growing(8))).await.unwrap();
    free.cover(100_000).unwrap();
    assert_eq!(free.settle(used(5000, 100_000)).cost, Usd::ZERO);
    let paid = Spend { attempt: 2, ..spend(nano_per_token(), 1, OutputBound::Whole(1)) };
    let denied = policies.admit(&agent, paid).await;
    assert!(matches!(&denied, Err(Denied::Budget(blocked)) if blocked.spent == 15), "{denied:?}");
}

#[tokio::test]
async fn an_agent_without_budgets_is_unlimited() {
    let mut config = config(&[]);
    add_agent(&mut config, "poor", &[(Window::Total, 0)]);
    let policies = Policies::in_memory(&config, clock("2026-03-04T05:06:07Z").0);
    let rich = scout(&policies);
    let lease =
        policies.admit(&rich, spend(price(u64::MAX, u64::MAX), u64::MAX, OutputBound::Whole(u64::MAX))).await.unwrap();
    let charge = lease.settle(used(u64::MAX, u64::MAX));
    assert_eq!((charge.cost, charge.remaining), (Usd(i64::MAX), None));
    assert!(own(&policies, &rich).is_empty());
    let poor = policies.authenticate("poor-key").unwrap();
    assert!(policies.admit(&poor, spend(nano_per_token(), 0, growing(1))).await.is_err());
}

#[tokio::test]
async fn the_prompt_is_leased_at_the_dearest_rate_that_may_apply() {
    let rates = |input, cached_input, cache_write, output| Rates {
        input: PicoUsd(input),
        cached_input: PicoUsd(cached_input),
        cache_write: PicoUsd(cache_write),
        output: PicoUsd(output),
        ..Rates::default()
    };
    let price = Price {
        base: rates(1_000, 100, 1_250, 5_000),
        above: vec![(1_000, rates(2_000, 200, 2_500, 10_000))],
        tiers: Vec::new(),
        source: PriceSource::Catalog,
    };
    let (policies, agent) = open(1_000_000);
    let short = policies.admit(&agent, spend(price.clone(), 1_000, OutputBound::Whole(10))).await.unwrap();
    assert_eq!(short.amount(), Usd(1_250 + 50));
    let usage =
        Usage { input: 1_000, cached_input: 400, cache_write: 500, output: 10, reasoning: 4, ..Usage::default() };
    let charge = short.settle(Settlement { usage, ..used(0, 0) });
    assert_eq!(charge.cost, Usd(100 + 40 + 625 + 50));
    assert_eq!(
        (charge.pieces.input, charge.pieces.cached_input, charge.pieces.cache_write, charge.pieces.output),
        (100_000, 40_000, 625_000, 50_000)
    );
    let long = policies.admit(&agent, spend(price, 1_001, OutputBound::Whole(10))).await.unwrap();
    assert_eq!(long.amount(), Usd(2_503 + 100), "1001 tokens at 2.5 nano-dollars, rounded up once");
    long.release(Outcome::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_the_last_cent_never_overshoot() {
    // 137 of them are affordable: each leases 3 input and 4 output tokens.
    let (policies, agent) = open(137 * 7 + 6);
    let tasks: Vec<_> = (0..1000)
        .map(|_| {
            let (policies, agent) = (policies.clone(), agent.clone());
            tokio::spawn(async move {
                let bound = OutputBound::Whole(4);
                let Ok(lease) = policies.admit(&agent, spend(nano_per_token(), 3, bound)).await else { return 0 };
                if lease.output_limit().is_some() {
                    lease.release(Outcome::Done);
                    return 0;
                }
                lease.settle(used(3, 4)).cost.0
            })
        })
        .collect();
    let mut served = 0;
    for task in tasks {
        served += task.await.unwrap();
    }
    assert_eq!(served, 137 * 7);
    assert_eq!(state(&policies, &agent), (137 * 7, 0));
    assert_eq!(policies.overruns(), (0, Usd::ZERO));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn streams_that_compete_stop_when_the_budget_is_spent_to_the_last_token() {
    let (policies, agent) = open(10_000);
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let (policies, agent) = (policies.clone(), agent.clone());
            tokio::spawn(async move {
                let Ok(mut lease) = policies.admit(&agent, spend(nano_per_token(), 5, growing(16))).await else {
                    return 0;
                };
                let mut tokens = 0;
                while lease.cover(tokens + 1).is_ok() {
                    tokens += 1;
                    tokio::task::yield_now().await;
                }
                lease.settle(used(5, tokens)).cost.0
            })
        })
        .collect();
    let mut spent = 0;
    for task in tasks {
        spent += task.await.unwrap();
    }
    assert_eq!(state(&policies, &agent), (spent, 0));
    assert!(spent <= 10_000, "{spent}");
    // Nothing is left unspent by a refusal but what stopped streams gave back of their slices.
    assert!(spent > 10_000 - 64 * 16, "{spent}");
}
