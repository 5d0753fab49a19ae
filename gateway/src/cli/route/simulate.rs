//! `tollkeeper route simulate`: what strategies would have cost and how long they would have taken, on a trace and backends that are described.

use crate::cli::say;
use clap::Args;
use std::path::{Path, PathBuf};
use tollkeeper_router::simulation::outcome::table;
use tollkeeper_router::simulation::scenarios::ESCALATE_AT;
use tollkeeper_router::simulation::{Chooser, Fleet, Outcome, Request, Setup, TableError, run};

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Simulate {
    /// Requests: CSV with the columns at_ms, task, input, session, shared, output, max_output, difficulty, needs_tier, min_tier, deadline_ms
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// Backends: CSV with the columns name and tier; prices in USD per million tokens as input_usd, cached_usd, output_usd; context; prefill (tokens a
    /// second); of local models slots, decode (`1:60 4:180`, tokens a second by answers), kept, load_ms; of others ttft_ms, rate, spread,
    /// errors_permille, per_minute, slow (`600-1200:8`, eight times as slow between these seconds)
    #[arg(long, value_name = "FILE", default_value = "tests/scenarios/routing/fleet.csv")]
    fleet: PathBuf,
    /// Difficulties, 0 to 1 and ascending, from which a pyramid begins a tier higher
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    escalate_at: Vec<f32>,
    /// So many runs with different chance, shown together
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    runs: u64,
    /// What chance is made of
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn read<T>(path: &Path, of: impl FnOnce(&[u8]) -> Result<T, TableError>) -> Result<T, String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    of(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

impl Simulate {
    pub(in crate::cli) fn run(self) -> Result<(), String> {
        let trace = read(&self.trace, Request::read_csv)?;
        let fleet = read(&self.fleet, Fleet::read_csv)?;
        let said: Vec<u16> = self.escalate_at.iter().map(|at| (at.clamp(0.0, 1.0) * 1000.0).round() as u16).collect();
        let escalate_at = if said.is_empty() { ESCALATE_AT } else { &said[..] };
        say(&format!("{} requests, {} runs together", trace.len(), self.runs));
        let outcomes = Chooser::ALL.into_iter().filter_map(|chooser| {
            let seeds = (0..self.runs).map(|at| self.seed.wrapping_add(at));
            let outcomes = seeds.map(|seed| run(Setup { fleet: &fleet, trace: &trace, escalate_at, seed }, chooser));
            outcomes.reduce(Outcome::and)
        });
        say(table(&outcomes.collect::<Vec<_>>()).trim_end());
        Ok(())
    }
}
