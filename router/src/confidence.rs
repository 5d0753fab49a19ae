//! How probable it is that an answer is good, by how sure its model was of the first tokens.
//!
//! Each token says the log-probability that it had and the entropy of the distribution that it was drawn from. Their means go through a
//! logistic curve with three numbers, `p = 1 / (1 + exp(-(a + b · logprob + c · entropy)))`, which belong to a model and are fitted to answers
//! of it that are known to be good or bad ([`Curve::fit`]).

mod cases;

pub use cases::{Case, CasesError};

use crate::difficulty::solve;

/// What was seen of the first tokens of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Certainty {
    tokens: u32,
    logprob: f64,
    entropy: f64,
}

impl Certainty {
    /// The least log-probability that counts: one token that could not be is not to outweigh all others.
    const LEAST: f64 = -20.0;

    /// One more token: the natural logarithm of its probability, and the entropy in nats.
    pub fn saw(&mut self, logprob: f32, entropy: f32) {
        self.tokens += 1;
        self.logprob += if logprob.is_nan() { Self::LEAST } else { f64::from(logprob).clamp(Self::LEAST, 0.0) };
        self.entropy += if entropy.is_finite() { f64::from(entropy).max(0.0) } else { 0.0 };
    }

    /// Tokens seen.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The geometric mean of the tokens' probabilities, 0 to 1: the confidence in a model that has no curve; `None` without a token.
    pub fn likelihood(&self) -> Option<f64> {
        self.means().map(|(logprob, _)| logprob.exp())
    }

    /// The mean log-probability and the mean entropy; `None` without a token.
    pub fn means(&self) -> Option<(f64, f64)> {
        let tokens = f64::from(self.tokens);
        (self.tokens > 0).then(|| (self.logprob / tokens, self.entropy / tokens))
    }
}

/// The curve of a model: from means to the probability that an answer is good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Curve {
    /// What is added.
    pub base: f64,
    /// For each nat of the mean log-probability.
    pub logprob: f64,
    /// For each nat of the mean entropy.
    pub entropy: f64,
}

impl Curve {
    /// Pulls the slopes towards 0, so that cases that a line divides have a curve too.
    const PENALTY: f64 = 0.01;
    /// Newton's method is there long before.
    const ROUNDS: usize = 50;

    /// The probability that an answer with these means is good, 0 to 1.
    pub fn probability(&self, logprob: f64, entropy: f64) -> f64 {
        1.0 / (1.0 + (-(self.base + self.logprob * logprob + self.entropy * entropy)).exp())
    }

    /// That of an answer; `None` before its first token.
    pub fn confidence(&self, certainty: &Certainty) -> Option<f64> {
        let (logprob, entropy) = certainty.means()?;
        Some(self.probability(logprob, entropy))
    }

    /// The most likely curve of these cases, by Newton's method; `None` unless there are good and bad ones.
    pub fn fit(cases: &[Case]) -> Option<Self> {
        if cases.iter().all(|case| case.good) || !cases.iter().any(|case| case.good) {
            return None;
        }
        let mut weights = [0.0; 3];
        for _ in 0..Self::ROUNDS {
            let curve = Self { base: weights[0], logprob: weights[1], entropy: weights[2] };
            let mut curvature = vec![vec![0.0; 3]; 3];
            let mut slope: Vec<f64> = weights.iter().map(|weight| -Self::PENALTY * weight).collect();
            for (at, row) in curvature.iter_mut().enumerate() {
                row[at] = Self::PENALTY;
            }
            for case in cases {
                let said = curve.probability(case.logprob, case.entropy);
                let row = [1.0, case.logprob, case.entropy];
                let weight = (said * (1.0 - said)).max(1e-9);
                for (at, value) in row.iter().enumerate() {
                    slope[at] += value * (f64::from(u8::from(case.good)) - said);
                    row.iter().zip(&mut curvature[at]).for_each(|(other, sum)| *sum += weight * value * other);
                }
            }
            let step = solve(curvature, slope);
            // A step too far would overshoot where the curve is flat.
            weights.iter_mut().zip(&step).for_each(|(weight, step)| *weight += step.clamp(-2.0, 2.0));
            if step.iter().all(|step| step.abs() < 1e-9) {
                break;
            }
        }
        weights.iter().all(|weight| weight.is_finite()).then_some(Self {
            base: weights[0],
            logprob: weights[1],
            entropy: weights[2],
        })
    }
}

/// The probability that a good answer has a higher value than a bad one (AUROC; equal values count half); `None` unless there are both.
pub fn separation(said: &[(f64, bool)]) -> Option<f64> {
    let mut sorted = said.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut bad, mut good, mut won) = (0.0, 0.0, 0.0);
    for equal in sorted.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
        let here = equal.iter().filter(|(_, good)| *good).count() as f64;
        let bad_here = equal.len() as f64 - here;
        won += here * (bad + bad_here / 2.0);
        bad += bad_here;
        good += here;
    }
    (bad > 0.0 && good > 0.0).then(|| won / (bad * good))
}

/// What each case is given by a curve that has not seen it: of `folds` parts, the others make it. `None` where a part's others are all good or
/// all bad.
pub fn cross_validate(cases: &[Case], folds: usize) -> Option<Vec<f64>> {
    let folds = folds.max(2);
    let curves: Vec<Curve> = (0..folds)
        .map(|fold| {
            let others = cases.iter().enumerate().filter(|(at, _)| at % folds != fold).map(|(_, case)| *case);
            Curve::fit(&others.collect::<Vec<_>>())
        })
        .collect::<Option<_>>()?;
    let said = cases.iter().enumerate().map(|(at, case)| curves[at % folds].probability(case.logprob, case.entropy));
    Some(said.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// That of the model that ships.
    const SHIPPED: Curve = Curve { base: 3.6, logprob: 4.102, entropy: -26.058 };

    /// Cases of which a curve tells how probable good ones are; `noise` are numbers from 0 to 1.
    fn drawn(curve: Curve, noise: &[(f64, f64, f64)]) -> Vec<Case> {
        noise
            .iter()
            .map(|(a, b, lot)| {
                let (logprob, entropy) = (-2.0 * a, 2.0 * b);
                Case { logprob, entropy, good: *lot < curve.probability(logprob, entropy) }
            })
            .collect()
    }

    fn lots(count: u64) -> Vec<(f64, f64, f64)> {
        let mut state = 7u64;
        let mut unit = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..count).map(|_| (unit(), unit(), unit())).collect()
    }

    #[test]
    fn a_fit_finds_the_curve_that_the_cases_were_drawn_from() {
        let drawn_from = Curve { base: 2.0, logprob: 3.0, entropy: -1.0 };
        let found = Curve::fit(&drawn(drawn_from, &lots(20_000))).unwrap();
        assert!((found.base - 2.0).abs() < 0.2, "{found:?}");
        assert!((found.logprob - 3.0).abs() < 0.2, "{found:?}");
        assert!((found.entropy + 1.0).abs() < 0.2, "{found:?}");
    }

    #[test]
    fn cases_that_a_line_divides_have_a_finite_curve_and_one_sided_ones_none() {
        let case = |logprob: f64| Case { logprob, entropy: 0.0, good: logprob > -1.0 };
        let divided: Vec<Case> = (0..100).map(|at| case(-0.02 * f64::from(at))).collect();
        let curve = Curve::fit(&divided).unwrap();
        assert!(curve.probability(0.0, 0.0) > 0.9 && curve.probability(-2.0, 0.0) < 0.1, "{curve:?}");
        assert_eq!(Curve::fit(&divided[..40]), None, "all good");
        assert_eq!(Curve::fit(&[]), None);
    }

    #[test]
    fn separation_is_the_share_of_pairs_in_the_right_order() {
        assert_eq!(separation(&[(0.1, false), (0.2, true), (0.3, false), (0.4, true)]), Some(0.75));
        assert_eq!(separation(&[(0.5, false), (0.5, true)]), Some(0.5));
        assert_eq!(separation(&[(0.5, true)]), None);
    }

    proptest! {
        #[test]
        fn a_surer_token_never_lowers_the_confidence(
            tokens in prop::collection::vec((-5f32..0.0, 0f32..4.0), 1..40), more in 0f32..2.0,
        ) {
            let confidence = |surer: f32| {
                let mut certainty = Certainty::default();
                for (at, (logprob, entropy)) in tokens.iter().enumerate() {
                    let by = if at == 0 { surer } else { 0.0 };
                    certainty.saw((logprob + by).min(0.0), (entropy - by).max(0.0));
                }
                SHIPPED.confidence(&certainty).unwrap()
            };
            prop_assert!(confidence(more) >= confidence(0.0) - 1e-12);
            prop_assert!((0.0..=1.0).contains(&confidence(0.0)));
        }

        #[test]
        fn whatever_an_engine_says_a_confidence_is_a_probability(logprob: f32, entropy: f32) {
            let mut certainty = Certainty::default();
            prop_assert_eq!(SHIPPED.confidence(&certainty), None);
            certainty.saw(logprob, entropy);
            let confidence = SHIPPED.confidence(&certainty).unwrap();
            prop_assert!((0.0..=1.0).contains(&confidence), "{confidence}");
            prop_assert!((0.0..=1.0).contains(&certainty.likelihood().unwrap()));
        }
    }
}
