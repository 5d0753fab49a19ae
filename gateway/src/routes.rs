//! Method and path to what serves them.

use crate::app::App;
use crate::body::Body;
use crate::error::ApiError;
use crate::stack::Arrival;
use crate::{admin, auth, health, infer, models, runs};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use std::borrow::Cow;
use std::sync::Arc;
use tollkeeper_inference::LocalAction;
use tollkeeper_protocol::Operation;

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Route<'a> {
    Infer(Operation),
    Models,
    Model(Cow<'a, str>),
    Live,
    Ready,
    Metrics,
    LocalModels,
    LocalModel(Cow<'a, str>, LocalAction),
    Runs,
    Run(&'a str),
    RunEvents(&'a str),
    RunAction(&'a str, runs::Action),
}

impl Route<'_> {
    fn of(path: &str) -> Option<Route<'_>> {
        Some(match path {
            "/v1/chat/completions" => Route::Infer(Operation::Chat),
            "/v1/completions" => Route::Infer(Operation::TextCompletion),
            "/v1/embeddings" => Route::Infer(Operation::Embeddings),
            // Cohere's and Jina's path, and llama.cpp's server's own.
            "/v1/rerank" | "/rerank" => Route::Infer(Operation::Rerank),
            "/v1/models" => Route::Models,
            "/health/live" => Route::Live,
            "/health/ready" => Route::Ready,
            "/metrics" => Route::Metrics,
            "/admin/v1/models" => Route::LocalModels,
            "/v1/runs" => Route::Runs,
            _ if path.starts_with("/v1/runs/") => return Self::run(&path["/v1/runs/".len()..]),
            // Aliases hold slashes; clients send them as they are or as %2F.
            _ => match path.strip_prefix("/v1/models/") {
                Some("") => return None,
                Some(id) => Route::Model(decoded(id)?),
                None => {
                    let (name, action) = path.strip_prefix("/admin/v1/models/")?.rsplit_once('/')?;
                    let (_, action) = admin::ACTIONS.into_iter().find(|(known, _)| *known == action)?;
                    Route::LocalModel(decoded(name)?, action)
                }
            },
        })
    }

    fn run(path: &str) -> Option<Route<'_>> {
        match path.split_once('/') {
            None => (!path.is_empty()).then_some(Route::Run(path)),
            Some((id, "events")) => Some(Route::RunEvents(id)),
            Some((id, action)) => {
                let (_, action) = runs::ACTIONS.into_iter().find(|(known, _)| *known == action)?;
                Some(Route::RunAction(id, action))
            }
        }
    }

    /// The methods it knows, as the `Allow` header says them.
    fn allow(&self) -> &'static str {
        match self {
            Self::Infer(_) | Self::LocalModel(..) | Self::RunAction(..) => "POST",
            Self::Runs => "GET, HEAD, POST",
            _ => "GET, HEAD",
        }
    }
}

/// Serves one request.
///
/// # Errors
/// Whatever stops it; the caller of this makes a response of it.
pub(crate) async fn serve(
    app: &Arc<App>,
    arrival: Arrival,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let path = request.uri().path();
    let route = Route::of(path).ok_or_else(|| ApiError::NotFound(shown(path)))?;
    if !route.allow().split(", ").any(|method| method == request.method().as_str()) {
        return Err(ApiError::MethodNotAllowed { path: shown(path), allow: route.allow() });
    }
    match route {
        Route::Infer(operation) => infer::serve(app, operation, arrival, request).await,
        Route::Models => models::list(app, request.headers()),
        Route::Model(id) => models::one(app, request.headers(), &id),
        Route::Live => Ok(health::live()),
        Route::Ready => health::ready(app),
        Route::Metrics => metrics(app, &request),
        Route::LocalModels => admin::models(app, request.headers()),
        Route::Runs if request.method() == Method::POST => runs::create(app, request).await,
        Route::Runs => runs::list(app, request.headers()),
        Route::Run(id) => runs::one(app, request.headers(), id),
        Route::RunEvents(id) => runs::watch(app, request.headers(), id),
        Route::RunAction(id, action) => {
            let id = id.to_owned();
            runs::act(app, request, &id, action).await
        }
        Route::LocalModel(name, action) => admin::act(app, request.headers(), &name, action),
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

fn decoded(segment: &str) -> Option<Cow<'_, str>> {
    percent_encoding::percent_decode_str(segment).decode_utf8().ok()
}

/// A path as it may stand in an error: not longer than a line.
fn shown(path: &str) -> String {
    path.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_ids_come_with_plain_and_with_escaped_slashes() {
        for path in ["/v1/models/local/fast", "/v1/models/local%2Ffast", "/v1/models/local%2ffast"] {
            assert_eq!(Route::of(path), Some(Route::Model("local/fast".into())));
        }
        for path in ["/", "/v1", "/v1/models/", "/v1/chat", "/v1/models/%ff", "/metrics/"] {
            assert_eq!(Route::of(path), None, "{path}");
        }
    }
}
