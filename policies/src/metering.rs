//! What tokens cost.

use tollkeeper_config::Usd;

/// What one attempt cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charge {
    /// The cost, rounded up once to nano-dollars.
    pub cost: Usd,
    /// The part of the cost above what was leased: the backend used more than was covered.
    pub overrun: Usd,
    /// What the agent's tightest budget can still lease; `None` without budgets.
    pub remaining: Option<Usd>,
    /// What the cost is made of, exact.
    pub pieces: Pieces,
}

/// The parts of a cost in pico-dollars; their sum, rounded up to nano-dollars, is the cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pieces {
    /// Prompt tokens that were not cached.
    pub input: u128,
    /// Prompt tokens read from the provider's cache.
    pub cached_input: u128,
    /// Prompt tokens written to the provider's cache.
    pub cache_write: u128,
    /// Generated tokens.
    pub output: u128,
}
