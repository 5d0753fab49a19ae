//! What every request passes, outermost first: cross-origin rules, a request id, the routes, errors to responses.

use crate::app::App;
use crate::body::Body;
use crate::error::ApiError;
use crate::routes::{self, Door};
use futures_util::FutureExt;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::Instant;
use tower::ServiceBuilder;
use tower::util::Either;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, Any, Cors, CorsLayer};

/// The client's own id, echoed.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Ours, which the ledger and the log know.
const OUR_REQUEST_ID: HeaderName = HeaderName::from_static("x-tollkeeper-request-id");
/// OpenAI's name for the time spent.
const PROCESSING_MS: HeaderName = HeaderName::from_static("openai-processing-ms");
/// A client's id that is longer is not echoed.
const LONGEST_ID: usize = 128;

/// What is known of a request before it is looked at.
pub(crate) struct Arrival {
    /// Unique over all processes.
    pub(crate) id: Arc<str>,
    /// Differs between requests.
    pub(crate) seed: u64,
    /// When its head had arrived.
    pub(crate) at: Instant,
    /// Held while the request lasts; tells its connection that it is in use.
    pub(crate) alive: Arc<()>,
}

/// The whole stack as a service.
pub(crate) type Stack = Either<Cors<Edge>, Edge>;

/// Builds it for one connection, which learns by the handles on `alive` whether it is in use.
pub(crate) fn stack(app: &Arc<App>, door: Door, alive: Arc<()>) -> Stack {
    let cors = cors(&app.config.load().server.cors_origins);
    ServiceBuilder::new().option_layer(cors).service(Edge { app: app.clone(), door, alive })
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    let allowed = match origins {
        [] => return None,
        any if any.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        some => AllowOrigin::list(some.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    // A wildcard would leave out `authorization`, so what is asked for is mirrored.
    let layer =
        CorsLayer::new().allow_methods(AllowMethods::mirror_request()).allow_headers(AllowHeaders::mirror_request());
    Some(layer.allow_origin(allowed).expose_headers(Any))
}

/// The innermost service: gives the request its id, routes it, and turns what went wrong into a response.
#[derive(Clone)]
pub(crate) struct Edge {
    app: Arc<App>,
    door: Door,
    alive: Arc<()>,
}

impl tower::Service<Request<Incoming>> for Edge {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let (app, door, alive) = (self.app.clone(), self.door, self.alive.clone());
        Box::pin(async move {
            let (id, seed) = app.next_id();
            let arrival = Arrival { id: id.clone(), seed, at: Instant::now(), alive };
            let (at, echo) = (arrival.at, client_id(request.headers()));
            let served = guarded(routes::serve(&app, door, arrival, request)).await;
            let mut response = served.unwrap_or_else(|error| error.into_response());
            let headers = response.headers_mut();
            if let Ok(ours) = HeaderValue::from_str(&id) {
                headers.insert(REQUEST_ID, echo.unwrap_or_else(|| ours.clone()));
                headers.insert(OUR_REQUEST_ID, ours);
            }
            let milliseconds = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
            headers.insert(PROCESSING_MS, HeaderValue::from(milliseconds));
            Ok(response)
        })
    }
}

/// Turns a panic, which the panic hook has logged, into an answer. What the request held is dropped by then, and so settled.
async fn guarded(serving: impl Future<Output = Result<Response<Body>, ApiError>>) -> Result<Response<Body>, ApiError> {
    AssertUnwindSafe(serving).catch_unwind().await.unwrap_or(Err(ApiError::Panicked))
}

/// The id that the client gave the request, if it is fit to be sent back.
fn client_id(head: &HeaderMap) -> Option<HeaderValue> {
    let id = head.get(REQUEST_ID)?;
    let fit = (1..=LONGEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    fit.then(|| id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let answered = guarded(async { panic!("a bug") }).await;
        assert!(matches!(answered, Err(ApiError::Panicked)));
    }
}
