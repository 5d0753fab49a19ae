//! A linear model over words and pairs of words: ridge regression on weighted places, kept in one byte for each weight.

use super::features::{BUCKETS, Seen};
use super::forest::{Outcome, take};

/// A rarity of 1 in the kept form.
const RARITY_STEP: f32 = 1.0 / 25.0;
/// Steps of the conjugate gradients: more change nothing that one byte could hold.
const STEPS: usize = 40;

/// Weights of gain and of failure for every place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Words {
    /// How rare a place is: the logarithm of all cases by those that have it; 0 where fewer than two had it.
    rarity: Vec<u8>,
    gain: Head,
    fails: Head,
}

#[derive(Debug, Clone, PartialEq)]
struct Head {
    base: f32,
    step: f32,
    weights: Vec<i8>,
}

/// A case as a sparse row of length 1.
type Row = Vec<(u16, f32)>;

impl Words {
    /// Fits both heads.
    pub(super) fn fit(seen: &[&Seen], outcomes: &[Outcome], penalty: f32) -> Self {
        let mut having = vec![0u32; BUCKETS];
        seen.iter().flat_map(|seen| &seen.buckets).for_each(|bucket| having[usize::from(*bucket)] += 1);
        let all = seen.len() as f32 + 1.0;
        let rarity = having.iter().map(|count| match count {
            0 | 1 => 0,
            count => ((1.0 + (all / (*count as f32 + 1.0)).ln()) / RARITY_STEP).round() as u8,
        });
        let rarity: Vec<u8> = rarity.collect();
        let rows: Vec<Row> = seen.iter().map(|seen| row(&rarity, seen)).collect();
        let head = |of: fn(&Outcome) -> f32| Head::fit(&rows, &outcomes.iter().map(of).collect::<Vec<_>>(), penalty);
        let (gain, fails) = (head(|outcome| outcome.gain), head(|outcome| outcome.fails));
        Self { rarity, gain, fails }
    }

    /// What the words say.
    pub(super) fn says(&self, seen: &Seen) -> Outcome {
        let (mut gain, mut fails, mut norm) = (0i64, 0i64, 0i64);
        for bucket in &seen.buckets {
            let bucket = usize::from(*bucket);
            let rarity = i64::from(self.rarity[bucket]);
            gain += rarity * i64::from(self.gain.weights[bucket]);
            fails += rarity * i64::from(self.fails.weights[bucket]);
            norm += rarity * rarity;
        }
        let norm = (norm.max(1) as f32).sqrt();
        Outcome {
            gain: self.gain.base + gain as f32 / norm * self.gain.step,
            fails: self.fails.base + fails as f32 / norm * self.fails.step,
        }
    }

    /// The bytes of the weights.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend(&self.rarity);
        for head in [&self.gain, &self.fails] {
            out.extend(head.base.to_le_bytes());
            out.extend(head.step.to_le_bytes());
            out.extend(head.weights.iter().map(|weight| *weight as u8));
        }
    }

    /// Reads weights.
    pub(super) fn read(bytes: &mut &[u8]) -> Option<Self> {
        let (rarity, rest) = bytes.split_at_checked(BUCKETS)?;
        *bytes = rest;
        let mut head = || {
            let base = f32::from_le_bytes(take(bytes)?);
            let step = f32::from_le_bytes(take(bytes)?);
            let (weights, rest) = bytes.split_at_checked(BUCKETS)?;
            *bytes = rest;
            let weights = weights.iter().map(|weight| *weight as i8).collect();
            (base.is_finite() && step.is_finite()).then_some(Head { base, step, weights })
        };
        let (gain, fails) = (head()?, head()?);
        Some(Self { rarity: rarity.to_vec(), gain, fails })
    }
}

fn row(rarity: &[u8], seen: &Seen) -> Row {
    let weighted = |bucket: &u16| (*bucket, f32::from(rarity[usize::from(*bucket)]));
    let mut row: Row = seen.buckets.iter().map(weighted).filter(|(_, rarity)| *rarity > 0.0).collect();
    let norm = row.iter().map(|(_, rarity)| rarity * rarity).sum::<f32>().max(1.0).sqrt();
    row.iter_mut().for_each(|(_, rarity)| *rarity /= norm);
    row
}

impl Head {
    /// Ridge regression by conjugate gradients on the normal equations.
    fn fit(rows: &[Row], wanted: &[f32], penalty: f32) -> Self {
        let base = wanted.iter().sum::<f32>() / wanted.len().max(1) as f32;
        let transposed = |values: &[f32]| {
            let mut sum = vec![0.0f32; BUCKETS];
            for (row, value) in rows.iter().zip(values) {
                row.iter().for_each(|(bucket, share)| sum[usize::from(*bucket)] += share * value);
            }
            sum
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let centred: Vec<f32> = wanted.iter().map(|value| value - base).collect();
        let mut weights = vec![0.0f32; BUCKETS];
        let mut residual = transposed(&centred);
        let mut direction = residual.clone();
        let mut size = dot(&residual, &residual);
        for _ in 0..STEPS {
            if size < 1e-9 {
                break;
            }
            let seen: Vec<f32> = rows
                .iter()
                .map(|row| row.iter().map(|(bucket, share)| share * direction[usize::from(*bucket)]).sum())
                .collect();
            let mut image = transposed(&seen);
            image.iter_mut().zip(&direction).for_each(|(image, along)| *image += penalty * along);
            let length = (size / dot(&direction, &image)) as f32;
            weights.iter_mut().zip(&direction).for_each(|(weight, along)| *weight += length * along);
            residual.iter_mut().zip(&image).for_each(|(left, image)| *left -= length * image);
            let next = dot(&residual, &residual);
            let kept = (next / size) as f32;
            direction.iter_mut().zip(&residual).for_each(|(along, left)| *along = left + kept * *along);
            size = next;
        }
        Self::kept(base, &weights)
    }

    /// In one byte for each weight; the greatest in a thousand are cut, so that the others keep their digits.
    fn kept(base: f32, weights: &[f32]) -> Self {
        let mut sizes: Vec<f32> = weights.iter().map(|weight| weight.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        let great = sizes[sizes.len() - 1 - sizes.len() / 1000];
        let step = if great > 0.0 { great / 127.0 } else { 1.0 };
        let weights = weights.iter().map(|weight| (weight / step).round().clamp(-127.0, 127.0) as i8).collect();
        Self { base, step, weights }
    }
}
