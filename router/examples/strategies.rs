//! What strategies cost and how long they take, on traces of several seeds, beside a static order, a random choice of two, and foresight.
//!
//! `cargo run --release -p tollkeeper-router --example strategies [-- --tune | --write]`
//!
//! With `--tune` other seeds are looked at. With `--write` the traces in `tests/scenarios/routing/` are written anew.

#![expect(clippy::print_stdout, reason = "prints its figures")]

use std::error::Error;
use std::path::Path;
use tollkeeper_router::simulation::outcome::table;
use tollkeeper_router::simulation::scenarios::{ESCALATE_AT, EVALUATION, SCENARIOS, SHIPPED, TUNING};
use tollkeeper_router::simulation::{Chooser, Fleet, Outcome, Request, Setup, run};

fn main() -> Result<(), Box<dyn Error>> {
    let has = |name: &str| std::env::args().any(|argument| argument == name);
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/scenarios/routing"));
    if has("--write") {
        for scenario in SCENARIOS {
            let path = folder.join(scenario.name).with_extension("csv");
            std::fs::write(path, Request::write_csv(&scenario.trace(SHIPPED)))?;
        }
        return Ok(());
    }
    let fleet = Fleet::read_csv(&std::fs::read(folder.join("fleet.csv"))?)?;
    let seeds = if has("--tune") { TUNING } else { EVALUATION };
    println!("Seeds {seeds:?}; all requests of them together.");
    for scenario in SCENARIOS {
        let traces: Vec<_> = seeds.clone().map(|seed| (seed, scenario.trace(seed))).collect();
        let requests: usize = traces.iter().map(|(_, trace)| trace.len()).sum();
        println!("\n{}: {} ({requests} requests)", scenario.name, scenario.about);
        let of = |chooser| {
            let outcomes = traces.iter().map(|(seed, trace)| {
                run(Setup { fleet: &fleet, trace, escalate_at: ESCALATE_AT, seed: *seed }, chooser)
            });
            outcomes.reduce(Outcome::and)
        };
        print!("{}", table(&Chooser::ALL.into_iter().filter_map(of).collect::<Vec<_>>()));
    }
    Ok(())
}
