//! What routes learn, and how often they follow it.

use super::Maker;
use prometheus::IntCounterVec;
use tollkeeper_router::learning::Choice;

/// The series of learning.
pub(super) struct Learning {
    outcomes: IntCounterVec,
    starts: IntCounterVec,
}

impl Learning {
    pub(super) fn new(make: &Maker) -> Self {
        Self {
            outcomes: make.counters(
                "tollkeeper_learning_outcomes_total",
                "Outcomes of answers that were counted.",
                &["source", "outcome"],
            ),
            starts: make.counters(
                "tollkeeper_learning_starts_total",
                "Answered requests by what decided where their pyramid began.",
                &["by"],
            ),
        }
    }

    pub(super) fn outcome(&self, source: &str, score: f64) {
        let outcome = if score >= 0.5 { "good" } else { "bad" };
        self.outcomes.with_label_values(&[source, outcome]).inc();
    }

    pub(super) fn started(&self, choice: &Choice) {
        let by = match choice {
            Choice { explored: true, .. } => "trial",
            Choice { moved: true, .. } => "learned",
            _ => "difficulty",
        };
        self.starts.with_label_values(&[by]).inc();
    }
}
