//! Connections are used again.

use super::upstream::Step::{Close, Send};
use super::upstream::{Upstream, answer, chunked, whole};
use super::*;

#[tokio::test(start_paused = true)]
async fn requests_in_a_row_share_a_connection() {
    let unary = vec![Send(whole("200 OK", "", ANSWER))];
    let refused = vec![Send(whole("400 No", "", "{}"))];
    let stream = vec![Send(chunked(answer().as_bytes(), &[]))];
    let upstream = Upstream::start([unary.clone(), stream.clone(), refused, stream, unary].into()).await;
    let remote = remote(provider(&upstream.url));
    for body in [UNARY, STREAM, UNARY, STREAM, UNARY] {
        if let Ok(Reply { body: ReplyBody::Frames(frames), .. }) = send(&remote, call(body)).await {
            assert_eq!(read_out(frames).await.0, answer());
        }
    }
    let seen = upstream.seen();
    assert_eq!((seen.requests.len(), seen.connections), (5, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_server_closed_is_not_used() {
    let answer = || vec![Send(whole("200 OK", "", ANSWER)), Close];
    let upstream = Upstream::start(vec![answer(), answer(), answer()]).await;
    let remote = remote(provider(&upstream.url));
    for _ in 0..3 {
        send(&remote, call(UNARY)).await.unwrap();
    }
    assert_eq!((upstream.seen().connections, remote.counts().tries), (3, 3));
}
