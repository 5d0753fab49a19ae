//! One measure (USD, tokens or calls): buckets that drain at multiples of what is normal, and are full when it is too fast.

use super::baseline::{FAST, Learned, Learner, SLOW};
use serde::{Deserialize, Serialize};

/// Stages that a rate can lead to.
pub(super) const STAGES: usize = 5;
/// Fewer calls than this are no evidence, however dear.
const LEAST_CALLS: u64 = 5;
/// Nor is what lasts less than this, in microseconds: two fan-outs of tool calls that happen to meet.
const LEAST_EXCESS: i64 = 8_000_000;
/// Of whom little is known is told and throttled, which already bounds what it spends to what is assumed to be normal.
const STAGES_OF_THE_UNKNOWN: u8 = 0b11;
/// How sure each stage must be: about the negative natural logarithm of the chance that normal work fills its bucket at a
/// given call. The later stages are reached only through the first, and so need less of their own.
const EVIDENCE: [f64; STAGES] = [11.0, 8.5, 8.5, 8.5, 8.5];
/// The same times for measures whose lumps have long tails.
const LONG_TAILED: f64 = 1.5;
/// The same for drifts, of which there are fewer chances.
const DRIFT_EVIDENCE: f64 = 8.0;
/// An amount counts as so many lumps at most: prices have long tails, and one dear call is no excess.
const MOST_LUMPS: f64 = 4.0;

/// When buckets are full.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Multiples of normal, for every stage; those of stages that are off matter to nobody.
    stages: [f64; STAGES],
    /// Depths in lumps, for every stage.
    depths: [f64; STAGES],
    /// Multiple of normal that is a drift.
    drift: f64,
    drift_depth: f64,
}

impl Bounds {
    pub(super) fn new(stages: [f64; STAGES], drift: f64) -> Self {
        let mut depths = EVIDENCE;
        for (depth, multiple) in depths.iter_mut().zip(stages) {
            *depth /= exponent(multiple);
        }
        Self { stages, depths, drift, drift_depth: DRIFT_EVIDENCE / exponent(drift) }
    }
}

/// What was learned of one measure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LearnedMeasure {
    /// Over minutes of work.
    fast: Learned,
    /// Over half hours of work.
    slow: Learned,
}

/// What one amount came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Full {
    /// A bit for each stage whose bucket is full.
    pub(super) stages: u8,
    /// Whether the drift's is.
    pub(super) drift: bool,
}

/// One measure of one agent or run.
#[derive(Debug, Clone)]
pub(super) struct Gauge {
    bounds: Bounds,
    /// Depth that no bucket exceeds unless that is fewer than [`LEAST_CALLS`] lumps.
    most_depth: f64,
    fast: Learner,
    slow: Learner,
    /// What an amount counts for at most in the buckets of the stages.
    most: f64,
    last: i64,
    buckets: [Bucket; STAGES],
    drift: Bucket,
    /// Since when the first bucket was not empty, how many calls there were before, and what came since.
    since: i64,
    calls_before: u64,
    sum: f64,
}

/// A bucket in the measure's unit.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    level: f64,
    depth: f64,
    /// Per microsecond.
    drain: f64,
    full: bool,
}

impl Gauge {
    /// `assumed` is the rate per second that is normal without history.
    pub(super) fn new(bounds: Bounds, assumed: f64, most_depth: Option<f64>, learned: LearnedMeasure) -> Self {
        let mut gauge = Self {
            bounds,
            most_depth: most_depth.unwrap_or(f64::MAX),
            fast: Learner::new(&FAST, assumed, learned.fast),
            slow: Learner::new(&SLOW, assumed, learned.slow),
            most: 0.0,
            last: i64::MIN,
            buckets: Default::default(),
            drift: Bucket::default(),
            since: 0,
            calls_before: 0,
            sum: 0.0,
        };
        gauge.resize_fast();
        gauge.resize_slow();
        gauge
    }

    pub(super) fn learned(&self) -> LearnedMeasure {
        LearnedMeasure { fast: self.fast.learned(), slow: self.slow.learned() }
    }

    /// Adds an amount, the `calls`-th call being the newest. `example` says whether it may teach what is normal.
    pub(super) fn add(&mut self, now: i64, amount: f64, calls: u64, example: bool) -> Full {
        if amount <= 0.0 {
            return Full::default();
        }
        if self.fast.add(now, amount, example) {
            self.resize_fast();
        }
        if self.slow.add(now, amount, example) {
            self.resize_slow();
        }
        let passed = now.saturating_sub(self.last).max(0) as f64;
        self.last = now;
        let mut full = Full { stages: 0, drift: self.drift.pour(passed, amount) };
        if self.buckets[0].is_empty_after(passed) {
            (self.since, self.calls_before, self.sum) = (now, calls.saturating_sub(1), 0.0);
        }
        self.sum += amount;
        for (stage, bucket) in self.buckets.iter_mut().enumerate() {
            full.stages |= u8::from(bucket.pour(passed, amount.min(self.most))) << stage;
        }
        let lasted = now.saturating_sub(self.since);
        if calls.saturating_sub(self.calls_before) < LEAST_CALLS || lasted < LEAST_EXCESS {
            full.stages = 0;
        }
        if !self.fast.is_known() {
            full.stages &= STAGES_OF_THE_UNKNOWN;
        }
        full
    }

    /// Empties the buckets; what is normal stays.
    pub(super) fn clear(&mut self) {
        for bucket in self.buckets.iter_mut().chain([&mut self.drift]) {
            (bucket.level, bucket.full) = (0.0, false);
        }
        self.fast.spoil();
        self.slow.spoil();
    }

    /// Whether there is much more history than assumption.
    pub(super) fn is_known(&self) -> bool {
        self.fast.is_known()
    }

    /// The normal rate per second.
    pub(super) fn normal(&self) -> f64 {
        self.fast.rate()
    }

    /// The normal rate per second by the slow baseline.
    pub(super) fn slow_normal(&self) -> f64 {
        self.slow.rate()
    }

    /// The rate per second since the agent became faster than the first stage allows, over at least five seconds.
    pub(super) fn excess_rate(&self) -> f64 {
        self.sum * 1e6 / (self.last.saturating_sub(self.since).max(5_000_000) as f64)
    }

    /// Seconds of normal work that a call has come to since then.
    pub(super) fn seconds_of_a_call(&self, calls: u64) -> f64 {
        self.sum / calls.saturating_sub(self.calls_before).max(1) as f64 / self.normal()
    }

    /// Asks for more evidence, where lumps have long tails.
    pub(super) fn long_tailed(mut self) -> Self {
        self.bounds.depths.iter_mut().for_each(|depth| *depth *= LONG_TAILED);
        self.resize_fast();
        self
    }

    fn resize_fast(&mut self) {
        let (rate, lump) = (self.fast.rate(), self.fast.lump());
        let least = LEAST_CALLS as f64;
        let most = self.most_depth.max(least * lump);
        self.most = MOST_LUMPS * lump;
        if !self.fast.is_known() && self.most_depth < f64::MAX {
            // How dear its calls are is not known yet: a few that the cap feels are enough.
            self.most = self.most.max(self.most_depth / least);
        }
        for ((bucket, multiple), depth) in self.buckets.iter_mut().zip(self.bounds.stages).zip(self.bounds.depths) {
            bucket.drain = rate * multiple / 1e6;
            bucket.depth = (depth * lump).min(most);
        }
    }

    fn resize_slow(&mut self) {
        let rate = self.slow.rate();
        self.drift.drain = rate * self.bounds.drift / 1e6;
        self.drift.depth = self.slow.lump() * self.bounds.drift_depth;
    }
}

impl Bucket {
    fn is_empty_after(&self, micros: f64) -> bool {
        self.level <= self.drain * micros
    }

    /// Drains it for so long and then pours an amount in; what does not fit flows over. Returns whether it is full: it was, and is still
    /// full by half.
    fn pour(&mut self, micros: f64, amount: f64) -> bool {
        self.level = ((self.level - self.drain * micros).max(0.0) + amount).min(self.depth);
        self.full = self.level >= self.depth || self.full && self.level >= self.depth / 2.0;
        self.full
    }
}

/// The θ > 0 with e^θ = 1 + kθ: for calls that come at random (Poisson) at rate 1, the chance that a bucket which drains at
/// rate `k` holds `h` or more is at most e^(−θh).
fn exponent(k: f64) -> f64 {
    let (mut low, mut high) = (1e-3, 20.0);
    for _ in 0..48 {
        let middle = f64::midpoint(low, high);
        let below = middle.exp_m1() < k * middle;
        *(if below { &mut low } else { &mut high }) = middle;
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_solves_its_equation() {
        for k in [1.1, 2.0, 3.0, 5.0, 16.0, 10_000.0] {
            let theta = exponent(k);
            assert!((theta.exp() - 1.0 - k * theta).abs() < 1e-6 * k, "{k}: {theta}");
        }
    }
}
