//! `POST /v1/feedback`: what somebody who saw an answer says of it.

use crate::app::App;
use crate::auth;
use crate::body::Body;
use crate::error::{ApiError, ok_json};
use crate::json::{bad, read};
use http::{Request, Response};
use hyper::body::Incoming;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How good an answer was.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FeedbackBody {
    /// What `x-tollkeeper-request-id` said.
    #[schemars(with = "String")]
    request_id: Value,
    /// `good`, `bad`, or a number from 0 (bad) to 1 (good); with `score`, that is the number.
    #[schemars(with = "Verdict")]
    outcome: Value,
    /// The number, when `outcome` is `score`.
    #[serde(default)]
    #[schemars(with = "Option<f64>", range(min = 0, max = 1))]
    score: Option<Value>,
}

/// As words or as a number, for the OpenAPI document.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "read by hand, so that what is wrong is named")]
enum Verdict {
    Word(Word),
    Score(#[schemars(range(min = 0, max = 1))] f64),
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "as above")]
enum Word {
    Good,
    Bad,
    Score,
}

/// What it is counted for.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct FeedbackShown {
    request_id: String,
    /// What the client named.
    alias: String,
    /// The type of its task.
    task_type: String,
    /// The tier that answered.
    tier: u8,
    backend: String,
    /// 0 to 1.
    score: f64,
    /// Whether it replaces something that was known of the answer before.
    replaced: bool,
}

/// Serves one.
///
/// # Errors
/// No key, a body that says something else, or an answer that is not the agent's, not remembered, or cannot be counted.
pub(crate) async fn serve(app: &App, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let caller = auth::asker(app, request.headers())?;
    let FeedbackBody { request_id, outcome, score } = read(app, request.into_body()).await?;
    let id = request_id.as_str().ok_or_else(|| bad("request_id", "`request_id` must be a text"))?;
    let score = number(&outcome, score.as_ref())?;
    let heard = app.heard(&caller.agent.name, id, score)?;
    let shown = FeedbackShown {
        request_id: id.to_owned(),
        alias: heard.alias().to_owned(),
        task_type: heard.task().to_owned(),
        tier: heard.tier(),
        backend: heard.backend().to_owned(),
        score,
        replaced: heard.replaced,
    };
    Ok(ok_json(json!(shown).to_string()))
}

/// How good that is.
fn number(outcome: &Value, score: Option<&Value>) -> Result<f64, ApiError> {
    let within = |value: &Value| value.as_f64().filter(|score| (0.0..=1.0).contains(score));
    if outcome != "score" && score.is_some() {
        return Err(bad("score", "`score` says nothing unless `outcome` is \"score\""));
    }
    let read = match (outcome.as_str(), score) {
        (Some("good"), _) => Some(1.0),
        (Some("bad"), _) => Some(0.0),
        (Some("score"), score) => {
            let missing = || bad("score", "`score` must be a number from 0 to 1 when `outcome` is \"score\"");
            return score.and_then(within).ok_or_else(missing);
        }
        _ => within(outcome),
    };
    read.ok_or_else(|| bad("outcome", "`outcome` must be \"good\", \"bad\", \"score\" or a number from 0 to 1"))
}
