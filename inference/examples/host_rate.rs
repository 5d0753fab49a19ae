//! What a process of its own costs an engine: tokens a second of 1, 4 and 8 sequences, with the engine in a thread and in a process.
//!
//! `cargo run --release -p tollkeeper-inference --example host_rate -- models/toll-tiny.gguf [threads]`
//!
//! A bare loop over the engine (read the prompts, then write one token of each sequence a step), in turns; the printed figures are the
//! medians of the rounds. Every logit of the vocabulary crosses the socket, so that the vocabulary's size matters: a random model of any
//! size comes from `cargo run --release -p tollkeeper-models --bin random-gguf -- --help`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tollkeeper_config::{EngineHost, EngineKind, LocalModel};
use tollkeeper_inference::local::engine::{self, Engine, LoadPlan, Row};
use tollkeeper_inference::local::process;

const PROMPT: u32 = 32;
const ANSWER: u32 = 128;
const ROUNDS: usize = 7;
const PARALLEL: [u32; 3] = [1, 4, 8];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next().unwrap_or_else(|| "models/toll-tiny.gguf".into());
    if first == "engine" {
        // This program started itself.
        return process::serve().unwrap();
    }
    let threads = arguments.next().map(|threads| threads.parse().unwrap());
    println!(
        "{first}: prompts of {PROMPT} tokens, answers of {ANSWER}, median of {ROUNDS} rounds, tokens/s (reading and writing)"
    );
    println!("{:>8} {:>12} {:>12} {:>7}", "parallel", "thread", "process", "ratio");
    for parallel in PARALLEL {
        let measure = |host| rate(&model(&first, parallel, threads, host), parallel);
        let rounds = (0..ROUNDS).map(|_| (measure(EngineHost::Thread), measure(EngineHost::Process)));
        let rounds: Vec<(f64, f64)> = rounds.collect();
        let thread = median(rounds.iter().map(|(thread, _)| *thread).collect());
        let process = median(rounds.iter().map(|(_, process)| *process).collect());
        let ratio = median(rounds.iter().map(|(thread, process)| process / thread).collect());
        println!("{parallel:>8} {thread:>12.0} {process:>12.0} {ratio:>7.3}");
    }
}

fn model(path: &str, slots: u32, threads: Option<u32>, host: EngineHost) -> LocalModel {
    LocalModel { host, slots, threads, ..LocalModel::plain("measured", EngineKind::LlamaCpp, path) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rate(model: &LocalModel, parallel: u32) -> f64 {
    let program = Some(Path::new("/proc/self/exe").into());
    let mut plan = LoadPlan::new(Arc::new(model.clone()));
    plan.program = program;
    let mut rate = 0.0;
    engine::run(&plan, &mut |_, engine| {
        engine.warm_up().unwrap();
        rate = bare_loop(engine, parallel);
    })
    .unwrap();
    rate
}

fn bare_loop(engine: &mut dyn Engine, parallel: u32) -> f64 {
    let began = Instant::now();
    let prompt = |sequence| {
        (0..PROMPT).map(move |position| {
            let token = 10 + (sequence * 7 + position * 3) % 200;
            Row { token, position, sequence, output: position + 1 == PROMPT }
        })
    };
    let mut rows: Vec<Row> = (0..parallel).flat_map(prompt).collect();
    for position in PROMPT..PROMPT + ANSWER {
        engine.decode(&rows).unwrap();
        let outputs = rows.iter().enumerate().filter(|(_, row)| row.output);
        rows = outputs.map(|(at, row)| Row { token: best(engine.logits(at)), position, ..*row }).collect();
    }
    f64::from(parallel * (ANSWER + PROMPT)) / began.elapsed().as_secs_f64()
}

fn best(logits: &[f32]) -> u32 {
    (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token)
}
