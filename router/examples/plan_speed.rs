//! How long a plan for 50 candidates takes: `cargo run --release -p tollkeeper-router --example plan_speed`.
//!
//! For each strategy it prints the fastest and the middle of many rounds. With the name of a strategy it makes [`PLANS`] plans and nothing else, for
//! `valgrind --tool=callgrind`; with `none` it only makes what they are made of.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollkeeper_config::{Abilities, BackendId, ModelFacts, PicoUsd, Price, PriceSource, Rates, Strategy};
use tollkeeper_protocol::Operation;
use tollkeeper_router::{Ask, Candidate, Health, Pace, Rules, Strain, Wishes, plan};

const CANDIDATES: u64 = 50;
const PLANS: usize = 1000;
const ROUNDS: usize = 300;

fn main() {
    let (ask, candidates) = (ask(), candidates());
    if let Some(only) = std::env::args().nth(1) {
        let strategy = Strategy::named(&only);
        for seed in 0..PLANS as u64 {
            let candidates = black_box(candidates.clone());
            if let Some(strategy) = strategy {
                black_box(plan(&ask, candidates, rules(strategy), seed));
            }
        }
        return;
    }
    println!("{CANDIDATES} candidates   fastest     middle");
    for (name, strategy) in Strategy::NAMES {
        let mut times: Vec<Duration> = (0..ROUNDS).map(|_| round(&ask, &candidates, strategy)).collect();
        times.sort();
        println!("{name:<15} {:>9.2?}  {:>9.2?}", times[0], times[ROUNDS / 2]);
    }
}

/// The mean time of a plan in a round of some.
fn round(ask: &Ask, candidates: &[Candidate], strategy: Strategy) -> Duration {
    const ONES: u32 = 20;
    let inputs: Vec<_> = (0..ONES).map(|_| candidates.to_vec()).collect();
    let mut outputs = Vec::with_capacity(inputs.len());
    let start = Instant::now();
    for (seed, candidates) in (0..).zip(inputs) {
        outputs.push(plan(black_box(ask), candidates, rules(strategy), seed));
    }
    let took = start.elapsed();
    drop(black_box(outputs));
    took / ONES
}

fn rules(strategy: Strategy) -> Rules {
    let wishes = Wishes { deadline_ms: Some(8000), session: Some(7), ..Wishes::default() };
    Rules { wishes, start_tier: 1, ..Rules::from(strategy) }
}

fn ask() -> Ask {
    Ask {
        operation: Operation::Chat,
        input_tokens: 3000,
        longest_input: 3000,
        answers: 1,
        max_output: Some(2000),
        usual_output: Some(300),
        tools: true,
        vision: false,
        images: 0,
        unread: 0,
        json_schema: false,
        stream: true,
    }
}

/// Of all kinds: local and remote, one in ten unfit, one cooling, one absent.
fn candidates() -> Vec<Candidate> {
    (0..CANDIDATES).map(candidate).collect()
}

fn candidate(at: u64) -> Candidate {
    let rates =
        Rates { input: PicoUsd(at * 37_000 % 900_000), output: PicoUsd(at * 91_000 % 3_000_000), ..Rates::default() };
    let price = Price { base: rates, above: Vec::new(), tiers: Vec::new(), source: PriceSource::Catalog };
    let abilities = Abilities { tools: at % 10 != 3, ..Abilities::ALL };
    let facts = ModelFacts { price, context: Some(128_000), max_output: Some(8192), abilities };
    let local = at.is_multiple_of(5);
    Candidate {
        id: if local {
            BackendId::Local(format!("local-{at}").into())
        } else {
            BackendId::Remote { provider: "provider".into(), model: format!("model-{at}").into() }
        },
        tier: (at % 3) as u8,
        facts: Arc::new(facts),
        health: match at % 20 {
            7 => Health::Cooling { until_ms: 1 },
            10 => Health::Absent { ready_in_ms: 9000 },
            _ => Health::Ready,
        },
        in_flight: (at % 7) as u32,
        queue_tokens: at * 311 % 5000,
        pace: Pace {
            ttft_ms: Some(300 + at * 13 % 400),
            prefill: local.then_some(4000),
            decode: Some(40 + (at * 17 % 100) as u32),
            cached: if local { at * 50 } else { 0 },
            unread: at * 111 % 3000,
            waiting: (at % 3) as u32,
            slots: local.then_some(8),
            overall: local.then_some(900),
        },
        strain: Strain { failing_permille: (at * 31 % 250) as u16, ..Strain::default() },
        weight: 1 + (at % 4) as u32,
    }
}
