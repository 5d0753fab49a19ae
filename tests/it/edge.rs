//! The edge: sizes, slow clients, too many clients, TLS, CORS. What a hostile or clumsy client does meets a bound.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::client::Client;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::{KEY, Setup, due};
use tollkeeper_tests::upstream::{Fault, Gate, Hold, Script, Upstream};
use tollkeeper_tests::wait::{eventually, within};

/// A connection below HTTP that has sent this.
async fn raw(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// All that comes until the server closes the connection.
async fn until_closed(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end too.
    let _read = within("the server's end of the connection", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn post_head(more: &str) -> String {
    format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn a_body_above_the_limit_is_413_and_leases_nothing() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    // So much is announced that it is not worth reading: refused before it is sent.
    let head = post_head("content-length: 999999999\r\nconnection: close\r\n");
    let answer = until_closed(raw(gateway.addr(), head.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let body: Value = serde_json::from_str(answer.rsplit("\r\n\r\n").next().unwrap()).unwrap();
    assert_eq!(body["error"]["type"], "invalid_request_error");
    assert!(body["error"]["message"].as_str().unwrap().contains("33554432"), "it names the limit: {body}");

    // And sent without being announced.
    let gateway_small = Gateway::start(Setup::with(&upstream).server("body_limit = \"1KiB\"")).await;
    let mut chunked = post_head("transfer-encoding: chunked\r\nconnection: close\r\n");
    for _ in 0..3 {
        chunked.push_str(&format!("200\r\n{}\r\n", " ".repeat(0x200)));
    }
    chunked.push_str("0\r\n\r\n");
    let answer = until_closed(raw(gateway_small.addr(), chunked.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");

    // Just below the limit is fine.
    let mut ask = chat("up/plain");
    ask["messages"][0]["content"] = json!("x".repeat(800));
    assert_eq!(gateway_small.client().post_json(CHAT, &ask).await.status, 200);
    assert_eq!(upstream.received().len(), 1);
    assert_eq!(gateway.stop().await.report.intents, 0);
}

#[tokio::test]
async fn a_client_that_sends_33_mib_gets_to_see_the_answer() {
    let gateway = Gateway::start(Setup::with(&Upstream::start().await)).await;
    let answer = gateway.client().post(CHAT, vec![b' '; 33 << 20]).await;
    assert_eq!((answer.status, &answer.error()["code"]), (413, &json!("request_too_large")));
    assert_eq!(gateway.client().get("/health/live").await.status, 200);
}

#[tokio::test]
async fn slow_clients_are_let_go() {
    let setup =
        Setup::with(&Upstream::start().await).server("header_timeout = \"200ms\"").server("body_timeout = \"200ms\"");
    let gateway = Gateway::start(setup).await;
    // Nothing at all, half a head, half a body.
    until_closed(raw(gateway.addr(), b"").await).await;
    let answer =
        until_closed(raw(gateway.addr(), b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauth").await).await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    let half = post_head("content-length: 100\r\n") + "{\"model\":";
    let answer = until_closed(raw(gateway.addr(), half.as_bytes()).await).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("\"error\""), "{answer}");
    assert_eq!(gateway.metrics().await.sum("tollkeeper_in_flight_requests", &[]), 0.0);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_sends_leaves_nothing_behind() {
    let gateway = Gateway::start(Setup::with(&Upstream::start().await)).await;
    let half = post_head("content-length: 100\r\n") + "{\"model\":";
    drop(raw(gateway.addr(), half.as_bytes()).await);
    eventually("no request in flight", async || {
        (gateway.metrics().await.sum("tollkeeper_in_flight_requests", &[]) == 0.0).then_some(())
    })
    .await;
    assert_eq!(gateway.stop().await.report.intents, 0);
}

#[tokio::test]
async fn what_is_not_http_is_let_go() {
    let gateway = Gateway::start(Setup::new()).await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET /\r\n\r\n",
    ] {
        let answer = until_closed(raw(gateway.addr(), bytes).await).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 5"), "{answer}");
    }
    let many_headers = format!("GET /health/live HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(5_000));
    let answer = until_closed(raw(gateway.addr(), many_headers.as_bytes()).await).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(gateway.client().get("/health/live").await.status, 200);
}

#[tokio::test]
async fn a_client_may_ask_before_it_sends() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    let body = chat("up/plain").to_string();
    let head = post_head(&format!("expect: 100-continue\r\ncontent-length: {}\r\nconnection: close\r\n", body.len()));
    let mut stream = raw(gateway.addr(), head.as_bytes()).await;
    let mut go = [0; 25];
    within("100 Continue", stream.read_exact(&mut go)).await.unwrap();
    assert!(go.starts_with(b"HTTP/1.1 100"));
    stream.write_all(body.as_bytes()).await.unwrap();
    let answer = until_closed(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn too_many_requests_at_once_are_shed_with_a_time_to_come_back() {
    let gate = Gate::default();
    let upstream = Upstream::always(Script::default().with_hold(Hold::Head(gate.clone()))).await;
    let gateway = Gateway::start(Setup::with(&upstream).server("max_in_flight = 2")).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..2 {
        let client = gateway.client();
        waiting.spawn(async move { client.post_json(CHAT, &chat("up/plain")).await.status });
    }
    upstream.wait_for_requests(2).await;
    let shed = gateway.client().post_json(CHAT, &chat("up/plain")).await;
    assert_eq!((shed.status, &shed.error()["code"]), (503, &json!("overloaded")));
    assert!(shed.header("retry-after").parse::<u64>().unwrap() >= 1, "{:?}", shed.headers);
    // Who watches the gateway is not shed.
    assert_eq!(Client::new(gateway.addr()).get("/health/live").await.status, 200);
    assert_eq!(gateway.metrics().await.sum("tollkeeper_shed_total", &[]), 1.0);
    gate.open_wide();
    assert_eq!(waiting.join_all().await, [200, 200]);
    assert_eq!(gateway.client().post_json(CHAT, &chat("up/plain")).await.status, 200);
}

#[tokio::test]
async fn streams_count_as_in_flight_to_their_end() {
    let gate = Gate::default();
    let upstream = Upstream::always(Script::default().with_hold(Hold::Frames(gate.clone()))).await;
    let gateway = Gateway::start(Setup::with(&upstream).server("max_in_flight = 1")).await;
    gate.open(1);
    let open = gateway.client().stream(CHAT, &streamed("up/plain")).await;
    assert_eq!(gateway.client().post_json(CHAT, &chat("up/plain")).await.status, 503);
    gate.open_wide();
    assert_eq!(open.rest().await.events().last().unwrap(), "[DONE]");
    assert_eq!(gateway.client().post_json(CHAT, &chat("up/plain")).await.status, 200);
}

#[tokio::test]
async fn a_request_that_lives_too_long_ends() {
    for fault in [Fault::StallBeforeHead, Fault::StallAfter(2)] {
        let upstream = Upstream::always(Script::fault(fault.clone())).await;
        let gateway = Gateway::start(Setup::with(&upstream).server("request_timeout = \"300ms\"")).await;
        let answer = gateway.client().post_json(CHAT, &streamed("up/plain")).await;
        if fault == Fault::StallBeforeHead {
            assert_eq!(answer.status, 504, "{}", answer.text());
        } else {
            assert!(answer.events().last().unwrap().contains("\"error\""), "{}", answer.text());
        }
        upstream.wait_for_disconnect().await;
        gateway.settled().await;
        let outcomes = gateway.metrics().await;
        let outcomes = outcomes.values("tollkeeper_requests_total", "outcome");
        assert!(!outcomes.contains("client_gone") && outcomes.len() == 1, "{fault:?}: {outcomes:?}");
        assert!(gateway.stop().await.total() > Usd(0) || fault == Fault::StallBeforeHead);
    }
}

#[tokio::test]
async fn browsers_are_let_in_only_when_that_is_configured() {
    let preflight = async |gateway: &Gateway, origin: &str| {
        let client =
            Client::new(gateway.addr()).header("origin", origin).header("access-control-request-method", "POST");
        client
            .header("access-control-request-headers", "authorization,content-type")
            .open(http::Method::OPTIONS, CHAT, "")
            .await
            .rest()
            .await
    };
    let upstream = Upstream::start().await;
    let closed = Gateway::start(Setup::with(&upstream)).await;
    assert_eq!(preflight(&closed, "https://app.example").await.header("access-control-allow-origin"), "");

    let open = Gateway::start(Setup::with(&upstream).server("cors_origins = [\"https://app.example\"]")).await;
    let answer = preflight(&open, "https://app.example").await;
    assert!([200, 204].contains(&answer.status));
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example");
    assert!(answer.header("access-control-allow-headers").to_ascii_lowercase().contains("authorization"));
    assert_eq!(preflight(&open, "https://evil.example").await.header("access-control-allow-origin"), "");
    let answer = open.client().header("origin", "https://app.example").post_json(CHAT, &chat("up/plain")).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "https://app.example"));
    // Errors too, or a browser shows nothing of them.
    let answer =
        Client::new(open.addr()).header("origin", "https://app.example").post_json(CHAT, &chat("up/plain")).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (401, "https://app.example"));
}

/// A set-up with a certificate for `localhost`, and that certificate.
pub(crate) fn with_certificate(setup: Setup) -> (Setup, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(setup.path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(setup.path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let files = format!("tls = {{ cert = {:?}, key = {:?} }}", setup.path("cert.pem"), setup.path("key.pem"));
    (setup.server(&files), made.cert.der().clone())
}

/// A TLS connection that offers this protocol, and the one that was agreed on.
pub(crate) async fn tls(
    addr: SocketAddr,
    trusted: CertificateDer<'static>,
    offer: &[u8],
) -> (tokio_rustls::client::TlsStream<TcpStream>, Vec<u8>) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![offer.to_vec()];
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = within("the TLS handshake", tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream))
        .await
        .unwrap();
    let agreed = stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
    (stream, agreed)
}

pub(crate) fn https(body: &Value) -> Request<Full<Bytes>> {
    let request = Request::post(format!("https://localhost{CHAT}")).header("authorization", format!("Bearer {KEY}"));
    request.header("content-type", "application/json").body(Full::new(Bytes::from(body.to_string()))).unwrap()
}

#[tokio::test]
async fn tls_speaks_http_2_and_http_1_by_alpn() {
    let upstream = Upstream::start().await;
    let (setup, certificate) = with_certificate(Setup::with(&upstream));
    let gateway = Gateway::start(setup).await;

    let (stream, agreed) = tls(gateway.addr(), certificate.clone(), b"h2").await;
    assert_eq!(agreed, b"h2");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // Ten requests share the connection, whole and streamed.
    let mut asks = tokio::task::JoinSet::new();
    for number in 0..10 {
        let mut sender = sender.clone();
        let ask = if number % 2 == 0 { chat("up/plain") } else { streamed("up/plain") };
        asks.spawn(async move {
            let answer = sender.send_request(https(&ask)).await.unwrap();
            (answer.status().as_u16(), answer.into_body().collect().await.unwrap().to_bytes())
        });
    }
    let answers = within("ten answers over HTTP/2", asks.join_all()).await;
    assert!(answers.iter().all(|(status, body)| *status == 200 && body.windows(4).any(|window| window == b"004 ")));

    let (stream, agreed) = tls(gateway.addr(), certificate.clone(), b"http/1.1").await;
    assert_eq!(agreed, b"http/1.1");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(
        within("an answer over TLS", sender.send_request(https(&chat("up/plain")))).await.unwrap().status(),
        200
    );

    // A client without TLS is let go.
    let plain = until_closed(raw(gateway.addr(), b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").await).await;
    assert!(!plain.contains("200 OK"), "{plain}");
}

#[tokio::test]
async fn connections_that_do_nothing_end() {
    let (setup, certificate) = with_certificate(Setup::new().server("header_timeout = \"100ms\""));
    let gateway = Gateway::start(setup).await;
    // A handshake that never comes.
    until_closed(raw(gateway.addr(), b"").await).await;
    // An HTTP/2 connection without a request.
    let (stream, _) = tls(gateway.addr(), certificate, b"h2").await;
    let (sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let _ended = within("the end of an idle connection", connection).await;
    drop(sender);
}

#[tokio::test]
async fn a_drain_waits_for_streams_over_http_2() {
    let gate = Gate::default();
    let upstream = Upstream::always(Script::default().with_hold(Hold::Frames(gate.clone()))).await;
    let (setup, certificate) = with_certificate(Setup::with(&upstream));
    let gateway = Gateway::start(setup).await;
    let (stream, _) = tls(gateway.addr(), certificate, b"h2").await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    gate.open(1);
    let answer = within("the head of the answer", sender.send_request(https(&streamed("up/plain")))).await.unwrap();
    let drained = tokio::spawn(gateway.stop());
    gate.open_wide();
    let body = within("the rest of the stream", answer.into_body().collect()).await.unwrap().to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"));
    drop(sender);
    assert_eq!(drained.await.unwrap().total(), due(&upstream));
}

#[tokio::test]
async fn a_reset_http_2_stream_stops_the_provider() {
    let upstream = Upstream::always(Script::fault(Fault::StallAfter(2))).await;
    let (setup, certificate) = with_certificate(Setup::with(&upstream));
    let gateway = Gateway::start(setup).await;
    let (stream, _) = tls(gateway.addr(), certificate.clone(), b"h2").await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = within("the head of the answer", sender.send_request(https(&streamed("up/plain")))).await.unwrap();
    drop(answer);
    upstream.wait_for_disconnect().await;
    // The connection itself lives on.
    let health = Request::get("https://localhost/health/live").body(Full::default()).unwrap();
    assert_eq!(within("another answer", sender.send_request(health)).await.unwrap().status(), 200);
    drop(sender);
    let ledger = gateway.stop().await;
    assert_eq!((ledger.attempts("up/plain"), ledger.report.open), (1, 0));
}
