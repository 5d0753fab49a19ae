//! One measure (USD, tokens or calls): buckets that drain at multiples of what is normal, and are full when it is too fast.

use super::baseline::{FAST, Learned, Learner, SINGLE, SLOW};
use super::session::Session;
use serde::{Deserialize, Serialize};

/// Stages that a rate can lead to.
pub(super) const STAGES: usize = 5;
/// Fewer calls than this are no evidence, however dear.
const LEAST_CALLS: u64 = 5;
/// Nor is what lasts less than this, in microseconds: two fan-outs of tool calls that happen to meet.
const LEAST_EXCESS: i64 = 8_000_000;
/// Of whom little is known is told and throttled, which already bounds what it spends to what is assumed to be normal.
const STAGES_OF_THE_UNKNOWN: u8 = 0b11;
/// It is told of only because of requests one by one: a busy beginner may have a small share of its cap in mind.
const SINGLE_STAGES_OF_THE_UNKNOWN: u8 = 0b1;
/// How sure each stage must be: about the negative natural logarithm of the chance that normal work fills its bucket at a
/// given call. The later stages are reached only through the first, and so need less of their own.
const EVIDENCE: [f64; STAGES] = [13.5, 8.5, 8.5, 8.5, 8.5];
/// The same in its busiest sessions, of which there are few.
const BUSIEST_EVIDENCE: [f64; STAGES] = [11.0, 6.5, 6.5, 6.5, 6.5];
/// The first stage begins at so many times the rate of the busiest sessions at least.
const ABOVE_BUSIEST: f64 = 1.9;
/// So many times that evidence is asked of measures whose lumps have long tails.
const LONG_TAILED: f64 = 1.5;
/// The same for drifts, of which there are fewer chances.
const DRIFT_EVIDENCE: f64 = 6.0;
/// The present rate is that of so long, in microseconds.
const PRESENT: f64 = 60_000_000.0;
/// Steps of Newton's method.
const NEWTON: usize = 12;
/// An amount counts as so many lumps at most: prices have long tails, and one dear call is no excess.
const MOST_LUMPS: f64 = 4.0;

/// When buckets are full.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Multiples of normal, for every stage; those of stages that are off matter to nobody.
    stages: [f64; STAGES],
    /// Depths in lumps against chance in normal work, for every stage.
    depths: [f64; STAGES],
    /// How much more evidence than that of single requests is asked for.
    tails: f64,
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
        Self { stages, depths, tails: 1.0, drift, drift_depth: DRIFT_EVIDENCE / exponent(drift) }
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
    /// So many times the evidence is asked for.
    doubt: f64,
    /// The stages that it leads to while little is known.
    unknown: u8,
    /// Depth that no bucket exceeds unless that is fewer than [`LEAST_CALLS`] lumps.
    most_depth: f64,
    fast: Learner,
    slow: Learner,
    /// Of what comes one by one: the present session.
    session: Option<Session>,
    /// What an amount counts for at most in the buckets of the stages.
    most: f64,
    last: i64,
    buckets: [Bucket; STAGES],
    drift: Bucket,
    /// Since when the first bucket was not empty, how many calls there were before, and what came since.
    since: i64,
    calls_before: u64,
    sum: f64,
    /// What came of late, less and less of it with time.
    recent: f64,
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
    /// What comes one by one; `assumed` is the rate per second that is normal without history.
    pub(super) fn single(bounds: Bounds, assumed: f64, learned: LearnedMeasure) -> Self {
        let fast = Learner::new(&SINGLE, assumed, learned.fast);
        let session = Some(Session::default());
        let unknown = SINGLE_STAGES_OF_THE_UNKNOWN;
        let mut gauge = Self { fast, session, unknown, ..Self::new(bounds, assumed, None, learned) };
        gauge.resize_fast();
        gauge
    }

    /// What comes in lumps of any size.
    pub(super) fn lumps(mut bounds: Bounds, assumed: f64, most_depth: Option<f64>, learned: LearnedMeasure) -> Self {
        bounds.tails = LONG_TAILED;
        Self::new(bounds, assumed, most_depth, learned)
    }

    fn new(bounds: Bounds, assumed: f64, most_depth: Option<f64>, learned: LearnedMeasure) -> Self {
        let mut gauge = Self {
            bounds,
            doubt: 1.0,
            unknown: STAGES_OF_THE_UNKNOWN,
            most_depth: most_depth.unwrap_or(f64::MAX),
            fast: Learner::new(&FAST, assumed, learned.fast),
            slow: Learner::new(&SLOW, assumed, learned.slow),
            session: None,
            most: 0.0,
            last: i64::MIN,
            buckets: Default::default(),
            drift: Bucket::default(),
            since: 0,
            calls_before: 0,
            sum: 0.0,
            recent: 0.0,
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
        let learned = self.fast.add(now, amount, example);
        let stepped = self.session.as_mut().is_some_and(|session| session.add(now));
        if learned || stepped {
            self.resize_fast();
        }
        if self.slow.add(now, amount, example) {
            self.resize_slow();
        }
        let passed = now.saturating_sub(self.last).max(0) as f64;
        self.last = now;
        self.recent = self.recent * (-passed / PRESENT).exp() + amount;
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
            full.stages &= self.unknown;
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

    /// From now on asks for so many times the evidence.
    pub(super) fn doubt(&mut self, times: f64) {
        self.doubt = times;
        self.resize_fast();
        self.resize_slow();
    }

    /// Whether there is much more history than assumption.
    pub(super) fn is_known(&self) -> bool {
        self.fast.is_known()
    }

    /// The rate per second of the last minute or so.
    pub(super) fn present(&self, now: i64) -> f64 {
        let passed = now.saturating_sub(self.last).max(0) as f64;
        self.recent * (-passed / PRESENT).exp() * 1e6 / PRESENT
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

    fn resize_fast(&mut self) {
        let (rate, lump) = (self.fast.rate(), self.fast.lump());
        let [first, ..] = self.bounds.stages;
        let rates = self.fast.rates();
        let busiest = rates.map(|rates| self.session.map_or(rates.busiest(), |session| session.busiest(rates)));
        let rate = busiest.map_or(rate, |busiest| rate.max(busiest * ABOVE_BUSIEST / first));
        self.most = MOST_LUMPS * lump;
        let mut most = f64::MAX;
        if !self.fast.is_known() && self.most_depth < f64::MAX {
            // How dear its calls are is not known yet: a few that the cap feels are enough.
            let least = LEAST_CALLS as f64;
            most = self.most_depth.max(least * lump);
            self.most = self.most.max(self.most_depth / least);
        }
        for (stage, bucket) in self.buckets.iter_mut().enumerate() {
            let drain = rate * self.bounds.stages[stage];
            let in_busiest = busiest.map_or(0.0, |busiest| BUSIEST_EVIDENCE[stage] / exponent(drain / busiest));
            let depth = self.bounds.depths[stage].max(in_busiest) * self.bounds.tails * self.doubt;
            bucket.drain = drain / 1e6;
            bucket.depth = (depth * lump).min(most);
        }
    }

    fn resize_slow(&mut self) {
        let rate = self.slow.rate();
        self.drift.drain = rate * self.bounds.drift / 1e6;
        self.drift.depth = self.slow.lump() * self.bounds.drift_depth * self.doubt;
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
    // Newton's method from above; the function is convex.
    let mut theta = 2.0 * k.ln() + 0.1;
    for _ in 0..NEWTON {
        let grown = theta.exp();
        theta -= (grown - 1.0 - k * theta) / (grown - k);
    }
    theta
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
