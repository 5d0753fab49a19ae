//! The exposition: well formed, complete, true, and bounded.

use serde_json::json;
use std::collections::BTreeMap;
use tollkeeper_tests::asks::{CHAT, EMBEDDINGS, chat, embedding, streamed};
use tollkeeper_tests::client::Client;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::metrics::Samples;
use tollkeeper_tests::setup::{ADMIN_KEY, Setup};
use tollkeeper_tests::upstream::{Script, Upstream};

#[tokio::test]
async fn traffic_is_counted_as_the_provider_counts_it() {
    let upstream = Upstream::always(Script::default().with_cached(2)).await;
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("day", "1.00")])).await;
    for (path, ask) in [(CHAT, chat("up/plain")), (CHAT, streamed("up/plain")), (EMBEDDINGS, embedding("up/plain"))] {
        gateway.client().post_json(path, &ask).await;
    }
    upstream.next(Script::status(400));
    gateway.client().post_json(CHAT, &chat("up/plain")).await;
    gateway.settled().await;
    let metrics = gateway.metrics().await;

    let billed = upstream.billed();
    let scout =
        |kind| metrics.sum("tollkeeper_tokens_total", &[("agent", "scout"), ("backend", "up/plain"), ("type", kind)]);
    assert_eq!((scout("input"), scout("output")), (billed.input as f64, billed.output as f64));
    assert_eq!(metrics.sum("tollkeeper_requests_total", &[("agent", "scout")]), 4.0);
    assert_eq!(metrics.sum("tollkeeper_requests_total", &[("operation", "embeddings")]), 1.0);
    assert_eq!(metrics.sum("gen_ai_client_token_usage_sum", &[("gen_ai_token_type", "output")]), billed.output as f64);
    assert_eq!(metrics.sum("tollkeeper_time_to_first_token_seconds_count", &[("operation", "chat")]), 2.0);
    assert_eq!(metrics.sum("tollkeeper_budget_limit", &[("owner", "scout"), ("window", "day")]), 1.0);
    let spent = metrics.sum("tollkeeper_budget_spent", &[("owner", "scout")]);
    let remaining = metrics.sum("tollkeeper_budget_remaining", &[("owner", "scout")]);
    assert!(spent > 0.0 && (spent + remaining - 1.0).abs() < 1e-9, "{spent} spent, {remaining} remaining of 1");
    assert_eq!(metrics.sum("tollkeeper_lease_overruns_total", &[]), 0.0);
    assert_eq!(metrics.sum("tollkeeper_ledger_up", &[]), 1.0);
}

#[tokio::test]
async fn what_is_exposed_is_documented_with_its_type() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream).provider("down", "http://127.0.0.1:9/v1", "max_attempts = 1");
    let gateway = Gateway::start(setup.alias("both", &["down/a", "up/b"]).budgets(&[("day", "1.00")])).await;
    gateway.client().post_json(CHAT, &streamed("both")).await;
    gateway.client().post_json(CHAT, &chat("nobody")).await;
    gateway.settled().await;
    let documented: BTreeMap<&str, &str> = include_str!("../../docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(name, rest)| (name, rest.split(' ').next().unwrap()))
        .collect();
    let families = gateway.metrics().await.families;
    assert!(families.len() > 25, "only these are exposed: {families:?}");
    for (name, kind) in &families {
        assert_eq!(documented.get(name.as_str()), Some(&kind.as_str()), "{name}");
    }
}

#[tokio::test]
async fn labels_do_not_come_from_requests() {
    let gateway = Gateway::start(Setup::with(&Upstream::start().await)).await;
    for number in 0..20 {
        gateway.client().post_json(CHAT, &chat(&format!("made-up/{number}"))).await;
        Client::new(gateway.addr()).key(&format!("tk-{number}")).post_json(CHAT, &chat("up/plain")).await;
    }
    let answer = Client::new(gateway.addr()).get("/metrics").await;
    assert!(
        answer.header("content-type").starts_with("text/plain; version=0.0.4"),
        "{}",
        answer.header("content-type")
    );
    assert!(!answer.text().contains("made-up"), "a name from a request became a label");
    assert!(!answer.text().contains("tk-"), "a key became a label");
    let metrics = Samples::parse(&answer.text());
    assert!(metrics.values("tollkeeper_requests_total", "alias").len() <= 2);
}

#[tokio::test]
async fn metrics_can_need_the_operators_key() {
    let gateway = Gateway::start(Setup::new().server("metrics_need_key = true")).await;
    assert_eq!(Client::new(gateway.addr()).get("/metrics").await.status, 401);
    assert_eq!(gateway.client().get("/metrics").await.status, 401, "an agent's key is not the operator's");
    assert_eq!(Client::new(gateway.addr()).key(ADMIN_KEY).get("/metrics").await.status, 200);
}

#[tokio::test]
async fn answers_say_how_they_came_about() {
    let upstream = Upstream::start().await;
    let gateway =
        Gateway::start(Setup::with(&upstream).alias("team/fast", &["up/plain"]).budgets(&[("day", "1.00")])).await;
    let mut ask = chat("team/fast");
    ask["user"] = json!("somebody");
    for ask in [ask, streamed("team/fast")] {
        let answer = gateway.client().post_json(CHAT, &ask).await;
        for header in ["request-id", "backend", "why", "budget-remaining-usd"] {
            assert!(
                !answer.header(&format!("x-tollkeeper-{header}")).is_empty(),
                "no x-tollkeeper-{header}: {:?}",
                answer.headers
            );
        }
        assert_eq!(answer.header("x-tollkeeper-backend"), "up/plain");
        let whole = ask.get("stream").is_none();
        assert_eq!(
            answer.headers.contains_key("x-tollkeeper-cost-usd"),
            whole,
            "the cost of a stream is not known at its head"
        );
    }
}

#[tokio::test]
async fn every_webhook_of_the_configuration_has_a_queue_also_after_a_reload() {
    let hook = |name: &str| format!("[[webhooks]]\nname = \"{name}\"\nurl = \"http://127.0.0.1:9/hook\"\n");
    let gateway = Gateway::start(Setup::new().raw(&hook("chat")).raw(&hook("gone"))).await;
    let queues = async || {
        let metrics = gateway.metrics().await;
        let names = metrics.values("tollkeeper_notice_queue_depth", "webhook").into_iter().map(str::to_owned);
        names.collect::<Vec<_>>()
    };
    assert_eq!(queues().await, ["chat", "gone"]);
    gateway.reload(&Setup::new().raw(&hook("chat")).raw(&hook("new")));
    assert_eq!(queues().await, ["chat", "new"]);
    gateway.stop().await;
}
