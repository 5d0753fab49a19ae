//! `/admin/v1/learning`: what was learned of the tiers of pyramids, and forgetting it.

use super::{OPERATOR, whole};
use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, ok_json};
use crate::json::bad;
use crate::learning::GroupView;
use http::Response;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;

/// All that was learned.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct LearningShown {
    /// Whether anything is learned, and routes follow it.
    on: bool,
    /// The share of answers that are to be good.
    wanted: f64,
    /// Answers of which more may be heard.
    remembered: usize,
    /// By alias, type of task, and the tier that the difficulty says.
    data: Vec<GroupShown>,
}

/// What was learned of requests that are alike.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct GroupShown {
    alias: String,
    task_type: String,
    /// The tier that their difficulty says.
    difficulty_tier: u8,
    /// The tier that they begin with now, if all can answer.
    begins_with: u8,
    tiers: Vec<TierShown>,
}

/// What was learned of a tier for them.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TierShown {
    tier: u8,
    backends: Vec<String>,
    /// Outcomes that were good, by weight and age; 1 is what somebody has just said.
    good: f64,
    /// Those that were not.
    bad: f64,
    /// The share of good answers that is expected of it; with little evidence, what the difficulty says.
    mean: f64,
    /// That share is higher with 95 chances of 100.
    low: f64,
    /// And lower with as many.
    high: f64,
    /// Requests that it answered.
    answered: u64,
    /// The share of them that came to it to be learned from; null before the first.
    explored_share: Option<f64>,
    /// When its last outcome was counted, RFC 3339.
    changed: Option<String>,
}

/// What was forgotten.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Forgotten {
    /// Of how many kinds of requests.
    forgotten: usize,
}

pub(crate) fn report(app: &App) -> Response<Body> {
    let config = app.config.load();
    let settings = config.learning.unwrap_or_default();
    let groups = app.learning.report(&config, &settings, app.clock.now().as_millisecond());
    let shown = LearningShown {
        on: config.learning.is_some(),
        wanted: f64::from(settings.wanted) / 1000.0,
        remembered: app.learning.remembered(),
        data: groups.into_iter().map(group).collect(),
    };
    ok_json(json!(shown).to_string())
}

fn group(view: GroupView) -> GroupShown {
    let tiers = view.tiers.into_iter().map(|tier| TierShown {
        tier: tier.tier,
        backends: tier.backends,
        good: rounded(tier.evidence.good),
        bad: rounded(tier.evidence.bad),
        mean: rounded(tier.belief.mean()),
        low: rounded(tier.interval.0),
        high: rounded(tier.interval.1),
        answered: tier.answered,
        explored_share: share(tier.explored, tier.answered),
        changed: Timestamp::from_millisecond(tier.changed_ms).ok().map(|at| at.to_string()),
    });
    GroupShown {
        alias: view.group.alias.to_string(),
        task_type: view.group.task.to_string(),
        difficulty_tier: view.group.said,
        begins_with: view.begins,
        tiers: tiers.collect(),
    }
}

/// Four decimals are enough to look at.
fn rounded(number: f64) -> f64 {
    (number * 10_000.0).round() / 10_000.0
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| rounded(part as f64 / whole as f64))
}

pub(crate) async fn reset(app: &Arc<App>, query: &str) -> Result<Response<Body>, ApiError> {
    let (mut task, mut alias) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8().map_err(|_| bad(key, "this is not UTF-8"))?.into_owned();
        match key {
            "task_type" => task = Some(value),
            "alias" => alias = Some(value),
            _ => return Err(bad(key, format!("`{key}` is unknown; use `task_type` or `alias`"))),
        }
    }
    let forgotten = whole(app, |app| async move {
        let of = |wanted: &Option<String>, name: &str| wanted.as_ref().is_none_or(|wanted| wanted == name);
        let forgotten = app.unlearn(|group| of(&task, &group.task) && of(&alias, &group.alias)).await?;
        let note = json!({"change": "forgotten", "task_type": task, "alias": alias, "groups": forgotten});
        app.policies.note(OPERATOR, "learning", note).await.map_err(ApiError::denied)?;
        Ok(forgotten)
    });
    Ok(ok_json(json!(Forgotten { forgotten: forgotten.await? }).to_string()))
}
