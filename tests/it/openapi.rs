//! Real requests and answers of inference, models and health, held to the OpenAPI document that the gateway serves.

use crate::admin::document::Operator;
use http::Method;
use serde_json::{Value, json};
use tollkeeper_tests::asks::{
    CHAT, COMPLETIONS, EMBEDDINGS, RERANK, chat, completion, embedding, reranking, streamed_with_usage,
};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::{KEY, Setup};
use tollkeeper_tests::upstream::{Content, Script, ToolForm, Upstream};

/// A provider, and local models that play scripts.
async fn start() -> (Gateway, Upstream, Operator) {
    let upstream = Upstream::start().await;
    let mut setup = Setup::with(&upstream);
    for (name, script, abilities) in [
        ("home", r#"{"otherwise": "at home"}"#, r#"["chat", "completion"]"#),
        ("ranks", r#"{"ranks": true}"#, r#"["rerank"]"#),
    ] {
        let path = setup.path(&format!("{name}.json"));
        std::fs::write(&path, script).unwrap();
        setup = setup.raw(&format!(
            "[[local.models]]\nname = \"{name}\"\npath = {path:?}\nengine = \"scripted\"\nabilities = {abilities}\n"
        ));
    }
    let gateway = Gateway::start(setup).await;
    let asker = Operator::of(gateway.addr()).await.with_key(KEY);
    (gateway, upstream, asker)
}

#[tokio::test]
async fn whole_answers_are_what_the_document_says() {
    let (_gateway, upstream, asker) = start().await;
    let mut rich = chat("up/plain");
    rich["messages"] = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "done"},
    ]);
    rich["tools"] = json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]);
    (rich["tool_choice"], rich["max_tokens"], rich["stop"]) = (json!("auto"), json!(20), json!(["x"]));
    (rich["temperature"], rich["seed"], rich["n"], rich["made_up"]) = (json!(0.5), json!(-7), Value::Null, json!({}));
    upstream.next(Script::says(Content::Tools(ToolForm::One)));
    asker.good(Method::POST, CHAT, &rich).await;
    let mut tokens = completion("up/plain");
    tokens["prompt"] = json!([[1, 2], [3]]);
    let mut base64 = embedding("up/plain");
    base64["encoding_format"] = json!("base64");
    for (path, ask) in [
        (CHAT, chat("up/plain")),
        (CHAT, chat("home")),
        (COMPLETIONS, completion("up/plain")),
        (COMPLETIONS, completion("home")),
        (COMPLETIONS, tokens),
        (EMBEDDINGS, embedding("up/plain")),
        (EMBEDDINGS, base64),
        (RERANK, reranking("ranks")),
        ("/rerank", reranking("ranks")),
    ] {
        asker.good(Method::POST, path, &ask).await;
    }
}

#[tokio::test]
async fn streams_are_what_the_document_says() {
    let (_gateway, _upstream, asker) = start().await;
    let mut text = completion("home");
    (text["stream"], text["stream_options"]) = (json!(true), json!({"include_usage": true}));
    for (path, ask) in
        [(CHAT, streamed_with_usage("up/plain")), (CHAT, streamed_with_usage("home")), (COMPLETIONS, text)]
    {
        let events = asker.stream(path, &ask).await;
        assert!(events.len() > 2 && events.iter().any(|event| event["usage"]["cost_usd"].is_string()), "{events:?}");
    }
}

#[tokio::test]
async fn what_the_gateway_refuses_the_document_does_not_allow() {
    let (_gateway, upstream, asker) = start().await;
    let change = |mut ask: Value, name: &str, value: Value| {
        ask[name] = value;
        ask
    };
    for (path, wrong) in [
        (CHAT, json!({"messages": [{"role": "user", "content": "hi"}]})),
        (CHAT, change(chat("up/plain"), "messages", json!([]))),
        (CHAT, change(chat("up/plain"), "messages", json!("hi"))),
        (CHAT, change(chat("up/plain"), "messages", json!([{"role": "boss", "content": "hi"}]))),
        (CHAT, change(chat("up/plain"), "temperature", json!(3))),
        (CHAT, change(chat("up/plain"), "max_tokens", json!(0))),
        (CHAT, change(chat("up/plain"), "n", json!(17))),
        (CHAT, change(chat("up/plain"), "stream", json!("yes"))),
        (CHAT, change(chat("up/plain"), "tool_choice", json!("perhaps"))),
        (CHAT, change(chat("up/plain"), "response_format", json!({"type": "poem"}))),
        (COMPLETIONS, change(completion("up/plain"), "prompt", json!([]))),
        (COMPLETIONS, change(completion("up/plain"), "logprobs", json!(21))),
        (EMBEDDINGS, change(embedding("up/plain"), "encoding_format", json!("hex"))),
        (EMBEDDINGS, change(embedding("up/plain"), "input", json!({}))),
        (RERANK, change(reranking("ranks"), "documents", json!([]))),
        (RERANK, change(reranking("ranks"), "query", json!(""))),
    ] {
        let answer = asker.ask(Method::POST, path, &wrong).await;
        assert_eq!(answer.status, 400, "{path} {wrong}: {}", answer.text());
        assert!(!asker.allows(&Method::POST, path, &wrong), "the document allows {wrong} at {path}");
    }
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn models_and_health_are_what_the_document_says() {
    let (_gateway, _upstream, asker) = start().await;
    let models = asker.good(Method::GET, "/v1/models", &Value::Null).await;
    assert!(models["data"].as_array().unwrap().iter().any(|model| model["id"] == "home"), "{models}");
    asker.good(Method::GET, "/v1/models/up%2Fplain", &Value::Null).await;
    for path in ["/health/live", "/health/ready"] {
        asker.good(Method::GET, path, &Value::Null).await;
    }
    let refused = asker.ask(Method::POST, CHAT, &chat("nobody/nothing")).await;
    assert_eq!(refused.status, 404);
}
