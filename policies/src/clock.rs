//! Where "now" comes from: the system, or a test's hand.

use jiff::Timestamp;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

/// What [`Clock::monotonic`] counts from on the system's clock.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A source of wall time; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self(None)
    }

    /// A clock that shows what the test last stored: milliseconds since 1970 in UTC.
    pub fn fixed(unix_ms: Arc<AtomicI64>) -> Self {
        Self(Some(unix_ms))
    }

    /// The time now. A fixed clock beyond the years that a timestamp can hold shows 1970.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            None => Timestamp::now(),
            Some(ms) => Timestamp::from_millisecond(ms.load(Ordering::Relaxed)).unwrap_or_default(),
        }
    }

    /// The time that a test has set, microseconds since 1970; `None` on the system's clock.
    pub(crate) fn by_hand(&self) -> Option<i64> {
        self.0.as_ref().map(|ms| ms.load(Ordering::Relaxed).saturating_mul(1000))
    }

    /// The time since some moment, for measuring how much has passed: on the system's clock no step of wall time shows in it.
    pub fn monotonic(&self) -> Duration {
        match &self.0 {
            None => START.elapsed(),
            Some(ms) => Duration::from_millis(u64::try_from(ms.load(Ordering::Relaxed)).unwrap_or(0)),
        }
    }
}
