//! How sure Toll Tiny is of answers that are right and of answers that are wrong: for held-out questions of every kind, the mean log-probability
//! and the mean entropy of the first tokens, and whether the answer is exactly right.
//!
//! `cargo run --release -p tollkeeper-inference --no-default-features --features candle --example certainty_cases -- 200 16 > cases.csv`
//!
//! The first number is questions of each kind, the second how many tokens are looked at. `tollkeeper route certainty --data cases.csv`
//! makes a curve of them.
#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{EngineKind, Local, LocalModel, Priority};
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_inference::{Call, ReplyBody};
use tollkeeper_models::data::{Dialogue, Kind, Split, Turn, is_story, sample};
use tollkeeper_models::rng::Rng;
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::event::{ChatEvent, Folder};
use tollkeeper_protocol::openai::decode_request;

const SEED: u64 = 4711;
const LONGEST: u32 = 160;
const PARALLEL: u32 = 8;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let questions: usize = arguments.next().map_or(100, |text| text.parse().unwrap());
    let measured: u32 = arguments.next().map_or(16, |text| text.parse().unwrap());
    let model = LocalModel {
        slots: PARALLEL,
        context: 1024,
        queue: 64,
        ..LocalModel::plain("toll-tiny", EngineKind::Candle, "models/toll-tiny.gguf")
    };
    let models = [(model.name.clone(), Arc::new(model))].into();
    let engines = LocalEngines::start(&Local { models, ..Local::default() }, None);
    engines.ready().await;
    let asked = Kind::MIX.iter().enumerate().flat_map(|(place, (kind, _, _))| {
        let mut rng = Rng::new(SEED + place as u64);
        let questions = (0..questions).map(|_| sample(*kind, Split::Held, &mut rng).split_answer());
        questions.map(|(question, wanted)| (*kind, question, wanted)).collect::<Vec<_>>()
    });
    println!("kind,logprob,entropy,good");
    let engines = &engines;
    let lines = stream::iter(asked).map(|(kind, question, wanted)| async move {
        let (good, logprob, entropy) = answer(engines, kind, &question, &wanted, measured).await;
        format!("{},{logprob:.5},{entropy:.5},{}", kind.label().replace(',', ""), u8::from(good))
    });
    let mut lines = lines.buffered(PARALLEL as usize);
    while let Some(line) = lines.next().await {
        println!("{line}");
    }
    engines.shutdown().await;
}

/// Whether the greedy answer is the wanted one, and the means of its first tokens.
async fn answer(
    engines: &LocalEngines,
    kind: Kind,
    question: &Dialogue,
    wanted: &str,
    measured: u32,
) -> (bool, f64, f64) {
    let request = decode_request(Operation::Chat, body(question).to_string().as_bytes()).unwrap();
    let call = Call {
        request: Arc::new(request),
        original: bytes::Bytes::new(),
        operation: Operation::Chat,
        output_limit: None,
        measured,
        priority: Priority::default(),
        request_id: "certainty".into(),
        abandoned: Arc::default(),
        deadline: tokio::time::Instant::now() + Duration::from_secs(600),
    };
    let ReplyBody::Events(mut events) = engines.send("toll-tiny", call).await.unwrap().body else {
        panic!("a local answer has events");
    };
    let (mut folder, mut certainty) = (Folder::default(), Vec::new());
    while let Some(event) = events.next().await {
        match event.unwrap() {
            ChatEvent::Certainty { logprob, entropy, .. } => certainty.push((f64::from(logprob), f64::from(entropy))),
            event => folder.push(event),
        }
    }
    let choice = folder.finish().choices.remove(0);
    let good = match wanted.strip_prefix("<tool_call>").and_then(|call| call.strip_suffix("</tool_call>")) {
        Some(call) => {
            let call: Value = serde_json::from_str(call).unwrap();
            choice.tool_calls.iter().any(|made| {
                call["name"] == made.name
                    && serde_json::from_str::<Value>(&made.arguments).is_ok_and(|made| made == call["arguments"])
            })
        }
        None if kind == Kind::Story => is_story(&choice.text, wanted),
        None => choice.text == wanted && choice.tool_calls.is_empty(),
    };
    let mean = |of: fn(&(f64, f64)) -> f64| certainty.iter().map(of).sum::<f64>() / certainty.len().max(1) as f64;
    (good, mean(|(logprob, _)| *logprob), mean(|(_, entropy)| *entropy))
}

fn body(question: &Dialogue) -> Value {
    let message = |role: &str, text: &str| json!({"role": role, "content": text});
    let turns = question.turns.iter().map(|turn| match turn {
        Turn::User(text) => message("user", text),
        Turn::Assistant(text) => message("assistant", text),
        Turn::Tool(text) => json!({"role": "tool", "tool_call_id": "call", "content": text}),
    });
    let messages: Vec<Value> = question.system.iter().map(|text| message("system", text)).chain(turns).collect();
    let tools: Vec<Value> = question.tools.iter().map(|tool| serde_json::from_str(tool).unwrap()).collect();
    json!({"model": "toll-tiny", "messages": messages, "tools": tools, "temperature": 0, "max_tokens": LONGEST})
}
