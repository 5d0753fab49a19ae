//! Method and path to what serves them: one table, which the OpenAPI document is made from as well.

use crate::app::App;
use crate::body::Body;
use crate::error::ApiError;
use crate::runs::Action;
use crate::stack::Arrival;
use crate::{admin, auth, feedback, health, infer, models, openapi, quote, runs};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use std::borrow::Cow;
use std::sync::Arc;
use tollkeeper_config::Scope;
use tollkeeper_inference::LocalAction;
use tollkeeper_protocol::Operation;

/// Where a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// At `server.listen`.
    Main,
    /// At `server.admin_listen`.
    Admin,
}

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Infer(Operation),
    Explain,
    Quote,
    Feedback,
    Models,
    Model,
    Live,
    Ready,
    Metrics,
    Document,
    Runs,
    NewRun,
    Run,
    RunEvents,
    RunAction(Action),
    Admin(admin::Call),
}

/// A method, a path and what they ask for. `{name}` stands for one part of a path, `{name*}` for several.
pub(crate) struct Row(pub(crate) &'static str, pub(crate) &'static str, pub(crate) Call);

/// Everything that is served. What is asked for most comes first.
pub(crate) static TABLE: [Row; 76] = [
    Row("POST", "/v1/chat/completions", Call::Infer(Operation::Chat)),
    Row("POST", "/v1/completions", Call::Infer(Operation::TextCompletion)),
    Row("POST", "/v1/embeddings", Call::Infer(Operation::Embeddings)),
    // Cohere's and Jina's path, and llama.cpp's server's own.
    Row("POST", "/v1/rerank", Call::Infer(Operation::Rerank)),
    Row("POST", "/rerank", Call::Infer(Operation::Rerank)),
    Row("POST", "/v1/route/explain", Call::Explain),
    Row("POST", "/v1/quote", Call::Quote),
    Row("POST", "/v1/feedback", Call::Feedback),
    Row("GET", "/v1/models", Call::Models),
    // Aliases hold slashes; clients send them as they are or as %2F.
    Row("GET", "/v1/models/{id*}", Call::Model),
    Row("GET", "/v1/runs", Call::Runs),
    Row("POST", "/v1/runs", Call::NewRun),
    Row("GET", "/v1/runs/{id}", Call::Run),
    Row("GET", "/v1/runs/{id}/events", Call::RunEvents),
    Row("POST", "/v1/runs/{id}/extend", Call::RunAction(Action::Extend)),
    Row("POST", "/v1/runs/{id}/cancel", Call::RunAction(Action::Cancel)),
    Row("GET", "/health/live", Call::Live),
    Row("GET", "/health/ready", Call::Ready),
    Row("GET", "/metrics", Call::Metrics),
    Row("GET", "/openapi.json", Call::Document),
    Row("GET", "/admin/v1/agents", Call::Admin(admin::Call::Agents)),
    Row("POST", "/admin/v1/agents", Call::Admin(admin::Call::NewAgent)),
    Row("GET", "/admin/v1/agents/{name}", Call::Admin(admin::Call::Agent)),
    Row("PATCH", "/admin/v1/agents/{name}", Call::Admin(admin::Call::ChangeAgent)),
    Row("DELETE", "/admin/v1/agents/{name}", Call::Admin(admin::Call::RemoveAgent)),
    Row("GET", "/admin/v1/agents/{name}/keys", Call::Admin(admin::Call::Keys)),
    Row("POST", "/admin/v1/agents/{name}/keys", Call::Admin(admin::Call::NewKey)),
    Row("PATCH", "/admin/v1/agents/{name}/keys/{id}", Call::Admin(admin::Call::ChangeKey)),
    Row("DELETE", "/admin/v1/agents/{name}/keys/{id}", Call::Admin(admin::Call::RemoveKey)),
    Row("POST", "/admin/v1/agents/{name}/keys/{id}/rotate", Call::Admin(admin::Call::RotateKey)),
    Row("POST", "/admin/v1/agents/{name}/pause", Call::Admin(admin::Call::Pause(Scope::Agent))),
    Row("POST", "/admin/v1/agents/{name}/resume", Call::Admin(admin::Call::Resume(Scope::Agent))),
    Row("GET", "/admin/v1/agents/{name}/velocity", Call::Admin(admin::Call::Velocity(Scope::Agent))),
    Row("POST", "/admin/v1/agents/{name}/velocity", Call::Admin(admin::Call::Hold(Scope::Agent))),
    Row("DELETE", "/admin/v1/agents/{name}/velocity", Call::Admin(admin::Call::Release(Scope::Agent))),
    Row("GET", "/admin/v1/teams", Call::Admin(admin::Call::Teams)),
    Row("POST", "/admin/v1/teams/{name}/pause", Call::Admin(admin::Call::Pause(Scope::Team))),
    Row("POST", "/admin/v1/teams/{name}/resume", Call::Admin(admin::Call::Resume(Scope::Team))),
    // Aliases and models hold slashes.
    Row("POST", "/admin/v1/aliases/{name*}/pause", Call::Admin(admin::Call::Pause(Scope::Alias))),
    Row("POST", "/admin/v1/aliases/{name*}/resume", Call::Admin(admin::Call::Resume(Scope::Alias))),
    Row("POST", "/admin/v1/models/{name*}/pause", Call::Admin(admin::Call::Pause(Scope::Model))),
    Row("POST", "/admin/v1/models/{name*}/resume", Call::Admin(admin::Call::Resume(Scope::Model))),
    Row("POST", "/admin/v1/providers/{name}/pause", Call::Admin(admin::Call::Pause(Scope::Provider))),
    Row("POST", "/admin/v1/providers/{name}/resume", Call::Admin(admin::Call::Resume(Scope::Provider))),
    Row("POST", "/admin/v1/pause", Call::Admin(admin::Call::Pause(Scope::Everything))),
    Row("POST", "/admin/v1/resume", Call::Admin(admin::Call::Resume(Scope::Everything))),
    Row("GET", "/admin/v1/budgets", Call::Admin(admin::Call::Budgets)),
    Row("POST", "/admin/v1/budgets", Call::Admin(admin::Call::NewBudget)),
    Row("GET", "/admin/v1/budgets/{id}", Call::Admin(admin::Call::Budget)),
    Row("PATCH", "/admin/v1/budgets/{id}", Call::Admin(admin::Call::ChangeBudget)),
    Row("DELETE", "/admin/v1/budgets/{id}", Call::Admin(admin::Call::RemoveBudget)),
    Row("GET", "/admin/v1/pauses", Call::Admin(admin::Call::Pauses)),
    Row("GET", "/admin/v1/velocity", Call::Admin(admin::Call::Velocities)),
    Row("GET", "/admin/v1/learning", Call::Admin(admin::Call::Learning)),
    Row("DELETE", "/admin/v1/learning", Call::Admin(admin::Call::Unlearn)),
    Row("GET", "/admin/v1/runs", Call::Runs),
    Row("POST", "/admin/v1/runs", Call::NewRun),
    Row("GET", "/admin/v1/runs/{id}", Call::Run),
    Row("GET", "/admin/v1/runs/{id}/events", Call::RunEvents),
    Row("POST", "/admin/v1/runs/{id}/extend", Call::RunAction(Action::Extend)),
    Row("POST", "/admin/v1/runs/{id}/cancel", Call::RunAction(Action::Cancel)),
    Row("POST", "/admin/v1/runs/{id}/pause", Call::Admin(admin::Call::Pause(Scope::Run))),
    Row("POST", "/admin/v1/runs/{id}/resume", Call::Admin(admin::Call::Resume(Scope::Run))),
    Row("GET", "/admin/v1/runs/{id}/velocity", Call::Admin(admin::Call::Velocity(Scope::Run))),
    Row("POST", "/admin/v1/runs/{id}/velocity", Call::Admin(admin::Call::Hold(Scope::Run))),
    Row("DELETE", "/admin/v1/runs/{id}/velocity", Call::Admin(admin::Call::Release(Scope::Run))),
    Row("GET", "/admin/v1/spend", Call::Admin(admin::Call::Spend)),
    Row("POST", "/admin/v1/ledger/flush", Call::Admin(admin::Call::FlushLedger)),
    Row("GET", "/admin/v1/backends", Call::Admin(admin::Call::Backends)),
    Row("POST", "/admin/v1/reload", Call::Admin(admin::Call::Reload)),
    Row("GET", "/admin/v1/models", Call::Admin(admin::Call::LocalModels)),
    Row("POST", "/admin/v1/models/{name*}/load", Call::Admin(admin::Call::LocalModel(LocalAction::Load))),
    Row("POST", "/admin/v1/models/{name*}/unload", Call::Admin(admin::Call::LocalModel(LocalAction::Unload))),
    Row("POST", "/admin/v1/models/{name*}/pin", Call::Admin(admin::Call::LocalModel(LocalAction::Pin))),
    Row("POST", "/admin/v1/models/{name*}/unpin", Call::Admin(admin::Call::LocalModel(LocalAction::Unpin))),
    Row("GET", "/admin/v1/openapi.json", Call::Document),
];

/// What only the operator may ask for.
const ADMIN: &str = "/admin/";

/// The parts of a path that a row's placeholders stand for, decoded; `None` when the row is for other paths.
fn fit<'p>(pattern: &str, path: &'p str) -> Option<Vec<Cow<'p, str>>> {
    let Some((before, rest)) = pattern.split_once('{') else { return (pattern == path).then(Vec::new) };
    let path = path.strip_prefix(before)?;
    let (name, after) = rest.split_once('}')?;
    let (value, mut more) = if name.ends_with('*') {
        (path.strip_suffix(after)?, Vec::new())
    } else {
        let (value, rest) = path.split_at(path.find('/').unwrap_or(path.len()));
        (value, fit(after, rest)?)
    };
    if value.is_empty() {
        return None;
    }
    more.insert(0, percent_encoding::percent_decode_str(value).decode_utf8().ok()?);
    Some(more)
}

/// Whether a door leads there.
fn is_open(door: Door, apart: bool, path: &str) -> bool {
    match door {
        Door::Main => !apart || !path.starts_with(ADMIN),
        Door::Admin => !path.starts_with("/v1/") && path != "/rerank",
    }
}

/// What a method and a path ask for, and the names in the path.
fn find<'p>(door: Door, apart: bool, method: &str, path: &'p str) -> Result<(Call, Vec<Cow<'p, str>>), ApiError> {
    let method = if method == "HEAD" { "GET" } else { method };
    let open = is_open(door, apart, path);
    let mut allow: Vec<&str> = Vec::new();
    for Row(known, pattern, call) in TABLE.iter().filter(|_| open) {
        let Some(names) = fit(pattern, path) else { continue };
        if *known == method {
            return Ok((*call, names));
        }
        allow.push(known);
    }
    if allow.is_empty() {
        return Err(ApiError::NotFound(shown(path)));
    }
    if let Some(get) = allow.iter().position(|known| *known == "GET") {
        allow.insert(get + 1, "HEAD");
    }
    Err(ApiError::MethodNotAllowed { path: shown(path), allow: allow.join(", ") })
}

/// Serves one request.
///
/// # Errors
/// Whatever stops it; the caller of this makes a response of it.
pub(crate) async fn serve(
    app: &Arc<App>,
    door: Door,
    arrival: Arrival,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    // A handle on the path of its own, since the request goes on.
    let uri = request.uri().clone();
    let (call, names) = find(door, app.admin_apart, request.method().as_str(), uri.path())?;
    if uri.path().starts_with(ADMIN) {
        auth::operator(app, request.headers())?;
    }
    let name = names.first().map_or("", |name| &**name);
    let head = request.headers();
    match call {
        Call::Infer(operation) => infer::serve(app, operation, arrival, request).await,
        Call::Explain | Call::Quote => Box::pin(quote::serve(app, arrival.seed, request)).await,
        Call::Feedback => Box::pin(feedback::serve(app, request)).await,
        Call::Models => models::list(app, head),
        Call::Model => models::one(app, head, name),
        Call::Live => Ok(health::live()),
        Call::Ready => health::ready(app),
        Call::Metrics => metrics(app, &request),
        Call::Document => Ok(openapi::serve()),
        Call::Runs => runs::list(app, head),
        Call::NewRun => Box::pin(runs::create(app, request)).await,
        Call::Run => runs::one(app, head, name),
        Call::RunEvents => runs::watch(app, head, name),
        Call::RunAction(action) => Box::pin(runs::act(app, request, name, action)).await,
        // In a box, so that asking a model does not take the memory of administration.
        Call::Admin(call) => Box::pin(admin::serve(app, call, &names, request)).await,
    }
}

fn metrics(app: &App, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
    if app.config.load().server.metrics_need_key {
        auth::operator(app, request.headers())?;
    }
    let mut response = Response::new(Body::Full(app.metrics.render(app).into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    Ok(response)
}

/// A path as it may stand in an error: not longer than a line.
fn shown(path: &str) -> String {
    path.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &str, path: &str) -> Option<(Call, Vec<String>)> {
        let found = find(Door::Main, false, method, path).ok()?;
        Some((found.0, found.1.into_iter().map(Cow::into_owned).collect()))
    }

    #[test]
    fn model_ids_come_with_plain_and_with_escaped_slashes() {
        for path in ["/v1/models/local/fast", "/v1/models/local%2Ffast", "/v1/models/local%2ffast"] {
            assert_eq!(call("GET", path), Some((Call::Model, vec!["local/fast".to_owned()])));
        }
        for path in ["/", "/v1", "/v1/models/", "/v1/chat", "/v1/models/%ff", "/metrics/", "/v1/runs/", "/v1/runs/a/b"]
        {
            assert_eq!(call("GET", path), None, "{path}");
        }
    }

    #[test]
    fn placeholders_stand_for_one_part_or_for_several() {
        let rotate = Call::Admin(admin::Call::RotateKey);
        let found = call("POST", "/admin/v1/agents/scout/keys/key_1/rotate");
        assert_eq!(found, Some((rotate, vec!["scout".to_owned(), "key_1".to_owned()])));
        let pin = Call::Admin(admin::Call::LocalModel(LocalAction::Pin));
        assert_eq!(call("POST", "/admin/v1/models/a/b/pin"), Some((pin, vec!["a/b".to_owned()])));
        assert_eq!(call("POST", "/admin/v1/agents//pause"), None);
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        let error = find(Door::Main, false, "PUT", "/admin/v1/agents/scout").unwrap_err();
        assert!(error.to_string().ends_with("use GET, HEAD, PATCH, DELETE"), "{error}");
        assert!(find(Door::Main, false, "HEAD", "/v1/models").is_ok());
    }

    #[test]
    fn the_operators_paths_are_behind_one_door() {
        let open = |door, apart, path| find(door, apart, "GET", path).is_ok();
        assert!(open(Door::Main, false, "/admin/v1/agents"));
        assert!(!open(Door::Main, true, "/admin/v1/agents"));
        assert!(open(Door::Admin, true, "/admin/v1/agents"));
        assert!(!open(Door::Admin, true, "/v1/models"));
        for door in [Door::Main, Door::Admin] {
            assert!(open(door, true, "/health/live") && open(door, true, "/metrics"));
        }
    }
}
