//! `/v1/runs`: tasks with limits and keys of their own. Whoever has an agent's key makes runs of that agent, whoever has a run's key
//! makes runs below it, and the operator makes any.

mod events;
mod watchers;

pub(crate) use events::EventStream;
pub(crate) use watchers::Watchers;

use crate::app::App;
use crate::auth::{self, Who};
use crate::body::Body;
use crate::error::{ApiError, created_json, ok_json};
use crate::json::{List, Money, bad, read};
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::OnLimit;
use tollkeeper_policies::{Maker, NewRun, Run, RunError, RunLimits, RunPolicy, RunView};

/// Longer labels are refused.
const LONGEST_LABEL: usize = 256;
/// As for budgets.
const MOST_WRAP_UP: u8 = 50;

/// What can be done with one run, by the last part of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Extend,
    Cancel,
}

/// A run as it is asked for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RunBody {
    /// Whose it is; the operator must say so.
    agent: Option<String>,
    /// The run above it; without it that whose key is used, if it is a run's.
    parent: Option<String>,
    /// For people.
    label: Option<String>,
    /// What it may spend.
    limits: Limits,
    /// How it behaves.
    policy: Policy,
}

/// What a run may spend; what is missing is bounded by the runs above it and the agent's budgets alone.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Money.
    usd: Option<Money>,
    /// Tokens of prompts and answers together.
    tokens: Option<u64>,
    /// Attempts.
    calls: Option<u64>,
    /// Seconds from its creation; then what is in flight is cut.
    wall_s: Option<u64>,
}

/// How a run behaves.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Policy {
    /// What happens to a request that it cannot pay: `deny`, `degrade` or `ask`.
    on_limit: Option<String>,
    /// Only local models may answer.
    local_only: bool,
    /// Percentage of the limits, at most 50, that only a final answer without tools may use.
    wrap_up_pct: u8,
}

/// Makes a run. The answer shows its key, this once.
///
/// # Errors
/// The body is not right, the caller may not make this run, or it cannot be paid.
pub(crate) async fn create(app: &App, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let who = auth::who(app, request.headers())?;
    let body: RunBody = read(app, request.into_body()).await?;
    let agent = match (&who, body.agent) {
        (Who::Operator, agent) => {
            agent.ok_or_else(|| bad("agent", "the operator must say whose run it is: `agent` is missing"))?
        }
        (Who::Caller(caller), agent) => match agent {
            Some(other) if *other != *caller.agent.name => {
                return Err(ApiError::Run(RunError::NoAgent(other)));
            }
            _ => caller.agent.name.to_string(),
        },
    };
    let own = who.run().map(|run| run.id.to_string());
    let parent = match body.parent.or(own) {
        Some(id) => Some(find(app, &who, &id)?.run),
        None => None,
    };
    if let Some(parent) = parent.as_ref().filter(|parent| *parent.agent != *agent) {
        return Err(bad("parent", format!("the run `{}` is one of another agent", parent.id)));
    }
    if body.label.as_ref().is_some_and(|label| label.len() > LONGEST_LABEL) {
        return Err(bad("label", format!("the label is longer than {LONGEST_LABEL} bytes")));
    }
    let maker = match &who {
        Who::Operator => Maker::default(),
        Who::Caller(caller) => caller.maker(),
    };
    let new = NewRun { parent, label: body.label, limits: limits(body.limits), policy: policy(body.policy)?, maker };
    let (view, key) = app.policies.create_run(who.name(), &agent, new).await?;
    let shown = RunShown { key: Some(key), ..show(&view) };
    Ok(created_json(json!(shown).to_string()))
}

/// All runs that the caller may see and that are open or ended within a day, the newest first.
///
/// # Errors
/// Nobody has this key.
pub(crate) fn list(app: &App, head: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let who = auth::who(app, head)?;
    let runs = app.policies.runs(|run| may_see(&who, run)).iter().map(show).collect();
    Ok(ok_json(json!(List::of(runs)).to_string()))
}

/// One of them.
///
/// # Errors
/// There is none that this caller may see.
pub(crate) fn one(app: &App, head: &HeaderMap, id: &str) -> Result<Response<Body>, ApiError> {
    let who = auth::who(app, head)?;
    Ok(ok_json(json!(show(&find(app, &who, id)?)).to_string()))
}

/// What happens in it and below it, as it happens.
///
/// # Errors
/// There is none that this caller may see, or too many are watched already.
pub(crate) fn watch(app: &Arc<App>, head: &HeaderMap, id: &str) -> Result<Response<Body>, ApiError> {
    let who = auth::who(app, head)?;
    events::respond(app, find(app, &who, id)?)
}

/// Raises the limits of a run, or ends it and all below it. A run may end itself, but not raise its own limits.
///
/// # Errors
/// There is none that this caller may change, it has ended, or the run above it cannot pay.
pub(crate) async fn act(
    app: &App,
    request: Request<Incoming>,
    id: &str,
    action: Action,
) -> Result<Response<Body>, ApiError> {
    let who = auth::who(app, request.headers())?;
    let run = find(app, &who, id)?.run;
    let view = match action {
        Action::Cancel => app.policies.cancel_run(who.name(), &run).await?,
        Action::Extend => {
            if who.run().is_some_and(|own| own.id == run.id) {
                return Err(ApiError::OwnRun);
            }
            let more = limits(read(app, request.into_body()).await?);
            app.policies.extend_run(who.name(), &run, &more).await?
        }
    };
    Ok(ok_json(json!(show(&view)).to_string()))
}

/// One of them for the operator.
///
/// # Errors
/// There is none.
pub(crate) fn known(app: &App, id: &str) -> Result<RunView, ApiError> {
    find(app, &Who::Operator, id)
}

fn find(app: &App, who: &Who, id: &str) -> Result<RunView, ApiError> {
    let found = app.policies.run(id).filter(|view| may_see(who, &view.run));
    found.ok_or_else(|| ApiError::Run(RunError::NoRun(id.chars().take(80).collect())))
}

/// A run's key opens it and what is below it, an agent's key all its runs.
fn may_see(who: &Who, run: &Arc<Run>) -> bool {
    match who {
        Who::Operator => true,
        Who::Caller(caller) => match &caller.run {
            Some(own) => run.chain().any(|above| above.id == own.id),
            None => run.agent == caller.agent.name,
        },
    }
}

fn limits(raw: Limits) -> RunLimits {
    RunLimits {
        usd: raw.usd.map(|Money(usd)| usd),
        tokens: raw.tokens,
        calls: raw.calls,
        wall: raw.wall_s.map(Duration::from_secs),
    }
}

fn policy(raw: Policy) -> Result<RunPolicy, ApiError> {
    let on_limit = raw.on_limit.map(|name| {
        OnLimit::named(&name)
            .ok_or_else(|| bad("policy.on_limit", "`on_limit` must be \"deny\", \"degrade\" or \"ask\""))
    });
    if raw.wrap_up_pct > MOST_WRAP_UP {
        return Err(bad("policy.wrap_up_pct", format!("`wrap_up_pct` must be at most {MOST_WRAP_UP}")));
    }
    Ok(RunPolicy {
        on_limit: on_limit.transpose()?.unwrap_or_default(),
        local_only: raw.local_only,
        wrap_up_pct: raw.wrap_up_pct,
    })
}

/// A run. Amounts in USD are texts, exact.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RunShown {
    id: String,
    object: &'static str,
    agent: String,
    parent: Option<String>,
    label: Option<String>,
    /// `active`, `cancelled` or `over`.
    status: &'static str,
    limits: LimitsShown,
    /// By it and by the runs below it.
    spent: SpentShown,
    /// Set aside for requests in flight and for the runs below it.
    reserved_usd: String,
    policy: PolicyShown,
    /// RFC 3339.
    created_at: String,
    ends_at: Option<String>,
    ended_at: Option<String>,
    /// The key, shown once: in the answer that made the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// What a run may spend; null is bounded by the runs above it and the agent's budgets alone.
#[derive(Debug, Serialize, JsonSchema)]
struct LimitsShown {
    usd: Option<String>,
    tokens: Option<u64>,
    calls: Option<u64>,
    wall_s: Option<u64>,
}

/// What a run has spent.
#[derive(Debug, Serialize, JsonSchema)]
struct SpentShown {
    usd: String,
    tokens: u64,
    calls: u64,
}

/// How a run behaves.
#[derive(Debug, Serialize, JsonSchema)]
struct PolicyShown {
    /// `deny`, `degrade` or `ask`.
    on_limit: &'static str,
    local_only: bool,
    wrap_up_pct: u8,
}

fn show(view: &RunView) -> RunShown {
    let RunView { run, limits, .. } = view;
    RunShown {
        id: run.id.to_string(),
        object: "run",
        agent: run.agent.to_string(),
        parent: run.parent.as_ref().map(|parent| parent.id.to_string()),
        label: run.label.clone(),
        status: view.ended.map_or("active", |(end, _)| end.name()),
        limits: LimitsShown {
            usd: limits.usd.map(|usd| usd.to_string()),
            tokens: limits.tokens,
            calls: limits.calls,
            wall_s: limits.wall.map(|wall| wall.as_secs()),
        },
        spent: SpentShown { usd: view.spent.to_string(), tokens: view.tokens, calls: view.calls },
        reserved_usd: view.reserved.to_string(),
        policy: PolicyShown {
            on_limit: run.policy.on_limit.name(),
            local_only: run.policy.local_only,
            wrap_up_pct: run.policy.wrap_up_pct,
        },
        created_at: view.created.to_string(),
        ends_at: view.ends.map(|at| at.to_string()),
        ended_at: view.ended.map(|(_, at)| at.to_string()),
        key: None,
    }
}
