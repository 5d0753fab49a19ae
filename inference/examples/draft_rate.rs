//! What a draft gains and what a bad one costs: tokens a second of 1, 2 and 4 parallel answers with a draft, beside the same model without.
//!
//! `cargo run --release -p tollkeeper-inference --example draft_rate -- MODEL DRAFT [threads [tokens]]`
//!
//! Both run in one process and are asked in turns, greedy; the ratio is the median of the rounds' own. Rounds count from the first one on, so
//! what it takes to find out that a draft is no use is part of it.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use futures_util::StreamExt;
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollkeeper_config::{EngineKind, Local, LocalModel, Priority, Speculate};
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_inference::{Call, ReplyBody};
use tollkeeper_protocol::chat::Sampling;
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::{Operation, Request};

const PROMPT: usize = 32;
const ROUNDS: u32 = 5;
const PARALLEL: [u32; 3] = [1, 2, 4];

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, draft, rest @ ..] = arguments.as_slice() else {
        println!("draft_rate MODEL DRAFT [threads [tokens]]");
        return;
    };
    let threads = rest.first().map(|threads| threads.parse().unwrap());
    let tokens = rest.get(1).map_or(256, |tokens| tokens.parse().unwrap());
    println!("answers of {tokens} tokens, {ROUNDS} rounds, tokens/s");
    println!("{:>8} {:>9} {:>9} {:>7} {:>10} {:>9}", "parallel", "draft", "without", "ratio", "guessed", "right");
    for parallel in PARALLEL {
        let plain = LocalModel {
            slots: parallel,
            threads,
            context: 1024,
            ..LocalModel::plain("without", EngineKind::LlamaCpp, model)
        };
        let drafted = LocalModel { name: "draft".into(), speculate: Speculate::Draft(draft.into()), ..plain.clone() };
        let models = [plain, drafted].map(|model| (model.name.clone(), Arc::new(model)));
        let engines = LocalEngines::start(&Local { models: models.into(), ..Local::default() }, None);
        engines.ready().await;
        let (mut with, mut without, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            with.push(rate(&engines, "draft", parallel, round, tokens).await);
            without.push(rate(&engines, "without", parallel, round, tokens).await);
            ratios.push(with[round as usize] / without[round as usize]);
        }
        let count = engines.statuses().into_iter().find_map(|model| model.guesses).unwrap();
        println!(
            "{parallel:>8} {:>9.1} {:>9.1} {:>7.2} {:>10} {:>8.0}%",
            median(with),
            median(without),
            median(ratios),
            count.guessed,
            100.0 * count.accepted as f64 / count.guessed.max(1) as f64
        );
        engines.shutdown().await;
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Different in every round and sequence from the first token on, so that no prefix is reused.
fn prompt(round: u32, sequence: u32) -> Vec<u32> {
    (0..PROMPT as u32).map(|at| 10 + (round * 31 + sequence * 7 + at * 3) % 200).collect()
}

async fn rate(engines: &LocalEngines, name: &str, parallel: u32, round: u32, tokens: u32) -> f64 {
    let began = Instant::now();
    let answers = (0..parallel).map(|sequence| async move {
        let request = CompletionRequest {
            prompts: vec![Prompt::Tokens(prompt(round, sequence))],
            // The control tokens of the project's own models end answers.
            sampling: Sampling {
                temperature: Some(0.0),
                logit_bias: (0..3).map(|token| (token, -1000.0)).collect(),
                ..Sampling::default()
            },
            max_tokens: Some(tokens),
            n: 1,
            ..CompletionRequest::default()
        };
        let call = Call {
            request: Arc::new(Request::Completion(request)),
            original: bytes::Bytes::new(),
            operation: Operation::TextCompletion,
            output_limit: None,
            measured: 0,
            priority: Priority::default(),
            request_id: "rate".into(),
            abandoned: Arc::default(),
            deadline: tokio::time::Instant::now() + Duration::from_secs(600),
        };
        let ReplyBody::Events(mut events) = engines.send(name, call).await.unwrap().body else { return };
        while let Some(event) = events.next().await {
            if let ChatEvent::Usage(usage) = event.unwrap() {
                assert_eq!(usage.output, u64::from(tokens));
            }
        }
    });
    join_all(answers).await;
    f64::from(parallel * tokens) / began.elapsed().as_secs_f64()
}
