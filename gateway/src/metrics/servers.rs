//! What servers that one runs oneself said of themselves when they were last asked.

use super::Maker;
use crate::app::App;
use prometheus::GaugeVec;

/// The series.
pub(super) struct Servers {
    up: GaugeVec,
    loaded: GaugeVec,
    running: GaugeVec,
    waiting: GaugeVec,
    kv: GaugeVec,
}

impl Servers {
    pub(super) fn new(make: &Maker) -> Self {
        let model = ["provider", "model"];
        Self {
            up: make.gauges("tollkeeper_server_up", "Whether a server answered its last probe.", &["provider"]),
            loaded: make.gauges("tollkeeper_server_model_loaded", "Whether a server has a model in memory.", &model),
            running: make.gauges("tollkeeper_server_requests_running", "Requests a server is answering.", &model),
            waiting: make.gauges("tollkeeper_server_requests_waiting", "Requests that wait at a server.", &model),
            kv: make.gauges("tollkeeper_server_kv_usage_ratio", "Share of a server's KV cache in use, 0 to 1.", &model),
        }
    }

    /// Servers that do not tell something have no sample of it.
    pub(super) fn read(&self, app: &App) {
        [&self.up, &self.loaded, &self.running, &self.waiting, &self.kv].into_iter().for_each(GaugeVec::reset);
        for server in app.fleet.servers() {
            let provider = &*server.provider;
            if let Some(up) = server.up {
                self.up.with_label_values(&[provider]).set(f64::from(u8::from(up)));
            }
            for (model, loaded) in &server.models {
                if let Some(loaded) = *loaded {
                    self.loaded.with_label_values(&[provider, model]).set(f64::from(u8::from(loaded)));
                }
            }
            for load in &server.loads {
                let labels = [provider, &*load.model];
                self.running.with_label_values(&labels).set(f64::from(load.running));
                self.waiting.with_label_values(&labels).set(f64::from(load.waiting));
                if let Some(kv) = load.kv_usage {
                    self.kv.with_label_values(&labels).set(f64::from(kv));
                }
            }
        }
    }
}
