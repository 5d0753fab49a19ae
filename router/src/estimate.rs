//! What an attempt may cost.

use crate::ask::Ask;
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
    /// With answers of [`EXPECTED_OUTPUT`] tokens, or as many as may come if those are fewer.
    pub expected: Usd,
    /// With answers as long as they may get, and all input written to the provider's cache where that costs more.
    pub worst: Usd,
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
        expected: facts.price.charge(&usage(most_each.min(EXPECTED_OUTPUT), 0)),
        worst: facts.price.charge(&usage(most_each, written)),
    }
}

/// Most tokens of one answer: the least of the client's limit, the model's, and what its context leaves.
fn most_output(ask: &Ask, facts: &ModelFacts) -> u64 {
    let room = facts.context.map(|context| context.saturating_sub(ask.longest_input));
    [ask.max_output_each(), facts.max_output, room].into_iter().flatten().min().unwrap_or(UNKNOWN_OUTPUT)
}
