//! Everything that can go wrong for a caller, and the only place where causes become status codes.

use crate::body::Body;
use crate::learning::MOST_REMEMBERED;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use std::time::Duration;
use tollkeeper_config::{Scope, UnknownModel};
use tollkeeper_policies::{Denied, KeyRefused, Lost, ManageError, RateDenied, RunError, Stop};
use tollkeeper_protocol::DecodeError;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};
use tollkeeper_protocol::openai::{ErrorBody, Stopped};

/// What the official clients look at before anything else when they decide whether to retry.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An error as the caller gets it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("no API key was sent; send it as `Authorization: Bearer KEY`")]
    NoKey,
    #[error("this API key cannot be read; send it as `Authorization: Bearer KEY`")]
    BadKey,
    #[error("{0}")]
    KeyRefused(KeyRefused),
    #[error("this API key is not good for that: the scope `{0}` is missing; have the operator make another key")]
    ScopeMissing(&'static str),
    #[error("agent `{agent}` may not use the model `{model}`; its `models` in the configuration decide")]
    ModelForbidden { agent: String, model: String },
    #[error("{0}")]
    UnknownModel(UnknownModel),
    #[error("{0}")]
    BadRequest(DecodeError),
    #[error("the body is larger than the limit of {limit} bytes (`server.body_limit`); send less")]
    BodyTooLarge { limit: usize },
    #[error("the request's body did not arrive in time (`server.body_timeout`); send it faster")]
    BodyTimeout,
    #[error("the request's body broke off before its end")]
    BodyBroken,
    #[error("there is nothing at {0}; see README.md for the endpoints")]
    NotFound(String),
    #[error("{path} does not know this method; use {allow}")]
    MethodNotAllowed { path: String, allow: String },
    #[error("the gateway is at its limit of {limit} requests in flight (`server.max_in_flight`); try again in {} s", after.as_secs())]
    Shed { limit: usize, after: Duration },
    #[error("{}", denied(.0))]
    Denied(Denied, BudgetStatus),
    #[error("only local models may answer this, and none of those it names can; name one of `local/*`")]
    LocalOnly,
    #[error("{0}")]
    Run(RunError),
    #[error("{0}")]
    Manage(ManageError),
    #[error("there is no {} `{name}`", scope.name())]
    NoTarget { scope: Scope, name: String },
    #[error("there is no team `{0}`: no agent belongs to it")]
    NoTeam(String),
    #[error("this gateway was started without a configuration file that could be read again")]
    NoFile,
    #[error("the configuration file is refused, the old one stays in force:\n{0}")]
    BadFile(String),
    #[error("the ledger cannot be read: {0}")]
    Ledger(String),
    #[error("the ledger cannot be written now; what was charged is kept and written when it can be")]
    Unwritten,
    #[error("a run cannot raise its own limits; its agent, the run above it or the operator can")]
    OwnRun,
    #[error("too many runs are watched; close some of the streams, or ask for the state")]
    TooManyWatchers,
    #[error("{0}")]
    RateLimited(RateDenied),
    #[error("{1}")]
    NoBackend(FaultKind, String),
    #[error("{backend}: {fault}")]
    Provider { backend: String, fault: ProviderFault },
    #[error("the request took longer than {} s (`server.request_timeout`)", .0.as_secs())]
    TooSlow(Duration),
    #[error("the answer was left unread for longer than {} s (`server.unread_timeout`); read faster", .0.as_secs_f32())]
    Unread(Duration),
    #[error("the gateway is not ready: {0}")]
    NotReady(String),
    #[error("there is no local model `{0}`; `tollkeeper models` lists them")]
    NoLocalModel(String),
    #[error("nothing is learned here: `learning.on` is false")]
    NothingLearned,
    #[error(
        "no answer of yours to a request `{0}` is remembered; feedback is taken of the last {MOST_REMEMBERED} that a pyramid routed, for a day and \
         until a restart"
    )]
    NoAnswer(String),
    #[error(
        "what is said of this answer cannot be counted: its model is not in that place of the alias any more, or no further type of task can be known"
    )]
    NotCounted,
    #[error("this needs the operator's key (`server.admin_key`)")]
    NotOperator,
    #[error("the gateway made a mistake of its own with this request; its log tells the operator more")]
    Panicked,
}

/// The status of a budget refusal, as configured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BudgetStatus(pub(crate) u16);

impl Default for BudgetStatus {
    fn default() -> Self {
        Self(StatusCode::PAYMENT_REQUIRED.as_u16())
    }
}

/// `retry-after` to the millisecond, which the official clients prefer.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Status, type and code of an error, and whether the client's retry could help.
struct Shape {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    retry: Option<bool>,
}

const fn shape(status: StatusCode, kind: &'static str, code: Option<&'static str>, retry: Option<bool>) -> Shape {
    Shape { status, kind, code, retry }
}

/// The operator, or who made the run, has to act first.
const fn forbidden(code: &'static str) -> Shape {
    shape(StatusCode::FORBIDDEN, INVALID, Some(code), Some(false))
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl ApiError {
    fn shape(&self) -> Shape {
        match self {
            Self::NoKey | Self::BadKey => shape(StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key"), None),
            Self::KeyRefused(refused) => shape(StatusCode::UNAUTHORIZED, INVALID, Some(key_code(*refused)), None),
            Self::ScopeMissing(_) => forbidden("scope_missing"),
            Self::NotOperator => shape(StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key"), None),
            Self::ModelForbidden { .. } => shape(StatusCode::FORBIDDEN, INVALID, Some("model_not_allowed"), None),
            Self::UnknownModel(_) | Self::NoLocalModel(_) => {
                shape(StatusCode::NOT_FOUND, INVALID, Some("model_not_found"), None)
            }
            Self::BadRequest(_) | Self::BodyBroken => shape(StatusCode::BAD_REQUEST, INVALID, None, None),
            Self::BodyTooLarge { .. } => shape(StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large"), None),
            Self::BodyTimeout => shape(StatusCode::REQUEST_TIMEOUT, INVALID, Some("request_timeout"), Some(false)),
            Self::Unread(_) => shape(StatusCode::REQUEST_TIMEOUT, INVALID, Some("unread_timeout"), Some(false)),
            Self::NotFound(_) => shape(StatusCode::NOT_FOUND, INVALID, Some("unknown_url"), None),
            Self::MethodNotAllowed { .. } => {
                shape(StatusCode::METHOD_NOT_ALLOWED, INVALID, Some("method_not_allowed"), None)
            }
            Self::Shed { .. } => shape(StatusCode::SERVICE_UNAVAILABLE, "overloaded", Some("overloaded"), None),
            Self::Denied(Denied::Stopped { stop, .. }, _) => match stop {
                Stop::Velocity { until: Some(_) } => {
                    shape(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", Some("spend_velocity_exceeded"), None)
                }
                Stop::Velocity { until: None } => forbidden("spend_velocity_exceeded"),
                Stop::Paused { .. } => forbidden("paused"),
                Stop::Cancelled => forbidden("run_cancelled"),
                Stop::Over => forbidden("run_over"),
                Stop::Key(refused) => shape(StatusCode::UNAUTHORIZED, INVALID, Some(key_code(*refused)), Some(false)),
            },
            Self::LocalOnly => forbidden("local_only"),
            Self::OwnRun => forbidden("own_run"),
            Self::Run(error) => run_shape(error),
            Self::Manage(error) => manage_shape(error),
            Self::NoTarget { scope, .. } => {
                let code = match scope {
                    Scope::Alias => "alias_not_found",
                    Scope::Provider => "provider_not_found",
                    _ => "model_not_found",
                };
                shape(StatusCode::NOT_FOUND, INVALID, Some(code), None)
            }
            Self::NoTeam(_) => shape(StatusCode::NOT_FOUND, INVALID, Some("team_not_found"), None),
            Self::NothingLearned => shape(StatusCode::CONFLICT, INVALID, Some("learning_off"), Some(false)),
            Self::NoAnswer(_) => shape(StatusCode::NOT_FOUND, INVALID, Some("request_not_found"), Some(false)),
            Self::NotCounted => shape(StatusCode::CONFLICT, INVALID, Some("not_counted"), Some(false)),
            Self::NoFile => shape(StatusCode::CONFLICT, INVALID, Some("no_configuration_file"), None),
            Self::BadFile(_) => shape(StatusCode::UNPROCESSABLE_ENTITY, INVALID, Some("bad_configuration"), None),
            Self::Ledger(_) | Self::Unwritten => {
                shape(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("ledger_unavailable"), None)
            }
            Self::TooManyWatchers => fault_shape(FaultKind::Overloaded),
            Self::Denied(Denied::Budget(_) | Denied::Request { .. }, status) => {
                let status = StatusCode::from_u16(status.0).unwrap_or(StatusCode::PAYMENT_REQUIRED);
                shape(status, "budget_exceeded", Some("budget_exceeded"), Some(false))
            }
            Self::Denied(Denied::StoreDown { .. }, _) => {
                shape(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("ledger_unavailable"), None)
            }
            Self::Denied(Denied::SharedDown { .. }, _) => {
                shape(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("shared_budgets_unavailable"), None)
            }
            Self::RateLimited(RateDenied::Rate { .. }) => fault_shape(FaultKind::RateLimited),
            Self::RateLimited(RateDenied::Busy { .. }) => fault_shape(FaultKind::Overloaded),
            Self::NotReady(_) => shape(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("not_ready"), None),
            Self::Panicked => shape(StatusCode::INTERNAL_SERVER_ERROR, SERVER, Some("gateway_bug"), Some(false)),
            Self::TooSlow(_) => shape(StatusCode::GATEWAY_TIMEOUT, SERVER, Some("request_timeout"), Some(false)),
            Self::NoBackend(kind, _) => fault_shape(*kind),
            Self::Provider { fault, .. } => fault_shape(fault.kind),
        }
    }

    /// A refusal to spend, where no status will be needed.
    pub(crate) fn denied(denied: Denied) -> Self {
        Self::Denied(denied, BudgetStatus::default())
    }

    /// Whether it ends what is in flight.
    pub(crate) fn is_stop(&self) -> bool {
        matches!(self, Self::Denied(Denied::Stopped { .. }, _))
    }

    /// What an answer says that ended because of this.
    pub(crate) fn stopped(&self) -> Stopped {
        Stopped { code: self.shape().code.unwrap_or("error").to_owned(), message: self.to_string() }
    }

    /// The name in metrics and logs.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::NoBackend(kind, _) => kind.name(),
            Self::Provider { fault, .. } => fault.kind.name(),
            Self::BadRequest(_) => "bad_request",
            Self::Shed { .. } => "shed",
            Self::BodyBroken => "client_gone",
            _ => self.shape().code.unwrap_or("error"),
        }
    }

    /// How long the client should wait, when that is known.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Denied(Denied::Stopped { stop: Stop::Velocity { until: Some(until) }, .. }, _) => {
                // Until then by the system's clock, which the client waits by as well.
                Some(Duration::try_from(until.duration_since(jiff::Timestamp::now())).unwrap_or_default())
            }
            Self::Shed { after, .. } => Some(*after),
            Self::RateLimited(denied) => Some(denied.retry_after()),
            Self::Denied(denied, _) if denied.is_outage() => Some(Duration::from_secs(1)),
            Self::NotReady(_) => Some(Duration::from_secs(1)),
            Self::Provider { fault, .. } => match fault.kind {
                FaultKind::RateLimited | FaultKind::Overloaded => {
                    Some(fault.retry_after.unwrap_or(Duration::from_secs(1)))
                }
                _ => fault.retry_after,
            },
            _ => None,
        }
    }

    /// The error in OpenAI's shape.
    pub(crate) fn body(&self) -> ErrorBody {
        let shape = self.shape();
        let detail = match self {
            Self::Provider { fault, .. } if matches!(fault.kind, FaultKind::BadRequest | FaultKind::ContextLength) => {
                fault.detail.as_deref()
            }
            _ => None,
        };
        let param = match self {
            Self::BadRequest(error) => error.param.clone(),
            Self::UnknownModel(_) | Self::ModelForbidden { .. } => Some("model".to_owned()),
            _ => detail.and_then(|detail| detail.param.clone()),
        };
        ErrorBody {
            message: self.to_string(),
            r#type: detail.and_then(|detail| detail.r#type.clone()).unwrap_or_else(|| shape.kind.to_owned()),
            param,
            code: detail.and_then(|detail| detail.code.clone()).or(shape.code.map(str::to_owned)),
            budget: match self {
                Self::Denied(denied, _) => budget(denied),
                _ => None,
            },
        }
    }

    /// The response. Headers that every response carries are added by the stack.
    pub(crate) fn into_response(self) -> Response<Body> {
        let shape = self.shape();
        let mut response = json(shape.status, self.body().to_json());
        let headers = response.headers_mut();
        if let Some(retry) = shape.retry {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(if retry { "true" } else { "false" }));
        }
        if let Some(after) = self.retry_after() {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
            let millis = u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis.max(1)));
        }
        if let Self::MethodNotAllowed { allow, .. } = &self
            && let Ok(allow) = HeaderValue::from_str(allow)
        {
            headers.insert(ALLOW, allow);
        }
        response
    }
}

/// What a key is told that opens nothing.
fn key_code(refused: KeyRefused) -> &'static str {
    match refused {
        KeyRefused::Unknown | KeyRefused::Maker(Lost::Gone) => "invalid_api_key",
        KeyRefused::Expired | KeyRefused::Maker(Lost::Expired) => "key_expired",
        KeyRefused::Disabled | KeyRefused::Maker(Lost::Disabled) => "key_disabled",
    }
}

fn run_shape(error: &RunError) -> Shape {
    match error {
        RunError::NoAgent(_) => shape(StatusCode::NOT_FOUND, INVALID, Some("agent_not_found"), None),
        RunError::NoRun(_) => shape(StatusCode::NOT_FOUND, INVALID, Some("run_not_found"), None),
        RunError::Ended(_) => shape(StatusCode::CONFLICT, INVALID, Some("run_ended"), Some(false)),
        RunError::Unaffordable { .. } => {
            shape(StatusCode::PAYMENT_REQUIRED, "budget_exceeded", Some("budget_exceeded"), Some(false))
        }
        RunError::TooDeep => shape(StatusCode::BAD_REQUEST, INVALID, Some("run_too_deep"), None),
        RunError::TooMany(_) => shape(StatusCode::TOO_MANY_REQUESTS, INVALID, Some("too_many_runs"), Some(false)),
        RunError::Denied(denied) => ApiError::denied(denied.clone()).shape(),
    }
}

fn manage_shape(error: &ManageError) -> Shape {
    let missing = |code| shape(StatusCode::NOT_FOUND, INVALID, Some(code), None);
    let conflict = |code| shape(StatusCode::CONFLICT, INVALID, Some(code), Some(false));
    match error {
        ManageError::NoAgent(_) => missing("agent_not_found"),
        ManageError::NoKey { .. } => missing("key_not_found"),
        ManageError::NoBudget(_) => missing("budget_not_found"),
        ManageError::AgentInFile(_) | ManageError::BudgetInFile { .. } => conflict("defined_in_file"),
        ManageError::AgentExists(_) => conflict("agent_exists"),
        ManageError::BudgetExists { .. } => conflict("budget_exists"),
        ManageError::TooMany(_) => conflict("too_many"),
        ManageError::OfRun(_) => shape(StatusCode::BAD_REQUEST, INVALID, Some("budget_of_run"), None),
        ManageError::Denied(denied) => ApiError::denied(denied.clone()).shape(),
    }
}

impl From<ManageError> for ApiError {
    fn from(error: ManageError) -> Self {
        match error {
            ManageError::Denied(denied) => Self::denied(denied),
            error => Self::Manage(error),
        }
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        Self::denied(denied)
    }
}

impl From<RunError> for ApiError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Denied(denied) => Self::denied(denied),
            error => Self::Run(error),
        }
    }
}

/// A fault of a backend as the caller sees it. A refused key is the operator's matter: the caller's own key is fine, so it must not read 401.
fn fault_shape(kind: FaultKind) -> Shape {
    match kind {
        FaultKind::BadRequest => shape(StatusCode::BAD_REQUEST, INVALID, None, None),
        FaultKind::ContextLength => shape(StatusCode::BAD_REQUEST, INVALID, Some("context_length_exceeded"), None),
        FaultKind::NotFound => shape(StatusCode::NOT_FOUND, INVALID, Some("model_not_found"), None),
        FaultKind::Auth => shape(StatusCode::BAD_GATEWAY, SERVER, Some("provider_auth"), Some(false)),
        FaultKind::RateLimited => {
            shape(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", Some("rate_limit_exceeded"), None)
        }
        FaultKind::Overloaded => shape(StatusCode::SERVICE_UNAVAILABLE, "overloaded", Some("overloaded"), None),
        // It is charged, since the provider may have worked; the client should not make that three times.
        FaultKind::Timeout => shape(StatusCode::GATEWAY_TIMEOUT, SERVER, Some("provider_timeout"), Some(false)),
        FaultKind::Connection => shape(StatusCode::BAD_GATEWAY, SERVER, Some("provider_connection"), None),
        FaultKind::Internal => shape(StatusCode::BAD_GATEWAY, SERVER, Some("provider_error"), None),
        FaultKind::Malformed => shape(StatusCode::BAD_GATEWAY, SERVER, Some("provider_malformed"), None),
        FaultKind::Unavailable => {
            shape(StatusCode::SERVICE_UNAVAILABLE, SERVER, Some("backend_unavailable"), Some(false))
        }
    }
}

/// A refusal to spend in words for the caller, who should not learn the paths of the ledger.
fn denied(denied: &Denied) -> String {
    match denied {
        Denied::StoreDown { .. } => {
            "the gateway's ledger cannot record spending now, so nothing may be spent; its operator must act; try again later".to_owned()
        }
        Denied::SharedDown { .. } => {
            "the store in which gateways share budgets cannot be asked now, so nothing may be spent from them; try again soon".to_owned()
        }
        _ => denied.to_string(),
    }
}

/// The `budget` object of a refusal: exact decimals, so that nobody's float rounds them.
fn budget(denied: &Denied) -> Option<serde_json::Value> {
    let Denied::Budget(blocked) = denied else { return None };
    let measure = blocked.limit.measure();
    let mut body = serde_json::Map::new();
    body.insert("scope".into(), blocked.owner.scope.name().into());
    body.insert("id".into(), (*blocked.owner.id).into());
    body.insert("window".into(), blocked.window.to_string().into());
    let amounts = [
        ("limit", blocked.limit.units()),
        ("spent", blocked.spent),
        ("reserved", blocked.reserved),
        ("estimate", blocked.estimate),
    ];
    for (name, units) in amounts {
        body.insert(format!("{name}_{measure}"), blocked.shown(units).into());
    }
    body.insert("resets_at".into(), blocked.resets_at.map(|at| at.to_string()).into());
    Some(body.into())
}

/// A response with a JSON body.
fn json(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An order was taken and will be carried out.
pub(crate) fn accepted_json(body: impl Into<Bytes>) -> Response<Body> {
    json(StatusCode::ACCEPTED, body.into())
}

/// Something was made.
pub(crate) fn created_json(body: impl Into<Bytes>) -> Response<Body> {
    json(StatusCode::CREATED, body.into())
}

/// A good answer in JSON.
pub(crate) fn ok_json(body: impl Into<Bytes>) -> Response<Body> {
    json(StatusCode::OK, body.into())
}
