//! Accepts connections, ends TLS, serves HTTP on each, and drains them all.

use crate::app::{App, StartError};
use crate::routes::Door;
use crate::stack;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tollkeeper_config::settings::Tls;

/// Connections that the system may hold while we are busy.
const BACKLOG: i32 = 1024;
/// How long to rest when the system refuses a connection (no file descriptor left, for instance).
const REST: Duration = Duration::from_millis(50);
/// How long requests that were cut may take to settle.
const LAST_STEPS: Duration = Duration::from_secs(5);
/// Streams one HTTP/2 client may open at once; more wait at the client.
const HTTP2_STREAMS: u32 = 256;

/// A bound address.
pub(crate) struct Listener {
    pub(crate) addr: SocketAddr,
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// Binds, and reads the TLS files.
    pub(crate) fn bind(addr: SocketAddr, tls: Option<&Tls>) -> Result<Self, StartError> {
        let failed = |reason| StartError::Listen { addr, reason };
        let socket = if addr.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() };
        let socket = socket.map_err(failed)?;
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.bind(addr).map_err(failed)?;
        let tcp = socket.listen(BACKLOG.unsigned_abs()).map_err(failed)?;
        let tls = tls.map(acceptor).transpose()?;
        Ok(Self { addr: tcp.local_addr().map_err(failed)?, tcp, tls })
    }
}

fn acceptor(files: &Tls) -> Result<TlsAcceptor, StartError> {
    let failed =
        |path: &std::path::Path, error: &dyn std::fmt::Display| StartError::Tls(format!("{}: {error}", path.display()));
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(&files.cert, &error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| failed(&files.key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| failed(&files.cert, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until `stop`, then drains: up to the configured time, or until `force`.
pub(crate) async fn serve(
    app: Arc<App>,
    door: Door,
    listener: Listener,
    stop: CancellationToken,
    force: CancellationToken,
) {
    let (connections, limits) = (TaskTracker::new(), app.config.load().server.clone());
    let places = Arc::new(Semaphore::new(limits.max_connections));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accept(&places, &listener.tcp) => accepted,
        };
        let (tcp, place) = match accepted {
            Ok(accepted) => accepted,
            // The client was gone before its turn came.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => continue,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(REST).await;
                continue;
            }
        };
        let _ = tcp.set_nodelay(true);
        let connection = Connection {
            tls: listener.tls.clone(),
            app: app.clone(),
            door,
            header_timeout: limits.header_timeout,
            write_timeout: limits.unread_timeout,
            streams: connections.clone(),
            stop: stop.clone(),
            force: force.clone(),
        };
        connections.spawn(async move {
            connection.serve(tcp).await;
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    let limit = app.config.load().server.drain_timeout;
    tokio::select! {
        drained = timeout(limit, connections.wait()) => if drained.is_err() {
            tracing::warn!(connections = connections.len(), "the drain's time is over; cutting what is left");
        },
        () = force.cancelled() => {}
    }
    force.cancel();
    // What was cut ends at its next step; nothing of it may keep the ledger from being closed.
    if timeout(LAST_STEPS, connections.wait()).await.is_err() {
        tracing::error!(tasks = connections.len(), "some requests did not end when they were cut");
    }
}

/// The next connection, once there is a place for it.
async fn accept(places: &Arc<Semaphore>, tcp: &TcpListener) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    Ok((tcp.accept().await?.0, place))
}

/// What one connection needs.
struct Connection {
    tls: Option<TlsAcceptor>,
    app: Arc<App>,
    door: Door,
    /// Bounds a TLS handshake, a request's head, and an idle connection.
    header_timeout: Duration,
    /// Bounds how long a client may leave what is sent to it unread.
    write_timeout: Duration,
    /// Where the tasks of HTTP/2's streams are tracked, so that a drain waits for them too.
    streams: TaskTracker,
    stop: CancellationToken,
    force: CancellationToken,
}

type Service = TowerToHyperService<stack::Stack>;

impl Connection {
    async fn serve(self, tcp: TcpStream) {
        let mut stream = TimeoutStream::new(tcp);
        stream.set_write_timeout(Some(self.write_timeout));
        let stream = Box::pin(stream);
        let alive = Arc::new(());
        let service = TowerToHyperService::new(stack::stack(&self.app, self.door, alive.clone()));
        match self.tls.clone() {
            None => self.http1(stream, service).await,
            // In a box, so that a plain connection does not take the memory of one with TLS or HTTP/2.
            Some(tls) => Box::pin(self.over_tls(tls, stream, service, alive)).await,
        }
    }

    async fn over_tls<S>(&self, tls: TlsAcceptor, stream: S, service: Service, alive: Arc<()>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let accepted = tokio::select! {
            accepted = timeout(self.header_timeout, tls.accept(stream)) => accepted,
            () = self.force.cancelled() => return,
        };
        let Ok(Ok(stream)) = accepted else { return };
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            self.http2(stream, service, alive).await;
        } else {
            self.http1(stream, service).await;
        }
    }

    async fn http1<S>(&self, stream: S, service: Service)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.header_timeout);
        let connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        self.until_end(connection, http1::Connection::graceful_shutdown, std::future::pending()).await;
    }

    async fn http2<S>(&self, stream: S, service: Service, alive: Arc<()>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http2::Builder::new(Tracked(self.streams.clone()));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(HTTP2_STREAMS)
            .keep_alive_interval(self.header_timeout)
            .keep_alive_timeout(self.header_timeout);
        let connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        self.until_end(connection, http2::Connection::graceful_shutdown, self.idle(alive)).await;
    }

    /// Ends when no request of a connection has been running at two looks in a row: a client cannot hold a place by doing nothing.
    async fn idle(&self, alive: Arc<()>) {
        // The service has one handle, this has another; every request in progress has one more.
        let mut quiet = 0;
        while quiet < 2 {
            sleep(self.header_timeout).await;
            quiet = if Arc::strong_count(&alive) > 2 { 0 } else { quiet + 1 };
        }
    }

    /// Runs a connection to its end; when told to stop it finishes what it has begun, when forced or idle it is dropped.
    async fn until_end<C>(
        &self,
        mut connection: Pin<&mut C>,
        finish: impl FnOnce(Pin<&mut C>),
        idle: impl Future<Output = ()>,
    ) where
        C: Future<Output = hyper::Result<()>>,
    {
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = idle => return,
            () = self.stop.cancelled() => {
                finish(connection.as_mut());
                tokio::select! {
                    result = connection.as_mut() => result,
                    () = self.force.cancelled() => return,
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended early");
        }
    }
}

/// Spawns the tasks of HTTP/2's streams where they are waited for.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}
