//! What is leased, spent and capped, in all measures at once.

use crate::lease::Spend;
use crate::metering::affordable;
use tollkeeper_config::{Limit, Usd};
use tollkeeper_protocol::usage::Usage;

/// Money, tokens and requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// Nano-dollars.
    pub(crate) nano: i128,
    /// Tokens of prompts and answers.
    pub(crate) tokens: i128,
    /// Attempts.
    pub(crate) requests: i128,
}

impl Amounts {
    pub(crate) const ZERO: Self = Self { nano: 0, tokens: 0, requests: 0 };

    /// What an attempt may cost at worst if it generates so many tokens.
    pub(crate) fn worst(spend: &Spend, output: u64) -> Self {
        let tokens = i128::from(spend.input_tokens) + i128::from(output);
        Self { nano: spend.worst(output).0.into(), tokens, requests: 1 }
    }

    /// What an attempt has cost.
    pub(crate) fn used(cost: Usd, usage: &Usage) -> Self {
        Self { nano: cost.0.into(), tokens: i128::from(usage.input) + i128::from(usage.output), requests: 1 }
    }

    /// Money alone.
    pub(crate) fn usd(amount: Usd) -> Self {
        Self { nano: amount.0.into(), ..Self::ZERO }
    }

    /// Everything but money.
    pub(crate) fn without_usd(self) -> Self {
        Self { nano: 0, ..self }
    }

    /// The part in the measure of a limit.
    pub(crate) fn of(self, limit: Limit) -> i128 {
        match limit {
            Limit::Usd(_) => self.nano,
            Limit::Tokens(_) => self.tokens,
            Limit::Requests(_) => self.requests,
        }
    }
}

impl std::ops::AddAssign for Amounts {
    fn add_assign(&mut self, other: Self) {
        self.nano += other.nano;
        self.tokens += other.tokens;
        self.requests += other.requests;
    }
}

impl std::ops::SubAssign for Amounts {
    fn sub_assign(&mut self, other: Self) {
        self.nano -= other.nano;
        self.tokens -= other.tokens;
        self.requests -= other.requests;
    }
}

impl std::ops::Sub for Amounts {
    type Output = Self;

    fn sub(mut self, other: Self) -> Self {
        self -= other;
        self
    }
}

/// The most output tokens that fit into so much room in a limit's measure; `None` when not even the input does.
pub(crate) fn most_output(spend: &Spend, limit: Limit, room: i128) -> Option<u64> {
    match limit {
        Limit::Usd(_) => affordable(&spend.price, &spend.billable, spend.input_tokens, room),
        Limit::Tokens(_) => {
            let left = u128::try_from(room - i128::from(spend.input_tokens)).ok()?;
            Some(u64::try_from(left).unwrap_or(u64::MAX))
        }
        Limit::Requests(_) => (room >= 1).then_some(u64::MAX),
    }
}
