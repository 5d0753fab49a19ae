//! `/admin/v1/models`: where the local models are, and bringing them in and out.

use super::OPERATOR;
use crate::app::App;
use crate::body::Body;
use crate::economics::Compared;
use crate::error::{ApiError, accepted_json, ok_json};
use http::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tollkeeper_inference::{LocalAction, LocalMemory, LocalStatus, Swap};

/// All local models.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelsShown {
    memory: MemoryShown,
    models: Vec<ModelShown>,
    /// The last ones.
    swaps: Vec<SwapShown>,
}

/// The memory that local models share.
#[derive(Debug, Serialize, JsonSchema)]
struct MemoryShown {
    budget_bytes: u64,
    free_bytes: u64,
    /// Held by others than this gateway.
    taken_bytes: u64,
}

/// A local model.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ModelShown {
    name: String,
    /// Such as `ready`, `loading` or `absent`.
    state: String,
    reason: Option<String>,
    pinned: bool,
    ready_in_ms: u64,
    /// How much of its load is done, 0 to 1.
    progress: Option<f32>,
    bytes: u64,
    slots: u32,
    slots_busy: u32,
    context: u32,
    prefill_tokens_per_second: Option<f64>,
    /// By the number of answers at once.
    decode_tokens_per_second: Map<String, Value>,
    guesses: Option<GuessesShown>,
    /// What its tokens cost in electricity and hardware, where `local.energy` says what those do.
    price: Option<PriceShown>,
    /// What its absence has cost, where `local.swap` is `pays` and it is missed.
    absence: Option<AbsenceShown>,
}

/// What a local model's tokens cost, beside the cloud's.
#[derive(Debug, Serialize, JsonSchema)]
struct PriceShown {
    input_usd_per_million: String,
    output_usd_per_million: String,
    /// The cheapest other target of its aliases.
    cloud: Option<String>,
    cloud_input_usd_per_million: Option<String>,
    cloud_output_usd_per_million: Option<String>,
    /// Tokens a second, all answers together, from which on it writes no dearer than the cloud.
    break_even_tokens_per_second: Option<f64>,
}

/// What the absence of a local model costs.
#[derive(Debug, Serialize, JsonSchema)]
struct AbsenceShown {
    /// Net of what the models in its place have earned; negative if they earned more.
    regret_usd: String,
    /// What bringing it in would cost.
    swap_usd: String,
}

/// Guessed tokens.
#[derive(Debug, Serialize, JsonSchema)]
struct GuessesShown {
    source: String,
    guessed: u64,
    accepted: u64,
}

/// A swap of local models.
#[derive(Debug, Serialize, JsonSchema)]
struct SwapShown {
    model: String,
    began_s: f64,
    /// Milliseconds of each phase.
    phases: BTreeMap<String, f64>,
}

/// All local models, the memory they share, and the last swaps.
pub(crate) fn models(app: &App) -> Response<Body> {
    let LocalMemory { budget, free, taken } = app.fleet.local_memory();
    let all = ModelsShown {
        memory: MemoryShown { budget_bytes: budget, free_bytes: free, taken_bytes: taken },
        models: app.fleet.local_models().iter().map(|model| shown(app, model)).collect(),
        swaps: app.fleet.swaps().last.iter().map(swap).collect(),
    };
    ok_json(json!(all).to_string())
}

/// Orders something; the answer shows the model as it is right after the order, which may take a while to be carried out.
pub(crate) async fn act(app: &App, name: &str, action: LocalAction) -> Result<Response<Body>, ApiError> {
    let known = app.fleet.act(name, action);
    let found = app.fleet.local_models().into_iter().find(|model| known && *model.name == *name);
    let model = found.ok_or_else(|| ApiError::NoLocalModel(name.to_owned()))?;
    tracing::info!(model = name, ?action, "ordered by the operator");
    // It is under way whether or not that can be recorded.
    let note = json!({"change": format!("{action:?}").to_lowercase()});
    app.policies.note(OPERATOR, &format!("model/{name}"), note).await.map_err(ApiError::denied)?;
    Ok(accepted_json(json!(shown(app, &model)).to_string()))
}

fn shown(app: &App, model: &LocalStatus) -> ModelShown {
    let compared = app.economics.compared(&app.config.load(), &model.name);
    let absence = app.economics.regrets().into_iter().find(|(name, ..)| *name == model.name);
    ModelShown {
        name: model.name.to_string(),
        state: model.state.to_owned(),
        reason: model.reason.as_deref().map(str::to_owned),
        pinned: model.pinned,
        ready_in_ms: u64::try_from(model.ready_in.as_millis()).unwrap_or(u64::MAX),
        progress: model.progress,
        bytes: model.bytes,
        slots: model.slots.0,
        slots_busy: model.slots.1,
        context: model.context,
        prefill_tokens_per_second: model.prefill_rate,
        decode_tokens_per_second: model
            .decode_rates
            .iter()
            .map(|(answers, rate)| (answers.to_string(), json!(rate)))
            .collect(),
        guesses: model.guesses.map(|count| GuessesShown {
            source: count.source.to_owned(),
            guessed: count.guessed,
            accepted: count.accepted,
        }),
        price: compared.map(price),
        absence: absence
            .map(|(_, regret, swap)| AbsenceShown { regret_usd: regret.to_string(), swap_usd: swap.to_string() }),
    }
}

fn price(Compared { input, output, cloud, break_even }: Compared) -> PriceShown {
    let (cloud_input, cloud_output) = cloud.as_ref().map(|(_, input, output)| (*input, *output)).unzip();
    PriceShown {
        input_usd_per_million: input.to_string(),
        output_usd_per_million: output.to_string(),
        cloud: cloud.map(|(id, ..)| id.to_string()),
        cloud_input_usd_per_million: cloud_input.map(|price| price.to_string()),
        cloud_output_usd_per_million: cloud_output.map(|price| price.to_string()),
        break_even_tokens_per_second: break_even,
    }
}

fn swap(Swap { model, began, phases }: &Swap) -> SwapShown {
    let phases = phases.iter().map(|(phase, took)| (format!("{}_ms", phase.name()), took.as_secs_f64() * 1000.0));
    SwapShown { model: model.clone(), began_s: began.as_secs_f64(), phases: phases.collect() }
}
