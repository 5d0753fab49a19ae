//! Token counts of one answer, by the types that are priced differently.

use serde::{Deserialize, Serialize};

/// Tokens of one answer. `cached_input`, `cache_write` and `audio_input` are parts of `input`, `cache_write_1h` is one of
/// `cache_write`; `reasoning` and `audio_output` are parts of `output` (OpenAI's way of counting; other dialects are
/// converted to it).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// All prompt tokens, cached ones included.
    pub input: u64,
    /// Prompt tokens read from a prefix cache.
    pub cached_input: u64,
    /// Prompt tokens written to a prefix cache at a price of their own.
    pub cache_write: u64,
    /// All generated tokens, reasoning included.
    pub output: u64,
    /// Generated tokens that were reasoning.
    pub reasoning: u64,
    /// Of the tokens written to a prefix cache, those to be kept for an hour rather than minutes.
    pub cache_write_1h: u64,
    /// Prompt tokens that were sound.
    pub audio_input: u64,
    /// Generated tokens that were sound.
    pub audio_output: u64,
    /// The tariff by which it is billed.
    pub tier: ServiceTier,
}

/// A tariff: how soon a provider answers, and at what price.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceTier {
    /// The ordinary one.
    #[default]
    Standard,
    /// When there is time: cheaper.
    Flex,
    /// Before others: dearer.
    Priority,
    /// In batches, within a day: cheaper.
    Batch,
}

impl ServiceTier {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Standard, Self::Flex, Self::Priority, Self::Batch];

    /// The name in the ledger and the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Flex => "flex",
            Self::Priority => "priority",
            Self::Batch => "batch",
        }
    }

    /// The tariff that a provider's answer names; the ordinary one for `default`, `on_demand` and whatever else there is.
    pub fn from_name(name: &str) -> Self {
        Self::ALL.into_iter().find(|tier| tier.name() == name).unwrap_or_default()
    }
}
