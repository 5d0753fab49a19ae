//! Every fault a provider can have: the client gets an answer that says what happened, nothing hangs, and the money is right.

use bytes::Bytes;
use serde_json::{Value, json};
use tollkeeper_config::Usd;
use tollkeeper_protocol::usage::Usage;
use tollkeeper_tests::asks::{CHAT, chat, streamed, streamed_with_usage};
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::{Setup, cost, due};
use tollkeeper_tests::upstream::raw::{Act, RawUpstream};
use tollkeeper_tests::upstream::{Content, Fault, Gate, Hold, Script, Upstream, UsageRule, word};
use tollkeeper_tests::wait::eventually;

const IMPATIENT: &str =
    "max_attempts = 1\nfirst_byte_timeout = \"300ms\"\nidle_timeout = \"300ms\"\nconnect_timeout = \"300ms\"";

/// A gateway in front of this URL that tries once and waits 300 ms.
async fn gateway(url: &str) -> Gateway {
    Gateway::start(Setup::new().provider("up", url, IMPATIENT)).await
}

/// An error of the provider's making, as the client sees it.
fn check_error(answer: &Answer, status: u16, code: Option<&str>, what: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text());
    let error = answer.error();
    assert_eq!(error["code"].as_str(), code, "{what}: {error}");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("up/") || message.contains("`up`"),
        "{what}: it does not say whose fault it is: {message}"
    );
    assert!(!answer.header("x-tollkeeper-request-id").is_empty(), "{what}: no request id");
    assert!(!answer.text().contains("sk-up"), "{what}: the key is shown");
}

/// What the provider does before its first frame, and the status and code the client gets for it.
fn before_the_first_byte() -> Vec<(Script, u16, Option<&'static str>)> {
    let status = |status| Script::status(status);
    vec![
        (status(400), 400, None),
        (status(401), 502, Some("provider_auth")),
        (status(403), 502, Some("provider_auth")),
        (status(404), 404, Some("model_not_found")),
        (status(408), 504, Some("provider_timeout")),
        (status(422), 400, None),
        (
            Script::fault(Fault::Status { status: 429, retry_after: Some(7), code: Some("rate_limit_exceeded") }),
            429,
            Some("rate_limit_exceeded"),
        ),
        (status(500), 502, Some("provider_error")),
        (status(503), 503, Some("overloaded")),
        (Script::fault(Fault::Html(502)), 502, Some("provider_error")),
        (Script::fault(Fault::Empty(500)), 502, Some("provider_error")),
        (Script::fault(Fault::HugeError(3 << 20)), 400, None),
        (Script::fault(Fault::CloseBeforeHead), 502, Some("provider_connection")),
        (Script::fault(Fault::CloseBeforeFirstFrame), 502, Some("provider_connection")),
        (Script::fault(Fault::StallBeforeHead), 504, Some("provider_timeout")),
        (Script::fault(Fault::StallBeforeFirstFrame), 504, Some("provider_timeout")),
        (Script::fault(Fault::ErrorFirst), 502, Some("provider_error")),
        (Script::fault(Fault::NotJson), 502, Some("provider_malformed")),
    ]
}

#[tokio::test]
async fn a_fault_before_the_first_byte_is_an_error_and_not_charged_as_an_answer() {
    let upstream = Upstream::start().await;
    let gateway = gateway(&upstream.url()).await;
    for (script, status, code) in before_the_first_byte() {
        for mut ask in [chat("up/plain"), streamed("up/plain")] {
            ask["max_tokens"] = json!(40);
            upstream.next(script.clone());
            let answer = gateway.client().post_json(CHAT, &ask).await;
            let what = format!("{:?}, stream {}", script.fault, ask["stream"]);
            check_error(&answer, status, code, &what);
        }
    }
    gateway.settled().await;
    let ledger = gateway.stop().await;
    assert_eq!(ledger.attempts("up/plain"), 2 * before_the_first_byte().len() as u64, "each attempt is recorded");
    // Who said nothing until the patience ended, or began an answer and did not end it, may bill a whole answer that nobody saw, and what
    // a stream was asked. All others did nothing.
    let may_bill = |(script, status, _): &&(Script, u16, _)| {
        let began = matches!(script.fault, Some(Fault::CloseBeforeFirstFrame | Fault::NotJson));
        *status == 504 || began
    };
    let many = before_the_first_byte().iter().filter(may_bill).count() as i64;
    let most = cost(&Usage { input: 60, output: 40, ..Usage::default() });
    assert!(ledger.total() <= Usd(many * most.0), "{} charged for nothing", ledger.total());
    assert!(
        ledger.total() >= cost(&Usage { output: 40, ..Usage::default() }),
        "{} for what may be billed",
        ledger.total()
    );
}

#[tokio::test]
async fn a_rate_limit_says_when_to_come_back() {
    let upstream =
        Upstream::always(Script::fault(Fault::Status { status: 429, retry_after: Some(7), code: None })).await;
    let gateway = gateway(&upstream.url()).await;
    let answer = gateway.client().post_json(CHAT, &chat("up/plain")).await;
    assert_eq!(answer.header("retry-after"), "7");
    assert_ne!(answer.header("x-should-retry"), "false");
}

#[tokio::test]
async fn a_provider_that_asks_for_a_long_wait_is_not_asked_again() {
    let upstream =
        Upstream::always(Script::fault(Fault::Status { status: 429, retry_after: Some(60), code: None })).await;
    let gateway = Gateway::start(Setup::new().provider("up", &upstream.url(), "max_attempts = 5")).await;
    let answer = gateway.client().post_json(CHAT, &chat("up/plain")).await;
    assert_eq!((answer.status, answer.header("retry-after"), upstream.received().len()), (429, "60", 1));
}

#[tokio::test]
async fn no_connection_is_an_error() {
    let gateway = gateway(&format!("http://{}/v1", Upstream::refusing().await)).await;
    check_error(
        &gateway.client().post_json(CHAT, &chat("up/plain")).await,
        502,
        Some("provider_connection"),
        "refused",
    );
    check_error(
        &gateway.client().post_json(CHAT, &streamed("up/plain")).await,
        502,
        Some("provider_connection"),
        "refused",
    );
    assert_eq!(gateway.stop().await.total(), Usd(0));
}

#[tokio::test]
async fn what_is_not_http_is_an_error() {
    let send = |text: &'static str| Act::Send(Bytes::from_static(text.as_bytes()));
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{\"choices\":";
    let chunked = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n";
    let cases = [
        ("garbage", vec![send("SSH-2.0-OpenSSH_9.6\r\n")]),
        ("half a head", vec![send("HTTP/1.1 200 OK\r\ncontent-ty")]),
        ("a reset", vec![Act::Reset]),
        ("half a body", vec![send(head)]),
        ("a reset in the body", vec![send(head), Act::Reset]),
        ("a broken chunk", vec![send(chunked)]),
        ("a body that stalls", vec![send(head), Act::Stall]),
    ];
    for (what, acts) in cases {
        let upstream = RawUpstream::start(acts).await;
        let gateway = gateway(&upstream.url()).await;
        for ask in [chat("up/plain"), streamed("up/plain")] {
            let answer = gateway.client().post_json(CHAT, &ask).await;
            assert!([502, 504].contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
            assert!(answer.error()["message"].as_str().unwrap().contains("up"), "{what}");
        }
        gateway.settled().await;
    }
}

/// The words that came before an error event, and that event.
fn broken_stream(answer: &Answer) -> (String, Option<Value>) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.text().contains("[DONE]"), "a broken stream must not look finished");
    let events: Vec<Value> =
        answer.events().iter().map(|data| serde_json::from_str(data).unwrap_or_default()).collect();
    let words = events.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    let error = events.last().and_then(|event| event.get("error").cloned());
    (words, error)
}

#[tokio::test]
async fn a_fault_in_the_middle_of_a_stream_ends_it_with_an_error_and_charges_what_was_delivered() {
    // After the role's frame and three words.
    for fault in [Fault::DieAfter(4), Fault::StallAfter(4), Fault::ErrorAfter(4)] {
        let upstream = Upstream::always(Script::words(50).with_fault(fault.clone())).await;
        let gateway = gateway(&upstream.url()).await;
        let answer = gateway.client().post_json(CHAT, &streamed("up/plain")).await;
        let (words, error) = broken_stream(&answer);
        assert_eq!(words, word(0) + &word(1) + &word(2), "{fault:?}");
        let error =
            error.unwrap_or_else(|| panic!("{fault:?}: the stream ends without an error event: {}", answer.text()));
        assert!(error["message"].as_str().unwrap().contains("up"), "{fault:?}: {error}");
        gateway.settled().await;
        assert_eq!(gateway.metrics().await.sum("tollkeeper_in_flight_requests", &[]), 0.0);

        let charged = gateway.stop().await.total();
        let delivered = cost(&Usage { input: 1, output: 3, ..Usage::default() });
        let generous = cost(&Usage { input: 100, output: 20, ..Usage::default() });
        assert!(
            delivered <= charged && charged <= generous,
            "{fault:?}: {charged} is not between {delivered} and {generous}"
        );
    }
}

#[tokio::test]
async fn a_whole_answer_that_breaks_is_charged() {
    for fault in [Fault::DieAfter(0), Fault::StallAfter(0)] {
        let upstream = Upstream::always(Script::words(50).with_fault(fault.clone())).await;
        let gateway = gateway(&upstream.url()).await;
        let answer = gateway.client().post_json(CHAT, &chat("up/plain")).await;
        assert!([502, 504].contains(&answer.status), "{fault:?}: {}", answer.text());
        gateway.settled().await;
        assert!(gateway.stop().await.total() > Usd(0), "{fault:?}: the provider did the work and bills it");
    }
}

#[tokio::test]
async fn the_provider_is_let_go_when_it_stalls() {
    let upstream = Upstream::always(Script::fault(Fault::StallAfter(2))).await;
    let gateway = gateway(&upstream.url()).await;
    gateway.client().post_json(CHAT, &streamed("up/plain")).await;
    upstream.wait_for_disconnect().await;
}

#[tokio::test]
async fn a_bad_line_does_not_end_a_stream() {
    let upstream = Upstream::always(Script::fault(Fault::BadLineAfter(3))).await;
    let gateway = gateway(&upstream.url()).await;
    let answer = gateway.client().post_json(CHAT, &streamed_with_usage("up/plain")).await;
    assert!(answer.text().contains(&word(4)), "{}", answer.text());
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
    assert_eq!(gateway.stop().await.total(), due(&upstream));
}

#[tokio::test]
async fn a_missing_done_does_not_lose_the_usage() {
    let upstream = Upstream::always(Script::default().without_done()).await;
    let gateway = gateway(&upstream.url()).await;
    let answer = gateway.client().post_json(CHAT, &streamed("up/plain")).await;
    assert!(answer.text().contains(&word(4)));
    assert_eq!(gateway.stop().await.total(), due(&upstream));
}

#[tokio::test]
async fn missing_usage_is_estimated_and_zero_usage_is_believed() {
    for ask in [chat("up/plain"), streamed("up/plain")] {
        let upstream = Upstream::always(Script::words(40).with_usage(UsageRule::Missing)).await;
        let missing = gateway(&upstream.url()).await;
        assert_eq!(missing.client().post_json(CHAT, &ask).await.status, 200);
        let (charged, true_cost) = (missing.stop().await.total(), cost(&upstream.served()[0].usage));
        let far = Usd(true_cost.0 / 2)..=Usd(true_cost.0 * 3);
        assert!(far.contains(&charged), "charged {charged} for something worth {true_cost}");

        let upstream = Upstream::always(Script::words(40).with_usage(UsageRule::Zero)).await;
        let zero = gateway(&upstream.url()).await;
        assert_eq!(zero.client().post_json(CHAT, &ask).await.status, 200);
        assert_eq!(zero.stop().await.total(), Usd(0));
    }
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_provider_and_pays_for_what_it_got() {
    // Before the head, before the first frame, and in the middle.
    for (fault, delivered) in
        [(Fault::StallBeforeHead, 0), (Fault::StallBeforeFirstFrame, 0), (Fault::StallAfter(4), 3)]
    {
        let upstream = Upstream::always(Script::says(Content::Endless).with_fault(fault.clone())).await;
        let gateway = Gateway::start(Setup::with(&upstream)).await;
        let client = gateway.client();
        if delivered == 0 {
            let ask = streamed("up/plain").to_string();
            let waiting = tokio::spawn(async move { client.try_open(http::Method::POST, CHAT, ask).await.map(drop) });
            upstream.wait_for_requests(1).await;
            waiting.abort();
        } else {
            let mut open = client.stream(CHAT, &streamed("up/plain")).await;
            for _ in 0..=delivered {
                open.next_event().await.unwrap().unwrap();
            }
            drop(open);
        }
        upstream.wait_for_disconnect().await;
        gateway.settled().await;
        let ledger = gateway.stop().await;
        assert_eq!(ledger.attempts("up/plain"), 1, "{fault:?}");
        let least =
            if delivered == 0 { Usd(0) } else { cost(&Usage { input: 1, output: delivered, ..Usage::default() }) };
        let most = cost(&Usage { input: 100, output: 20, ..Usage::default() });
        assert!(least <= ledger.total() && ledger.total() <= most, "{fault:?}: {}", ledger.total());
    }
}

/// Asks for a whole answer of at most 40 tokens, and leaves. Returns when the gateway has noticed.
async fn ask_and_leave(gateway: &Gateway, upstream: &Upstream) {
    ask_as_and_leave(gateway.client(), gateway, upstream).await;
}

async fn ask_as_and_leave(client: Client, gateway: &Gateway, upstream: &Upstream) {
    let mut ask = chat("up/plain");
    ask["max_tokens"] = json!(40);
    let asking =
        tokio::spawn(async move { client.try_open(http::Method::POST, CHAT, ask.to_string()).await.map(drop) });
    upstream.wait_for_requests(1).await;
    asking.abort();
    eventually("the gateway's notice that the client has left", async || {
        (gateway.metrics().await.sum("tollkeeper_abandoned_requests", &[]) == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_whole_answer_whose_client_left_is_charged_as_the_provider_counted_it() {
    let gate = Gate::default();
    let upstream = Upstream::always(Script::words(10).with_hold(Hold::Head(gate.clone()))).await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    ask_and_leave(&gateway, &upstream).await;
    assert_eq!(gateway.metrics().await.sum("tollkeeper_in_flight_requests", &[]), 1.0, "it takes a place until then");
    gate.open_wide();
    gateway.settled().await;
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("tollkeeper_requests_total", &[("outcome", "client_gone")]), 1.0);
    assert_eq!(metrics.sum("tollkeeper_abandoned_requests", &[]), 0.0);
    let ledger = gateway.stop().await;
    assert_eq!((ledger.attempts("up/plain"), ledger.total()), (1, due(&upstream)));
}

#[tokio::test]
async fn the_end_of_a_run_ends_what_its_client_has_left_behind() {
    let upstream = Upstream::always(Script::fault(Fault::StallBeforeHead)).await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    let run = gateway.client().post_json("/v1/runs", &json!({"limits": {"usd": "1"}})).await.json();
    let client = gateway.client().key(run["key"].as_str().unwrap());
    ask_as_and_leave(client, &gateway, &upstream).await;
    let path = format!("/v1/runs/{}/cancel", run["id"].as_str().unwrap());
    assert_eq!(gateway.client().post(&path, "").await.status, 200);
    upstream.wait_for_disconnect().await;
    gateway.settled().await;
    let ledger = gateway.stop().await;
    assert!(ledger.total() >= cost(&Usage { output: 40, ..Usage::default() }), "{}", ledger.total());
    assert_eq!((ledger.report.open, ledger.report.unknown), (0, 0));
}

#[tokio::test]
async fn a_whole_answer_whose_client_left_is_charged_at_its_lease_when_it_does_not_come() {
    // Until the request's own time is up, or the gateway stops.
    for (server, drain) in [("request_timeout = \"1s\"", false), ("drain_timeout = \"100ms\"", true)] {
        let upstream = Upstream::always(Script::fault(Fault::StallBeforeHead)).await;
        let gateway = Gateway::start(Setup::with(&upstream).server(server)).await;
        ask_and_leave(&gateway, &upstream).await;
        if !drain {
            gateway.settled().await;
            upstream.wait_for_disconnect().await;
        }
        let ledger = gateway.stop().await;
        let least = cost(&Usage { output: 40, ..Usage::default() });
        let most = cost(&Usage { input: 100, output: 40, ..Usage::default() });
        assert!((least..=most).contains(&ledger.total()), "{server}: {} for 40 tokens", ledger.total());
        assert_eq!((ledger.report.open, ledger.report.unknown), (0, 0), "{server}");
    }
}

#[tokio::test]
async fn what_failed_is_not_tried_again_for_a_client_that_left() {
    let gate = Gate::default();
    let upstream = Upstream::always(Script::status(503).with_hold(Hold::Head(gate.clone()))).await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    ask_and_leave(&gateway, &upstream).await;
    gate.open_wide();
    gateway.settled().await;
    assert_eq!(upstream.received().len(), 1);
    assert_eq!(gateway.stop().await.total(), Usd(0));
}

#[tokio::test]
async fn a_fault_before_the_first_byte_moves_on_to_the_next_target() {
    for (script, ..) in before_the_first_byte().into_iter().filter(|(_, status, _)| *status != 400) {
        let first = Upstream::always(script.clone()).await;
        let second = Upstream::start().await;
        let setup = Setup::new().provider("one", &first.url(), IMPATIENT).provider("two", &second.url(), "");
        let gateway = Gateway::start(setup.alias("both", &["one/a", "two/b"])).await;
        for (mut ask, number) in [(chat("both"), 1), (streamed("both"), 2)] {
            ask["max_tokens"] = json!(40);
            let answer = gateway.client().post_json(CHAT, &ask).await;
            assert_eq!(answer.status, 200, "{:?}: {}", script.fault, answer.text());
            assert_eq!(answer.header("x-tollkeeper-backend"), "two/b");
            assert_eq!(second.received().len(), number);
            assert_eq!(second.received()[number - 1].json()["model"], "b");
        }
        let ledger = gateway.stop().await;
        let unseen = cost(&Usage { input: 60, output: 40, ..Usage::default() });
        assert!(ledger.cost("one/a") <= unseen, "{:?}", script.fault);
        assert_eq!(ledger.cost("two/b"), Usd(2 * cost(&second.served()[0].usage).0), "{:?}", script.fault);
    }
}

#[tokio::test]
async fn no_second_attempt_after_the_first_byte() {
    let first = Upstream::always(Script::fault(Fault::DieAfter(3))).await;
    let second = Upstream::start().await;
    let setup = Setup::with(&first).provider("two", &second.url(), "").alias("both", &["up/a", "two/b"]);
    let gateway = Gateway::start(setup).await;
    let (words, error) = broken_stream(&gateway.client().post_json(CHAT, &streamed("both")).await);
    assert_eq!((words, error.is_some()), (word(0) + &word(1), true));
    assert!(second.received().is_empty());
}

#[tokio::test]
async fn a_request_that_is_wrong_is_not_tried_elsewhere() {
    let first = Upstream::always(Script::status(400)).await;
    let second = Upstream::start().await;
    let setup = Setup::with(&first).provider("two", &second.url(), "").alias("both", &["up/a", "two/b"]);
    let gateway = Gateway::start(setup).await;
    let answer = gateway.client().post_json(CHAT, &chat("both")).await;
    assert_eq!((answer.status, first.received().len(), second.received().len()), (400, 1, 0));
    assert!(answer.error()["message"].as_str().unwrap().contains("The upstream says 400."));
}

#[tokio::test]
async fn a_provider_that_recovers_is_tried_again_within_the_attempt() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    upstream.next(Script::status(503));
    let answer = gateway.client().post_json(CHAT, &chat("up/plain")).await;
    assert_eq!((answer.status, upstream.received().len()), (200, 2));
    let metrics = gateway.metrics().await;
    let count = |name| metrics.sum(name, &[("provider", "up")]);
    assert_eq!((count("tollkeeper_provider_tries_total"), count("tollkeeper_provider_retries_total")), (2.0, 1.0));
    assert_eq!(gateway.stop().await.total(), due(&upstream));
}

#[tokio::test]
async fn a_backend_that_fails_is_shown_and_comes_back() {
    let upstream = Upstream::start().await;
    let gateway = gateway(&upstream.url()).await;
    for _ in 0..12 {
        upstream.next(Script::status(500));
        gateway.client().post_json(CHAT, &chat("up/plain")).await;
    }
    assert!(gateway.metrics().await.sum("tollkeeper_backend_state", &[("backend", "up/plain")]) >= 1.0);
    // A single backend that cools down is still asked: there is nothing better to do.
    assert_eq!(gateway.client().post_json(CHAT, &chat("up/plain")).await.status, 200);
}

#[tokio::test]
async fn tools_and_unknown_fields_survive_a_fallback() {
    let first = Upstream::always(Script::status(500)).await;
    let second = Upstream::start().await;
    let setup = Setup::new().provider("one", &first.url(), IMPATIENT).provider("two", &second.url(), "");
    let gateway = Gateway::start(setup.alias("both", &["one/a", "two/b"])).await;
    let mut ask = chat("both");
    ask["made_up"] = json!({"b": [1, 2.50], "a": null});
    ask["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    gateway.client().post_json(CHAT, &ask).await;
    let mut sent = [first.only().json(), second.only().json()];
    sent.iter_mut().for_each(|sent| sent["model"] = json!("both"));
    assert_eq!(sent, [ask.clone(), ask]);
}
