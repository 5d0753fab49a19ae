//! How an agent or run stands, for people: its stage, and its rates beside what is normal for it.

use super::{Measure, Stage};

/// How one agent or run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// What holds now.
    pub stage: Stage,
    /// Whether a person has set that.
    pub held: bool,
    /// Microseconds since 1970 at which what a person has set ends; `None` is when it is released.
    pub until: Option<i64>,
    /// Whether its own history says what is normal; otherwise it is the configured assumption.
    pub known: bool,
    /// Its rate of each measure.
    pub speeds: [Speed; 4],
}

/// A rate beside the normal one, in the measure's unit per hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// Of what.
    pub measure: Measure,
    /// Of the last minute or so.
    pub present: u64,
    /// While it works.
    pub normal: u64,
}
