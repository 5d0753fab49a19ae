//! How soon what goes wrong is noticed, how much it has spent by then, how often work in which nothing is wrong trips the
//! detector in 30 days, and what watching costs a call.
//!
//! `cargo run --release -p tollkeeper-policies --example velocity_rate [--tune] [scenario]`
//!
//! The detector's constants were chosen with `--tune`, which shows other seeds than those that are printed without it and
//! that the tests look at.

#![expect(clippy::print_stdout, reason = "prints its figures")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "reads the scenarios as the tests do")]

#[expect(dead_code, reason = "what is expected is for the tests")]
#[path = "../tests/it/traffic.rs"]
mod traffic;

use std::hint::black_box;
use std::ops::Range;
use std::time::Instant;
use tollkeeper_config::{Usd, VelocityConfig};
use tollkeeper_policies::velocity::{Baseline, Level, Watch};

/// With `--tune` these seeds are looked at, and the detector's constants were chosen by what comes of them.
const TUNING: Range<u64> = 0..40;
const CALLS: i64 = 5_000_000;

fn main() {
    let (flags, names): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|argument| argument.starts_with("--"));
    let only = names.first();
    let seeds = if flags.iter().any(|flag| flag == "--tune") { TUNING } else { traffic::EVALUATION };
    let rules = VelocityConfig::default();
    println!("Seeds {seeds:?}. Trips: times that someone was told while nothing was wrong (mean, most of a seed).");
    println!(
        "Delays in seconds and percent of the daily cap spent by then: median, worst; \"–\": seeds in which it was not reached.\n"
    );
    println!(
        "scenario         days   trips mean max  worst     notified                   throttled                  paused"
    );
    for (name, scenario) in traffic::scenarios() {
        if only.is_some_and(|only| *only != name) {
            continue;
        }
        let outcomes = outcomes(&scenario, seeds.clone(), &rules);
        let trips: Vec<usize> = outcomes.iter().map(|outcome| outcome.false_trips.len()).collect();
        let mean = trips.iter().sum::<usize>() as f64 / trips.len() as f64;
        let most = trips.iter().max().unwrap();
        let worst = outcomes.iter().map(|outcome| outcome.worst).max().unwrap();
        let stages = if scenario.goes_wrong() {
            [Level::Notify, Level::Throttle, Level::Paused].map(|level| delays(&outcomes, level)).join("   ")
        } else {
            String::new()
        };
        println!("{name:16} {:4} {mean:11.2} {most:3}  {:8}  {stages}", scenario.days(), format!("{worst:?}"));
        if only.is_some() {
            for (seed, outcome) in seeds.clone().zip(&outcomes) {
                println!("  seed {seed}: {} calls", outcome.calls);
                outcome.why.iter().take(12).for_each(|why| println!("    {why}"));
            }
        }
    }
    cost(&rules);
}

/// Half of the seeds on each of two threads.
fn outcomes(scenario: &traffic::Scenario, seeds: Range<u64>, rules: &VelocityConfig) -> Vec<traffic::Outcome> {
    let middle = u64::midpoint(seeds.start, seeds.end);
    let all = |seeds: Range<u64>| -> Vec<_> { seeds.map(|seed| traffic::run(scenario, seed, rules)).collect() };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| all(middle..seeds.end));
        let mut outcomes = all(seeds.start..middle);
        outcomes.extend(second.join().unwrap());
        outcomes
    })
}

fn delays(outcomes: &[traffic::Outcome], level: Level) -> String {
    let mut caught: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.caught(level)).collect();
    caught.sort_by(|a, b| a.0.total_cmp(&b.0));
    let missed = outcomes.len() - caught.len();
    let Some((middle, last)) = caught.get(caught.len() / 2).zip(caught.last()) else { return format!("{:24}", "–") };
    let dearest = caught.iter().map(|(_, percent)| *percent).fold(0.0, f64::max);
    let missed = if missed > 0 { format!(" –{missed}") } else { String::new() };
    format!("{:24}", format!("{:.0}/{:.0} s {:.2}/{dearest:.2} %{missed}", middle.0, last.0, middle.1))
}

/// Nanoseconds for the three calls that each request makes.
fn cost(rules: &VelocityConfig) {
    let mut watch = Watch::new(rules, Some(Usd(50_000_000_000)), &Baseline::default());
    let start = Instant::now();
    for call in 0..CALLS {
        let now = call * 400_000;
        black_box(watch.stage(black_box(now)));
        black_box(watch.admitted(now, Some(call.unsigned_abs().wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        black_box(watch.spent(now + 100_000, Usd(2_000_000), 4_000));
    }
    let each = start.elapsed().as_nanos() / u128::from(CALLS.unsigned_abs());
    println!("\nstage + admitted + spent: {each} ns; a watch has {} bytes", std::mem::size_of::<Watch>());
}
