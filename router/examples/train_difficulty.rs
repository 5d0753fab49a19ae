//! Trains the difficulty model: `cargo run --release -p tollkeeper-router --example train_difficulty [-- CASES.csv WEIGHTS.bin [--check]]`.
//!
//! The same cases give the same bytes. With `--check` nothing is written, and the exit code says whether the file is what comes out.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::error::Error;
use std::{env, fs};
use tollkeeper_router::difficulty::{Case, Model, Settings};

fn main() -> Result<(), Box<dyn Error>> {
    let (flags, paths): (Vec<String>, Vec<String>) = env::args().skip(1).partition(|word| word.starts_with("--"));
    let check = flags.iter().any(|flag| flag == "--check");
    let path = |place: usize, default: &str| paths.get(place).cloned().unwrap_or_else(|| default.to_owned());
    let (cases, weights) = (path(0, "router/data/calibration.csv"), path(1, "router/data/difficulty.bin"));
    let read = Case::read_csv(&fs::read(&cases)?).map_err(|error| format!("{cases}: {error}"))?;
    let bytes = Model::train(&read, &Settings::default()).to_bytes();
    if check {
        if fs::read(&weights)? != bytes {
            return Err(format!("{weights} is not what {cases} gives").into());
        }
        println!("{weights} is what {cases} gives: {} bytes of {} cases", bytes.len(), read.len());
    } else {
        fs::write(&weights, &bytes)?;
        println!("{weights}: {} bytes of {} cases", bytes.len(), read.len());
    }
    Ok(())
}
