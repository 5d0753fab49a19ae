//! What an attempt may cost.

use crate::ask::Ask;
use crate::candidate::{Candidate, Health};
use tollkeeper_config::{ModelFacts, Usd};
use tollkeeper_protocol::usage::Usage;

/// Tokens of an answer nobody set a limit to, as a rule.
pub const EXPECTED_OUTPUT: u64 = 512;
/// Most tokens of an answer when neither the client nor the model has a known limit.
pub const UNKNOWN_OUTPUT: u64 = 32_768;

/// What an attempt may cost; `input <= expected <= worst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CostEstimate {
    /// The input alone, nothing cached.
    pub input: Usd,
    /// With answers as they mostly are for whoever asks, else of [`EXPECTED_OUTPUT`] tokens; or as many as may come if those are fewer.
    pub expected: Usd,
    /// With answers as long as they may get, and all input written to the provider's cache where that costs more.
    pub worst: Usd,
}

/// From the request to the first token where nothing is known, in milliseconds.
const UNKNOWN_TTFT_MS: u64 = 1_000;
/// Tokens written in a second where nothing is known.
const UNKNOWN_DECODE: u32 = 50;

/// How long an attempt takes, in milliseconds from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeEstimate {
    /// Until the first token.
    pub ttft_ms: u64,
    /// Until the last of as many tokens as [`CostEstimate::expected`] reckons with.
    pub duration_ms: u64,
}

/// Estimates how long the request takes at a backend: until its model is in memory, what waits there is done and the prompt is read; then
/// until the answer is written. A model that tells how fast it reads is reckoned with; of others the time to the first token is what it was
/// lately.
pub fn time(ask: &Ask, candidate: &Candidate) -> TimeEstimate {
    let pace = &candidate.pace;
    let load = match candidate.health {
        Health::Absent { ready_in_ms } => ready_in_ms,
        Health::Ready | Health::Cooling { .. } | Health::Unavailable(_) => 0,
    };
    let first = match pace.prefill.filter(|rate| *rate > 0) {
        Some(rate) => {
            let unread = pace.unread.saturating_add(ask.input_tokens.saturating_sub(pace.cached));
            turn(ask, candidate).saturating_add(unread.saturating_mul(1000) / u64::from(rate))
        }
        None => pace.ttft_ms.unwrap_or(UNKNOWN_TTFT_MS),
    };
    let ttft_ms = load.saturating_add(first);
    let tokens = if ask.operation.generates() { expected_output(ask, &candidate.facts) } else { 0 };
    let rate = u64::from(pace.decode.filter(|rate| *rate > 0).unwrap_or(UNKNOWN_DECODE));
    TimeEstimate { ttft_ms, duration_ms: ttft_ms.saturating_add(tokens.saturating_mul(1000) / rate) }
}

/// How long until it is the request's turn, in milliseconds: as many of those before it have to end as there are more than slots, each with an
/// equal share of the work that waits, which is done at the rate at which all was done lately.
fn turn(ask: &Ask, candidate: &Candidate) -> u64 {
    let Candidate { pace, in_flight, queue_tokens, .. } = candidate;
    let Some((slots, rate)) = pace.slots.zip(pace.overall.or(pace.decode).filter(|rate| *rate > 0)) else { return 0 };
    let before = in_flight.saturating_add(pace.waiting);
    let to_end = u64::from(before.saturating_add(1).saturating_sub(slots));
    // What has only just come is not counted in tokens yet: it is taken for one like this.
    let least = ask.input_tokens * u64::from(pace.waiting > 0 && *queue_tokens == 0);
    let each = queue_tokens.checked_div(before.into()).unwrap_or(0).max(least);
    to_end.saturating_mul(each).saturating_mul(1000) / u64::from(rate)
}

/// Estimates what the request costs at a model.
pub fn estimate(ask: &Ask, facts: &ModelFacts) -> CostEstimate {
    let most_each = most_output(ask, facts);
    let usage = |output_each: u64, cache_write: u64| Usage {
        input: ask.input_tokens,
        cache_write,
        output: output_each.saturating_mul(ask.answers),
        ..Usage::default()
    };
    let rates = facts.price.rates(ask.input_tokens);
    let written = if rates.cache_write > rates.input { ask.input_tokens } else { 0 };
    CostEstimate {
        input: facts.price.charge(&usage(0, 0)),
        expected: facts.price.charge(&usage(expected_output(ask, facts), 0)),
        worst: facts.price.charge(&usage(most_each, written)),
    }
}

/// Tokens that one answer will probably have.
fn expected_output(ask: &Ask, facts: &ModelFacts) -> u64 {
    most_output(ask, facts).min(ask.usual_output.unwrap_or(EXPECTED_OUTPUT))
}

/// Most tokens of one answer: the least of the client's limit, the model's, and what its context leaves.
fn most_output(ask: &Ask, facts: &ModelFacts) -> u64 {
    let room = facts.context.map(|context| context.saturating_sub(ask.longest_input));
    [ask.max_output_each(), facts.max_output, room].into_iter().flatten().min().unwrap_or(UNKNOWN_OUTPUT)
}
