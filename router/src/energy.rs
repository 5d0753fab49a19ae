//! What a local token costs: the electricity and the hardware of the time that it takes, and its share of the model's swaps.
//!
//! Integers only. Everything is rounded up, so that computing which costs something is never free.

use tollkeeper_config::{Energy, PicoUsd, Price, PriceSource, Rates};

/// Tokens of a prompt that a model reads in 1000 seconds, as long as nobody has measured it.
pub const UNMEASURED_PREFILL: u64 = 100_000;
/// Tokens that it writes in 1000 seconds, as long as nobody has measured it.
pub const UNMEASURED_DECODE: u64 = 10_000;
/// At least so many tokens share what swaps have cost: else the first ones after a start would seem to cost dollars.
const SHARING: u64 = 1_000_000;

/// How a model works, as measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Tokens of prompts read in 1000 seconds.
    pub prefill: Option<u64>,
    /// Tokens written in 1000 seconds, all answers at once together.
    pub decode: Option<u64>,
    /// Milliseconds that its swaps have taken so far.
    pub swapping_ms: u64,
    /// Tokens that it has read and written so far.
    pub tokens: u64,
}

/// What a second of computing costs at so many watts, in pico-dollars.
pub fn per_second(energy: &Energy, watts: u64) -> u128 {
    let nano = |usd: tollkeeper_config::Usd| u128::from(usd.0.max(0).cast_unsigned());
    // Nano-dollars a kilowatt-hour are thousands of pico-dollars per 3,600,000 joules.
    let electricity = (nano(energy.usd_per_kwh) * u128::from(watts)).div_ceil(3600);
    let hardware = (nano(energy.hardware) * 1000).div_ceil(u128::from(energy.hardware_seconds.max(1)));
    electricity + hardware
}

/// The price of a model's tokens. What it has in memory already of a prompt costs nothing.
pub fn price(energy: &Energy, watts: u64, work: &Work) -> Price {
    let second = per_second(energy, watts);
    let swaps = swap_share(second, work);
    let token = |measured: Option<u64>, unmeasured: u64| {
        let rate = u128::from(measured.unwrap_or(unmeasured).max(1));
        PicoUsd(u64::try_from((second * 1000).div_ceil(rate) + swaps).unwrap_or(u64::MAX))
    };
    let input = token(work.prefill, UNMEASURED_PREFILL);
    let base = Rates { input, cache_write: input, output: token(work.decode, UNMEASURED_DECODE), ..Rates::default() };
    Price { base, above: Vec::new(), tiers: Vec::new(), source: PriceSource::Energy }
}

/// A token's share of the model's swaps, in pico-dollars, at so many a second.
fn swap_share(second: u128, work: &Work) -> u128 {
    (second * u128::from(work.swapping_ms)).div_ceil(1000 * u128::from(work.tokens.max(SHARING)))
}

/// Tokens that a model has to write in 1000 seconds, all answers together, to be as cheap as so much for a token elsewhere; `None` where no
/// speed is enough, since that is free or no more than the token's share of the model's swaps.
pub fn break_even(energy: &Energy, watts: u64, work: &Work, elsewhere: PicoUsd) -> Option<u64> {
    let second = per_second(energy, watts);
    let left = u128::from(elsewhere.0).checked_sub(swap_share(second, work)).filter(|left| *left > 0)?;
    Some(u64::try_from((second * 1000).div_ceil(left)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tollkeeper_config::Usd;

    const CARD: Energy = Energy {
        usd_per_kwh: Usd(300_000_000),
        watts: None,
        hardware: Usd(1_600_000_000_000),
        hardware_seconds: 126_230_400,
    };

    #[test]
    fn a_known_card_costs_what_the_bill_says() {
        let electricity = Energy { hardware: Usd::ZERO, ..CARD };
        // 350 W for an hour are 0.35 kWh: 10.5 cents. In an hour, 50 tokens a second are 180,000: 0.583 dollars a million.
        assert_eq!(per_second(&electricity, 350) * 3600 / 1_000_000, 105_000);
        let work = Work { decode: Some(50_000), prefill: Some(2_000_000), ..Work::default() };
        let Price { base, .. } = price(&electricity, 350, &work);
        assert_eq!((base.output, base.input, base.cached_input), (PicoUsd(583_334), PicoUsd(14_584), PicoUsd(0)));
        // 1600 dollars in four years are 12,675,235.5 pico-dollars a second, rounded up.
        assert_eq!(per_second(&CARD, 0), 12_675_236);
        assert_eq!(break_even(&electricity, 350, &work, PicoUsd(583_334)), Some(50_000));
        assert_eq!(break_even(&electricity, 350, &work, PicoUsd(0)), None);
    }

    #[test]
    fn a_swap_is_shared_by_the_tokens_there_were() {
        let work = Work { decode: Some(50_000), swapping_ms: 20_000, tokens: 2_000_000, ..Work::default() };
        let (with, without) = (price(&CARD, 350, &work), price(&CARD, 350, &Work { swapping_ms: 0, ..work }));
        let share = with.base.output.0 - without.base.output.0;
        assert_eq!(u128::from(share), (per_second(&CARD, 350) * 20).div_ceil(2_000_000));
        assert_eq!(break_even(&CARD, 350, &work, PicoUsd(share)), None, "not at any speed");
    }

    proptest! {
        #[test]
        fn computing_is_never_free_and_never_cheaper_by_drawing_more(
            watts in 1..5000u64, more in 0..5000u64, decode in 1..10_000_000u64, cents in 1..100i64, swapping_ms in 0..1_000_000_000u64,
            slower in 1..1000u64,
        ) {
            let energy = Energy { usd_per_kwh: Usd(cents * 10_000_000), ..CARD };
            let work = Work { decode: Some(decode), swapping_ms, ..Work::default() };
            let low = price(&energy, watts, &work);
            prop_assert!(low.base.output.0 > 0 && low.base.input.0 > 0);
            prop_assert!(price(&energy, watts + more, &work).base.output >= low.base.output);
            let even = break_even(&energy, watts, &work, low.base.output).unwrap();
            prop_assert!(even <= decode, "who is as fast costs no more");
            let at = |rate| price(&energy, watts, &Work { decode: Some(rate), ..work }).base.output;
            prop_assert!(at(even) <= low.base.output, "from then on it costs no more");
            let before = even.saturating_sub(slower).max(1);
            prop_assert!(before == even || at(before) > low.base.output, "and not before");
        }
    }
}
