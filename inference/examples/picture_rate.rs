//! How long a picture stops the other answers of its model: the time to prepare it, and to encode and read it, beside one step of writing.
//!
//! `cargo run --release -p tollkeeper-inference --example picture_rate -- MODEL.gguf MMPROJ.gguf [threads]`
//!
//! Files of any size come from `cargo run --release -p tollkeeper-models --bin random-gguf -- --help` (`--projector`). Medians of the rounds.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use std::sync::Arc;
use std::time::Instant;
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_inference::local::engine::{self, Engine, LoadPlan, Row};
use tollkeeper_inference::local::picture::Picture;

const ROUNDS: u8 = 5;
const WIDTH: u32 = 1024;
const HEIGHT: u32 = 768;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(projector)) = (arguments.next(), arguments.next()) else {
        println!("usage: picture_rate MODEL.gguf MMPROJ.gguf [threads]");
        return;
    };
    let model = LocalModel {
        mmproj: Some(projector.into()),
        threads: arguments.next().map(|threads| threads.parse().unwrap()),
        context: 8192,
        ..LocalModel::plain("measured", EngineKind::LlamaCpp, path)
    };
    let plan = LoadPlan::new(Arc::new(model));
    engine::run(&plan, &mut |_, engine| {
        engine.warm_up().unwrap();
        measure(engine);
    })
    .unwrap();
}

fn measure(engine: &mut dyn Engine) {
    let (mut prepared, mut shown, mut written, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS {
        // Each round has its own pixels: what was prepared before is kept.
        let pixels = (0..WIDTH * HEIGHT * 3).map(|at| (at % 251) as u8 ^ round).collect::<Vec<u8>>();
        let picture = Picture::new(WIDTH, HEIGHT, pixels).unwrap();
        let token = |position| [Row { token: 3, position, sequence: 0, output: true }];
        engine.truncate(0, 0);
        engine.decode(&token(0)).unwrap();
        prepared.push(millis(|| tokens = engine.measure(&picture).unwrap()));
        shown.push(millis(|| engine.show(&picture, 0, 1).unwrap()));
        written.push(millis(|| engine.decode(&token(1 + tokens)).unwrap()));
    }
    println!("a picture of {WIDTH} x {HEIGHT} pixels, {tokens} tokens; medians of {ROUNDS} rounds, ms");
    println!("{:>10} {:>20} {:>10}", "prepare", "encode and read", "one step");
    println!("{:>10.1} {:>20.1} {:>10.1}", median(prepared), median(shown), median(written));
}

fn millis(step: impl FnOnce()) -> f64 {
    let began = Instant::now();
    step();
    began.elapsed().as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
