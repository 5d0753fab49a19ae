//! Checks prices and lays them over the built-in catalogue.

use super::Check;
use crate::catalog::{Abilities, Catalog, ModelFacts, Price, PriceSource, Rates, TierRates, builtin};
use crate::file::{RawPrice, RawProvider, RawRates};
use crate::kinds::PROVIDER_KINDS;
use crate::problem::{Span, did_you_mean};
use crate::read::{At, Maybe, Named};
use crate::settings::{LocalModel, Provider};
use crate::units::PicoUsd;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tollkeeper_protocol::usage::ServiceTier;

impl Check<'_> {
    /// The facts of every local model, and of every model of the configured providers that has a price.
    pub(super) fn catalog(
        &mut self,
        local: &[Arc<LocalModel>],
        raw_providers: &[RawProvider],
        providers: &BTreeMap<String, Arc<Provider>>,
        prices: Named<RawPrice>,
    ) -> Catalog {
        let mut catalog = Catalog { version: builtin::version().to_owned(), ..Catalog::default() };
        catalog.models = local.iter().map(|model| (model.name.clone(), Arc::new(local_facts(model)))).collect();
        for provider in providers.values() {
            let rows = builtin::of_kind(&provider.kind);
            catalog.models.extend(rows.map(|row| (format!("{}/{}", provider.name, row.model), row.facts.clone())));
        }
        for raw in raw_providers {
            let Some((name, price)) = raw.name.as_ref().zip(raw.own_price()) else { continue };
            let reranks = raw.kind.as_ref().is_some_and(|kind| kind.value.reranks);
            if let Some(facts) = self.facts(price, None, reranks) {
                catalog.providers.insert(name.value.value.0.clone(), Arc::new(facts));
            }
        }
        for (name, price) in prices.0 {
            self.overlay(&mut catalog.models, name, price, providers);
        }
        catalog
    }

    fn overlay(
        &mut self,
        models: &mut HashMap<String, Arc<ModelFacts>>,
        name: At<String>,
        price: Option<RawPrice>,
        providers: &BTreeMap<String, Arc<Provider>>,
    ) {
        let Some((provider, _)) = name.value.split_once('/').filter(|(_, model)| !model.is_empty()) else {
            let message = format!(
                "prices are named \"provider/model\", found \"{}\" (a local model has `price` in its own table)",
                name.value
            );
            return self.problems.add(&name.span, message);
        };
        if !providers.contains_key(provider) && !self.broken.contains(provider) {
            let near = did_you_mean(provider, providers.keys().map(String::as_str));
            return self.problems.add(&name.span, format!("there is no provider `{provider}`{near}"));
        }
        let known = models.get(&name.value).map(AsRef::as_ref);
        let price = price.map(|price| At { value: price, span: name.span.clone() });
        let kind = providers.get(provider).map_or("", |provider| &provider.kind);
        let reranks = PROVIDER_KINDS.iter().any(|known| known.name == kind && known.reranks);
        match price.and_then(|price| self.facts(&price, known, reranks)) {
            Some(facts) => drop(models.insert(name.value, Arc::new(facts))),
            None => drop(self.broken.insert(name.value)),
        }
    }

    /// The facts that a price table states, the rest as the catalogue knows them. Of a model that it does not know all is assumed, but
    /// reranking only where the provider's kind offers it (`reranks`).
    fn facts(&mut self, raw: &At<RawPrice>, known: Option<&ModelFacts>, reranks: bool) -> Option<ModelFacts> {
        let rates = match &raw.value {
            RawPrice::Free => None,
            RawPrice::Rates(rates) => Some(rates),
        };
        let stated = rates.and_then(|rates| rates.abilities.at.as_ref());
        let abilities = match stated {
            Some(list) => list.value.iter().copied().collect(),
            None => known.map_or(Abilities { rerank: reranks, ..Abilities::ALL }, |known| known.abilities),
        };
        let context = rates.and_then(|rates| rates.context.at.as_ref()).map(|limit| limit.value.0);
        let max_output = rates.and_then(|rates| rates.max_output.at.as_ref()).map(|limit| limit.value.0);
        Some(ModelFacts {
            price: self.price(raw, known.map(|known| &known.price), abilities)?,
            context: context.or(known.and_then(|known| known.context)),
            max_output: max_output.or(known.and_then(|known| known.max_output)),
            abilities,
        })
    }

    /// A price as stated; a table that states no price at all keeps the known one.
    pub(super) fn price(&mut self, raw: &At<RawPrice>, known: Option<&Price>, abilities: Abilities) -> Option<Price> {
        let RawPrice::Rates(rates) = &raw.value else { return Some(Price::free()) };
        let RawRates { input, cached_input, cache_write, output, cache_write_1h, audio_input, audio_output, .. } =
            &**rates;
        let stated = [input, cached_input, cache_write, output, cache_write_1h, audio_input, audio_output];
        if !stated.iter().any(|rate| rate.written)
            && rates.above.value.is_empty()
            && rates.tiers.value.is_empty()
            && known.is_some()
        {
            return known.cloned();
        }
        let input = self.rate("input", &rates.input, &raw.span);
        let output = match &rates.output {
            missing if !missing.written && abilities.generates_nothing() => Some(PicoUsd(0)),
            output => self.rate("output", output, &raw.span),
        };
        let (above, tiers) = (self.above(rates), self.tiers(rates));
        let base = Rates {
            cache_write_1h: value(&rates.cache_write_1h),
            audio_input: value(&rates.audio_input),
            audio_output: value(&rates.audio_output),
            ..with_caches(input?, value(&rates.cached_input), value(&rates.cache_write), output?)
        };
        if base == Rates::default() {
            self.problems.add(&raw.span, "a price of nothing is written `\"free\"`");
            return None;
        }
        Some(Price { base, above: above?, tiers: tiers?, source: PriceSource::File })
    }

    fn rate(&mut self, key: &str, rate: &Maybe<PicoUsd>, span: &Span) -> Option<PicoUsd> {
        if !rate.written {
            self.problems.add(span, format!("a price needs `{key}`, in USD per million tokens"));
        }
        value(rate)
    }

    fn above(&mut self, rates: &RawRates) -> Option<Vec<(u64, Rates)>> {
        let mut above = BTreeMap::new();
        for tier in &rates.above.value {
            let raw = &tier.value;
            let threshold = raw.input_tokens.as_ref()?.value.0;
            let (input, output) = (raw.input.as_ref()?.value, raw.output.as_ref()?.value);
            let rates = Rates {
                cache_write_1h: value(&raw.cache_write_1h),
                audio_input: value(&raw.audio_input),
                audio_output: value(&raw.audio_output),
                ..with_caches(input, value(&raw.cached_input), value(&raw.cache_write), output)
            };
            if above.insert(threshold, rates).is_some() {
                self.problems.add(&tier.span, format!("there is another tier above {threshold} input tokens"));
            }
        }
        Some(above.into_iter().collect())
    }

    fn tiers(&mut self, rates: &RawRates) -> Option<Vec<TierRates>> {
        let mut tiers: BTreeMap<ServiceTier, BTreeMap<u64, Rates>> = BTreeMap::new();
        for tier in &rates.tiers.value {
            let raw = &tier.value;
            let name = raw.tier.as_ref()?.value;
            let threshold = raw.input_tokens.at.as_ref().map_or(0, |tokens| tokens.value.0);
            let (input, output) = (raw.input.as_ref()?.value, raw.output.as_ref()?.value);
            let rates = Rates {
                cache_write_1h: value(&raw.cache_write_1h),
                audio_input: value(&raw.audio_input),
                audio_output: value(&raw.audio_output),
                ..with_caches(input, value(&raw.cached_input), value(&raw.cache_write), output)
            };
            if tiers.entry(name).or_default().insert(threshold, rates).is_some() {
                let message = format!("there is another tariff `{}` above {threshold} input tokens", name.name());
                self.problems.add(&tier.span, message);
            }
        }
        Some(tiers.into_iter().map(|(tier, rates)| TierRates::new(tier, rates)).collect())
    }
}

fn value(rate: &Maybe<PicoUsd>) -> Option<PicoUsd> {
    rate.at.as_ref().map(|rate| rate.value)
}

/// Cached tokens without a price of their own cost what others do.
fn with_caches(input: PicoUsd, cached: Option<PicoUsd>, write: Option<PicoUsd>, output: PicoUsd) -> Rates {
    Rates {
        input,
        cached_input: cached.unwrap_or(input),
        cache_write: write.unwrap_or(input),
        output,
        ..Rates::default()
    }
}

fn local_facts(model: &LocalModel) -> ModelFacts {
    ModelFacts {
        price: model.price.clone(),
        context: Some(model.context.into()),
        max_output: model.max_output.map(u64::from),
        abilities: model.abilities,
    }
}
