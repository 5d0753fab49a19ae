//! How fast candle is beside llama.cpp: tokens a second of both engines on one file, reading a prompt, writing one answer, and writing four
//! at once. A bare loop over each engine: no channels, no text, no sampling rules but the best token.
//!
//! `cargo run --release -p tollkeeper-inference --example engines_rate -- models/toll-tiny.gguf`
//!
//! The engines take turns; the printed figures are the medians of the rounds.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use std::sync::Arc;
use std::time::Instant;
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_inference::local::engine::{self, Engine, LoadPlan, Row, Token};

const PROMPT: u32 = 256;
const ANSWER: u32 = 64;
const PARALLEL: u32 = 4;
const ROUNDS: usize = 5;
const ENGINES: [(&str, EngineKind); 2] = [("llama.cpp", EngineKind::LlamaCpp), ("candle", EngineKind::Candle)];

/// Tokens a second: reading, writing one answer, writing several at once (all together).
type Rates = [f64; 3];

fn main() {
    let path = std::env::args().nth(1).unwrap_or_else(|| "models/toll-tiny.gguf".into());
    let mut rounds: [Vec<Rates>; 2] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, kind), rounds) in ENGINES.iter().zip(&mut rounds) {
            rounds.push(measure(&path, *kind));
        }
    }
    println!("{path}: a prompt of {PROMPT} tokens, answers of {ANSWER}, median of {ROUNDS} rounds, tokens/s");
    println!("{:>10} {:>10} {:>10} {:>14}", "", "reading", "writing", format!("writing {PARALLEL}"));
    let medians =
        rounds.map(|rounds| [0, 1, 2].map(|column| median(rounds.iter().map(|rates| rates[column]).collect())));
    for ((name, _), rates) in ENGINES.iter().zip(&medians) {
        println!("{name:>10} {:>10.0} {:>10.0} {:>14.0}", rates[0], rates[1], rates[2]);
    }
    let ratio = |column: usize| medians[1][column] / medians[0][column];
    println!("{:>10} {:>10.3} {:>10.3} {:>14.3}", "ratio", ratio(0), ratio(1), ratio(2));
}

fn measure(path: &str, kind: EngineKind) -> Rates {
    let model = LocalModel { context: PROMPT + ANSWER, slots: PARALLEL, ..LocalModel::plain("measured", kind, path) };
    let plan = LoadPlan::new(Arc::new(model));
    let mut rates = [0.0; 3];
    let run = engine::run(&plan, &mut |_, engine| {
        assert_eq!(engine.limits().sequences, PARALLEL, "this architecture answers one at a time");
        rates[0] = read(engine);
        rates[1] = write(engine, 1, PROMPT);
        rates[2] = write(engine, PARALLEL, 0);
    });
    run.unwrap();
    rates
}

fn token(sequence: u32, position: u32) -> Token {
    10 + (sequence * 7 + position * 3) % 200
}

/// Reads the prompt into the first sequence, in the largest batches.
fn read(engine: &mut dyn Engine) -> f64 {
    let batch = engine.limits().batch as usize;
    let row = |position| Row { token: token(0, position), position, sequence: 0, output: position + 1 == PROMPT };
    let rows: Vec<Row> = (0..PROMPT).map(row).collect();
    let began = Instant::now();
    rows.chunks(batch).for_each(|rows| engine.decode(rows).unwrap());
    f64::from(PROMPT) / began.elapsed().as_secs_f64()
}

/// Writes an answer into each of the first `sequences`, from a position on; from 0 it is the only text there is.
fn write(engine: &mut dyn Engine, sequences: u32, from: u32) -> f64 {
    if from == 0 {
        (0..sequences).for_each(|sequence| assert!(engine.truncate(sequence, 0)));
    }
    let first = |sequence| Row { token: token(sequence, from), position: from, sequence, output: true };
    let mut rows: Vec<Row> = (0..sequences).map(first).collect();
    let began = Instant::now();
    for position in from + 1..=from + ANSWER {
        engine.decode(&rows).unwrap();
        rows =
            rows.iter().enumerate().map(|(at, row)| Row { token: best(engine.logits(at)), position, ..*row }).collect();
    }
    f64::from(sequences * ANSWER) / began.elapsed().as_secs_f64()
}

fn best(logits: &[f32]) -> Token {
    (0..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
