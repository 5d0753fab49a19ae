//! The table of what routes learn, as it is written.

use crate::read::{Whole, table};
use crate::value::Difficulty;

table! {
    /// What routes learn from their outcomes: with which tier a pyramid begins, by type of task (`docs/learning.md`).
    RawLearning "[learning]" {
        /// Whether anything is learned, and routes follow it.
        on: bool = default(false),
        /// The share of answers that are to be good: a pyramid begins with the lowest tier that is believed to reach it.
        wanted: Difficulty = default(0.8),
        /// At least this share of requests begins a tier lower or higher than is believed to be right, so that evidence keeps coming.
        explore: Difficulty = default(0.02),
        /// At most this share begins elsewhere than is believed to be right.
        explore_most: Difficulty = default(0.1),
        /// At most so many tiers from the one that the difficulty says.
        reach: Whole<1, 255> = default(1),
        /// After so many days evidence counts half.
        half_life_days: Whole<1, 3650> = default(14),
    }
}
