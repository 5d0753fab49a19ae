//! What tokens cost, what they may cost at worst, and how many an amount affords. Integers only.

use tollkeeper_config::{Price, Rates, Usd};
use tollkeeper_protocol::usage::Usage;

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

impl Pieces {
    /// The parts of what `usage` costs at these rates. Cached and written tokens beyond the input are counted as far as
    /// the input goes.
    pub(crate) fn of(rates: &Rates, usage: &Usage) -> Self {
        let cached = usage.cached_input.min(usage.input);
        let written = usage.cache_write.min(usage.input - cached);
        let cost = |tokens: u64, rate: tollkeeper_config::PicoUsd| u128::from(tokens) * u128::from(rate.0);
        Self {
            input: cost(usage.input - cached - written, rates.input),
            cached_input: cost(cached, rates.cached_input),
            cache_write: cost(written, rates.cache_write),
            output: cost(usage.output, rates.output),
        }
    }

    /// The cost: the sum, rounded up once to nano-dollars; saturates instead of overflowing.
    pub fn total(&self) -> Usd {
        let pico =
            [self.cached_input, self.cache_write, self.output].into_iter().fold(self.input, u128::saturating_add);
        Usd(i64::try_from(pico.div_ceil(1000)).unwrap_or(i64::MAX))
    }
}

/// The dearest way in which so many tokens can be billed: the whole prompt at the dearest of the rates that may apply
/// to it. A lease is the charge of this usage, so that only more tokens than were leased, never another kind of token,
/// can cost more than the lease.
pub(crate) fn worst_case(price: &Price, input: u64, output: u64) -> Usage {
    let rates = price.rates(input);
    let mut usage = Usage { input, output, ..Usage::default() };
    if rates.cache_write > rates.input.max(rates.cached_input) {
        usage.cache_write = input;
    } else if rates.cached_input > rates.input {
        usage.cached_input = input;
    }
    usage
}

/// Most output tokens whose worst case, with this input, costs at most `room` nano-dollars; `None` when even the input
/// does not fit.
pub(crate) fn affordable(price: &Price, input: u64, room: i128) -> Option<u64> {
    let rates = price.rates(input);
    let prompt = Pieces::of(rates, &worst_case(price, input, 0));
    let prompt = prompt.input + prompt.cached_input + prompt.cache_write;
    // Rounding up: a cost of p pico-dollars fits into r nano-dollars exactly when p <= 1000 r.
    let left = u128::try_from(room).ok()?.saturating_mul(1000).checked_sub(prompt)?;
    let tokens = left.checked_div(u128::from(rates.output.0)).unwrap_or(u128::MAX);
    Some(u64::try_from(tokens).unwrap_or(u64::MAX))
}

/// A usage whose counts a ledger's signed columns can hold: a provider's nonsense must not become an error of ours.
pub(crate) fn recordable(usage: &Usage) -> Usage {
    let most = i64::MAX.unsigned_abs();
    Usage {
        input: usage.input.min(most),
        cached_input: usage.cached_input.min(most),
        cache_write: usage.cache_write.min(most),
        output: usage.output.min(most),
        reasoning: usage.reasoning.min(most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tollkeeper_config::{PicoUsd, PriceSource};

    fn price(input: u64, cached_input: u64, cache_write: u64, output: u64) -> Price {
        let rates = Rates {
            input: PicoUsd(input),
            cached_input: PicoUsd(cached_input),
            cache_write: PicoUsd(cache_write),
            output: PicoUsd(output),
        };
        Price { base: rates, above: Vec::new(), source: PriceSource::File }
    }

    fn prices() -> impl Strategy<Value = Price> {
        let rate = || prop_oneof![Just(0), 1..2_000_u64, 1..100_000_000_u64];
        (rate(), rate(), rate(), rate()).prop_map(|(a, b, c, d)| price(a, b, c, d))
    }

    proptest! {
        #[test]
        fn the_pieces_add_up_to_the_charge(price in prices(), input: u32, cached: u32, written: u32, output: u32) {
            let usage = Usage {
                input: input.into(), cached_input: cached.into(), cache_write: written.into(), output: output.into(), reasoning: 0,
            };
            prop_assert_eq!(Pieces::of(price.rates(usage.input), &usage).total(), price.charge(&usage));
        }

        #[test]
        fn no_kind_of_token_costs_more_than_the_worst_case(price in prices(), input: u32, cached: u32, written: u32, output: u32) {
            let usage = Usage {
                input: input.into(), cached_input: cached.into(), cache_write: written.into(), output: output.into(), reasoning: 0,
            };
            prop_assert!(price.charge(&usage) <= price.charge(&worst_case(&price, usage.input, usage.output)));
        }

        #[test]
        fn what_is_affordable_is_exact(price in prices(), input in 0..100_000_u64, room in -10..1_000_000_000_i64) {
            let cost = |output| price.charge(&worst_case(&price, input, output)).0;
            match affordable(&price, input, room.into()) {
                None => prop_assert!(cost(0) > room),
                Some(u64::MAX) => prop_assert!(price.base.output.0 == 0 && cost(0) <= room),
                Some(tokens) => prop_assert!(cost(tokens) <= room && cost(tokens + 1) > room),
            }
        }
    }

    #[test]
    fn absurd_counts_saturate() {
        let dear = price(u64::MAX, 0, 0, u64::MAX);
        let usage = recordable(&Usage { input: u64::MAX, output: u64::MAX, ..Usage::default() });
        assert_eq!(usage.input, i64::MAX.unsigned_abs());
        assert_eq!(Pieces::of(&dear.base, &usage).total(), Usd(i64::MAX));
        assert_eq!(affordable(&dear, u64::MAX, i64::MAX.into()), None);
    }
}
