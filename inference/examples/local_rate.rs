//! How much of an engine's speed the worker leaves: tokens a second of 1, 4 and 8 parallel answers, beside a bare loop over the same
//! engine with the same batches and nothing else (no channels, no text, no sampling rules but the best token).
//!
//! `cargo run --release -p tollkeeper-inference --example local_rate -- models/toll-tiny.gguf [threads]`
//!
//! Both run in one process, in turns; the printed figures are the medians of the rounds.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use futures_util::StreamExt;
use futures_util::future::join_all;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollkeeper_config::{EngineKind, Local, LocalModel, Priority};
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_inference::local::engine::{self, Engine, LoadPlan, Row, Token, Tokenizer};
use tollkeeper_inference::{Call, ReplyBody};
use tollkeeper_protocol::chat::Sampling;
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::{Operation, Request};

const PROMPT: usize = 32;
const ANSWER: u32 = 128;
const ROUNDS: u32 = 7;
const PARALLEL: [u32; 3] = [1, 4, 8];

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| "models/toll-tiny.gguf".into());
    let threads = arguments.next().map(|threads| threads.parse().unwrap());
    println!(
        "{path}: prompts of {PROMPT} tokens, answers of {ANSWER}, median of {ROUNDS} rounds, tokens/s (reading and writing)"
    );
    println!("{:>8} {:>12} {:>12} {:>7}", "parallel", "bare loop", "worker", "ratio");
    for parallel in PARALLEL {
        let model = Arc::new(model(&path, parallel, threads));
        let (mut bare, mut worker, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let ends = end_tokens(&model);
        let engines = LocalEngines::start(
            &Local { models: [(model.name.clone(), model.clone())].into(), ..Local::default() },
            None,
        );
        engines.ready().await;
        for round in 0..ROUNDS {
            let alone = tokio::task::spawn_blocking({
                let (model, ends) = (model.clone(), ends.clone());
                move || bare_loop(&model, parallel, round, &ends)
            });
            bare.push(alone.await.unwrap());
            worker.push(through_worker(&engines, &model.name, parallel, round, &ends).await);
            ratios.push(worker[round as usize] / bare[round as usize]);
        }
        println!("{parallel:>8} {:>12.0} {:>12.0} {:>7.3}", median(bare), median(worker), median(ratios));
        engines.shutdown().await;
    }
}

fn model(path: &str, slots: u32, threads: Option<u32>) -> LocalModel {
    LocalModel { slots, threads, ..LocalModel::plain("measured", EngineKind::LlamaCpp, path) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn with_engine<T>(model: &Arc<LocalModel>, mut use_it: impl FnMut(&dyn Tokenizer, &mut dyn Engine) -> T) -> T {
    let plan = LoadPlan::new(model.clone());
    let mut result = None;
    engine::run(&plan, &mut |tokenizer, engine| result = Some(use_it(&*tokenizer, engine))).unwrap();
    result.unwrap()
}

/// Tokens that would end an answer early; both sides never choose them.
fn end_tokens(model: &Arc<LocalModel>) -> Vec<Token> {
    with_engine(model, |tokenizer, _| (0..tokenizer.vocabulary()).filter(|token| tokenizer.is_end(*token)).collect())
}

/// Different in every round and sequence from the first token on, so that no prefix is reused.
fn prompt(round: u32, sequence: u32) -> Vec<Token> {
    (0..PROMPT as u32).map(|at| 10 + (round * 31 + sequence * 7 + at * 3) % 200).collect()
}

fn bare_loop(model: &Arc<LocalModel>, parallel: u32, round: u32, ends: &[Token]) -> f64 {
    with_engine(model, |_, engine| {
        let began = Instant::now();
        let read = (0..parallel).flat_map(|sequence| {
            let rows = (0..).zip(prompt(round, sequence));
            rows.map(move |(position, token)| Row {
                token,
                position,
                sequence,
                output: position as usize + 1 == PROMPT,
            })
        });
        let mut rows: Vec<Row> = read.collect();
        for position in PROMPT as u32..PROMPT as u32 + ANSWER {
            engine.decode(&rows).unwrap();
            let outputs = rows.iter().enumerate().filter(|(_, row)| row.output);
            rows = outputs.map(|(at, row)| Row { token: best(engine.logits(at), ends), position, ..*row }).collect();
        }
        f64::from(parallel * (ANSWER + PROMPT as u32)) / began.elapsed().as_secs_f64()
    })
}

fn best(logits: &[f32], ends: &[Token]) -> Token {
    let allowed = (0..).zip(logits).filter(|(token, _)| !ends.contains(token));
    allowed.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token)
}

async fn through_worker(engines: &LocalEngines, name: &str, parallel: u32, round: u32, ends: &[Token]) -> f64 {
    let began = Instant::now();
    let answers = (0..parallel).map(|sequence| async move {
        let logit_bias = ends.iter().map(|token| (*token, -1000.0)).collect();
        let request = CompletionRequest {
            prompts: vec![Prompt::Tokens(prompt(round, sequence))],
            sampling: Sampling { temperature: Some(0.0), logit_bias, ..Sampling::default() },
            max_tokens: Some(ANSWER),
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
                assert_eq!((usage.cached_input, usage.output), (0, u64::from(ANSWER)));
            }
        }
    });
    join_all(answers).await;
    f64::from(parallel * (ANSWER + PROMPT as u32)) / began.elapsed().as_secs_f64()
}
