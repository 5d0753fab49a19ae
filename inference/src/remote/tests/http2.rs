//! HTTP/2 over TLS, chosen by ALPN.

use super::*;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame as BodyFrame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

fn ring() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server's settings and those of a client that trusts it.
fn certified() -> (ServerConfig, ClientConfig) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let mut server = ServerConfig::builder_with_provider(ring())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let client = ClientConfig::builder_with_provider(ring())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server, client)
}

/// An HTTP/2 server that sends the first frame of every stream and keeps it open until `release` has a permit for it.
struct Server {
    url: String,
    heads: mpsc::UnboundedReceiver<(http::Version, String)>,
    connections: Arc<AtomicUsize>,
    /// Streams whose body was dropped: answered to the end, or reset.
    ended: Arc<Semaphore>,
    release: Arc<Semaphore>,
}

async fn server(config: ServerConfig) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/v1", listener.local_addr().unwrap().port());
    let (heads, receiver) = mpsc::unbounded_channel();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let server = Server {
        url,
        heads: receiver,
        connections: Arc::default(),
        ended: Arc::new(Semaphore::new(0)),
        release: Arc::new(Semaphore::new(0)),
    };
    let (connections, ended, release) = (server.connections.clone(), server.ended.clone(), server.release.clone());
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            connections.fetch_add(1, Relaxed);
            let (heads, ended, release) = (heads.clone(), ended.clone(), release.clone());
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let _ = heads.send((request.version(), request.uri().to_string()));
                let (ended, release) = (ended.clone(), release.clone());
                async move { Ok::<_, Infallible>(Response::new(open_stream(ended, release).boxed_unsync())) }
            });
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(100)
                .serve_connection(TokioIo::new(tls), service);
            tokio::spawn(serving);
        }
    });
    server
}

/// Adds a permit when it is dropped.
struct OnDrop(Arc<Semaphore>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

fn open_stream(
    ended: Arc<Semaphore>,
    release: Arc<Semaphore>,
) -> impl hyper::body::Body<Data = Bytes, Error = Infallible> {
    let frame = |text: String| Ok(BodyFrame::data(Bytes::from(text)));
    let first = futures_util::stream::once(async move { frame(super::upstream::text("a")) });
    let rest = futures_util::stream::once(async move {
        let _ended = OnDrop(ended);
        release.acquire().await.unwrap().forget();
        frame([super::upstream::FINISH, super::upstream::DONE].concat())
    });
    StreamBody::new(first.chain(rest))
}

fn trusting(url: &str, tls: &ClientConfig) -> Remote {
    Remote::new(Arc::new(provider(url)), tls, &tokio::runtime::Handle::current())
}

#[tokio::test]
async fn streams_share_a_connection_and_are_reset_one_by_one() {
    let (server_tls, client_tls) = certified();
    let mut server = server(server_tls).await;
    let remote = trusting(&server.url, &client_tls);
    let mut kept = frames(send(&remote, call(STREAM)).await.unwrap());
    let dropped = frames(send(&remote, call(STREAM)).await.unwrap());
    for _ in 0..2 {
        let (version, uri) = server.heads.recv().await.unwrap();
        assert_eq!((version, uri), (http::Version::HTTP_2, format!("{}/chat/completions", server.url)));
    }
    assert_eq!(server.connections.load(Relaxed), 1);
    drop(dropped);
    server.ended.acquire().await.unwrap().forget();
    assert!(kept.next().await.unwrap().is_ok());
    server.release.add_permits(1);
    let (raw, fault, _) = read_out(kept).await;
    assert_eq!((raw, fault), ([super::upstream::FINISH, super::upstream::DONE].concat(), None));
}

#[tokio::test]
async fn more_streams_than_a_connection_carries_do_not_wait() {
    let (server_tls, client_tls) = certified();
    let server = server(server_tls).await;
    let remote = trusting(&server.url, &client_tls);
    // One connection would let 100 of them through.
    let mut open = Vec::new();
    for _ in 0..150 {
        open.push(frames(send(&remote, call(STREAM)).await.unwrap()));
    }
    assert_eq!((remote.state().in_flight, server.connections.load(Relaxed)), (150, 3));
    server.release.add_permits(150);
    for stream in open {
        assert_eq!(read_out(stream).await.1, None);
    }
    assert_eq!(remote.state().in_flight, 0);
}

#[tokio::test]
async fn an_unknown_certificate_is_refused() {
    let (server_tls, _) = certified();
    let server = server(server_tls).await;
    let fault = fault_of(&remote(provider(&server.url)), UNARY).await;
    assert_eq!(fault.kind, FaultKind::Connection);
    assert!(fault.message.contains("certificate") && fault.message.contains("UnknownIssuer"), "{fault}");
}
