//! Clients that open a stream and do not read it: lease, backend and place are let go when the stream must end, whether or not anybody reads why.

use crate::edge::{https, tls, with_certificate};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{CHAT, streamed};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::metrics::Samples;
use tollkeeper_tests::setup::{ADMIN_KEY, Setup};
use tollkeeper_tests::upstream::{Content, Script, Upstream};
use tollkeeper_tests::wait::{eventually, within};

type Sender = SendRequest<Full<Bytes>>;

/// A connection over HTTP/2 whose streams begin with this window.
async fn connect(gateway: &Gateway, certificate: &CertificateDer<'static>, window: u32) -> Sender {
    let (stream, _) = tls(gateway.addr(), certificate.clone(), b"h2").await;
    let mut builder = Builder::new(TokioExecutor::new());
    let (sender, connection) =
        builder.initial_stream_window_size(window).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn to(path: &str, key: &str, body: &Value) -> Request<Full<Bytes>> {
    let mut request = https(body);
    *request.uri_mut() = format!("https://localhost{path}").parse().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

/// A stream that its client gives no window, so that not one byte of it can be sent; and the gateway and the provider behind it.
struct Unread {
    gateway: Gateway,
    upstream: Upstream,
    /// The run whose key was used.
    run: Value,
    /// A connection of somebody who reads.
    reader: Sender,
    _sender: Sender,
    _answer: Response<Incoming>,
}

impl Unread {
    async fn open(server: &str) -> Self {
        let upstream = Upstream::always(Script::says(Content::Endless)).await;
        let setup = Setup::with(&upstream).server("drain_timeout = \"100ms\"").server(server);
        let (setup, certificate) = with_certificate(setup);
        let gateway = Gateway::start(setup).await;
        let mut reader = connect(&gateway, &certificate, 1 << 20).await;
        let run = post(&mut reader, "/v1/runs", &json!({"agent": "scout"})).await;
        let mut sender = connect(&gateway, &certificate, 0).await;
        let ask = to(CHAT, run["key"].as_str().unwrap(), &streamed("up/plain"));
        let answer = within("the head of the answer", sender.send_request(ask)).await.unwrap();
        assert_eq!(answer.status(), 200);
        Self { gateway, upstream, run, reader, _sender: sender, _answer: answer }
    }

    async fn metrics(&mut self) -> Samples {
        let ask = Request::get("https://localhost/metrics").body(Full::default()).unwrap();
        let answer = within("the metrics", self.reader.send_request(ask)).await.unwrap();
        Samples::parse(std::str::from_utf8(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap())
    }

    /// Waits until the stream has let go of everything, while its client still holds it.
    async fn let_go(&mut self) {
        self.upstream.wait_for_disconnect().await;
        for held in ["tollkeeper_open_leases", "tollkeeper_in_flight_requests"] {
            eventually(held, async || (self.metrics().await.sum(held, &[]) == 0.0).then_some(())).await;
        }
    }
}

/// What the operator's request is answered with.
async fn post(sender: &mut Sender, path: &str, body: &Value) -> Value {
    let answer = within(path, sender.send_request(to(path, ADMIN_KEY, body))).await.unwrap();
    serde_json::from_slice(&within(path, answer.into_body().collect()).await.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn the_deadline_ends_a_stream_that_nobody_reads() {
    let mut unread = Unread::open("request_timeout = \"300ms\"").await;
    unread.let_go().await;
    assert!(unread.gateway.stop().await.total() > Usd(0));
}

#[tokio::test]
async fn a_client_may_leave_its_answer_unread_for_so_long() {
    let mut unread = Unread::open("unread_timeout = \"200ms\"").await;
    unread.let_go().await;
    let metrics = unread.metrics().await;
    assert_eq!(metrics.sum("tollkeeper_requests_total", &[("outcome", "client_gone")]), 1.0);
    assert!(unread.gateway.stop().await.total() > Usd(0));
}

#[tokio::test]
async fn a_cancelled_run_ends_its_stream_though_nobody_reads_it() {
    let mut unread = Unread::open("").await;
    let path = format!("/v1/runs/{}/cancel", unread.run["id"].as_str().unwrap());
    assert_eq!(post(&mut unread.reader, &path, &json!({})).await["status"], "cancelled");
    unread.let_go().await;
    assert_eq!(unread.metrics().await.sum("tollkeeper_requests_total", &[("outcome", "stopped")]), 1.0);
}

#[tokio::test]
async fn a_drain_ends_a_stream_that_nobody_reads() {
    let Unread { gateway, upstream, _sender, _answer, .. } = Unread::open("").await;
    let ledger = gateway.stop().await;
    assert_eq!((ledger.report.open, ledger.report.unknown, ledger.attempts("up/plain")), (0, 0, 1));
    upstream.wait_for_disconnect().await;
}

#[tokio::test]
async fn who_reads_after_the_end_learns_why() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    let run = gateway.client().post_json("/v1/runs", &json!({})).await.json();
    // The kernel takes some of it; then nobody pulls any more.
    let open = gateway.client().key(run["key"].as_str().unwrap()).stream(CHAT, &streamed("up/plain")).await;
    let cancel = format!("/v1/runs/{}/cancel", run["id"].as_str().unwrap());
    assert_eq!(gateway.client().post_json(&cancel, &json!({})).await.status, 200);
    upstream.wait_for_disconnect().await;
    gateway.settled().await;
    let rest = open.rest().await;
    assert!(rest.text().contains("run_cancelled") && rest.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_client_over_http_1_that_reads_nothing_is_let_go() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let gateway = Gateway::start(Setup::with(&upstream).server("unread_timeout = \"300ms\"")).await;
    let open = gateway.client().stream(CHAT, &streamed("up/plain")).await;
    upstream.wait_for_disconnect().await;
    gateway.settled().await;
    drop(open);
    assert!(gateway.stop().await.total() > Usd(0));
}
