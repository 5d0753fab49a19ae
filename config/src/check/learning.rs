//! Checks `[learning]`.

use super::Check;
use crate::file::RawLearning;
use crate::learning::Learning;
use std::time::Duration;

/// What can be wanted, in thousandths: of less nothing could be told, and more nobody reaches.
const WANTED: std::ops::RangeInclusive<u16> = 50..=990;

/// Seconds of a day.
const DAY: u64 = 86_400;

impl Check<'_> {
    pub(super) fn learning(&mut self, raw: &RawLearning) -> Option<Learning> {
        let learning = Learning {
            wanted: raw.wanted.value.0,
            explore: raw.explore.value.0,
            explore_most: raw.explore_most.value.0,
            reach: u8::try_from(raw.reach.value.0).unwrap_or(u8::MAX),
            half_life: Duration::from_secs(raw.half_life_days.value.0 * DAY),
        };
        if !WANTED.contains(&learning.wanted) {
            self.problems.add(&raw.wanted.span, "`wanted` must be from 0.05 to 0.99");
        }
        if learning.explore > learning.explore_most {
            let most = f64::from(learning.explore_most) / 1000.0;
            let message = format!("`explore` must not be more than `explore_most`, which is {most}");
            self.problems.add(&raw.explore.span, message);
        }
        raw.on.value.then_some(learning)
    }
}
