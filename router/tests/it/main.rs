//! The router from outside: what requests need, and which plans come of it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod asks;
mod difficulty;
mod invariants;
mod learning;
mod scenarios;
mod strategies;
mod swap_files;
mod swaps;
mod tasks;

use std::sync::Arc;
use tollkeeper_config::{Abilities, BackendId, ModelFacts, PicoUsd, Price, PriceSource, Rates};
use tollkeeper_protocol::Operation;
use tollkeeper_router::{Ask, Candidate, Health, Pace, Strain};

/// A chat of so many input tokens that needs nothing special.
fn chat(input_tokens: u64, max_output: Option<u64>) -> Ask {
    Ask {
        operation: Operation::Chat,
        input_tokens,
        longest_input: input_tokens,
        answers: 1,
        max_output,
        usual_output: None,
        tools: false,
        vision: false,
        images: 0,
        unread: 0,
        json_schema: false,
        stream: false,
    }
}

/// Prices of input and output in micro-dollars per thousand tokens (thousands of pico-dollars a token).
fn price(input: u64, output: u64) -> Price {
    let rates = Rates {
        input: PicoUsd(input * 1000),
        cached_input: PicoUsd(input * 100),
        cache_write: PicoUsd(input * 1000),
        output: PicoUsd(output * 1000),
        ..Rates::default()
    };
    Price { base: rates, above: Vec::new(), tiers: Vec::new(), source: PriceSource::File }
}

/// A ready backend that can do everything.
fn candidate(name: &str, tier: u8, price: Price) -> Candidate {
    let facts = ModelFacts { price, context: None, max_output: None, abilities: Abilities::ALL };
    let id = BackendId::Remote { provider: "p".into(), model: name.into() };
    Candidate {
        id,
        tier,
        facts: Arc::new(facts),
        health: Health::Ready,
        in_flight: 0,
        queue_tokens: 0,
        pace: Pace::default(),
        strain: Strain::default(),
        weight: 1,
    }
}
