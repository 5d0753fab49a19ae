//! Rate limits as clients see them: headers that are true, refusals that name the moment, queues that hold and let go.

use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use tokio::task::JoinSet;
use tollkeeper_policies::Clock;
use tollkeeper_tests::asks::{CHAT, EMBEDDINGS, chat, embedding, streamed};
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::{Content, Gate, Hold, Script, Upstream};
use tollkeeper_tests::wait::{eventually, within};

/// The key of the agent `hasty`.
const HASTY: &str = "tk-hasty-key";

/// A gateway whose clock stands still until it is moved, with the agent `hasty`, who has these limits.
struct Limited {
    gateway: Gateway,
    clock: Arc<AtomicI64>,
}

impl Limited {
    async fn start(setup: Setup, limits: &str) -> Self {
        let clock = Arc::new(AtomicI64::new(1_772_625_600_000));
        let gateway = Gateway::start_by(with_hasty(setup, limits), Clock::fixed(clock.clone())).await;
        Self { gateway, clock }
    }

    fn client(&self) -> Client {
        Client::new(self.gateway.addr()).key(HASTY)
    }

    fn pass(&self, milliseconds: i64) {
        self.clock.fetch_add(milliseconds, Relaxed);
    }

    async fn waiting(&self, count: usize) {
        eventually("the wait for a place", async || {
            let waiting = self.gateway.metrics().await.sum("tollkeeper_rate_waiting_requests", &[]);
            (waiting == count as f64).then_some(())
        })
        .await;
    }
}

fn with_hasty(setup: Setup, limits: &str) -> Setup {
    setup.raw(&format!("[[agents]]\nname = \"hasty\"\nkey = \"{HASTY}\"\n{limits}\n"))
}

/// Limit, remaining, reset.
fn requests(answer: &Answer) -> [&str; 3] {
    ["limit", "remaining", "reset"].map(|what| answer.header(&format!("x-ratelimit-{what}-requests")))
}

fn tokens(answer: &Answer) -> [&str; 3] {
    ["limit", "remaining", "reset"].map(|what| answer.header(&format!("x-ratelimit-{what}-tokens")))
}

fn check_limited(answer: &Answer, retry_after_ms: &str, seconds: &str, says: &str) {
    assert_eq!(answer.status, 429, "{}", answer.text());
    let error = answer.error();
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_exceeded"), &json!("rate_limit_exceeded")));
    assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    assert_eq!((answer.header("retry-after-ms"), answer.header("retry-after")), (retry_after_ms, seconds));
    assert_eq!(answer.header("x-should-retry"), "", "waiting helps, so clients may");
}

#[tokio::test]
async fn requests_a_minute_are_counted_down_in_headers_and_refused_until_the_moment_that_is_told() {
    let upstream = Upstream::start().await;
    let limited = Limited::start(Setup::with(&upstream), "requests_per_minute = 3").await;
    let client = limited.client();
    for (ask, path, left) in [
        (chat("up/plain"), CHAT, ["3", "2", "20s"]),
        (embedding("up/plain"), EMBEDDINGS, ["3", "1", "40s"]),
        (streamed("up/plain"), CHAT, ["3", "0", "1m0s"]),
    ] {
        let answer = client.post_json(path, &ask).await;
        assert_eq!((answer.status, requests(&answer)), (200, left), "{}", answer.text());
        assert_eq!(tokens(&answer), [""; 3], "tokens are not limited");
    }
    let refused = client.post_json(CHAT, &chat("up/plain")).await;
    check_limited(&refused, "20000", "20", "agent `hasty` is at its limit of 3 requests a minute");
    assert_eq!(requests(&refused), ["3", "0", "1m0s"]);
    limited.pass(19_999);
    let refused = client.post_json(CHAT, &streamed("up/plain")).await;
    check_limited(&refused, "1", "1", "try again in 1 ms");
    limited.pass(1);
    let answer = client.post_json(CHAT, &chat("up/plain")).await;
    assert_eq!((answer.status, requests(&answer)), (200, ["3", "0", "1m0s"]));

    // What is refused for other reasons says what is left too.
    limited.pass(30_000);
    let unknown = client.post_json(CHAT, &chat("nothing/here")).await;
    assert_eq!((unknown.status, requests(&unknown)), (404, ["3", "1", "30s"]));
    let bad = client.post(CHAT, "{").await;
    assert_eq!((bad.status, requests(&bad)), (400, ["3", "1", "30s"]));
    assert_eq!(
        requests(&limited.gateway.client().post_json(CHAT, &chat("up/plain")).await),
        [""; 3],
        "others have none"
    );
    assert_eq!(upstream.received().len(), 5, "what is refused is not sent");
    let metrics = limited.gateway.metrics().await;
    assert_eq!(metrics.sum("tollkeeper_rate_limited_total", &[("agent", "hasty"), ("limit", "requests")]), 2.0);
}

#[tokio::test]
async fn tokens_a_minute_are_estimated_and_then_what_was_used() {
    let gate = Gate::default();
    let upstream = Upstream::start().await;
    let limited = Limited::start(Setup::with(&upstream), "tokens_per_minute = 6000").await;
    let client = limited.client();
    let answer = client.post_json(CHAT, &chat("up/plain")).await;
    let used = answer.json()["usage"]["total_tokens"].as_u64().unwrap();
    let left = 6000 - used;
    assert_eq!(tokens(&answer), ["6000", &left.to_string(), &format!("{}ms", used * 10)], "what is used is known");

    // While an answer runs it counts as estimated, and afterwards as it was.
    upstream.next(Script::words(3).with_hold(Hold::Frames(gate.clone())));
    let mut ask = streamed("up/plain");
    ask["max_tokens"] = json!(400);
    gate.open(1);
    let open = client.stream(CHAT, &ask).await;
    let running: u64 = open.headers["x-ratelimit-remaining-tokens"].to_str().unwrap().parse().unwrap();
    assert!((left - 500..=left - 400).contains(&running), "{running} of {left}");
    gate.open_wide();
    open.rest().await;
    limited.gateway.settled().await;
    let usage = upstream.served().last().unwrap().usage;
    let left = left - usage.input - usage.output;
    let bad = client.post(CHAT, "{").await;
    assert_eq!(tokens(&bad)[1], left.to_string());

    // A long prompt has to wait until so much is there; a longer one than a minute allows until all is.
    let mut long = chat("up/plain");
    long["messages"][0]["content"] = json!("word ".repeat(9_000));
    let refused = client.post_json(CHAT, &long).await;
    let wait = (6000 - left) * 10;
    check_limited(&refused, &wait.to_string(), &wait.div_ceil(1000).to_string(), "6000 tokens a minute");
    limited.pass(wait as i64);
    assert_eq!(client.post_json(CHAT, &long).await.status, 200);
    assert_eq!(limited.gateway.metrics().await.sum("tollkeeper_rate_limited_total", &[("limit", "tokens")]), 1.0);
}

#[tokio::test]
async fn a_request_that_never_reached_a_backend_has_used_no_tokens() {
    let upstream = Upstream::always(Script::status(500)).await;
    let setup = Setup::new().provider("up", &upstream.url(), "max_attempts = 1");
    let limited = Limited::start(setup, "tokens_per_minute = 6000\nrequests_per_minute = 10").await;
    let answer = limited.client().post_json(CHAT, &chat("up/plain")).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!((requests(&answer)[1], tokens(&answer)), ("9", ["6000", "6000", "0s"]));
}

#[tokio::test]
async fn streams_keep_their_place_until_their_client_leaves() {
    let upstream = Upstream::start().await;
    let gate = Gate::default();
    upstream.next(Script::says(Content::Endless).with_hold(Hold::Frames(gate.clone())));
    let limited = Limited::start(Setup::with(&upstream), "parallel = 1\nqueue = 1").await;
    let client = limited.client();
    gate.open(3);
    let mut first = client.stream(CHAT, &streamed("up/plain")).await;
    assert!(within("the first event", first.next_event()).await.unwrap().is_some());

    let second = tokio::spawn({
        let client = client.clone();
        async move { client.post_json(CHAT, &chat("up/plain")).await }
    });
    limited.waiting(1).await;
    let third = client.post_json(CHAT, &chat("up/plain")).await;
    assert_eq!((third.status, third.error()["code"].clone()), (503, json!("overloaded")), "{}", third.text());
    assert!(third.header("retry-after").parse::<u64>().unwrap() >= 1);
    assert!(third.error()["message"].as_str().unwrap().contains("1 requests in flight and 1 waiting"));
    assert_eq!(upstream.received().len(), 1, "what waits is not sent");

    // A client that gives up in the queue leaves room for the next.
    second.abort();
    limited.waiting(0).await;
    let fourth = tokio::spawn({
        let client = client.clone();
        async move { client.post_json(CHAT, &chat("up/plain")).await }
    });
    limited.waiting(1).await;
    drop(first);
    let answer = within("the answer of who waited", fourth).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    // And the place is free again when a whole answer is out, and when a stream has ended by itself.
    for ask in [chat("up/plain"), streamed("up/plain"), chat("up/plain")] {
        assert_eq!(client.post_json(CHAT, &ask).await.status, 200);
    }
    let metrics = limited.gateway.metrics().await;
    assert_eq!(metrics.sum("tollkeeper_rate_limited_total", &[("agent", "hasty"), ("limit", "parallel")]), 1.0);
}

#[tokio::test]
async fn an_aliass_limit_is_for_all_and_costs_nobody_anything_where_it_refuses() {
    let upstream = Upstream::start().await;
    let alias = "[[aliases]]\nname = \"team/slow\"\ntargets = [\"up/plain\"]\nrequests_per_minute = 2\n";
    let limited = Limited::start(Setup::with(&upstream).raw(alias), "requests_per_minute = 10").await;
    let client = limited.client();
    let answer = limited.gateway.client().post_json(CHAT, &chat("team/slow")).await;
    assert_eq!((answer.status, requests(&answer)), (200, ["2", "1", "30s"]), "of an agent without limits of its own");
    let answer = client.post_json(CHAT, &chat("team/slow")).await;
    assert_eq!((answer.status, requests(&answer)), (200, ["2", "0", "1m0s"]), "the tightest");
    let refused = client.post_json(CHAT, &chat("team/slow")).await;
    check_limited(&refused, "30000", "30", "alias `team/slow` is at its limit of 2 requests a minute");
    // The agent's own ten: one used here, one for the answer that shows it.
    let answer = client.post_json(CHAT, &chat("up/plain")).await;
    assert_eq!((answer.status, requests(&answer)), (200, ["10", "8", "12s"]));
}

#[tokio::test]
async fn a_reload_changes_limits_and_keeps_what_is_used() {
    let upstream = Upstream::start().await;
    let limited = Limited::start(Setup::with(&upstream), "requests_per_minute = 4").await;
    for _ in 0..3 {
        assert_eq!(limited.client().post_json(CHAT, &chat("up/plain")).await.status, 200);
    }
    limited.gateway.reload(&with_hasty(Setup::with(&upstream), "requests_per_minute = 6"));
    let answer = limited.client().post_json(CHAT, &chat("up/plain")).await;
    assert_eq!((answer.status, requests(&answer)), (200, ["6", "2", "40s"]));
}

#[tokio::test]
async fn a_request_that_can_wait_waits_for_its_agents_limits_behind_those_that_cannot() {
    let gate = Gate::default();
    let upstream = Upstream::always(Script::words(1).with_hold(Hold::Head(gate.clone()))).await;
    let gateway = Gateway::start(Setup::with(&upstream).scout("parallel = 1\nqueue = 4\n")).await;
    let mut asking = JoinSet::new();
    let mut ask = |name: &'static str, priority: &str| {
        let client = gateway.client().header("x-tollkeeper-priority", priority);
        asking.spawn(async move {
            assert_eq!(client.post_json(CHAT, &chat(&format!("up/{name}"))).await.status, 200);
        });
    };
    ask("first", "interactive");
    upstream.wait_for_requests(1).await;
    let waiting = async |count: f64| {
        eventually("those that wait", async || {
            (gateway.metrics().await.sum("tollkeeper_rate_waiting_requests", &[]) == count).then_some(())
        })
        .await;
    };
    ask("can-wait", "batch");
    waiting(1.0).await;
    ask("cannot", "interactive");
    waiting(2.0).await;
    gate.open_wide();
    asking.join_all().await;
    let order: Vec<_> =
        upstream.received().iter().map(|one| one.json()["model"].as_str().unwrap().to_owned()).collect();
    assert_eq!(order, ["first", "cannot", "can-wait"]);
    gateway.stop().await;
}
