//! Traces for [`super::simulation`]: how requests for local models come in, made of a seed.
//!
//! Constants were chosen by what [`TUNING`] seeds show, and are judged by [`EVALUATION`] seeds, which nobody has chosen anything by.

use super::simulation::{Arrival, Device};
use std::ops::Range;
use tollkeeper_config::Usd;

/// Seeds to choose constants by.
pub const TUNING: Range<u64> = 0..20;
/// Seeds to judge them by.
pub const EVALUATION: Range<u64> = 1000..1020;

/// The device of the traces: 20 s for a swap at 350 W and 0.30 USD a kilowatt-hour.
pub const DEVICE: Device = Device { swap_ms: 20_000, energy: Usd(583_333), min_residency_ms: 10_000 };

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// A kind of trace.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it is like.
    pub about: &'static str,
    make: fn(&mut Dice) -> Vec<Arrival>,
}

impl Scenario {
    /// The trace of a seed.
    pub fn trace(&self, seed: u64) -> Vec<Arrival> {
        (self.make)(&mut Dice(seed))
    }
}

/// All kinds.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "steady", about: "only the model that is not in memory is asked", make: steady },
    Scenario { name: "minority", about: "one request of twenty is for the other model", make: minority },
    Scenario { name: "alternating", about: "A B A B, one request each", make: alternating },
    Scenario { name: "phases", about: "A for a while, then B, and so on", make: |dice| phases(dice, 2, 0, 0) },
    Scenario {
        name: "noisy",
        about: "phases, in which one of ten is for the other",
        make: |dice| phases(dice, 2, 10, 0),
    },
    Scenario { name: "three", about: "the same with three models", make: |dice| phases(dice, 3, 10, 0) },
    Scenario { name: "bursts", about: "B comes in bursts, A little and always", make: bursts },
    Scenario { name: "short bursts", about: "bursts that are hardly worth a swap", make: short_bursts },
    Scenario { name: "diurnal", about: "A by day and B by night, three days", make: diurnal },
    Scenario {
        name: "local-only",
        about: "noisy, and one of fifty must not go to the cloud",
        make: |dice| phases(dice, 2, 10, 2),
    },
];

/// Numbers that look random (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn percent(&mut self, share: u64) -> bool {
        self.below(100) < share
    }

    /// A time until the next of events that come independently, so long after each other in the mean.
    #[expect(clippy::cast_precision_loss, reason = "times far below 2^52 milliseconds")]
    fn gap(&mut self, mean: u64) -> u64 {
        let even = (self.below(1 << 30) + 1) as f64 / (1u64 << 30) as f64;
        (-even.ln() * mean as f64) as u64
    }

    /// A request of 0.1 to 0.9 cents.
    fn request(&mut self, at_ms: u64, model: usize) -> Arrival {
        Arrival { at_ms, model, cloud: Usd(1_000_000 + self.below(8_000_000).cast_signed()), local_only: false }
    }

    /// Requests from then until then, so long after each other in the mean, each for the model that is chosen.
    fn flow(
        &mut self,
        span: Range<u64>,
        mean: u64,
        mut model: impl FnMut(&mut Self, u64) -> usize,
        trace: &mut Vec<Arrival>,
    ) {
        let mut at = span.start + self.gap(mean);
        while at < span.end {
            let model = model(self, at);
            trace.push(self.request(at, model));
            at += self.gap(mean);
        }
    }
}

fn steady(dice: &mut Dice) -> Vec<Arrival> {
    let mut trace = Vec::new();
    dice.flow(0..2 * HOUR, 4 * SECOND, |_, _| 1, &mut trace);
    trace
}

fn minority(dice: &mut Dice) -> Vec<Arrival> {
    let mut trace = Vec::new();
    dice.flow(0..4 * HOUR, 4 * SECOND, |dice, _| usize::from(dice.percent(5)), &mut trace);
    trace
}

fn alternating(dice: &mut Dice) -> Vec<Arrival> {
    let mut last = 0;
    let mut trace = Vec::new();
    let other = |_: &mut Dice, _| {
        last = 1 - last;
        last
    };
    dice.flow(0..4 * HOUR, 4 * SECOND, other, &mut trace);
    trace
}

/// Phases of 15 minutes in the mean for one model each, with so many percent of other models, and so many that must stay local.
fn phases(dice: &mut Dice, models: u64, others: u64, local_only: u64) -> Vec<Arrival> {
    let mut trace = Vec::new();
    let (mut from, mut turn) = (0, 0);
    while from < 8 * HOUR {
        let until = from + dice.gap(15 * MINUTE);
        let chosen = |dice: &mut Dice, _| {
            let other = dice.percent(others);
            usize::try_from((turn + u64::from(other)) % models).unwrap_or(0)
        };
        dice.flow(from..until, 4 * SECOND, chosen, &mut trace);
        from = until;
        turn += 1 + dice.below(models - 1);
    }
    for arrival in &mut trace {
        arrival.local_only = dice.percent(local_only);
    }
    trace
}

fn bursts(dice: &mut Dice) -> Vec<Arrival> {
    bursts_of(dice, 20..400)
}

fn short_bursts(dice: &mut Dice) -> Vec<Arrival> {
    bursts_of(dice, 2..30)
}

fn bursts_of(dice: &mut Dice, length: Range<u64>) -> Vec<Arrival> {
    let mut trace = Vec::new();
    dice.flow(0..8 * HOUR, 10 * SECOND, |_, _| 0, &mut trace);
    let mut at = dice.gap(15 * MINUTE);
    while at < 8 * HOUR {
        for _ in 0..length.start + dice.below(length.end - length.start) {
            trace.push(dice.request(at, 1));
            at += dice.gap(SECOND);
        }
        at += dice.gap(15 * MINUTE);
    }
    trace.sort_by_key(|arrival| arrival.at_ms);
    trace
}

#[expect(clippy::cast_precision_loss, reason = "times far below 2^52 milliseconds")]
fn diurnal(dice: &mut Dice) -> Vec<Arrival> {
    let mut trace = Vec::new();
    let by_day = |dice: &mut Dice, at: u64| {
        let angle = at as f64 / (24 * HOUR) as f64 * std::f64::consts::TAU;
        // From 5 to 95 of a hundred.
        usize::from(dice.percent((50.0 - 45.0 * angle.sin()) as u64))
    };
    dice.flow(0..72 * HOUR, 10 * SECOND, by_day, &mut trace);
    trace
}
