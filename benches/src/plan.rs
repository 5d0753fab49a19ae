//! How much load a run makes. Everything is bounded in count; the defaults end within a few minutes on two cores.

use clap::Parser;

/// What Tollkeeper adds to a request, beside a direct connection and a bare hyper passthrough.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Plan {
    /// Rounds; in each, every target gets its share of the load in turn.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
    /// Connections of the closed loops.
    #[arg(long, default_value_t = 32)]
    pub connections: u32,
    /// Unary requests a round and target.
    #[arg(long, default_value_t = 10_000)]
    pub requests: u32,
    /// Streams a round and target.
    #[arg(long, default_value_t = 1_000)]
    pub streams: u32,
    /// Connections of the closed loop of streams.
    #[arg(long, default_value_t = 8)]
    pub stream_connections: u32,
    /// Seconds a round and target of each open loop.
    #[arg(long, default_value_t = 4)]
    pub seconds: u32,
    /// Unary requests a second of the open loop; without it half of what Tollkeeper reached in the closed loop.
    #[arg(long)]
    pub rate: Option<u32>,
    /// Streams a second of the open loop; without it half of what Tollkeeper reached in the closed loop.
    #[arg(long)]
    pub stream_rate: Option<u32>,
    /// Streams held open at once for the memory figure.
    #[arg(long, default_value_t = 500)]
    pub open_streams: u32,
    /// Also send 100,000 requests and 2,000 streams to Tollkeeper and print its memory on the way.
    #[arg(long)]
    pub long: bool,
    /// Run as one of the servers instead of measuring.
    #[arg(long, hide = true)]
    pub serve: Option<Role>,
    /// Where the passthrough sends requests.
    #[arg(long, hide = true)]
    pub to: Option<String>,
}

/// The servers that this program can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// The canned upstream.
    Upstream,
    /// The bare hyper passthrough.
    Passthrough,
}
