//! A line through the shape of open questions: few cases carry few weights, so all are kept small by a strong penalty.

use super::features::{COUNT, Seen, TOLD, TOLD_PLACES};
use super::forest::{Outcome, take};

const FEATURES: usize = TOLD.len();

/// Weights of gain and of failure for the features of [`TOLD`].
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    gain: Head,
    fails: Head,
}

#[derive(Debug, Clone, PartialEq)]
struct Head {
    base: f32,
    weights: Vec<f32>,
}

impl Line {
    /// Fits both heads by ridge regression over features of mean 0 and deviation 1.
    pub(super) fn fit(seen: &[&Seen], outcomes: &[Outcome], penalty: f64) -> Self {
        let count = seen.len().max(1) as f64;
        let column = |feature: usize| seen.iter().map(move |seen| f64::from(seen.shape[TOLD_PLACES[feature]]));
        let means: Vec<f64> = (0..FEATURES).map(|feature| column(feature).sum::<f64>() / count).collect();
        let scales: Vec<f64> = (0..FEATURES)
            .map(|feature| {
                let square = column(feature).map(|value| (value - means[feature]).powi(2)).sum::<f64>() / count;
                // What hardly varies says nothing.
                if square > 1e-6 { 1.0 / square.sqrt() } else { 0.0 }
            })
            .collect();
        let rows: Vec<Vec<f64>> = seen
            .iter()
            .map(|seen| {
                (0..FEATURES).map(|at| (f64::from(seen.shape[TOLD_PLACES[at]]) - means[at]) * scales[at]).collect()
            })
            .collect();
        let mut products = vec![vec![0.0; FEATURES]; FEATURES];
        for row in &rows {
            for (line, value) in products.iter_mut().zip(row) {
                line.iter_mut().zip(row).for_each(|(sum, other)| *sum += value * other);
            }
        }
        (0..FEATURES).for_each(|at| products[at][at] += penalty);
        let head = |of: fn(&Outcome) -> f32| {
            let mean = outcomes.iter().map(|outcome| f64::from(of(outcome))).sum::<f64>() / count;
            let mut wanted = vec![0.0; FEATURES];
            for (row, outcome) in rows.iter().zip(outcomes) {
                let value = f64::from(of(outcome)) - mean;
                wanted.iter_mut().zip(row).for_each(|(sum, feature)| *sum += feature * value);
            }
            let solved = solve(products.clone(), wanted);
            let weights: Vec<f64> = solved.iter().zip(&scales).map(|(weight, scale)| weight * scale).collect();
            let base = mean - weights.iter().zip(&means).map(|(weight, mean)| weight * mean).sum::<f64>();
            Head { base: base as f32, weights: weights.into_iter().map(|weight| weight as f32).collect() }
        };
        Self { gain: head(|outcome| outcome.gain), fails: head(|outcome| outcome.fails) }
    }

    /// What the shape says.
    pub(super) fn says(&self, shape: &[u8; COUNT]) -> Outcome {
        let head = |head: &Head| {
            let sum: f32 =
                head.weights.iter().zip(&*TOLD_PLACES).map(|(weight, place)| weight * f32::from(shape[*place])).sum();
            head.base + sum
        };
        Outcome { gain: head(&self.gain), fails: head(&self.fails) }
    }

    /// The bytes of the weights.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for Head { base, weights } in [&self.gain, &self.fails] {
            out.extend(base.to_le_bytes());
            weights.iter().for_each(|weight| out.extend(weight.to_le_bytes()));
        }
    }

    /// Reads weights.
    pub(super) fn read(bytes: &mut &[u8]) -> Option<Self> {
        let mut number = || Some(f32::from_le_bytes(take(bytes)?)).filter(|value| value.is_finite());
        let mut head =
            || Some(Head { base: number()?, weights: (0..FEATURES).map(|_| number()).collect::<Option<_>>()? });
        Some(Self { gain: head()?, fails: head()? })
    }
}

/// Equations by Gauss–Jordan; the matrix is positive definite, so that no pivot is 0.
pub(crate) fn solve(mut left: Vec<Vec<f64>>, mut right: Vec<f64>) -> Vec<f64> {
    for at in 0..right.len() {
        let pivot = left[at][at];
        left[at].iter_mut().for_each(|value| *value /= pivot);
        right[at] /= pivot;
        let (row, value) = (left[at].clone(), right[at]);
        for other in (0..right.len()).filter(|other| *other != at) {
            let share = left[other][at];
            left[other].iter_mut().zip(&row).for_each(|(target, own)| *target -= share * own);
            right[other] -= share * value;
        }
    }
    right
}
