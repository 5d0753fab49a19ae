//! `/admin/v1/agents`, their keys, and `/admin/v1/teams`.

use super::budgets::{self, BudgetShown};
use super::{Done, OPERATOR, whole};
use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, created_json, ok_json};
use crate::json::{List, Money, bad, changed, read};
use http::Response;
use hyper::body::Incoming;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{Owner, Priority, RateLimits, Scope, Usd, is_slug};
use tollkeeper_policies::{AgentSpec, AgentView, KeyChange, KeyView, ManageError, NewKey, Scopes, Source};

/// How long both keys work when a rotation does not say.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);
/// Longer overlaps, and ends further away, are refused; seconds.
const LONGEST: u64 = 10 * 366 * 24 * 3600;
/// More patterns of models are refused.
const MOST_MODELS: usize = 256;

/// An agent as it is asked for; the keys are those of `[[agents]]`. In a change, what is missing stays and null takes away.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AgentBody {
    /// Its name: a-z, 0-9, `_`, `-` and `.`. Needed for a new one, and kept.
    name: Option<String>,
    /// The team that it belongs to.
    team: Option<String>,
    /// Aliases and models it may name; `*` stands for any run of characters. Without it any.
    models: Option<Vec<String>>,
    /// `interactive` or `batch`.
    priority: Option<String>,
    /// The most that one of its requests may cost, all attempts together.
    max_request_usd: Option<Money>,
    /// Requests a minute.
    requests_per_minute: Option<NonZeroU32>,
    /// Tokens a minute, input and output together.
    tokens_per_minute: Option<NonZeroU32>,
    /// Requests that run at once.
    parallel: Option<NonZeroU32>,
    /// Requests of each priority that may wait for that.
    queue: Option<u32>,
    /// The alias whose targets answer when a budget sends its requests to cheaper ones.
    degrade_to: Option<String>,
    /// The type of its tasks where a request does not say one.
    task_type: Option<String>,
    /// Whether all its keys are refused.
    disabled: bool,
}

/// An agent.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AgentShown {
    name: String,
    /// `file` or `api`.
    source: &'static str,
    /// It was made through the API, but the configuration file defines an agent of its name: nothing of this is used.
    shadowed: bool,
    /// What to know of it.
    note: Option<&'static str>,
    team: Option<String>,
    models: Vec<String>,
    priority: &'static str,
    max_request_usd: Option<Money>,
    requests_per_minute: Option<NonZeroU32>,
    tokens_per_minute: Option<NonZeroU32>,
    parallel: Option<NonZeroU32>,
    queue: u32,
    degrade_to: Option<String>,
    task_type: Option<String>,
    disabled: bool,
    /// Why it is paused, if it is.
    paused: Option<String>,
    /// RFC 3339.
    created_at: Option<String>,
    /// Its keys that were made through the API.
    keys: Vec<KeyShown>,
}

/// A key; its secret is shown once, when it is made.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct KeyShown {
    id: String,
    /// How the secret begins.
    prefix: String,
    /// RFC 3339.
    created_at: String,
    /// RFC 3339; null for never.
    expires_at: Option<String>,
    /// `active`, `expired` or `disabled`.
    status: &'static str,
    /// What it is good for: `infer`, `runs`.
    scopes: Vec<&'static str>,
}

/// A new key with its secret.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct KeyMade {
    #[serde(flatten)]
    shown: KeyShown,
    /// The secret, shown this once.
    key: String,
    /// In a rotation: the old key, which works until it expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<KeyShown>,
}

/// A new key as it is asked for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct KeyBody {
    /// What it is good for; without it everything: `infer` (asking models), `runs` (making, seeing and ending runs).
    scopes: Option<Vec<String>>,
    /// When it expires, RFC 3339; without it, and without the next, never.
    expires_at: Option<String>,
    /// In how many seconds it expires.
    expires_in_s: Option<u64>,
}

/// What is changed of a key; what is missing stays.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct KeyChangeBody {
    /// Whether it is refused.
    disabled: Option<bool>,
    /// What it is good for.
    scopes: Option<Vec<String>>,
    /// When it expires, RFC 3339, or `never`.
    expires_at: Option<String>,
    /// In how many seconds it expires.
    expires_in_s: Option<u64>,
}

/// A rotation as it is asked for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RotateBody {
    /// For how many seconds the old key still works; without it a day.
    overlap_s: Option<u64>,
    /// When the new key expires, RFC 3339; without it, and without the next, never.
    expires_at: Option<String>,
    /// In how many seconds the new key expires.
    expires_in_s: Option<u64>,
}

/// A team.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TeamShown {
    name: String,
    /// Its agents.
    agents: Vec<String>,
    /// Why it is paused, if it is.
    paused: Option<String>,
    budgets: Vec<BudgetShown>,
}

pub(crate) fn list(app: &App) -> Response<Body> {
    let shown = app.policies.agents().iter().map(|agent| show(app, agent)).collect();
    ok_json(json!(List::of(shown)).to_string())
}

/// The one that counts of that name.
pub(crate) fn one(app: &App, name: &str) -> Result<Response<Body>, ApiError> {
    Ok(ok_json(json!(show(app, &find(app, name)?)).to_string()))
}

pub(crate) async fn create(app: &Arc<App>, body: Incoming) -> Result<Response<Body>, ApiError> {
    let body: AgentBody = read(app, body).await?;
    let name = body.name.clone().ok_or_else(|| bad("name", "`name` is missing: how the new agent is called"))?;
    if !is_slug(&name) {
        return Err(bad("name", "`name` must be 1 to 128 of a-z, 0-9, `_`, `-` and `.`"));
    }
    let spec = body.spec(app, None)?;
    let agent = whole(app, |app| async move {
        let made = app.policies.create_agent(OPERATOR, &name, spec).await?;
        app.limits_changed();
        Ok(made)
    });
    let agent = agent.await?;
    Ok(created_json(json!(show(app, &agent)).to_string()))
}

pub(crate) async fn change(app: &Arc<App>, name: &str, body: Incoming) -> Result<Response<Body>, ApiError> {
    let name = name.to_owned();
    let change: Value = read(app, body).await?;
    created(app, &name)?;
    let agent = whole(app, |app| async move {
        let change = |spec: AgentSpec| {
            let body = changed(&AgentBody::of(&name, &spec), change)?;
            if body.name.as_ref() != Some(&name) {
                return Err(bad("name", "an agent keeps its name; make another one"));
            }
            body.spec(&app, Some(&spec))
        };
        let changed = app.policies.change_agent(OPERATOR, &name, change).await?;
        app.limits_changed();
        Ok(changed)
    });
    let agent = agent.await?;
    Ok(ok_json(json!(show(app, &agent)).to_string()))
}

pub(crate) async fn remove(app: &Arc<App>, name: &str) -> Result<Response<Body>, ApiError> {
    let name = name.to_owned();
    whole(app, |app| async move {
        app.policies.remove_agent(OPERATOR, &name).await?;
        app.limits_changed();
        Ok(())
    })
    .await?;
    Ok(ok_json(json!(Done::default()).to_string()))
}

pub(crate) fn keys(app: &App, agent: &str) -> Result<Response<Body>, ApiError> {
    let made = created(app, agent)?;
    let now = app.clock.now();
    let keys = made.keys.iter().map(|key| show_key(key, now)).collect();
    Ok(ok_json(json!(List::of(keys)).to_string()))
}

pub(crate) async fn create_key(app: &Arc<App>, agent: &str, body: Incoming) -> Result<Response<Body>, ApiError> {
    let (agent, body): (_, KeyBody) = (agent.to_owned(), read(app, body).await?);
    let now = app.clock.now();
    let scopes = body.scopes.map_or(Ok(Scopes::ALL), |names| scopes(&names))?;
    let new = NewKey { scopes, expires: end(now, body.expires_at.as_deref(), body.expires_in_s)? };
    let made = whole(app, |app| async move { Ok(app.policies.create_key(OPERATOR, &agent, new).await?) });
    let (key, secret) = made.await?;
    let made = KeyMade { shown: show_key(&key, now), key: secret, replaces: None };
    Ok(created_json(json!(made).to_string()))
}

pub(crate) async fn change_key(
    app: &Arc<App>,
    agent: &str,
    id: &str,
    body: Incoming,
) -> Result<Response<Body>, ApiError> {
    let (agent, id, body): (_, _, KeyChangeBody) = (agent.to_owned(), id.to_owned(), read(app, body).await?);
    let now = app.clock.now();
    let expires = match body.expires_at.as_deref() {
        Some("never") => Some(None),
        at => end(now, at, body.expires_in_s)?.map(Some),
    };
    let scopes = body.scopes.map(|names| scopes(&names)).transpose()?;
    let change = KeyChange { disabled: body.disabled, expires, scopes };
    let key =
        whole(app, |app| async move { Ok(app.policies.change_key(OPERATOR, &agent, &id, change).await?) }).await?;
    Ok(ok_json(json!(show_key(&key, now)).to_string()))
}

pub(crate) async fn remove_key(app: &Arc<App>, agent: &str, id: &str) -> Result<Response<Body>, ApiError> {
    let (agent, id) = (agent.to_owned(), id.to_owned());
    whole(app, |app| async move { Ok(app.policies.remove_key(OPERATOR, &agent, &id).await?) }).await?;
    Ok(ok_json(json!(Done::default()).to_string()))
}

pub(crate) async fn rotate_key(
    app: &Arc<App>,
    agent: &str,
    id: &str,
    body: Incoming,
) -> Result<Response<Body>, ApiError> {
    let (agent, id, body): (_, _, RotateBody) = (agent.to_owned(), id.to_owned(), read(app, body).await?);
    let now = app.clock.now();
    let overlap = body.overlap_s.map_or(Ok(OVERLAP), |seconds| duration("overlap_s", seconds))?;
    let expires = end(now, body.expires_at.as_deref(), body.expires_in_s)?;
    let rotated =
        whole(app, |app| async move { Ok(app.policies.rotate_key(OPERATOR, &agent, &id, overlap, expires).await?) });
    let (old, key, secret) = rotated.await?;
    let made = KeyMade { shown: show_key(&key, now), key: secret, replaces: Some(show_key(&old, now)) };
    Ok(created_json(json!(made).to_string()))
}

/// All teams that agents belong to.
pub(crate) fn teams(app: &App) -> Response<Body> {
    let mut teams: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for agent in app.policies.agents().into_iter().filter(|agent| !agent.shadowed) {
        if let Some(team) = agent.spec.team {
            teams.entry(team).or_default().insert(agent.name.to_string());
        }
    }
    let entries = app.policies.budget_entries();
    let team = |(name, agents): (String, BTreeSet<String>)| {
        let owner = Owner::new(Scope::Team, name.as_str());
        TeamShown {
            agents: agents.into_iter().collect(),
            paused: paused(app, &owner),
            budgets: entries.iter().filter(|entry| entry.rule.owner == owner).map(budgets::show).collect(),
            name,
        }
    };
    ok_json(json!(List::of(teams.into_iter().map(team).collect())).to_string())
}

/// The one that counts of that name.
///
/// # Errors
/// There is none.
pub(super) fn find(app: &App, name: &str) -> Result<AgentView, ApiError> {
    let found = app.policies.agents().into_iter().find(|agent| *agent.name == *name);
    found.ok_or_else(|| ManageError::NoAgent(short(name)).into())
}

/// The one of that name that was made through the API.
fn created(app: &App, name: &str) -> Result<AgentView, ApiError> {
    let of_name: Vec<_> = app.policies.agents().into_iter().filter(|agent| *agent.name == *name).collect();
    let in_file = !of_name.is_empty();
    let made = of_name.into_iter().find(|agent| agent.source == Source::Api);
    made.ok_or_else(|| match in_file {
        true => ManageError::AgentInFile(short(name)).into(),
        false => ManageError::NoAgent(short(name)).into(),
    })
}

/// A name as it may stand in an error.
fn short(name: &str) -> String {
    name.chars().take(128).collect()
}

pub(super) fn paused(app: &App, owner: &Owner) -> Option<String> {
    app.policies.pauses().into_iter().find(|(paused, _)| paused == owner).map(|(_, reason)| reason.to_string())
}

impl AgentBody {
    fn of(name: &str, spec: &AgentSpec) -> Self {
        let RateLimits { requests_per_minute, tokens_per_minute, parallel, queue } = spec.rates;
        Self {
            name: Some(name.to_string()),
            team: spec.team.clone(),
            models: Some(spec.models.clone()),
            priority: Some(spec.priority.name().to_owned()),
            max_request_usd: spec.max_request.map(Money),
            requests_per_minute,
            tokens_per_minute,
            parallel,
            queue: parallel.map(|_| queue),
            degrade_to: spec.degrade_to.clone(),
            task_type: spec.task_type.clone(),
            disabled: spec.disabled,
        }
    }

    /// What is as it was is not asked for anew: it may have lost what it names, or need not stand alone.
    fn spec(self, app: &App, old: Option<&AgentSpec>) -> Result<AgentSpec, ApiError> {
        if let Some(team) = self.team.as_ref().filter(|team| !is_slug(team)) {
            return Err(bad("team", format!("`team` must be 1 to 128 of a-z, 0-9, `_`, `-` and `.`, not \"{team}\"")));
        }
        let priority = self.priority.map_or(Some(Priority::default()), |name| Priority::named(&name));
        let priority = priority.ok_or_else(|| bad("priority", "`priority` must be \"interactive\" or \"batch\""))?;
        if self.max_request_usd.is_some_and(|Money(most)| most <= Usd::ZERO) {
            return Err(bad("max_request_usd", "`max_request_usd` must be more than 0"));
        }
        let same_queue = self.queue.is_some() && self.queue == old.map(|old| old.rates.queue);
        if self.queue.is_some() && self.parallel.is_none() && !same_queue {
            let message = "`queue` is for requests that wait because `parallel` run; add `parallel`";
            return Err(bad("queue", message));
        }
        if self.models.as_ref().is_some_and(|models| models.len() > MOST_MODELS) {
            return Err(bad("models", format!("there can be {MOST_MODELS} patterns of models")));
        }
        let new_alias =
            self.degrade_to.as_ref().filter(|alias| old.is_none_or(|old| old.degrade_to.as_ref() != Some(alias)));
        if let Some(alias) = new_alias.filter(|alias| !app.config.load().aliases.contains_key(*alias)) {
            return Err(bad("degrade_to", format!("there is no alias `{alias}`")));
        }
        if self.task_type.as_ref().is_some_and(|task| !is_slug(task)) {
            return Err(bad("task_type", "a type of task is a name of a-z, 0-9, `_`, `-` and `.`"));
        }
        Ok(AgentSpec {
            team: self.team,
            models: self.models.unwrap_or_else(|| vec!["*".to_owned()]),
            priority,
            max_request: self.max_request_usd.map(|Money(most)| most),
            rates: RateLimits {
                requests_per_minute: self.requests_per_minute,
                tokens_per_minute: self.tokens_per_minute,
                parallel: self.parallel,
                queue: self.queue.unwrap_or(RateLimits::QUEUE),
            },
            degrade_to: self.degrade_to,
            task_type: self.task_type,
            disabled: self.disabled,
        })
    }
}

fn show(app: &App, agent: &AgentView) -> AgentShown {
    let AgentView { name, source, shadowed, spec, created, keys } = agent;
    let now = app.clock.now();
    let note = match source {
        Source::File => Some("defined in the configuration file; change it there"),
        Source::Api if *shadowed => {
            Some("the configuration file defines an agent of this name, and it wins: nothing of this one is used")
        }
        Source::Api => None,
    };
    AgentShown {
        name: name.to_string(),
        source: source.name(),
        shadowed: *shadowed,
        note,
        team: spec.team.clone(),
        models: spec.models.clone(),
        priority: spec.priority.name(),
        max_request_usd: spec.max_request.map(Money),
        requests_per_minute: spec.rates.requests_per_minute,
        tokens_per_minute: spec.rates.tokens_per_minute,
        parallel: spec.rates.parallel,
        queue: spec.rates.queue,
        degrade_to: spec.degrade_to.clone(),
        task_type: spec.task_type.clone(),
        disabled: spec.disabled,
        paused: paused(app, &Owner::new(Scope::Agent, name.clone())),
        created_at: created.map(|at| at.to_string()),
        keys: keys.iter().map(|key| show_key(key, now)).collect(),
    }
}

fn show_key(key: &KeyView, now: Timestamp) -> KeyShown {
    KeyShown {
        id: key.id.to_string(),
        prefix: key.prefix.to_string(),
        created_at: key.created.to_string(),
        expires_at: key.expires.map(|at| at.to_string()),
        status: match key.expires {
            Some(at) if at <= now => "expired",
            _ if key.disabled => "disabled",
            _ => "active",
        },
        scopes: key.scopes.names(),
    }
}

fn scopes(names: &[String]) -> Result<Scopes, ApiError> {
    let known = Scopes::named(names.iter().map(String::as_str));
    known.ok_or_else(|| bad("scopes", format!("`scopes` must be one or more of {}", Scopes::NAMES.join(", "))))
}

/// The end that was asked for, at a time or after so many seconds.
fn end(now: Timestamp, at: Option<&str>, after: Option<u64>) -> Result<Option<Timestamp>, ApiError> {
    match (at, after) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            Err(bad("expires_in_s", "`expires_at` and `expires_in_s` say the same; send one of them"))
        }
        (Some(at), None) => {
            let read = at.parse::<Timestamp>().ok();
            let message = "`expires_at` must be a time such as \"2027-01-01T00:00:00Z\"";
            read.map(Some).ok_or_else(|| bad("expires_at", message))
        }
        (None, Some(seconds)) => {
            let end = now.checked_add(duration("expires_in_s", seconds)?);
            end.map(Some).map_err(|cause| bad("expires_in_s", cause.to_string()))
        }
    }
}

fn duration(param: &str, seconds: u64) -> Result<Duration, ApiError> {
    if seconds > LONGEST {
        return Err(bad(param, format!("`{param}` must be at most {LONGEST} seconds")));
    }
    Ok(Duration::from_secs(seconds))
}
