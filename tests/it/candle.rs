//! A model on the candle engine through the whole gateway: chat, streamed and not, its cost, and what is refused.

use serde_json::json;
use std::path::Path;
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;

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
