//! Whether this process lives, and whether it should get traffic.

use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, ok_json};
use http::Response;
use std::sync::atomic::Ordering::Relaxed;
use tollkeeper_config::BackendId;
use tollkeeper_inference::BackendHealth;

/// It answers, so it lives.
pub(crate) fn live() -> Response<Body> {
    ok_json(&br#"{"status":"live"}"#[..])
}

/// It should get traffic: it is not draining, its ledger can be written, and no local model is still loading. A model that failed to load does
/// not count: everything else is served.
pub(crate) fn ready(app: &App) -> Result<Response<Body>, ApiError> {
    let mut reasons = Vec::new();
    if app.draining.load(Relaxed) {
        reasons.push("it is draining".to_owned());
    }
    if !app.policies.store_up() {
        reasons.push("its ledger cannot be written".to_owned());
    }
    for name in app.config.load().local.models.keys() {
        if app.fleet.snapshot(&BackendId::Local(name.as_str().into())).health == BackendHealth::Loading {
            reasons.push(format!("the model {name} is loading"));
        }
    }
    if reasons.is_empty() {
        Ok(ok_json(&br#"{"status":"ready"}"#[..]))
    } else {
        Err(ApiError::NotReady(reasons.join(", ")))
    }
}
