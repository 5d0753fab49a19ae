//! How targets are put in order, and what holds for tasks of a type.

use crate::units::Usd;

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
}
