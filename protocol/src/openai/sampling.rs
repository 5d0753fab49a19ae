//! Decodes how tokens are to be drawn: OpenAI's fields, and those of llama.cpp's server for the samplers that OpenAI does not have.

use super::fields::{Fields, mismatch, number};
use super::request::texts;
use crate::DecodeError;
use crate::chat::{Dry, Sampling, Xtc};
use serde_json::Value;

/// Most texts that break a repetition, and the longest of them in bytes: each is looked for at every token.
const MAX_BREAKERS: usize = 64;
const LONGEST_BREAKER: usize = 256;

/// How tokens are drawn.
pub(super) fn sampling(fields: &mut Fields) -> Result<Sampling, DecodeError> {
    // llama.cpp's name of the field, else vLLM's.
    let repeat = fields.number("repeat_penalty", 0.0..=100.0)?;
    let repetition = fields.number("repetition_penalty", 0.0..=100.0)?;
    Ok(Sampling {
        temperature: fields.number("temperature", 0.0..=2.0)?,
        top_p: fields.number("top_p", 0.0..=1.0)?,
        // -1 and 0 say "all" in llama.cpp and vLLM.
        top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.and_then(|k| u32::try_from(k).ok()),
        min_p: fields.number("min_p", 0.0..=1.0)?,
        // Negative seeds are legal; only that different seeds stay different matters.
        seed: fields.integer("seed", i128::from(i64::MIN)..=i128::from(u64::MAX))?.map(|seed| seed as u64),
        frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
        repeat_penalty: repeat.or(repetition),
        logit_bias: logit_bias(fields)?,
        typical_p: fields.number("typical_p", 0.0..=1.0)?,
        xtc: xtc(fields)?,
        dry: dry(fields)?,
    })
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, DecodeError> {
    let Some(biases) = fields.object("logit_bias")? else { return Ok(Vec::new()) };
    let entry = |(token, bias): (String, Value)| {
        let path = || format!("logit_bias.{token}");
        let Ok(id) = token.parse() else {
            return Err(DecodeError::at(path(), format!("the keys of `logit_bias` must be token ids, got `{token}`")));
        };
        Ok((id, number(&bias, path, -100.0..=100.0)?))
    };
    biases.rest().into_iter().map(entry).collect()
}

/// On when `xtc_probability` is above 0; the threshold is llama.cpp's unless it is given.
fn xtc(fields: &mut Fields) -> Result<Option<Xtc>, DecodeError> {
    let probability = fields.number("xtc_probability", 0.0..=1.0)?;
    let threshold = fields.number("xtc_threshold", 0.0..=1.0)?.unwrap_or(0.1);
    Ok(probability.filter(|often| *often > 0.0).map(|probability| Xtc { probability, threshold }))
}

/// On when `dry_multiplier` is above 0; what is left open is as in llama.cpp.
fn dry(fields: &mut Fields) -> Result<Option<Box<Dry>>, DecodeError> {
    let multiplier = fields.number("dry_multiplier", 0.0..=100.0)?;
    let base = fields.number("dry_base", 1.0..=100.0)?.unwrap_or(1.75);
    let allowed_length = fields.integer("dry_allowed_length", 0..=u32::MAX)?.unwrap_or(2);
    // -1 is all; 0 looks at nothing.
    let last_n = fields.integer("dry_penalty_last_n", -1..=i64::from(u32::MAX))?.unwrap_or(-1);
    let breakers = breakers(fields)?;
    let last_n = u32::try_from(last_n).ok();
    let on = multiplier.filter(|multiplier| *multiplier > 0.0 && last_n != Some(0));
    Ok(on.map(|multiplier| Box::new(Dry { multiplier, base, allowed_length, last_n, breakers })))
}

fn breakers(fields: &mut Fields) -> Result<Vec<String>, DecodeError> {
    const NAME: &str = "dry_sequence_breakers";
    let breakers = match fields.take(NAME) {
        None => return Ok(["\n", ":", "\"", "*"].map(str::to_owned).into()),
        Some(Value::Array(list)) => texts(list, NAME)?,
        Some(other) => return Err(mismatch(NAME, "an array of strings", &other)),
    };
    if breakers.len() > MAX_BREAKERS {
        let message = format!("`{NAME}` must have at most {MAX_BREAKERS} texts, got {}", breakers.len());
        return Err(DecodeError::at(NAME, message));
    }
    if let Some(long) = breakers.iter().map(String::len).find(|length| *length > LONGEST_BREAKER) {
        let message = format!("the texts of `{NAME}` must have at most {LONGEST_BREAKER} bytes, got one of {long}");
        return Err(DecodeError::at(NAME, message));
    }
    Ok(breakers.into_iter().filter(|breaker| !breaker.is_empty()).collect())
}
