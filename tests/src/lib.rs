//! Harness: a scripted upstream, the real gateway (in process or as the real binary) and a tiny client, all over real TCP on port 0.
//!
//! The tests themselves are in `it/`. Nothing here sleeps to let something happen: [`wait`] waits for a condition and fails loudly.
//!
//! | module | what it is |
//! |---|---|
//! | [`upstream`] | an OpenAI-compatible provider that counts what it served and plays faults |
//! | [`model_server`] | a vLLM, SGLang, llama-server or Ollama that tells how it is |
//! | [`setup`] | a configuration under construction, written to a temporary folder |
//! | [`gateway`] | the real gateway in this process, its metrics and its ledger |
//! | [`process`] | the real `tollkeeper` binary: signals, output, exit status |
//! | [`asks`] | the requests most tests send |
//! | [`client`] | one connection a request, so that dropping an answer is a client that leaves |
#![allow(clippy::unwrap_used, clippy::panic, reason = "a harness fails by panicking: that is how a test learns of it")]

pub mod asks;
pub mod client;
pub mod gateway;
pub mod metrics;
pub mod model_server;
pub mod process;
pub mod setup;
pub mod upstream;
pub mod wait;
