//! The backends of a simulation: what is true of them, of which a gateway knows only what it has seen.

use super::table::{self, TableError};
use serde::Deserialize;
use std::sync::Arc;
use tollkeeper_config::{Abilities, BackendId, ModelFacts, PicoUsd, Price, Rates};

/// The backends, as an alias lists them.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    /// In the order in which a static list would try them.
    pub models: Vec<Model>,
}

/// A backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Its name.
    pub id: BackendId,
    /// Its place in the pyramid; 0 is the bottom.
    pub tier: u8,
    /// Price and context.
    pub facts: Arc<ModelFacts>,
    /// How it works.
    pub place: Place,
}

/// Where a model runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Place {
    /// In the gateway's own memory.
    Local(Local),
    /// At a provider.
    Cloud(Cloud),
}

/// An engine of our own.
#[derive(Debug, Clone, PartialEq)]
pub struct Local {
    /// Answers that are written at once.
    pub slots: u32,
    /// Prompt tokens read in a second.
    pub prefill: f64,
    /// Tokens written in a second, all answers together, by how many there are, fewest first.
    pub decode: Vec<(u32, f64)>,
    /// Conversations whose prompts need not be read again.
    pub kept: usize,
    /// How long its model takes into memory, in milliseconds, if it is not there at the start.
    pub load_ms: Option<u64>,
}

/// A model of a provider.
#[derive(Debug, Clone, PartialEq)]
pub struct Cloud {
    /// Median of the time to the first token of a short prompt, in milliseconds.
    pub ttft_ms: f64,
    /// Prompt tokens read in a second, those aside that it knows.
    pub prefill: f64,
    /// Median of the tokens of an answer in a second.
    pub rate: f64,
    /// How both scatter: the deviation of their logarithms.
    pub spread: f64,
    /// Requests in a thousand that fail.
    pub errors_permille: u16,
    /// Requests that it takes in a minute.
    pub per_minute: Option<u32>,
    /// When it is in trouble.
    pub slow: Option<Slow>,
}

/// A time of trouble, in seconds since the trace's start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slow {
    /// From then on …
    pub from_s: u64,
    /// … until then …
    pub until_s: u64,
    /// … all takes so many times as long.
    pub factor: f64,
}

/// A row of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    name: String,
    tier: u8,
    input_usd: Option<String>,
    cached_usd: Option<String>,
    output_usd: Option<String>,
    context: Option<u64>,
    slots: Option<u32>,
    prefill: Option<f64>,
    decode: Option<String>,
    kept: Option<usize>,
    load_ms: Option<u64>,
    ttft_ms: Option<f64>,
    rate: Option<f64>,
    spread: Option<f64>,
    errors_permille: Option<u16>,
    per_minute: Option<u32>,
    slow: Option<String>,
}

impl Fleet {
    /// Reads a fleet from CSV. Columns: `name` (`provider/model`, or without a slash a local one) and `tier`; prices in USD per million tokens as
    /// `input_usd`, `cached_usd`, `output_usd` (empty is free); `context`. `prefill` in tokens a second. Of local models `slots`, `decode` (as `1:60 4:180`:
    /// tokens in a second by answers), `kept`, `load_ms`; of others `ttft_ms`, `rate`, `spread`, `errors_permille`, `per_minute`, `slow` (as `600-1200:8`:
    /// between these seconds eight times as long).
    ///
    /// # Errors
    /// The first row that says too little, or nothing that can be.
    pub fn read_csv(bytes: &[u8]) -> Result<Self, TableError> {
        let rows = table::read::<Row>(bytes)?.into_iter();
        let model = |(line, row): (u64, Row)| row.model().map_err(|what| TableError::Row { line, what });
        Ok(Self { models: rows.map(model).collect::<Result<_, _>>()? })
    }
}

impl Row {
    fn model(self) -> Result<Model, String> {
        let (id, place) = match self.name.split_once('/') {
            Some((provider, model)) => {
                (BackendId::Remote { provider: provider.into(), model: model.into() }, Place::Cloud(self.cloud()?))
            }
            None => (BackendId::Local(self.name.as_str().into()), Place::Local(self.local()?)),
        };
        let rate = |text: &Option<String>| match text {
            None => Ok(PicoUsd(0)),
            Some(text) => PicoUsd::parse_per_million(text).map_err(|error| format!("`{text}`: {error}")),
        };
        let input = rate(&self.input_usd)?;
        let cached_input = if self.cached_usd.is_some() { rate(&self.cached_usd)? } else { input };
        let base =
            Rates { input, cached_input, cache_write: input, output: rate(&self.output_usd)?, ..Rates::default() };
        let price = Price { base, ..Price::free() };
        let facts = ModelFacts { price, context: self.context, max_output: None, abilities: Abilities::ALL };
        Ok(Model { id, tier: self.tier, facts: Arc::new(facts), place })
    }

    fn local(&self) -> Result<Local, String> {
        let pair = |text: &str| {
            let (answers, rate) = text.split_once(':')?;
            Some((answers.parse().ok()?, above_zero(rate.parse().ok())?))
        };
        let decode: Option<Vec<(u32, f64)>> =
            self.decode.as_deref().unwrap_or("").split_whitespace().map(pair).collect();
        let decode = decode.filter(|pairs| !pairs.is_empty() && pairs.is_sorted_by(|one, other| one.0 < other.0));
        Ok(Local {
            slots: self.slots.filter(|slots| *slots > 0).ok_or("`slots` is missing")?,
            prefill: above_zero(self.prefill).ok_or("`prefill` is missing")?,
            decode: decode.ok_or("`decode` is written as `1:60 4:180`: tokens in a second by answers, fewest first")?,
            kept: self.kept.unwrap_or(0),
            load_ms: self.load_ms,
        })
    }

    fn cloud(&self) -> Result<Cloud, String> {
        Ok(Cloud {
            ttft_ms: above_zero(self.ttft_ms).ok_or("`ttft_ms` is missing")?,
            prefill: above_zero(self.prefill).unwrap_or(f64::INFINITY),
            rate: above_zero(self.rate).ok_or("`rate` is missing")?,
            spread: self.spread.unwrap_or(0.0),
            errors_permille: self.errors_permille.unwrap_or(0),
            per_minute: self.per_minute,
            slow: self.slow.as_deref().map(slow).transpose()?,
        })
    }
}

fn above_zero(number: Option<f64>) -> Option<f64> {
    number.filter(|number| number.is_finite() && *number > 0.0)
}

fn slow(text: &str) -> Result<Slow, String> {
    let parsed = || {
        let (span, factor) = text.split_once(':')?;
        let (from, until) = span.split_once('-')?;
        let factor = above_zero(factor.parse().ok())?;
        Some(Slow { from_s: from.parse().ok()?, until_s: until.parse().ok()?, factor })
    };
    parsed().ok_or_else(|| format!("`{text}` is not written as `600-1200:8`"))
}
