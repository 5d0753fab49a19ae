//! Several gateways on one real Redis: they spend a budget once, whatever happens to Redis, to a gateway or to a stream.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tollkeeper_config::Usd;
use tollkeeper_servers::{Proxy, RedisServer};
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::{Gateway, Ledger};
use tollkeeper_tests::process::Process;
use tollkeeper_tests::setup::{ADMIN_KEY, Setup};
use tollkeeper_tests::upstream::{Content, End, Fault, Gate, Hold, Script, Upstream};
use tollkeeper_tests::wait::eventually;

/// What a token of output costs at the model `up/flat`, in nano-dollars; its input is free.
const NANO: i64 = 1000;
const FLAT: &str = "[prices.\"up/flat\"]\ninput = \"0\"\noutput = \"1\"\nabilities = [\"chat\"]\n";
/// Output tokens of each request of a crowd.
const TOKENS: i64 = 10;
/// After this and a quarter, and a turn of whoever looks, a gateway is dead: see [`sharing`].
const LEASE_AGE: Duration = Duration::from_secs(2);
/// The most that a refusal takes while Redis is away: a connection and an answer of half a second each, on a busy machine.
const SHORT: Duration = Duration::from_secs(4);

/// A gateway of a fleet, whose agent `scout` may spend so much in all.
fn sharing(upstream: &Upstream, url: &str, name: &str, limit: Usd, more: &str) -> Setup {
    let times = format!("lease_age = \"{}s\"", LEASE_AGE.as_secs());
    sharing_for(&times, upstream, url, name, limit, more)
}

fn sharing_for(times: &str, upstream: &Upstream, url: &str, name: &str, limit: Usd, more: &str) -> Setup {
    let shared = format!("[shared]\nurl = {url:?}\ngateway = {name:?}\n{times}\n");
    let budget = format!("[[budgets]]\nagent = \"scout\"\nwindow = \"total\"\nlimit_usd = \"{limit}\"\n{more}\n");
    Setup::with(upstream).raw(FLAT).raw(&shared).raw(&budget)
}

async fn fleet(upstream: &Upstream, url: &str, limit: Usd) -> [Gateway; 2] {
    started(["left", "right"].map(|name| sharing(upstream, url, name, limit, ""))).await
}

/// The same, as patient as a crowd on a busy machine needs it, with the alias `crowd`: `up/flat`, or before that a free local model that cannot
/// answer.
async fn patient_fleet(upstream: &Upstream, url: &str, limit: Usd, fallback: bool) -> [Gateway; 2] {
    let times = "lease_age = \"20s\"\nanswer_timeout = \"5s\"";
    let setup = |name| {
        let setup = sharing_for(times, upstream, url, name, limit, "");
        if !fallback {
            return setup.alias("crowd", &["up/flat"]);
        }
        let broken = setup.path("broken.json");
        std::fs::write(&broken, r#"{"load_error": "broken"}"#).unwrap();
        let home = format!("[[local.models]]\nname = \"home\"\npath = {broken:?}\nengine = \"scripted\"\n");
        setup.raw(&home).alias("crowd", &["home", "up/flat"])
    };
    started(["left", "right"].map(setup)).await
}

async fn started([left, right]: [Setup; 2]) -> [Gateway; 2] {
    let gateways = [Gateway::start(left).await, Gateway::start(right).await];
    for gateway in &gateways {
        usable(gateway).await;
    }
    gateways
}

async fn usable(gateway: &Gateway) {
    eventually("the shared store", async || {
        (gateway.metrics().await.sum("tollkeeper_shared_up", &[]) == 1.0).then_some(())
    })
    .await;
}

fn bounded(stream: bool) -> Value {
    bounded_of("up/flat", stream)
}

fn bounded_of(model: &str, stream: bool) -> Value {
    let mut ask = if stream { streamed(model) } else { chat(model) };
    ask["max_tokens"] = json!(TOKENS);
    ask
}

fn admin(gateway: &Gateway) -> Client {
    Client::new(gateway.addr()).key(ADMIN_KEY)
}

/// What a gateway says that all have spent and lease of the one budget, in USD.
async fn standing(gateway: &Gateway) -> [String; 3] {
    let budgets = admin(gateway).get("/admin/v1/budgets").await.json();
    ["spent", "reserved", "remaining"].map(|name| budgets["data"][0][name].as_str().unwrap().to_owned())
}

fn count(statuses: &[u16], status: u16) -> usize {
    statuses.iter().filter(|found| **found == status).count()
}

fn error_type(answer: &Answer) -> String {
    answer.error()["type"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn of_a_thousand_at_two_gateways_exactly_those_are_served_that_the_budget_affords() {
    let store = RedisServer::start(false);
    for (stream, fallback) in [(false, false), (true, false), (false, true)] {
        store.cli(&["FLUSHALL"]);
        let gate = Gate::default();
        let upstream = Upstream::always(Script::says(Content::Endless).with_hold(Hold::Head(gate.clone()))).await;
        let limit = Usd(137 * TOKENS * NANO);
        let gateways = patient_fleet(&upstream, &store.url(), limit, fallback).await;
        let mut asks = JoinSet::new();
        for number in 0..1000 {
            let client = gateways[number % 2].client();
            asks.spawn(async move { client.post_json(CHAT, &bounded_of("crowd", stream)).await.status });
        }
        let mut statuses = Vec::new();
        while statuses.len() < 863 {
            let status = asks.join_next().await.unwrap().unwrap();
            assert_eq!(status, 402, "nobody is answered before the gate is open");
            statuses.push(status);
        }
        upstream.wait_for_requests(137).await;
        gate.open_wide();
        statuses.extend(asks.join_all().await);
        assert_eq!((count(&statuses, 200), count(&statuses, 402)), (137, 863), "stream: {stream}, {fallback}");
        for gateway in &gateways {
            gateway.settled().await;
            eventually("the other's spending", async || {
                (standing(gateway).await == [limit.to_string(), "0".into(), "0".into()]).then_some(())
            })
            .await;
        }
        assert_eq!((upstream.served().len(), upstream.billed().output), (137, 1370));
        let [left, right] = gateways;
        let totals = [left.stop().await.total(), right.stop().await.total()];
        assert!(totals.iter().all(|total| *total > Usd::ZERO), "both had work: {totals:?}");
        assert_eq!(totals[0].saturating_add(totals[1]), limit, "to the nano-dollar");
    }
}

#[tokio::test]
async fn streams_at_two_gateways_share_the_last_tokens_and_end_well() {
    let store = RedisServer::start(false);
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let limit = Usd(20_000 * NANO);
    let gateways = patient_fleet(&upstream, &store.url(), limit, false).await;
    let mut asks = JoinSet::new();
    for number in 0..12 {
        let client = gateways[number % 2].client();
        asks.spawn(async move { client.post_json(CHAT, &streamed("up/flat")).await });
    }
    for answer in asks.join_all().await {
        if answer.status == 200 {
            let events = answer.events();
            assert!(events.iter().any(|event| event.contains("\"budget_exceeded\"")), "{}", events[events.len() - 2]);
            assert_eq!(events.last().unwrap(), "[DONE]");
        } else {
            assert_eq!(answer.status, 402);
        }
    }
    gateways[0].settled().await;
    gateways[1].settled().await;
    let [left, right] = gateways;
    let spent = left.stop().await.total().saturating_add(right.stop().await.total());
    assert!(spent <= limit && spent.0 * 100 >= limit.0 * 97, "{spent} of {limit}");
}

#[tokio::test]
async fn streams_cut_midway_at_two_gateways_free_what_they_did_not_use_for_both() {
    let store = RedisServer::start(false);
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let limit = Usd(8_000 * NANO);
    let gateways = patient_fleet(&upstream, &store.url(), limit, false).await;
    let mut asks = JoinSet::new();
    for number in 0..24 {
        let client = gateways[number % 2].client();
        asks.spawn(async move {
            let mut open = client.stream(CHAT, &streamed("up/flat")).await;
            let mut words = 0;
            // Some leave after a few words, the others stay until the budget ends them.
            while number % 3 != 0 || words < 5 {
                match open.next_event().await {
                    Ok(Some(event)) => {
                        words += i64::from(event.contains("\"content\":\"") && !event.contains("\"content\":\"\""));
                    }
                    _ => break,
                }
            }
            (open.status, words)
        });
    }
    let answers = asks.join_all().await;
    let delivered: i64 = answers.iter().filter(|(status, _)| *status == 200).map(|(_, words)| words * NANO).sum();
    for gateway in &gateways {
        gateway.settled().await;
        eventually("the end of all leases", async || (standing(gateway).await[1] == "0").then_some(())).await;
    }
    let [left, right] = gateways;
    let totals = [left.stop().await.total(), right.stop().await.total()];
    let total = totals[0].saturating_add(totals[1]);
    assert!(totals.iter().all(|total| *total > Usd::ZERO), "both had work: {totals:?}");
    assert!(total <= limit, "{total} of {limit} spent");
    assert!(total.0 >= delivered, "{delivered} delivered, {total} charged");
    assert!(total.0 * 100 >= limit.0 * 97, "{total} of {limit} could be spent");
    assert!(upstream.served().iter().all(|served| served.end != End::Open), "nobody goes on generating");
}

#[tokio::test]
async fn no_token_waits_for_the_shared_store_while_it_is_quick() {
    let store = RedisServer::start(false);
    let upstream = Upstream::always(Script::words(4_000)).await;
    let [left, _right] = fleet(&upstream, &store.url(), Usd(1_000_000 * NANO)).await;
    let before = store.calls("evalsha");
    let answer = left.client().post_json(CHAT, &streamed("up/flat")).await;
    assert_eq!(answer.events().len(), 4_003, "a head, the words, an end and [DONE]");
    left.settled().await;
    // A slice is at least 64 tokens: what 4,000 tokens ask is far fewer calls, beside those of two heartbeats.
    let calls = store.calls("evalsha") - before;
    assert!(calls < 150, "{calls} calls");
}

#[tokio::test]
async fn a_pause_at_one_gateway_stops_the_other_until_anyone_resumes_it() {
    let store = RedisServer::start(false);
    let upstream = Upstream::start().await;
    let [left, right] = fleet(&upstream, &store.url(), Usd(1_000_000 * NANO)).await;
    let ask = async |gateway: &Gateway| gateway.client().post_json(CHAT, &bounded(false)).await;
    assert_eq!(ask(&right).await.status, 200);
    let paused = admin(&left).post_json("/admin/v1/agents/scout/pause", &json!({"reason": "lunch"})).await;
    assert_eq!(paused.status, 200, "{}", paused.text());
    eventually("the pause at the other gateway", async || (ask(&right).await.status == 403).then_some(())).await;
    assert!(ask(&right).await.text().contains("lunch"));
    eventually("the pause in the other's list", async || {
        admin(&right).get("/admin/v1/pauses").await.text().contains("lunch").then_some(())
    })
    .await;
    // The other one ends it, for both.
    assert_eq!(admin(&right).post("/admin/v1/agents/scout/resume", "").await.status, 200);
    for gateway in [&left, &right] {
        eventually("the end of the pause", async || (ask(gateway).await.status == 200).then_some(())).await;
    }
    let [left, right] = [left.stop().await, right.stop().await];
    assert_eq!((left.report.open, right.report.open), (0, 0));
}

/// Clients at both gateways that never rest.
struct Load {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    slowest_ms: Arc<AtomicU64>,
}

impl Load {
    fn start(gateways: &[Gateway; 2]) -> Self {
        let mut load =
            Self { tasks: JoinSet::new(), stop: Arc::default(), served: Arc::default(), slowest_ms: Arc::default() };
        for number in 0..8 {
            let client = gateways[number % 2].client();
            let (stop, served, slowest) = (load.stop.clone(), load.served.clone(), load.slowest_ms.clone());
            load.tasks.spawn(async move {
                while !stop.load(Relaxed) {
                    let start = Instant::now();
                    let answer = client.post_json(CHAT, &bounded(number % 4 < 2)).await;
                    slowest.fetch_max(u64::try_from(start.elapsed().as_millis()).unwrap(), Relaxed);
                    match answer.status {
                        200 => _ = served.fetch_add(1, Relaxed),
                        402 => {}
                        503 => assert_eq!(answer.error()["code"], "shared_budgets_unavailable"),
                        other => panic!("{other}: {}", answer.text()),
                    }
                }
            });
        }
        load
    }

    fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    /// Waits until more is served than was.
    async fn serves(&self, what: &str) -> Duration {
        let (start, before) = (Instant::now(), self.served());
        eventually(what, async || (self.served() > before + 20).then_some(())).await;
        start.elapsed()
    }

    async fn end(self) -> Duration {
        self.stop.store(true, Relaxed);
        let slowest = self.slowest_ms.clone();
        self.tasks.join_all().await;
        Duration::from_millis(slowest.load(Relaxed))
    }
}

/// The counters say what both ledgers say, which is not more than the limit.
async fn agrees(gateways: [Gateway; 2], limit: Usd) -> Usd {
    for gateway in &gateways {
        gateway.settled().await;
        eventually("the end of all leases in the shared store", async || {
            let [_, reserved, _] = standing(gateway).await;
            let ending = gateway.metrics().await.sum("tollkeeper_shared_ending_leases", &[]);
            (reserved == "0" && ending == 0.0).then_some(())
        })
        .await;
    }
    // As of the next look at the store.
    let seen = async |gateway: &Gateway| standing(gateway).await[0].clone();
    eventually("one opinion", async || (seen(&gateways[0]).await == seen(&gateways[1]).await).then_some(())).await;
    let spent = seen(&gateways[0]).await;
    let [left, right] = gateways;
    let total = left.stop().await.total().saturating_add(right.stop().await.total());
    assert_eq!(spent, total.to_string(), "what the store counts is what the ledgers say");
    assert!(total <= limit, "{total} of {limit}");
    total
}

/// How long it takes until work goes on after Redis is back: the lease age and a quarter, and the turns of the two keepers.
const BACK: Duration = Duration::from_secs(LEASE_AGE.as_secs() * 5 / 4 + 4);

#[tokio::test]
async fn a_redis_that_is_killed_stopped_or_emptied_under_load_costs_neither_money_nor_patience() {
    let mut store = RedisServer::start(true);
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let limit = Usd(100_000 * TOKENS * NANO);
    let gateways = fleet(&upstream, &store.url(), limit).await;
    let load = Load::start(&gateways);
    load.serves("work before anything happens").await;

    store.kill();
    eventually("the loss of the store", async || {
        (gateways[0].metrics().await.sum("tollkeeper_shared_up", &[]) == 0.0).then_some(())
    })
    .await;
    let refused = gateways[0].client().post_json(CHAT, &bounded(false)).await;
    assert_eq!((refused.status, &*error_type(&refused)), (503, "server_error"), "{}", refused.text());
    store.restart();
    let killed = load.serves("work after it was killed").await;

    store.signal(Signal::SIGSTOP);
    eventually("the loss of the store", async || {
        (gateways[1].metrics().await.sum("tollkeeper_shared_up", &[]) == 0.0).then_some(())
    })
    .await;
    store.signal(Signal::SIGCONT);
    let stopped = load.serves("work after it was stopped").await;

    store.cli(&["FLUSHALL"]);
    let emptied = load.serves("work after it was emptied").await;
    assert!(killed < BACK && stopped < BACK && emptied < BACK, "{killed:?} {stopped:?} {emptied:?}");
    let slowest = load.end().await;
    assert!(slowest < SHORT, "a request took {slowest:?}");
    assert!(agrees(gateways, limit).await > Usd::ZERO);
}

#[tokio::test]
async fn a_budget_that_runs_out_while_redis_is_emptied_again_and_again_is_not_overspent() {
    let store = RedisServer::start(false);
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let limit = Usd(600 * TOKENS * NANO);
    let gateways = fleet(&upstream, &store.url(), limit).await;
    let load = Load::start(&gateways);
    for _ in 0..4 {
        let before = load.served();
        eventually("some work, or the end of the money", async || {
            (load.served() > before + 60 || load.served() >= 600).then_some(())
        })
        .await;
        store.cli(&["FLUSHALL"]);
    }
    eventually("the end of the money", async || (load.served() >= 600).then_some(())).await;
    load.end().await;
    assert_eq!(agrees(gateways, limit).await, limit);
}

#[tokio::test]
async fn a_slow_redis_refuses_in_time_and_a_stream_waits_for_it() {
    let store = RedisServer::start(false);
    let proxy = Proxy::start(&store).await;
    let gate = Gate::default();
    let upstream = Upstream::start().await;
    let limit = Usd(100_000 * NANO);
    let gateways = fleet(&upstream, &proxy.url(), limit).await;
    upstream.next(Script::words(2_000).with_hold(Hold::Frames(gate.clone())));
    gate.open(10);
    let mut stream = gateways[0].client().stream(CHAT, &streamed("up/flat")).await;
    for _ in 0..5 {
        stream.next_event().await.unwrap().unwrap();
    }
    proxy.delay(Duration::from_secs(2));
    let start = Instant::now();
    let refused = gateways[1].client().post_json(CHAT, &bounded(false)).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(start.elapsed() < SHORT, "{:?}", start.elapsed());
    // The stream runs out of what it holds, and stands still rather than being cut.
    gate.open_wide();
    let rest = tokio::spawn(async move { stream.rest().await });
    eventually("a stream that waits", async || {
        let down = gateways[0].metrics().await.sum("tollkeeper_shared_up", &[]) == 0.0;
        (down && !rest.is_finished()).then_some(())
    })
    .await;
    proxy.delay(Duration::ZERO);
    let answer = rest.await.unwrap();
    assert_eq!(answer.events().last().unwrap(), "[DONE]", "{}", answer.text());
    assert!(!answer.text().contains("budget_exceeded"));
    assert_eq!(upstream.served().iter().filter(|served| served.end == End::Complete).count(), 1);
    for gateway in &gateways {
        usable(gateway).await;
    }
    assert_eq!(agrees(gateways, limit).await, Usd(2_000 * NANO));
}

#[tokio::test]
async fn a_gateway_that_is_killed_holds_nothing_for_longer_than_the_lease_age_and_is_charged_once() {
    let store = RedisServer::start(false);
    let upstream = Upstream::start().await;
    let limit = Usd(1_000 * NANO);
    let [dying, other] = ["left", "right"].map(|name| sharing(&upstream, &store.url(), name, limit, ""));
    let other = Gateway::start(other).await;
    let process = Process::start(&dying).await;
    usable(&other).await;
    upstream.next(Script::fault(Fault::StallAfter(4)));
    let mut ask = streamed("up/flat");
    ask["max_tokens"] = json!(400);
    let mut stream = eventually("the gateway's part in the fleet", async || {
        let open = process.client().stream(CHAT, &ask).await;
        (open.status == 200).then_some(open)
    })
    .await;
    for _ in 0..4 {
        stream.next_event().await.unwrap().unwrap();
    }
    let died = Instant::now();
    process.kill().await;
    // What it held is nobody's until it is known to be dead; then it is spent.
    let dead = "0.0004";
    eventually("the charge for the dead", async || {
        let [spent, reserved, _] = standing(&other).await;
        (spent == dead && reserved == "0").then_some(())
    })
    .await;
    assert!(died.elapsed() < BACK, "{:?}", died.elapsed());
    assert_eq!(other.metrics().await.sum("tollkeeper_shared_unknown_total", &[]), 1.0);
    let mut rest = chat("up/flat");
    rest["max_tokens"] = json!(600);
    upstream.next(Script::says(Content::Endless));
    assert_eq!(other.client().post_json(CHAT, &rest).await.status, 200, "what is left can be spent");
    assert_eq!(other.client().post_json(CHAT, &rest).await.status, 402);
    // Its own ledger charges it when it is started again; the store does not count it twice.
    let process = Process::start(&dying).await;
    process.wait_for_output("budgets are shared with other gateways").await;
    assert_eq!(process.client().post_json(CHAT, &bounded(false)).await.status, 402);
    let (status, _) = process.terminate().await;
    assert!(status.success());
    eventually("the same standing as before", async || (standing(&other).await[0] == limit.to_string()).then_some(()))
        .await;
    let (dead, alive) = (Ledger::read(dying), other.stop().await);
    assert_eq!((dead.report.unknown, dead.total(), alive.total()), (1, Usd(400 * NANO), Usd(600 * NANO)));
}

#[tokio::test]
async fn a_budget_that_does_without_goes_on_alone_and_pays_its_debts_later() {
    let mut store = RedisServer::start(true);
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let limit = Usd(100 * TOKENS * NANO);
    let alone = |name| sharing(&upstream, &store.url(), name, limit, "on_shared_down = \"local\"");
    let gateways = [Gateway::start(alone("left")).await, Gateway::start(alone("right")).await];
    for gateway in &gateways {
        usable(gateway).await;
    }
    let ask = async |gateway: &Gateway| gateway.client().post_json(CHAT, &bounded(false)).await.status;
    assert_eq!((ask(&gateways[0]).await, ask(&gateways[1]).await), (200, 200));
    for gateway in &gateways {
        gateway.settled().await;
        eventually("the end of the leases there", async || {
            (gateway.metrics().await.sum("tollkeeper_shared_ending_leases", &[]) == 0.0).then_some(())
        })
        .await;
    }
    store.kill();
    for _ in 0..30 {
        assert_eq!(ask(&gateways[0]).await, 200);
        assert_eq!(ask(&gateways[1]).await, 200);
    }
    store.restart();
    assert_eq!(agrees_soon(gateways, 62).await, Usd(62 * TOKENS * NANO));
}

/// As [`agrees`], once so many requests are counted there.
async fn agrees_soon(gateways: [Gateway; 2], requests: i64) -> Usd {
    let due = Usd(requests * TOKENS * NANO).to_string();
    for gateway in &gateways {
        eventually("what was spent alone", async || (standing(gateway).await[0] == due).then_some(())).await;
    }
    agrees(gateways, Usd(i64::MAX)).await
}
