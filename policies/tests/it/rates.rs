//! Rate limits over a request: all let it in or none is touched, nobody waits before a free place, and nothing is lost when somebody leaves.

use crate::setup::{add_agent, clock, config};
use proptest::prelude::*;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tollkeeper_config::{Alias, Config, Priority, RateLimits, Strategy as Order};
use tollkeeper_policies::{Clock, RateAsk, RateDenied, RateGuard, RateLimit, RateScope, Rates};

const NOON: &str = "2026-03-04T12:00:00Z";

fn limits(requests: u32, tokens: u32, parallel: u32, queue: u32) -> RateLimits {
    let limit = NonZeroU32::new;
    RateLimits {
        requests_per_minute: limit(requests),
        tokens_per_minute: limit(tokens),
        parallel: limit(parallel),
        queue,
    }
}

/// The agents `scout` and `rover` and the alias `fast`; 0 is no limit.
fn limited(scout: RateLimits, rover: RateLimits, fast: RateLimits) -> Config {
    let mut config = config(&[]);
    add_agent(&mut config, "rover", &[]);
    for (name, rates) in [("scout", scout), ("rover", rover)] {
        Arc::make_mut(config.agents.get_mut(name).unwrap()).rates = rates;
    }
    let alias = Alias {
        name: "fast".to_owned(),
        strategy: Order::Ordered,
        targets: Vec::new(),
        rates: fast,
        escalate_at: Vec::new(),
        cascade: None,
        weights: Vec::new(),
    };
    config.aliases.insert(alias.name.clone(), Arc::new(alias));
    config
}

fn ask<'a>(agent: &'a str, alias: &'a str) -> RateAsk<'a> {
    RateAsk { agent, alias, priority: Priority::Interactive }
}

type Asked<'a> = Pin<Box<dyn Future<Output = Result<RateGuard, RateDenied>> + Send + 'a>>;

fn poll(asked: &mut Asked<'_>) -> Poll<Result<RateGuard, RateDenied>> {
    asked.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// What comes of it at once.
fn now(rates: &Rates, ask: RateAsk<'_>, tokens: u64) -> Result<RateGuard, RateDenied> {
    let mut asked: Asked<'_> = Box::pin(rates.admit(ask, || tokens));
    match poll(&mut asked) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits"),
    }
}

/// What remains: requests and tokens.
fn left(rates: &Rates, agent: &str, alias: &str) -> (Option<u32>, Option<u32>) {
    let standing = rates.standing(agent, alias);
    (standing.requests.map(|left| left.remaining), standing.tokens.map(|left| left.remaining))
}

const NONE: RateLimits =
    RateLimits { requests_per_minute: None, tokens_per_minute: None, parallel: None, queue: RateLimits::QUEUE };

#[test]
fn without_limits_everything_is_let_in_and_nothing_is_estimated() {
    let rates = Rates::new(&limited(NONE, NONE, limits(0, 0, 1, 0)), Clock::system());
    let mut asked: Asked<'_> = Box::pin(rates.admit(ask("scout", "other"), || panic!("nobody needs to know")));
    assert!(matches!(poll(&mut asked), Poll::Ready(Ok(_))));
    assert_eq!(left(&rates, "scout", "other"), (None, None));
}

#[test]
fn what_the_alias_refuses_costs_the_agent_nothing() {
    let rates = Rates::new(&limited(limits(10, 1000, 0, 0), NONE, limits(2, 300, 0, 0)), clock(NOON).0);
    let first = now(&rates, ask("rover", "fast"), 100).unwrap();
    assert_eq!(left(&rates, "scout", "fast"), (Some(1), Some(200)), "the tightest");
    // Too many tokens for the alias, then too many requests.
    let denied = now(&rates, ask("scout", "fast"), 250).unwrap_err();
    assert_eq!(
        denied,
        RateDenied::Rate {
            scope: RateScope::Alias,
            id: "fast".into(),
            what: RateLimit::Tokens,
            limit: 300,
            retry_after: Duration::from_secs(10)
        }
    );
    assert_eq!(
        denied.to_string(),
        "alias `fast` is at its limit of 300 tokens a minute (`tokens_per_minute`); try again in 10 s"
    );
    assert_eq!(left(&rates, "scout", "other"), (Some(10), Some(1000)));
    let second = now(&rates, ask("scout", "fast"), 100).unwrap();
    assert_eq!(left(&rates, "scout", "other"), (Some(9), Some(900)));
    let denied = now(&rates, ask("scout", "fast"), 1).unwrap_err();
    assert!(matches!(denied, RateDenied::Rate { scope: RateScope::Alias, what: RateLimit::Requests, .. }));
    assert_eq!(left(&rates, "scout", "other"), (Some(9), Some(900)));
    // What the agent refuses costs the alias nothing either.
    drop((first, second));
    assert_eq!(left(&rates, "rover", "fast"), (Some(0), Some(100)));
}

#[test]
fn of_several_limits_the_refusal_names_the_one_that_takes_longest() {
    let (clock, hand) = clock(NOON);
    let rates = Rates::new(&limited(limits(60, 6000, 0, 0), NONE, limits(6, 0, 0, 0)), clock);
    for _ in 0..6 {
        drop(now(&rates, ask("scout", "fast"), 1000).unwrap());
    }
    // The tokens take as long as they need (10 s for 1,000, 20 s for 2,000), the alias's next request 10 s.
    for (tokens, seconds) in [(500, 10), (2000, 20)] {
        let wait = now(&rates, ask("scout", "fast"), tokens).unwrap_err().retry_after();
        assert_eq!(wait, Duration::from_secs(seconds));
    }
    hand.advance(Duration::from_millis(19_999));
    assert!(now(&rates, ask("scout", "fast"), 2000).is_err());
    hand.advance(Duration::from_millis(1));
    let standing = rates.standing("scout", "other");
    assert_eq!((standing.tokens.unwrap().remaining, standing.tokens.unwrap().reset), (2000, Duration::from_secs(40)));
    assert!(now(&rates, ask("scout", "fast"), 2000).is_ok());
}

#[test]
fn tokens_are_estimated_and_then_corrected() {
    let rates = Rates::new(&limited(limits(0, 1000, 0, 0), NONE, limits(0, 5000, 0, 0)), clock(NOON).0);
    let mut guard = now(&rates, ask("scout", "fast"), 900).unwrap();
    assert_eq!((left(&rates, "scout", "fast").1, guard.tokens()), (Some(100), 900));
    guard.correct(40);
    assert_eq!(left(&rates, "scout", "fast").1, Some(960));
    guard.correct(1500);
    drop(guard);
    assert_eq!(left(&rates, "scout", "fast").1, Some(0));
    assert_eq!(left(&rates, "rover", "fast").1, Some(3500), "the alias counts it too");
    assert_eq!(now(&rates, ask("scout", "fast"), 1).unwrap_err().retry_after(), Duration::from_millis(30_060));
    // A guard that nobody corrected keeps its estimate.
    drop(now(&rates, ask("rover", "fast"), 500).unwrap());
    assert_eq!(left(&rates, "rover", "fast").1, Some(3000));
}

#[test]
fn more_than_a_minute_allows_is_let_in_when_nothing_else_was() {
    let (clock, hand) = clock(NOON);
    let rates = Rates::new(&limited(limits(0, 1000, 0, 0), NONE, NONE), clock);
    let mut guard = now(&rates, ask("scout", "fast"), 50_000).unwrap();
    guard.correct(3000);
    let denied = now(&rates, ask("scout", "fast"), 50_000).unwrap_err();
    assert_eq!(denied.retry_after(), Duration::from_secs(180));
    hand.advance(denied.retry_after());
    let mut guard = now(&rates, ask("scout", "fast"), 50_000).unwrap();
    assert_eq!(left(&rates, "scout", "fast").1, Some(0));
    // An estimate that was right counts in full, also where it was more than there is.
    guard.correct(50_000);
    assert_eq!(rates.standing("scout", "fast").tokens.unwrap().reset, Duration::from_secs(50 * 60));
}

#[test]
fn parallel_requests_wait_in_a_bounded_queue() {
    let rates = Rates::new(&limited(limits(10, 0, 2, 1), NONE, NONE), clock(NOON).0);
    let first = now(&rates, ask("scout", "fast"), 1).unwrap();
    let second = now(&rates, ask("scout", "fast"), 1).unwrap();
    let mut third: Asked<'_> = Box::pin(rates.admit(ask("scout", "fast"), || 1));
    assert!(poll(&mut third).is_pending());
    let denied = now(&rates, ask("scout", "fast"), 1).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "agent `scout` has 2 requests in flight and 1 waiting, which is its limit (`parallel`, `queue`); try again in about 1 s"
    );
    assert_eq!((denied.what(), left(&rates, "scout", "fast").0), (RateLimit::Parallel, Some(7)));
    let batch = RateAsk { priority: Priority::Batch, ..ask("scout", "fast") };
    let mut fourth: Asked<'_> = Box::pin(rates.admit(batch, || 1));
    assert!(poll(&mut fourth).is_pending(), "each class has a queue of its own");
    assert_eq!(rates.waiting(), [(Priority::Interactive, 1), (Priority::Batch, 1)]);
    drop(third);
    assert_eq!(left(&rates, "scout", "fast").0, Some(7), "who leaves the queue has asked for nothing");
    drop(first);
    let Poll::Ready(Ok(fourth)) = poll(&mut fourth) else { panic!("it still waits") };
    assert_eq!(rates.waiting(), [(Priority::Interactive, 0), (Priority::Batch, 0)]);
    drop((second, fourth));
    assert_eq!(left(&rates, "scout", "fast").0, Some(7), "who was let in has");
}

#[test]
fn a_request_waits_for_its_agents_place_and_then_for_the_aliass() {
    let rates = Rates::new(&limited(limits(0, 0, 1, 5), NONE, limits(0, 100, 1, 1)), clock(NOON).0);
    let of_alias = now(&rates, ask("rover", "fast"), 10).unwrap();
    let mut inner: Asked<'_> = Box::pin(rates.admit(ask("scout", "fast"), || 10));
    assert!(poll(&mut inner).is_pending());
    // It has its agent's place, and so the next one waits before that.
    let mut outer: Asked<'_> = Box::pin(rates.admit(ask("scout", "fast"), || 10));
    assert!(poll(&mut outer).is_pending());
    let mut elsewhere: Asked<'_> = Box::pin(rates.admit(ask("scout", "other"), || 10));
    assert!(poll(&mut elsewhere).is_pending());
    assert!(matches!(
        now(&rates, ask("rover", "fast"), 10).unwrap_err(),
        RateDenied::Busy { scope: RateScope::Alias, waiting: 1, .. }
    ));
    assert_eq!(left(&rates, "rover", "fast").1, Some(70));
    // When the first gives up, the second comes to the alias's queue.
    drop(inner);
    assert!(poll(&mut outer).is_pending());
    drop(of_alias);
    let Poll::Ready(Ok(outer)) = poll(&mut outer) else { panic!("it still waits") };
    assert!(poll(&mut elsewhere).is_pending());
    drop(outer);
    assert!(matches!(poll(&mut elsewhere), Poll::Ready(Ok(_))));
    assert_eq!(left(&rates, "rover", "fast").1, Some(80));
}

#[test]
fn a_reload_keeps_what_is_used_and_who_waits() {
    let rates = Rates::new(&limited(limits(10, 1000, 1, 5), NONE, NONE), clock(NOON).0);
    let mut running = now(&rates, ask("scout", "fast"), 400).unwrap();
    let mut waiting: Asked<'_> = Box::pin(rates.admit(ask("scout", "fast"), || 100));
    assert!(poll(&mut waiting).is_pending());
    rates.reload(&limited(limits(10, 1000, 1, 5), NONE, NONE));
    assert_eq!(left(&rates, "scout", "fast"), (Some(8), Some(500)));
    running.correct(200);
    assert_eq!(left(&rates, "scout", "fast"), (Some(8), Some(700)), "the same limit forgets nothing");
    rates.reload(&limited(limits(4, 2000, 1, 5), NONE, NONE));
    assert_eq!(left(&rates, "scout", "fast"), (Some(2), Some(1700)));
    assert!(poll(&mut waiting).is_pending());
    rates.reload(&limited(NONE, NONE, NONE));
    assert!(matches!(poll(&mut waiting), Poll::Ready(Ok(_))), "a limit that is gone keeps nobody");
    running.correct(900);
    assert_eq!(left(&rates, "scout", "fast"), (None, None));
}

#[test]
fn agents_that_the_configuration_does_not_know_have_limits_too() {
    let config = limited(NONE, NONE, NONE);
    let rates = Rates::new(&config, clock(NOON).0);
    rates.limit(RateScope::Agent, "made", limits(3, 0, 0, 0));
    drop(now(&rates, ask("made", "fast"), 1).unwrap());
    rates.reload(&config);
    assert_eq!(left(&rates, "made", "fast"), (Some(2), None));
}

#[test]
fn time_that_runs_backwards_gives_and_takes_nothing() {
    let (clock, hand) = clock(NOON);
    let rates = Rates::new(&limited(limits(6, 0, 0, 0), NONE, NONE), clock);
    for _ in 0..6 {
        drop(now(&rates, ask("scout", "fast"), 1).unwrap());
    }
    hand.set("2026-03-04T11:00:00Z");
    assert_eq!(now(&rates, ask("scout", "fast"), 1).unwrap_err().retry_after(), Duration::from_secs(10));
    hand.set("2026-03-04T12:00:10Z");
    assert!(now(&rates, ask("scout", "fast"), 1).is_ok());
}

/// One thing that happens: who asks for what, or which of those before is polled, ends or leaves.
#[derive(Debug, Clone)]
enum Step {
    Ask { scout: bool, fast: bool, batch: bool, tokens: u64 },
    Leave(prop::sample::Index),
    End(prop::sample::Index, u64),
    Reload { agents: u32, alias: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<bool>(), any::<bool>(), any::<bool>(), 1..400u64)
            .prop_map(|(scout, fast, batch, tokens)| Step::Ask { scout, fast, batch, tokens }),
        2 => any::<prop::sample::Index>().prop_map(Step::Leave),
        4 => (any::<prop::sample::Index>(), 0..600u64).prop_map(|(which, tokens)| Step::End(which, tokens)),
        1 => (1..4u32, 1..4u32).prop_map(|(agents, alias)| Step::Reload { agents, alias }),
    ]
}

/// A running or waiting request.
struct Asking<'a> {
    agent: &'static str,
    alias: &'static str,
    asked: Asked<'a>,
}

proptest! {
    #[test]
    fn whatever_happens_limits_hold_and_nothing_leaks(steps in prop::collection::vec(step(), 1..80)) {
        let with = |agents, alias| limited(limits(40, 9000, agents, 2), limits(40, 9000, agents, 2), limits(60, 15_000, alias, 3));
        // The clock stands still: what was used stays used.
        let rates = Rates::new(&with(2, 3), clock(NOON).0);
        let (mut waiting, mut running, mut widest): (Vec<Asking<'_>>, Vec<(&str, &str, RateGuard)>, _) = (Vec::new(), Vec::new(), (2, 3));
        let mut used = [(0u32, 0u64); 3];
        let places = |agent: &str, alias: &str| {
            let agent = if agent == "scout" { 0 } else { 1 };
            if alias == "fast" { vec![agent, 2] } else { vec![agent] }
        };
        for step in steps {
            match step {
                Step::Ask { scout, fast, batch, tokens } => {
                    let (agent, alias) = (if scout { "scout" } else { "rover" }, if fast { "fast" } else { "other" });
                    let priority = if batch { Priority::Batch } else { Priority::Interactive };
                    let asked: Asked<'_> = Box::pin(rates.admit(RateAsk { agent, alias, priority }, move || tokens));
                    waiting.push(Asking { agent, alias, asked });
                }
                Step::Leave(which) if !waiting.is_empty() => drop(waiting.swap_remove(which.index(waiting.len()))),
                Step::End(which, tokens) if !running.is_empty() => {
                    let (agent, alias, mut guard) = running.swap_remove(which.index(running.len()));
                    // Never more than was estimated, so that no minute is overdrawn in this test.
                    let tokens = tokens.min(guard.tokens());
                    for place in places(agent, alias) {
                        used[place].1 -= guard.tokens() - tokens;
                    }
                    guard.correct(tokens);
                }
                Step::Reload { agents, alias } => {
                    rates.reload(&with(agents, alias));
                    widest = (widest.0.max(agents), widest.1.max(alias));
                }
                _ => {}
            }
            // Everybody who can go on does, also through the second gate.
            loop {
                let before = (waiting.len(), running.len());
                let mut still = Vec::new();
                for mut asking in waiting {
                    match poll(&mut asking.asked) {
                        Poll::Pending => still.push(asking),
                        Poll::Ready(Ok(guard)) => {
                            for place in places(asking.agent, asking.alias) {
                                used[place].0 += 1;
                                used[place].1 += guard.tokens();
                            }
                            running.push((asking.agent, asking.alias, guard));
                        }
                        Poll::Ready(Err(_)) => {}
                    }
                }
                waiting = still;
                if before == (waiting.len(), running.len()) {
                    break;
                }
            }
            let runs = |agent: &str| running.iter().filter(|(of, ..)| *of == agent).count();
            let fast = running.iter().filter(|(_, alias, _)| *alias == "fast").count();
            prop_assert!(runs("scout") <= widest.0 as usize && runs("rover") <= widest.0 as usize && fast <= widest.1 as usize);
            for (requests, _) in used {
                prop_assert!(requests <= 60);
            }
            prop_assert!(!running.is_empty() || waiting.is_empty(), "they wait for nobody");
        }
        // Who still waits leaves, who runs ends; then everything is as if only those had been that were let in.
        drop(waiting);
        drop(running);
        prop_assert_eq!(rates.waiting(), [(Priority::Interactive, 0), (Priority::Batch, 0)]);
        let whole = [("scout", "other", 40u32, 9000u64), ("rover", "other", 40, 9000), ("nobody", "fast", 60, 15_000)];
        for ((agent, alias, requests, tokens), (asked, took)) in whole.into_iter().zip(used) {
            let rest = u32::try_from(tokens - took).unwrap();
            prop_assert_eq!(left(&rates, agent, alias), (Some(requests - asked), Some(rest)));
        }
        rates.reload(&with(2, 3));
        if used[0].0 + 2 <= 40 && used[0].1 + 2 <= 9000 {
            let both = [now(&rates, ask("scout", "other"), 1), now(&rates, ask("scout", "other"), 1)];
            prop_assert!(both.iter().all(Result::is_ok), "a place has leaked");
        }
    }
}

/// Tasks on several threads ask, wait, give up and end. That this ends at all says that no wake-up is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_forgotten_between_threads() {
    let rates = Rates::new(&limited(limits(0, 0, 3, 100), limits(0, 0, 3, 100), limits(0, 0, 4, 100)), Clock::system());
    let inside = Arc::new(AtomicU32::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40u32 {
        let (rates, inside) = (rates.clone(), inside.clone());
        tasks.spawn(async move {
            let agent = if number.is_multiple_of(2) { "scout" } else { "rover" };
            let priority = if number.is_multiple_of(3) { Priority::Batch } else { Priority::Interactive };
            for round in 0..200u32 {
                let asked = rates.admit(RateAsk { agent, alias: "fast", priority }, || 1);
                if (number + round).is_multiple_of(5) {
                    // Gives up after a few turns, at whatever point it has reached by then.
                    let turns = async {
                        for _ in 0..round % 7 {
                            tokio::task::yield_now().await;
                        }
                    };
                    tokio::select! {
                        biased;
                        () = turns => {}
                        guard = asked => drop(guard.unwrap()),
                    }
                    continue;
                }
                let guard = asked.await.unwrap();
                assert!(inside.fetch_add(1, Relaxed) < 4, "more than the alias allows");
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Relaxed);
                drop(guard);
            }
        });
    }
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("somebody waits for ever");
    assert_eq!(rates.waiting(), [(Priority::Interactive, 0), (Priority::Batch, 0)]);
    let four: Vec<_> = [("scout", 2), ("rover", 2)]
        .into_iter()
        .flat_map(|(agent, times)| (0..times).map(move |_| agent))
        .map(|agent| now(&rates, ask(agent, "fast"), 1).unwrap())
        .collect();
    assert_eq!(four.len(), 4, "all places are free again");
}
