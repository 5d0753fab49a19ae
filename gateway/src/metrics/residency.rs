//! Which local models are in memory, and what bringing them in and out took.

use super::Maker;
use crate::app::App;
use prometheus::{CounterVec, GaugeVec, IntCounter, IntCounterVec, Opts};
use tollkeeper_inference::{GuessCount, LocalMemory, LocalStatus};

/// The series.
pub(super) struct Residency {
    state: GaugeVec,
    ready_in: GaugeVec,
    progress: GaugeVec,
    bytes: GaugeVec,
    prefill: GaugeVec,
    decode: GaugeVec,
    memory: GaugeVec,
    phases: IntCounterVec,
    phase_seconds: CounterVec,
    crashes: IntCounterVec,
    guessed: IntCounterVec,
    accepted: IntCounterVec,
    waits: IntCounterVec,
    wait_seconds: CounterVec,
    kept: GaugeVec,
    kept_events: IntCounterVec,
    kept_tokens: IntCounter,
}

impl Residency {
    pub(super) fn new(make: &Maker) -> Self {
        let phase = ["model", "phase"];
        Self {
            state: make.gauges("tollkeeper_local_model_state", "1 for the state a model is in.", &["model", "state"]),
            ready_in: make.gauges(
                "tollkeeper_local_ready_in_seconds",
                "How long until a model could serve, by its loads so far.",
                &["model"],
            ),
            progress: make.gauges(
                "tollkeeper_local_load_progress_ratio",
                "How much of a model's load is done, while it is loaded.",
                &["model"],
            ),
            bytes: make.gauges("tollkeeper_local_model_bytes", "Memory a model takes, or would take.", &["model"]),
            prefill: make.gauges(
                "tollkeeper_local_prefill_tokens_per_second",
                "How fast a model reads prompts, smoothed.",
                &["model"],
            ),
            decode: make.gauges(
                "tollkeeper_local_decode_tokens_per_second",
                "How fast a model writes, all answers together, smoothed, by the most answers at once.",
                &["model", "answers"],
            ),
            memory: make.gauges("tollkeeper_local_memory_bytes", "Memory for local models.", &["kind"]),
            phases: make.counters("tollkeeper_swap_phases_total", "Phases of swaps that have ended.", &phase),
            phase_seconds: make
                .add(CounterVec::new(Opts::new("tollkeeper_swap_phase_seconds_total", "What they took."), &phase)),
            kept: make.gauges("tollkeeper_kept_kv_bytes", "KV of conversations that have no slot.", &["place"]),
            kept_events: make.counters("tollkeeper_kept_kv_total", "What became of such KV.", &["event"]),
            kept_tokens: make.counter("tollkeeper_kept_kv_restored_tokens_total", "Tokens not read again for it."),
            guessed: make.counters(
                "tollkeeper_guessed_tokens_total",
                "Tokens that were guessed and checked.",
                &["model", "source"],
            ),
            accepted: make.counters(
                "tollkeeper_guessed_tokens_accepted_total",
                "Those that were drawn then.",
                &["model", "source"],
            ),
            waits: make.counters("tollkeeper_swap_waits_total", "Requests that waited for their model.", &["model"]),
            wait_seconds: make.add(CounterVec::new(
                Opts::new("tollkeeper_swap_wait_seconds_total", "How long they waited."),
                &["model"],
            )),
            crashes: make.counters("tollkeeper_engine_crashes_total", "Engines that broke while serving.", &["model"]),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^52")]
    pub(super) fn read(&self, app: &App) {
        [&self.state, &self.ready_in, &self.progress, &self.bytes, &self.prefill, &self.decode]
            .into_iter()
            .for_each(GaugeVec::reset);
        [&self.guessed, &self.accepted].into_iter().for_each(IntCounterVec::reset);
        for LocalStatus { name, state, ready_in, progress, bytes, prefill_rate, decode_rates, guesses, .. } in
            app.fleet.local_models()
        {
            for known in LocalStatus::STATES {
                self.state.with_label_values(&[&*name, known]).set(f64::from(u8::from(known == state)));
            }
            self.ready_in.with_label_values(&[&*name]).set(ready_in.as_secs_f64());
            if let Some(done) = progress {
                self.progress.with_label_values(&[&*name]).set(f64::from(done));
            }
            self.bytes.with_label_values(&[&*name]).set(bytes as f64);
            prefill_rate.into_iter().for_each(|rate| self.prefill.with_label_values(&[&*name]).set(rate));
            for (answers, rate) in decode_rates {
                self.decode.with_label_values(&[&*name, &answers.to_string()]).set(rate);
            }
            if let Some(GuessCount { source, guessed, accepted }) = guesses {
                self.guessed.with_label_values(&[&*name, source]).inc_by(guessed);
                self.accepted.with_label_values(&[&*name, source]).inc_by(accepted);
            }
        }
        let LocalMemory { budget, free, taken } = app.fleet.local_memory();
        for (kind, bytes) in [("budget", budget), ("free", free), ("taken", taken)] {
            self.memory.with_label_values(&[kind]).set(bytes as f64);
        }
        let swaps = app.fleet.swaps();
        for (model, phase, total) in &swaps.totals {
            let labels = [model.as_str(), phase.name()];
            let count = self.phases.with_label_values(&labels);
            count.inc_by(total.count.saturating_sub(count.get()));
            let seconds = self.phase_seconds.with_label_values(&labels);
            seconds.inc_by((total.time.as_secs_f64() - seconds.get()).max(0.0));
        }
        for (model, waits) in &swaps.waits {
            let count = self.waits.with_label_values(&[model]);
            count.inc_by(waits.count.saturating_sub(count.get()));
            let seconds = self.wait_seconds.with_label_values(&[model]);
            seconds.inc_by((waits.time.as_secs_f64() - seconds.get()).max(0.0));
        }
        let kept = app.fleet.kept_kv();
        for (place, bytes) in [("memory", kept.memory_bytes), ("disk", kept.disk_bytes)] {
            self.kept.with_label_values(&[place]).set(bytes as f64);
        }
        for (event, count) in [("saved", kept.saved), ("restored", kept.restored), ("refused", kept.refused)] {
            let counter = self.kept_events.with_label_values(&[event]);
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        self.kept_tokens.inc_by(kept.restored_tokens.saturating_sub(self.kept_tokens.get()));
        for (model, crashes) in &swaps.crashes {
            let count = self.crashes.with_label_values(&[model]);
            count.inc_by(crashes.saturating_sub(count.get()));
        }
    }
}
