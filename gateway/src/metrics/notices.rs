//! What became of notices to webhooks.

use super::Maker;
use crate::app::App;
use prometheus::{GaugeVec, IntCounterVec};

/// The series.
pub(super) struct Notices {
    total: IntCounterVec,
    queue: GaugeVec,
}

impl Notices {
    pub(super) fn new(make: &Maker) -> Self {
        Self {
            total: make.counters(
                "tollkeeper_notices_total",
                "What became of notices to webhooks.",
                &["webhook", "event", "result"],
            ),
            queue: make.gauges(
                "tollkeeper_notice_queue_depth",
                "Notices that are still to be delivered to a webhook.",
                &["webhook"],
            ),
        }
    }

    /// A webhook that was removed and added again counts from zero; Prometheus takes that for a restart.
    #[expect(clippy::cast_precision_loss, reason = "a queue holds at most some 100,000")]
    pub(super) fn read(&self, app: &App) {
        self.total.reset();
        for (webhook, kind, result, count) in app.notifier.counts() {
            self.total.with_label_values(&[&*webhook, kind.name(), result]).inc_by(count);
        }
        self.queue.reset();
        for (webhook, waiting) in app.notifier.waiting() {
            self.queue.with_label_values(&[&*webhook]).set(waiting as f64);
        }
    }
}
