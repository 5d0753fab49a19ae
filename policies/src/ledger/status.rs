//! How the ledger's writer is doing, for those who admit and those who watch.

use crate::store::StoreError;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Longer than this in one transaction, and the store is said to hang: nobody is made to wait for it any more.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Shared by the writer and the ledger's handle.
#[derive(Debug)]
pub(super) struct Status {
    down: AtomicBool,
    reason: Mutex<Arc<str>>,
    failed: Notify,
    depth: AtomicUsize,
    start: Instant,
    /// Milliseconds after `start`, plus one, at which the transaction in progress began; 0 when there is none.
    busy_since: AtomicU64,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            down: AtomicBool::new(false),
            reason: Mutex::new("it has not been written to yet".into()),
            failed: Notify::new(),
            depth: AtomicUsize::new(0),
            start: Instant::now(),
            busy_since: AtomicU64::new(0),
        }
    }
}

impl Status {
    /// A transaction begins; returns when.
    pub(super) fn begins(&self) -> Instant {
        let now = Instant::now();
        self.busy_since.store(self.until(now) + 1, SeqCst);
        now
    }

    /// It ended.
    pub(super) fn ended(&self, error: Option<&StoreError>) {
        self.busy_since.store(0, SeqCst);
        if let Some(error) = error {
            *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = error.0.clone();
        }
        let was_down = self.down.swap(error.is_some(), SeqCst);
        match error {
            Some(error) if !was_down => tracing::error!(%error, "the ledger cannot be written; nothing is admitted"),
            None if was_down => tracing::info!("the ledger can be written again"),
            _ => {}
        }
        if error.is_some() {
            self.failed.notify_waiters();
        }
    }

    /// Why the store does not answer, when the transaction in progress has taken this long.
    pub(super) fn hangs(&self, patience: Duration) -> Option<Arc<str>> {
        let since = self.busy_since.load(SeqCst).checked_sub(1)?;
        let long = u128::from(self.until(Instant::now()).saturating_sub(since)) >= patience.as_millis();
        long.then(|| format!("it has not answered for {} s", patience.as_secs()).into())
    }

    /// The writer is gone for good.
    pub(super) fn gone(&self, reason: &str) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = reason.into();
        self.down.store(true, SeqCst);
        self.failed.notify_waiters();
    }

    /// Resolves when a transaction fails.
    pub(super) fn failed(&self) -> Notified<'_> {
        self.failed.notified()
    }

    pub(super) fn is_up(&self) -> bool {
        !self.down.load(SeqCst)
    }

    /// The last failure.
    pub(super) fn reason(&self) -> Arc<str> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn queued(&self) {
        self.depth.fetch_add(1, SeqCst);
    }

    pub(super) fn written(&self, jobs: usize) {
        self.depth.fetch_sub(jobs, SeqCst);
    }

    pub(super) fn depth(&self) -> usize {
        self.depth.load(SeqCst)
    }

    fn until(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_takes_too_long_is_a_hang() {
        let status = Status::default();
        assert_eq!(status.hangs(Duration::ZERO), None, "nothing is in progress");
        status.begins();
        assert_eq!(status.hangs(Duration::from_secs(3600)), None);
        assert_eq!(status.hangs(Duration::ZERO).as_deref(), Some("it has not answered for 0 s"));
        status.ended(None);
        assert_eq!(status.hangs(Duration::ZERO), None);
    }
}
