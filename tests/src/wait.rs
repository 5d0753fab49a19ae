//! Bounded waiting on real state, so that a hang is a failure with a name.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything in the suite may take before it counts as a hang. Far above what a loaded two-core machine needs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The future's output; panics with `what` when it does not come within [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("hang: {what} did not happen within {PATIENCE:?}"),
    }
}

/// Waits until `state` gives a value, asking it every few milliseconds; panics with `what` after [`PATIENCE`].
pub async fn eventually<T>(what: &str, mut state: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = state().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "hang: {what} was not so within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
