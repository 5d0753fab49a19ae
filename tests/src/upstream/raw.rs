//! An upstream below HTTP: it reads a request and then writes exactly the bytes it was told to, for faults no HTTP server can play.

use bytes::Bytes;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// One thing a connection does after a request has been read.
#[derive(Debug, Clone)]
pub enum Act {
    /// Write these bytes.
    Send(Bytes),
    /// Close the connection with a reset instead of an end.
    Reset,
    /// Wait until the client closes the connection.
    Stall,
}

/// An upstream that plays the same acts on every connection, then closes it.
#[derive(Debug)]
pub struct RawUpstream {
    addr: SocketAddr,
    _accepting: JoinSet<()>,
}

impl RawUpstream {
    /// Starts on a free port.
    pub async fn start(acts: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(play(stream, acts.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, _accepting: accepting }
    }

    /// The base URL for a gateway's provider.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }
}

/// A client that closes early ends the play; that is no failure of it.
async fn play(mut stream: TcpStream, acts: Vec<Act>) -> () {
    let _ended = perform(&mut stream, acts).await;
}

async fn perform(stream: &mut TcpStream, acts: Vec<Act>) -> std::io::Result<()> {
    read_request(stream).await?;
    for act in acts {
        match act {
            Act::Send(bytes) => stream.write_all(&bytes).await?,
            Act::Reset => return stream.set_zero_linger(),
            Act::Stall => while stream.read(&mut [0; 1024]).await? > 0 {},
        }
    }
    stream.shutdown().await
}

/// Reads a head and as many body bytes as its `content-length` says.
async fn read_request(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut seen = Vec::new();
    loop {
        if stream.read_buf(&mut seen).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let Some(head) = seen.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&seen[..head]).to_ascii_lowercase();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .map_or(0, |value| value.trim().parse().unwrap());
        if seen.len() >= head + 4 + length {
            return Ok(());
        }
    }
}
