//! Streams: byte for byte, as fast as they are read, and to the right end.

use super::upstream::Step::{Close, Flood, Hang, Send};
use super::upstream::{DONE, FINISH, USAGE, Upstream, answer, chunk, chunked, chunked_head, open_head, text};
use super::*;
use tollkeeper_protocol::usage::Usage;

/// Streams these bytes, cut before each of these places.
async fn stream_of(body: &str, cuts: &[usize]) -> (Remote, FrameStream) {
    let upstream = Upstream::once(chunked(body.as_bytes(), cuts)).await;
    let remote = remote(provider(&upstream.url));
    let stream = frames(send(&remote, call(STREAM)).await.unwrap());
    (remote, stream)
}

/// A stream that ends with its connection.
async fn broken_off(body: &str, how: super::upstream::Step) -> FrameStream {
    let upstream = Upstream::start(vec![vec![Send(open_head()), Send(body.into()), how]]).await;
    frames(send(&remote(provider(&upstream.url)), call(STREAM)).await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn frames_arrive_as_sent_wherever_they_are_cut() {
    let body = format!(
        ": hello\r\n\r\n{}event: x\r\nid: 7\r\ndata: {{\"choices\":[{{\"delta\":\r\ndata: {{\"content\":\"é\"}}}}]}}\r\n\r\n: ping\n\n{}{}{}",
        text("a").replace('\n', "\r\n"),
        FINISH.replace('\n', "\r"),
        USAGE,
        DONE
    );
    for cut in 1..body.len() {
        let (_, stream) = stream_of(&body, &[cut]).await;
        let (raw, fault, all) = read_out(stream).await;
        assert_eq!((raw.as_str(), fault), (body.as_str(), None), "cut at {cut}");
        let texts: Vec<_> = all.iter().map(|frame| (frame.data.len(), frame.peek.text_bytes, frame.done)).collect();
        let lengths: Vec<_> = texts.iter().map(|(length, ..)| *length > 0).collect();
        assert_eq!(lengths, [false, true, true, false, true, true, true], "cut at {cut}");
        let read: Vec<_> = texts.iter().map(|(_, text, done)| (*text, *done)).collect();
        assert_eq!(read, [(0, false), (1, false), (2, false), (0, false), (0, false), (0, false), (0, true)]);
        assert_eq!(all[5].peek.usage, Some(Usage { input: 3, output: 2, ..Usage::default() }));
        assert!(all[4].peek.finished && all[5].peek.no_choices);
    }
    let every: Vec<_> = (1..body.len()).collect();
    let (_, stream) = stream_of(&body, &every).await;
    assert_eq!(read_out(stream).await.0, body);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_whole_may_end_without_done() {
    let all = answer();
    let cases = [
        [&text("a"), FINISH].concat(),
        [&text("a"), FINISH, USAGE].concat(),
        // No finish reason, but the usage chunk that follows it.
        [&text("a"), USAGE].concat(),
        all.clone(),
    ];
    for body in cases {
        let (remote, stream) = stream_of(&body, &[]).await;
        assert_eq!(read_out(stream).await.0, body);
        assert_eq!(remote.model_state("m").in_flight, 0);
        // Nor does it matter how the connection ends.
        let cut = chunk(body.as_bytes());
        let upstream = Upstream::start(vec![vec![Send(chunked_head()), Send(cut), Close]]).await;
        let stream = frames(send(&super::remote(provider(&upstream.url)), call(STREAM)).await.unwrap());
        let (raw, fault, _) = read_out(stream).await;
        assert_eq!((raw, fault), (body, None));
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_ends_in_an_error() {
    let cut_frame = format!("{}data: {{\"choices\":[", text("a"));
    for (body, kept) in [(text("a"), text("a")), (cut_frame, text("a"))] {
        let (remote, stream) = stream_of(&body, &[]).await;
        let (raw, fault, _) = read_out(stream).await;
        assert_eq!((raw.as_str(), fault), (kept.as_str(), Some(FaultKind::Connection)));
        assert_eq!(remote.model_state("m").in_flight, 0);
        let (raw, fault, _) = read_out(broken_off(&body, Close).await).await;
        assert_eq!((raw.as_str(), fault), (kept.as_str(), Some(FaultKind::Connection)));
    }
    let upstream = Upstream::start(vec![vec![Send(chunked_head()), Send(chunk(text("a").as_bytes())), Close]]).await;
    let mut stream = frames(send(&remote(provider(&upstream.url)), call(STREAM)).await.unwrap());
    assert!(stream.next().await.unwrap().is_ok());
    let fault = stream.next().await.unwrap().unwrap_err();
    assert!(fault.message.contains("provider `p` broke amid its answer"), "{fault}");
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_last_frame_may_lack_its_blank_line() {
    for (last, done) in [("data: [DONE]", true), ("data: [DONE]\n", true), (FINISH.trim_end(), false)] {
        let (_, stream) = stream_of(&(text("a") + FINISH + last), &[]).await;
        let (raw, fault, all) = read_out(stream).await;
        assert_eq!((raw, fault), (format!("{}{FINISH}{}\n\n", text("a"), last.trim_end()), None));
        assert_eq!(all.last().unwrap().done, done);
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_amid_a_stream_is_its_last_item() {
    let error = "data: {\"error\":{\"message\":\"too busy\",\"code\":\"rate_limit_exceeded\"}}\n\n";
    let (_, mut stream) = stream_of(&[&text("a"), error, &text("b"), DONE].concat(), &[]).await;
    assert_eq!(stream.next().await.unwrap().unwrap().raw, text("a"));
    let fault = stream.next().await.unwrap().unwrap_err();
    assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::RateLimited, "too busy"));
    assert!(stream.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn lines_that_are_not_json_are_passed_on_and_counted() {
    let body = ["data: what?\n\n", &text("a"), "data: {\"choices\":[}\n\n", &text("b"), FINISH, DONE].concat();
    let (remote, stream) = stream_of(&body, &[]).await;
    let (raw, fault, all) = read_out(stream).await;
    assert_eq!((raw, fault), (body, None));
    assert_eq!((remote.counts().bad_frames, all[2].peek.text_bytes, all[3].peek.text_bytes), (2, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn nothing_follows_done() {
    let (_, stream) = stream_of(&[&answer(), &text("more"), DONE].concat(), &[]).await;
    let (raw, fault, _) = read_out(stream).await;
    assert_eq!((raw.starts_with(&answer()), fault), (true, None));
    assert_eq!(raw.matches("[DONE]").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn keep_alives_before_the_first_frame_are_kept_within_bounds() {
    let body = ": wait\n\n".repeat(100_000) + &answer();
    let (_, stream) = stream_of(&body, &[]).await;
    let (raw, fault, all) = read_out(stream).await;
    assert_eq!((all.len(), fault), (64 + 5, None));
    assert!(raw.ends_with(&answer()));
}

#[tokio::test(start_paused = true)]
async fn a_frame_has_its_bound() {
    let upstream =
        Upstream::start(vec![vec![Send(open_head()), Send(b"data: ".to_vec()), Flood(vec![b'x'; 65536])]]).await;
    let fault = fault_of(&remote(provider(&upstream.url)), STREAM).await;
    assert_eq!(fault.kind, FaultKind::Malformed);
    assert!(fault.message.contains("4194304"), "{fault}");
    assert!(upstream.until(|seen| seen.abandoned == 1).await.written < 32 << 20);
}

#[tokio::test(start_paused = true)]
async fn an_unread_stream_stops_its_provider() {
    let flood = text(&"x".repeat(1000)).repeat(60);
    let upstream = Upstream::start(vec![vec![Send(open_head()), Flood(flood.into())]]).await;
    let remote = remote(provider(&upstream.url));
    let mut stream = frames(send(&remote, call(STREAM)).await.unwrap());
    // The clock only moves when nobody can do anything: the provider is stuck then.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let stuck = upstream.seen().written;
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(upstream.seen().written, stuck);
    assert!(stuck < 16 << 20, "{stuck} bytes were taken in, most of them by the kernel");
    // It goes on as soon as there is room, and what is read is whole.
    let mut read = 0;
    while read < 3 * stuck {
        let frame = stream.next().await.unwrap().unwrap();
        assert_eq!(frame.peek.text_bytes, 1000);
        read += frame.raw.len();
    }
    assert!(upstream.seen().written > 2 * stuck);
    drop(stream);
    upstream.until(|seen| seen.abandoned == 1).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_a_stream_closes_its_connection() {
    let upstream = Upstream::start(vec![vec![Send(open_head()), Send(text("a").into()), Hang]]).await;
    let remote = remote(provider(&upstream.url));
    let mut stream = frames(send(&remote, call(STREAM)).await.unwrap());
    assert_eq!(stream.next().await.unwrap().unwrap().raw, text("a"));
    assert_eq!((remote.model_state("m").in_flight, remote.state().in_flight), (1, 1));
    let begun = Instant::now();
    drop(stream);
    assert_eq!((remote.model_state("m").in_flight, remote.state().in_flight), (0, 0));
    upstream.until(|seen| seen.abandoned == 1).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
}
