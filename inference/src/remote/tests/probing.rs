//! When a server is asked how it is, and what that does to its health.

use super::upstream::Step::{Close, Hang, Send};
use super::upstream::{Upstream, whole};
use super::*;
use crate::BackendHealth;

fn server(url: &str) -> Provider {
    Provider { kind: "llama-server".to_owned(), probe: Some(Duration::from_secs(5)), ..provider(url) }
}

/// How long a backend still cools.
fn cooling(remote: &Remote) -> Option<Duration> {
    match remote.model_state("m").health {
        BackendHealth::Cooling { until } => Some(until - Instant::now()),
        BackendHealth::Ready => None,
        other => panic!("{other:?}"),
    }
}

async fn until(remote: &Remote, up: bool) {
    while remote.server().unwrap().up != Some(up) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_away_and_is_asked_less_and_less_often() {
    let loading = r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#;
    let loading = vec![Send(whole("503 Service Unavailable", "", loading))];
    let scripts = [vec![Hang], vec![Close], loading.clone(), loading.clone(), loading.clone(), loading];
    let upstream = Upstream::start(scripts.into()).await;
    let start = Instant::now();
    let remote = remote(server(&upstream.url));
    assert_eq!((remote.server().unwrap().up, cooling(&remote)), (None, None), "nobody waits for the first answer");
    until(&remote, false).await;
    let mut last = start.elapsed();
    for (number, least) in [(2, 5.0), (3, 10.0), (4, 20.0), (5, 30.0), (6, 30.0)] {
        while upstream.seen().requests.len() < number {
            assert!(cooling(&remote).is_some(), "it cools until it was asked again");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let pause = (start.elapsed() - last).as_secs_f64();
        last = start.elapsed();
        assert!(pause > least * 0.85, "question {number} came after {pause} s");
    }
    let seen = upstream.seen();
    assert!(seen.requests.iter().all(|(head, _)| head.starts_with("GET /health HTTP/1.1\r\n")), "{seen:?}");
    assert!(seen.requests.iter().all(|(head, _)| head.contains("authorization: Bearer provider-key\r\n")), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_dropped_is_asked_no_more() {
    let upstream = Upstream::start(vec![vec![Close]; 3]).await;
    let remote = remote(server(&upstream.url));
    upstream.until(|seen| seen.requests.len() == 2).await;
    drop(remote);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(upstream.seen().requests.len(), 2);
}
