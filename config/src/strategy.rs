//! How targets are put in order, and what holds for tasks of a type.

use crate::settings::BackendId;
use crate::units::Usd;
use std::sync::Arc;

/// How an alias orders its targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// As written: fallbacks.
    Ordered,
    /// Bottom-up by tier, then as written.
    Pyramid,
    /// By estimated cost.
    Cheapest,
    /// By estimated time to the end of the answer.
    Fastest,
    /// By cost and time, half each.
    Balanced,
    /// Where the beginning of the prompt is known already, else always the same for the same conversation.
    Sticky,
    /// By what waits there.
    LeastBusy,
    /// By lot, in proportion to the targets' weights.
    Weighted,
}

impl Strategy {
    /// All of them, with their names.
    pub const NAMES: [(&'static str, Self); 8] = [
        ("ordered", Self::Ordered),
        ("pyramid", Self::Pyramid),
        ("cheapest", Self::Cheapest),
        ("fastest", Self::Fastest),
        ("balanced", Self::Balanced),
        ("sticky", Self::Sticky),
        ("least_busy", Self::LeastBusy),
        ("weighted", Self::Weighted),
    ];

    /// The name in configuration files, headers and answers.
    pub fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

/// When a local answer is good enough to be shown, and is not given up for the next target above.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cascade {
    /// Tokens of a streamed answer that are held back before the client sees any.
    pub hold_tokens: u32,
    /// In thousandths: the least probability of being good.
    pub min_confidence: u16,
    /// What an answer must not be.
    pub checks: Vec<Flaw>,
}

/// What can be wrong with an answer as anybody can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// It is not the JSON that was asked for.
    Form,
    /// It calls a tool that there is none of, or with arguments that do not fit.
    Calls,
    /// It refuses, or says that it does not know.
    Refusal,
    /// There is nothing in it.
    Empty,
}

impl Flaw {
    /// The name in configuration files, headers and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Form => "form",
            Self::Calls => "calls",
            Self::Refusal => "refusal",
            Self::Empty => "empty",
        }
    }
}

/// What holds for tasks of one type.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRule {
    /// The lowest tier that answers.
    pub min_tier: Option<u8>,
    /// The highest.
    pub max_tier: Option<u8>,
    /// The most that an answer may be expected to cost.
    pub max_cost: Option<Usd>,
    /// How targets are ordered, instead of the alias's way.
    pub strategy: Option<Strategy>,
    /// Who answers, in this order, and nobody else; without it every target of an alias may.
    pub chain: Option<Arc<[Link]>>,
}

/// A backend that may answer tasks of a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Which one.
    pub id: BackendId,
    /// The most that an answer by it may be expected to cost.
    pub max_cost: Option<Usd>,
}
