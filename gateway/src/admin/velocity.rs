//! `/admin/v1/velocity`: how fast everybody spends, beside what is normal for it, and stages set by hand.

use super::{OPERATOR, agents, whole};
use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, ok_json};
use crate::json::{List, bad, read};
use crate::runs;
use http::Response;
use hyper::body::Incoming;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{Owner, Scope, Usd};
use tollkeeper_policies::velocity::{Level, Measure, Speed, Stage, Standing};

/// Nothing is held for longer without being held until it is released: a hundred years, in seconds.
const LONGEST: u64 = 100 * 366 * 86_400;

/// A stage as it is set by hand.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HoldBody {
    /// `normal` (nothing stops it, however fast it is), `notify` (as that), `throttle`, `local`, `paused` or `killed` (what is in
    /// flight is cut as well).
    stage: String,
    /// Until when, RFC 3339; without it, and without the next, until it is released.
    #[serde(default)]
    until: Option<String>,
    /// For how many seconds.
    #[serde(default)]
    for_s: Option<u64>,
}

/// How an agent or a run stands.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct VelocityShown {
    /// `agent` or `run`.
    scope: &'static str,
    /// Whose requests.
    owner: String,
    /// `normal`, `notify`, `throttle`, `local`, `paused` or `killed`.
    stage: &'static str,
    /// Whether the operator has set that.
    held: bool,
    /// When a pause, or what the operator has set, ends by itself; RFC 3339.
    until: Option<String>,
    /// Whether its own history says what is normal; otherwise that is the configured assumption.
    known: bool,
    usd_per_hour: RateShown,
    tokens_per_hour: RateShown,
    calls_per_hour: RateShown,
    /// Calls, parallel ones counted once.
    turns_per_hour: RateShown,
}

/// A rate per hour, exact.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RateShown {
    /// Of the last minute or so.
    present: String,
    /// While it works.
    normal: String,
}

/// What became of an order to let its traffic decide again.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Released {
    /// `agent` or `run`.
    scope: &'static str,
    /// Whose requests.
    owner: String,
    /// Whether a stage was set before.
    was_held: bool,
}

pub(crate) fn list(app: &App) -> Response<Body> {
    ok_json(json!(List::of(app.policies.standings().into_iter().map(show).collect())).to_string())
}

pub(crate) fn one(app: &App, scope: Scope, name: &str) -> Result<Response<Body>, ApiError> {
    let owner = owner(app, scope, name)?;
    Ok(ok_json(json!(standing(app, &owner)?).to_string()))
}

pub(crate) async fn hold(app: &Arc<App>, scope: Scope, name: &str, body: Incoming) -> Result<Response<Body>, ApiError> {
    let owner = owner(app, scope, name)?;
    let body: HoldBody = read(app, body).await?;
    let level = Level::NAMES.into_iter().find(|(name, _)| *name == body.stage).map(|(_, level)| level);
    let level = level.ok_or_else(|| {
        let names = Level::NAMES.map(|(name, _)| format!("`{name}`")).join(", ");
        bad("stage", format!("`stage` must be one of {names}"))
    })?;
    let until = end(app.clock.now(), &body)?;
    let held = owner.clone();
    let known = whole(app, |app| async move { Ok(app.policies.hold(OPERATOR, &held, level, until).await?) }).await?;
    if !known {
        return Err(ApiError::NotFound(format!("{} `{}`", owner.scope.name(), owner.id)));
    }
    Ok(ok_json(json!(standing(app, &owner)?).to_string()))
}

pub(crate) async fn release(app: &Arc<App>, scope: Scope, name: &str) -> Result<Response<Body>, ApiError> {
    let owner = owner(app, scope, name)?;
    let id = owner.id.to_string();
    let was_held = whole(app, |app| async move { Ok(app.policies.release(OPERATOR, &owner).await?) }).await?;
    Ok(ok_json(json!(Released { scope: scope.name(), owner: id, was_held }).to_string()))
}

/// Whom a path names: an agent or a run.
fn owner(app: &App, scope: Scope, name: &str) -> Result<Owner, ApiError> {
    match scope {
        Scope::Run => _ = runs::known(app, name)?,
        _ => _ = agents::find(app, name)?,
    }
    Ok(Owner::new(scope, name))
}

fn standing(app: &App, owner: &Owner) -> Result<VelocityShown, ApiError> {
    let found = app.policies.standings().into_iter().find(|(known, _)| known == owner);
    found.map(show).ok_or_else(|| ApiError::NotFound(format!("{} `{}`", owner.scope.name(), owner.id)))
}

fn end(now: Timestamp, body: &HoldBody) -> Result<Option<Timestamp>, ApiError> {
    let until = match (body.until.as_deref(), body.for_s) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(bad("for_s", "`until` and `for_s` say the same; send one of them")),
        (Some(at), None) => {
            at.parse().map_err(|_| bad("until", "`until` must be a time such as \"2027-01-01T00:00:00Z\""))?
        }
        (None, Some(seconds)) if seconds > LONGEST => {
            return Err(bad("for_s", format!("`for_s` must be at most {LONGEST} seconds")));
        }
        (None, Some(seconds)) => {
            now.checked_add(Duration::from_secs(seconds)).map_err(|cause| bad("for_s", cause.to_string()))?
        }
    };
    if until <= now { Err(bad("until", "this is in the past")) } else { Ok(Some(until)) }
}

fn show((owner, standing): (Owner, Standing)) -> VelocityShown {
    let until = match standing.stage {
        Stage::Paused { until } => until,
        _ => standing.until,
    };
    let [usd, tokens, calls, turns] = standing.speeds.map(rate);
    VelocityShown {
        scope: owner.scope.name(),
        owner: owner.id.to_string(),
        stage: standing.stage.level().name(),
        held: standing.held,
        until: until.and_then(|at| Timestamp::from_microsecond(at).ok()).map(|at| at.to_string()),
        known: standing.known,
        usd_per_hour: usd,
        tokens_per_hour: tokens,
        calls_per_hour: calls,
        turns_per_hour: turns,
    }
}

fn rate(Speed { measure, present, normal }: Speed) -> RateShown {
    let text = |units: u64| match measure {
        Measure::Usd => Usd(i64::try_from(units).unwrap_or(i64::MAX)).to_string(),
        Measure::Tokens | Measure::Calls | Measure::Turns => units.to_string(),
    };
    RateShown { present: text(present), normal: text(normal) }
}
