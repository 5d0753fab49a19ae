//! candle as an [`Engine`]: Rust only, for machines without a C++ toolchain. GGUF chat models, and BERT embeddings from a folder.
//!
//! candle's quantised models read one sequence at a time and keep its KV to themselves. So every sequence has a copy of the model
//! (the weights are shared), a batch is read sequence by sequence, and nothing of a sequence can be cut off or handed on.

mod bert;
mod gguf;
mod splits;
mod vocabulary;
mod weights;

use super::engine::{Compute, Engine, EngineError, Limits, LoadError, LoadPlan, Row, Token, Tokenizer};
use gguf::Gguf;
use std::sync::Arc;
use vocabulary::Vocabulary;
use weights::{Feed, MOST_CONTEXT, Weights};

/// Rows of a batch; also what one call computes at a time, so that a cancelled answer stops after at most so many tokens.
const BATCH: u32 = 128;

/// Reads the tokenizer alone: a folder is a BERT, a file is a GGUF.
pub(crate) fn tokenizer(plan: &LoadPlan) -> Result<Arc<dyn Tokenizer>, LoadError> {
    if plan.model.path.is_dir() {
        return bert::tokenizer(&plan.model.path);
    }
    Ok(Arc::new(Vocabulary::of(Gguf::open(plan)?.metadata(), &plan.model)?))
}

/// Loads the model and computes.
pub(crate) fn compute(plan: &LoadPlan, compute: Compute<'_>) -> Result<(), LoadError> {
    let model = &plan.model;
    let threads = u32::try_from(candle_core::utils::get_num_threads()).unwrap_or(u32::MAX);
    if model.gpu_layers.is_some() || model.threads.is_some_and(|wanted| wanted != threads) {
        tracing::warn!(
            model = model.name,
            threads,
            "candle runs on the CPU, with as many threads as RAYON_NUM_THREADS says in the environment; `threads` and `gpu_layers` do nothing"
        );
    }
    if !model.lora.is_empty() {
        return Err(LoadError("the candle engine has no LoRA adapters; use `engine = \"llama.cpp\"`".into()));
    }
    if model.mmproj.is_some() {
        return Err(LoadError("the candle engine cannot see pictures (`mmproj`); use `engine = \"llama.cpp\"`".into()));
    }
    if model.path.is_dir() {
        return bert::compute(plan, compute);
    }
    let file = Gguf::open(plan)?;
    let tokens = Vocabulary::count(file.metadata())?;
    compute(&mut CandleEngine::load(file, plan, tokens)?);
    Ok(())
}

/// The context of a model: what is configured, if the model and candle can do so much.
fn clamp_context(plan: &LoadPlan, most: u32, why: &str) -> u32 {
    let configured = plan.model.context;
    if configured > most {
        tracing::warn!(model = plan.model.name, configured, most, "the context is cut to {why}");
    }
    configured.clamp(1, most.max(1))
}

/// A model with as many copies as sequences.
struct CandleEngine {
    sequences: Vec<Sequence>,
    /// The logits after each row of the last batch that asked for them.
    logits: Vec<Option<Vec<f32>>>,
    limits: Limits,
}

impl CandleEngine {
    fn load(file: Gguf, plan: &LoadPlan, vocabulary: u32) -> Result<Self, LoadError> {
        let metadata = file.metadata();
        let architecture = metadata.text("general.architecture").unwrap_or_default();
        let trained = metadata.number(&format!("{architecture}.context_length")).unwrap_or(MOST_CONTEXT);
        let (most, why) = match trained < MOST_CONTEXT {
            true => (trained, "what the model was trained for"),
            false => (MOST_CONTEXT, "what candle has room for"),
        };
        let context = clamp_context(plan, most, why);
        let mut weights = Weights::load(file, context)?;
        // A file that contradicts itself shows here and not in the first answer.
        let tried = weights.forward(&[0, 0][..context.min(2) as usize], 0);
        let wide =
            tried.map_err(|error| LoadError(format!("candle cannot compute with this file: {}", said(&error))))?.len();
        if wide < vocabulary as usize {
            return Err(LoadError(format!("the model writes {wide} tokens, but its vocabulary has {vocabulary}")));
        }
        let wanted = plan.model.slots;
        let sequences: Vec<Sequence> = weights.copies(wanted).into_iter().map(Sequence::new).collect();
        let held = u32::try_from(sequences.len()).unwrap_or(1);
        if held < wanted {
            tracing::warn!(
                model = plan.model.name,
                slots = wanted,
                "candle answers one request at a time with this architecture"
            );
        }
        let limits = Limits {
            context,
            sequences: held,
            batch: BATCH.max(held),
            vocabulary,
            rewinds: false,
            idle_rows: None,
            generates: true,
            ranks: false,
            embedding_context: 0,
            embedding_width: 0,
            sees: false,
        };
        Ok(Self { sequences, logits: Vec::new(), limits })
    }

    /// Whether a batch is within all bounds, and every sequence goes on where it is.
    fn check(&self, rows: &[Row]) -> Result<(), EngineError> {
        let mut ends: Vec<u32> = self.sequences.iter().map(|sequence| sequence.length).collect();
        let mut fits = |row: &Row| {
            let end = ends.get_mut(row.sequence as usize);
            let next = end.is_some_and(|end| std::mem::replace(end, *end + 1) == row.position);
            next && row.token < self.limits.vocabulary && row.position < self.limits.context
        };
        if rows.is_empty() || rows.len() > self.limits.batch as usize || !rows.iter().all(&mut fits) {
            return Err(broken(format!("a batch out of bounds ({} rows)", rows.len())));
        }
        Ok(())
    }
}

fn broken(reason: impl Into<String>) -> EngineError {
    EngineError::Broken(reason.into())
}

fn failed(error: candle_core::Error) -> EngineError {
    broken(format!("candle could not compute: {}", said(&error)))
}

/// What an error of candle says, without the backtrace that it carries in some environments.
fn said(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => said(inner),
        candle_core::Error::Context { inner, context } => format!("{context}: {}", said(inner)),
        other => other.to_string(),
    }
}

impl Engine for CandleEngine {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), EngineError> {
        self.check(rows)?;
        self.logits.clear();
        self.logits.resize(rows.len(), None);
        for (number, sequence) in (0..).zip(&mut self.sequences) {
            // The model gives the logits after the last token only: a part ends where logits are wanted.
            let mut part: Vec<Token> = Vec::new();
            for (at, row) in rows.iter().enumerate().filter(|(_, row)| row.sequence == number) {
                part.push(row.token);
                if row.output {
                    let mut logits = sequence.read(&part).map_err(failed)?;
                    logits.truncate(self.limits.vocabulary as usize);
                    self.logits[at] = Some(logits);
                    part.clear();
                }
            }
            if !part.is_empty() {
                sequence.read(&part).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn logits(&self, row: usize) -> &[f32] {
        self.logits.get(row).and_then(Option::as_deref).unwrap_or_default()
    }

    fn truncate(&mut self, sequence: u32, keep: u32) -> bool {
        match self.sequences.get_mut(sequence as usize) {
            Some(sequence) if keep < sequence.length => {
                if keep == 0 {
                    sequence.length = 0;
                }
                keep == 0
            }
            _ => true,
        }
    }

    fn share(&mut self, _from: u32, _to: u32, _length: u32) {
        debug_assert!(false, "the limits say that nothing can be shared");
    }

    fn embed(&mut self, _inputs: &[&[Token]]) -> Result<Vec<Vec<f32>>, EngineError> {
        Err(broken("candle's chat models do not embed"))
    }
}

/// One copy of the model and what it has read.
struct Sequence {
    weights: Weights,
    length: u32,
    /// Whether its last token was handed over alone.
    lone: bool,
}

impl Sequence {
    fn new(weights: Weights) -> Self {
        Self { weights, length: 0, lone: false }
    }

    /// Reads tokens (at least one) and returns the logits after the last.
    fn read(&mut self, tokens: &[Token]) -> candle_core::Result<Vec<f32>> {
        let mut left = tokens;
        loop {
            let count = match self.weights.feed() {
                Feed::Aligned => aligned(self.length, left.len()),
                Feed::OneByOneAfterOne if self.lone && self.length > 0 => 1,
                Feed::OneByOneAfterOne => left.len(),
            };
            let (block, rest) = left.split_at(count);
            let logits = self.weights.forward(block, self.length)?;
            self.length += u32::try_from(count).unwrap_or(u32::MAX);
            self.lone = count == 1;
            if rest.is_empty() {
                return Ok(logits);
            }
            left = rest;
        }
    }
}

/// The largest power of two, at most `count` and [`BATCH`], of which `position` is a multiple.
fn aligned(position: u32, count: usize) -> usize {
    let mut block = 1;
    while block * 2 <= count.min(BATCH as usize) && (position as usize).is_multiple_of(block * 2) {
        block *= 2;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_of_few_kinds(position in 0u32..5000, count in 1usize..600) {
            let block = aligned(position, count);
            prop_assert!(block.is_power_of_two() && block <= count && block <= BATCH as usize);
            prop_assert_eq!(position as usize % block, 0);
            let twice = block * 2;
            prop_assert!(twice > count || twice > BATCH as usize || !(position as usize).is_multiple_of(twice), "no larger one fits");
        }
    }
}
