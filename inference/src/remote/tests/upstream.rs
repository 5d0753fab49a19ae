//! The scripted server: it answers each request with the next of its scripts, byte for byte.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the server does with one request.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Writes these bytes; blocks while the client does not read.
    Send(Vec<u8>),
    /// Writes these bytes again and again until the client is gone; every write is counted in [`Seen::written`].
    Flood(Vec<u8>),
    /// Closes the connection.
    Close,
    /// Says nothing until the client closes the connection.
    Hang,
    /// Says nothing for a while of tokio's clock.
    Wait(std::time::Duration),
}

/// What the server saw.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Heads and bodies of all requests, in order.
    pub(super) requests: Vec<(String, String)>,
    /// Connections accepted.
    pub(super) connections: usize,
    /// Connections that the client closed while the server was answering on them.
    pub(super) abandoned: usize,
    /// Bytes that [`Step::Flood`] got rid of.
    pub(super) written: usize,
}

pub(super) struct Upstream {
    pub(super) url: String,
    seen: watch::Receiver<Seen>,
}

type Scripts = Arc<Mutex<VecDeque<Vec<Step>>>>;

impl Upstream {
    pub(super) async fn start(scripts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let scripts: Scripts = Arc::new(Mutex::new(scripts.into()));
        let (seen, receiver) = watch::channel(Seen::default());
        let seen = Arc::new(seen);
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                seen.send_modify(|seen| seen.connections += 1);
                tokio::spawn(serve(connection, scripts.clone(), seen.clone()));
            }
        });
        Self { url, seen: receiver }
    }

    /// A server that answers every request with these bytes.
    pub(super) async fn once(answer: Vec<u8>) -> Self {
        Self::start(vec![vec![Step::Send(answer)]]).await
    }

    pub(super) fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until the server has seen something.
    pub(super) async fn until(&self, what: impl FnMut(&Seen) -> bool) -> Seen {
        self.seen.clone().wait_for(what).await.unwrap().clone()
    }
}

async fn serve(mut connection: TcpStream, scripts: Scripts, seen: Arc<watch::Sender<Seen>>) {
    while let Some(request) = read_request(&mut connection).await {
        seen.send_modify(|seen| seen.requests.push(request));
        let script = scripts.lock().unwrap().pop_front().expect("no script is left for this request");
        for step in script {
            match step {
                Step::Send(bytes) => {
                    if connection.write_all(&bytes).await.is_err() {
                        return seen.send_modify(|seen| seen.abandoned += 1);
                    }
                }
                Step::Flood(bytes) => {
                    let mut at = 0;
                    while let Ok(written) = connection.write(&bytes[at..]).await {
                        at = (at + written) % bytes.len();
                        seen.send_modify(|seen| seen.written += written);
                    }
                    return seen.send_modify(|seen| seen.abandoned += 1);
                }
                Step::Close => return,
                Step::Hang => {
                    let _ = connection.read(&mut [0]).await;
                    return seen.send_modify(|seen| seen.abandoned += 1);
                }
                Step::Wait(time) => tokio::time::sleep(time).await,
            }
        }
    }
}

async fn read_request(connection: &mut TcpStream) -> Option<(String, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    connection.read_exact(&mut body).await.ok()?;
    Some((head, String::from_utf8(body).unwrap()))
}

/// A whole answer with a status line such as `200 OK` and more header lines.
pub(super) fn whole(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}")
        .into()
}

/// The head of a stream whose body ends with the connection.
pub(super) fn open_head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n".to_vec()
}

/// The head of a stream in chunks.
pub(super) fn chunked_head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n".to_vec()
}

/// One chunk of a body.
pub(super) fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

/// A whole stream, cut into chunks before each of these places.
pub(super) fn chunked(body: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut bytes = chunked_head();
    let mut start = 0;
    for cut in cuts.iter().copied().chain([body.len()]).filter(|cut| *cut > 0) {
        bytes.extend(chunk(&body[start..cut]));
        start = cut;
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

/// A frame with a piece of text.
pub(super) fn text(piece: &str) -> String {
    format!(
        "data: {{\"id\":\"c\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{piece}\"}},\"finish_reason\":null}}]}}\n\n"
    )
}

pub(super) const FINISH: &str =
    "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
pub(super) const USAGE: &str = "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\n";
pub(super) const DONE: &str = "data: [DONE]\n\n";

/// A whole answer of two pieces.
pub(super) fn answer() -> String {
    [&text("a"), &text("b"), FINISH, USAGE, DONE].concat()
}
