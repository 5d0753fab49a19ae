//! What local models are worth: what their absence has cost, and what their tokens cost.

use super::{Maker, usd};
use crate::app::App;
use prometheus::{GaugeVec, IntCounterVec};
use tollkeeper_config::PicoUsd;

/// The series.
pub(super) struct Economics {
    regret: GaugeVec,
    swap: GaugeVec,
    paid: IntCounterVec,
    price: GaugeVec,
    break_even: GaugeVec,
}

impl Economics {
    pub(super) fn new(make: &Maker) -> Self {
        let model = ["model"];
        Self {
            regret: make.gauges("tollkeeper_swap_regret_usd", "What a model's absence has cost, net.", &model),
            swap: make.gauges("tollkeeper_swap_price_usd", "What bringing it in would cost.", &model),
            paid: make.counters("tollkeeper_swaps_paid_total", "Swaps that were found to pay.", &model),
            price: make.gauges(
                "tollkeeper_local_token_price_usd_per_million",
                "What a local model's tokens cost in electricity and hardware.",
                &["model", "kind"],
            ),
            break_even: make.gauges(
                "tollkeeper_local_break_even_tokens_per_second",
                "From which speed on a local model is no dearer than the cloud.",
                &model,
            ),
        }
    }

    pub(super) fn read(&self, app: &App) {
        [&self.regret, &self.swap, &self.price, &self.break_even].into_iter().for_each(GaugeVec::reset);
        for (model, regret, price) in app.economics.regrets() {
            self.regret.with_label_values(&[&*model]).set(usd(regret));
            self.swap.with_label_values(&[&*model]).set(usd(price));
        }
        for (model, times) in app.economics.paid() {
            let count = self.paid.with_label_values(&[&*model]);
            count.inc_by(times.saturating_sub(count.get()));
        }
        let config = app.config.load();
        for model in config.local.models.keys() {
            let Some(compared) = app.economics.compared(&config, model) else { continue };
            for (kind, PicoUsd(pico)) in [("input", compared.input), ("output", compared.output)] {
                #[expect(clippy::cast_precision_loss, reason = "metrics are for looking at")]
                self.price.with_label_values(&[model, kind]).set(pico as f64 / 1e6);
            }
            if let Some(rate) = compared.break_even {
                self.break_even.with_label_values(&[model]).set(rate);
            }
        }
    }
}
