//! How long the classifiers take: `cargo run --release -p tollkeeper-router --example difficulty_speed`.
//!
//! For each length it prints the fastest and the middle of many rounds over real questions, put together until they are as long.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::time::{Duration, Instant};
use tollkeeper_router::difficulty::Case;
use tollkeeper_router::{Difficulty, TaskType};

const ROUNDS: usize = 200;
const PROMPTS: usize = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let cases = Case::read_csv(&fs::read("router/data/calibration.csv")?)?;
    let mut next = cases.iter().map(|case| case.prompt.as_str()).cycle();
    println!("   bytes  difficulty: fastest, middle      task type: fastest, middle");
    for bytes in [100, 400, 1_000, 4_000, 16_000, 1_000_000] {
        let prompts: Vec<String> = (0..PROMPTS)
            .map(|_| {
                let mut prompt = String::new();
                while prompt.len() < bytes {
                    prompt.push_str(next.next().unwrap_or_default());
                    prompt.push('\n');
                }
                let end = (0..=bytes).rev().find(|at| prompt.is_char_boundary(*at)).unwrap_or(0);
                prompt.truncate(end);
                prompt
            })
            .collect();
        let difficulty = time(&prompts, |prompt| {
            black_box(Difficulty::of_text(prompt));
        });
        let task = time(&prompts, |prompt| {
            black_box(TaskType::of_text(prompt));
        });
        println!(
            "{bytes:>8}  {:>10.1?} {:>10.1?}                 {:>10.1?} {:>10.1?}",
            difficulty.0, difficulty.1, task.0, task.1
        );
    }
    Ok(())
}

/// The fastest and the middle of the times that one prompt takes on average in a round over all.
fn time(prompts: &[String], work: impl Fn(&str)) -> (Duration, Duration) {
    let round = || {
        let start = Instant::now();
        prompts.iter().for_each(|prompt| work(black_box(prompt)));
        start.elapsed() / PROMPTS as u32
    };
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| round()).collect();
    times.sort();
    (times[0], times[ROUNDS / 2])
}
