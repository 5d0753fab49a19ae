//! Chance made of a seed: the same question gives the same answer, whoever asks first.

use crate::strategy::lot;

/// Draws that depend on nothing but the seed and what they are for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// Other draws, for one of several things.
    pub(super) fn of(self, what: u64) -> Self {
        Self(lot(self.0, what))
    }

    /// Evenly in (0, 1].
    pub(super) fn even(self) -> f64 {
        // 53 bits fill a double.
        ((lot(self.0, 0) >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Whether something happens that does so many times in a thousand.
    pub(super) fn happens(self, permille: u16) -> bool {
        self.even() * 1000.0 <= f64::from(permille)
    }

    /// A factor around 1: log-normal with a median of 1 and this deviation of its logarithm.
    pub(super) fn factor(self, spread: f64) -> f64 {
        let (one, other) = (self.of(1).even(), self.of(2).even());
        // Box and Muller 1958.
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * other).cos();
        (spread * normal).exp()
    }
}

/// A row of draws, each different from the last.
#[derive(Debug, Clone)]
pub(super) struct Row {
    dice: Dice,
    next: u64,
}

impl Row {
    pub(super) fn new(seed: u64) -> Self {
        Self { dice: Dice(seed), next: 0 }
    }

    pub(super) fn draw(&mut self) -> Dice {
        self.next += 1;
        self.dice.of(self.next)
    }

    /// A number from `range`, its end left out.
    pub(super) fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + lot(self.draw().0, 0) % (range.end - range.start).max(1)
    }

    /// Whether something happens that does so many times in a thousand.
    pub(super) fn happens(&mut self, permille: u16) -> bool {
        self.draw().happens(permille)
    }

    /// The time until the next of events that come independently, so long after each other in the mean.
    pub(super) fn gap(&mut self, mean: u64) -> u64 {
        (-self.draw().even().ln() * mean as f64) as u64
    }

    /// Around a median, by a factor whose logarithm deviates so much.
    pub(super) fn around(&mut self, median: u64, spread: f64) -> u64 {
        ((median as f64 * self.draw().factor(spread)) as u64).max(1)
    }
}
