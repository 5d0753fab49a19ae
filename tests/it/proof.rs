//! `tollkeeper ledger verify --against`: the counters of a running gateway are the sums of its ledger, and what is not is told.

use serde_json::{Value, json};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use tollkeeper_servers::{PostgresServer, RedisServer};
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::process::run;
use tollkeeper_tests::setup::{Setup, due};
use tollkeeper_tests::upstream::{Fault, Script, Upstream};
use tollkeeper_tests::wait::eventually;

/// Budgets of every owner, measure and kind of window.
const BUDGETS: &str = r#"
[[budgets]]
window = "month"
time_zone = "Asia/Kathmandu"
limit_requests = 100000
[[budgets]]
provider = "up"
window = "hour"
limit_tokens = 100000000
[[budgets]]
model = "up/plain"
window = "week"
limit_usd = "50"
[[budgets]]
provider = "up"
window = "minute"
limit_usd = "50"
[[budgets]]
agent = "scout"
window = "rolling 1h"
limit_usd = "50"
"#;

fn setup(upstream: &Upstream) -> Setup {
    Setup::with(upstream).budgets(&[("day", "50"), ("total", "50")]).raw(BUDGETS)
}

/// Lays a gateway beside the ledger of this configuration: exit code, budgets, and what was complained of.
async fn against(gateway: &Gateway, config: &Setup, more: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    let (url, file) = (format!("http://{}", gateway.addr()), config.write());
    let verify = ["ledger", "verify", "--json", "--against", &url, "-c", file.to_str().unwrap()];
    let output = run(config.folder(), &[&verify[..], more].concat()).await;
    let (said, complaint) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    (output.status.code(), said["budgets"].as_array().cloned().unwrap_or_default(), complaint)
}

/// The one budget of this owner and window.
fn of<'a>(budgets: &'a [Value], scope: &str, window: &str) -> &'a Value {
    let found: Vec<&Value> =
        budgets.iter().filter(|budget| budget["scope"] == scope && budget["window"] == window).collect();
    assert_eq!(found.len(), 1, "{budgets:?}");
    found[0]
}

async fn ask(gateway: &Gateway, times: usize) {
    for number in 0..times {
        let ask = if number % 2 == 0 { chat("up/plain") } else { streamed("up/plain") };
        assert_eq!(gateway.client().post_json(CHAT, &ask).await.status, 200);
    }
    gateway.settled().await;
}

#[tokio::test]
async fn counters_of_a_quiet_gateway_are_the_sums_of_its_ledger() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(setup(&upstream)).await;
    ask(&gateway, 9).await;
    upstream.next(Script::fault(Fault::Empty(400)));
    assert_ne!(gateway.client().post_json(CHAT, &chat("up/plain")).await.status, 200);
    gateway.settled().await;
    let (code, budgets, complaint) = against(&gateway, gateway.setup(), &[]).await;
    assert_eq!((code, budgets.len()), (Some(0), 7), "{complaint} {budgets:?}");
    let spent = due(&upstream).to_string();
    for (scope, window, sum) in [
        ("agent", "total", &*spent),
        ("agent", "day", &*spent),
        ("model", "week", &*spent),
        ("provider", "minute", &*spent),
        ("everything", "month", "9"),
    ] {
        let budget = of(&budgets, scope, window);
        // A minute may have begun anew.
        let is_new = window == "minute" && budget["ledger"] == "0";
        assert!(budget["ledger"] == sum || is_new, "{budget}");
        assert_eq!((&budget["verdict"], &budget["difference"]), (&json!("equal"), &json!("0")), "{budget}");
        assert_eq!(
            (&budget["counter_before"], &budget["ledger"]),
            (&budget["counter_after"], &budget["counter_before"])
        );
    }
    let rolling = of(&budgets, "agent", "rolling 1h");
    assert_eq!((&rolling["verdict"], rolling["why"].is_string()), (&json!("left out"), true), "{rolling}");
    // The same for people.
    let (url, file) = (format!("http://{}", gateway.addr()), gateway.setup().write());
    let verify = ["ledger", "verify", "--against", &url, "-c", file.to_str().unwrap()];
    let said = String::from_utf8(run(gateway.setup().folder(), &verify).await.stdout).unwrap();
    let line = said.lines().find(|line| line.starts_with("agent") && line.contains("total"));
    assert!(line.is_some_and(|line| line.matches(&spent).count() == 2 && line.ends_with("equal")), "{said}");
    // And after a restart, whose counters come from the ledger.
    let ledger = gateway.stop().await;
    let gateway = Gateway::start(ledger.setup).await;
    ask(&gateway, 1).await;
    let (code, budgets, complaint) = against(&gateway, gateway.setup(), &[]).await;
    assert_eq!((code, &of(&budgets, "everything", "month")["ledger"]), (Some(0), &json!("10")), "{complaint}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_gateway_is_proved_too() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(setup(&upstream)).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut load = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (client, stop, done) = (gateway.client(), stop.clone(), done.clone());
        let ask = if number % 2 == 0 { chat("up/plain") } else { streamed("up/plain") };
        load.spawn(async move {
            while !stop.load(Relaxed) {
                assert_eq!(client.post_json(CHAT, &ask).await.status, 200);
                done.fetch_add(1, Relaxed);
            }
        });
    }
    let mut moved = 0;
    for _ in 0..5 {
        let before = done.load(Relaxed);
        eventually("traffic", async || (done.load(Relaxed) > before).then_some(())).await;
        let (code, budgets, complaint) = against(&gateway, gateway.setup(), &[]).await;
        assert_eq!(code, Some(0), "{complaint} {budgets:?}");
        let total = of(&budgets, "agent", "total");
        assert_eq!(total["verdict"], "equal", "{total}");
        moved += usize::from(total["counter_before"] != total["counter_after"]);
    }
    stop.store(true, Relaxed);
    load.join_all().await;
    assert!(moved > 0, "nothing was settled while it was read");
}

#[tokio::test]
async fn a_ledger_that_lost_its_end_or_is_another_ones_is_told() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(setup(&upstream)).await;
    ask(&gateway, 3).await;
    let ledger = gateway.stop().await;
    // The file as it is now: what comes later is missing in it, which its own chain cannot show.
    let old = setup(&upstream);
    fs::create_dir_all(old.ledger().parent().unwrap()).unwrap();
    fs::copy(ledger.setup.ledger(), old.ledger()).unwrap();
    let gateway = Gateway::start(ledger.setup).await;
    assert_eq!(against(&gateway, &old, &[]).await.0, Some(0), "nothing has come yet");
    ask(&gateway, 1).await;
    let (code, budgets, complaint) = against(&gateway, &old, &[]).await;
    assert!(code == Some(1) && complaint.contains("not what the ledger says"), "{complaint}");
    let calls = of(&budgets, "everything", "month");
    assert_eq!(
        [&calls["counter_after"], &calls["ledger"], &calls["difference"], &calls["verdict"]],
        [&json!("4"), &json!("3"), &json!("-1"), &json!("differs")]
    );
    assert_eq!(against(&gateway, gateway.setup(), &[]).await.0, Some(0), "its own is whole");

    // A gateway whose counters lack what its ledger is said to hold.
    let other = Gateway::start(old).await;
    let (code, budgets, _) = against(&other, gateway.setup(), &[]).await;
    let calls = of(&budgets, "everything", "month");
    assert_eq!((code, &calls["difference"], &calls["verdict"]), (Some(1), &json!("1"), &json!("differs")), "{calls}");
}

#[tokio::test]
async fn what_cannot_be_asked_or_written_is_told() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    ask(&gateway, 1).await;
    let (code, budgets, complaint) = against(&gateway, gateway.setup(), &[]).await;
    assert_eq!((code, budgets.len()), (Some(0), 0));
    assert!(complaint.contains("no budget that could be compared"), "{complaint}");
    let file = gateway.setup().write();
    let nobody = format!("http://{}", Upstream::refusing().await);
    let verify = ["ledger", "verify", "--against", &nobody, "-c", file.to_str().unwrap()];
    let output = run(gateway.setup().folder(), &verify).await;
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && complaint.contains("no gateway answers"), "{complaint}");
    let stranger = tollkeeper_tests::client::Client::new(gateway.addr()).key("tk-other");
    assert_eq!(stranger.post_json("/admin/v1/ledger/flush", &json!({})).await.status, 401);
}

#[tokio::test]
async fn of_shared_budgets_each_gateway_proves_its_own_part() {
    let (store, database) = (RedisServer::start(false), PostgresServer::shared().database());
    let upstream = Upstream::start().await;
    let gate = |name: &str| {
        let shared = format!("[shared]\nurl = {:?}\ngateway = {name:?}\n", store.url());
        let ledger = format!("url = {database:?}\ngateway = \"{name}\"");
        Setup::with(&upstream).store(&ledger).budgets(&[("total", "50")]).raw(&shared)
    };
    let (left, right) = (Gateway::start(gate("left")).await, Gateway::start(gate("right")).await);
    for gateway in [&left, &right] {
        eventually("the shared store", async || {
            (gateway.metrics().await.sum("tollkeeper_shared_up", &[]) == 1.0).then_some(())
        })
        .await;
    }
    ask(&left, 3).await;
    let of_left = due(&upstream).to_string();
    ask(&right, 1).await;
    let all = due(&upstream).to_string();
    let operator = tollkeeper_tests::client::Client::new(left.addr()).key(tollkeeper_tests::setup::ADMIN_KEY);
    let budget = eventually("what the other spent", async || {
        let budget = operator.get("/admin/v1/budgets").await.json()["data"][0].clone();
        (budget["spent"] == *all).then_some(budget)
    })
    .await;
    assert_eq!(budget["own_spent"], *of_left, "{budget}");
    for gateway in [&left, &right] {
        let (code, budgets, complaint) = against(gateway, gateway.setup(), &[]).await;
        assert_eq!((code, budgets.len()), (Some(0), 1), "{complaint}");
    }
    let (code, budgets, complaint) = against(&left, left.setup(), &["--gateway", "right"]).await;
    assert_eq!((code, &budgets[0]["counter_after"]), (Some(1), &json!(of_left)), "{complaint}");
}
