//! Tools with the model that ships: a call that must be made is made, in pieces that make a whole.

use serde_json::{Value, json};
use std::path::Path;
use tollkeeper_tests::asks::CHAT;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;

async fn gateway() -> Gateway {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/toll-tiny.gguf");
    let setup = Setup::new().raw(&format!(
        "[[local.models]]\nname = \"toll-tiny\"\npath = {model:?}\ncontext = 1024\nslots = 2\nprice = {{ input = \"0\", output = \"1\" }}\n"
    ));
    Gateway::start(setup).await
}

fn ask(stream: bool) -> Value {
    json!({
        "model": "toll-tiny", "stream": stream, "temperature": 0, "max_tokens": 400, "tool_choice": "required",
        "parallel_tool_calls": false,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "tools": [{"type": "function", "function": {"name": "book_trip", "strict": true, "parameters": {
            "type": "object", "additionalProperties": false, "required": ["city", "days"],
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
        }}}],
    })
}

fn check(name: &str, arguments: &str) {
    assert_eq!(name, "book_trip");
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments}"));
    assert!(["Paris", "Rome"].contains(&arguments["city"].as_str().unwrap()), "{arguments}");
    assert!((1..=14).contains(&arguments["days"].as_u64().unwrap()), "{arguments}");
    assert_eq!(arguments.as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn a_call_that_must_be_made_is_well_formed_whole_and_streamed() {
    let gateway = gateway().await;
    let whole = gateway.client().post_json(CHAT, &ask(false)).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    let choice = &whole.json()["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null),
        "{choice}"
    );
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 1);
    check(calls[0]["function"]["name"].as_str().unwrap(), calls[0]["function"]["arguments"].as_str().unwrap());

    let stream = gateway.client().post_json(CHAT, &ask(true)).await;
    let chunks: Vec<Value> = stream.events().iter().filter_map(|data| serde_json::from_str(data).ok()).collect();
    let deltas: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).collect();
    assert!(deltas.len() > 2, "the arguments come in pieces: {}", stream.text());
    assert!(deltas[0]["id"].is_string() && deltas[0]["type"] == "function", "{}", deltas[0]);
    assert!(deltas[1..].iter().all(|delta| delta["index"] == 0 && delta.get("id").is_none()), "{}", stream.text());
    let arguments: String = deltas.iter().filter_map(|delta| delta["function"]["arguments"].as_str()).collect();
    check(deltas[0]["function"]["name"].as_str().unwrap(), &arguments);
    let finish = chunks.iter().filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str()).next_back();
    assert_eq!(finish, Some("tool_calls"));
}

#[tokio::test]
async fn what_cannot_be_enforced_is_the_clients_fault() {
    let gateway = gateway().await;
    let mut wrong = ask(false);
    wrong["tools"][0]["function"]["parameters"]["properties"]["city"] = json!({"type": "array", "uniqueItems": true});
    for (ask, param, words) in [
        (wrong, "tools", "uniqueItems"),
        (
            json!({"model": "toll-tiny", "messages": [{"role": "user", "content": "x"}], "grammar": "root ::= ("}),
            "grammar",
            "line 1",
        ),
        (
            json!({"model": "toll-tiny", "prompt": "x", "messages": [{"role": "user", "content": "x"}], "structured_outputs": {"regex": "("}}),
            "structured_outputs.regex",
            "cannot be used",
        ),
    ] {
        let answer = gateway.client().post_json(CHAT, &ask).await;
        assert_eq!((answer.status, &answer.error()["param"]), (400, &json!(param)), "{}", answer.text());
        assert!(answer.error()["message"].as_str().unwrap().contains(words), "{}", answer.text());
    }
}
