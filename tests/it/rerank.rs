//! Ranking documents: a local model that plays a script, providers that are asked and others that are not.

use serde_json::{Value, json};
use tollkeeper_config::Usd;
use tollkeeper_protocol::usage::Usage;
use tollkeeper_tests::asks::{CHAT, EMBEDDINGS, RERANK, chat, embedding, reranking};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::{Setup, cost};
use tollkeeper_tests::upstream::Upstream;

/// The set-up with a scripted model; a thousandth of a dollar a token read.
fn model(setup: Setup, name: &str, script: &Value, abilities: &[&str]) -> Setup {
    let path = setup.path(&format!("{name}.json"));
    std::fs::write(&path, script.to_string()).unwrap();
    setup.raw(&format!(
        "[[local.models]]\nname = \"{name}\"\npath = {path:?}\nengine = \"scripted\"\ncontext = 128\n\
         price = {{ input = \"1000\", output = \"1000\" }}\nabilities = {abilities:?}\n"
    ))
}

fn ranker(setup: Setup) -> Setup {
    model(setup, "ranks", &json!({"ranks": true}), &["rerank"])
}

/// The scripted model counts letters that query and document share: 1 of "cats", 5 of "hot dogs".
#[tokio::test]
async fn a_local_model_ranks_and_is_metered() {
    let gateway = Gateway::start(ranker(Setup::new())).await;
    // Queries of 4 letters, documents of 4 and 8, and a separator in each pair.
    let tokens = 2 * 5 + 4 + 8;
    for path in [RERANK, "/rerank"] {
        let answer = gateway.client().post_json(path, &reranking("ranks")).await;
        assert_eq!((answer.status, answer.header("x-tollkeeper-cost-usd")), (200, "0.022"), "{}", answer.text());
        let body = answer.json();
        assert_eq!(
            body["results"],
            json!([{"index": 1, "relevance_score": 0.625}, {"index": 0, "relevance_score": 0.25}])
        );
        assert_eq!(body["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));
        assert_eq!((&body["model"], &body["object"]), (&json!("ranks"), &json!("list")));
        assert_eq!(body["id"], answer.header("x-tollkeeper-request-id"));
    }
    let mut best = reranking("ranks");
    (best["top_n"], best["return_documents"]) = (json!(1), json!(true));
    let best = gateway.client().post_json(RERANK, &best).await.json();
    assert_eq!(best["results"], json!([{"index": 1, "relevance_score": 0.625, "document": {"text": "hot dogs"}}]));
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("tollkeeper_requests_total", &[("operation", "rerank"), ("outcome", "done")]), 3.0);
    let ledger = gateway.stop().await;
    assert_eq!((ledger.cost("ranks"), ledger.attempts("ranks")), (Usd(3 * 22_000_000), 3));
}

#[tokio::test]
async fn a_budget_holds_for_ranking_too() {
    let gateway = Gateway::start(ranker(Setup::new()).budgets(&[("total", "0.030")])).await;
    assert_eq!(gateway.client().post_json(RERANK, &reranking("ranks")).await.status, 200);
    let refused = gateway.client().post_json(RERANK, &reranking("ranks")).await;
    assert_eq!((refused.status, &refused.error()["code"]), (402, &json!("budget_exceeded")));
    assert_eq!(gateway.stop().await.total(), Usd(22_000_000));
}

#[tokio::test]
async fn who_cannot_rank_says_so() {
    let setup = model(ranker(Setup::new()), "talks", &json!({}), &["chat", "embeddings"]);
    let gateway = Gateway::start(model(setup, "pretends", &json!({}), &["rerank"])).await;
    let table = [
        (RERANK, reranking("talks"), "does not do reranking"),
        (RERANK, reranking("pretends"), "no classifier head"),
        (CHAT, chat("ranks"), "does not do chat completions"),
        (EMBEDDINGS, embedding("ranks"), "does not do embeddings"),
    ];
    for (path, body, words) in table {
        let answer = gateway.client().post_json(path, &body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.error()["message"].as_str().unwrap().contains(words), "{}", answer.text());
    }
    let mut long = reranking("ranks");
    long["documents"][0] = json!("x".repeat(200));
    let answer = gateway.client().post_json(RERANK, &long).await;
    assert_eq!((answer.status, &answer.error()["code"]), (400, &json!("context_length_exceeded")));
}

#[tokio::test]
async fn a_provider_gets_the_clients_bytes_when_its_kind_ranks() {
    let upstream = Upstream::start().await;
    let price = "{ input = \"0.0375\", output = \"0.1501\" }";
    let other = format!(
        "[[providers]]\nname = \"deaf\"\nkind = \"openai\"\nbase_url = \"{}\"\napi_key = \"sk\"\n\
         [prices.\"deaf/plain\"]\n{}\n",
        upstream.url(),
        price.trim_matches(['{', '}', ' ']).replace(", ", "\n"),
    );
    let setup = Setup::with(&upstream).raw(&other).alias("any", &["deaf/plain", "up/plain"]);
    let gateway = Gateway::start(setup).await;
    let body = r#"{"query": "q",  "model":"any","documents":["abcdefgh",{"text":"x","extra":1}], "top_n":7}"#;
    let answer = gateway.client().post(RERANK, body).await;
    assert_eq!((answer.status, answer.header("x-tollkeeper-backend")), (200, "up/plain"), "{}", answer.text());
    assert_eq!(answer.json()["results"][0], json!({"index": 1, "relevance_score": 0.25}));
    let received = upstream.only();
    assert_eq!(received.path, RERANK);
    assert_eq!(String::from_utf8_lossy(&received.body), body.replace("\"any\"", "\"plain\""));
    let deaf = gateway.client().post_json(RERANK, &reranking("deaf/plain")).await;
    assert_eq!(deaf.status, 400);
    assert!(deaf.error()["message"].as_str().unwrap().contains("does not do reranking"), "{}", deaf.text());
    let input = answer.json()["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!(gateway.stop().await.total(), cost(&Usage { input, ..Usage::default() }));
}
