//! What outcomes say of tiers: evidence that fades, what is believed because of it, and with which tier a pyramid therefore begins.
//!
//! Evidence is kept by whoever calls, for each alias, type of task, tier that the difficulty says, and tier that answered. Only where a pyramid
//! begins comes of it, and only among tiers that can answer anyway: nothing that is learned lets a request reach what it could not reach before.

mod beta;
mod choice;

pub use beta::Beta;
pub use choice::{Choice, choose};

use std::time::Duration;

/// Evidence beyond so many outcomes makes room for new: what happened since counts against a bounded past, however much of it there was.
pub const MOST_EVIDENCE: f64 = 100.0;

/// Outcomes that what the difficulty says counts for, of a tier that is expected to do well: one bad word alone moves nothing.
const EXPECTED: f64 = 10.0;

/// The same of a tier that is not: trials are few, and have to be enough to find out.
const DOUBTED: f64 = 4.0;

/// Outcomes of one tier, each counted by its weight and by how long ago it was.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Evidence {
    /// Outcomes that were good.
    pub good: f64,
    /// Those that were not.
    pub bad: f64,
    /// As of when, in milliseconds since 1970.
    pub at_ms: i64,
}

/// One outcome.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// How good it was, 0 to 1.
    pub score: f64,
    /// How much it counts; 1 is somebody's word.
    pub weight: f64,
    /// When it was told, in milliseconds since 1970.
    pub at_ms: i64,
}

impl Evidence {
    /// The same as of later: half of it is left after each half-life.
    #[must_use]
    pub fn aged(self, now_ms: i64, half_life: Duration) -> Self {
        let left = left(self.at_ms, now_ms, half_life);
        Self { good: self.good * left, bad: self.bad * left, at_ms: self.at_ms.max(now_ms) }
    }

    /// Counts an outcome.
    pub fn add(&mut self, outcome: Outcome, half_life: Duration) {
        *self = self.aged(outcome.at_ms, half_life);
        self.good += outcome.weight * outcome.score;
        self.bad += outcome.weight * (1.0 - outcome.score);
        let all = self.all();
        if all > MOST_EVIDENCE {
            self.good *= MOST_EVIDENCE / all;
            self.bad *= MOST_EVIDENCE / all;
        }
    }

    /// Takes back an outcome, with what it has faded by since. What had to make room for new evidence meanwhile is not known of a single
    /// outcome, so that a little too much may be taken, but never more than there is.
    pub fn take_back(&mut self, outcome: Outcome, now_ms: i64, half_life: Duration) {
        *self = self.aged(now_ms, half_life);
        let weight = outcome.weight * left(outcome.at_ms, now_ms, half_life);
        self.good = (self.good - weight * outcome.score).max(0.0);
        self.bad = (self.bad - weight * (1.0 - outcome.score)).max(0.0);
    }

    /// How much there is, in outcomes of weight 1.
    pub fn all(self) -> f64 {
        self.good + self.bad
    }

    /// Whether it can have been collected: what comes from outside may say anything.
    pub fn is_plausible(self) -> bool {
        let within = |part: f64| part.is_finite() && (0.0..=MOST_EVIDENCE).contains(&part);
        within(self.good) && within(self.bad)
    }

    /// What is believed of the tier's success. Before there is evidence that is what the difficulty says: who is `expected` to do the job well
    /// probably does better than is `wanted` (0 to 1), and who is below that tier does it half as well.
    pub fn belief(self, wanted: f64, expected: bool) -> Beta {
        let (mean, weight) = if expected { (f64::midpoint(1.0, wanted), EXPECTED) } else { (wanted / 2.0, DOUBTED) };
        Beta { good: weight * mean + self.good, bad: weight * (1.0 - mean) + self.bad }
    }
}

/// What is left of evidence after a time.
fn left(at_ms: i64, now_ms: i64, half_life: Duration) -> f64 {
    // A clock that went back makes nothing grow. Both are far below 2^52.
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of a few years")]
    let age = now_ms.saturating_sub(at_ms).max(0) as f64 / 1000.0;
    (-age / half_life.as_secs_f64().max(1.0)).exp2()
}
