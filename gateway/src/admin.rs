//! `/admin/v1/models`: where the local models are, and bringing them in and out, for whoever holds the operator's key.

use crate::app::App;
use crate::auth;
use crate::body::Body;
use crate::error::{ApiError, accepted_json, ok_json};
use http::{HeaderMap, Response};
use serde_json::{Value, json};
use tollkeeper_inference::{LocalAction, LocalMemory, LocalStatus, Swap};

/// What can be asked of a model, by its place in the path.
pub(crate) const ACTIONS: [(&str, LocalAction); 4] = [
    ("load", LocalAction::Load),
    ("unload", LocalAction::Unload),
    ("pin", LocalAction::Pin),
    ("unpin", LocalAction::Unpin),
];

/// All local models, the memory they share, and the last swaps.
pub(crate) fn models(app: &App, head: &HeaderMap) -> Result<Response<Body>, ApiError> {
    auth::operator(app, head)?;
    let LocalMemory { budget, free, taken } = app.fleet.local_memory();
    let models: Vec<Value> = app.fleet.local_models().iter().map(shown).collect();
    let swaps: Vec<Value> = app.fleet.swaps().last.iter().map(swap).collect();
    let memory = json!({"budget_bytes": budget, "free_bytes": free, "taken_bytes": taken});
    Ok(ok_json(json!({"memory": memory, "models": models, "swaps": swaps}).to_string()))
}

/// Orders something; the answer shows the model as it is right after the order, which may take a while to be carried out.
pub(crate) fn act(app: &App, head: &HeaderMap, name: &str, action: LocalAction) -> Result<Response<Body>, ApiError> {
    auth::operator(app, head)?;
    let known = app.fleet.act(name, action);
    let found = app.fleet.local_models().into_iter().find(|model| known && *model.name == *name);
    let model = found.ok_or_else(|| ApiError::NoLocalModel(name.to_owned()))?;
    tracing::info!(model = name, ?action, "ordered by the operator");
    Ok(accepted_json(shown(&model).to_string()))
}

fn shown(model: &LocalStatus) -> Value {
    let LocalStatus {
        name,
        state,
        reason,
        pinned,
        ready_in,
        progress,
        bytes,
        slots: (slots, busy),
        context,
        guesses,
        ..
    } = model;
    let decode: serde_json::Map<String, Value> =
        model.decode_rates.iter().map(|(answers, rate)| (answers.to_string(), json!(rate))).collect();
    json!({
        "name": &**name,
        "state": state,
        "reason": reason.as_deref(),
        "pinned": pinned,
        "ready_in_ms": u64::try_from(ready_in.as_millis()).unwrap_or(u64::MAX),
        "progress": progress,
        "bytes": bytes,
        "slots": slots,
        "slots_busy": busy,
        "context": context,
        "prefill_tokens_per_second": model.prefill_rate,
        "decode_tokens_per_second": decode,
        "guesses": guesses.map(|count| json!({"source": count.source, "guessed": count.guessed, "accepted": count.accepted})),
    })
}

fn swap(Swap { model, began, phases }: &Swap) -> Value {
    let phases: serde_json::Map<String, Value> = phases
        .iter()
        .map(|(phase, took)| (format!("{}_ms", phase.name()), json!(took.as_secs_f64() * 1000.0)))
        .collect();
    json!({"model": model, "began_s": began.as_secs_f64(), "phases": phases})
}
