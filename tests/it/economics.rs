//! Local models in dollars: a missed one comes back when its absence has cost more than a swap, and computing has a price where it is said.

use serde_json::{Value, json};
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::client::Client;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::{ADMIN_KEY, Setup};
use tollkeeper_tests::upstream::Upstream;
use tollkeeper_tests::wait::eventually;

/// Room for one of two models.
const ROOM: &str = "vram = \"10MiB\"\nmin_residency = \"1ms\"\ndrain = \"20ms\"\npatience = \"1ms\"\n";

fn model(setup: Setup, name: &str) -> Setup {
    let script = json!({"otherwise": name, "answers": {"count": null}, "step_millis": 1});
    scripted(setup, name, &script)
}

fn scripted(setup: Setup, name: &str, script: &Value) -> Setup {
    let path = setup.path(&format!("{name}.json"));
    std::fs::write(&path, script.to_string()).unwrap();
    setup.raw(&format!(
        "[[local.models]]\nname = \"{name}\"\npath = {path:?}\nengine = \"scripted\"\ncontext = 2048\nmemory = \"8MiB\"\n"
    ))
}

fn two(upstream: &Upstream, lines: &str) -> Setup {
    let setup = Setup::with(upstream).raw(&format!("[local]\n{ROOM}{lines}"));
    model(model(setup, "a"), "b").alias("either", &["b", "up/plain"])
}

/// The same, and an alias whose requests make `a` worth something.
fn both(upstream: &Upstream, lines: &str) -> Setup {
    two(upstream, lines).alias("first", &["a", "up/plain"])
}

async fn shown(gateway: &Gateway, name: &str) -> Value {
    let all = Client::new(gateway.addr()).key(ADMIN_KEY).get("/admin/v1/models").await.json();
    all["models"].as_array().unwrap().iter().find(|model| model["name"] == name).unwrap().clone()
}

async fn ready(gateway: &Gateway, name: &str) {
    eventually(name, async || (shown(gateway, name).await["state"] == "ready").then_some(())).await;
}

/// What the model's absence has cost, and what its swap would, in billionths of a dollar; `None` if it is not missed.
async fn absence(gateway: &Gateway, name: &str) -> Option<(i64, i64)> {
    let absence = shown(gateway, name).await["absence"].clone();
    let nano = |key: &str| tollkeeper_config::Usd::parse_decimal(absence[key].as_str().unwrap()).unwrap().0;
    (!absence.is_null()).then(|| (nano("regret_usd"), nano("swap_usd")))
}

async fn paid(gateway: &Gateway) -> f64 {
    gateway.metrics().await.sum("tollkeeper_swaps_paid_total", &[])
}

async fn asked(gateway: &Gateway, model: &str) -> (String, String) {
    let answer = gateway.client().post_json(CHAT, &chat(model)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    (answer.header("x-tollkeeper-backend").to_owned(), answer.header("x-tollkeeper-why").to_owned())
}

fn endless() -> Value {
    let mut ask = streamed("a");
    ask["messages"][0]["content"] = json!("count");
    ask["max_tokens"] = json!(2000);
    ask
}

#[tokio::test]
async fn the_cloud_answers_until_the_absence_of_a_model_has_cost_as_much_as_its_swap() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(both(&upstream, "swap = \"pays\"\n")).await;
    ready(&gateway, "a").await;
    for _ in 0..3 {
        assert_eq!(asked(&gateway, "first").await.0, "a");
    }
    let mut misses = 0;
    while paid(&gateway).await == 0.0 {
        assert!(misses < 500, "it never pays: {:?}", absence(&gateway, "b").await);
        let plan = gateway.client().post_json("/v1/route/explain", &chat("either")).await.json();
        assert_eq!(plan["missed"]["model"], "b", "{plan}");
        let before = absence(&gateway, "b").await;
        let (backend, why) = asked(&gateway, "either").await;
        assert_eq!(backend, "up/plain");
        assert!(why.contains(";missed=b;swap="), "{why}");
        assert!(before.is_none_or(|(regret, price)| regret < price), "it waited for too long: {before:?}");
        misses += 1;
    }
    assert!(misses > 3, "what `a` earned counts: {misses}");
    let (regret, price) = absence(&gateway, "b").await.unwrap_or((1, 1));
    assert!(regret == price && price > 0, "it came too early or too late: {regret} of {price}");
    ready(&gateway, "b").await;
    let closed = async || absence(&gateway, "b").await.is_none().then_some(());
    eventually("an account that is closed without anybody's asking", closed).await;
    assert_eq!(asked(&gateway, "either").await.0, "b");
    assert_eq!(paid(&gateway).await, 1.0);
}

#[tokio::test]
async fn without_the_setting_a_model_comes_when_what_has_to_go_is_idle_and_nobody_counts() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(both(&upstream, "")).await;
    ready(&gateway, "a").await;
    let mut busy = gateway.client().stream(CHAT, &endless()).await;
    busy.next_event().await.unwrap().unwrap();
    for _ in 0..5 {
        let (backend, why) = asked(&gateway, "either").await;
        assert_eq!((&*backend, why.contains("missed")), ("up/plain", false), "{why}");
    }
    let plan = gateway.client().post_json("/v1/route/explain", &chat("either")).await.json();
    assert_eq!(plan["missed"], Value::Null);
    assert_eq!((shown(&gateway, "a").await["state"].clone(), absence(&gateway, "b").await), (json!("ready"), None));
    drop(busy);
    ready(&gateway, "b").await;
    assert_eq!(paid(&gateway).await, 0.0);
}

#[tokio::test]
async fn a_model_that_would_not_be_asked_first_is_not_brought_in() {
    for lines in ["", "swap = \"pays\"\n"] {
        let upstream = Upstream::start().await;
        let gateway = Gateway::start(two(&upstream, lines).alias("cloudy", &["up/plain", "b"])).await;
        ready(&gateway, "a").await;
        for _ in 0..5 {
            assert_eq!(asked(&gateway, "cloudy").await.0, "up/plain");
        }
        let states = [shown(&gateway, "a").await["state"].clone(), shown(&gateway, "b").await["state"].clone()];
        assert_eq!(states, ["ready", "absent"], "with {lines:?}");
    }
}

#[tokio::test]
async fn a_local_model_that_another_answers_for_comes_when_that_is_idle_whatever_pays() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(two(&upstream, "swap = \"pays\"\n").alias("here", &["b", "a"])).await;
    ready(&gateway, "a").await;
    assert_eq!(asked(&gateway, "here").await.0, "a");
    ready(&gateway, "b").await;
    assert_eq!((asked(&gateway, "here").await.0.as_str(), paid(&gateway).await), ("b", 0.0));
}

#[tokio::test]
async fn who_must_not_go_to_the_cloud_waits_for_the_model_alone_and_is_not_weighed() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(both(&upstream, "swap = \"pays\"\n")).await;
    ready(&gateway, "a").await;
    for _ in 0..3 {
        asked(&gateway, "first").await;
    }
    let here = gateway.client().header("x-tollkeeper-local-only", "true");
    for model in ["either", "first", "either"] {
        let answer = here.post_json(CHAT, &chat(model)).await;
        let local = if model == "first" { "a" } else { "b" };
        assert_eq!((answer.status, answer.header("x-tollkeeper-backend")), (200, local), "{}", answer.text());
    }
    assert_eq!(paid(&gateway).await, 0.0);
}

#[tokio::test]
async fn nobody_brings_in_a_model_that_may_not_answer_the_request() {
    let upstream = Upstream::start().await;
    let setup =
        two(&upstream, "swap = \"pays\"\n").agent("guest", "tk-guest-key", &[]).raw("models = [\"up/plain\"]\n");
    let gateway = Gateway::start(setup).await;
    ready(&gateway, "a").await;
    let guest = Client::new(gateway.addr()).key("tk-guest-key");
    let higher = gateway.client().header("x-tollkeeper-min-tier", "1");
    for _ in 0..3 {
        assert_eq!(guest.post_json(CHAT, &chat("either")).await.status, 403);
        assert_eq!(guest.post_json(CHAT, &chat("up/plain")).await.status, 200);
        let answer = higher.post_json(CHAT, &chat("either")).await;
        assert_eq!((answer.status, answer.header("x-tollkeeper-backend")), (200, "up/plain"), "{}", answer.text());
    }
    assert_eq!((absence(&gateway, "b").await, paid(&gateway).await), (None, 0.0));
    // `a` is worth nothing to anybody, so that the first who misses `b` brings it in.
    asked(&gateway, "either").await;
    ready(&gateway, "b").await;
    assert_eq!(paid(&gateway).await, 1.0);
}

#[tokio::test]
async fn a_missed_model_takes_the_place_of_a_busy_one_that_is_worth_nothing_when_that_pays() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(two(&upstream, "swap = \"pays\"\n")).await;
    ready(&gateway, "a").await;
    let busy = gateway.client().stream(CHAT, &endless()).await;
    let answer = gateway.client().post_json(CHAT, &chat("either")).await;
    assert_eq!((answer.status, answer.header("x-tollkeeper-backend")), (200, "up/plain"));
    ready(&gateway, "b").await;
    assert_eq!(gateway.metrics().await.sum("tollkeeper_swaps_paid_total", &[("model", "b")]), 1.0);
    let answer = gateway.client().post_json(CHAT, &chat("either")).await;
    assert_eq!(answer.header("x-tollkeeper-backend"), "b");
    assert_eq!(shown(&gateway, "b").await["absence"], Value::Null, "its account is closed");
    drop(busy);
}

#[tokio::test]
async fn a_swap_whose_load_fails_is_paid_for_all_the_same() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream).raw(&format!("[local]\n{ROOM}swap = \"pays\"\n"));
    let setup = scripted(model(setup, "a"), "b", &json!({"load_error": "the moon is in the wrong house"}));
    let setup = setup.alias("either", &["b", "up/plain"]).alias("first", &["a", "up/plain"]);
    let gateway = Gateway::start(setup).await;
    ready(&gateway, "a").await;
    asked(&gateway, "first").await;
    let mut misses = 0;
    while paid(&gateway).await == 0.0 {
        asked(&gateway, "either").await;
        misses += 1;
        assert!(misses < 500, "it never pays: {:?}", absence(&gateway, "b").await);
    }
    let spent = async || absence(&gateway, "b").await.is_some_and(|(regret, _)| regret <= 0).then_some(());
    eventually("a regret that has paid for the swap", spent).await;
    assert_eq!(paid(&gateway).await, 1.0);
}

#[tokio::test]
async fn a_model_that_computes_for_more_than_the_cloud_takes_is_not_brought_back() {
    let upstream = Upstream::start().await;
    // A second of computing costs hundreds of dollars, a request in the cloud far below a cent.
    let gateway = Gateway::start(two(
        &upstream,
        "swap = \"pays\"\nenergy = { usd_per_kwh = \"0\", hardware_usd = \"9000000000\", hardware_years = 1 }\n",
    ))
    .await;
    ready(&gateway, "a").await;
    for _ in 0..5 {
        let answer = gateway.client().post_json(CHAT, &chat("either")).await;
        assert_eq!(answer.header("x-tollkeeper-backend"), "up/plain");
    }
    assert_eq!(shown(&gateway, "a").await["state"], "ready");
    let absence = shown(&gateway, "b").await["absence"].clone();
    let swap: f64 = absence["swap_usd"].as_str().unwrap().parse().unwrap();
    assert!(swap > 1.0, "{absence}");
    assert_eq!(gateway.metrics().await.sum("tollkeeper_swaps_paid_total", &[]), 0.0);
}

#[tokio::test]
async fn computing_has_a_price_that_is_charged_and_shown_beside_the_clouds() {
    let upstream = Upstream::start().await;
    let energy = "energy = { usd_per_kwh = \"0.30\", watts = 350 }\n";
    let setup = two(&upstream, energy).budgets(&[("day", "5")]);
    let gateway = Gateway::start(setup).await;
    ready(&gateway, "a").await;
    let answer = gateway.client().post_json(CHAT, &chat("a")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let cost: f64 = answer.header("x-tollkeeper-cost-usd").parse().unwrap();
    assert!(cost > 0.0 && cost < 0.01, "{cost}");
    let price = shown(&gateway, "b").await["price"].clone();
    // 350 W at 0.30 dollars are 29.2 millionths of a dollar a second; nobody has measured how fast it is.
    assert_eq!(price["output_usd_per_million"], "2.916667");
    assert_eq!((&price["cloud"], &price["cloud_output_usd_per_million"]), (&json!("up/plain"), &json!("0.1501")));
    let even = price["break_even_tokens_per_second"].as_f64().unwrap();
    assert!((even - 194.3).abs() < 0.1, "{even}");
    let price = gateway
        .metrics()
        .await
        .sum("tollkeeper_local_token_price_usd_per_million", &[("model", "b"), ("kind", "output")]);
    assert!((price - 2.916_667).abs() < 1e-9);
    gateway.settled().await;
    let ledger = gateway.stop().await;
    assert_eq!(ledger.cost("a").to_string().parse::<f64>().unwrap(), cost, "it is in the ledger as it was told");
}
