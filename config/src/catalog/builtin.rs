//! The price catalogue that comes with the gateway: `catalog/models.csv`, parsed once.

use crate::catalog::{Abilities, Ability, ModelFacts, Price, PriceSource, Rates, TierRates};
use crate::units::PicoUsd;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use tollkeeper_protocol::usage::ServiceTier;

/// One model of the built-in catalogue.
#[derive(Debug, Clone)]
pub struct CatalogModel {
    /// The provider kind that serves it.
    pub kind: &'static str,
    /// The provider's own name of it.
    pub model: &'static str,
    /// Its price and abilities.
    pub facts: Arc<ModelFacts>,
    /// Where its figures were taken from.
    pub source: &'static str,
    /// When, ISO.
    pub date: &'static str,
}

/// The models of the built-in catalogue, by kind.
pub fn models() -> &'static [CatalogModel] {
    static MODELS: LazyLock<Vec<CatalogModel>> = LazyLock::new(|| {
        let rows = include_str!("../../catalog/models.csv").lines().skip(1);
        rows.map(|row| parse_row(row).expect("a test has read every row of models.csv")).collect()
    });
    &MODELS
}

/// The newest date of the built-in catalogue, ISO.
pub fn version() -> &'static str {
    models().iter().map(|model| model.date).max().unwrap_or_default()
}

/// The models of one provider kind.
pub(crate) fn of_kind(kind: &str) -> impl Iterator<Item = &'static CatalogModel> {
    models().iter().filter(move |model| model.kind == kind)
}

/// Reads one row; the columns are explained in `catalog/README.md`.
fn parse_row(row: &'static str) -> Option<CatalogModel> {
    let columns: Vec<&str> = row.split(',').collect();
    let [
        kind,
        model,
        input,
        cached,
        write,
        output,
        above,
        context,
        max_output,
        abilities,
        source,
        date,
        cache_write_1h,
        tiers,
    ] = columns.try_into().ok()?;
    let abilities: Abilities = abilities.split(' ').map(parse_ability).collect::<Option<_>>()?;
    let output = if abilities.generates_nothing() && output.is_empty() { "0" } else { output };
    let price = Price {
        base: parse_rates(&[input, cached, write, output, cache_write_1h])?,
        above: above.split(' ').filter(|tier| !tier.is_empty()).map(parse_tier).collect::<Option<_>>()?,
        tiers: parse_tiers(tiers)?,
        source: PriceSource::Catalog,
    };
    let count = |text: &str| if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) };
    let facts = ModelFacts { price, context: count(context)?, max_output: count(max_output)?, abilities };
    Some(CatalogModel { kind, model, facts: Arc::new(facts), source, date })
}

/// Input, cached input, cache write, output, and perhaps cache write for an hour; missing prices of caches are that of
/// input.
fn parse_rates(prices: &[&str]) -> Option<Rates> {
    let ([input, cached, write, output], hour) = match *prices {
        [input, cached, write, output] => ([input, cached, write, output], ""),
        [input, cached, write, output, hour] => ([input, cached, write, output], hour),
        _ => return None,
    };
    let price = |text: &str| PicoUsd::parse_per_million(text).ok();
    let input = price(input)?;
    let or_input = |text: &str| if text.is_empty() { Some(input) } else { price(text) };
    Some(Rates {
        input,
        cached_input: or_input(cached)?,
        cache_write: or_input(write)?,
        output: price(output)?,
        cache_write_1h: if hour.is_empty() { None } else { Some(price(hour)?) },
        ..Rates::default()
    })
}

/// `flex:272000:…`, the tariff before what `above` has.
fn parse_tiers(tiers: &str) -> Option<Vec<TierRates>> {
    let mut found: BTreeMap<ServiceTier, BTreeMap<u64, Rates>> = BTreeMap::new();
    for tier in tiers.split(' ').filter(|tier| !tier.is_empty()) {
        let (name, tier) = tier.split_once(':')?;
        let name = ServiceTier::ALL.into_iter().find(|known| known.name() == name)?;
        let (threshold, rates) = parse_tier(tier)?;
        found.entry(name).or_default().insert(threshold, rates);
    }
    Some(found.into_iter().map(|(tier, rates)| TierRates::new(tier, rates)).collect())
}

fn parse_tier(tier: &str) -> Option<(u64, Rates)> {
    let (threshold, rates) = tier.split_once(':')?;
    let rates: Vec<&str> = rates.split(':').collect();
    Some((threshold.parse().ok()?, parse_rates(&rates)?))
}

fn parse_ability(text: &str) -> Option<Ability> {
    Ability::NAMES.iter().find(|(name, _)| *name == text).map(|(_, ability)| *ability)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::PROVIDER_KINDS;
    use std::collections::HashSet;

    #[test]
    fn every_row_is_whole_and_no_price_is_zero() {
        let rows = include_str!("../../catalog/models.csv").lines().skip(1);
        let bad: Vec<_> = rows.filter(|row| parse_row(row).is_none()).collect();
        assert!(bad.is_empty(), "{bad:#?}");
        assert!(models().len() >= 60, "{} models", models().len());
        for row in models() {
            let price = &row.facts.price;
            for rates in [&price.base].into_iter().chain(price.above.iter().map(|(_, rates)| rates)) {
                let paid = [rates.input, rates.cached_input, rates.cache_write].iter().all(|rate| rate.0 > 0);
                assert!(paid && (rates.output.0 > 0 || row.facts.abilities.generates_nothing()), "{row:?}");
            }
            assert!(price.above.is_sorted_by(|a, b| a.0 < b.0), "{row:?}");
            assert!(!row.source.is_empty() && row.date.len() == "2026-11-21".len(), "{row:?}");
            // Anthropic's own wire format is not spoken yet; its prices are here for when it is.
            assert!(row.kind == "anthropic" || PROVIDER_KINDS.iter().any(|kind| kind.name == row.kind), "{row:?}");
        }
        let names: HashSet<_> = models().iter().map(|row| (row.kind, row.model)).collect();
        assert_eq!(names.len(), models().len(), "a model is there twice");
    }

    /// Figures copied by hand from the price map that the catalogue was made from.
    #[test]
    fn figures_are_those_of_the_source() {
        let find = |kind, model| models().iter().find(|row| row.kind == kind && row.model == model).unwrap();
        let shown = |kind, model| {
            let facts = &find(kind, model).facts;
            let rates = |r: &Rates| format!("{} {} {} {}", r.input, r.cached_input, r.cache_write, r.output);
            let above = facts.price.above.iter().map(|(n, r)| format!(" >{n} {}", rates(r))).collect::<String>();
            format!("{}{above}; {:?} {:?}", rates(&facts.price.base), facts.context, facts.max_output)
        };
        let golden = [
            ("openai", "gpt-6.1-sol", "2 0.1 2.5 10 >272000 4 0.2 5 15; Some(922000) Some(128000)"),
            ("openai", "gpt-4o-mini", "0.15 0.075 0.15 0.6; Some(128000) Some(16384)"),
            ("openai", "text-embedding-3-small", "0.02 0.02 0.02 0; Some(8191) None"),
            ("azure", "gpt-5.4", "2.5 0.25 2.5 15 >272000 5 0.5 5 22.5; Some(922000) Some(128000)"),
            (
                "anthropic",
                "claude-haiku-5-5",
                "0.1 0.01 0.125 0.5 >100000 0.5 0.05 0.625 2.5; Some(1000000) Some(128000)",
            ),
            ("gemini", "gemini-2.5-pro", "1.25 0.125 1.25 10 >200000 2.5 0.25 2.5 15; Some(1048576) Some(65536)"),
            ("groq", "openai/gpt-oss-20b", "0.075 0.0375 0.075 0.3; Some(131072) Some(65536)"),
            ("deepseek", "deepseek-v4-pro", "1.32 0.044 1.32 3.96; Some(1000000) Some(393216)"),
            ("xai", "grok-4.7", "2 0.5 2 6 >200000 4 1 4 12; Some(500000) Some(500000)"),
            ("mistral", "mistral-large-4", "1.36 0.14 1.36 4.18; Some(1048576) Some(1048576)"),
            ("together", "zai-org/GLM-5.3", "1.4 0.26 1.4 4.4; Some(1048575) Some(128000)"),
            ("fireworks", "accounts/fireworks/models/kimi-k3", "3 0.3 3 15; Some(1048576) Some(131072)"),
        ];
        for (kind, model, expected) in golden {
            assert_eq!(shown(kind, model), expected, "{kind}/{model}");
        }
        let price = &find("anthropic", "claude-haiku-5-5").facts.price;
        let hours: Vec<_> = [&price.base, &price.above[0].1].map(|rates| rates.cache_write_1h).to_vec();
        assert_eq!(hours, [Some(PicoUsd(200_000)), Some(PicoUsd(1_000_000))]);
        let price = &find("openai", "gpt-6-luna").facts.price;
        let flex = &price.tiers.iter().find(|tier| tier.tier == ServiceTier::Flex).unwrap();
        assert_eq!((flex.base, flex.above[0].0, flex.above[0].1.output), (None, 272_000, PicoUsd(375_000)));
        let abilities = find("groq", "openai/gpt-oss-20b").facts.abilities;
        let expected =
            Abilities { chat: true, tools: true, json_schema: true, reasoning: true, ..Abilities::default() };
        assert_eq!(abilities, expected);
    }
}
