//! Whether and when a failed try is repeated at the same provider.

use http::HeaderMap;
use jiff::Timestamp;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// The pause before the second try; it doubles before each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause. A provider that asks for more gets no further try: another target can answer sooner.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How long to wait before the next try, after `tries` of them failed; `None` when this provider should not be tried again.
///
/// Not asked here is whether the provider has worked on the failed try, after which it is not repeated either. Timeouts are not repeated,
/// because the time is better spent elsewhere.
pub(super) fn pause(fault: &ProviderFault, tries: u32) -> Option<Duration> {
    if !matches!(
        fault.kind,
        FaultKind::Connection | FaultKind::Overloaded | FaultKind::Internal | FaultKind::RateLimited
    ) {
        return None;
    }
    let pause = (FIRST_PAUSE * (1 << tries.saturating_sub(1).min(6))).min(LONGEST_PAUSE);
    // Between half and the whole of it, so that those who failed together do not come back together.
    let pause = pause / 2 + pause.mul_f64(random_share() / 2.0);
    match fault.retry_after {
        Some(asked) if asked > LONGEST_PAUSE => None,
        Some(asked) => Some(asked.max(pause)),
        None => Some(pause),
    }
}

/// Between 0 and 1; std's hasher keys are the only randomness this crate needs.
pub(super) fn random_share() -> f64 {
    f64::from(u32::try_from(RandomState::new().build_hasher().finish() >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

/// The wait that a response asks for: `retry-after-ms`, else `retry-after` in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok();
    if let Some(millis) = text("retry-after-ms").and_then(number) {
        return Duration::try_from_secs_f64(millis / 1000.0).ok();
    }
    let wait = text("retry-after")?;
    match number(wait) {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        None => {
            let until = jiff::fmt::rfc2822::parse(wait).ok()?.timestamp();
            Some(Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO))
        }
    }
}
