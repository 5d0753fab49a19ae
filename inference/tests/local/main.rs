//! The embedded engines through their public door: [`tollkeeper_inference::local::LocalEngines`].
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests fail by panicking")]

mod ask;
#[cfg(feature = "candle")]
mod bert;
#[cfg(feature = "candle")]
mod candle;
#[cfg(feature = "llama-cpp")]
mod completions;
#[cfg(feature = "llama-cpp")]
mod drafts;
#[cfg(all(feature = "candle", feature = "llama-cpp"))]
mod engines_agree;
#[cfg(feature = "llama-cpp")]
mod llama;
mod loading;
#[cfg(any(feature = "candle", feature = "llama-cpp"))]
mod model;
#[cfg(feature = "llama-cpp")]
mod reranking;
#[cfg(feature = "llama-cpp")]
mod schemas;
mod serving;
#[cfg(feature = "llama-cpp")]
mod structured;
#[cfg(feature = "llama-cpp")]
mod swap;
#[cfg(feature = "llama-cpp")]
mod toll_tiny;
#[cfg(feature = "llama-cpp")]
mod variants;
#[cfg(feature = "vision")]
mod vision;
