//! The model: trees over a prompt's shape and weights of its words, mixed and calibrated; and how it is trained.

use super::cases::Case;
use super::features::{Seen, see};
use super::forest::{Forest, Growth, Outcome, take};
use super::line::{Line, solve};
use super::text::mix;
use super::words::Words;

/// What a file of weights begins with; the digit changes when the features do.
const MAGIC: [u8; 4] = *b"TKD1";

/// What trees, words and line are mixed with: for gain, and for the log-odds of a failure.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mix([f32; 4]);

/// The mixes of one form of question.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Form {
    gain: Mix,
    fails: Mix,
}

/// A trained model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    forest: Forest,
    words: Words,
    line: Line,
    /// Choices among given answers.
    choice: Form,
    /// Open questions.
    open: Form,
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
    /// The ridge penalty of the line through open questions.
    pub line_penalty: f64,
    /// What the draws begin with.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { trees: 80, leaf: 15, tries: 24, fails_weight: 0.25, penalty: 10.0, line_penalty: 1000.0, seed: 1 }
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
        let (by_words, by_line) = unseen(&seen, &outcomes, settings);
        let said: Vec<Said> = (0..seen.len())
            .map(|place| Said {
                open: seen[place].is_open(),
                trees: by_trees[place],
                words: by_words[place],
                line: by_line[place],
                happened: outcomes[place],
            })
            .collect();
        Self {
            forest,
            words: Words::fit(&seen, &outcomes, settings.penalty),
            line: line(&seen, &outcomes, settings),
            choice: Form::fit(&said, false),
            open: Form::fit(&said, true),
        }
    }

    pub(super) fn reads(&self, seen: &Seen) -> Reading {
        let (trees, words, line) = (self.forest.says(&seen.shape), self.words.says(seen), self.line.says(&seen.shape));
        let form = if seen.is_open() { self.open } else { self.choice };
        let gain = form.gain.of([1.0, trees.gain, words.gain, line.gain]);
        let odds = form.fails.of([1.0, log_odds(trees.fails), words.fails, line.fails]);
        Reading { gain: gain.clamp(-1.0, 1.0), weak_fails: 1.0 / (1.0 + (-odds).exp()) }
    }

    /// Reads a prompt; of one longer than [`super::MOST_BYTES`] the beginning and the end.
    pub fn read(&self, prompt: &str) -> Reading {
        self.reads(&see(prompt))
    }

    /// The model as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for Mix(weights) in [self.choice.gain, self.choice.fails, self.open.gain, self.open.fails] {
            weights.iter().for_each(|weight| out.extend(weight.to_le_bytes()));
        }
        self.line.write(&mut out);
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
        let mut mix = || Some(Mix([number()?, number()?, number()?, number()?]));
        let mut form = || Some(Form { gain: mix()?, fails: mix()? });
        let (choice, open) = (form()?, form()?);
        let (line, words, forest) = (Line::read(bytes)?, Words::read(bytes)?, Forest::read(bytes)?);
        bytes.is_empty().then_some(Self { forest, words, line, choice, open })
    }
}

fn log_odds(share: f32) -> f32 {
    let share = share.clamp(0.005, 0.995);
    (share / (1.0 - share)).ln()
}

/// The line through the open questions.
fn line(seen: &[&Seen], outcomes: &[Outcome], settings: &Settings) -> Line {
    let open = seen.iter().zip(outcomes).filter(|(seen, _)| seen.is_open());
    let (seen, outcomes): (Vec<&Seen>, Vec<Outcome>) = open.map(|(seen, outcome)| (*seen, *outcome)).unzip();
    Line::fit(&seen, &outcomes, settings.line_penalty)
}

/// What words and line say of cases that they were not fitted on: a fifth at a time.
fn unseen(seen: &[&Seen], outcomes: &[Outcome], settings: &Settings) -> (Vec<Outcome>, Vec<Outcome>) {
    const PARTS: u64 = 5;
    let part = |place: usize| mix(place as u64, settings.seed) % PARTS;
    let mut said = (vec![Outcome::default(); seen.len()], vec![Outcome::default(); seen.len()]);
    for left_out in 0..PARTS {
        let others = (0..seen.len()).filter(|place| part(*place) != left_out);
        let (seen_there, outcomes_there): (Vec<&Seen>, Vec<Outcome>) =
            others.map(|place| (seen[place], outcomes[place])).unzip();
        let words = Words::fit(&seen_there, &outcomes_there, settings.penalty);
        let line = line(&seen_there, &outcomes_there, settings);
        for place in (0..seen.len()).filter(|place| part(*place) == left_out) {
            said.0[place] = words.says(seen[place]);
            said.1[place] = line.says(&seen[place].shape);
        }
    }
    said
}

/// What the parts of a model said of a case that they had not seen, and what happened.
struct Said {
    open: bool,
    trees: Outcome,
    words: Outcome,
    line: Outcome,
    happened: Outcome,
}

impl Mix {
    fn of(self, parts: [f32; 4]) -> f32 {
        self.0.iter().zip(parts).map(|(weight, part)| weight * part).sum()
    }

    fn kept(weights: &[f64]) -> Self {
        let finite = |value: f64| if value.is_finite() { value as f32 } else { 0.0 };
        Self(std::array::from_fn(|at| weights.get(at).copied().map_or(0.0, finite)))
    }
}

impl Form {
    /// Least squares of gain, and logistic regression of failure by Newton's method. The line has no say in choices, which it is not
    /// made of, nor trees and words in open questions: of those there are too few cases to learn more than a line.
    fn fit(said: &[Said], open: bool) -> Self {
        let said: Vec<&Said> = said.iter().filter(|said| said.open == open).collect();
        let row = |[trees, words, line]: [f32; 3]| {
            let parts = if open { [1.0, 0.0, 0.0, line] } else { [1.0, trees, words, 0.0] };
            parts.map(f64::from)
        };
        let mut sums = Sums::new();
        for said in &said {
            let parts = row([said.trees.gain, said.words.gain, said.line.gain]);
            sums.add(parts, 1.0, f64::from(said.happened.gain));
        }
        let gain = Mix::kept(&sums.solve());
        let mut weights = vec![0.0; 4];
        for _ in 0..12 {
            let mut sums = Sums::new();
            for said in &said {
                let parts = row([log_odds(said.trees.fails), said.words.fails, said.line.fails]);
                let odds: f64 = parts.iter().zip(&weights).map(|(part, weight)| part * weight).sum();
                let share = 1.0 / (1.0 + (-odds).exp());
                let certainty = (share * (1.0 - share)).max(1e-6);
                sums.add(parts, certainty, odds + (f64::from(said.happened.fails) - share) / certainty);
            }
            weights = sums.solve();
        }
        Self { gain, fails: Mix::kept(&weights) }
    }
}

/// The sums of a weighted regression.
struct Sums {
    left: Vec<Vec<f64>>,
    right: Vec<f64>,
}

impl Sums {
    /// With a little on the diagonal, so that there is always an answer.
    fn new() -> Self {
        let line = |at: usize| (0..4).map(|place| if place == at { 1e-3 } else { 0.0 }).collect();
        Self { left: (0..4).map(line).collect(), right: vec![0.0; 4] }
    }

    fn add(&mut self, row: [f64; 4], weight: f64, wanted: f64) {
        for (at, value) in row.into_iter().enumerate() {
            self.right[at] += weight * value * wanted;
            row.iter().zip(&mut self.left[at]).for_each(|(other, sum)| *sum += weight * value * other);
        }
    }

    fn solve(self) -> Vec<f64> {
        solve(self.left, self.right)
    }
}
