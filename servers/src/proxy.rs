//! A wire to the server that can be made slow, or be cut after a request has passed.

use crate::RedisServer;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::Notify;

/// Forwards TCP to the server's socket.
#[derive(Clone)]
pub struct Proxy {
    addr: SocketAddr,
    /// How long answers take, in milliseconds.
    delay: Arc<AtomicU64>,
    /// Whether the next answer is swallowed and its connection cut.
    cut: Arc<AtomicBool>,
    /// Whether the next request is kept back, with all that follow on its connection, until it is let go.
    hold: Arc<AtomicBool>,
    let_go: Arc<Notify>,
}

impl Proxy {
    /// Starts to listen on a free port.
    pub async fn start(server: &RedisServer) -> Self {
        Self::to(server.socket()).await
    }

    /// The same for whatever listens on this socket.
    pub async fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (hold, let_go) = (Arc::default(), Arc::default());
        let proxy = Self { addr, delay: Arc::default(), cut: Arc::default(), hold, let_go };
        let shared = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(shared.clone().forward(client, socket.clone()));
            }
        });
        proxy
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its address as a gateway is told that of Redis.
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// From now on answers take so much longer; whole milliseconds.
    pub fn delay(&self, by: Duration) {
        self.delay.store(u64::try_from(by.as_millis()).unwrap(), Relaxed);
    }

    /// The next answer is lost with its connection.
    pub fn cut(&self) {
        self.cut.store(true, Relaxed);
    }

    /// Whether that has happened.
    pub fn has_cut(&self) -> bool {
        !self.cut.load(Relaxed)
    }

    /// The next request stays on its way until [`let_go`](Self::let_go), even if its connection is closed behind it.
    pub fn hold(&self) {
        self.hold.store(true, Relaxed);
    }

    /// Lets what is kept back go.
    pub fn let_go(&self) {
        self.let_go.notify_one();
    }

    async fn forward(self, client: tokio::net::TcpStream, socket: PathBuf) -> Option<()> {
        let server = UnixStream::connect(socket).await.ok()?;
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let (hold, let_go) = (self.hold.clone(), self.let_go.clone());
        let up = async move {
            let mut bytes = vec![0; 65_536];
            loop {
                let count = from_client.read(&mut bytes).await.ok().filter(|count| *count > 0)?;
                if hold.swap(false, Relaxed) {
                    let_go.notified().await;
                }
                to_server.write_all(&bytes[..count]).await.ok()?;
            }
        };
        let down = async move {
            let mut bytes = vec![0; 65_536];
            loop {
                let count = from_server.read(&mut bytes).await.ok().filter(|count| *count > 0)?;
                let delay = self.delay.load(Relaxed);
                if delay > 0 {
                    tokio::time::sleep(Duration::from_millis(delay)).await;
                }
                if self.cut.swap(false, Relaxed) {
                    return None;
                }
                to_client.write_all(&bytes[..count]).await.ok()?;
            }
        };
        // Either way ends both.
        tokio::select! { end = up => end, end = down => end }
    }
}
