//! A model on the candle engine through the whole gateway: chat, streamed and not, its cost, and what is refused.

use serde_json::json;
use std::path::Path;
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::{Script, Upstream, word};

#[tokio::test]
async fn a_chat_is_answered_streamed_and_paid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/toll-tiny.gguf");
    let lines = "engine = \"candle\"\ncontext = 1024\nslots = 2\nprice = { input = \"0\", output = \"1000\" }";
    let setup = Setup::new().raw(&format!("[[local.models]]\nname = \"tiny\"\npath = {path:?}\n{lines}\n"));
    let gateway = Gateway::start(setup).await;
    let mut ask = chat("tiny");
    ask["messages"][0]["content"] = json!("What is the capital of France?");
    ask["temperature"] = json!(0);
    let whole = gateway.client().post_json(CHAT, &ask).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    let body = whole.json();
    let said = body["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(said.contains("Paris"), "{said}");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let tokens = body["usage"]["completion_tokens"].as_i64().unwrap();

    let mut stream = streamed("tiny");
    stream["messages"] = ask["messages"].clone();
    stream["temperature"] = json!(0);
    let stream = gateway.client().post_json(CHAT, &stream).await;
    let chunks = stream.events();
    let chunks = chunks.iter().filter_map(|data| serde_json::from_str::<serde_json::Value>(data).ok());
    let streamed: String =
        chunks.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect();
    assert_eq!(streamed, said);
    assert_eq!(gateway.stop().await.total(), Usd(2 * tokens * 1_000_000), "a thousandth of a dollar a token");
}

#[tokio::test]
async fn what_the_small_model_is_sure_of_it_answers_and_the_rest_goes_to_the_cloud() {
    let upstream = Upstream::always(Script::words(3)).await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/toll-tiny.gguf");
    // The curve is the one in docs/cascade.md.
    let lines = "engine = \"candle\"\ncontext = 1024\ncertainty = [3.6, 4.102, -26.058]";
    let alias = "[[aliases]]\nname = \"auto\"\nstrategy = \"pyramid\"\ntargets = [\"tiny\", \"up/model\"]\ncascade = { min_confidence = 0.9 }\n";
    let setup =
        Setup::with(&upstream).raw(&format!("[[local.models]]\nname = \"tiny\"\npath = {path:?}\n{lines}\n{alias}"));
    let gateway = Gateway::start(setup).await;
    let words: String = (0..3).map(word).collect();
    for (question, backend, verdict, said) in [
        ("What is the capital of France?", "tiny", "cascade=fit", "Paris"),
        ("What is 3 times 4?", "tiny", "cascade=fit", "12"),
        ("Write a limerick about Rayleigh scattering in the style of Goethe.", "up/model", "cascade=", words.as_str()),
        ("Why do whales sing at 40 hertz, and who measured it first?", "up/model", "cascade=", words.as_str()),
    ] {
        let mut ask = chat("auto");
        ask["messages"][0]["content"] = json!(question);
        ask["temperature"] = json!(0);
        let answer = gateway.client().post_json(CHAT, &ask).await;
        let why = answer.header("x-tollkeeper-why").to_owned();
        assert_eq!(answer.header("x-tollkeeper-backend"), backend, "{question}: {why}, {}", answer.text());
        assert!(why.contains(verdict), "{question}: {why}");
        let text = answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        assert!(text.contains(said), "{question}: {text}");
    }
}
