//! `/admin/v1`: pauses, what was spent, backends, and a reload of the configuration file.

use super::{Done, OPERATOR, whole};
use super::{agents, budgets};
use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, ok_json};
use crate::json::{List, bad, read};
use crate::runs;
use http::Response;
use hyper::body::Incoming;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;
use tollkeeper_config::{Owner, Scope, Usd};
use tollkeeper_inference::{BackendHealth, BackendState};
use tollkeeper_policies::report::{SpendGroup, SpendQuery, SpendSum, spend_by};

/// Longer reasons are refused; bytes.
const LONGEST_REASON: usize = 1024;

/// A pause as it is asked for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PauseBody {
    /// Why, for whoever is refused; without it "paused by the operator".
    reason: Option<String>,
}

/// A pause: everything that its owner asks for is refused with 403 until somebody resumes it. A model or provider that is paused is left out
/// where another target can answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PauseShown {
    /// `agent`, `team`, `run`, `alias`, `model`, `provider` or `everything`.
    scope: &'static str,
    /// Whose requests, or for what.
    owner: String,
    /// Why.
    reason: String,
}

/// What became of an order to go on.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Resumed {
    /// As of the pause.
    scope: &'static str,
    /// As of the pause.
    owner: String,
    /// Whether it was stopped before.
    was_paused: bool,
}

/// What was spent.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SpendShown {
    /// What the rows are grouped by.
    group: Vec<&'static str>,
    rows: Vec<SpendRowShown>,
    /// The sum of all rows.
    total_usd: String,
}

/// The sum of a group. Attempts in flight are not in it.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct SpendRowShown {
    /// The agent, team, model, alias, run, day (UTC) and gateway, as far as they are grouped by; null where there is none.
    #[serde(flatten)]
    group: BTreeMap<&'static str, Option<String>>,
    /// Closed attempts, free and released ones included.
    attempts: u64,
    /// Of them, attempts that a crash left open; charged at what they had leased.
    unknown: u64,
    input_tokens: u64,
    cached_input_tokens: u64,
    cache_write_tokens: u64,
    output_tokens: u64,
    reasoning_tokens: u64,
    /// USD, exact.
    cost_usd: String,
    /// Of it, above what was set aside.
    overrun_usd: String,
}

/// A local model, a provider, or a provider's model that was used.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct BackendShown {
    name: String,
    /// `ready`, `absent` (a local model out of memory), `cooling` (it failed lately) or `unavailable`.
    health: &'static str,
    /// Why it is unavailable.
    reason: Option<String>,
    /// Milliseconds until it could serve again.
    ready_in_ms: Option<u64>,
    /// Requests being answered.
    in_flight: u32,
    /// Requests waiting.
    waiting: u32,
    /// Smoothed time to the first token.
    ttft_ms: Option<u64>,
}

/// What a reload took over.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Reloaded {
    reloaded: bool,
    agents: usize,
    budgets: usize,
    aliases: usize,
    providers: usize,
    local_models: usize,
    /// What is legal but probably not meant.
    warnings: Vec<String>,
}

pub(crate) fn pauses(app: &App) -> Response<Body> {
    let shown = |(owner, reason): (Owner, Arc<str>)| PauseShown {
        scope: owner.scope.name(),
        owner: owner.id.to_string(),
        reason: reason.to_string(),
    };
    ok_json(json!(List::of(app.policies.pauses().into_iter().map(shown).collect())).to_string())
}

pub(crate) async fn pause(
    app: &Arc<App>,
    scope: Scope,
    name: &str,
    body: Incoming,
) -> Result<Response<Body>, ApiError> {
    let owner = owner(app, scope, name)?;
    let body: PauseBody = read(app, body).await?;
    let reason = body.reason.unwrap_or_else(|| "paused by the operator".to_owned());
    if reason.is_empty() || reason.len() > LONGEST_REASON {
        return Err(bad("reason", format!("`reason` must be 1 to {LONGEST_REASON} bytes")));
    }
    let shown = PauseShown { scope: scope.name(), owner: owner.id.to_string(), reason: reason.clone() };
    whole(app, |app| async move { Ok(app.policies.pause(OPERATOR, &owner, &reason).await?) }).await?;
    Ok(ok_json(json!(shown).to_string()))
}

pub(crate) async fn resume(app: &Arc<App>, scope: Scope, name: &str) -> Result<Response<Body>, ApiError> {
    // A pause may outlive whom it is of.
    let stopped = if scope == Scope::Everything { Owner::everything() } else { Owner::new(scope, name) };
    let known = app.policies.pauses().iter().any(|(paused, _)| *paused == stopped);
    let owner = if known { stopped } else { owner(app, scope, name)? };
    let id = owner.id.to_string();
    let was_paused = whole(app, |app| async move { Ok(app.policies.resume(OPERATOR, &owner).await?) }).await?;
    Ok(ok_json(json!(Resumed { scope: scope.name(), owner: id, was_paused }).to_string()))
}

/// Whom a path names.
fn owner(app: &App, scope: Scope, name: &str) -> Result<Owner, ApiError> {
    match scope {
        Scope::Everything => return Ok(Owner::everything()),
        Scope::Run => _ = runs::known(app, name)?,
        Scope::Alias | Scope::Model | Scope::Provider if budgets::exists(app, scope, name) => {}
        Scope::Alias | Scope::Model | Scope::Provider => {
            return Err(ApiError::NoTarget { scope, name: name.chars().take(128).collect() });
        }
        Scope::Team => {
            if !app.policies.agents().iter().any(|agent| agent.spec.team.as_deref() == Some(name)) {
                return Err(ApiError::NoTeam(name.chars().take(128).collect()));
            }
        }
        Scope::Agent => _ = agents::find(app, name)?,
    }
    Ok(Owner::new(scope, name))
}

/// Sums of the ledger, or of all gateways' ledgers in their database, read beside the gateway's own work.
pub(crate) async fn spend(app: &App, query: &str) -> Result<Response<Body>, ApiError> {
    let query = parse(query)?;
    let place = app.ledger.clone();
    // What was charged a moment ago is looked for as well.
    _ = app.policies.flush().await;
    let asked = query.clone();
    let read = tokio::task::spawn_blocking(move || spend_by(place, &asked)).await.map_err(|_| ApiError::Panicked)?;
    let sums = read.map_err(|error| ApiError::Ledger(error.to_string()))?;
    let total = sums.iter().fold(Usd::ZERO, |total, sum| total.saturating_add(sum.cost));
    let group = query.groups.iter().map(|group| group.name()).collect();
    let rows = sums.into_iter().map(|sum| show_spend(&query, sum)).collect();
    Ok(ok_json(json!(SpendShown { group, rows, total_usd: total.to_string() }).to_string()))
}

/// Answers when all that was charged before is on record.
pub(crate) async fn flush(app: &App) -> Result<Response<Body>, ApiError> {
    if app.policies.flush().await { Ok(ok_json(json!(Done::default()).to_string())) } else { Err(ApiError::Unwritten) }
}

fn show_spend(query: &SpendQuery, sum: SpendSum) -> SpendRowShown {
    SpendRowShown {
        group: query.groups.iter().map(|group| group.name()).zip(sum.group).collect(),
        attempts: sum.attempts,
        unknown: sum.unknown,
        input_tokens: sum.input,
        cached_input_tokens: sum.cached_input,
        cache_write_tokens: sum.cache_write,
        output_tokens: sum.output,
        reasoning_tokens: sum.reasoning,
        cost_usd: sum.cost.to_string(),
        overrun_usd: sum.overrun.to_string(),
    }
}

fn parse(query: &str) -> Result<SpendQuery, ApiError> {
    let mut parsed = SpendQuery::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8().map_err(|_| bad(key, "this is not UTF-8"))?;
        match key {
            "group" => parsed.groups = SpendGroup::list(&value).map_err(|why| bad(key, why))?,
            "agent" => parsed.agent = Some(value.into_owned()),
            "since" => parsed.since = Some(moment(key, &value)?),
            "until" => parsed.until = Some(moment(key, &value)?),
            _ => return Err(bad(key, format!("`{key}` is unknown; use `group`, `agent`, `since` or `until`"))),
        }
    }
    Ok(parsed)
}

fn moment(key: &str, text: &str) -> Result<Timestamp, ApiError> {
    crate::cli::moment(text).map_err(|why| bad(key, format!("`{key}`: {why}")))
}

/// Whether and how fast every backend answers.
pub(crate) fn backends(app: &App) -> Response<Body> {
    let now = Instant::now();
    let shown = |(name, state): (Arc<str>, BackendState)| {
        let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (health, reason, ready_in) = match state.health {
            BackendHealth::Ready => ("ready", None, None),
            BackendHealth::Absent { ready_in } => ("absent", None, Some(ready_in)),
            BackendHealth::Cooling { until } => ("cooling", None, Some(until.saturating_duration_since(now))),
            BackendHealth::Unavailable(why) => ("unavailable", Some(why.to_string()), None),
        };
        BackendShown {
            name: name.to_string(),
            health,
            reason,
            ready_in_ms: ready_in.map(millis),
            in_flight: state.in_flight,
            waiting: state.waiting,
            ttft_ms: state.ttft.map(millis),
        }
    };
    ok_json(json!(List::of(app.fleet.states().into_iter().map(shown).collect())).to_string())
}

/// Reads the configuration file again; one with a mistake changes nothing.
pub(crate) async fn reload(app: &Arc<App>) -> Result<Response<Body>, ApiError> {
    let reloader = app.reloader.clone().ok_or(ApiError::NoFile)?;
    let taking = app.clone();
    let taken = tokio::task::spawn_blocking(move || {
        let read = reloader.reload();
        match &read {
            Ok(config) => taking.reload(config),
            Err(_) => taking.metrics.reloaded("refused"),
        }
        read
    });
    let config = taken.await.map_err(|_| ApiError::Panicked)?.map_err(|why| ApiError::BadFile(why.to_string()))?;
    // It holds already; that it cannot be recorded is told all the same.
    app.policies.note(OPERATOR, "configuration", json!({"change": "reloaded"})).await.map_err(ApiError::denied)?;
    let reloaded = Reloaded {
        reloaded: true,
        agents: config.agents.len(),
        budgets: config.budgets.len(),
        aliases: config.aliases.len(),
        providers: config.providers.len(),
        local_models: config.local.models.len(),
        warnings: config.warnings.clone(),
    };
    Ok(ok_json(json!(reloaded).to_string()))
}
