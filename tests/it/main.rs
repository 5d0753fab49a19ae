//! The integration tests of Tollkeeper: one binary, one module a theme. The harness is the library of this crate.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]
#![allow(clippy::float_cmp, reason = "counts in metrics are whole numbers")]

mod admin;
#[cfg(feature = "candle")]
mod candle;
mod cascade;
mod cli;
mod cluster;
mod crash;
mod economics;
mod edge;
mod engine_process;
mod errors;
mod faults;
#[cfg(feature = "llama-cpp")]
mod gguf;
mod harness;
mod learning;
mod lifecycle;
mod limits;
mod local;
mod metrics;
mod models;
mod money;
mod openapi;
mod passthrough;
mod postgres;
mod proof;
mod python;
mod rates;
mod reasoning;
mod rerank;
mod routing;
mod runs;
mod sharing;
mod swap;
mod tidy;
#[cfg(feature = "llama-cpp")]
mod tools;
mod unread;
mod velocity;
mod vision;
