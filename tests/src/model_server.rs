//! A model server of one's own over real TCP: it tells its health, models and gauges in the form of the kind it plays, and answers chats.

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Which server it plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// vLLM.
    Vllm,
    /// SGLang with `--enable-metrics`.
    SgLang,
    /// llama-server with one model and `--metrics`.
    LlamaServer,
    /// llama-server's router.
    LlamaRouter,
    /// Ollama.
    Ollama,
}

/// How it tells its gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// As they are.
    Truth,
    /// Bytes that mean nothing.
    Garbage,
    /// Without an end.
    Endless,
    /// It takes the question and says nothing.
    Never,
    /// It was started without them.
    Off,
}

/// How it is. Tests change it while it runs.
#[derive(Debug, Clone)]
pub struct Mood {
    /// Its models, and whether each is in memory.
    pub models: Vec<(String, bool)>,
    /// Requests being answered.
    pub running: u32,
    /// Requests waiting.
    pub waiting: u32,
    /// Share of the KV cache in use.
    pub kv: f32,
    /// Whether it says that it is well.
    pub well: bool,
    /// How it tells its gauges.
    pub telling: Telling,
    /// Whether answers wait until this is false again.
    pub hold: bool,
    /// Paths of all questions so far, with their query.
    pub asked: Vec<String>,
    /// Models of all chats so far.
    pub chats: Vec<String>,
    /// Endless answers that the client has closed.
    pub closed: usize,
    /// Bytes of endless answers that were taken from it.
    pub taken: usize,
}

/// A running server.
#[derive(Debug)]
pub struct ModelServer {
    addr: SocketAddr,
    kind: Kind,
    mood: watch::Sender<Mood>,
    accepting: JoinSet<()>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl ModelServer {
    /// A healthy, idle server with these models in memory.
    pub async fn start(kind: Kind, models: &[&str]) -> Self {
        let mood = Mood {
            models: models.iter().map(|model| ((*model).to_owned(), true)).collect(),
            running: 0,
            waiting: 0,
            kv: 0.0,
            well: true,
            telling: Telling::Truth,
            hold: false,
            asked: Vec::new(),
            chats: Vec::new(),
            closed: 0,
            taken: 0,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut server = Self { addr, kind, mood: watch::Sender::new(mood), accepting: JoinSet::new() };
        server.serve(listener);
        server
    }

    fn serve(&mut self, listener: TcpListener) {
        let (kind, mood) = (self.kind, self.mood.clone());
        self.accepting.spawn(async move {
            // Connections live in this set, so they end with this task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let mood = mood.clone();
                let service = service_fn(move |request| answer(kind, mood.clone(), request));
                connections.spawn(async move {
                    let _ended = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
    }

    /// Closes its port and all connections.
    pub async fn stop(&mut self) {
        self.accepting.shutdown().await;
    }

    /// Listens again, where it did before.
    pub async fn restart(&mut self) {
        let listener = TcpListener::bind(self.addr).await.unwrap();
        self.serve(listener);
    }

    /// The lines of a provider that is this server, asked every few milliseconds.
    pub fn provider(&self, name: &str, lines: &str) -> String {
        let kind = match self.kind {
            Kind::Vllm => "vllm",
            Kind::SgLang => "sglang",
            Kind::LlamaServer | Kind::LlamaRouter => "llama-server",
            Kind::Ollama => "ollama",
        };
        let probe = if lines.contains("probe") { "" } else { "probe = \"20ms\"\n" };
        let price = if lines.contains("price") { "" } else { "price = \"free\"\n" };
        let url = format!("http://{}/v1", self.addr);
        format!(
            "[[providers]]\nname = \"{name}\"\nkind = \"{kind}\"\nbase_url = \"{url}\"\nmax_attempts = 1\n{price}{probe}{lines}\n"
        )
    }

    /// How it is.
    pub fn mood(&self) -> Mood {
        self.mood.borrow().clone()
    }

    /// Changes how it is.
    pub fn set(&self, change: impl FnOnce(&mut Mood)) {
        self.mood.send_modify(change);
    }
}

async fn answer(
    kind: Kind,
    mood: watch::Sender<Mood>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    if path.ends_with("/chat/completions") {
        return Ok(chat(&mood, &body).await);
    }
    mood.send_modify(|mood| mood.asked.push(path.clone()));
    let now = mood.borrow().clone();
    let (bare, query) = path.split_once('?').unwrap_or((&path, ""));
    Ok(match (bare, kind) {
        ("/health", Kind::Vllm | Kind::SgLang) => text(if now.well { 200 } else { 503 }, ""),
        ("/health", Kind::LlamaServer | Kind::LlamaRouter) if now.well => json(200, &json!({"status": "ok"})),
        ("/health", Kind::LlamaServer | Kind::LlamaRouter) => {
            json(503, &json!({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}))
        }
        ("/api/version", Kind::Ollama) => json(if now.well { 200 } else { 500 }, &json!({"version": "0.13.0"})),
        ("/v1/models", Kind::Vllm | Kind::SgLang | Kind::LlamaServer | Kind::LlamaRouter) => {
            json(200, &list(kind, &now))
        }
        ("/api/tags", Kind::Ollama) => json(200, &ollama(&now, |_| true)),
        ("/api/ps", Kind::Ollama) => json(200, &ollama(&now, |loaded| loaded)),
        ("/metrics", Kind::LlamaRouter) if !query.contains("model=") => {
            json(400, &json!({"error": {"code": 400, "message": "model name is missing from the request"}}))
        }
        ("/metrics", kind) if kind != Kind::Ollama => gauges(kind, &mood, &now).await,
        ("/slots", Kind::LlamaServer) => {
            let slot = |id: u32| json!({"id": id, "n_ctx": 512, "is_processing": id < now.running});
            json(200, &(0..4).map(slot).collect())
        }
        _ => json(404, &json!({"error": {"code": 404, "message": "File Not Found"}})),
    })
}

async fn chat(mood: &watch::Sender<Mood>, body: &[u8]) -> Response<Body> {
    let model = serde_json::from_slice::<Value>(body).unwrap()["model"].as_str().unwrap().to_owned();
    mood.send_modify(|mood| mood.chats.push(model.clone()));
    mood.subscribe().wait_for(|mood| !mood.hold).await.unwrap();
    json(
        200,
        &json!({"id": "c", "object": "chat.completion", "created": 1, "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "ho"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}),
    )
}

fn list(kind: Kind, mood: &Mood) -> Value {
    let entry = |(name, loaded): &(String, bool)| match kind {
        Kind::LlamaRouter => {
            let status = if *loaded { "loaded" } else { "unloaded" };
            json!({"id": name, "aliases": [], "object": "model", "owned_by": "llamacpp", "created": 1,
                "status": {"value": status, "args": ["llama-server"]}})
        }
        Kind::LlamaServer => {
            json!({"id": name, "aliases": [name], "object": "model", "owned_by": "llamacpp", "created": 1, "meta": null})
        }
        _ => {
            json!({"id": name, "object": "model", "created": 1, "owned_by": "server", "root": name, "max_model_len": 4096})
        }
    };
    json!({"object": "list", "data": mood.models.iter().map(entry).collect::<Vec<_>>()})
}

fn ollama(mood: &Mood, which: impl Fn(bool) -> bool) -> Value {
    let models = mood.models.iter().filter(|(_, loaded)| which(*loaded));
    let entry = |(name, _): &(String, bool)| json!({"name": name, "model": name, "size": 1, "digest": "d", "details": {"format": "gguf"}});
    json!({"models": models.map(entry).collect::<Vec<_>>()})
}

async fn gauges(kind: Kind, mood: &watch::Sender<Mood>, now: &Mood) -> Response<Body> {
    match now.telling {
        Telling::Truth => text(200, &truth(kind, now)),
        Telling::Garbage => text(200, "\u{0}}{=\"{{{ vllm:num_requests_running{model_name=\"m\n\n9 9 9 NaN\n"),
        Telling::Endless => Response::new(endless(mood.clone())),
        Telling::Never => std::future::pending().await,
        Telling::Off => {
            json(501, &json!({"error": {"code": 501, "message": "This server does not support metrics endpoint."}}))
        }
    }
}

/// The samples that matter, among some that do not.
fn truth(kind: Kind, now: &Mood) -> String {
    let model = now.models.first().map_or("", |(name, _)| name);
    let Mood { running, waiting, kv, .. } = now;
    let samples = match kind {
        Kind::Vllm => format!(
            "vllm:num_requests_running{{engine=\"0\",model_name=\"{model}\"}} {running}.0\n\
             vllm:num_requests_waiting{{engine=\"0\",model_name=\"{model}\"}} {waiting}.0\n\
             vllm:kv_cache_usage_perc{{engine=\"0\",model_name=\"{model}\"}} {kv}\n\
             vllm:iteration_tokens_total_bucket{{engine=\"0\",le=\"1.0\",model_name=\"{model}\"}} 3.0\n"
        ),
        Kind::SgLang => format!(
            "sglang:num_running_reqs{{engine_type=\"unified\",model_name=\"{model}\",tp_rank=\"0\"}} {running}.0\n\
             sglang:num_queue_reqs{{engine_type=\"unified\",model_name=\"{model}\",tp_rank=\"0\"}} {waiting}.0\n\
             sglang:token_usage{{engine_type=\"unified\",model_name=\"{model}\",tp_rank=\"0\"}} {kv}\n"
        ),
        _ => format!(
            "llamacpp:prompt_tokens_total 7\nllamacpp:requests_processing {running}\nllamacpp:requests_deferred {waiting}\n"
        ),
    };
    format!(
        "# HELP process_cpu_seconds_total Time.\n# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total 1.5\n{samples}"
    )
}

/// Counts the end of an endless answer when its client is gone.
struct Closing(watch::Sender<Mood>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.send_modify(|mood| mood.closed += 1);
    }
}

fn endless(mood: watch::Sender<Mood>) -> Body {
    let line = Bytes::from("process_cpu_seconds_total 1.5\n".repeat(1000));
    let stream = stream::unfold(Closing(mood), move |closing| {
        let line = line.clone();
        async move {
            closing.0.send_modify(|mood| mood.taken += line.len());
            tokio::task::yield_now().await;
            Some((Ok(Frame::data(line)), closing))
        }
    });
    StreamBody::new(stream).boxed_unsync()
}

fn text(status: u16, body: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes())).boxed_unsync();
    Response::builder().status(status).header("content-type", "text/plain; version=0.0.4").body(body).unwrap()
}

fn json(status: u16, body: &Value) -> Response<Body> {
    let mut response = text(status, &body.to_string());
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}
