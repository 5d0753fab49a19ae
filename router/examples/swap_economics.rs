//! What swapping local models costs: always, never, when it pays, and at best.
//!
//! `cargo run --release -p tollkeeper-router --example swap_economics [-- --tune]`
//!
//! With `--tune` other seeds are looked at, by which the default was chosen, and several shares of credit.

#![expect(clippy::print_stdout, reason = "prints its figures")]

use tollkeeper_router::swap::Rules;
use tollkeeper_router::swap::simulation::{Foresight, Outcome, Policy, optimum, run};
use tollkeeper_router::swap::traces::{DEVICE, EVALUATION, SCENARIOS, TUNING};

fn main() {
    let tune = std::env::args().any(|argument| argument == "--tune");
    let seeds = if tune { TUNING } else { EVALUATION };
    let mut tried = vec![Rules::default()];
    if tune {
        let credits = [0, 30, 60, 100, 200].into_iter();
        let of = |credit_percent| [30_000, 60_000, 120_000].map(|look_back_ms| Rules { credit_percent, look_back_ms });
        tried = credits.flat_map(of).collect();
    }
    println!("Seeds {seeds:?}; USD in all of them, and times the optimum (in all, and of the worst seed).");
    for scenario in SCENARIOS {
        println!("{}: {}", scenario.name, scenario.about);
        let traces: Vec<_> = seeds.clone().map(|seed| scenario.trace(seed)).collect();
        let best: Vec<i64> = traces.iter().map(|trace| optimum(trace, DEVICE, Foresight::OnDemand).0).collect();
        let show = |name: &str, outcomes: &[Outcome]| {
            let cost: i64 = outcomes.iter().map(|outcome| outcome.cost.0).sum();
            let times = |cost: i64, best: i64| cost as f64 / best.max(1) as f64;
            let worst = outcomes.iter().zip(&best).map(|(outcome, best)| times(outcome.cost.0, *best));
            let swaps: u64 = outcomes.iter().map(|outcome| outcome.swaps).sum();
            let mut all = Outcome::default();
            outcomes.iter().for_each(|outcome| all.waits_ms.extend(&outcome.waits_ms));
            all.waits_ms.sort_unstable();
            let waits = match all.waits_ms.last() {
                Some(most) => format!("  waits p95 {} s, most {} s", all.wait_percentile(95) / 1000, most / 1000),
                None => String::new(),
            };
            println!(
                "  {name:<18} {:>9.3} USD  x {:>5.2}  worst x {:>5.2}  {swaps:>6} swaps{waits}",
                cost as f64 / 1e9,
                times(cost, best.iter().sum()),
                worst.fold(0.0, f64::max)
            );
        };
        let with = |policy| traces.iter().map(|trace| run(trace, DEVICE, policy)).collect::<Vec<_>>();
        let ahead: i64 = traces.iter().map(|trace| optimum(trace, DEVICE, Foresight::Ahead).0).sum();
        println!("  {:<18} {:>9.3} USD", "optimum, ahead", ahead as f64 / 1e9);
        println!("  {:<18} {:>9.3} USD", "optimum, on demand", best.iter().sum::<i64>() as f64 / 1e9);
        show("always", &with(Policy::Always));
        show("never", &with(Policy::Never));
        for rules in &tried {
            let name = format!("pays {} % {} s", rules.credit_percent, rules.look_back_ms / 1000);
            show(&name, &with(Policy::Pays(*rules)));
        }
    }
}
