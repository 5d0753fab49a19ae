//! The fleet as the gateway sees it, without local models.

use super::*;
use bytes::Bytes;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_protocol::{Operation, openai};

fn config(providers: &[(&str, &str, Option<&str>)]) -> Config {
    let mut config = tollkeeper_config::parse("", Path::new("test.toml"), &|_| None).unwrap();
    let provider = |(name, kind, base_url): &(&str, &str, Option<&str>)| Provider {
        name: (*name).to_owned(),
        kind: (*kind).to_owned(),
        base_url: base_url.map(str::to_owned),
        api_key: None,
        headers: Vec::new(),
        api_version: None,
        connect_timeout: Duration::from_secs(1),
        first_byte_timeout: Duration::from_secs(1),
        idle_timeout: Duration::from_secs(1),
        max_attempts: 1,
        probe: None,
        disabled: None,
    };
    config.providers = providers.iter().map(|row| (row.0.to_owned(), Arc::new(provider(row)))).collect();
    config
}

fn remote_id(provider: &str, model: &str) -> BackendId {
    BackendId::Remote { provider: provider.into(), model: model.into() }
}

fn call() -> Call {
    let body = r#"{"model":"x","input":"y"}"#;
    Call {
        request: Arc::new(openai::decode_request(Operation::Embeddings, body.as_bytes()).unwrap()),
        original: Bytes::from_static(body.as_bytes()),
        operation: Operation::Embeddings,
        output_limit: None,
        measured: 0,
        priority: tollkeeper_config::Priority::Interactive,
        request_id: "r".into(),
        deadline: Instant::now() + Duration::from_secs(60),
        abandoned: Arc::default(),
    }
}

#[tokio::test]
async fn every_unusable_provider_is_reported_at_once() {
    let providers =
        [("a", "azure", None), ("b", "openai", None), ("c", "nope", None), ("d", "custom", Some("ftp://x"))];
    let Err(FleetError::Providers(problems)) = Fleet::start(&config(&providers), None) else {
        panic!("must not start")
    };
    assert_eq!(problems.len(), 3);
    assert!(problems[0].starts_with("provider `a`: ") && problems[2].starts_with("provider `d`: "), "{problems:?}");
    assert_eq!(FleetError::Providers(problems).to_string().lines().count(), 3);
}

#[tokio::test]
async fn a_reload_swaps_providers() {
    let fleet = Fleet::start(&config(&[("a", "openai", None)]), None).unwrap();
    let names = |fleet: &Fleet| fleet.states().into_iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&fleet), ["a"]);
    let (a, b) = (remote_id("a", "m"), remote_id("b", "m"));
    assert_eq!(fleet.snapshot(&a).health, BackendHealth::Ready);
    let peer = Peer { provider_name: "openai", server_address: "api.openai.com".into() };
    assert_eq!((fleet.peer(&a), fleet.peer(&b)), (Some(peer), None));
    let fault = fleet.send(&b, call()).await.unwrap_err();
    assert_eq!(fault.message, "there is no provider `b` in the configuration");

    // Nobody listens there any more: connections are refused, and that is remembered.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/v1");
    fleet.reload(&config(&[("b", "custom", Some(&url)), ("c", "nope", None)]));
    assert!(matches!(fleet.snapshot(&a).health, BackendHealth::Unavailable(_)));
    assert!(
        matches!(fleet.snapshot(&remote_id("c", "m")).health, BackendHealth::Unavailable(text) if text.contains("`nope`"))
    );
    for expected in [FaultKind::Connection; 3] {
        assert_eq!(fleet.send(&b, call()).await.unwrap_err().kind, expected);
    }
    assert_eq!(names(&fleet), ["b", "b/m", "c"]);
    assert!(matches!(fleet.snapshot(&b).health, BackendHealth::Cooling { .. }));
    assert_eq!(fleet.counts()[0], ("b".into(), RemoteCounts { tries: 3, ..RemoteCounts::default() }));

    fleet.ready().await;
    fleet.shutdown().await;
    assert_eq!(fleet.send(&b, call()).await.unwrap_err().kind, FaultKind::Unavailable);
}
