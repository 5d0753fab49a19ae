//! What rate limits refuse, and what waits because of them.

use super::Maker;
use crate::app::App;
use prometheus::{GaugeVec, IntCounterVec};
use tollkeeper_config::Priority;

/// The series of rate limits.
pub(super) struct Limits {
    refused: IntCounterVec,
    waiting: GaugeVec,
}

impl Limits {
    pub(super) fn new(make: &Maker) -> Self {
        Self {
            refused: make.counters(
                "tollkeeper_rate_limited_total",
                "Requests refused by a rate limit of their agent or alias.",
                &["agent", "limit"],
            ),
            waiting: make.gauges(
                "tollkeeper_rate_waiting_requests",
                "Requests waiting because as many run as may.",
                &["priority"],
            ),
        }
    }

    pub(super) fn refused(&self, agent: &str, limit: &str) {
        self.refused.with_label_values(&[agent, limit]).inc();
    }

    #[expect(clippy::cast_precision_loss, reason = "requests far below 2^52")]
    pub(super) fn read(&self, app: &App) {
        for (priority, waiting) in app.rates.waiting() {
            let priority = match priority {
                Priority::Interactive => "interactive",
                Priority::Batch => "batch",
            };
            self.waiting.with_label_values(&[priority]).set(waiting as f64);
        }
    }
}
