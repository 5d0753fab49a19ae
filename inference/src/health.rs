//! What is learnt of a backend by using it: requests in flight, time to the first token, and a breaker that never stays open forever.

use crate::backend::{BackendHealth, BackendState};
use crate::remote::{Headroom, Told};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
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
/// How long until half of the failures is forgotten: who fails is asked less, so no success could make up for them.
const FORGIVEN: Duration = Duration::from_secs(60);
/// Weight of an end in the share of failures, as a divisor.
const ENDS: u32 = 8;
/// The whole of that share.
const MILLION: u32 = 1_000_000;
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
    /// Smoothed share of tries that failed, in millionths.
    failing: AtomicU32,
    /// When a try ended last, in milliseconds after `epoch`.
    ended: AtomicU64,
    /// What was left of its limits when it last told, and when that was.
    headroom: Mutex<Option<(Told, Instant)>>,
    /// Milliseconds after `epoch`; 0 when the breaker is closed, in the past when it is half-open.
    cooling_until: AtomicU64,
    /// The same for faults of the line, which a probe of the server can prove to be over.
    cut_off_until: AtomicU64,
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
            failing: AtomicU32::new(0),
            ended: AtomicU64::new(0),
            headroom: Mutex::new(None),
            cooling_until: AtomicU64::new(0),
            cut_off_until: AtomicU64::new(0),
            probing_until: AtomicU64::new(0),
        }
    }

    /// Its state; a few atomic loads.
    pub fn state(&self, now: Instant) -> BackendState {
        let ttft = self.ttft.load(Relaxed);
        BackendState {
            in_flight: self.in_flight.load(Relaxed),
            ttft: (ttft > 0).then(|| Duration::from_micros(ttft)),
            failing_permille: u16::try_from(self.failing(now) / 1000).unwrap_or(u16::MAX),
            headroom: self.headroom(now),
            ..BackendState::idle(match self.cooling_until(now) {
                Some(until) => BackendHealth::Cooling { until },
                None => BackendHealth::Ready,
            })
        }
    }

    /// The share of tries that failed lately, in millionths.
    fn failing(&self, now: Instant) -> u32 {
        let age = self.moment(now).saturating_sub(self.ended.load(Relaxed)) as f64 / FORGIVEN.as_millis() as f64;
        (f64::from(self.failing.load(Relaxed)) * (-age).exp2()) as u32
    }

    /// A try ended. Two that end at once may count as one.
    fn ended(&self, now: Instant, failed: bool) {
        let old = self.failing(now);
        let new = old - old / ENDS + if failed { MILLION / ENDS } else { 0 };
        self.failing.store(new, Relaxed);
        self.ended.store(self.moment(now), Relaxed);
    }

    /// What is left of its limits, as long as that is worth knowing.
    fn headroom(&self, now: Instant) -> Headroom {
        let told = *self.headroom.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((Told { requests, tokens }, at)) = told else { return Headroom::default() };
        let holds = |left: Option<(u64, Duration)>| left.filter(|(_, holds)| at + *holds > now).map(|(left, _)| left);
        Headroom { requests: holds(requests), tokens: holds(tokens) }
    }

    /// The end of the cooling, if it lies in the future.
    fn cooling_until(&self, now: Instant) -> Option<Instant> {
        let moments = [&self.cooling_until, &self.cut_off_until, &self.probing_until];
        let until = moments.map(|until| until.load(Relaxed)).into_iter().max().unwrap_or(0);
        Some(self.epoch + Duration::from_millis(until)).filter(|until| *until > now)
    }

    /// Notes the start of a request. The first one after a cooling becomes the probe.
    fn begin(&self, now: Instant) {
        self.in_flight.fetch_add(1, Relaxed);
        let opened = [&self.cooling_until, &self.cut_off_until].iter().any(|until| until.load(Relaxed) > 0);
        let half_open = opened && self.cooling_until(now).is_none();
        if half_open {
            let seen = self.probing_until.load(Relaxed);
            // Losing this race means that another request probes.
            let _ = self.probing_until.compare_exchange(seen, self.moment(now + PROBE), Relaxed, Relaxed);
        }
    }

    /// Notes a whole answer. A cooling that still runs is not cut short: the answer may be to a request from before it.
    fn succeeded(&self, now: Instant) {
        self.failures.store(0, Relaxed);
        self.ended(now, false);
        self.probing_until.store(0, Relaxed);
        for moment in [&self.cooling_until, &self.cut_off_until] {
            let until = moment.load(Relaxed);
            if until > 0 && until <= self.moment(now) {
                // Losing this race means that a failure has just begun a new cooling.
                let _ = moment.compare_exchange(until, 0, Relaxed, Relaxed);
            }
        }
    }

    /// A probe reached the server: coolings that faults of the line began are over. Others are not, since a server that is well may still
    /// refuse a key, limit the rate, or fail at a model.
    pub(crate) fn reached(&self) {
        if self.cut_off_until.swap(0, Relaxed) > 0 {
            self.failures.store(0, Relaxed);
            self.failing.store(0, Relaxed);
        }
    }

    /// A probe did not reach the server: it cools until the next one is due, and no longer than failures alone would make it.
    pub(crate) fn cut_off(&self, now: Instant, pause: Duration) {
        self.cut_off_until.fetch_max(self.moment(now + pause.min(LONGEST_COOLING)), Relaxed);
    }

    /// Notes a failure.
    fn failed(&self, fault: &ProviderFault, now: Instant) {
        if !matches!(fault.kind, FaultKind::BadRequest | FaultKind::ContextLength) {
            self.ended(now, true);
        }
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
        let moment = if fault.kind == FaultKind::Connection { &self.cut_off_until } else { &self.cooling_until };
        moment.fetch_max(self.moment(now + cooling), Relaxed);
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

    /// The provider has said what is left of the model's limits.
    pub(crate) fn told(&self, told: Told) {
        *self.model.headroom.lock().unwrap_or_else(PoisonError::into_inner) = Some((told, Instant::now()));
    }

    /// The answer is whole.
    pub fn succeeded(&self) {
        let now = Instant::now();
        self.provider.succeeded(now);
        self.model.succeeded(now);
    }

    /// A try failed. Faults of the line, the key and the account are the provider's, all others the model's alone.
    pub fn failed(&self, fault: &ProviderFault) {
        let now = Instant::now();
        let wide = match fault.kind {
            FaultKind::Connection | FaultKind::Unavailable => true,
            // 403 often means this model, this region or this feature only.
            FaultKind::Auth => fault.status != Some(403),
            _ => false,
        };
        if wide {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const MINUTE: Duration = Duration::from_secs(60);

    fn fault(kind: FaultKind, retry_after: Option<Duration>) -> ProviderFault {
        ProviderFault { retry_after, ..ProviderFault::new(kind, "x") }
    }

    fn cooling(health: &Health, now: Instant) -> Option<Duration> {
        match health.state(now).health {
            BackendHealth::Cooling { until } => Some(until - now),
            _ => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn coolings_double_up_to_a_minute_and_end_with_a_success() {
        let mut now = Instant::now();
        let health = Health::new(now);
        let oops = fault(FaultKind::Internal, None);
        let mut seen = Vec::new();
        for _ in 0..12 {
            health.failed(&oops, now);
            let cooling = cooling(&health, now).unwrap_or_default();
            seen.push(cooling.as_secs());
            now += cooling;
        }
        assert_eq!(seen, [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        health.succeeded(now);
        health.failed(&oops, now);
        assert_eq!(cooling(&health, now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_at_a_time_probes_a_backend_that_failed() {
        let start = Instant::now();
        let health = Health::new(start);
        health.failed(&fault(FaultKind::RateLimited, Some(MINUTE)), start);
        // Requests during the cooling are allowed, and prove nothing.
        health.begin(start);
        health.succeeded(start);
        assert_eq!(cooling(&health, start), Some(MINUTE));

        let now = start + MINUTE;
        assert_eq!(cooling(&health, now), None);
        health.begin(now);
        assert_eq!(cooling(&health, now), Some(PROBE), "the others wait for the probe");
        assert_eq!(cooling(&health, now + PROBE), None, "but not for one that never ends");
        health.begin(now + PROBE);
        assert_eq!(cooling(&health, now + PROBE), Some(PROBE));
        health.succeeded(now + PROBE);
        assert_eq!(cooling(&health, now + PROBE), None);
        health.begin(now + PROBE);
        assert_eq!(cooling(&health, now + PROBE), None, "the breaker is closed");
        assert_eq!(health.state(now).in_flight, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_longer_cooling_is_not_cut_short() {
        let now = Instant::now();
        let health = Health::new(now);
        health.failed(&fault(FaultKind::Overloaded, Some(MINUTE)), now);
        health.failed(&fault(FaultKind::RateLimited, Some(Duration::from_secs(1))), now);
        assert_eq!(cooling(&health, now), Some(MINUTE));
        health.failed(&fault(FaultKind::BadRequest, None), now);
        assert_eq!(cooling(&health, now), Some(MINUTE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_ends_what_the_line_began_and_nothing_else() {
        let now = Instant::now();
        let health = Health::new(now);
        for _ in 0..8 {
            health.failed(&fault(FaultKind::Connection, None), now);
        }
        assert_eq!(cooling(&health, now), Some(Duration::from_secs(32)));
        health.reached();
        assert_eq!(cooling(&health, now), None);
        health.failed(&fault(FaultKind::Connection, None), now);
        assert_eq!(cooling(&health, now), None, "failures are counted anew");

        health.failed(&fault(FaultKind::RateLimited, Some(MINUTE)), now);
        health.cut_off(now, 9 * MINUTE);
        assert_eq!(cooling(&health, now), Some(LONGEST_COOLING));
        health.reached();
        assert_eq!(cooling(&health, now), Some(MINUTE), "a limit is not the line's");

        let health = Health::new(now);
        health.cut_off(now, MINUTE);
        health.begin(now + MINUTE);
        assert_eq!(cooling(&health, now + MINUTE), Some(PROBE), "without a further probe a request tries");
        health.succeeded(now + MINUTE);
        health.begin(now + MINUTE);
        assert_eq!(cooling(&health, now + MINUTE), None);
    }

    #[tokio::test(start_paused = true)]
    async fn faults_of_the_account_are_the_providers() {
        let status = |kind, status| ProviderFault { status: Some(status), ..fault(kind, None) };
        let cases = [
            (status(FaultKind::Auth, 401), true),
            (status(FaultKind::Auth, 403), false),
            (status(FaultKind::Unavailable, 429), true),
            (status(FaultKind::NotFound, 404), false),
        ];
        for (fault, wide) in cases {
            let [provider, model] = [(), ()].map(|()| Arc::new(Health::new(Instant::now())));
            Flight::begin(provider.clone(), model.clone()).failed(&fault);
            let now = Instant::now();
            assert_eq!(cooling(&model, now), Some(OPERATOR_COOLING), "{fault:?}");
            assert_eq!(cooling(&provider, now).is_some(), wide, "{fault:?}");
            assert_eq!((provider.state(now).in_flight, model.state(now).in_flight), (0, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_count_until_they_are_made_up_for_or_forgotten() {
        let now = Instant::now();
        let health = Health::new(now);
        let failing = |now| health.state(now).failing_permille;
        assert_eq!(failing(now), 0);
        health.failed(&fault(FaultKind::BadRequest, None), now);
        assert_eq!(failing(now), 0, "the request's fault is none of its own");
        for _ in 0..2 {
            health.failed(&fault(FaultKind::Internal, None), now);
        }
        assert!((230..240).contains(&failing(now)), "{}", failing(now));
        assert!((110..120).contains(&failing(now + MINUTE)), "half is forgotten");
        for _ in 0..8 {
            health.succeeded(now);
        }
        assert!(failing(now) < 85, "{}", failing(now));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_limit_is_known_for_as_long_as_it_holds() {
        let [provider, model] = [(), ()].map(|()| Arc::new(Health::new(Instant::now())));
        // As Groq tells it: tokens come back long before requests do.
        let tokens = Duration::from_millis(7660);
        let told = Told { requests: Some((14_000, MINUTE)), tokens: Some((100, tokens)) };
        Flight::begin(provider, model.clone()).told(told);
        let now = Instant::now();
        assert_eq!(model.state(now).headroom, Headroom { requests: Some(14_000), tokens: Some(100) });
        assert_eq!(model.state(now + tokens).headroom, Headroom { requests: Some(14_000), tokens: None });
        assert_eq!(model.state(now + MINUTE).headroom, Headroom::default());
    }

    #[tokio::test(start_paused = true)]
    async fn the_smoothed_time_to_first_token_follows() {
        let health = Health::new(Instant::now());
        let ttft = |health: &Health| health.state(Instant::now()).ttft;
        assert_eq!(ttft(&health), None);
        health.observe_ttft(Duration::ZERO);
        assert_eq!(ttft(&health), Some(Duration::from_micros(1)));
        for _ in 0..60 {
            health.observe_ttft(Duration::from_secs(1));
        }
        let close = Duration::from_millis(999)..=Duration::from_secs(1);
        assert!(close.contains(&ttft(&health).unwrap()), "{:?}", ttft(&health));
        health.observe_ttft(Duration::MAX);
        assert!(ttft(&health).unwrap() > Duration::from_secs(3600));
    }

    proptest! {
        /// Whatever happens: no cooling lasts longer than the longest, and a success after it closes the breaker.
        #[test]
        fn no_breaker_stays_open(
            events in prop::collection::vec((0u8..8, prop::option::of(0u64..1_000_000), 0u64..100_000), 0..40)
        ) {
            use FaultKind::*;
            let kinds = [BadRequest, Auth, NotFound, RateLimited, Overloaded, Connection, Timeout, Unavailable];
            let mut now = std::time::Instant::now().into();
            let health = Health::new(now);
            for (kind, retry_after, later) in events {
                now += Duration::from_millis(later);
                health.begin(now);
                health.failed(&fault(kinds[usize::from(kind)], retry_after.map(Duration::from_secs)), now);
                let longest = LONGEST_RETRY_AFTER.max(OPERATOR_COOLING);
                prop_assert!(cooling(&health, now).unwrap_or_default() <= longest);
                prop_assert_eq!(cooling(&health, now + longest), None);
            }
            now += LONGEST_RETRY_AFTER;
            health.begin(now);
            health.succeeded(now);
            health.begin(now);
            prop_assert_eq!(cooling(&health, now), None);
        }
    }
}
