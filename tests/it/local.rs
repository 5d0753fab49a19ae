//! Local models, by an engine that plays a script (every byte is a token): metering, limits, slots, faults. No model file is needed.

use serde_json::{Value, json};
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{CHAT, COMPLETIONS, EMBEDDINGS, chat, streamed, streamed_with_usage};
use tollkeeper_tests::client::Answer;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::Upstream;
use tollkeeper_tests::wait::eventually;

/// A thousandth of a dollar a generated token: budgets come out in whole tokens.
const PRICE: &str = "price = { input = \"0\", output = \"1000\" }";
const TOKEN: i64 = 1_000_000;

/// The set-up with one more scripted model; `lines` are more keys of it.
fn model(setup: Setup, name: &str, script: &Value, lines: &str) -> Setup {
    let path = setup.path(&format!("{name}.json"));
    std::fs::write(&path, script.to_string()).unwrap();
    setup.raw(&format!(
        "[[local.models]]\nname = \"{name}\"\npath = {path:?}\nengine = \"scripted\"\ncontext = 1024\n{PRICE}\n{lines}\n"
    ))
}

/// Says "hello" to everything, and never stops when asked to count.
fn script() -> Value {
    json!({"otherwise": "hello", "answers": {"count": null}})
}

fn count(mut ask: Value) -> Value {
    ask["messages"][0]["content"] = json!("count");
    ask
}

async fn gateway(lines: &str) -> Gateway {
    Gateway::start(model(Setup::new(), "tiny", &script(), lines)).await
}

fn said(answer: &Answer) -> String {
    let chunks = answer.events();
    let chunks = chunks.iter().filter_map(|data| serde_json::from_str::<Value>(data).ok());
    chunks.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
}

#[tokio::test]
async fn whole_and_streamed_answers_say_and_cost_the_same() {
    let gateway = gateway("").await;
    let whole = gateway.client().post_json(CHAT, &chat("tiny")).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    let body = whole.json();
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("tiny")));
    let message = &body["choices"][0]["message"];
    assert_eq!((&message["role"], &message["content"]), (&json!("assistant"), &json!("hello")));
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole.header("x-tollkeeper-backend"), "tiny");

    let stream = gateway.client().post_json(CHAT, &streamed_with_usage("tiny")).await;
    assert_eq!(said(&stream), "hello");
    let events = stream.events();
    assert_eq!(events.last().unwrap(), "[DONE]");
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(last["choices"], json!([]));
    for kind in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(last["usage"][kind], body["usage"][kind], "{kind}");
    }
    assert_eq!(last["usage"]["cost_usd"], whole.header("x-tollkeeper-cost-usd"));
    let completion = body["usage"]["completion_tokens"].as_i64().unwrap();
    // Five letters, and the token that ends the answer if the engine counts it.
    assert!([5, 6].contains(&completion), "{completion}");
    assert_eq!(gateway.stop().await.total(), Usd(2 * completion * TOKEN));
}

#[tokio::test]
async fn a_stream_without_usage_asked_for_tells_none_and_is_charged_the_same() {
    let gateway = gateway("").await;
    let stream = gateway.client().post_json(CHAT, &streamed("tiny")).await;
    assert!(!stream.text().contains("\"usage\":{"), "{}", stream.text());
    assert!(gateway.stop().await.total() >= Usd(5 * TOKEN));
}

#[tokio::test]
async fn an_answer_ends_at_the_exact_token_that_the_budget_pays_for() {
    for stream in [false, true] {
        let setup = model(Setup::new().budgets(&[("total", "0.010")]), "tiny", &script(), "");
        let gateway = Gateway::start(setup).await;
        let ask = count(if stream { streamed("tiny") } else { chat("tiny") });
        let answer = gateway.client().post_json(CHAT, &ask).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = if stream {
            said(&answer)
        } else {
            answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
        };
        assert_eq!(text.len(), 10, "stream {stream}: {text:?}");
        let next = gateway.client().post_json(CHAT, &chat("tiny")).await;
        assert_eq!(next.status, 402, "nothing is left");
        assert_eq!(gateway.stop().await.total(), Usd(10 * TOKEN));
    }
}

#[tokio::test]
async fn limits_and_stops_are_kept() {
    let gateway = gateway("").await;
    let mut ask = count(chat("tiny"));
    ask["max_tokens"] = json!(7);
    let answer = gateway.client().post_json(CHAT, &ask).await.json();
    assert_eq!(answer["usage"]["completion_tokens"], 7);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let mut ask = chat("tiny");
    ask["stop"] = json!(["ll"]);
    let answer = gateway.client().post_json(CHAT, &ask).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "he");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let mut ask = chat("tiny");
    ask["n"] = json!(3);
    let answer = gateway.client().post_json(CHAT, &ask).await.json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 3);
    let completion =
        gateway.client().post_json(COMPLETIONS, &json!({"model": "tiny", "prompt": "x", "max_tokens": 4})).await.json();
    assert_eq!(completion["object"], "text_completion");
    assert_eq!(completion["choices"][0]["text"].as_str().unwrap().len(), 4);
}

#[tokio::test]
async fn a_prompt_that_does_not_fit_is_the_clients_fault() {
    let gateway = gateway("").await;
    let mut ask = chat("tiny");
    ask["messages"][0]["content"] = json!("x".repeat(5_000));
    let answer = gateway.client().post_json(CHAT, &ask).await;
    assert_eq!((answer.status, &answer.error()["code"]), (400, &json!("context_length_exceeded")), "{}", answer.text());
    assert!(answer.error()["message"].as_str().unwrap().contains("1024"), "{}", answer.text());
    assert_eq!(gateway.stop().await.total(), Usd(0));
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot() {
    let gateway = gateway("slots = 1").await;
    let mut endless = gateway.client().stream(CHAT, &count(streamed("tiny"))).await;
    endless.next_event().await.unwrap().unwrap();
    let client = gateway.client();
    let waiting = tokio::spawn(async move { client.post_json(CHAT, &chat("tiny")).await });
    eventually("a request that waits", async || {
        (gateway.metrics().await.sum("tollkeeper_local_queue_depth", &[("model", "tiny")]) == 1.0).then_some(())
    })
    .await;
    drop(endless);
    assert_eq!(waiting.await.unwrap().json()["choices"][0]["message"]["content"], "hello");
    gateway.settled().await;
    assert!(gateway.stop().await.total() > Usd(5 * TOKEN), "what the one who left got is charged");
}

#[tokio::test]
async fn a_full_queue_is_503_with_a_time_to_come_back() {
    let gateway = gateway("slots = 1\nqueue = 1").await;
    let mut endless = gateway.client().stream(CHAT, &count(streamed("tiny"))).await;
    endless.next_event().await.unwrap().unwrap();
    let client = gateway.client();
    let waiting = tokio::spawn(async move { client.post_json(CHAT, &chat("tiny")).await.status });
    eventually("a request that waits", async || {
        (gateway.metrics().await.sum("vllm:num_requests_waiting", &[("model_name", "tiny")]) == 1.0).then_some(())
    })
    .await;
    let refused = gateway.client().post_json(CHAT, &chat("tiny")).await;
    assert_eq!((refused.status, &refused.error()["code"]), (503, &json!("overloaded")), "{}", refused.text());
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    drop(endless);
    assert_eq!(waiting.await.unwrap(), 200);
}

#[tokio::test]
async fn an_engine_that_breaks_is_an_error_and_comes_back() {
    for fault in ["break_at", "panic_at"] {
        let script = json!({"answers": {"count": null}, "otherwise": "hello", (fault): 20});
        let gateway = Gateway::start(model(Setup::new(), "tiny", &script, "")).await;
        let broken = gateway.client().post_json(CHAT, &count(streamed("tiny"))).await;
        assert!(broken.events().last().unwrap().contains("\"error\""), "{fault}: {}", broken.text());
        assert!(!broken.text().contains("[DONE]"));
        let next = eventually("the engine's return", async || {
            let answer = gateway.client().post_json(CHAT, &chat("tiny")).await;
            (answer.status == 200).then_some(answer)
        });
        assert_eq!(next.await.json()["choices"][0]["message"]["content"], "hello");
        gateway.settled().await;
        assert!(gateway.stop().await.total() > Usd(5 * TOKEN), "{fault}: what was delivered before is charged");
    }
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_falls_back_to_a_provider() {
    let upstream = Upstream::start().await;
    let setup = model(Setup::with(&upstream), "tiny", &json!({"load_error": "the moon is in the wrong house"}), "");
    let gateway = Gateway::start(setup.alias("both", &["tiny", "up/plain"])).await;
    let alone = gateway.client().post_json(CHAT, &chat("tiny")).await;
    assert_eq!(alone.status, 503);
    let message = alone.error()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("the moon is in the wrong house") && message.contains("tiny.json"), "{message}");
    let both = gateway.client().post_json(CHAT, &chat("both")).await;
    assert_eq!((both.status, both.header("x-tollkeeper-backend")), (200, "up/plain"));
}

#[tokio::test]
async fn embeddings_are_the_same_in_both_encodings() {
    let gateway = gateway("").await;
    let ask = |encoding: &str| json!({"model": "tiny", "input": ["a", "bb"], "encoding_format": encoding});
    let floats = gateway.client().post_json(EMBEDDINGS, &ask("float")).await.json();
    let coded = gateway.client().post_json(EMBEDDINGS, &ask("base64")).await.json();
    for index in 0..2 {
        let numbers = floats["data"][index]["embedding"].as_array().unwrap();
        let bytes: Vec<u8> =
            numbers.iter().flat_map(|number| (number.as_f64().unwrap() as f32).to_le_bytes()).collect();
        assert_eq!(coded["data"][index]["embedding"], json!(base64(&bytes)));
    }
    assert_eq!(floats["usage"]["total_tokens"], floats["usage"]["prompt_tokens"]);
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test]
async fn an_urgent_request_takes_the_slot_of_one_that_may_wait() {
    let slow = json!({"otherwise": "hello", "answers": {"count": null}, "step_millis": 5});
    let gateway = Gateway::start(model(Setup::new(), "tiny", &slow, "slots = 1")).await;
    let mut flexible = count(streamed("tiny"));
    flexible["service_tier"] = json!("flex");
    let mut flexible = gateway.client().stream(CHAT, &flexible).await;
    flexible.next_event().await.unwrap();
    let urgent = gateway.client().post_json(CHAT, &chat("tiny")).await;
    assert_eq!(urgent.json()["choices"][0]["message"]["content"], "hello");
    // The other one would have gone on for five seconds, and does.
    eventually("the slot is given back", async || {
        let metrics = gateway.metrics().await;
        (metrics.sum("tollkeeper_local_slots_busy", &[("model", "tiny")]) == 1.0).then_some(())
    })
    .await;
    let mut text = String::new();
    while let Ok(Some(event)) = flexible.next_event().await {
        let chunk: Value = serde_json::from_str(&event).unwrap_or_default();
        text.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        if text.len() > 100 {
            break;
        }
    }
    let alphabet: String = ('a'..='z').cycle().take(text.len()).collect();
    assert_eq!(text, alphabet);
}
