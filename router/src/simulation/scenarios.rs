//! Kinds of traces, made of a seed: how requests of agents, people and nightly jobs come in.
//!
//! What was tried out was tried with [`TUNING`] seeds and is judged by [`EVALUATION`] seeds.

use super::dice::Row;
use super::trace::Request;
use std::ops::Range;

/// Seeds to try things out with.
pub const TUNING: Range<u64> = 0..10;
/// Seeds to judge by.
pub const EVALUATION: Range<u64> = 1000..1010;
/// The seed of the traces in `tests/scenarios/routing/`.
pub const SHIPPED: u64 = 2000;

/// Difficulties (thousandths) from which a pyramid begins a tier higher in these traces.
pub const ESCALATE_AT: &[u16] = &[400, 700];

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;

/// A kind of trace.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name, and that of its file.
    pub name: &'static str,
    /// What it is like.
    pub about: &'static str,
    make: fn(&mut Row) -> Vec<Request>,
}

impl Scenario {
    /// The trace of a seed.
    pub fn trace(&self, seed: u64) -> Vec<Request> {
        let mut trace = (self.make)(&mut Row::new(seed));
        trace.sort_by_key(|request| request.at_ms);
        trace
    }
}

/// All kinds.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "agents", about: "five agents at work for half an hour, conversations that grow", make: agents },
    Scenario { name: "burst", about: "a little chat, and twelve agents that begin at once, three times", make: burst },
    Scenario { name: "prefix", about: "long prompts of three crowds that begin alike, short answers", make: prefix },
    Scenario {
        name: "night",
        about: "a batch that comes at once and may take its time, and a few people",
        make: night,
    },
    Scenario { name: "mixed", about: "chat of all kinds, and nothing said about tiers", make: mixed },
];

/// What tier a request needs, and how hard it looks: right more often than not.
fn needs(row: &mut Row, hard: u16, hardest: u16) -> (u8, f32) {
    let needs = u8::from(row.happens(hard)) + u8::from(row.happens(hardest));
    let looks = match needs {
        0 => 0.1..0.5,
        1 => 0.3..0.8,
        _ => 0.55..1.0,
    };
    let even = row.draw().even() as f32;
    (needs, looks.start + (looks.end - looks.start) * even)
}

/// A request whose type of task says what tier it needs.
fn known(row: &mut Row, at_ms: u64, task: &str, input: u64, output: u64) -> Request {
    let (needs_tier, difficulty) = needs(row, 200, 60);
    Request {
        at_ms,
        task: task.to_owned(),
        input,
        session: row.within(1 << 20..1 << 30),
        shared: 0,
        output,
        max_output: None,
        difficulty: (difficulty * 1000.0).round() / 1000.0,
        needs_tier,
        min_tier: Some(needs_tier).filter(|tier| *tier > 0),
        deadline_ms: None,
    }
}

/// Turns of one agent: each prompt is the one before, its answer, and what a tool said.
fn conversation(row: &mut Row, session: u64, begin: u64, end: u64, trace: &mut Vec<Request>) {
    let mut at = begin;
    let (mut input, mut shared) = (row.around(1500, 0.4), 0);
    while at < end {
        let output = row.around(180, 0.7);
        let mut turn = known(row, at, "code", input, output);
        (turn.session, turn.shared, turn.deadline_ms) = (session, shared, Some(30 * SECOND));
        trace.push(turn);
        shared = input + output;
        input = shared + row.around(350, 0.8);
        if input > 16_000 {
            (input, shared) = (row.around(1500, 0.4), 0);
        }
        // The next turn comes when this one may have been answered and a tool has run.
        at += 4 * SECOND + row.gap(8 * SECOND);
    }
}

fn agents(row: &mut Row) -> Vec<Request> {
    let mut trace = Vec::new();
    for agent in 0..5 {
        let begin = row.gap(10 * SECOND);
        conversation(row, agent, begin, 30 * MINUTE, &mut trace);
    }
    trace
}

/// People who chat, so long after each other in the mean.
fn chat(row: &mut Row, span: Range<u64>, mean: u64, trace: &mut Vec<Request>) {
    let mut at = span.start + row.gap(mean);
    while at < span.end {
        let (input, output) = (row.around(600, 0.9), row.around(250, 0.7));
        let mut request = known(row, at, "chat", input, output);
        request.deadline_ms = Some(20 * SECOND);
        trace.push(request);
        at += row.gap(mean);
    }
}

fn burst(row: &mut Row) -> Vec<Request> {
    let mut trace = Vec::new();
    chat(row, 0..20 * MINUTE, 8 * SECOND, &mut trace);
    for (crowd, begin) in [3, 9, 15].into_iter().enumerate() {
        for agent in 0..12 {
            let at = begin * MINUTE + row.within(0..800);
            conversation(row, crowd as u64 * 12 + agent, at, begin * MINUTE + 75 * SECOND, &mut trace);
        }
    }
    trace
}

fn prefix(row: &mut Row) -> Vec<Request> {
    let mut trace = Vec::new();
    let crowds = [0, 1, 2].map(|crowd| (crowd, row.within(5000..9000)));
    let mut at = 0;
    while at < 20 * MINUTE {
        let (session, shared) = crowds[row.within(0..3) as usize];
        let (more, output) = (row.around(800, 0.6), row.around(80, 0.5));
        let mut request = known(row, at, "extraction", shared + more, output);
        (request.session, request.shared, request.max_output) = (session, shared, Some(256));
        request.deadline_ms = Some(15 * SECOND);
        trace.push(request);
        at += row.gap(4 * SECOND);
    }
    trace
}

fn night(row: &mut Row) -> Vec<Request> {
    let mut trace = Vec::new();
    chat(row, 0..30 * MINUTE, 30 * SECOND, &mut trace);
    let mut at = MINUTE;
    for _ in 0..300 {
        let (input, output) = if row.happens(500) {
            (row.around(6000, 0.4), row.around(60, 0.5))
        } else {
            (row.around(500, 0.4), row.around(900, 0.4))
        };
        let mut request = known(row, at, "summarise", input, output);
        request.max_output = Some(if output < 300 { 256 } else { 2048 });
        trace.push(request);
        at += row.gap(2 * SECOND);
    }
    trace
}

fn mixed(row: &mut Row) -> Vec<Request> {
    let mut trace = Vec::new();
    chat(row, 0..30 * MINUTE, 5 * SECOND, &mut trace);
    for request in &mut trace {
        request.min_tier = None;
    }
    trace
}
