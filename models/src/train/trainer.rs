//! The training loop: batches made on the way, gradients from a fixed number of shards, one schedule counted in steps.

use super::layout::Layout;
use super::model::{Batch, Model, Outcome, Workspace};
use super::optimiser::Optimiser;
use super::tokenizer::Tokenizer;
use crate::data::{Kind, Split, sample};
use crate::rng::Rng;

/// Longest sample in tokens; longer ones are left out.
pub const LONGEST: usize = 448;
/// Batch parts, each made and learnt by one thread. Fixed, so that the result does not depend on the machine.
const SHARDS: usize = 2;

/// What the run is told.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Seed of the parameters and of all data.
    pub seed: u64,
    /// Steps of the whole run.
    pub steps: usize,
    /// Tokens of one step.
    pub batch: usize,
    /// Highest learning rate.
    pub rate: f32,
}

impl Plan {
    /// Steps that draw from the first mix: copying and digits.
    fn warm_up(&self) -> usize {
        self.steps / 8
    }

    /// Up over the first steps, then down along a cosine to a fiftieth.
    fn rate_at(&self, step: usize) -> f32 {
        let rise = 60.0f32.min(self.steps as f32 / 10.0);
        let way = step as f32 / self.steps as f32;
        let fall = 0.02 + 0.98 * 0.5 * (1.0 + (std::f32::consts::PI * way).cos());
        self.rate * fall * (step as f32 / rise).min(1.0)
    }
}

/// A run in progress.
pub struct Trainer<'a> {
    /// The model being trained.
    pub model: Model,
    /// Its parameters.
    pub params: Vec<f32>,
    plan: Plan,
    tokenizer: &'a Tokenizer,
    optimiser: Optimiser,
    shards: Vec<(Vec<f32>, Workspace)>,
    step: usize,
}

/// What one step saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// Tokens fed.
    pub tokens: usize,
    /// Tokens that counted for the loss.
    pub counted: usize,
    /// Mean loss per counted token, in nats.
    pub loss: f64,
    /// Part of the counted tokens that were predicted right.
    pub accuracy: f64,
}

impl<'a> Trainer<'a> {
    /// Fresh parameters for `layout`.
    pub fn new(layout: Layout, plan: Plan, tokenizer: &'a Tokenizer) -> Self {
        let params = layout.init(&mut Rng::new(plan.seed));
        let optimiser = Optimiser::new(&layout);
        let shards = (0..SHARDS).map(|_| (vec![0.0; layout.len()], Workspace::default())).collect();
        Self { model: Model::new(layout, LONGEST), params, plan, tokenizer, optimiser, shards, step: 0 }
    }

    /// One step.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn step(&mut self) -> tokenizers::Result<Step> {
        let (step, plan, tokenizer) = (self.step, self.plan, self.tokenizer);
        let (model, params) = (&self.model, &self.params);
        let mut shards: Vec<_> = self.shards.iter_mut().enumerate().collect();
        let seen = std::thread::scope(|scope| {
            let threads: Vec<_> = shards
                .iter_mut()
                .map(|(i, (grads, workspace))| {
                    let seed = Rng::new(plan.seed ^ ((step * SHARDS + *i) as u64 + 1) << 20).next_u64();
                    scope.spawn(move || -> tokenizers::Result<(Batch, Outcome)> {
                        let batch = make(tokenizer, plan.batch / SHARDS, step < plan.warm_up(), seed)?;
                        grads.fill(0.0);
                        let outcome =
                            model.learn(params, grads, &batch, 1.0 / batch.rows.len().max(1) as f32, workspace);
                        Ok((batch, outcome))
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a training thread died".into())));
            joined.collect::<tokenizers::Result<Vec<_>>>()
        })?;

        let (first, rest) = self.shards.split_at_mut(1);
        for (grads, _) in rest {
            super::kernels::add(&mut first[0].0, grads);
        }
        let rate = plan.rate_at(step);
        self.optimiser.step(&self.model.layout, &mut self.params, &first[0].0, rate, SHARDS);
        self.step += 1;
        let mut total = Step::default();
        for (batch, outcome) in &seen {
            total.tokens += batch.tokens.len();
            total.counted += batch.rows.len();
            total.loss += outcome.loss;
            total.accuracy += outcome.hits as f64;
        }
        total.loss /= total.counted.max(1) as f64;
        total.accuracy /= total.counted.max(1) as f64;
        Ok(total)
    }
}

/// Samples until `size` tokens are full.
fn make(tokenizer: &Tokenizer, size: usize, warm_up: bool, seed: u64) -> tokenizers::Result<Batch> {
    let mut rng = Rng::new(seed);
    let mut batch = Batch::default();
    while batch.tokens.len() < size {
        let dialogue = sample(Kind::draw(&mut rng, warm_up), Split::Train, &mut rng);
        let (ids, counts) = tokenizer.dialogue(&dialogue, false)?;
        // The line end after the last answer teaches nothing.
        let len = ids.len() - 1;
        if len <= LONGEST {
            batch.push(&ids[..len], &counts[..len]);
        }
    }
    Ok(batch)
}
