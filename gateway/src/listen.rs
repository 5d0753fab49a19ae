//! Accepts connections, ends TLS, serves HTTP on each, and drains them all.

use crate::app::{App, StartError};
use crate::stack;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tollkeeper_config::settings::{Server, Tls};

/// Connections that the system may hold while we are busy.
const BACKLOG: i32 = 1024;
/// How long to rest when the system refuses a connection (no file descriptor left, for instance).
const REST: Duration = Duration::from_millis(50);
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
    pub(crate) fn bind(server: &Server) -> Result<Self, StartError> {
        let addr = server.listen;
        let failed = |reason| StartError::Listen { addr, reason };
        let socket = if addr.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() };
        let socket = socket.map_err(failed)?;
        socket.set_reuseaddr(true).map_err(failed)?;
        socket.bind(addr).map_err(failed)?;
        let tcp = socket.listen(BACKLOG.unsigned_abs()).map_err(failed)?;
        let tls = server.tls.as_ref().map(acceptor).transpose()?;
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
pub(crate) async fn serve(app: Arc<App>, listener: Listener, stop: CancellationToken, force: CancellationToken) {
    let (connections, limits) = (TaskTracker::new(), app.config.load().server.clone());
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let service = stack::stack(&app);
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.tcp.accept() => accepted,
        };
        let Ok((tcp, _)) = accepted else {
            tokio::time::sleep(REST).await;
            continue;
        };
        let _ = tcp.set_nodelay(true);
        let (tls, service) = (listener.tls.clone(), TowerToHyperService::new(service.clone()));
        let ending = Ending { stop: stop.clone(), force: force.clone() };
        let header_timeout = limits.header_timeout;
        connections.spawn(async move {
            connection(tcp, tls, service, header_timeout, ending).await;
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
    connections.wait().await;
}

/// The two ways in which connections are told to end.
struct Ending {
    stop: CancellationToken,
    force: CancellationToken,
}

type Service = TowerToHyperService<stack::Stack>;

async fn connection(
    tcp: TcpStream,
    tls: Option<TlsAcceptor>,
    service: Service,
    header_timeout: Duration,
    ending: Ending,
) {
    let Some(tls) = tls else { return http1(tcp, service, header_timeout, ending).await };
    // A handshake is as much of a head as a request's own.
    let Ok(Ok(stream)) = timeout(header_timeout, tls.accept(tcp)).await else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        http2(stream, service, header_timeout, ending).await;
    } else {
        http1(stream, service, header_timeout, ending).await;
    }
}

async fn http1<S>(stream: S, service: Service, header_timeout: Duration, ending: Ending)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(header_timeout);
    let connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    until_end(connection, http1::Connection::graceful_shutdown, ending).await;
}

async fn http2<S>(stream: S, service: Service, keep_alive: Duration, ending: Ending)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .keep_alive_interval(keep_alive)
        .keep_alive_timeout(keep_alive);
    let connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    until_end(connection, http2::Connection::graceful_shutdown, ending).await;
}

/// Runs a connection to its end; when told to stop it finishes what it has begun, when forced it is dropped.
async fn until_end<C>(mut connection: Pin<&mut C>, finish: impl FnOnce(Pin<&mut C>), ending: Ending)
where
    C: Future<Output = hyper::Result<()>>,
{
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = ending.stop.cancelled() => {
            finish(connection.as_mut());
            tokio::select! {
                result = connection.as_mut() => result,
                () = ending.force.cancelled() => return,
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended early");
    }
}
