//! The way of one request, from its head to its answer: key, body, ask, plan, admit, dispatch, relay.

use crate::app::App;
use crate::body::Body;
use crate::dispatch::{self, Job};
use crate::error::ApiError;
use crate::held::Held;
use crate::learning::Streamed;
use crate::meter::Meter;
use crate::planning::Planner;
use crate::signature::signature;
use crate::stack::Arrival;
use crate::wishes::Asked;
use crate::{auth, cut, limits, relay, request_body, unary};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request as HttpRequest, Response};
use hyper::body::Incoming;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};
use tollkeeper_config::Usd;
use tollkeeper_policies::Caller;
use tollkeeper_protocol::{DecodeError, Operation, Request, openai};

/// Longer names of models are refused: they go into the ledger.
const LONGEST_MODEL: usize = 256;

/// Larger bodies are decoded off the threads that serve everybody else.
const LARGE_BODY: usize = 256 << 10;

/// The client's own name for what it works on, for the ledger.
const TASK: HeaderName = HeaderName::from_static("x-tollkeeper-task");
/// Longer ones are left out.
const LONGEST_TASK: usize = 128;

const BACKEND: HeaderName = HeaderName::from_static("x-tollkeeper-backend");
const WHY: HeaderName = HeaderName::from_static("x-tollkeeper-why");
const DEGRADED: HeaderName = HeaderName::from_static("x-tollkeeper-degraded");
const COST: HeaderName = HeaderName::from_static("x-tollkeeper-cost-usd");
const REMAINING: HeaderName = HeaderName::from_static("x-tollkeeper-budget-remaining-usd");

/// Serves one chat completion, text completion, embedding or ranking.
///
/// # Errors
/// Whatever stops it before the first byte of an answer.
pub(crate) async fn serve(
    app: &Arc<App>,
    operation: Operation,
    arrival: Arrival,
    request: HttpRequest<Incoming>,
) -> Result<Response<Body>, ApiError> {
    // One configuration for the whole of a request, whatever is reloaded meanwhile.
    let config = app.config.load_full();
    let refused = |agent: &str, error: &ApiError| {
        let (id, operation, outcome) = (&*arrival.id, operation.name(), error.outcome());
        app.metrics.refused(agent, outcome);
        tracing::info!(request_id = id, operation, agent, outcome, "refused");
    };
    let caller = auth::asker(app, request.headers()).inspect_err(|error| refused("unknown", error))?;
    let agent = caller.agent.clone();
    let task = task(request.headers());
    let place = app.enter().map_err(|(limit, after)| ApiError::Shed { limit, after });
    let place = match place {
        Ok(place) => place,
        Err(error) => {
            refused(&agent.name, &error);
            let mut response = error.into_response();
            limits::show(app, &agent, "", response.headers_mut());
            return Ok(response);
        }
    };
    let deadline = arrival.at + config.server.request_timeout;
    let mut cut = cut::cut(app, &caller);
    let mut meter =
        Held::new(app, caller.clone(), deadline, Meter::new(app, operation, agent.clone(), &arrival, place));

    let answering = timeout_at(deadline, async {
        let (parts, body) = request.into_parts();
        let head = parts.headers;
        let body = request_body::read(body, &config.server).await?;
        meter.waited(arrival.at.elapsed());
        let request = decode(operation, &body).await?;
        if request.model().len() > LONGEST_MODEL {
            let message = format!("the model's name is longer than {LONGEST_MODEL} bytes");
            return Err(ApiError::BadRequest(DecodeError::at("model", message)));
        }
        let resolved = config.resolve(request.model()).map_err(ApiError::UnknownModel)?;
        if !agent.may_use(request.model()) {
            let model = request.model().chars().take(200).collect();
            return Err(ApiError::ModelForbidden { agent: agent.name.to_string(), model });
        }
        meter.names(app.labels.of(&config, request.model()), request.stream());
        let asked = Asked::read(&head, &request)?;
        let waiting = Instant::now();
        let let_in = limits::admit(app, &agent, &request, asked.is_batch).await;
        meter.waited(waiting.elapsed());
        meter.let_in(let_in?);
        let (request, original) = (Arc::new(request), body);
        let planner = Planner {
            app,
            config: &config,
            caller: &caller,
            request: request.clone(),
            asked,
            slowed: app.policies.is_slowed_to_local(&caller),
            seed: arrival.seed,
        };
        let job = Job {
            app,
            config: &config,
            caller: &caller,
            task,
            signature: signature(&request),
            planner,
            operation,
            arrival: &arrival,
            deadline,
            request,
            original,
        };
        // In a box, so that a request does not take its memory while its body comes.
        let answer = Box::pin(dispatch::answer(&job, resolved, &mut meter)).await?;
        meter.answered();
        Ok((job.request, answer))
    });
    let too_slow = || ApiError::TooSlow(config.server.request_timeout);
    let outcome = tokio::select! {
        answered = answering => answered.unwrap_or_else(|_| Err(too_slow())),
        denied = &mut cut => Err(ApiError::denied(denied)),
    };
    let mut meter = meter.release();
    let (request, answer) = match outcome {
        Ok(answered) => answered,
        Err(error) => return Ok(refuse(app, &caller, error, meter)),
    };

    app.answered(&arrival, &agent.name, &request, &answer);
    let (backend, why, degraded) = (answer.backend.clone(), answer.why.clone(), answer.degraded);
    let head = Head { backend: &backend, why: &why, degraded, cost: None, remaining: app.policies.remaining(&caller) };
    if request.stream() {
        let alias = meter.alias().clone();
        let bounds = relay::Bounds { deadline, cut, unread: config.server.unread_timeout };
        let form = Streamed::of(app, &arrival.id, &request).filter(|_| answer.routed.is_some());
        let mut response = relay::respond(answer, &request, meter, bounds, form);
        head.write(response.headers_mut());
        limits::show(app, &agent, &alias, response.headers_mut());
        return Ok(response);
    }
    // In a box, so that a request that waits for its answer does not take the memory of one that is being gathered.
    let whole = tokio::select! {
        whole = timeout_at(deadline, Box::pin(unary::respond(answer, &request, &mut meter))) => whole.unwrap_or_else(|_| Err(too_slow())),
        denied = &mut cut => Err(ApiError::denied(denied)),
    };
    match whole {
        Ok((mut response, charge)) => {
            let (cost, remaining) = charge.map_or((None, None), |charge| (Some(charge.cost), charge.remaining));
            app.looked_at(&arrival.id, &request, response.body());
            Head { cost, remaining, ..head }.write(response.headers_mut());
            limits::show(app, &agent, meter.alias(), response.headers_mut());
            Ok(response)
        }
        Err(error) => Ok(refuse(app, &caller, error, meter)),
    }
}

/// The error, with what its failed attempts cost.
fn refuse(app: &App, caller: &Caller, error: ApiError, mut meter: Meter) -> Response<Body> {
    let why = error.outcome();
    meter.refused(why, error.is_stop());
    let mut response = error.into_response();
    let (backend, cost) = (meter.backend(), Some(meter.cost(true)));
    Head { backend, why, degraded: None, cost, remaining: app.policies.remaining(caller) }
        .write(response.headers_mut());
    limits::show(app, &caller.agent, meter.alias(), response.headers_mut());
    response
}

/// The client's own name for what it works on, if it is fit for the ledger.
fn task(head: &HeaderMap) -> Option<Arc<str>> {
    let task = head.get(TASK)?.to_str().ok()?.trim();
    (1..=LONGEST_TASK).contains(&task.len()).then(|| task.into())
}

async fn decode(operation: Operation, body: &Bytes) -> Result<Request, ApiError> {
    if body.len() < LARGE_BODY {
        return openai::decode_request(operation, body).map_err(ApiError::BadRequest);
    }
    let body = body.clone();
    let decoded = tokio::task::spawn_blocking(move || openai::decode_request(operation, &body)).await;
    decoded.unwrap_or_else(|_| Err(DecodeError::new("the body could not be read"))).map_err(ApiError::BadRequest)
}

/// What the answer's head says about who answered, why, and for how much.
struct Head<'a> {
    /// Who answered, or was asked last; empty when nobody was.
    backend: &'a str,
    why: &'a str,
    /// Why a cheaper target answered than would have, if one did.
    degraded: Option<&'static str>,
    /// Unknown while a stream has not ended.
    cost: Option<Usd>,
    /// None without a budget.
    remaining: Option<Usd>,
}

impl Head<'_> {
    fn write(&self, headers: &mut HeaderMap) {
        let mut set = |name: HeaderName, text: &str| {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        };
        if !self.backend.is_empty() {
            set(BACKEND, self.backend);
        }
        set(WHY, self.why);
        if let Some(degraded) = self.degraded {
            set(DEGRADED, degraded);
        }
        if let Some(cost) = self.cost {
            set(COST, &cost.to_string());
        }
        if let Some(remaining) = self.remaining {
            set(REMAINING, &remaining.to_string());
        }
    }
}
