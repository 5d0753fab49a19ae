//! One try: posts a body to a webhook and says what its answer means.

use super::body;
use super::queue::Parcel;
use super::signature::signature;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;
use rustls::ClientConfig;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::Webhook;

/// Longest pause that a receiver may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);
/// Bytes of an answer that are read, and characters of it that are shown: it may say what is wrong.
const MOST_READ: usize = 4096;
const MOST_SHOWN: usize = 200;
/// Idle connections are closed after this time.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to all receivers.
pub(super) type Client = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// What became of a try.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The receiver has it.
    Taken,
    /// It may take it later: why it did not, and how long it wants to be left alone.
    Again { why: String, asked: Option<Duration> },
    /// It will never take it.
    Never(String),
}

/// A client that trusts the roots of the web, over HTTP/1.1 and HTTP/2.
pub(super) fn client() -> Client {
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_webpki_roots()
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let https =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_all_versions().wrap_connector(tcp);
    legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build(https)
}

/// Posts a body within the webhook's time limit.
pub(super) async fn post(client: &Client, hook: &Webhook, parcel: &Parcel, body: Vec<u8>, now: Timestamp) -> Answer {
    let request = match request(hook, parcel, body, now) {
        Ok(request) => request,
        // Its text may hold the URL.
        Err(_) => return Answer::Never("the URL cannot be used".to_owned()),
    };
    let exchange = async {
        let response = client.request(request).await?;
        Ok::<_, legacy::Error>(judge(response, now).await)
    };
    match tokio::time::timeout(hook.timeout, exchange).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            let cause = std::iter::successors(error.source(), |cause| (**cause).source()).last();
            let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
            let what = if error.is_connect() { "no connection" } else { "the connection broke" };
            Answer::Again { why: format!("{what}: {cause}"), asked: None }
        }
        Err(_) => Answer::Again { why: format!("no answer within {:?}", hook.timeout), asked: None },
    }
}

fn request(hook: &Webhook, parcel: &Parcel, body: Vec<u8>, now: Timestamp) -> http::Result<Request<Full<Bytes>>> {
    let mut request = Request::post(hook.url.expose())
        .header("content-type", "application/json")
        .header("user-agent", concat!("tollkeeper/", env!("CARGO_PKG_VERSION")))
        .header("x-tollkeeper-event", body::event(parcel))
        .header("x-tollkeeper-notice-id", &*parcel.id);
    if let Some(secret) = &hook.secret {
        // Each try has its own time, so that receivers can refuse what is old: somebody may have kept it.
        request = request.header("x-tollkeeper-signature", signature(secret, now.as_second(), &body));
    }
    request.body(Full::new(body.into()))
}

/// What an answer means. Redirects are not followed: they would take what is said to whoever the receiver names.
async fn judge(response: Response<Incoming>, now: Timestamp) -> Answer {
    let (head, answer) = response.into_parts();
    let status = head.status;
    // Read even when it is of no interest, so that the connection can be used again.
    let said = Limited::new(answer, MOST_READ).collect().await.map(|said| said.to_bytes()).unwrap_or_default();
    if status.is_success() {
        return Answer::Taken;
    }
    let why = format!("answered {}{}", status.as_u16(), shown(&said));
    match status.as_u16() {
        408 | 429 | 500.. => Answer::Again { why, asked: retry_after(&head.headers, now) },
        _ => Answer::Never(why),
    }
}

/// The beginning of an answer, fit for a log.
fn shown(said: &[u8]) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = String::from_utf8_lossy(said).trim().chars().map(plain).take(MOST_SHOWN).collect();
    if text.is_empty() { text } else { format!(": {text}") }
}

/// The pause that an answer asks for, in seconds or until a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let asked = headers.get("retry-after")?.to_str().ok()?.trim();
    let pause = match asked.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = jiff::fmt::rfc2822::parse(asked).ok()?.timestamp();
            Duration::try_from(until.duration_since(now)).unwrap_or(Duration::ZERO)
        }
    };
    Some(pause.min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_may_ask_for_a_pause_of_an_hour_at_most() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let table = [
            ("7", Some(7)),
            ("0", Some(0)),
            ("86400", Some(3600)),
            ("Sat, 21 Nov 2026 12:00:30 GMT", Some(30)),
            ("Sat, 21 Nov 2026 11:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ];
        for (asked, seconds) in table {
            let headers = HeaderMap::from_iter([("retry-after".parse().unwrap(), asked.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{asked}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
