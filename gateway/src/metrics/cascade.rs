//! What the cascade found, saved and wasted.

use super::{Maker, usd};
use prometheus::{CounterVec, IntCounterVec};
use std::time::Duration;
use tollkeeper_config::Usd;

pub(crate) struct Cascade {
    looked: IntCounterVec,
    saved: CounterVec,
    wasted: CounterVec,
    wasted_time: CounterVec,
}

impl Cascade {
    pub(super) fn new(make: &Maker) -> Self {
        let sums = |name, help| make.sums(name, help, &["alias"]);
        Self {
            looked: make.counters(
                "tollkeeper_cascade_answers_total",
                "Local answers that were held back and looked at, by what was found.",
                &["alias", "verdict"],
            ),
            saved: sums(
                "tollkeeper_cascade_saved_usd_total",
                "What the next target above would have charged for local answers that were fit, less what they cost.",
            ),
            wasted: sums("tollkeeper_cascade_wasted_usd_total", "What local answers cost that were not shown."),
            wasted_time: sums(
                "tollkeeper_cascade_wasted_seconds_total",
                "How long clients waited for local answers that were not shown.",
            ),
        }
    }

    /// An answer was looked at.
    pub(crate) fn looked(&self, alias: &str, verdict: &str) {
        self.looked.with_label_values(&[alias, verdict]).inc();
    }

    /// So much was not spent.
    pub(crate) fn saved(&self, alias: &str, cost: Usd) {
        self.saved.with_label_values(&[alias]).inc_by(dollars(cost));
    }

    /// So much was spent, and so long waited, for nothing.
    pub(crate) fn wasted(&self, alias: &str, cost: Usd, time: Duration) {
        self.wasted.with_label_values(&[alias]).inc_by(dollars(cost));
        self.wasted_time.with_label_values(&[alias]).inc_by(time.as_secs_f64());
    }
}

/// A counter never falls: a target above that would have been cheaper saves nothing.
fn dollars(cost: Usd) -> f64 {
    usd(cost.max(Usd::ZERO))
}
