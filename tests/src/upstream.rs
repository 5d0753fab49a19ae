//! A scripted OpenAI-compatible provider over real TCP. It answers by [`Script`], counts what it serves and keeps what it was sent.

mod books;
mod play;
pub mod raw;
pub mod script;
mod wire;

pub use books::{End, Received, Served};
pub use script::{Content, Counted, Fault, Framing, Gate, Hold, Script, ToolForm, UsageRule, Vendor};
pub use wire::{ARGUMENTS, word};

use crate::wait::within;
use books::{Books, Visit};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use play::Body;
use serde_json::json;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::usage::Usage;
use wire::Asked;

type Director = dyn Fn(&Received) -> Script + Send + Sync;

/// A running provider. Dropping it closes its connections and its port.
#[derive(Debug)]
pub struct Upstream {
    addr: SocketAddr,
    stage: Arc<Stage>,
    accepting: JoinSet<()>,
}

struct Stage {
    books: Books,
    director: Box<Director>,
    next: Mutex<VecDeque<Script>>,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.books.fmt(f)
    }
}

impl Upstream {
    /// A well-behaved provider; [`Upstream::next`] changes that for single requests.
    pub async fn start() -> Self {
        Self::always(Script::default()).await
    }

    /// A provider that answers every request by this script.
    pub async fn always(script: Script) -> Self {
        Self::directed(move |_| script.clone()).await
    }

    /// A provider that plays the [`Script::named`] script that the model's name (its last part) asks for.
    pub async fn by_model_name() -> Self {
        Self::directed(|request| {
            let model = serde_json::from_slice::<serde_json::Value>(&request.body).ok();
            let model = model.as_ref().and_then(|body| body["model"].as_str()).unwrap_or_default();
            Script::by_name(model.rsplit('/').next().unwrap_or_default())
        })
        .await
    }

    /// A provider whose answer to each request is chosen by `director`.
    pub async fn directed(director: impl Fn(&Received) -> Script + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stage = Arc::new(Stage { books: Books::new(), director: Box::new(director), next: Mutex::default() });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, stage.clone()));
        Self { addr, stage, accepting }
    }

    /// An address of this machine that refuses connections.
    pub async fn refusing() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base URL for a gateway's provider.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// The next request (of those to come, in order) is answered by this script.
    pub fn next(&self, script: Script) {
        self.stage.next.lock().unwrap().push_back(script);
    }

    /// All requests, in the order they came.
    pub fn received(&self) -> Vec<Received> {
        self.stage.books.received()
    }

    /// The only request there was.
    pub fn only(&self) -> Received {
        let mut received = self.received();
        assert_eq!(received.len(), 1, "the upstream got {} requests, not one", received.len());
        received.remove(0)
    }

    /// What became of each request, in the order they came.
    pub fn served(&self) -> Vec<Served> {
        self.stage.books.served()
    }

    /// The tokens of all answers that told their usage.
    pub fn billed(&self) -> Usage {
        let mut sum = Usage::default();
        for Served { usage, .. } in self.served().iter().filter(|served| served.reported && served.end == End::Complete)
        {
            sum.input += usage.input;
            sum.cached_input += usage.cached_input;
            sum.output += usage.output;
            sum.reasoning += usage.reasoning;
        }
        sum
    }

    /// Waits until so many requests have come.
    pub async fn wait_for_requests(&self, count: usize) {
        within(&format!("request {count} at the upstream"), self.stage.books.until(|served| served.len() >= count))
            .await;
    }

    /// Waits until the client has closed the connection of some answer that was not complete.
    pub async fn wait_for_disconnect(&self) {
        within(
            "the end of a connection at the upstream",
            self.stage.books.until(|all| all.iter().any(|one| one.end == End::ClientGone)),
        )
        .await;
    }

    /// Waits until what became of the requests satisfies `so`.
    pub async fn wait_until(&self, what: &str, so: impl Fn(&[Served]) -> bool) {
        within(what, self.stage.books.until(so)).await;
    }

    /// Closes the port and all connections; later connections are refused.
    pub async fn stop(mut self) -> Vec<Served> {
        self.accepting.shutdown().await;
        self.served()
    }
}

async fn accept(listener: TcpListener, stage: Arc<Stage>) {
    // Connections live in this set, so they end with this task.
    let mut connections = JoinSet::new();
    for number in 0.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        stream.set_nodelay(true).unwrap();
        let stage = stage.clone();
        let service = service_fn(move |request| {
            let stage = stage.clone();
            async move { stage.answer(request, number).await }
        });
        connections.spawn(async move {
            // An error is a script's break or a client that left: both are in the books.
            let _ended = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Stage {
    async fn answer(self: Arc<Self>, request: Request<Incoming>, connection: u64) -> Result<Response<Body>, io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let path = head.uri.path_and_query().map_or_else(String::new, ToString::to_string);
        let received = Received { method: head.method.to_string(), path, headers: head.headers, body, connection };
        let operation = match received.path.split('?').next().unwrap_or_default() {
            "/_count" => return Ok(json_response(200, self.count())),
            path if path.ends_with("/chat/completions") => Operation::Chat,
            path if path.ends_with("/completions") => Operation::TextCompletion,
            path if path.ends_with("/embeddings") => Operation::Embeddings,
            path if path.ends_with("/rerank") => Operation::Rerank,
            path if path.ends_with("/models") => return Ok(json_response(200, models())),
            path => {
                return Ok(json_response(
                    404,
                    wire::error(&format!("Invalid URL ({path})"), "invalid_request_error", None),
                ));
            }
        };
        let script = self.next.lock().unwrap().pop_front().unwrap_or_else(|| (self.director)(&received));
        let asked = Asked::read(operation, &received.body);
        let visit = self.books.visit(received);
        if let Ok(asked) = &asked {
            visit.note(|served| served.model.clone_from(&asked.model));
        }
        perform(asked, &script, visit).await
    }

    /// The books in figures, for clients in other languages.
    fn count(&self) -> String {
        let (received, served) = (self.books.received(), self.books.served());
        let requests: Vec<_> = received
            .iter()
            .zip(&served)
            .map(|(received, served)| {
                json!({"path": received.path, "model": served.model, "status": served.status, "end": format!("{:?}", served.end),
                    "input_tokens": served.usage.input, "output_tokens": served.usage.output, "tokens_sent": served.tokens_sent,
                    "body": String::from_utf8_lossy(&received.body)})
            })
            .collect();
        json!({"requests": requests}).to_string()
    }
}

async fn perform(asked: Result<Asked, String>, script: &Script, mut visit: Visit) -> Result<Response<Body>, io::Error> {
    if let Some(Hold::Head(gate)) = &script.hold {
        gate.pass().await;
    }
    let mut fail = |status: u16, body: String, retry_after: Option<u32>| {
        visit.note(|served| served.status = status);
        visit.complete();
        let mut response = json_response(status, body);
        if let Some(seconds) = retry_after {
            response.headers_mut().insert("retry-after", seconds.into());
        }
        Ok(response)
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(message) => return fail(400, wire::error(&message, "invalid_request_error", None), None),
    };
    match &script.fault {
        Some(Fault::Status { status, retry_after, code }) => {
            let kind = if *status < 500 { "invalid_request_error" } else { "server_error" };
            return fail(*status, wire::error(&format!("The upstream says {status}."), kind, *code), *retry_after);
        }
        Some(Fault::Html(status)) => {
            return fail(*status, "<html><body><h1>Bad Gateway</h1></body></html>".into(), None);
        }
        Some(Fault::Empty(status)) => return fail(*status, String::new(), None),
        Some(Fault::HugeError(bytes)) => {
            return fail(400, wire::error(&"x".repeat(*bytes), "invalid_request_error", None), None);
        }
        Some(Fault::NotJson) => return fail(200, "I am not JSON".into(), None),
        Some(Fault::ErrorFirst) if !asked.stream => {
            return fail(200, wire::error("It went wrong inside.", "server_error", None), None);
        }
        Some(Fault::CloseBeforeHead) => {
            visit.broken();
            return Err(io::Error::other("the script closes the connection here"));
        }
        Some(Fault::StallBeforeHead) => std::future::pending().await,
        _ => {}
    }
    let usage = wire::usage(&asked, script);
    visit.note(|served| {
        served.status = 200;
        served.usage = usage;
        served.reported = script.usage == UsageRule::Vendor
            && (!asked.stream || asked.include_usage || script.vendor != Vendor::OpenAi);
    });
    let streamed = asked.stream && asked.operation.generates();
    let body = if streamed {
        play::stream(&asked, script, visit)
    } else {
        play::whole(wire::body(&asked, script), usage.output, script, visit)
    };
    let kind = if streamed { "text/event-stream; charset=utf-8" } else { "application/json" };
    let response = Response::builder()
        .header("content-type", kind)
        .header("x-request-id", "req_upstream_0001")
        .header("openai-processing-ms", "12")
        .header("x-ratelimit-remaining-requests", script.requests_left.unwrap_or(9999))
        .header("x-ratelimit-reset-requests", "20s");
    Ok(response.body(body).unwrap())
}

fn json_response(status: u16, body: String) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
    Response::builder().status(status).header("content-type", "application/json").body(body).unwrap()
}

fn models() -> String {
    let data: Vec<_> = Script::named()
        .iter()
        .map(|(name, _)| json!({"id": name, "object": "model", "created": 1_760_000_000, "owned_by": "upstream"}))
        .collect();
    json!({"object": "list", "data": data}).to_string()
}
