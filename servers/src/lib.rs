//! Real servers as child processes, and wires to them that can be made bad: what the tests of several crates need.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a harness fails by panicking: that is how a test learns of it"
)]

mod postgres;
mod proxy;
mod redis;

pub use postgres::PostgresServer;
pub use proxy::Proxy;
pub use redis::RedisServer;

use std::time::Duration;

/// How long a server may take to answer before that counts as a hang. Far above what a loaded two-core machine needs.
const PATIENCE: Duration = Duration::from_secs(30);
