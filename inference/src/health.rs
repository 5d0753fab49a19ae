//! What is learnt of a backend by using it: requests in flight, time to the first token, and a breaker that never stays open forever.

use crate::backend::{BackendHealth, BackendState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// Failures in a row that open the breaker.
const THRESHOLD: u32 = 3;
/// The first cooling after [`THRESHOLD`] failures; it doubles with each further failure.
const FIRST_COOLING: Duration = Duration::from_secs(1);
/// The longest cooling that failures alone lead to.
const LONGEST_COOLING: Duration = Duration::from_secs(60);
/// Cooling after a fault that only the operator can mend (a refused key, an unknown model).
const OPERATOR_COOLING: Duration = Duration::from_secs(300);
/// The longest wait that a provider's `retry-after` can impose.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// How long one request has to prove that the backend is back, while the others still see it cooling.
const PROBE: Duration = Duration::from_secs(10);
/// Weight of a new time to first token in the smoothed one, as a divisor.
const SMOOTHING: u64 = 5;

/// The health of one provider or of one of its models. All methods take tokio's time, so a paused clock moves it.
#[derive(Debug)]
pub struct Health {
    /// The zero of the moments below.
    epoch: Instant,
    in_flight: AtomicU32,
    /// Smoothed, in microseconds; 0 is unknown.
    ttft: AtomicU64,
    /// Failures in a row.
    failures: AtomicU32,
    /// Milliseconds after `epoch`; 0 when the breaker is closed, in the past when it is half-open.
    cooling_until: AtomicU64,
    /// Milliseconds after `epoch`; in the future while a probe is under way.
    probing_until: AtomicU64,
}

impl Health {
    /// A healthy backend that nothing is known of.
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            in_flight: AtomicU32::new(0),
            ttft: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            cooling_until: AtomicU64::new(0),
            probing_until: AtomicU64::new(0),
        }
    }

    /// Its state; a few atomic loads.
    pub fn state(&self, now: Instant) -> BackendState {
        let ttft = self.ttft.load(Relaxed);
        BackendState {
            in_flight: self.in_flight.load(Relaxed),
            ttft: (ttft > 0).then(|| Duration::from_micros(ttft)),
            ..BackendState::idle(match self.cooling_until(now) {
                Some(until) => BackendHealth::Cooling { until },
                None => BackendHealth::Ready,
            })
        }
    }

    /// The end of the cooling, if it lies in the future.
    fn cooling_until(&self, now: Instant) -> Option<Instant> {
        let until = self.cooling_until.load(Relaxed).max(self.probing_until.load(Relaxed));
        Some(self.epoch + Duration::from_millis(until)).filter(|until| *until > now)
    }

    /// Notes the start of a request. The first one after a cooling becomes the probe.
    fn begin(&self, now: Instant) {
        self.in_flight.fetch_add(1, Relaxed);
        let half_open = self.cooling_until.load(Relaxed) > 0 && self.cooling_until(now).is_none();
        if half_open {
            let seen = self.probing_until.load(Relaxed);
            // Losing this race means that another request probes.
            let _ = self.probing_until.compare_exchange(seen, self.moment(now + PROBE), Relaxed, Relaxed);
        }
    }

    /// Notes a whole answer. A cooling that still runs is not cut short: the answer may be to a request from before it.
    fn succeeded(&self, now: Instant) {
        self.failures.store(0, Relaxed);
        self.probing_until.store(0, Relaxed);
        let until = self.cooling_until.load(Relaxed);
        if until > 0 && until <= self.moment(now) {
            // Losing this race means that a failure has just begun a new cooling.
            let _ = self.cooling_until.compare_exchange(until, 0, Relaxed, Relaxed);
        }
    }

    /// Notes a failure.
    fn failed(&self, fault: &ProviderFault, now: Instant) {
        let cooling = match (fault.kind, fault.retry_after) {
            // The backend is well; it is the request that is not.
            (FaultKind::BadRequest | FaultKind::ContextLength, _) => return self.succeeded(now),
            (FaultKind::Auth | FaultKind::NotFound | FaultKind::Unavailable, _) => OPERATOR_COOLING,
            (FaultKind::RateLimited | FaultKind::Overloaded, Some(wait)) => wait.min(LONGEST_RETRY_AFTER),
            _ => {
                let failures = self.failures.fetch_add(1, Relaxed).saturating_add(1);
                match failures.checked_sub(THRESHOLD) {
                    Some(doublings) => (FIRST_COOLING * (1 << doublings.min(6))).min(LONGEST_COOLING),
                    None => return,
                }
            }
        };
        self.probing_until.store(0, Relaxed);
        self.cooling_until.fetch_max(self.moment(now + cooling), Relaxed);
    }

    fn observe_ttft(&self, ttft: Duration) {
        let new = u64::try_from(ttft.as_micros()).unwrap_or(u64::MAX).max(1);
        let smoothed = |old: u64| match old {
            0 => Some(new),
            old => Some((old - old / SMOOTHING).saturating_add(new / SMOOTHING).max(1)),
        };
        let _ = self.ttft.fetch_update(Relaxed, Relaxed, smoothed);
    }

    /// A moment as the atomics hold it; never 0, which means "none".
    fn moment(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

/// A request in flight at a provider's model: counted from [`Flight::begin`] until it is dropped.
#[derive(Debug)]
pub struct Flight {
    provider: Arc<Health>,
    model: Arc<Health>,
}

impl Flight {
    /// Counts a request in.
    pub fn begin(provider: Arc<Health>, model: Arc<Health>) -> Self {
        let now = Instant::now();
        provider.begin(now);
        model.begin(now);
        Self { provider, model }
    }

    /// The first token came so long after the request was sent.
    pub fn first_token(&self, after: Duration) {
        self.provider.observe_ttft(after);
        self.model.observe_ttft(after);
    }

    /// The answer is whole.
    pub fn succeeded(&self) {
        let now = Instant::now();
        self.provider.succeeded(now);
        self.model.succeeded(now);
    }

    /// A try failed. Faults of the key and of the line are the provider's, all others the model's alone.
    pub fn failed(&self, fault: &ProviderFault) {
        let now = Instant::now();
        if matches!(fault.kind, FaultKind::Auth | FaultKind::Connection) {
            self.provider.failed(fault, now);
        }
        self.model.failed(fault, now);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.provider.in_flight.fetch_sub(1, Relaxed);
        self.model.in_flight.fetch_sub(1, Relaxed);
    }
}
