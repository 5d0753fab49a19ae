//! A runaway agent over HTTP: it is slowed down, somebody is told, and others go on.

use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use tollkeeper_policies::Clock;
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::{Fault, Received, Script, Upstream};

/// 2026-03-04, milliseconds since 1970.
const START: i64 = 1_772_582_400_000;

fn body(received: &Received) -> Value {
    received.json()
}

#[tokio::test]
async fn a_loop_is_slowed_down_and_told_of_and_nobody_else_is() {
    let upstream = Upstream::start().await;
    // It need not be a chat to be received.
    let receiver = Upstream::always(Script::status(200)).await;
    let hook = format!(
        "[[webhooks]]\nname = \"ops\"\nurl = \"{}/chat/completions\"\nsecret = \"known to both of them\"\n",
        receiver.url()
    );
    let setup = Setup::with(&upstream).velocity("floor_calls = 1\n").agent("digger", "tk-digger", &[]).raw(&hook);
    let hand = Arc::new(AtomicI64::new(START));
    let gateway = Gateway::start_by(setup, Clock::fixed(hand.clone())).await;
    // Normal is one call a minute; this is sixty.
    let mut served = 0;
    let refused = loop {
        let answer = gateway.client().post_json(CHAT, &chat("up/plain")).await;
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        hand.fetch_add(1000, Relaxed);
        assert!(served < 60, "a loop of sixty times the normal rate goes on for a minute");
    };
    assert_eq!(
        (refused.status, &refused.error()["code"]),
        (429, &json!("spend_velocity_exceeded")),
        "{}",
        refused.text()
    );
    assert_eq!(upstream.received().len(), served, "what is refused is not sent");
    // The agent's turn comes when it was told it would.
    let until: jiff::Timestamp = {
        let message = refused.error()["message"].as_str().unwrap().to_owned();
        message.rsplit(' ').next().unwrap().parse().unwrap()
    };
    hand.store(until.as_millisecond() + 1, Relaxed);
    assert_eq!(gateway.client().post_json(CHAT, &chat("up/plain")).await.status, 200);
    assert_eq!(gateway.client().key("tk-digger").post_json(CHAT, &chat("up/plain")).await.status, 200);

    receiver.wait_for_requests(2).await;
    let told: Vec<Value> = receiver.received().iter().map(body).collect();
    let events: Vec<&str> = told.iter().map(|notice| notice["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["threshold", "throttled"]);
    assert!(told.iter().all(|notice| notice["subject"] == "agent `scout`"), "{told:?}");
    assert!(told[1]["text"].as_str().unwrap().contains("calls an hour, normal is 60"), "{}", told[1]);
    assert!(receiver.received()[0].header("x-tollkeeper-signature").starts_with("t="));
}

#[tokio::test]
async fn what_a_drain_settles_is_told_of() {
    let upstream = Upstream::always(Script::fault(Fault::StallAfter(5))).await;
    let receiver = Upstream::always(Script::status(200)).await;
    let hook = format!("[[webhooks]]\nname = \"ops\"\nurl = \"{}/chat/completions\"\n", receiver.url());
    let budget = "budgets = [{ window = \"total\", limit_usd = \"0.00001\", notify_at = [1] }]";
    let setup = Setup::with(&upstream).server("drain_timeout = \"100ms\"").raw(&hook).scout(budget);
    let gateway = Gateway::start(setup).await;
    let mut open = gateway.client().stream(CHAT, &streamed("up/plain")).await;
    for _ in 0..4 {
        open.next_event().await.unwrap().unwrap();
    }
    gateway.stop().await;
    let told: Vec<Value> = receiver.received().iter().map(body).collect();
    assert!(told.iter().any(|notice| notice["event"] == "threshold"), "{told:?}");
}

#[tokio::test]
async fn whoever_wants_to_know_is_told_of_money_and_of_backends() {
    let upstream = Upstream::start().await;
    let receiver = Upstream::always(Script::status(200)).await;
    let hook = format!(
        "[[webhooks]]\nname = \"ops\"\nurl = \"{}/chat/completions\"\nsecret = \"known to both of them\"\n",
        receiver.url()
    );
    let down = "[[providers]]\nname = \"down\"\nkind = \"custom\"\nbase_url = \"http://127.0.0.1:9/v1\"\napi_key = \"env:NOBODY_SETS_THIS\"\nprice = \"free\"\n";
    let setup = Setup::with(&upstream)
        .raw(&hook)
        .raw(down)
        .scout("budgets = [{ window = \"total\", limit_usd = \"0.000002\", notify_at = [30], on_limit = \"ask\" }]");
    let gateway = Gateway::start(setup).await;
    while gateway.client().post_json(CHAT, &chat("up/plain")).await.status == 200 {}
    receiver.wait_for_requests(4).await;
    let told: Vec<Value> = receiver.received().iter().map(body).collect();
    let mut events: Vec<&str> = told.iter().map(|notice| notice["event"].as_str().unwrap()).collect();
    events.sort_unstable();
    assert_eq!(events, ["backend_down", "denied", "paused", "threshold"]);
    let threshold = told.iter().find(|notice| notice["event"] == "threshold").unwrap();
    assert_eq!((&threshold["fields"]["limit_usd"], &threshold["fields"]["percent"]), (&json!("0.000002"), &json!(30)));
}
