//! Gateways that share their counters in Redis: a real server, killed, stopped, slow and emptied.

mod book;
mod faults;
mod sharing;

use std::sync::Arc;
use std::time::{Duration, Instant};
use tollkeeper_config::SharedStore;
use tollkeeper_policies::Clock;
use tollkeeper_policies::shared::{Counter, Extend, SharedAccounts, SharedError, Take, Want};
use tollkeeper_servers::RedisServer;

/// How long anything may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `state` gives a value, asking it every few milliseconds.
async fn eventually<T>(what: &str, mut state: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = state().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "hang: {what} was not so within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A gateway's way to the server, with times that suit a test.
fn settings(url: String, prefix: &str, gateway: &str) -> SharedStore {
    SharedStore {
        prefix: prefix.to_owned(),
        lease_age: Duration::from_secs(2),
        connect: Duration::from_millis(400),
        answer: Duration::from_millis(400),
        retry: Duration::from_millis(50),
        ..SharedStore::new(url, gateway)
    }
}

fn gateway(settings: &SharedStore) -> SharedAccounts {
    SharedAccounts::new(settings, Clock::system()).unwrap()
}

/// A total.
fn total(key: &str) -> Counter {
    Counter { key: key.into(), ends: None, rolls: None }
}

fn take(lease: &str, counter: &Counter, limit: i128, amount: i64) -> Take {
    let want = Want { counter: counter.clone(), limit, least: amount, most: amount };
    Take { lease: lease.into(), now: 1_000_000, memo: "memo".into(), marks: Vec::new(), wants: vec![want] }
}

/// The lease is to hold so much in all.
fn extend(take: &Take, step: u32, amount: i64) -> Extend {
    let want = Want { least: amount, most: amount, ..take.wants[0].clone() };
    Extend { lease: take.lease.clone(), step, now: take.now, wants: vec![want] }
}

/// What an empty ledger knows.
fn nothing() -> tollkeeper_policies::shared::Restore {
    tollkeeper_policies::shared::Restore { now: 1_000_000, ..Default::default() }
}

/// Two gateways of a fleet that has just begun, and that know of each other.
async fn pair(server: &RedisServer, prefix: &str) -> [SharedAccounts; 2] {
    let gates = ["left", "right"].map(|name| gateway(&settings(server.url(), prefix, name)));
    for gate in &gates {
        assert_eq!(gate.beat().await.map(|beat| beat.gateways.is_empty()), Ok(false));
        gate.restore(&nothing()).await.unwrap();
    }
    for gate in &gates {
        let beat = gate.beat().await.unwrap();
        assert_eq!((beat.live, beat.gateways.len()), (true, 2));
    }
    gates
}
