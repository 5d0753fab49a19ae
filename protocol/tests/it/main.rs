//! The crate from outside: providers' streams as they are, requests, round trips, and any bytes at all.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

#[path = "../../fuzz/bodies.rs"]
mod bodies;
mod errors;
mod never_panics;
mod providers;
mod requests;
mod round_trip;
mod splicing;

use bytes::Bytes;
use tollkeeper_protocol::sse::{SseDecoder, SseFrame};

/// The frames of a whole stream.
fn frames(stream: &[u8]) -> Vec<SseFrame> {
    let mut decoder = SseDecoder::new(1 << 20);
    decoder.push(&Bytes::copy_from_slice(stream)).unwrap();
    std::iter::from_fn(|| decoder.finish()).collect()
}
