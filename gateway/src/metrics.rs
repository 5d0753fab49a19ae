//! Every series that `GET /metrics` shows; `docs/metrics.md` says what each means.

mod card;
mod cascade;
mod economics;
mod learning;
mod limits;
mod money;
mod notices;
mod residency;
mod servers;

use crate::app::App;
use crate::meter::Ended;
use learning::Learning;
use limits::Limits;
use money::Money;
use prometheus::{CounterVec, core::Collector};
use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use residency::Residency;
use servers::Servers;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tollkeeper_config::{BackendId, Config, Usd};
use tollkeeper_inference::{BackendHealth, BackendState};
use tollkeeper_policies::Recovered;
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::usage::Usage;
use tollkeeper_router::learning::Choice;

/// Nano-dollars in a dollar; metrics show money as decimal numbers, the ledger is the truth.
const NANO: f64 = 1e9;
const TOKEN_BUCKETS: [f64; 14] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0,
    67108864.0,
];
const DURATION_BUCKETS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const FIRST_TOKEN_BUCKETS: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const PER_TOKEN_BUCKETS: [f64; 13] = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];
const OVERHEAD_BUCKETS: [f64; 12] =
    [0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0];

/// The series and their registry.
pub(crate) struct Metrics {
    registry: Registry,
    /// Held while gauges are read and written out, so that two scrapes do not reset each other's.
    scrape: Mutex<()>,
    requests: IntCounterVec,
    request_duration: HistogramVec,
    first_token: HistogramVec,
    overhead: HistogramVec,
    in_flight: IntGauge,
    abandoned: IntGauge,
    attempts: IntCounterVec,
    fallbacks: IntCounterVec,
    denied: IntCounterVec,
    pub(crate) shed: IntCounter,
    limits: Limits,
    tokens: IntCounterVec,
    cost: CounterVec,
    money: Money,
    backend_state: GaugeVec,
    providers: Providers,
    card: card::Card,
    residency: Residency,
    economics: economics::Economics,
    servers: Servers,
    notices: notices::Notices,
    pub(crate) cascade: cascade::Cascade,
    predicted: HistogramVec,
    learning: Learning,
    queue_depth: GaugeVec,
    queue_tokens: GaugeVec,
    slots_busy: GaugeVec,
    slots: GaugeVec,
    vllm_waiting: GaugeVec,
    vllm_running: GaugeVec,
    vllm_kv: GaugeVec,
    gen_ai_tokens: HistogramVec,
    gen_ai_operation: HistogramVec,
    gen_ai_request: HistogramVec,
    gen_ai_first_token: HistogramVec,
    gen_ai_per_token: HistogramVec,
    reloads: IntCounterVec,
}

/// Models that are not configured one by one and have a label of their own; later ones share their provider's.
const MOST_UNLISTED: usize = 256;

/// The names of models in labels. A provider with one price for all its models takes any name, so these names are bounded.
#[derive(Default)]
pub(crate) struct Labels(Mutex<HashSet<Arc<str>>>);

impl Labels {
    /// The label of a model or alias that the configuration resolves.
    pub(crate) fn of(&self, config: &Config, model: &str) -> Arc<str> {
        let listed = config.aliases.contains_key(model)
            || config.local.models.contains_key(model)
            || config.catalog.models.contains_key(model);
        let Some((provider, _)) = model.split_once('/').filter(|_| !listed) else { return model.into() };
        let mut unlisted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = unlisted.get(model) {
            return known.clone();
        }
        if unlisted.len() == MOST_UNLISTED {
            return format!("{provider}/*").into();
        }
        let label: Arc<str> = model.into();
        unlisted.insert(label.clone());
        label
    }
}

/// Registers series while they are made, so that none can be forgotten.
struct Maker(Registry);

impl Maker {
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("names and labels of metrics are constants that follow Prometheus' rules");
        self.0.register(Box::new(collector.clone())).expect("every metric has a name of its own");
        collector
    }
    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }
    fn sums(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.add(CounterVec::new(Opts::new(name, help), labels))
    }
    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.add(GaugeVec::new(Opts::new(name, help), labels))
    }
    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }
    fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
    }
}

/// What each provider did.
struct Providers {
    tries: IntCounterVec,
    retries: IntCounterVec,
    bad_frames: IntCounterVec,
}

impl Providers {
    fn new(make: &Maker) -> Self {
        let counters = |name, help| make.counters(name, help, &["provider"]);
        Self {
            tries: counters("tollkeeper_provider_tries_total", "Requests sent to a provider, repeated ones included."),
            retries: counters("tollkeeper_provider_retries_total", "Requests that repeated a failed one."),
            bad_frames: counters(
                "tollkeeper_provider_bad_frames_total",
                "Stream frames that were not JSON and were passed on unread.",
            ),
        }
    }

    /// A provider whose settings changed counts from zero again; Prometheus takes that for a restart.
    fn read(&self, app: &App) {
        let series = [&self.tries, &self.retries, &self.bad_frames];
        series.iter().for_each(|series| series.reset());
        for (provider, counts) in app.fleet.counts() {
            for (series, count) in series.iter().zip([counts.tries, counts.retries, counts.bad_frames]) {
                series.with_label_values(&[&*provider]).inc_by(count);
            }
        }
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let make = Maker(Registry::new());
        let gen_ai = ["gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model"];
        let gen_ai_error = [gen_ai[0], gen_ai[1], gen_ai[2], "error_type"];
        let gen_ai_type = [gen_ai[0], gen_ai[1], "gen_ai_token_type", gen_ai[2]];
        let build = make.gauges("tollkeeper_build_info", "Which build this is.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
        Self {
            requests: make.counters(
                "tollkeeper_requests_total",
                "Requests that ended.",
                &["agent", "alias", "backend", "operation", "outcome"],
            ),
            request_duration: make.histograms(
                "tollkeeper_request_duration_seconds",
                "From the request's head to the last byte of the answer.",
                &["operation", "outcome"],
                &DURATION_BUCKETS,
            ),
            first_token: make.histograms(
                "tollkeeper_time_to_first_token_seconds",
                "From the request's head to the first byte of the answer's content.",
                &["operation", "backend"],
                &FIRST_TOKEN_BUCKETS,
            ),
            overhead: make.histograms(
                "tollkeeper_gateway_overhead_seconds",
                "Time up to the first byte that was not spent waiting for the backend.",
                &["operation"],
                &OVERHEAD_BUCKETS,
            ),
            in_flight: make.gauge("tollkeeper_in_flight_requests", "Requests being served now."),
            abandoned: make.gauge(
                "tollkeeper_abandoned_requests",
                "Requests in flight whose client has left while a provider works on a whole answer.",
            ),
            attempts: make.counters("tollkeeper_attempts_total", "Tries at a backend.", &["backend", "result"]),
            fallbacks: make.counters("tollkeeper_fallbacks_total", "Moves to the next target.", &["from", "to"]),
            denied: make.counters(
                "tollkeeper_denied_total",
                "Requests refused before any backend saw them.",
                &["agent", "reason"],
            ),
            shed: make.counter("tollkeeper_shed_total", "Requests refused because max_in_flight was reached."),
            limits: Limits::new(&make),
            tokens: make.counters("tollkeeper_tokens_total", "Tokens metered.", &["agent", "backend", "type"]),
            cost: make.add(CounterVec::new(
                Opts::new("tollkeeper_cost_usd_total", "What was charged since the process started."),
                &["agent", "backend"],
            )),
            money: Money::new(&make),
            backend_state: make.gauges("tollkeeper_backend_state", "0 healthy, 1 partial, 2 down.", &["backend"]),
            providers: Providers::new(&make),
            card: card::Card::new(&make),
            residency: Residency::new(&make),
            economics: economics::Economics::new(&make),
            servers: Servers::new(&make),
            notices: notices::Notices::new(&make),
            cascade: cascade::Cascade::new(&make),
            predicted: make.histograms(
                "tollkeeper_route_estimate_ratio",
                "What an attempt took for each unit that the router expected.",
                &["what"],
                &[0.1, 0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2.0, 4.0, 10.0],
            ),
            learning: Learning::new(&make),
            queue_depth: make.gauges("tollkeeper_local_queue_depth", "Requests waiting for a slot.", &["model"]),
            queue_tokens: make.gauges(
                "tollkeeper_local_queue_tokens",
                "Tokens still to be read and written, estimated.",
                &["model"],
            ),
            slots_busy: make.gauges("tollkeeper_local_slots_busy", "Slots that are decoding.", &["model"]),
            slots: make.gauges("tollkeeper_local_slots", "Slots there are.", &["model"]),
            vllm_waiting: make.gauges("vllm:num_requests_waiting", "Requests waiting for a slot.", &["model_name"]),
            vllm_running: make.gauges("vllm:num_requests_running", "Requests in a slot.", &["model_name"]),
            vllm_kv: make.gauges("vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", &["model_name"]),
            gen_ai_tokens: make.histograms(
                "gen_ai_client_token_usage",
                "Tokens of a request by type.",
                &gen_ai_type,
                &TOKEN_BUCKETS,
            ),
            gen_ai_operation: make.histograms(
                "gen_ai_client_operation_duration_seconds",
                "Duration of the call to the backend.",
                &gen_ai_error,
                &DURATION_BUCKETS,
            ),
            gen_ai_request: make.histograms(
                "gen_ai_server_request_duration_seconds",
                "Duration of the request.",
                &gen_ai_error,
                &DURATION_BUCKETS,
            ),
            gen_ai_first_token: make.histograms(
                "gen_ai_server_time_to_first_token_seconds",
                "Time to the first token.",
                &gen_ai,
                &FIRST_TOKEN_BUCKETS,
            ),
            gen_ai_per_token: make.histograms(
                "gen_ai_server_time_per_output_token_seconds",
                "Time per output token after the first.",
                &gen_ai,
                &PER_TOKEN_BUCKETS,
            ),
            reloads: make.counters(
                "tollkeeper_config_reloads_total",
                "Tries to take over a changed file.",
                &["result"],
            ),
            registry: make.0,
            scrape: Mutex::new(()),
        }
    }

    pub(crate) fn recovered(&self, recovered: Recovered) {
        self.money.recovered(recovered);
    }

    /// The input tokens that were leased of an attempt, and those that its provider reported.
    /// What an attempt took beside what it was expected to.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for looking at")]
    pub(crate) fn predicted(&self, what: &str, was: u64, expected: u64) {
        self.predicted.with_label_values(&[what]).observe(was as f64 / expected as f64);
    }

    /// An answer turned out so good, 0 to 1, as this source says.
    pub(crate) fn outcome(&self, source: &str, score: f64) {
        self.learning.outcome(source, score);
    }

    /// A pyramid began there.
    pub(crate) fn started(&self, choice: &Choice) {
        self.learning.started(choice);
    }

    pub(crate) fn estimated(&self, provider: &str, leased: u64, reported: u64) {
        self.money.estimated(provider, leased, reported);
    }

    pub(crate) fn reloaded(&self, result: &str) {
        self.reloads.with_label_values(&[result]).inc();
    }

    /// One try at a backend ended so.
    pub(crate) fn attempt(&self, backend: &str, result: &str) {
        self.attempts.with_label_values(&[backend, result]).inc();
    }

    /// A request moved on.
    pub(crate) fn fallback(&self, from: &str, to: &str) {
        self.fallbacks.with_label_values(&[from, to]).inc();
    }

    /// A request was refused before it had an account.
    pub(crate) fn refused(&self, agent: &str, reason: &str) {
        self.denied.with_label_values(&[agent, reason]).inc();
    }

    /// A request was refused by a rate limit.
    pub(crate) fn rate_limited(&self, agent: &str, limit: &str) {
        self.limits.refused(agent, limit);
    }

    /// A request ended, with or without an answer.
    pub(crate) fn ended(&self, ended: &Ended<'_>) {
        let Ended { agent, alias, backend, outcome, duration, .. } = *ended;
        let operation = ended.operation.name();
        self.requests.with_label_values(&[agent, alias, backend, operation, outcome]).inc();
        self.request_duration.with_label_values(&[operation, outcome]).observe(duration.as_secs_f64());
        if backend.is_empty() {
            self.denied.with_label_values(&[agent, outcome]).inc();
            return;
        }
        let gen_ai = [operation, ended.provider, backend];
        let error = if matches!(outcome, "done" | "budget_stop") { "" } else { outcome };
        let gen_ai_error = [operation, ended.provider, backend, error];
        self.gen_ai_request.with_label_values(&gen_ai_error).observe(duration.as_secs_f64());
        self.gen_ai_operation.with_label_values(&gen_ai_error).observe(ended.attempt_duration.as_secs_f64());
        if let Some(first) = ended.first_token {
            self.first_token.with_label_values(&[operation, backend]).observe(first.as_secs_f64());
            self.gen_ai_first_token.with_label_values(&gen_ai).observe(first.as_secs_f64());
            self.per_token(&gen_ai, ended, duration.saturating_sub(first));
        }
    }

    /// Time spent in the gateway until the answer began.
    pub(crate) fn overhead(&self, operation: Operation, time: Duration) {
        self.overhead.with_label_values(&[operation.name()]).observe(time.as_secs_f64());
    }

    #[expect(clippy::cast_precision_loss, reason = "an average over fewer than 2^52 tokens")]
    fn per_token(&self, gen_ai: &[&str; 3], ended: &Ended<'_>, decoding: Duration) {
        if ended.streamed && ended.usage.output > 1 {
            let each = decoding.as_secs_f64() / (ended.usage.output - 1) as f64;
            self.gen_ai_per_token.with_label_values(gen_ai).observe(each);
        }
    }

    /// An attempt was charged: operation, provider, agent and backend, tokens and cost.
    #[expect(clippy::cast_precision_loss, reason = "metrics are for looking at; the ledger holds the exact figures")]
    pub(crate) fn charged(&self, [operation, provider, agent, backend]: [&str; 4], usage: &Usage, cost: Usd) {
        let types = [
            ("input", usage.input),
            ("cached_input", usage.cached_input),
            ("cache_write", usage.cache_write),
            ("output", usage.output),
            ("reasoning", usage.reasoning),
        ];
        for (kind, tokens) in types.into_iter().filter(|(_, tokens)| *tokens > 0) {
            self.tokens.with_label_values(&[agent, backend, kind]).inc_by(tokens);
        }
        self.cost.with_label_values(&[agent, backend]).inc_by(usd(cost).max(0.0));
        for (kind, tokens) in [("input", usage.input), ("output", usage.output)] {
            let labels = [operation, provider, kind, backend];
            self.gen_ai_tokens.with_label_values(&labels).observe(tokens as f64);
        }
    }

    /// The text of `/metrics`; gauges are read from their sources now.
    pub(crate) fn render(&self, app: &App) -> Vec<u8> {
        let _alone = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_gauges(app);
        let mut text = Vec::with_capacity(32 << 10);
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => text,
            Err(error) => format!("# metrics could not be written: {error}\n").into_bytes(),
        }
    }

    fn read_gauges(&self, app: &App) {
        self.abandoned.set(i64::try_from(app.abandoned.len()).unwrap_or(i64::MAX));
        self.in_flight.set(i64::try_from(app.in_flight()).unwrap_or(i64::MAX));
        self.money.read(app);
        self.limits.read(app);
        let config = app.config.load();
        let backends = [&self.backend_state, &self.queue_depth, &self.queue_tokens, &self.slots_busy, &self.slots];
        for gauge in backends.into_iter().chain([&self.vllm_waiting, &self.vllm_running, &self.vllm_kv]) {
            gauge.reset();
        }
        for (name, state) in app.fleet.states() {
            self.backend_state.with_label_values(&[&*name]).set(level(&state.health));
        }
        self.providers.read(app);
        self.card.show(app.fleet.card().as_deref());
        self.residency.read(app);
        self.economics.read(app);
        self.servers.read(app);
        self.notices.read(app);
        for (name, model) in &config.local.models {
            let state = app.fleet.snapshot(&BackendId::Local(name.as_str().into()));
            self.read_model(name, model.slots, &state);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "tokens far below 2^52")]
    fn read_model(&self, name: &str, slots: u32, state: &BackendState) {
        let (waiting, running) = (f64::from(state.waiting), f64::from(state.in_flight));
        self.queue_depth.with_label_values(&[name]).set(waiting);
        self.queue_tokens.with_label_values(&[name]).set(state.queue_tokens as f64);
        self.slots_busy.with_label_values(&[name]).set(running);
        self.slots.with_label_values(&[name]).set(f64::from(slots));
        self.vllm_waiting.with_label_values(&[name]).set(waiting);
        self.vllm_running.with_label_values(&[name]).set(running);
        self.vllm_kv.with_label_values(&[name]).set(f64::from(state.kv_usage.unwrap_or(0.0)));
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics are for looking at; the ledger holds the exact figures")]
fn usd(amount: Usd) -> f64 {
    amount.0 as f64 / NANO
}

fn level(health: &BackendHealth) -> f64 {
    match health {
        BackendHealth::Ready => 0.0,
        BackendHealth::Absent { .. } | BackendHealth::Cooling { .. } => 1.0,
        BackendHealth::Unavailable(_) => 2.0,
    }
}
