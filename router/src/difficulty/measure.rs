//! How good a score is: what it recovers of the gap between two models, how calibrated its probabilities are, and cross-validation.

use super::cases::Case;
use super::model::{Model, Prepared, Reading, Settings};
use super::text::mix;
use std::collections::BTreeMap;

/// A case with its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The higher, the sooner it goes to the strong model.
    pub score: f32,
    /// Whether the weak model was right.
    pub weak: bool,
    /// Whether the strong model was right.
    pub strong: bool,
}

/// The accuracy that is reached when ever more cases go to the strong model, the highest scores first.
#[derive(Debug, Clone)]
pub struct Curve {
    /// Right answers that are won over those of the weak model, after so many cases; equal scores share what they win.
    won: Vec<f64>,
    /// What all of them win.
    gap: f64,
}

impl Curve {
    /// The curve of some cases; none when the strong model is not the better one.
    pub fn of(cases: &[Scored]) -> Option<Self> {
        let mut cases = cases.to_vec();
        cases.sort_by(|a, b| b.score.total_cmp(&a.score));
        let mut won = vec![0.0];
        let mut sum = 0.0;
        for equal in cases.chunk_by(|a, b| a.score.total_cmp(&b.score).is_eq()) {
            let wins: f64 = equal.iter().map(|case| f64::from(i8::from(case.strong) - i8::from(case.weak))).sum();
            let each = wins / equal.len() as f64;
            won.extend((1..=equal.len()).map(|count| sum + each * count as f64));
            sum += wins;
        }
        (sum > 0.0).then_some(Self { won, gap: sum })
    }

    /// The share of the gap that is recovered when this share of the cases goes to the strong model.
    pub fn recovered(&self, share: f64) -> f64 {
        let place = share.clamp(0.0, 1.0) * (self.won.len() - 1) as f64;
        let (below, above) = (self.won[place.floor() as usize], self.won[place.ceil() as usize]);
        (below + (above - below) * place.fract()) / self.gap
    }

    /// APGR: the area under the recovered gap, by trapezoids at 0, 0.1 … 1. Random is 0.5.
    pub fn apgr(&self) -> f64 {
        let inner: f64 = (1..10).map(|tenth| self.recovered(f64::from(tenth) / 10.0)).sum();
        (inner + self.recovered(1.0) / 2.0) / 10.0
    }

    /// CPT: the least share of strong calls that recovers this share of the gap.
    pub fn calls_for(&self, recovered: f64) -> f64 {
        let count = self.won.iter().position(|won| *won >= recovered * self.gap - 1e-9);
        count.unwrap_or(self.won.len() - 1) as f64 / (self.won.len() - 1) as f64
    }
}

/// Mean and standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The standard deviation; 0 of a single value.
    pub deviation: f64,
}

impl Spread {
    /// Of some values.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Self { mean, deviation: (squares / (count - 1.0).max(1.0)).sqrt() }
    }
}

/// How far the APGR of these scores would scatter if other cases of the same kind had been drawn: the standard deviation over 200 draws
/// with replacement.
pub fn sampling_error(cases: &[Scored]) -> f64 {
    let draw = |round: u64| {
        let drawn = (0..cases.len() as u64).map(|place| {
            let number = mix(mix(place, round), 11);
            cases[((u128::from(number) * cases.len() as u128) >> 64) as usize]
        });
        Curve::of(&drawn.collect::<Vec<_>>()).map(|curve| curve.apgr())
    };
    Spread::of(&(0..200).filter_map(draw).collect::<Vec<_>>()).deviation
}

/// One repetition of a cross-validation: what a model that has not seen a case says of it, in the order of the cases.
pub type Unseen = Vec<Reading>;

/// Cross-validates: the cases are dealt into parts (prompts that differ only in case and marks into the same one, and each source over
/// all parts), and each part is read by a model that was trained, mixed and calibrated on the others. What is measured is the model in
/// the form in which it ships. `folds` is at least 2.
pub fn cross_validate(cases: &[Case], settings: &Settings, folds: usize, repeats: usize) -> Vec<Unseen> {
    let prepared = Prepared::of(cases);
    let repeat = |round: usize| {
        let parts = parts(cases, folds.max(2), round as u64);
        let mut readings = vec![Reading { gain: 0.0, weak_fails: 0.0 }; cases.len()];
        for part in 0..folds.max(2) {
            let others: Vec<usize> = (0..cases.len()).filter(|place| parts[*place] != part).collect();
            let model = Model::train_on(&prepared, &others, settings);
            let shipped = Model::from_bytes(&model.to_bytes()).unwrap_or(model);
            for place in (0..cases.len()).filter(|place| parts[*place] == part) {
                readings[place] = shipped.reads(&prepared.seen[place]);
            }
        }
        readings
    };
    (0..repeats).map(repeat).collect()
}

/// The part of each case.
fn parts(cases: &[Case], folds: usize, round: u64) -> Vec<usize> {
    let hashes: Vec<u64> = cases.iter().map(Case::words).collect();
    let mut order: Vec<usize> = (0..cases.len()).collect();
    order.sort_by_key(|place| (&cases[*place].source, mix(hashes[*place], round.wrapping_add(101)), *place));
    let mut part_of = BTreeMap::new();
    let mut next = 0;
    for place in order {
        part_of.entry(hashes[place]).or_insert_with(|| {
            next += 1;
            next % folds
        });
    }
    hashes.iter().map(|hash| part_of.get(hash).copied().unwrap_or(0)).collect()
}

/// A row of a reliability table: cases with similar probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// The mean of what was said.
    pub said: f64,
    /// The share in which it happened.
    pub happened: f64,
    /// How many cases.
    pub cases: usize,
}

/// How calibrated probabilities are.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// The mean squared error.
    pub brier: f64,
    /// That of saying the same for all: the share in which it happened.
    pub brier_constant: f64,
    /// Ten rows of as many cases each, the least probable first.
    pub bins: Vec<Bin>,
    /// The mean distance between what was said and what happened in them, by cases (ECE).
    pub error: f64,
}

impl Calibration {
    /// Of pairs of a probability and whether it happened; none without any.
    pub fn of(said: &[(f32, bool)]) -> Option<Self> {
        if said.is_empty() {
            return None;
        }
        let count = said.len() as f64;
        let value = |happened: bool| f64::from(u8::from(happened));
        let brier = said.iter().map(|(said, happened)| (f64::from(*said) - value(*happened)).powi(2)).sum::<f64>();
        let share = said.iter().map(|(_, happened)| value(*happened)).sum::<f64>() / count;
        let mut sorted = said.to_vec();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let bins = sorted.chunks(sorted.len().div_ceil(10)).map(|bin| {
            let cases = bin.len() as f64;
            Bin {
                said: bin.iter().map(|(said, _)| f64::from(*said)).sum::<f64>() / cases,
                happened: bin.iter().map(|(_, happened)| value(*happened)).sum::<f64>() / cases,
                cases: bin.len(),
            }
        });
        let bins: Vec<Bin> = bins.collect();
        let error = bins.iter().map(|bin| (bin.said - bin.happened).abs() * bin.cases as f64).sum::<f64>() / count;
        Some(Self { brier: brier / count, brier_constant: share * (1.0 - share), bins, error })
    }
}

/// The threshold above which this share of the scores lies, and the share that really does: equal scores stay together. A request goes to
/// the strong model when its score is at least the threshold. None without scores.
pub fn threshold(scores: &[f32], share: f64) -> Option<(f32, f64)> {
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let wanted = (share.clamp(0.0, 1.0) * sorted.len() as f64).round() as usize;
    let threshold = match wanted {
        // Above all scores: nobody goes.
        0 => sorted.first()?.next_up(),
        wanted => *sorted.get(wanted - 1)?,
    };
    let sent = sorted.iter().filter(|score| **score >= threshold).count();
    Some((threshold, sent as f64 / sorted.len() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(all: &[(f32, u8, u8)]) -> Vec<Scored> {
        all.iter()
            .map(|(score, weak, strong)| Scored { score: *score, weak: *weak == 1, strong: *strong == 1 })
            .collect()
    }

    #[test]
    fn a_perfect_order_recovers_all_at_once_and_equal_scores_are_random() {
        let perfect = scored(&[(0.9, 0, 1), (0.1, 1, 1), (0.2, 1, 1), (0.3, 0, 0)]);
        let curve = Curve::of(&perfect).unwrap();
        assert!((curve.calls_for(1.0) - 0.25).abs() < 1e-9);
        assert!((curve.recovered(0.125) - 0.5).abs() < 1e-9);
        let equal = scored(&[(0.5, 0, 1), (0.5, 1, 1), (0.5, 1, 0), (0.5, 0, 1)]);
        assert!((Curve::of(&equal).unwrap().apgr() - 0.5).abs() < 1e-9);
        assert!(Curve::of(&scored(&[(0.5, 1, 0)])).is_none());
    }

    #[test]
    fn a_strong_model_that_harms_is_recovered_beyond_the_gap() {
        let curve = Curve::of(&scored(&[(0.9, 0, 1), (0.8, 0, 1), (0.1, 1, 0)])).unwrap();
        assert!((curve.recovered(2.0 / 3.0) - 2.0).abs() < 1e-9);
        assert!((curve.recovered(1.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_same_words_are_in_the_same_part() {
        let case = |source: &str, prompt: String| Case { source: source.into(), prompt, weak: true, strong: true };
        let mut cases: Vec<Case> = (0..40).map(|at| case("a", format!("Question number {at}?"))).collect();
        cases.extend((0..40).map(|at| case("b", format!("question  NUMBER {at}"))));
        let parts = parts(&cases, 5, 3);
        assert_eq!(parts[..40], parts[40..]);
        assert!((0..5).all(|part| parts[..40].iter().filter(|at| **at == part).count() == 8), "{parts:?}");
    }

    #[test]
    fn a_threshold_sends_the_share_that_was_wanted() {
        let scores = [0.1, 0.4, 0.2, 0.3];
        assert_eq!(threshold(&scores, 0.5), Some((0.3, 0.5)));
        assert_eq!(threshold(&scores, 1.0), Some((0.1, 1.0)));
        assert_eq!(threshold(&scores, 0.0).map(|(_, share)| share), Some(0.0));
        assert_eq!(threshold(&[0.2, 0.2], 0.5), Some((0.2, 1.0)));
        assert_eq!(threshold(&[], 0.5), None);
    }

    #[test]
    fn calibration_of_what_always_happens_as_said_is_good() {
        let said: Vec<(f32, bool)> = (0..100).map(|at| (0.25, at % 4 == 0)).collect();
        let calibration = Calibration::of(&said).unwrap();
        assert!((calibration.brier - calibration.brier_constant).abs() < 1e-6 && calibration.bins.len() == 10);
        assert!(Calibration::of(&[]).is_none());
    }
}
