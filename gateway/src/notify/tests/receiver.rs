//! A receiver of webhooks over real TCP that answers as told and keeps what it got.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How long anything may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug, Clone)]
pub(super) enum Reply {
    Status(u16),
    With(u16, &'static str, String),
    /// None, ever.
    Stall,
}

/// A request.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Got {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// The receiver; it listens until the test ends.
pub(super) struct Receiver {
    pub(super) url: String,
    got: UnboundedReceiver<Got>,
}

impl Receiver {
    /// Plays these answers, then 200 for ever.
    pub(super) async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?token=hidden", listener.local_addr().unwrap());
        let (sender, got) = unbounded_channel();
        let replies = Arc::new(Mutex::new(replies.into_iter().collect::<VecDeque<_>>()));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (replies, sender) = (replies.clone(), sender.clone());
                let serve = service_fn(move |request| answer(request, replies.clone(), sender.clone()));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), serve));
            }
        });
        Self { url, got }
    }

    /// The next request.
    pub(super) async fn next(&mut self) -> Got {
        tokio::time::timeout(PATIENCE, self.got.recv()).await.expect("a request comes").unwrap()
    }

    /// Whether nothing came beyond what was taken.
    pub(super) fn is_idle(&mut self) -> bool {
        self.got.try_recv().is_err()
    }
}

async fn answer(
    request: Request<Incoming>,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    sender: UnboundedSender<Got>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let reply = replies.lock().unwrap().pop_front().unwrap_or(Reply::Status(200));
    let _ = sender.send(Got { path: head.uri.to_string(), headers: head.headers, body });
    let response = match reply {
        Reply::Status(status) => Response::builder().status(status),
        Reply::With(status, name, value) => Response::builder().status(status).header(name, value),
        Reply::Stall => std::future::pending().await,
    };
    Ok(response.body(Full::new(Bytes::from_static(b"said the receiver"))).unwrap())
}

/// Waits until this is so.
pub(super) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "hang: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
