//! What goes wrong before an answer begins: statuses, retries, dead and mute servers.

use super::upstream::Step::{Close, Hang, Send, Wait};
use super::upstream::{Upstream, chunked, open_head, text, whole};
use super::*;
use crate::BackendHealth;

#[tokio::test(start_paused = true)]
async fn statuses_become_faults() {
    use FaultKind::*;
    let error = |code: &str| format!(r#"{{"error":{{"message":"no","type":"t","param":"q","code":"{code}"}}}}"#);
    let cases = [
        ("400 Bad Request", "c", BadRequest),
        ("400 Bad Request", "context_length_exceeded", ContextLength),
        ("401 Unauthorized", "invalid_api_key", Auth),
        ("403 Forbidden", "c", Auth),
        ("404 Not Found", "model_not_found", NotFound),
        ("413 Too Large", "c", BadRequest),
        ("422 Unprocessable", "c", BadRequest),
        ("429 Too Many", "rate_limit_exceeded", RateLimited),
        ("429 Too Many", "insufficient_quota", Unavailable),
        ("500 Oops", "c", Internal),
        ("502 Bad Gateway", "c", Internal),
        ("503 Unavailable", "c", Overloaded),
        ("529 Overloaded", "c", Overloaded),
    ];
    for body in [UNARY, STREAM] {
        for (status, code, kind) in cases {
            let upstream = Upstream::once(whole(status, "retry-after: 7\r\n", &error(code))).await;
            let remote = remote(provider(&upstream.url));
            let fault = fault_of(&remote, body).await;
            assert_eq!((fault.kind, fault.message.as_str()), (kind, "no"), "{status} {code}");
            assert_eq!(fault.status, Some(status[..3].parse().unwrap()));
            assert_eq!(fault.retry_after, Some(Duration::from_secs(7)));
            let detail = fault.detail.unwrap();
            assert_eq!((detail.code.as_deref(), detail.param.as_deref()), (Some(code), Some("q")));
            assert_eq!(remote.model_state("m").in_flight, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_not_followed() {
    let upstream = Upstream::once(whole("301 Moved", "location: https://elsewhere/v1\r\n", "")).await;
    let fault = fault_of(&remote(Provider { max_attempts: 3, ..provider(&upstream.url) }), UNARY).await;
    assert_eq!((fault.kind, fault.status), (FaultKind::Unavailable, Some(301)));
    assert!(fault.message.contains("https://elsewhere/v1"), "{fault}");
}

#[tokio::test(start_paused = true)]
async fn an_endless_error_keeps_its_status() {
    let upstream = Upstream::start(vec![vec![
        Send(b"HTTP/1.1 503 No\r\ncontent-type: text/html\r\n\r\n<html>".to_vec()),
        super::upstream::Step::Flood(vec![b'x'; 8192]),
    ]])
    .await;
    let fault = fault_of(&remote(provider(&upstream.url)), UNARY).await;
    assert_eq!((fault.kind, fault.status), (FaultKind::Overloaded, Some(503)));
    assert!(upstream.until(|seen| seen.abandoned == 1).await.written < 16 << 20);
}

/// Three tries at a server that first answers with `head`, then well; how long that took and what came of it.
async fn after(head: Vec<u8>, tries: u32) -> (Result<Reply, ProviderFault>, Duration, usize) {
    let upstream = Upstream::start(vec![vec![Send(head)], vec![Send(whole("200 OK", "", ANSWER))]]).await;
    let remote = remote(Provider { max_attempts: tries, ..provider(&upstream.url) });
    let begun = Instant::now();
    let result = send(&remote, call(UNARY)).await;
    assert_eq!(remote.counts().retries, remote.counts().tries - 1);
    assert_eq!(remote.counts().tries as usize, upstream.seen().requests.len());
    (result, begun.elapsed(), upstream.seen().requests.len())
}

#[tokio::test(start_paused = true)]
async fn tries_are_repeated_where_it_helps() {
    let second = Duration::from_secs(1);
    let ms = Duration::from_millis;
    // What the server says, whether it is asked again, and how long the pause is.
    let cases = [
        ("500 Oops", "", true, ms(125)..=ms(260)),
        ("503 No", "retry-after: 1\r\n", true, second..=second + ms(10)),
        ("429 No", "retry-after-ms: 1500\r\n", true, ms(1500)..=ms(1510)),
        ("429 No", "retry-after: 0\r\n", true, ms(125)..=ms(260)),
        ("429 No", "retry-after: 30\r\n", false, ms(0)..=ms(10)),
        ("503 No", "x-should-retry: false\r\n", false, ms(0)..=ms(10)),
        ("503 No", "x-should-retry: true\r\n", true, ms(125)..=ms(260)),
        ("400 No", "", false, ms(0)..=ms(10)),
        ("401 No", "", false, ms(0)..=ms(10)),
        ("404 No", "", false, ms(0)..=ms(10)),
        ("408 No", "", false, ms(0)..=ms(10)),
    ];
    for (status, headers, again, pause) in cases {
        let (result, took, requests) = after(whole(status, headers, "{}"), 3).await;
        assert_eq!(requests, 1 + usize::from(again), "{status} {headers}");
        assert_eq!(result.is_ok(), again, "{status} {headers}");
        assert!(pause.contains(&took), "{status} {headers}: {took:?}");
        let (result, ..) = after(whole(status, headers, "{}"), 1).await;
        assert!(result.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn no_try_begins_past_the_deadline() {
    let upstream = Upstream::once(whole("429 No", "retry-after: 2\r\n", "{}")).await;
    let remote = remote(Provider { max_attempts: 3, ..provider(&upstream.url) });
    let call = Call { deadline: Instant::now() + Duration::from_secs(1), ..call(UNARY) };
    assert_eq!(send(&remote, call).await.unwrap_err().kind, FaultKind::RateLimited);
    assert_eq!(remote.counts().tries, 1);
}

#[tokio::test(start_paused = true)]
async fn dying_before_an_answer_is_a_connection_fault_that_is_tried_again() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-le".to_vec();
    let comment = [open_head(), b": wait\n\n".to_vec()].concat();
    let cases = [
        (UNARY, vec![Close]),
        (UNARY, vec![Send(head.clone()), Close]),
        (STREAM, vec![Close]),
        (STREAM, vec![Send(head), Close]),
        (STREAM, vec![Send(open_head()), Close]),
        (STREAM, vec![Send(comment), Close]),
        (STREAM, vec![Send([open_head(), b"data: {\"id\":".to_vec()].concat()), Close]),
    ];
    for (body, script) in cases {
        let upstream = Upstream::start(vec![script.clone(); 2]).await;
        let remote = remote(Provider { max_attempts: 2, ..provider(&upstream.url) });
        let fault = fault_of(&remote, body).await;
        assert_eq!((fault.kind, fault.status), (FaultKind::Connection, None), "{script:?}: {fault}");
        assert!(fault.message.contains("provider `p`"), "{fault}");
        assert_eq!((remote.counts().tries, upstream.seen().requests.len()), (2, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_after_it_has_worked_may_bill_that_and_is_not_asked_again() {
    let late = |seconds| Wait(Duration::from_secs(seconds));
    let status = |status| vec![late(60), Send(whole(status, "", "{}"))];
    let cases = [
        (UNARY, vec![late(60), Close], true),
        (UNARY, status("504 Gateway Timeout"), true),
        (UNARY, status("502 Bad Gateway"), true),
        (UNARY, status("524 A Timeout Occurred"), true),
        (STREAM, vec![late(60), Close], true),
        (STREAM, vec![Send(open_head()), late(60), Close], true),
        // These say themselves that there is no answer.
        (UNARY, status("500 Oops"), false),
        (UNARY, status("503 Unavailable"), false),
        // Nobody has worked yet.
        (UNARY, vec![Send(whole("504 Gateway Timeout", "", "{}"))], false),
        (UNARY, vec![Wait(Duration::from_millis(500)), Close], false),
    ];
    for (body, script, worked) in cases {
        let upstream = Upstream::start(vec![script.clone(); 2]).await;
        let remote = remote(Provider { max_attempts: 2, ..provider(&upstream.url) });
        let fault = fault_of(&remote, body).await;
        let tries = if worked { 1 } else { 2 };
        assert_eq!((fault.worked, remote.counts().tries), (worked, tries), "{script:?}: {fault}");
    }
    let upstream = Upstream::start(vec![status("504 Gateway Timeout"); 2]).await;
    let remote = remote(Provider { max_attempts: 2, ..provider(&upstream.url) });
    let nothing_to_bill = call_for(Operation::Embeddings, r#"{"model":"a/b","input":"x"}"#);
    assert!(!send(&remote, nothing_to_bill).await.unwrap_err().worked);
    assert_eq!(remote.counts().tries, 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_billed_and_so_not_tried_again() {
    let cut_body = whole("200 OK", "", ANSWER);
    let cut_body = cut_body[..cut_body.len() - 5].to_vec();
    let upstream = Upstream::start(vec![vec![Send(cut_body), Close]; 2]).await;
    let remote = remote(Provider { max_attempts: 2, ..provider(&upstream.url) });
    let fault = fault_of(&remote, UNARY).await;
    assert_eq!((fault.kind, fault.status), (FaultKind::Connection, Some(200)), "{fault}");
    assert_eq!((remote.counts().tries, upstream.seen().requests.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_says_so() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let remote = remote(Provider { max_attempts: 2, ..provider(&url) });
    let fault = fault_of(&remote, UNARY).await;
    assert_eq!(fault.kind, FaultKind::Connection);
    assert!(fault.message.contains("cannot connect") && fault.message.contains("refused"), "{fault}");
    assert_eq!(remote.counts().tries, 2);
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_not_answers() {
    let sse = chunked(text("a").as_bytes(), &[]);
    let html = b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>".to_vec();
    let error = r#"{"error":{"message":"busy","code":"rate_limit_exceeded"}}"#;
    let event = format!("data: {error}\n\n");
    let done = chunked(b"data: [DONE]\n\n", &[]);
    let cases = [
        (UNARY, whole("200 OK", "", "{\"choices\":["), FaultKind::Malformed, "cannot be read"),
        (UNARY, whole("200 OK", "", ""), FaultKind::Malformed, "cannot be read"),
        (UNARY, html.clone(), FaultKind::Malformed, "cannot be read"),
        (UNARY, sse, FaultKind::Malformed, "cannot be read"),
        (UNARY, whole("200 OK", "", error), FaultKind::RateLimited, "busy"),
        (STREAM, whole("200 OK", "", error), FaultKind::RateLimited, "busy"),
        (STREAM, whole("200 OK", "", ANSWER), FaultKind::Malformed, "a whole answer where a stream was asked for"),
        (STREAM, html, FaultKind::Connection, "ended early"),
        (STREAM, chunked(event.as_bytes(), &[]), FaultKind::RateLimited, "busy"),
        (STREAM, done, FaultKind::Malformed, "empty answer"),
        (STREAM, chunked(b"", &[]), FaultKind::Connection, "ended early"),
    ];
    for (body, answer, kind, message) in cases {
        let upstream = Upstream::once(answer).await;
        let remote = remote(provider(&upstream.url));
        let fault = fault_of(&remote, body).await;
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(fault.message.contains(message), "{fault}");
        assert_eq!(remote.model_state("m").in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_has_its_bound() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{".to_vec();
    let script = vec![Send(head), super::upstream::Step::Flood(vec![b' '; 1 << 20])];
    let upstream = Upstream::start(vec![script]).await;
    let fault = fault_of(&remote(provider(&upstream.url)), UNARY).await;
    assert_eq!(fault.kind, FaultKind::Malformed);
    assert!(fault.message.contains("longer than 67108864 bytes"), "{fault}");
    upstream.until(|seen| seen.abandoned == 1).await;
}

#[tokio::test(start_paused = true)]
async fn giving_up_closes_the_connection() {
    for (body, script) in [(UNARY, vec![Hang]), (STREAM, vec![Send(open_head()), Hang])] {
        let upstream = Upstream::start(vec![script]).await;
        let remote = Arc::new(remote(provider(&upstream.url)));
        let sending = tokio::spawn({
            let remote = remote.clone();
            async move { send(&remote, call(body)).await.map(|_| ()) }
        });
        upstream.until(|seen| seen.requests.len() == 1).await;
        assert_eq!((remote.model_state("m").in_flight, remote.state().in_flight), (1, 1));
        assert_eq!(remote.model_state("other").in_flight, 0);
        sending.abort();
        upstream.until(|seen| seen.abandoned == 1).await;
        assert_eq!((remote.model_state("m").in_flight, remote.state().in_flight), (0, 0));
        assert_eq!(remote.model_state("m").health, BackendHealth::Ready);
    }
}
