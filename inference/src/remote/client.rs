//! The HTTP client of one provider: pooled connections over rustls, HTTP/1.1 and HTTP/2, every wait bounded.

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::TcpStream;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// Pools of one provider. An HTTP/2 pool holds one connection, on which servers allow some 100 streams; more would wait unseen.
const POOLS: usize = 16;
/// Requests in flight in a pool before the next pool is used.
const POOL_SHARE: usize = 64;
/// Idle connections kept per pool (HTTP/1.1).
const IDLE_CONNECTIONS: usize = 64;
/// Idle connections are closed after this time; most servers close theirs later.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// What is read ahead of a slow reader: of an HTTP/1.1 answer, and of each HTTP/2 stream.
const READ_AHEAD: usize = 256 * 1024;
/// All streams of an HTTP/2 connection together; room for [`POOL_SHARE`] stalled streams and more, so that they cannot stop the others.
const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;
/// How often a busy HTTP/2 connection is pinged, and how long the answer may take.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Trust in the roots of the web, with ring's cryptography.
pub(super) fn tls() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_webpki_roots()
        .with_no_client_auth()
}

/// The client of one provider.
#[derive(Debug)]
pub(super) struct HttpClient {
    pools: Vec<Pool>,
}

#[derive(Debug)]
struct Pool {
    client: Client<BoundedConnector, Full<Bytes>>,
    in_flight: AtomicUsize,
}

/// A place in a pool; held until the answer ends.
#[derive(Debug)]
pub(super) struct Place {
    client: Arc<HttpClient>,
    pool: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.client.pools[self.pool].in_flight.fetch_sub(1, Relaxed);
    }
}

impl HttpClient {
    /// A client that connects, TLS handshake included, within `connect_timeout`.
    pub(super) fn new(tls: ClientConfig, connect_timeout: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        let https =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_all_versions().wrap_connector(tcp);
        let connector = BoundedConnector { https, limit: connect_timeout };
        let pool = || Pool { client: builder().build(connector.clone()), in_flight: AtomicUsize::new(0) };
        Self { pools: std::iter::repeat_with(pool).take(POOLS).collect() }
    }

    /// Sends a request and waits for the response head.
    pub(super) async fn send(
        self: &Arc<Self>,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Place), legacy::Error> {
        let place = self.place();
        let response = self.pools[place.pool].client.request(request).await?;
        Ok((response, place))
    }

    /// The first pool with room, so that few connections serve many requests; else the emptiest.
    fn place(self: &Arc<Self>) -> Place {
        let load = |pool: &usize| self.pools[*pool].in_flight.load(Relaxed);
        let pool =
            (0..POOLS).find(|pool| load(pool) < POOL_SHARE).or_else(|| (0..POOLS).min_by_key(load)).unwrap_or_default();
        self.pools[pool].in_flight.fetch_add(1, Relaxed);
        Place { client: self.clone(), pool }
    }
}

fn builder() -> legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http1_max_buf_size(READ_AHEAD)
        .http2_initial_stream_window_size(READ_AHEAD as u32)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING.0)
        .http2_keep_alive_timeout(PING.1);
    builder
}

/// Bounds the whole way to a usable connection: name look-up, TCP and TLS.
#[derive(Debug, Clone)]
struct BoundedConnector {
    https: HttpsConnector<HttpConnector>,
    limit: Duration,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl tower::Service<Uri> for BoundedConnector {
    type Response = MaybeHttpsStream<TokioIo<TcpStream>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(self.limit, self.https.call(uri));
        let limit = self.limit;
        Box::pin(async move {
            connecting.await.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}")).into())
            })
        })
    }
}

/// Whether a time limit, ours or the system's, was behind a failure.
pub(super) fn timed_out(error: &legacy::Error) -> bool {
    std::iter::successors(error.source(), |cause| (**cause).source())
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut))
}

/// What a failure to get a response head means.
pub(super) fn fault(provider: &str, error: &legacy::Error) -> ProviderFault {
    let causes = || std::iter::successors(error.source(), |cause| (**cause).source());
    // A provider that was never reached has not worked, however long that took to find out.
    let kind = if timed_out(error) && !error.is_connect() { FaultKind::Timeout } else { FaultKind::Connection };
    let cause = causes().last().map_or_else(|| error.to_string(), ToString::to_string);
    let message = if error.is_connect() {
        format!("cannot connect to the provider `{provider}`: {cause}")
    } else {
        format!("the connection to the provider `{provider}` broke before its answer began: {cause}")
    };
    ProviderFault::new(kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_pools_are_filled_evenly() {
        let client = Arc::new(HttpClient::new(tls(), Duration::from_secs(1)));
        let places: Vec<_> = (0..POOLS * POOL_SHARE + 2 * POOLS).map(|_| client.place()).collect();
        let mut loads = [0; POOLS];
        places.iter().for_each(|place| loads[place.pool] += 1);
        assert_eq!(loads, [POOL_SHARE + 2; POOLS]);
        drop(places);
        let places: Vec<_> = (0..POOL_SHARE + 1).map(|_| client.place()).collect();
        assert!(places[..POOL_SHARE].iter().all(|place| place.pool == 0));
        assert_eq!(places[POOL_SHARE].pool, 1);
    }
}
