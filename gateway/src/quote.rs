//! `POST /v1/route/explain` and `POST /v1/quote`: what would become of a request, and what it would cost and take. Nothing is asked of any
//! backend, and nothing is charged.

use crate::app::App;
use crate::auth;
use crate::body::Body;
use crate::error::{ApiError, ok_json};
use crate::json::{Money, bad};
use crate::planning::{Planned, Planner};
use crate::request_body;
use crate::wishes::Asked;
use http::{HeaderMap, Request as HttpRequest, Response};
use hyper::body::Incoming;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{BackendId, Config};
use tollkeeper_policies::{Agent, Caller};
use tollkeeper_protocol::usage::Usage;
use tollkeeper_protocol::{Operation, Request, openai};
use tollkeeper_router::{Ask, Attempt};

/// How long a quote is worth reading: queues and memory change.
const VALID: Duration = Duration::from_secs(10);

/// A chat completion request (`messages`), or the size of one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sizes {
    /// An alias, a local model or `provider/model`; without it `auto`.
    #[serde(default)]
    model: Option<String>,
    /// The type of its task.
    #[serde(default)]
    task_type: Option<String>,
    /// Tokens of the prompt.
    input_tokens: u64,
    /// Tokens of the answer; without it as many as an answer has as a rule.
    #[serde(default)]
    output_tokens: Option<u32>,
}

/// Who would be tried in which order, who would not, and why.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Explained {
    /// What was named.
    model: String,
    /// How targets were put in order.
    strategy: &'static str,
    /// The type of the task, as it was said or found.
    task_type: Option<String>,
    /// How hard it is, 0 to 1; null where that cannot be said.
    difficulty: Option<f32>,
    /// The tier that a pyramid begins with.
    start_tier: u8,
    /// Estimate of the prompt's tokens.
    input_tokens: u64,
    /// First to last.
    attempts: Vec<AttemptShown>,
    /// Who cannot, or may not.
    rejected: Vec<RejectedShown>,
    /// The local model that would answer were it in memory, and that comes when that pays; null when there is none.
    missed: Option<MissedShown>,
    /// Why nobody would answer; null when somebody would.
    refused: Option<String>,
    /// Until then the figures are worth reading, RFC 3339.
    valid_until: String,
}

/// A backend that would be tried.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct AttemptShown {
    backend: String,
    tier: u8,
    /// Why it stands where it stands; what `x-tollkeeper-why` would say.
    why: String,
    /// The prompt alone.
    input_usd: Money,
    /// With an answer of the length that this agent's mostly have.
    expected_usd: Money,
    /// What half of this agent's answers by this model cost no more than; null while too few were seen.
    p50_usd: Option<Money>,
    /// What 95 of a hundred cost no more than.
    p95_usd: Option<Money>,
    /// With the longest answer that there can be.
    worst_usd: Money,
    /// Until the first token, load and queue included.
    ttft_ms: u64,
    /// Until the last token of an answer of the usual length.
    duration_ms: u64,
    /// Tokens of the prompt that it has read before and need not read again; 0 for models of providers, which do not tell beforehand.
    cached_tokens: u64,
    /// Whether its model is in memory, or somebody else's matter.
    loaded: bool,
}

/// A local model whose swap waits until it pays.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct MissedShown {
    model: String,
    /// What its absence has cost so far, less what those in its place have earned, and so below zero if that was more; null when it is on its
    /// way, or cannot come.
    regret_usd: Option<String>,
    /// What its swap would cost now: it comes when the regret has reached that.
    swap_usd: Option<Money>,
}

/// A backend that would not be tried.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RejectedShown {
    backend: String,
    reason: String,
}

/// Serves one question.
///
/// # Errors
/// No key, or a request that cannot be read.
pub(crate) async fn serve(
    app: &Arc<App>,
    seed: u64,
    request: HttpRequest<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let caller = auth::asker(app, request.headers())?;
    let config = app.config.load_full();
    let (parts, body) = request.into_parts();
    let body = request_body::read(body, &config.server).await?;
    let value: Value = serde_json::from_slice(&body).map_err(|cause| bad("", cause.to_string()))?;
    let sized = value.get("input_tokens").is_some();
    let question = if sized {
        of_sizes(value)?
    } else {
        (openai::decode_request(Operation::Chat, &body).map_err(ApiError::BadRequest)?, None, None)
    };
    let shown = explained(app, &config, &caller, &parts.headers, question, seed)?;
    Ok(ok_json(json!(shown).to_string()))
}

type Question = (Request, Option<u64>, Option<String>);

/// A request of that size, without a word in it.
fn of_sizes(value: Value) -> Result<Question, ApiError> {
    let Sizes { model, task_type, input_tokens, output_tokens } =
        serde_json::from_value(value).map_err(|cause| bad("", cause.to_string()))?;
    let mut body = json!({"model": model.as_deref().unwrap_or("auto"), "messages": [{"role": "user", "content": ""}]});
    if let Some(tokens) = output_tokens {
        body["max_completion_tokens"] = tokens.into();
    }
    let request = openai::decode_request(Operation::Chat, body.to_string().as_bytes()).map_err(ApiError::BadRequest)?;
    Ok((request, Some(input_tokens), task_type))
}

fn explained(
    app: &Arc<App>,
    config: &Arc<Config>,
    caller: &Caller,
    head: &HeaderMap,
    (request, input_tokens, task_type): Question,
    seed: u64,
) -> Result<Explained, ApiError> {
    let resolved = config.resolve(request.model()).map_err(ApiError::UnknownModel)?;
    if !caller.agent.may_use(request.model()) {
        let model = request.model().chars().take(200).collect();
        return Err(ApiError::ModelForbidden { agent: caller.agent.name.to_string(), model });
    }
    let mut asked = Asked::read(head, &request)?;
    asked.task_type = task_type.map(Into::into).or(asked.task_type);
    let request = Arc::new(request);
    let slowed = app.policies.is_slowed_to_local(caller);
    let planner = Planner { app, config, caller, request, asked, slowed, seed };
    let resolved = planner.permitted(resolved)?;
    let planned = planner.planned(resolved, input_tokens, true);
    let refused = planned.plan.refusal().map(|(_, why)| why);
    let Planned { ask, plan, basis, rules, .. } = planned;
    let shown = |attempt: &Attempt| shown(app, &caller.agent, &ask, attempt, &basis.to_string());
    let until = app.clock.now().saturating_add(VALID).unwrap_or_else(|_| app.clock.now());
    Ok(Explained {
        model: planner.request.model().to_owned(),
        strategy: rules.wishes.strategy.unwrap_or(rules.strategy).name(),
        task_type: basis.task_type.as_ref().map(|task| task.to_string()),
        difficulty: basis.difficulty,
        start_tier: rules.start_tier,
        input_tokens: ask.input_tokens,
        attempts: plan.attempts.iter().map(shown).collect(),
        rejected: plan
            .rejected
            .iter()
            .map(|(id, reason)| RejectedShown { backend: id.to_string(), reason: reason.to_string() })
            .collect(),
        missed: basis.missed.as_ref().map(|missed| {
            let (model, swap) = missed.parts();
            let (regret_usd, swap_usd) = swap.map(|(regret, price)| (regret.to_string(), Money(price))).unzip();
            MissedShown { model: model.to_owned(), regret_usd, swap_usd }
        }),
        refused,
        valid_until: until.to_string(),
    })
}

fn shown(app: &App, agent: &Agent, ask: &Ask, attempt: &Attempt, basis: &str) -> AttemptShown {
    let percentile = |percent| {
        let tokens = app.policies.output_percentile(agent, &attempt.id, percent)?;
        let output = ask.max_output_each().map_or(tokens, |most| tokens.min(most)).saturating_mul(ask.answers);
        Some(Money(attempt.facts.price.charge(&Usage { input: ask.input_tokens, output, ..Usage::default() })))
    };
    AttemptShown {
        backend: attempt.id.to_string(),
        tier: attempt.why.tier,
        why: format!("{}{basis}", attempt.why),
        input_usd: Money(attempt.cost.input),
        expected_usd: Money(attempt.cost.expected),
        p50_usd: percentile(50),
        p95_usd: percentile(95),
        worst_usd: Money(attempt.cost.worst),
        ttft_ms: attempt.time.ttft_ms,
        duration_ms: attempt.time.duration_ms,
        cached_tokens: attempt.cached,
        loaded: !(matches!(attempt.id, BackendId::Local(_)) && attempt.why.absent),
    }
}
