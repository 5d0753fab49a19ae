//! The model: trees over a prompt's shape and weights of its words, mixed and calibrated; and how it is trained.

use super::cases::Case;
use super::features::{Seen, see};
use super::forest::{Forest, Growth, Outcome, take};
use super::text::mix;
use super::words::Words;

/// What a file of weights begins with; the digit changes when the features do.
const MAGIC: [u8; 4] = *b"TKD1";

/// What the features of a shipped model are mixed with: for gain, and for the log-odds of a failure.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mix {
    base: f32,
    trees: f32,
    words: f32,
}

/// A trained model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    forest: Forest,
    words: Words,
    gain: Mix,
    fails: Mix,
}

/// What a prompt's text alone tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// By how much more likely the strong model is right, -1 to 1.
    pub gain: f32,
    /// The probability that the weak model fails, 0 to 1.
    pub weak_fails: f32,
}

/// How a model is trained; [`Settings::default`] is what the shipped weights were made with.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How many trees.
    pub trees: usize,
    /// The fewest cases in a leaf.
    pub leaf: usize,
    /// How many features are tried for each split.
    pub tries: usize,
    /// How much failures count beside gain when a split is judged.
    pub fails_weight: f32,
    /// The ridge penalty of the words.
    pub penalty: f32,
    /// What the draws begin with.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { trees: 100, leaf: 12, tries: 24, fails_weight: 0.25, penalty: 10.0, seed: 1 }
    }
}

/// Cases whose features have been read, so that many models can be trained from them.
pub(super) struct Prepared {
    pub(super) seen: Vec<Seen>,
    pub(super) outcomes: Vec<Outcome>,
}

impl Prepared {
    pub(super) fn of(cases: &[Case]) -> Self {
        let outcome = |case: &Case| Outcome {
            gain: f32::from(i8::from(case.strong) - i8::from(case.weak)),
            fails: f32::from(u8::from(!case.weak)),
        };
        Self {
            seen: cases.iter().map(|case| see(&case.prompt)).collect(),
            outcomes: cases.iter().map(outcome).collect(),
        }
    }
}

impl Model {
    /// Trains a model. The same cases in the same order and the same settings give the same model.
    pub fn train(cases: &[Case], settings: &Settings) -> Self {
        let prepared = Prepared::of(cases);
        Self::train_on(&prepared, &(0..cases.len()).collect::<Vec<_>>(), settings)
    }

    pub(super) fn train_on(prepared: &Prepared, places: &[usize], settings: &Settings) -> Self {
        let seen: Vec<&Seen> = places.iter().map(|place| &prepared.seen[*place]).collect();
        let outcomes: Vec<Outcome> = places.iter().map(|place| prepared.outcomes[*place]).collect();
        let growth = Growth {
            trees: settings.trees,
            leaf: settings.leaf,
            tries: settings.tries,
            fails_weight: settings.fails_weight,
            seed: settings.seed,
        };
        let (forest, by_trees) = Forest::grow(&seen, &outcomes, growth);
        let by_words = unseen_words(&seen, &outcomes, settings);
        let words = Words::fit(&seen, &outcomes, settings.penalty);
        let gain = linear(&by_trees, &by_words, &outcomes);
        let fails = logistic(&by_trees, &by_words, &outcomes);
        Self { forest, words, gain, fails }
    }

    pub(super) fn reads(&self, seen: &Seen) -> Reading {
        let (trees, words) = (self.forest.says(&seen.shape), self.words.says(seen));
        let gain = self.gain.base + self.gain.trees * trees.gain + self.gain.words * words.gain;
        let odds = self.fails.base + self.fails.trees * log_odds(trees.fails) + self.fails.words * words.fails;
        Reading { gain: gain.clamp(-1.0, 1.0), weak_fails: 1.0 / (1.0 + (-odds).exp()) }
    }

    /// Reads a prompt; of one longer than [`super::MOST_BYTES`] the beginning and the end.
    pub fn read(&self, prompt: &str) -> Reading {
        self.reads(&see(prompt))
    }

    /// The model as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for Mix { base, trees, words } in [self.gain, self.fails] {
            [base, trees, words].iter().for_each(|value| out.extend(value.to_le_bytes()));
        }
        self.words.write(&mut out);
        self.forest.write(&mut out);
        out
    }

    /// Reads a file; none when it is not whole or not of this version.
    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        if take::<4>(bytes)? != MAGIC {
            return None;
        }
        let mut number = || Some(f32::from_le_bytes(take(bytes)?)).filter(|value| value.is_finite());
        let mut mix = || Some(Mix { base: number()?, trees: number()?, words: number()? });
        let (gain, fails) = (mix()?, mix()?);
        let (words, forest) = (Words::read(bytes)?, Forest::read(bytes)?);
        bytes.is_empty().then_some(Self { forest, words, gain, fails })
    }
}

fn log_odds(share: f32) -> f32 {
    let share = share.clamp(0.005, 0.995);
    (share / (1.0 - share)).ln()
}

/// What words say of cases that they were not fitted on: a fifth at a time.
fn unseen_words(seen: &[&Seen], outcomes: &[Outcome], settings: &Settings) -> Vec<Outcome> {
    const PARTS: u64 = 5;
    let part = |place: usize| mix(place as u64, settings.seed) % PARTS;
    let mut said = vec![Outcome::default(); seen.len()];
    for left_out in 0..PARTS {
        let others = (0..seen.len()).filter(|place| part(*place) != left_out);
        let (seen_there, outcomes_there): (Vec<&Seen>, Vec<Outcome>) =
            others.map(|place| (seen[place], outcomes[place])).unzip();
        let words = Words::fit(&seen_there, &outcomes_there, settings.penalty);
        for place in (0..seen.len()).filter(|place| part(*place) == left_out) {
            said[place] = words.says(seen[place]);
        }
    }
    said
}

/// Least squares of gain.
fn linear(trees: &[Outcome], words: &[Outcome], outcomes: &[Outcome]) -> Mix {
    let rows = trees.iter().zip(words).map(|(trees, words)| [1.0, f64::from(trees.gain), f64::from(words.gain)]);
    let (mut left, mut right) = ([[0.0; 3]; 3], [0.0; 3]);
    for (row, outcome) in rows.zip(outcomes) {
        add(&mut left, &mut right, row, 1.0, f64::from(outcome.gain));
    }
    of(solve(left, right))
}

/// Logistic regression of failure, by Newton's method.
fn logistic(trees: &[Outcome], words: &[Outcome], outcomes: &[Outcome]) -> Mix {
    let mut weights = [0.0f64, 1.0, 0.0];
    for _ in 0..12 {
        let (mut left, mut right) = ([[0.0; 3]; 3], [0.0; 3]);
        for ((trees, words), outcome) in trees.iter().zip(words).zip(outcomes) {
            let row = [1.0, f64::from(log_odds(trees.fails)), f64::from(words.fails)];
            let odds: f64 = row.iter().zip(weights).map(|(value, weight)| value * weight).sum();
            let share = 1.0 / (1.0 + (-odds).exp());
            let certainty = (share * (1.0 - share)).max(1e-6);
            add(&mut left, &mut right, row, certainty, odds + (f64::from(outcome.fails) - share) / certainty);
        }
        weights = solve(left, right);
    }
    of(weights)
}

fn of([base, trees, words]: [f64; 3]) -> Mix {
    let finite = |value: f64| if value.is_finite() { value as f32 } else { 0.0 };
    Mix { base: finite(base), trees: finite(trees), words: finite(words) }
}

fn add(left: &mut [[f64; 3]; 3], right: &mut [f64; 3], row: [f64; 3], weight: f64, wanted: f64) {
    for (at, value) in row.into_iter().enumerate() {
        right[at] += weight * value * wanted;
        for (place, other) in row.into_iter().enumerate() {
            left[at][place] += weight * value * other;
        }
    }
}

/// Three equations by Gauss–Jordan; a little is added to the diagonal, so that they always have an answer.
fn solve(mut left: [[f64; 3]; 3], mut right: [f64; 3]) -> [f64; 3] {
    (0..3).for_each(|at| left[at][at] += 1e-6);
    for at in 0..3 {
        let pivot = left[at][at];
        left[at].iter_mut().for_each(|value| *value /= pivot);
        right[at] /= pivot;
        let (row, value) = (left[at], right[at]);
        for other in (0..3).filter(|other| *other != at) {
            let share = left[other][at];
            left[other].iter_mut().zip(row).for_each(|(target, own)| *target -= share * own);
            right[other] -= share * value;
        }
    }
    right
}
