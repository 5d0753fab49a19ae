//! How many attempts a second can be admitted and settled, and how long an admission takes, with the ledger in memory,
//! in SQLite, and in the PostgreSQL database of the URL that is given, under two names at once as well.
//!
//! `cargo run --release -p tollkeeper-policies --example ledger_rate [-- postgres://user@host/database]`

#![expect(clippy::print_stdout, reason = "prints its figures")]

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tollkeeper_config::{BackendId, Config, Durability, PicoUsd, Price, PriceSource, Rates, Secret};
use tollkeeper_policies::{Clock, Outcome, OutputBound, Policies, Settlement, Spend};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::usage::Usage;

/// The gateway's own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const LENGTH: Duration = Duration::from_secs(3);

/// How clients come: so many, each with its next attempt as soon as the last one is settled, or so many attempts a
/// second.
#[derive(Clone, Copy)]
enum Load {
    /// One, on a thread that has nothing else to do: others move from core to core.
    Alone,
    Closed(u32),
    Paced(u32),
}

const LOADS: [Load; 5] = [Load::Alone, Load::Closed(1), Load::Closed(16), Load::Closed(64), Load::Paced(3000)];

struct Runtimes {
    alone: Runtime,
    shared: Runtime,
}

impl Runtimes {
    fn of(&self, load: Load) -> &Runtime {
        if matches!(load, Load::Alone) { &self.alone } else { &self.shared }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = Runtimes {
        alone: tokio::runtime::Builder::new_current_thread().enable_time().build()?,
        shared: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?,
    };
    println!(
        "ledger           load       attempts/s   CPU µs each   admit p50     p99   p99.9 (µs)   settle p50     p99   both p50     p99 (µs)"
    );
    for load in LOADS {
        let policies = Policies::in_memory(&config(Path::new(""), Durability::Process)?, Clock::system());
        runtime.of(load).block_on(measure("memory", load, policies));
    }
    for (name, durability) in [("sqlite, process", Durability::Process), ("sqlite, power", Durability::Power)] {
        for load in LOADS {
            let folder = tempfile::tempdir_in(".")?;
            let config = config(&folder.path().join("ledger.db"), durability)?;
            runtime.of(load).block_on(measure(name, load, Policies::open(&config, Clock::system())?.0));
        }
    }
    if let Some(url) = std::env::args().nth(1) {
        in_database(&runtime, &url)?;
    }
    Ok(())
}

/// One gateway in a database, and then two at once, each under a name that nobody has used there.
fn in_database(runtime: &Runtimes, url: &str) -> Result<(), Box<dyn Error>> {
    let run = std::process::id();
    let open = |gateway: &str| -> Result<Policies, Box<dyn Error>> {
        let mut config = config(Path::new(""), Durability::Process)?;
        config.store.url = Some(Secret::new(url));
        config.store.gateway = Some(format!("bench-{run}-{gateway}"));
        Ok(Policies::open(&config, Clock::system())?.0)
    };
    for (number, load) in LOADS.into_iter().enumerate() {
        runtime.of(load).block_on(measure("postgres", load, open(&number.to_string())?));
    }
    let (left, right) = (open("left")?, open("right")?);
    let load = Load::Closed(64);
    runtime.shared.block_on(async {
        tokio::join!(measure("postgres, left", load, left), measure("postgres, right", load, right))
    });
    Ok(())
}

async fn measure(name: &str, load: Load, policies: Policies) {
    let (clients, pause, load) = match load {
        Load::Alone => (1, None, "alone".to_owned()),
        Load::Closed(clients) => (clients, None, format!("{clients} tasks")),
        // Ten attempts a second of each client, their turns spread evenly.
        Load::Paced(rate) => (rate / 10, Some(Duration::from_millis(100)), format!("{rate}/s")),
    };
    let (start, cpu) = (Instant::now(), cpu_ticks());
    let client = |which| {
        let turn = pause.map(|pause| (pause * which / clients, pause));
        tokio::spawn(one_client(policies.clone(), start, turn))
    };
    let running: Vec<_> = (0..clients).map(client).collect();
    let (mut admits, mut settles) = (Vec::new(), Vec::new());
    for task in running {
        let (admitted, settled) = task.await.unwrap_or_default();
        admits.extend(admitted);
        settles.extend(settled);
    }
    let mut both: Vec<Duration> = admits.iter().zip(&settles).map(|(admit, settle)| *admit + *settle).collect();
    let count = u128::try_from(admits.len()).unwrap_or(1).max(1);
    let rate = count * 1000 / start.elapsed().as_millis();
    policies.close().await;
    let cpu = u128::from(cpu_ticks() - cpu) * 10_000 / count;
    let [p50, p99, p999] = [500, 990, 999].map(|per_mille| percentile(&mut admits, per_mille));
    let [settle50, settle99] = [500, 990].map(|per_mille| percentile(&mut settles, per_mille));
    let [both50, both99] = [500, 990].map(|per_mille| percentile(&mut both, per_mille));
    println!(
        "{name:16} {load:10} {rate:10} {cpu:13} {p50:>11} {p99:>7} {p999:>12} {settle50:>12} {settle99:>7} {both50:>10} {both99:>7}"
    );
}

/// Admits and settles one attempt after another, or one each turn (first turn, pause); returns how long each step took.
async fn one_client(
    policies: Policies,
    start: Instant,
    turn: Option<(Duration, Duration)>,
) -> (Vec<Duration>, Vec<Duration>) {
    let mut turns = turn.map(|(first, pause)| tokio::time::interval_at((start + first).into(), pause));
    let (mut admits, mut settles) = (Vec::new(), Vec::new());
    while start.elapsed() < LENGTH {
        match &mut turns {
            Some(turns) => _ = turns.tick().await,
            None => tokio::task::yield_now().await,
        }
        let Ok(agent) = policies.authenticate("bench-key") else { break };
        let begin = Instant::now();
        let Ok(lease) = policies.admit(&agent, spend()).await else { break };
        admits.push(begin.elapsed());
        let begin = Instant::now();
        lease.settle(Settlement {
            usage: Usage { input: 900, output: 120, ..Usage::default() },
            estimated: false,
            outcome: Outcome::Done,
            ttft: Some(Duration::from_millis(200)),
            duration: Duration::from_millis(900),
        });
        settles.push(begin.elapsed());
    }
    (admits, settles)
}

/// This process's CPU time so far in hundredths of a second; 0 where the system does not tell.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

fn percentile(times: &mut [Duration], per_mille: usize) -> String {
    times.sort_unstable();
    let at = (times.len() * per_mille / 1000).min(times.len().saturating_sub(1));
    times.get(at).map_or_else(String::new, |time| format!("{}.{}", time.as_micros(), time.as_nanos() % 1000 / 100))
}

fn spend() -> Spend {
    let base = Rates {
        input: PicoUsd(150_000),
        cached_input: PicoUsd(75_000),
        cache_write: PicoUsd(150_000),
        output: PicoUsd(600_000),
        ..Rates::default()
    };
    Spend {
        request_id: "0199a5b2-7c1e-7e61-b0a4-5d9f3c2e8a11".into(),
        attempt: 1,
        operation: Operation::Chat,
        alias: "cloud/fast".into(),
        backend: BackendId::Remote { provider: "openai".into(), model: "gpt-4o-mini".into() },
        price: Price { base, above: Vec::new(), tiers: Vec::new(), source: PriceSource::Catalog },
        catalog_version: "2026-01-01".into(),
        answers: 1,
        input_tokens: 1000,
        output: OutputBound::Whole(256),
        request_left: None,
        final_answer: false,
        task: None,
        signature: None,
        billable: Default::default(),
    }
}

fn config(ledger: &Path, durability: Durability) -> Result<Config, Box<dyn Error>> {
    let text = r#"
        [[agents]]
        name = "bench"
        key = "bench-key"
        budgets = [{ window = "day", limit_usd = "1000000" }, { window = "total", limit_usd = "1000000" }]
    "#;
    let mut config = tollkeeper_config::parse(text, Path::new("bench.toml"), &|_| None)?;
    config.store.path = ledger.to_owned();
    config.store.durability = durability;
    Ok(config)
}
