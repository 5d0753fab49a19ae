//! What the upstream remembers: every request byte for byte, and every token it served.

use bytes::Bytes;
use http::HeaderMap;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tollkeeper_protocol::usage::Usage;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body's exact bytes.
    pub body: Bytes,
    /// Which TCP connection brought it, from 0 in the order they were accepted.
    pub connection: u64,
}

impl Received {
    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// A header's value, empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// What became of one request. In the order in which requests came.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// The model that was asked for.
    pub model: String,
    /// The status that was answered; 0 when the connection closed before.
    pub status: u16,
    /// The true tokens of the whole answer, as a provider would bill it; nothing for an error status.
    pub usage: Usage,
    /// Whether the client was told `usage` in full.
    pub reported: bool,
    /// Completion tokens written so far.
    pub tokens_sent: u64,
    /// Body bytes written so far.
    pub bytes_sent: usize,
    /// How it ended.
    pub end: End,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum End {
    /// Not yet.
    #[default]
    Open,
    /// Everything was sent.
    Complete,
    /// The script broke it.
    Broken,
    /// The client closed the connection.
    ClientGone,
}

#[derive(Debug, Default)]
struct Pages {
    received: Vec<Received>,
    served: Vec<Served>,
}

/// The upstream's books; a cheap handle.
#[derive(Debug, Clone)]
pub(super) struct Books {
    pages: Arc<Mutex<Pages>>,
    turn: watch::Sender<u64>,
}

impl Books {
    pub(super) fn new() -> Self {
        Self { pages: Arc::default(), turn: watch::Sender::new(0) }
    }

    /// Opens the page of a request.
    pub(super) fn visit(&self, received: Received) -> Visit {
        let mut pages = self.pages.lock().unwrap();
        pages.received.push(received);
        pages.served.push(Served::default());
        let index = pages.served.len() - 1;
        drop(pages);
        self.turn.send_modify(|turn| *turn += 1);
        Visit { books: self.clone(), index }
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.pages.lock().unwrap().received.clone()
    }

    pub(super) fn served(&self) -> Vec<Served> {
        self.pages.lock().unwrap().served.clone()
    }

    /// Waits until the books satisfy `so`.
    pub(super) async fn until(&self, so: impl Fn(&[Served]) -> bool) {
        let mut turn = self.turn.subscribe();
        while !so(&self.pages.lock().unwrap().served) {
            turn.changed().await.unwrap();
        }
    }
}

/// One request being answered. Dropped before its end, it notes that the client has gone.
#[derive(Debug)]
pub(super) struct Visit {
    books: Books,
    index: usize,
}

impl Visit {
    pub(super) fn note(&self, change: impl FnOnce(&mut Served)) {
        change(&mut self.books.pages.lock().unwrap().served[self.index]);
        self.books.turn.send_modify(|turn| *turn += 1);
    }

    pub(super) fn sent(&mut self, bytes: usize, tokens: u64) {
        self.note(|served| {
            served.bytes_sent += bytes;
            served.tokens_sent += tokens;
        });
    }

    pub(super) fn complete(&mut self) {
        self.end(End::Complete);
    }

    pub(super) fn broken(&mut self) {
        self.end(End::Broken);
    }

    fn end(&mut self, end: End) {
        self.note(|served| {
            if served.end == End::Open {
                served.end = end;
            }
        });
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.end(End::ClientGone);
    }
}
