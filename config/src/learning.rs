//! The checked settings of what routes learn.

use std::time::Duration;

/// How routes learn from their outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Learning {
    /// The share of answers that are to be good, in thousandths (default 800).
    pub wanted: u16,
    /// The least share of requests that begin elsewhere than is believed to be right, in thousandths (default 20).
    pub explore: u16,
    /// The largest such share, in thousandths (default 100).
    pub explore_most: u16,
    /// How many tiers from the one that the difficulty says a request may begin (default 1).
    pub reach: u8,
    /// How long until evidence counts half (default 14 days).
    pub half_life: Duration,
}

impl Default for Learning {
    fn default() -> Self {
        Self { wanted: 800, explore: 20, explore_most: 100, reach: 1, half_life: Duration::from_secs(14 * 86_400) }
    }
}
