//! Model facts and prices by `provider/model`.

use crate::units::{PicoUsd, Usd};
use std::collections::HashMap;
use std::sync::Arc;
use tollkeeper_protocol::usage::Usage;

/// Model facts by backend.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Keyed by the backend as it is displayed: a local model's name, or `provider/model` of a configured provider.
    pub models: HashMap<String, Arc<ModelFacts>>,
    /// The date of the built-in catalogue, ISO; recorded with each charge.
    pub version: String,
}

/// What is known of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFacts {
    /// Its price.
    pub price: Price,
    /// Most tokens of prompt (and answer, for models that share it).
    pub context: Option<u64>,
    /// Most tokens of an answer.
    pub max_output: Option<u64>,
    /// What it can do.
    pub abilities: Abilities,
}

/// What a model can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Chat completions.
    pub chat: bool,
    /// Text completions.
    pub completion: bool,
    /// Embeddings.
    pub embeddings: bool,
    /// Tool calls.
    pub tools: bool,
    /// JSON by schema.
    pub json_schema: bool,
    /// Images in the prompt.
    pub vision: bool,
    /// Reasoning.
    pub reasoning: bool,
}

/// The price of a model's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    /// Rates that hold below every threshold of `above`.
    pub base: Rates,
    /// Rates for a whole request whose input exceeds so many tokens, by ascending threshold.
    pub above: Vec<(u64, Rates)>,
    /// Where the price comes from.
    pub source: PriceSource,
}

/// Where a price comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PriceSource {
    /// The built-in catalogue.
    Catalog,
    /// The configuration file.
    File,
    /// Said to be free (`price = "free"`, or a local model without a price).
    Free,
}

/// Prices by token type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Prompt tokens that were not cached.
    pub input: PicoUsd,
    /// Prompt tokens read from the provider's cache.
    pub cached_input: PicoUsd,
    /// Prompt tokens written to the provider's cache.
    pub cache_write: PicoUsd,
    /// Generated tokens.
    pub output: PicoUsd,
}

impl Price {
    /// A price of nothing, said on purpose.
    pub fn free() -> Self {
        Self { base: Rates::default(), above: Vec::new(), source: PriceSource::Free }
    }

    /// The rates for a request with so many input tokens.
    pub fn rates(&self, input_tokens: u64) -> &Rates {
        self.above.iter().rev().find(|(threshold, _)| input_tokens > *threshold).map_or(&self.base, |(_, rates)| rates)
    }

    /// What these tokens cost: exact in pico-dollars, rounded up once to nano-dollars; saturates instead of overflowing.
    pub fn charge(&self, usage: &Usage) -> Usd {
        let rates = self.rates(usage.input);
        let cached = usage.cached_input.min(usage.input);
        let written = usage.cache_write.min(usage.input - cached);
        let plain = usage.input - cached - written;
        let pico = [
            (plain, rates.input),
            (cached, rates.cached_input),
            (written, rates.cache_write),
            (usage.output, rates.output),
        ]
        .iter()
        .map(|(tokens, price)| u128::from(*tokens) * u128::from(price.0))
        .fold(0u128, u128::saturating_add);
        Usd(i64::try_from(pico.div_ceil(1000)).unwrap_or(i64::MAX))
    }
}
