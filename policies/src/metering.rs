//! What tokens cost, what they may cost at worst, and how many an amount affords. Integers only.

use tollkeeper_config::{Billable, Price, Rates, Usd};
use tollkeeper_protocol::usage::{ServiceTier, Usage};

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
    /// Prompt tokens that were not cached, sound included.
    pub input: u128,
    /// Prompt tokens read from the provider's cache.
    pub cached_input: u128,
    /// Prompt tokens written to the provider's cache.
    pub cache_write: u128,
    /// Generated tokens, sound included.
    pub output: u128,
}

impl Pieces {
    /// The parts of what `usage` costs at these rates. Cached and written tokens beyond the input are counted as far as
    /// the input goes.
    pub(crate) fn of(rates: &Rates, usage: &Usage) -> Self {
        let parts = rates.parts(usage).map(|(tokens, rate)| u128::from(tokens) * u128::from(rate.0));
        let [plain, heard, cached_input, minutes, hour, text, spoken] = parts;
        Self {
            input: plain.saturating_add(heard),
            cached_input,
            cache_write: minutes.saturating_add(hour),
            output: text.saturating_add(spoken),
        }
    }

    /// The sum in pico-dollars.
    fn pico(&self) -> u128 {
        [self.cached_input, self.cache_write, self.output].into_iter().fold(self.input, u128::saturating_add)
    }

    /// The cost: the sum, rounded up once to nano-dollars; saturates instead of overflowing.
    pub fn total(&self) -> Usd {
        let pico = self.pico();
        Usd(i64::try_from(pico.div_ceil(1000)).unwrap_or(i64::MAX))
    }
}

/// The dearest way in which so many tokens can be billed: by the dearest tariff that may apply, the whole prompt and the
/// whole answer at the dearest of their rates. A lease is the charge of this usage, so that only more tokens than were
/// leased, never another kind of token, can cost more than the lease.
pub(crate) fn worst_case(price: &Price, billable: &Billable, input: u64, output: u64) -> Usage {
    let worst = tiers(price, billable).map(|tier| worst_of(price, billable, tier, (input, output)));
    // Of equals the first, which is the ordinary one.
    let dearest = worst.reduce(|best, next| if price.charge(&next) > price.charge(&best) { next } else { best });
    dearest.unwrap_or(Usage { input, output, ..Usage::default() })
}

/// The tariffs by which a request may be billed, the ordinary one first.
fn tiers<'a>(price: &'a Price, billable: &'a Billable) -> impl Iterator<Item = ServiceTier> + 'a {
    let others = price.tiers.iter().map(|known| known.tier);
    let may = move |tier: &ServiceTier| billable.tier.is_none_or(|asked| asked == *tier);
    std::iter::once(ServiceTier::Standard).chain(others.filter(may))
}

fn worst_of(price: &Price, billable: &Billable, tier: ServiceTier, (input, output): (u64, u64)) -> Usage {
    let none = Usage { input, output, tier, ..Usage::default() };
    let ways = [
        (true, none),
        (true, Usage { cached_input: input, ..none }),
        (true, Usage { cache_write: input, ..none }),
        (billable.long_cache, Usage { cache_write: input, cache_write_1h: input, ..none }),
        (billable.audio_input, Usage { audio_input: input, ..none }),
    ];
    let rates = price.rates_of(&none);
    let prompt = |usage: &Usage| Pieces::of(rates, &Usage { output: 0, ..*usage }).pico();
    let ways = ways.into_iter().filter(|(may, _)| *may).map(|(_, usage)| usage);
    let mut worst = ways.reduce(|best, next| if prompt(&next) > prompt(&best) { next } else { best }).unwrap_or(none);
    if billable.audio_output && rates.audio_output.is_some_and(|rate| rate > rates.output) {
        worst.audio_output = output;
    }
    worst
}

/// Most output tokens whose worst case, with this input, costs at most `room` nano-dollars; `None` when even the input
/// does not fit.
pub(crate) fn affordable(price: &Price, billable: &Billable, input: u64, room: i128) -> Option<u64> {
    let room = u128::try_from(room).ok()?.saturating_mul(1000);
    let by_tier = tiers(price, billable).map(|tier| {
        let one = worst_of(price, billable, tier, (input, 1));
        let rates = price.rates_of(&one);
        let each = if one.audio_output > 0 { rates.audio_output.unwrap_or(rates.output) } else { rates.output };
        let prompt = Pieces::of(rates, &Usage { output: 0, audio_output: 0, ..one }).pico();
        // Rounding up: a cost of p pico-dollars fits into r nano-dollars exactly when p <= 1000 r.
        let left = room.checked_sub(prompt)?;
        let tokens = left.checked_div(u128::from(each.0)).unwrap_or(u128::MAX);
        Some(u64::try_from(tokens).unwrap_or(u64::MAX))
    });
    // `None` is less than any number: a tariff whose input does not fit decides.
    by_tier.min().flatten()
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
        cache_write_1h: usage.cache_write_1h.min(most),
        audio_input: usage.audio_input.min(most),
        audio_output: usage.audio_output.min(most),
        tier: usage.tier,
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
            ..Rates::default()
        };
        Price { base: rates, above: Vec::new(), tiers: Vec::new(), source: PriceSource::File }
    }

    fn rates() -> impl Strategy<Value = Rates> {
        let rate = || prop_oneof![Just(0), 1..2_000_u64, 1..100_000_000_u64].prop_map(PicoUsd);
        let maybe = || proptest::option::of(rate());
        (rate(), rate(), rate(), rate(), maybe(), maybe(), maybe()).prop_map(
            |(input, cached_input, cache_write, output, cache_write_1h, audio_input, audio_output)| Rates {
                input,
                cached_input,
                cache_write,
                output,
                cache_write_1h,
                audio_input,
                audio_output,
            },
        )
    }

    fn tier() -> impl Strategy<Value = ServiceTier> {
        proptest::sample::select(&ServiceTier::ALL)
    }

    fn prices() -> impl Strategy<Value = Price> {
        let above = || proptest::collection::vec(rates().prop_map(|rates| (1_000_000, rates)), 0..2);
        let others = proptest::sample::select(&ServiceTier::ALL[1..]);
        let tier = (others, proptest::option::of(rates()), above());
        let tier = tier.prop_map(|(tier, base, above)| tollkeeper_config::TierRates { tier, base, above });
        (rates(), above(), proptest::collection::vec(tier, 0..3)).prop_map(|(base, above, tiers)| Price {
            base,
            above,
            tiers,
            source: PriceSource::File,
        })
    }

    fn usages() -> impl Strategy<Value = Usage> {
        let tokens = || (0..5_000_000_u64, 0..2_000_000_u64, 0..2_000_000_u64);
        (tokens(), tokens(), 0..2_000_000_u64, tier()).prop_map(
            |((input, cached_input, cache_write), (output, audio_input, audio_output), cache_write_1h, tier)| Usage {
                input,
                cached_input,
                cache_write,
                output,
                reasoning: 0,
                cache_write_1h,
                audio_input,
                audio_output,
                tier,
            },
        )
    }

    fn billables() -> impl Strategy<Value = Billable> {
        (any::<[bool; 3]>(), proptest::option::of(tier())).prop_map(
            |([audio_input, audio_output, long_cache], tier)| Billable { audio_input, audio_output, long_cache, tier },
        )
    }

    proptest! {
        #[test]
        fn the_pieces_add_up_to_the_charge(price in prices(), usage in usages()) {
            prop_assert_eq!(Pieces::of(price.rates_of(&usage), &usage).total(), price.charge(&usage));
        }

        #[test]
        fn no_kind_of_token_and_no_tariff_costs_more_than_the_worst_case(
            price in prices(), mut usage in usages(), billable in billables(),
        ) {
            // What the request rules out does not come.
            usage.audio_input *= u64::from(billable.audio_input);
            usage.audio_output *= u64::from(billable.audio_output);
            usage.cache_write_1h *= u64::from(billable.long_cache);
            if billable.tier.is_some_and(|tier| tier != usage.tier) {
                usage.tier = ServiceTier::Standard;
            }
            let worst = worst_case(&price, &billable, usage.input, usage.output);
            prop_assert!(price.charge(&usage) <= price.charge(&worst));
        }

        #[test]
        fn what_is_affordable_is_exact(
            price in prices(), billable in billables(), input in 0..2_000_000_u64, room in -10..1_000_000_000_i64,
        ) {
            let cost = |output| price.charge(&worst_case(&price, &billable, input, output)).0;
            match affordable(&price, &billable, input, room.into()) {
                None => prop_assert!(cost(0) > room),
                Some(u64::MAX) => prop_assert!(cost(u64::MAX) <= room),
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
        assert_eq!(affordable(&dear, &Billable::default(), u64::MAX, i64::MAX.into()), None);
    }
}
