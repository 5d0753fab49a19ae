//! Whether this process lives, and whether it should get traffic.

use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, ok_json};
use http::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use std::sync::atomic::Ordering::Relaxed;

/// How it is.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Health {
    /// `live` or `ready`.
    status: &'static str,
}

/// It answers, so it lives.
pub(crate) fn live() -> Response<Body> {
    ok_json(json!(Health { status: "live" }).to_string())
}

/// It should get traffic: it is not draining, its ledger can be written, the budgets that it shares
/// with other gateways can be asked, and no local model of those that are loaded at
/// the start is still loading. A model that failed to load does not count, nor one that comes later: everything else is served.
pub(crate) fn ready(app: &App) -> Result<Response<Body>, ApiError> {
    let mut reasons = Vec::new();
    if app.draining.load(Relaxed) {
        reasons.push("it is draining".to_owned());
    }
    if !app.policies.store_up() {
        reasons.push("its ledger cannot be written".to_owned());
    }
    if let Some(why) = app.policies.shared().and_then(|shared| shared.trouble) {
        reasons.push(format!("the store that it shares budgets in cannot be used: {why}"));
    }
    if app.fleet.preloading() {
        let loading = app.fleet.local_models().into_iter().filter(|model| model.state == "loading");
        reasons.extend(loading.map(|model| format!("the model {} is loading", model.name)));
    }
    if reasons.is_empty() {
        Ok(ok_json(json!(Health { status: "ready" }).to_string()))
    } else {
        Err(ApiError::NotReady(reasons.join(", ")))
    }
}
