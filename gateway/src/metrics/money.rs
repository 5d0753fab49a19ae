//! Budgets, leases, velocity and the ledger as series.

use super::{Maker, NANO, usd};
use crate::app::App;
use prometheus::{Counter, GaugeVec, HistogramVec, IntCounter, IntGauge};
use tollkeeper_config::{Limit, Scope};
use tollkeeper_policies::Recovered;

/// Leased input tokens for each one that was reported.
const RATIOS: [f64; 11] = [0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 3.0, 5.0];

/// Of series that are there only where there is something to tell.
const NONE: &[&str] = &[];

pub(super) struct Money {
    limit: GaugeVec,
    spent: GaugeVec,
    remaining: GaugeVec,
    reset: GaugeVec,
    open_leases: IntGauge,
    overruns: IntCounter,
    overrun_usd: Counter,
    recovered: IntCounter,
    estimate: HistogramVec,
    runs: IntGauge,
    paused: IntGauge,
    stage: GaugeVec,
    shared_up: GaugeVec,
    shared_ending: GaugeVec,
    shared_unknown: IntCounter,
    held: IntGauge,
    ledger_up: IntGauge,
    ledger_queue: IntGauge,
}

impl Money {
    pub(super) fn new(make: &Maker) -> Self {
        let budget = ["scope", "owner", "window", "measure"];
        Self {
            limit: make.gauges("tollkeeper_budget_limit", "The cap of a budget, in USD, tokens or requests.", &budget),
            spent: make.gauges("tollkeeper_budget_spent", "Settled in the current window.", &budget),
            remaining: make.gauges("tollkeeper_budget_remaining", "What may still be leased.", &budget),
            reset: make.gauges(
                "tollkeeper_budget_reset_timestamp_seconds",
                "When the window ends, Unix time.",
                &budget,
            ),
            open_leases: make.gauge("tollkeeper_open_leases", "Leases of requests that are still running."),
            overruns: make.counter("tollkeeper_lease_overruns_total", "Requests that cost more than was leased."),
            overrun_usd: make.add(Counter::new("tollkeeper_lease_overrun_usd_total", "By how much.")),
            recovered: make.counter(
                "tollkeeper_recovered_unknown_total",
                "Requests left open by an earlier process and charged as leased.",
            ),
            estimate: make.histograms(
                "tollkeeper_input_estimate_ratio",
                "Input tokens that were leased for each one that the backend reported.",
                &["provider"],
                &RATIOS,
            ),
            runs: make.gauge("tollkeeper_open_runs", "Runs that have not ended."),
            paused: make.gauge("tollkeeper_paused", "Agents, teams and runs that are paused by hand or by a budget."),
            stage: make.gauges(
                "tollkeeper_velocity_stage",
                "0 normal, 1 told of, 2 throttled, 3 local only, 4 paused, 5 killed.",
                &["agent"],
            ),
            shared_up: make.gauges(
                "tollkeeper_shared_up",
                "Whether the store that gateways share their budgets in can be used.",
                &[],
            ),
            shared_ending: make.gauges(
                "tollkeeper_shared_ending_leases",
                "Leases that have ended and that the shared store does not know to have ended.",
                &[],
            ),
            shared_unknown: make
                .counter("tollkeeper_shared_unknown_total", "Leases of gateways that died which this one had charged."),
            held: make.gauge("tollkeeper_velocity_held", "Agents and runs whose velocity stage the operator has set."),
            ledger_up: make.gauge("tollkeeper_ledger_up", "Whether the ledger can be written."),
            ledger_queue: make.gauge("tollkeeper_ledger_queue_depth", "Rows waiting for the next group commit."),
        }
    }

    pub(super) fn recovered(&self, recovered: Recovered) {
        self.recovered.inc_by(recovered.unknown);
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio for looking at")]
    pub(super) fn estimated(&self, provider: &str, leased: u64, reported: u64) {
        if reported > 0 {
            self.estimate.with_label_values(&[provider]).observe(leased as f64 / reported as f64);
        }
    }

    pub(super) fn read(&self, app: &App) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.open_leases.set(count(app.policies.open_leases()));
        let (overruns, sum) = app.policies.overruns();
        self.overruns.inc_by(overruns.saturating_sub(self.overruns.get()));
        self.overrun_usd.inc_by((usd(sum) - self.overrun_usd.get()).max(0.0));
        self.runs.set(count(app.policies.open_runs()));
        self.paused.set(count(app.policies.pauses().len()));
        self.stage.reset();
        for (owner, level) in app.policies.stages() {
            if owner.scope == Scope::Agent {
                self.stage.with_label_values(&[&*owner.id]).set(f64::from(level as u8));
            }
        }
        if let Some(shared) = app.policies.shared() {
            self.shared_up.with_label_values(NONE).set(f64::from(u8::from(shared.trouble.is_none())));
            self.shared_ending.with_label_values(NONE).set(f64::from(u32::try_from(shared.ending).unwrap_or(u32::MAX)));
            self.shared_unknown.inc_by(shared.unknown.saturating_sub(self.shared_unknown.get()));
        }
        self.held.set(count(app.policies.held()));
        self.ledger_up.set(i64::from(app.policies.store_up()));
        self.ledger_queue.set(count(app.policies.queue_depth()));
        self.read_budgets(app);
    }

    #[expect(clippy::cast_precision_loss, reason = "metrics are for looking at; the ledger holds the exact figures")]
    fn read_budgets(&self, app: &App) {
        for gauge in [&self.limit, &self.spent, &self.remaining, &self.reset] {
            gauge.reset();
        }
        for view in app.policies.all_budgets() {
            let (rule, window) = (&view.rule, view.rule.window.to_string());
            let scale = if matches!(rule.limit, Limit::Usd(_)) { NANO } else { 1.0 };
            let labels = [rule.owner.scope.name(), &*rule.owner.id, &*window, rule.limit.measure()];
            let units = |units: i128| units as f64 / scale;
            self.limit.with_label_values(&labels).set(units(rule.limit.units()));
            self.spent.with_label_values(&labels).set(units(view.spent));
            self.remaining.with_label_values(&labels).set(units(view.remaining));
            if let Some(at) = view.resets_at {
                self.reset.with_label_values(&labels).set(at.as_second() as f64);
            }
        }
    }
}
