//! Where "now" comes from: the system, or a test's hand.

use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

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
}
