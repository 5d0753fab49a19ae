//! Load: closed loops (the next request when the last is answered) and open loops (requests at a constant rate, whatever happens).
//!
//! An open loop measures from the moment a request was due, not from when it was sent, so that a server that stalls is charged for
//! all the requests that had to wait (no coordinated omission).

use crate::servers::CHUNKS;
use crate::target::Target;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// What is asked again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A chat answered whole.
    Unary,
    /// A chat answered as a stream of [`CHUNKS`] chunks.
    Stream,
}

/// What a load measured; several can be added up.
#[derive(Debug, Clone)]
pub struct Measure {
    /// Nanoseconds to the whole answer.
    pub whole: Histogram<u64>,
    /// Nanoseconds to the first piece of the body.
    pub first: Histogram<u64>,
    /// Wall-clock time of the load.
    pub wall: Duration,
    /// CPU time the target used meanwhile.
    pub cpu: Duration,
}

impl Default for Measure {
    fn default() -> Self {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap();
        Self { whole: histogram(), first: histogram(), wall: Duration::ZERO, cpu: Duration::ZERO }
    }
}

impl Measure {
    /// Adds another measure of the same kind.
    pub fn add(&mut self, other: &Self) {
        self.whole.add(&other.whole).unwrap();
        self.first.add(&other.first).unwrap();
        self.wall += other.wall;
        self.cpu += other.cpu;
    }

    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.whole.len() as f64 / self.wall.as_secs_f64()
    }

    fn record(&mut self, due: Instant, first: Instant, end: Instant) {
        let nanos = |until: Instant| u64::try_from((until - due).as_nanos()).unwrap();
        self.first.record(nanos(first)).unwrap();
        self.whole.record(nanos(end)).unwrap();
    }
}

/// `count` requests over `connections` connections, each sending its next request when its last was answered.
pub async fn closed_loop(target: &Target, work: Work, connections: u32, count: u32) -> Measure {
    let connections = connect(target, work, connections).await;
    let taken = Arc::new(AtomicU32::new(0));
    run(target, connections, Instant::now(), move || {
        let taken = taken.clone();
        async move { (taken.fetch_add(1, Ordering::Relaxed) < count).then(Instant::now) }
    })
    .await
}

/// `count` requests, one every `1 / rate` seconds, over as many of `connections` connections as it takes.
pub async fn open_loop(target: &Target, work: Work, connections: u32, rate: u32, count: u32) -> Measure {
    let connections = connect(target, work, connections).await;
    let due = Arc::new(Semaphore::new(0));
    let taken = Arc::new(AtomicU32::new(0));
    let start = Instant::now();
    let at = move |index: u32| start + Duration::from_secs(1) * index / rate;
    // A thread of its own keeps time: the runtime's timers are too coarse for this.
    let (clock, workers) = (due.clone(), connections.len());
    let clock = std::thread::spawn(move || {
        for index in 0..count {
            std::thread::sleep(at(index).saturating_duration_since(Instant::now()));
            clock.add_permits(1);
        }
        // Nothing is left: every worker learns of it.
        clock.add_permits(workers);
    });
    let measure = run(target, connections, start, move || {
        let (due, taken) = (due.clone(), taken.clone());
        async move {
            due.acquire().await.unwrap().forget();
            let index = taken.fetch_add(1, Ordering::Relaxed);
            (index < count).then(|| at(index))
        }
    })
    .await;
    clock.join().unwrap();
    measure
}

async fn connect(target: &Target, work: Work, count: u32) -> Vec<Connection> {
    let mut connections = Vec::new();
    for _ in 0..count {
        connections.push(Connection::open(target, target.model, work).await);
    }
    connections
}

/// Works until `next`, which says when the next request is due, has none left. The load began at `start`.
async fn run<F>(
    target: &Target,
    connections: Vec<Connection>,
    start: Instant,
    next: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Measure
where
    F: Future<Output = Option<Instant>> + Send,
{
    let cpu = target.cpu();
    let mut workers = JoinSet::new();
    for mut connection in connections {
        let next = next.clone();
        workers.spawn(async move {
            let mut samples = Vec::new();
            while let Some(due) = next().await {
                let first = connection.ask().await;
                samples.push((due, first, connection.finish().await));
            }
            samples
        });
    }
    let samples = workers.join_all().await.concat();
    let mut measure = Measure { cpu: target.cpu().saturating_sub(cpu), ..Measure::default() };
    for (due, first, end) in samples {
        measure.record(due, first, end);
        measure.wall = measure.wall.max(end - start);
    }
    measure
}

/// One client connection, kept alive.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
    work: Work,
    body: Option<Incoming>,
    received: usize,
}

impl Connection {
    /// Connects; `model` says which model is asked.
    pub async fn open(target: &Target, model: &str, work: Work) -> Self {
        let stream = TcpStream::connect(target.addr()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("/v1/chat/completions")
            .header("host", target.addr().to_string())
            .header("authorization", format!("Bearer {}", target.key()))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(question(model, work))))
            .unwrap();
        Self { sender, request, work, body: None, received: 0 }
    }

    /// Sends the request and waits for the first piece of the body; when that came.
    pub async fn ask(&mut self) -> Instant {
        self.sender.ready().await.unwrap();
        let response = self.sender.send_request(self.request.clone()).await.unwrap();
        assert_eq!(response.status(), 200, "an answer that is not 200 is no measurement");
        self.body = Some(response.into_body());
        self.received = 0;
        assert!(self.read().await, "an answer without a body is no measurement");
        Instant::now()
    }

    /// Reads on; false at the end of the body.
    pub async fn read(&mut self) -> bool {
        let Some(frame) = self.body.as_mut().unwrap().frame().await else { return false };
        self.received += frame.unwrap().data_ref().map_or(0, Bytes::len);
        true
    }

    /// Bytes of the body so far.
    pub fn received(&self) -> usize {
        self.received
    }

    /// Reads to the end; when that came.
    async fn finish(&mut self) -> Instant {
        while self.read().await {}
        let least = if self.work == Work::Stream { CHUNKS as usize * 300 } else { 900 };
        assert!(self.received > least, "an answer of {} bytes is no measurement", self.received);
        Instant::now()
    }
}

/// A chat request of about a kilobyte.
fn question(model: &str, work: Work) -> String {
    let stream = if work == Work::Stream { r#","stream":true,"stream_options":{"include_usage":true}"# } else { "" };
    let story =
        "The keeper looked up the road and down the road, and wrote the number of the cart into the book. ".repeat(7);
    format!(
        concat!(
            r#"{{"model":"{model}","messages":[{{"role":"system","content":"You are a helpful assistant who answers in a few sentences."}},"#,
            r#"{{"role":"user","content":"{story}"}},{{"role":"assistant","content":"And then?"}},"#,
            r#"{{"role":"user","content":"What does a toll keeper do?"}}],"temperature":0.7,"max_tokens":256{stream}}}"#
        ),
        model = model,
        story = story,
        stream = stream
    )
}
