//! Every wait is bounded, and what asks for patience gets it.

use super::super::retry::retry_after;
use super::upstream::Step::{Hang, Send, Wait};
use super::upstream::{FINISH, Upstream, chunk, chunked_head, open_head, text, whole};
use super::*;
use http::HeaderMap;
use jiff::Timestamp;

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn impatient(url: &str) -> Provider {
    Provider { first_byte_timeout: seconds(20), idle_timeout: seconds(5), max_attempts: 3, ..provider(url) }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_in_a_timeout_that_is_not_repeated() {
    let half_body = whole("200 OK", "", ANSWER)[..120].to_vec();
    let cases = [
        (UNARY, vec![Hang], 20, "did not answer within 20s"),
        (UNARY, vec![Send(half_body), Hang], 5, "was silent for 5s"),
        (STREAM, vec![Hang], 20, "did not answer within 20s"),
        (STREAM, vec![Send(open_head()), Hang], 20, "was silent for 20s"),
        (
            STREAM,
            vec![Send(open_head()), Send(b": wait\n\n".to_vec()), Wait(seconds(19)), Hang],
            20,
            "was silent for 20s",
        ),
        (
            STREAM,
            vec![Send(open_head()), Wait(seconds(19)), Send(b": wait\n\n".to_vec()), Hang],
            39,
            "was silent for 20s",
        ),
    ];
    for (body, script, expected, message) in cases {
        let upstream = Upstream::start(vec![script.clone()]).await;
        let remote = remote(impatient(&upstream.url));
        let begun = Instant::now();
        let fault = fault_of(&remote, body).await;
        assert_eq!((fault.kind, begun.elapsed().as_secs()), (FaultKind::Timeout, expected), "{script:?}: {fault}");
        assert!(fault.message.contains(message), "{fault}");
        assert_eq!(remote.counts().tries, 1);
        upstream.until(|seen| seen.abandoned == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn silence_amid_a_stream_is_its_last_item() {
    let upstream = Upstream::start(vec![vec![
        Send(open_head()),
        Send(text("a").into()),
        Wait(seconds(4)),
        Send(b": still here\n\n".to_vec()),
        Wait(seconds(4)),
        Send(text("b").into()),
        Hang,
    ]])
    .await;
    let remote = remote(impatient(&upstream.url));
    let begun = Instant::now();
    let (raw, fault, _) = read_out(frames(send(&remote, call(STREAM)).await.unwrap())).await;
    assert_eq!(raw, format!("{}: still here\n\n{}", text("a"), text("b")));
    assert_eq!((fault, begun.elapsed().as_secs()), (Some(FaultKind::Timeout), 13));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_everything() {
    let keep_alive = || vec![Send(b": wait\n\n".to_vec()), Wait(seconds(3))];
    let script = |first: Vec<Step>| [first, keep_alive(), keep_alive(), keep_alive(), vec![Hang]].concat();
    use super::upstream::Step;
    let cases = [
        script(vec![Wait(seconds(9)), Send(open_head())]),
        script(vec![Send(open_head())]),
        script(vec![Send(open_head()), Send(text("a").into())]),
    ];
    for script in cases {
        let upstream = Upstream::start(vec![script]).await;
        let remote = remote(impatient(&upstream.url));
        let begun = Instant::now();
        let call = Call { deadline: begun + seconds(7), ..call(STREAM) };
        let fault = match send(&remote, call).await {
            Err(fault) => fault,
            Ok(reply) => frames(reply).filter_map(async |item| item.err()).boxed().next().await.unwrap(),
        };
        assert_eq!((fault.kind, begun.elapsed().as_secs()), (FaultKind::Timeout, 7));
        assert!(fault.message.contains("the request's time ran out"), "{fault}");
        upstream.until(|seen| seen.abandoned == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_a_silent_provider() {
    let script = vec![Send(open_head()), Send(text("a").into()), Send(text("b").into()), Send(FINISH.into())];
    let upstream = Upstream::start(vec![script]).await;
    let remote = remote(impatient(&upstream.url));
    let mut stream = frames(send(&remote, call(STREAM)).await.unwrap());
    let mut seen = 0;
    while let Some(frame) = stream.next().await {
        frame.unwrap();
        seen += 1;
        tokio::time::sleep(seconds(60)).await;
    }
    assert_eq!(seen, 3);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_does_not_hang_up_costs_a_blink() {
    let last = chunk([FINISH, "data: [DONE]\n\n"].concat().as_bytes());
    let upstream = Upstream::start(vec![vec![Send(chunked_head()), Send(last), Hang]]).await;
    let begun = Instant::now();
    let stream = frames(send(&remote(impatient(&upstream.url)), call(STREAM)).await.unwrap());
    let (_, fault, all) = read_out(stream).await;
    assert_eq!((fault, all.last().map(|frame| frame.done)), (None, Some(true)));
    assert!(begun.elapsed() < Duration::from_millis(260), "{:?}", begun.elapsed());
    upstream.until(|seen| seen.abandoned == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_tls_handshake_counts_as_connecting() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/v1", listener.local_addr().unwrap());
    let remote = remote(Provider { connect_timeout: seconds(3), ..impatient(&url) });
    let begun = Instant::now();
    let fault = fault_of(&remote, UNARY).await;
    assert_eq!((fault.kind, begun.elapsed().as_secs()), (FaultKind::Connection, 3), "never reached, so never billed");
    assert!(fault.message.contains("cannot connect") && fault.message.contains("3s"), "{fault}");
    drop(listener);
}

#[test]
fn retry_after_comes_in_three_forms() {
    let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
    type Headers = &'static [(&'static str, &'static str)];
    let cases: [(Headers, Option<Duration>); 11] = [
        (&[], None),
        (&[("retry-after", "7")], Some(seconds(7))),
        (&[("retry-after", " 0 ")], Some(seconds(0))),
        (&[("retry-after", "1.5")], Some(Duration::from_millis(1500))),
        (&[("retry-after", "-3")], None),
        (&[("retry-after", "1e400")], None),
        (&[("retry-after", "soon")], None),
        (&[("retry-after-ms", "250"), ("retry-after", "1")], Some(Duration::from_millis(250))),
        (&[("retry-after-ms", "x"), ("retry-after", "1")], Some(seconds(1))),
        (&[("retry-after", "Fri, 02 Jan 2026 03:04:35 GMT")], Some(seconds(30))),
        (&[("retry-after", "Fri, 02 Jan 2026 03:04:00 GMT")], Some(seconds(0))),
    ];
    for (headers, expected) in cases {
        let map: HeaderMap = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)))
            .collect();
        assert_eq!(retry_after(&map, now), expected, "{headers:?}");
    }
}
