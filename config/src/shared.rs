//! Where several gateways keep what they share.

use crate::units::Secret;
use std::time::Duration;

/// Where several gateways keep what they share, and how long to wait for it.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedStore {
    /// Such as `redis://host:6379/0`, `rediss://…` for TLS, or `redis+unix:///path`.
    pub url: Secret,
    /// What all keys begin with; gateways with the same prefix share their counters.
    pub prefix: String,
    /// This gateway's own name; it keeps it over restarts, as its ledger does.
    pub gateway: String,
    /// A gateway that has not been heard of for so long, and a quarter more, is dead (default 10 s).
    pub lease_age: Duration,
    /// The most that connecting takes (default 500 ms).
    pub connect: Duration,
    /// The most that an answer takes (default 500 ms).
    pub answer: Duration,
    /// How long nobody asks again after there was no answer (250 ms).
    pub retry: Duration,
}

impl SharedStore {
    /// The usual times.
    pub fn new(url: impl Into<String>, gateway: impl Into<String>) -> Self {
        Self {
            url: Secret::new(url),
            prefix: "tollkeeper".to_owned(),
            gateway: gateway.into(),
            lease_age: Duration::from_secs(10),
            connect: Duration::from_millis(500),
            answer: Duration::from_millis(500),
            retry: Duration::from_millis(250),
        }
    }
}
