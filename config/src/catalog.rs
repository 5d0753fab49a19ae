//! Model facts and prices: their types, what tokens cost, and the built-in catalogue.

pub mod builtin;

use crate::units::{PicoUsd, Usd};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tollkeeper_protocol::usage::{ServiceTier, Usage};

/// Model facts by backend.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Keyed by the backend as it is displayed: a local model's name, or `provider/model` of a configured provider.
    pub models: HashMap<String, Arc<ModelFacts>>,
    /// Facts of every other model of a provider, by the provider's name, where a price was said for all of them.
    pub providers: HashMap<String, Arc<ModelFacts>>,
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
    /// Ordering documents by a query.
    pub rerank: bool,
}

/// One thing that a model can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ability {
    Chat,
    Completion,
    Embeddings,
    Tools,
    JsonSchema,
    Vision,
    Reasoning,
    Rerank,
}

impl Ability {
    /// Each ability and its name.
    pub(crate) const NAMES: [(&str, Self); 8] = [
        ("chat", Self::Chat),
        ("completion", Self::Completion),
        ("embeddings", Self::Embeddings),
        ("tools", Self::Tools),
        ("json_schema", Self::JsonSchema),
        ("vision", Self::Vision),
        ("reasoning", Self::Reasoning),
        ("rerank", Self::Rerank),
    ];
}

impl Abilities {
    /// Everything; assumed of models of which nothing is known but the price.
    pub const ALL: Self = Self {
        chat: true,
        completion: true,
        embeddings: true,
        tools: true,
        json_schema: true,
        vision: true,
        reasoning: true,
        rerank: true,
    };

    /// Whether it does nothing but embed or rerank, so that it has no price of output.
    pub(crate) fn generates_nothing(self) -> bool {
        let Self { embeddings, rerank, .. } = self;
        (embeddings || rerank) && self == Self { embeddings, rerank, ..Self::default() }
    }
}

impl FromIterator<Ability> for Abilities {
    fn from_iter<I: IntoIterator<Item = Ability>>(abilities: I) -> Self {
        let mut set = Self::default();
        for ability in abilities {
            *match ability {
                Ability::Chat => &mut set.chat,
                Ability::Completion => &mut set.completion,
                Ability::Embeddings => &mut set.embeddings,
                Ability::Tools => &mut set.tools,
                Ability::JsonSchema => &mut set.json_schema,
                Ability::Vision => &mut set.vision,
                Ability::Reasoning => &mut set.reasoning,
                Ability::Rerank => &mut set.rerank,
            } = true;
        }
        set
    }
}

/// The price of a model's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    /// Rates that hold below every threshold of `above`.
    pub base: Rates,
    /// Rates for a whole request whose input exceeds so many tokens, by ascending threshold.
    pub above: Vec<(u64, Rates)>,
    /// Rates of other tariffs than the ordinary one, as far as they are known.
    pub tiers: Vec<TierRates>,
    /// Where the price comes from.
    pub source: PriceSource,
}

/// The rates of a tariff. For a length of input that it has none for, the ordinary ones hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierRates {
    /// Which tariff.
    pub tier: ServiceTier,
    /// Rates below every threshold of `above`.
    pub base: Option<Rates>,
    /// Rates for a whole request whose input exceeds so many tokens, by ascending threshold.
    pub above: Vec<(u64, Rates)>,
}

impl TierRates {
    /// Of rates by the input that they begin above; those above 0 are the base.
    pub(crate) fn new(tier: ServiceTier, mut rates: BTreeMap<u64, Rates>) -> Self {
        let base = rates.remove(&0);
        Self { tier, base, above: rates.into_iter().collect() }
    }
}

/// In which ways a request may be billed, as far as it tells: what a lease for it must cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Billable {
    /// There may be sound in the prompt.
    pub audio_input: bool,
    /// There may be sound in the answer.
    pub audio_output: bool,
    /// The prompt may be written to a cache for an hour.
    pub long_cache: bool,
    /// The tariff that it asks for; the ordinary one may come instead. `None` is any.
    pub tier: Option<ServiceTier>,
}

impl Default for Billable {
    /// In every way.
    fn default() -> Self {
        Self { audio_input: true, audio_output: true, long_cache: true, tier: None }
    }
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
    /// What a free local model uses of electricity and hardware.
    Energy,
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
    /// Prompt tokens written to the provider's cache for an hour; without it as those for minutes.
    pub cache_write_1h: Option<PicoUsd>,
    /// Prompt tokens that were sound and not cached; without it as `input`.
    pub audio_input: Option<PicoUsd>,
    /// Generated tokens that were sound; without it as `output`.
    pub audio_output: Option<PicoUsd>,
}

impl Rates {
    fn are_zero(&self) -> bool {
        let Self { input, cached_input, cache_write, output, cache_write_1h, audio_input, audio_output } = self;
        let optional = [cache_write_1h, audio_input, audio_output].into_iter().flatten();
        [input, cached_input, cache_write, output].into_iter().chain(optional).all(|rate| rate.0 == 0)
    }

    /// The parts of a usage that have rates of their own, and these. Cached, written and sound tokens beyond the input
    /// are counted as far as the input goes, in this order: no token is counted twice.
    pub fn parts(&self, usage: &Usage) -> [(u64, PicoUsd); 7] {
        let cached = usage.cached_input.min(usage.input);
        let written = usage.cache_write.min(usage.input - cached);
        let long = usage.cache_write_1h.min(written);
        let heard = usage.audio_input.min(usage.input - cached - written);
        let spoken = usage.audio_output.min(usage.output);
        [
            (usage.input - cached - written - heard, self.input),
            (heard, self.audio_input.unwrap_or(self.input)),
            (cached, self.cached_input),
            (written - long, self.cache_write),
            (long, self.cache_write_1h.unwrap_or(self.cache_write)),
            (usage.output - spoken, self.output),
            (spoken, self.audio_output.unwrap_or(self.output)),
        ]
    }
}

impl Price {
    /// A price of nothing, said on purpose.
    pub fn free() -> Self {
        Self { base: Rates::default(), above: Vec::new(), tiers: Vec::new(), source: PriceSource::Free }
    }

    /// Whether nothing that it prices costs anything.
    pub fn is_free(&self) -> bool {
        let of_tiers =
            self.tiers.iter().flat_map(|tier| tier.base.iter().chain(tier.above.iter().map(|(_, rates)| rates)));
        let all = std::iter::once(&self.base).chain(self.above.iter().map(|(_, rates)| rates)).chain(of_tiers);
        all.into_iter().all(Rates::are_zero)
    }

    /// The ordinary rates for a request with so many input tokens.
    pub fn rates(&self, input_tokens: u64) -> &Rates {
        above(&self.above, input_tokens).unwrap_or(&self.base)
    }

    /// The rates by which a usage is billed: those of its tariff for its length, or the ordinary ones where the tariff has
    /// none.
    pub fn rates_of(&self, usage: &Usage) -> &Rates {
        let ordinary = self.rates(usage.input);
        let Some(tier) = self.tiers.iter().find(|known| known.tier == usage.tier) else { return ordinary };
        let is_long = self.above.first().is_some_and(|(threshold, _)| usage.input > *threshold);
        let base = tier.base.as_ref().filter(|_| !is_long || tier.above.is_empty());
        above(&tier.above, usage.input).or(base).unwrap_or(ordinary)
    }

    /// What these tokens cost: exact in pico-dollars, rounded up once to nano-dollars; saturates instead of overflowing.
    pub fn charge(&self, usage: &Usage) -> Usd {
        let pico = self
            .rates_of(usage)
            .parts(usage)
            .iter()
            .map(|(tokens, price)| u128::from(*tokens) * u128::from(price.0))
            .fold(0u128, u128::saturating_add);
        Usd(i64::try_from(pico.div_ceil(1000)).unwrap_or(i64::MAX))
    }
}

fn above(tiers: &[(u64, Rates)], input_tokens: u64) -> Option<&Rates> {
    tiers.iter().rev().find(|(threshold, _)| input_tokens > *threshold).map(|(_, rates)| rates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn price() -> Price {
        let rates = |input, cached_input, cache_write, output| Rates {
            input: PicoUsd(input),
            cached_input: PicoUsd(cached_input),
            cache_write: PicoUsd(cache_write),
            output: PicoUsd(output),
            ..Rates::default()
        };
        Price {
            base: rates(2_000_000, 100_000, 2_500_000, 10_000_000),
            above: vec![(1000, rates(4_000_000, 200_000, 5_000_000, 15_000_000))],
            tiers: Vec::new(),
            source: PriceSource::File,
        }
    }

    #[test]
    fn charges_each_type_of_token_at_its_rate() {
        let usage = |input, cached_input, cache_write, output| Usage {
            input,
            cached_input,
            cache_write,
            output,
            ..Usage::default()
        };
        let cases = [
            (usage(0, 0, 0, 0), 0),
            (usage(1, 0, 0, 0), 2_000),
            (usage(100, 60, 30, 7), 10 * 2_000 + 60 * 100 + 30 * 2_500 + 7 * 10_000),
            // At the threshold the base rates hold, one token above it the dearer ones, for all tokens.
            (usage(1000, 0, 0, 1), 1000 * 2_000 + 10_000),
            (usage(1001, 0, 0, 1), 1001 * 4_000 + 15_000),
            // More cached than input is a provider's slip: no token is counted twice.
            (usage(10, 99, 99, 0), 10 * 100),
        ];
        for (usage, nano) in cases {
            assert_eq!(price().charge(&usage), Usd(nano), "{usage:?}");
        }
        let one_pico = Price { base: Rates { input: PicoUsd(1), ..Rates::default() }, ..Price::free() };
        assert_eq!(one_pico.charge(&usage(1, 0, 0, 0)), Usd(1), "rounded up");
        assert_eq!(one_pico.charge(&usage(u64::MAX, 0, 0, 0)).0, 18_446_744_073_709_552);
        assert_eq!(price().charge(&usage(u64::MAX, 0, 0, u64::MAX)), Usd(i64::MAX), "saturates");
        assert_eq!(Price::free().charge(&usage(u64::MAX, 0, 0, u64::MAX)), Usd::ZERO);
    }

    fn usages() -> impl Strategy<Value = Usage> {
        (0..5000u64, 0..5000u64, 0..5000u64, 0..1_000_000u64).prop_map(|(input, cached_input, cache_write, output)| {
            Usage { input, cached_input, cache_write, output, ..Usage::default() }
        })
    }

    proptest! {
        #[test]
        fn a_charge_is_the_exact_cost_rounded_up(usage in usages(), pico in prop::array::uniform4(0..u64::MAX / 4)) {
            let [input, cached_input, cache_write, output] = pico.map(PicoUsd);
            let rates = Rates { input, cached_input, cache_write, output, ..Rates::default() };
            let price = Price { base: rates, above: Vec::new(), tiers: Vec::new(), source: PriceSource::File };
            let cached = usage.cached_input.min(usage.input);
            let written = usage.cache_write.min(usage.input - cached);
            let exact: u128 = [
                (usage.input - cached - written, input), (cached, cached_input), (written, cache_write), (usage.output, output),
            ].iter().map(|(tokens, rate)| u128::from(*tokens) * u128::from(rate.0)).sum();
            let charged = u128::try_from(price.charge(&usage).0).unwrap() * 1000;
            prop_assert!(charged >= exact && charged - exact < 1000 || price.charge(&usage) == Usd(i64::MAX));
        }

        #[test]
        fn more_tokens_never_cost_less(usage in usages(), more_input in 0..5000u64, more_output in 0..1_000_000u64) {
            let more = Usage { input: usage.input + more_input, output: usage.output + more_output, ..usage };
            prop_assert!(price().charge(&more) >= price().charge(&usage));
        }
    }
}
