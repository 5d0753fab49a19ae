//! Measures what Tollkeeper adds: the same load through a direct connection, a bare hyper passthrough and Tollkeeper, in turns, in one run.
//!
//! Every server is a process of its own; all share the machine with the load generator. Loopback only. Build the gateway first, in the
//! same profile: `cargo build --release -p tollkeeper-gateway`, or name it in `TOLLKEEPER_BIN`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program for people at a terminal"
)]

use clap::Parser;
use std::thread::available_parallelism;
use tollkeeper_benches::load::{Connection, Measure, Work, closed_loop, open_loop};
use tollkeeper_benches::plan::{Plan, Role};
use tollkeeper_benches::report::{self, Row};
use tollkeeper_benches::servers::{self, CHUNKS};
use tollkeeper_benches::target::Target;

/// The same allocator for all servers of the comparison.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let plan = Plan::parse();
    match plan.serve {
        // The upstream's own cost is not measured: one thread leaves the other core to the target.
        Some(Role::Upstream) => {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(servers::upstream())
        }
        Some(Role::Passthrough) => runtime().block_on(servers::passthrough(plan.to.unwrap())),
        None => runtime().block_on(measure(&plan)),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

async fn measure(plan: &Plan) {
    let upstream = Target::direct().await;
    let passthrough = Target::passthrough(upstream.addr()).await;
    let tollkeeper = Target::tollkeeper(upstream.addr()).await;
    let targets = [&upstream, &passthrough, &tollkeeper];
    println!("{}; Tollkeeper with key, budgets, lease, ledger, metrics and log on.", machine());
    println!("At rest: {:.1} MiB.\n", tollkeeper.rss() as f64 / 1024.0);
    for target in targets {
        closed_loop(target, Work::Unary, plan.connections, plan.requests.min(2_000)).await;
        closed_loop(target, Work::Stream, plan.stream_connections, plan.streams.min(100)).await;
    }

    let closed =
        in_turns(plan, targets, async |target| closed_loop(target, Work::Unary, plan.connections, plan.requests).await)
            .await;
    println!(
        "### Unary, closed loop, {} connections\n\n{}",
        plan.connections,
        report::unary_closed(&rows(targets, &closed))
    );

    let rate = plan.rate.unwrap_or((closed[2].rate() / 2.0) as u32).max(1);
    let open = in_turns(plan, targets, async |target| {
        open_loop(target, Work::Unary, 4 * plan.connections, rate, rate * plan.seconds).await
    })
    .await;
    println!("### Unary, open loop, {rate} requests/s\n\n{}", report::unary_open(&rows(targets, &open)));

    let closed = in_turns(plan, targets, async |target| {
        closed_loop(target, Work::Stream, plan.stream_connections, plan.streams).await
    })
    .await;
    let connections = plan.stream_connections;
    println!(
        "### Streams of {CHUNKS} chunks, closed loop, {connections} connections\n\n{}",
        report::stream_closed(&rows(targets, &closed))
    );

    let rate = plan.stream_rate.unwrap_or((closed[2].rate() / 2.0) as u32).max(1);
    let open = in_turns(plan, targets, async |target| {
        open_loop(target, Work::Stream, 4 * plan.connections, rate, rate * plan.seconds).await
    })
    .await;
    println!(
        "### Streams of {CHUNKS} chunks, open loop, {rate} streams/s\n\n{}",
        report::stream_open(&rows(targets, &open))
    );

    let mut held = Vec::new();
    for target in targets {
        held.push((target.name.to_owned(), rss_with_open_streams(target, plan.open_streams).await));
    }
    println!("### Memory with {} open streams\n\n{}", plan.open_streams, report::memory("", &held));

    if plan.long {
        println!("### Memory over time\n\n{}", report::memory("so far", &memory_over_time(plan, &tollkeeper).await));
    }
}

/// What all of this runs on.
fn machine() -> String {
    let field = |file: &str, name: &str| {
        let text = std::fs::read_to_string(file).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .map(|line| line.split(':').nth(1).unwrap().trim().to_owned());
        line.unwrap_or_else(|| "unknown".to_owned())
    };
    let memory = field("/proc/meminfo", "MemTotal");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let load = load.split(' ').next().unwrap();
    format!(
        "{} cores of {}, {memory} of memory, load before {load}",
        available_parallelism().unwrap(),
        field("/proc/cpuinfo", "model name")
    )
}

/// Loads the targets in turns, round by round, so that whatever else the machine does meets all of them.
async fn in_turns(plan: &Plan, targets: [&Target; 3], load: impl AsyncFn(&Target) -> Measure) -> [Measure; 3] {
    let mut sums = [Measure::default(), Measure::default(), Measure::default()];
    for round in 1..=plan.rounds {
        for (target, sum) in targets.into_iter().zip(&mut sums) {
            let measure = load(target).await;
            eprintln!("round {round}: {}: {:.0}/s", target.name, measure.rate());
            sum.add(&measure);
        }
    }
    sums
}

fn rows<'a>(targets: [&'a Target; 3], measures: &'a [Measure; 3]) -> Vec<Row<'a>> {
    targets.iter().zip(measures).map(|(target, measure)| (target.name, measure, target.rss())).collect()
}

/// Memory while so many streams stand open, each in the middle of its answer.
async fn rss_with_open_streams(target: &Target, count: u32) -> u64 {
    let model = if target.model.contains('/') { "up/hold" } else { "hold" };
    let mut open = Vec::new();
    for _ in 0..count {
        let mut connection = Connection::open(target, model, Work::Stream).await;
        connection.ask().await;
        while connection.received() < CHUNKS as usize * 300 {
            assert!(connection.read().await, "the stream ended");
        }
        open.push(connection);
    }
    target.rss()
}

/// Memory after every tenth of 100,000 requests and 2,000 streams.
async fn memory_over_time(plan: &Plan, target: &Target) -> Vec<(String, u64)> {
    let mut seen = vec![("start".to_owned(), target.rss())];
    for tenth in 1..=10 {
        closed_loop(target, Work::Unary, plan.connections, 10_000).await;
        closed_loop(target, Work::Stream, plan.stream_connections, 200).await;
        seen.push((format!("{tenth}0,000 requests, {} streams", tenth * 200), target.rss()));
    }
    seen
}
