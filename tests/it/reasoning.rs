//! Models that reason unseen: what they bill is leased before, and what they may have billed is charged.

use serde_json::json;
use tokio::task::JoinSet;
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{CHAT, streamed};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::{Content, Counted, End, Fault, Script, Upstream};

#[tokio::test]
async fn a_stream_that_may_reason_unseen_is_limited_by_the_provider() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let deep = "[prices.\"up/deep\"]\ninput = \"0.0375\"\noutput = \"0.1501\"\nabilities = [\"chat\", \"reasoning\"]\n";
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("total", "0.00003")]).raw(deep)).await;
    let answer = gateway.client().post_json(CHAT, &streamed("up/deep")).await;
    assert_eq!(answer.status, 200);
    let sent = upstream.only().json();
    let limit = sent["max_tokens"].as_u64().or(sent["max_completion_tokens"].as_u64()).unwrap();
    assert!((50..=199).contains(&limit), "the provider was allowed {limit} tokens");
    gateway.settled().await;
    let total = gateway.stop().await.total();
    assert!(total <= Usd(30_000), "{total}");
}

/// A model that writes as much as it may, and shows nothing of it until the end.
const THINKER: &str = "[prices.\"up/thinker\"]\ninput = \"0\"\noutput = \"10\"\nmax_output = 128000\nabilities = [\"chat\", \"reasoning\"]\n";

#[tokio::test]
async fn streams_that_reason_unseen_cannot_spend_the_same_money_twice() {
    let upstream = Upstream::directed(|received| {
        let limit = received.json()["max_tokens"].as_u64().unwrap_or(128_000);
        let frames = vec![
            r#"{"choices":[{"index":0,"delta":{"content":"yes"},"finish_reason":"stop"}]}"#.to_owned(),
            json!({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": limit}}).to_string(),
        ];
        Script::says(Content::Verbatim(frames, Counted { input: 4, output: limit }))
    })
    .await;
    // Room for one and a half of the longest answers.
    let setup = Setup::with(&upstream).raw(THINKER).budgets(&[("total", "1.92")]);
    let gateway = Gateway::start(setup).await;
    let asks: JoinSet<u16> = (0..20)
        .map(|which| {
            let client = gateway.client();
            let mut ask = streamed("up/thinker");
            if which % 2 == 0 {
                ask["max_tokens"] = json!(64_000);
            }
            async move { client.post_json(CHAT, &ask).await.status }
        })
        .collect();
    let answered = asks.join_all().await;
    assert!(answered.iter().all(|status| matches!(status, 200 | 402)), "{answered:?}");
    let served = answered.iter().filter(|status| **status == 200).count();
    assert!(served > 7, "one does not lock out the others: {answered:?}");
    gateway.settled().await;
    assert_eq!(gateway.metrics().await.sum("tollkeeper_lease_overruns_total", &[]), 0.0);
    let ledger = gateway.stop().await;
    assert_eq!(ledger.report.overrun, Usd(0));
    assert!(ledger.total() <= Usd(1_920_000_000), "{}", ledger.total());
    let billed: i64 = upstream.served().iter().map(|served| served.usage.output as i64 * 10_000).sum();
    assert_eq!(ledger.total(), Usd(billed));
}

#[tokio::test]
async fn who_leaves_a_model_that_reasons_pays_for_the_time_it_may_have_reasoned() {
    let upstream = Upstream::always(Script::fault(Fault::StallBeforeFirstFrame)).await;
    let gateway = Gateway::start(Setup::with(&upstream).raw(THINKER)).await;
    let client = gateway.client();
    let asking = tokio::spawn(async move { client.post_json(CHAT, &streamed("up/thinker")).await });
    upstream.wait_for_requests(1).await;
    asking.abort();
    upstream.wait_for_disconnect().await;
    gateway.settled().await;
    let ledger = gateway.stop().await;
    assert_eq!(ledger.rows.len(), 1);
    // As much as it may have made in the meantime, which was less than some seconds.
    assert!((1..10_000).contains(&ledger.rows[0].output), "{}", ledger.rows[0].output);
}

#[tokio::test]
async fn what_was_reasoned_unseen_says_nothing_of_how_fast_a_model_writes() {
    let frames = vec![
        r#"{"choices":[{"index":0,"delta":{"content":"yes"},"finish_reason":"stop"}]}"#.to_owned(),
        json!({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 90_000}}).to_string(),
    ];
    let counted = Counted { input: 4, output: 90_000 };
    let upstream = Upstream::start().await;
    upstream.next(Script::says(Content::Verbatim(frames, counted)));
    let gateway = Gateway::start(Setup::with(&upstream).raw(THINKER)).await;
    assert_eq!(gateway.client().post_json(CHAT, &streamed("up/thinker")).await.status, 200);
    upstream.next(Script::fault(Fault::StallBeforeFirstFrame));
    let client = gateway.client();
    let asking = tokio::spawn(async move { client.post_json(CHAT, &streamed("up/thinker")).await });
    upstream.wait_for_requests(2).await;
    asking.abort();
    upstream.wait_for_disconnect().await;
    gateway.settled().await;
    let ledger = gateway.stop().await;
    // At two thousand tokens a second at the most, for less than some seconds.
    let left = ledger.rows[0].output - 90_000;
    assert!((1..20_000).contains(&left), "{left}");
}

#[tokio::test]
async fn one_stream_that_may_reason_locks_up_no_budget_of_any_kind() {
    let budgets = [
        "[[budgets]]\nmodel = \"up/thinker\"\nwindow = \"total\"\nlimit_usd = \"2\"\n",
        "[[budgets]]\nprovider = \"up\"\nwindow = \"total\"\nlimit_tokens = 200000\n",
        "[[budgets]]\nagent = \"scout\"\nwindow = \"total\"\nlimit_tokens = 200000\n",
    ];
    for budget in budgets {
        let upstream = Upstream::always(Script::fault(Fault::StallBeforeFirstFrame)).await;
        let gateway = Gateway::start(Setup::with(&upstream).raw(THINKER).raw(budget)).await;
        let mut asking = JoinSet::new();
        for which in 1..=8 {
            let client = gateway.client();
            asking.spawn(async move { client.post_json(CHAT, &streamed("up/thinker")).await.status });
            upstream.wait_for_requests(which).await;
        }
        asking.abort_all();
        upstream.wait_until("the end of all", |served| served.iter().all(|one| one.end != End::Open)).await;
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_clients_own_limit_is_not_lowered_below_what_it_has_the_model_think() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream).raw(THINKER).budgets(&[("total", "1")])).await;
    let mut ask = streamed("up/thinker");
    ask["max_tokens"] = json!(40_000);
    for (object, field) in [("thinking", "budget_tokens"), ("reasoning", "max_tokens")] {
        ask[object] = json!({field: 30_000});
        assert_eq!(gateway.client().post_json(CHAT, &ask).await.status, 200);
        gateway.settled().await;
        let sent = upstream.received().last().unwrap().json()["max_tokens"].as_u64().unwrap();
        assert!((30_001..40_000).contains(&sent), "{sent}");
        ask.as_object_mut().unwrap().remove(object);
    }
    gateway.stop().await;
}
