//! What is normal: how fast the agent works when it works, how much that differs, and the size of the lumps its work comes in.

use super::session::Rates;
use serde::{Deserialize, Serialize};

const MICROS: f64 = 1e6;
/// The busy rate is at most so many times the mean one.
const MOST_BUSY: f64 = 4.0;
/// A known agent's normal is at least the assumed one divided by this.
const FLOOR_SHARE: f64 = 8.0;
/// The same for lumps.
const LARGEST_LUMP: f64 = 10.0;
/// History that counts so many times as much as the assumption is enough to go by.
const KNOWN: f64 = 8.0;
/// Spread of the rate from one session to the next (standard deviation of its logarithm) that is assumed without history,
/// and how many seconds of work that counts for.
const ASSUMED_SPREAD: f64 = 0.4;
const ASSUMED_SPREAD_FOR: f64 = 7_200.0;
/// A wider spread is different kinds of work rather than chance, and the busy rate is nearer the fastest of them.
const WIDEST_SPREAD: f64 = 0.7;
/// How many lumps are assumed in a minute.
const ASSUMED_LUMPS: f64 = 4.0;
/// Seconds of work after which an older one counts for less: a day of it.
const MEMORY: f64 = 86_400.0;

/// How far a baseline looks. Times are in microseconds, unless they say otherwise.
#[derive(Debug)]
pub(super) struct Horizon {
    /// Length of a bin, which begins with the first amount in it.
    span: i64,
    /// Length of the bins while little is known.
    first_span: i64,
    /// Rest that ends a bin before its time, so that it counts work only; also the shortest that a bin then is.
    rest: Option<i64>,
    /// Amounts within this time are one lump: parallel tool calls, or the pieces of one settlement. With zero each amount is
    /// one, and all are 1.
    slice: i64,
    /// Whether its lumps come at random within a bin, so that their chance is not taken for a spread of the rate.
    random: bool,
    /// A rate above so many times normal is learned as if it were so many times normal.
    most_learned: f64,
    /// How many seconds of work the assumed rate counts for.
    assumed: f64,
    /// The assumed lump is what the assumed rate comes to in so many seconds.
    assumed_lump: f64,
}

/// For runaways: minutes of work.
pub(super) const FAST: Horizon = Horizon {
    span: 900_000_000,
    first_span: 60_000_000,
    rest: Some(60_000_000),
    slice: 1_000_000,
    random: true,
    most_learned: 2.5,
    assumed: 900.0,
    assumed_lump: 8.0,
};
/// The same for what comes one by one.
pub(super) const SINGLE: Horizon = Horizon { slice: 0, ..FAST };
/// For drifts: half hours in which there was work, rest included; each is one lump.
pub(super) const SLOW: Horizon = Horizon {
    span: 1_800_000_000,
    first_span: 1_800_000_000,
    rest: None,
    slice: 1_800_000_000,
    random: false,
    most_learned: 2.0,
    assumed: 3600.0,
    assumed_lump: 1800.0,
};

/// What was learned of one measure at one horizon, in its unit (nano-dollars, tokens or calls); all zero when nothing was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Learned {
    /// Seconds of work seen, up to a day of it.
    work: f64,
    /// The mean rate while working, per second, and the mean of its square without what chance adds to that.
    rate: f64,
    rate_squares: f64,
    /// The squares of lumps and their cubes, per second of work: the quotient is the lump to reckon with.
    squares: f64,
    cubes: f64,
}

impl Learned {
    /// Whatever a store gave back: what cannot have been learned is forgotten.
    fn checked(self) -> Self {
        let parts = [self.work, self.rate, self.rate_squares, self.squares, self.cubes];
        let plausible = parts.iter().all(|part| part.is_finite() && (0.0..1e90).contains(part));
        if plausible { Self { work: self.work.min(MEMORY), ..self } } else { Self::default() }
    }
}

/// Learns one measure at one horizon.
#[derive(Debug, Clone)]
pub(super) struct Learner {
    horizon: &'static Horizon,
    /// The rate assumed without history, per second; more than 0.
    assumed: f64,
    learned: Learned,
    bin: Option<Bin>,
}

/// The bin that amounts are added to.
#[derive(Debug, Clone, Copy)]
struct Bin {
    start: i64,
    last: i64,
    sum: f64,
    slice: i64,
    slice_sum: f64,
    squares: f64,
    cubes: f64,
    /// Something in it was refused or slowed down: it is no example of normal work.
    spoilt: bool,
}

impl Learner {
    pub(super) fn new(horizon: &'static Horizon, assumed: f64, learned: Learned) -> Self {
        Self { horizon, assumed: assumed.clamp(1e-6, 1e18), learned: learned.checked(), bin: None }
    }

    pub(super) fn learned(&self) -> Learned {
        self.learned
    }

    /// Whether there is much more history than assumption.
    pub(super) fn is_known(&self) -> bool {
        self.learned.work >= KNOWN * self.horizon.assumed
    }

    /// The normal rate per second, always more than 0: that of its busier times, as each unit weighs what others come with it.
    pub(super) fn rate(&self) -> f64 {
        let (mean, squares) = self.moments();
        (squares / mean).clamp(mean, MOST_BUSY * mean).max(self.assumed / FLOOR_SHARE)
    }

    /// How the rate differs from session to session; `None` while too little is known.
    pub(super) fn rates(&self) -> Option<Rates> {
        if !self.is_known() {
            return None;
        }
        let Learned { work, rate, rate_squares, .. } = self.learned;
        let mean = rate.max(self.assumed * 1e-3);
        let seen = (rate_squares / (mean * mean)).max(1.0).ln();
        let assumed = ASSUMED_SPREAD * ASSUMED_SPREAD;
        let variance = (ASSUMED_SPREAD_FOR * assumed + work * seen) / (ASSUMED_SPREAD_FOR + work);
        Some(Rates { mean, spread: variance.sqrt().min(WIDEST_SPREAD) })
    }

    /// Mean and mean square of the rate. The assumption counts for less and less until enough is known.
    fn moments(&self) -> (f64, f64) {
        let Learned { work, rate, rate_squares, .. } = self.learned;
        let weight = self.weight_of_assumption();
        let mean = |assumed: f64, seen: f64| (weight * assumed + work * seen) / (weight + work);
        (mean(self.assumed, rate).max(f64::MIN_POSITIVE), mean(self.assumed * self.assumed, rate_squares))
    }

    /// In seconds of work.
    fn weight_of_assumption(&self) -> f64 {
        self.horizon.assumed * (1.0 - self.learned.work / (KNOWN * self.horizon.assumed)).max(0.0)
    }

    /// The lump to reckon with, always more than 0: `E[x³]/E[x²]`, nearer the large ones than the typical, for those are
    /// what fills a bucket by chance.
    pub(super) fn lump(&self) -> f64 {
        if self.horizon.slice == 0 {
            return 1.0;
        }
        let assumed = self.assumed * self.horizon.assumed_lump;
        let squares = assumed * assumed * ASSUMED_LUMPS / 60.0 * self.horizon.assumed;
        let Learned { work, squares: seen, cubes, .. } = self.learned;
        (squares * assumed + work * cubes) / (squares + work * seen)
    }

    /// Adds an amount. Returns whether what is normal changed, which it does when a bin ends.
    pub(super) fn add(&mut self, now: i64, amount: f64, example: bool) -> bool {
        let seconds = self.bin.as_ref().and_then(|bin| self.ended(bin, now));
        let learned = seconds.is_some_and(|seconds| self.learn(seconds));
        let fresh = Bin {
            start: now,
            last: now,
            sum: 0.0,
            slice: now,
            slice_sum: 0.0,
            squares: 0.0,
            cubes: 0.0,
            spoilt: false,
        };
        let bin = self.bin.get_or_insert(fresh);
        if now.saturating_sub(bin.slice) >= self.horizon.slice {
            bin.end_slice();
            bin.slice = now;
        }
        bin.last = now;
        bin.sum += amount;
        bin.slice_sum += amount;
        bin.spoilt |= !example;
        learned
    }

    /// The seconds of work that the bin was, if it has ended by now.
    fn ended(&self, bin: &Bin, now: i64) -> Option<f64> {
        let span = if self.learned.work >= self.horizon.assumed { self.horizon.span } else { self.horizon.first_span };
        let rested = self.horizon.rest.filter(|rest| now.saturating_sub(bin.last) > *rest);
        let length = match rested {
            Some(rest) => bin.last.saturating_sub(bin.start).max(rest),
            None if now.saturating_sub(bin.start) >= span && self.horizon.rest.is_some() => {
                now.saturating_sub(bin.start)
            }
            None if now.saturating_sub(bin.start) >= span => span,
            None => return None,
        };
        Some(length as f64 / MICROS)
    }

    fn learn(&mut self, seconds: f64) -> bool {
        let Some(mut bin) = self.bin.take() else { return false };
        bin.end_slice();
        if bin.spoilt || bin.sum <= 0.0 {
            return false;
        }
        let (normal, lump) = (self.rate(), self.lump());
        let seen = (bin.sum / seconds).min(self.horizon.most_learned * normal);
        // Of amounts that come at random, the sum's variance is the mean of the sum of their squares.
        let chance = if self.horizon.random { bin.squares / (bin.sum * bin.sum) } else { 0.0 };
        let cubes = bin.cubes.min(LARGEST_LUMP * lump * bin.squares);
        let learned = &mut self.learned;
        learned.work = (learned.work + seconds).min(MEMORY);
        let step = (seconds / learned.work).min(1.0);
        learned.rate += step * (seen - learned.rate);
        learned.rate_squares += step * (seen * seen * (1.0 - chance) - learned.rate_squares);
        learned.squares += step * (bin.squares / seconds - learned.squares);
        learned.cubes += step * (cubes / seconds - learned.cubes);
        true
    }

    /// What is in no whole bin yet is no example any more.
    pub(super) fn spoil(&mut self) {
        self.bin = None;
    }
}

impl Bin {
    fn end_slice(&mut self) {
        self.squares += self.slice_sum * self.slice_sum;
        self.cubes += self.slice_sum * self.slice_sum * self.slice_sum;
        self.slice_sum = 0.0;
    }
}
