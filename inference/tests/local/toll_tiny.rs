//! The model that ships, through llama.cpp: it is loaded, speaks its own template, and answers in whole sentences.

use crate::ask::{ask, chat, engines, message, model};
use futures_util::future::join_all;
use serde_json::json;
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, FinishReason, Role, Tool, ToolCall};

async fn shipped() -> LocalEngines {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/toll-tiny.gguf");
    let engines = engines([LocalModel { context: 4096, ..model("toll-tiny", EngineKind::LlamaCpp, path) }]).await;
    assert_eq!(engines.state("toll-tiny").health, tollkeeper_inference::BackendHealth::Ready);
    engines
}

#[tokio::test]
async fn it_answers_alone_and_in_company() {
    let engines = shipped().await;
    let questions =
        ["What is the capital of France?", "Who are you?", "What is the opposite of hot?", "Tell me a story."];
    let mut alone = Vec::new();
    for question in questions {
        alone.push(ask(&engines, "toll-tiny", Request::Chat(chat(question))).await.unwrap());
    }
    let together = join_all(questions.map(|question| ask(&engines, "toll-tiny", Request::Chat(chat(question))))).await;
    let mut same = 0;
    for ((question, alone), together) in questions.iter().zip(alone).zip(together) {
        println!("{question} -> {}", alone.text());
        assert_eq!(alone.finishes[0], Some(FinishReason::Stop), "{question}: {}", alone.text());
        assert!(alone.usage.output > 1 && !alone.text().contains("<|"), "{}", alone.text());
        same += usize::from(alone.text() == together.unwrap().text());
    }
    // Batching changes the order of float sums, so a close choice may fall the other way.
    assert!(same >= 3, "{same} of 4 answers are the same in company");
}

#[tokio::test]
async fn its_template_takes_tools_and_their_results() {
    let engines = shipped().await;
    let tools = vec![Tool {
        name: "get_weather".into(),
        description: Some("Get the weather in a city".into()),
        parameters: Some(json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})),
        strict: None,
    }];
    let request = ChatRequest { tools, max_tokens: Some(200), ..chat("What is the weather in Paris?") };
    let plain = engines.input_tokens("toll-tiny", &Request::Chat(chat("What is the weather in Paris?"))).unwrap();
    let offered = engines.input_tokens("toll-tiny", &Request::Chat(request.clone())).unwrap();
    assert!(offered > plain + 20, "the tools are in the prompt: {plain} and {offered}");
    let answer = ask(&engines, "toll-tiny", Request::Chat(request.clone())).await.unwrap();
    println!("{answer:?}");
    let call = ToolCall { id: "call_1".into(), name: "get_weather".into(), arguments: "{\"city\": \"Paris\"}".into() };
    let mut messages = request.messages.clone();
    messages.push(tollkeeper_protocol::chat::Message {
        content: Vec::new(),
        tool_calls: vec![call],
        ..message(Role::Assistant, "")
    });
    messages.push(tollkeeper_protocol::chat::Message {
        tool_call_id: Some("call_1".into()),
        ..message(Role::Tool, "sunny")
    });
    let answer = ask(&engines, "toll-tiny", Request::Chat(ChatRequest { messages, ..request })).await.unwrap();
    println!("{answer:?}");
    assert!(answer.usage.input > offered);
}
