//! A tiny HTTP/1.1 client: one connection a request, every wait bounded, and dropping an [`Open`] answer is a client that leaves.

use crate::wait::within;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// Where to send requests and with which headers.
#[derive(Debug, Clone)]
pub struct Client {
    addr: SocketAddr,
    headers: Vec<(String, String)>,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The response headers.
    pub headers: HeaderMap,
    /// The body's bytes.
    pub body: Bytes,
}

/// An answer whose head has arrived. Dropping it closes the connection.
#[derive(Debug)]
pub struct Open {
    /// The HTTP status.
    pub status: u16,
    /// The response headers.
    pub headers: HeaderMap,
    body: Incoming,
    pending: BytesMut,
    _connection: CloseOnDrop,
}

#[derive(Debug)]
struct CloseOnDrop(AbortHandle);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// A client without a key.
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, headers: Vec::new() }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same with this key instead of any other.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.headers.retain(|(name, _)| name.as_str() != "authorization");
        self.header("authorization", &format!("Bearer {key}"))
    }

    /// Sends a request without a body and reads the whole answer.
    pub async fn get(&self, path: &str) -> Answer {
        self.open(Method::GET, path, Bytes::new()).await.rest().await
    }

    /// Posts JSON bytes and reads the whole answer.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.open(Method::POST, path, body).await.rest().await
    }

    /// Posts a JSON value and reads the whole answer.
    pub async fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.post(path, body.to_string()).await
    }

    /// Posts a JSON value and returns when the head of the answer is there.
    pub async fn stream(&self, path: &str, body: &Value) -> Open {
        self.open(Method::POST, path, body.to_string()).await
    }

    /// Sends a request and returns when the head of the answer is there.
    pub async fn open(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Open {
        let what = format!("the head of the answer to {method} {path}");
        within(&what, self.try_open(method, path, body)).await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// Like [`Client::open`], for connections that may fail.
    ///
    /// # Errors
    /// No connection, or one that closed before the head of the answer.
    pub async fn try_open(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Open, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.addr).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = CloseOnDrop(tokio::spawn(connection).abort_handle());
        let mut request = Request::builder().method(method).uri(path).header("host", self.addr.to_string());
        let body = body.into();
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let response: Response<Incoming> = sender.send_request(request.body(Full::new(body))?).await?;
        let (head, body) = response.into_parts();
        Ok(Open {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            pending: BytesMut::new(),
            _connection: connection,
        })
    }
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {:?}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The `error` object of OpenAI's error shape.
    pub fn error(&self) -> Value {
        self.json().get("error").cloned().unwrap_or_else(|| panic!("no error in {}", self.text()))
    }

    /// The data of all server-sent events of the body.
    pub fn events(&self) -> Vec<String> {
        let mut pending = BytesMut::from(&self.body[..]);
        std::iter::from_fn(|| next_event(&mut pending)).collect()
    }
}

impl Open {
    /// The data of the next server-sent event; `None` when the stream has ended. Comments are skipped.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn next_event(&mut self) -> Result<Option<String>, hyper::Error> {
        loop {
            if let Some(data) = next_event(&mut self.pending) {
                return Ok(Some(data));
            }
            match self.chunk().await? {
                Some(bytes) => self.pending.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }

    /// The next piece of the body as it came from the wire; `None` at its end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        loop {
            match within("the next piece of a body", self.body.frame()).await {
                None => return Ok(None),
                Some(Err(error)) => return Err(error),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(_trailers) => {}
                },
            }
        }
    }

    /// The whole answer; what came before a break counts as the answer when the connection breaks.
    pub async fn rest(mut self) -> Answer {
        let mut body = std::mem::take(&mut self.pending);
        while let Ok(Some(bytes)) = self.chunk().await {
            body.extend_from_slice(&bytes);
        }
        Answer { status: self.status, headers: self.headers.clone(), body: body.freeze() }
    }
}

/// Takes the next event with data off the front of `pending`.
fn next_event(pending: &mut BytesMut) -> Option<String> {
    loop {
        let end = frame_end(pending)?;
        let frame = pending.split_to(end);
        let frame = String::from_utf8_lossy(&frame);
        let data: Vec<&str> = frame
            .lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .map(|line| line.strip_prefix(' ').unwrap_or(line))
            .collect();
        if !data.is_empty() {
            return Some(data.join("\n"));
        }
    }
}

/// Where the first frame ends: after the first empty line.
fn frame_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').find_map(|(at, _)| match &bytes[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}
