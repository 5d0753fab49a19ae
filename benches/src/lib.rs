//! Whole-proxy load benches: what Tollkeeper adds to a request, beside the least that any proxy must add on the same machine.
//!
//! | module | what it is |
//! |---|---|
//! | [`plan`] | how much load, and its bounds |
//! | [`servers`] | the canned upstream and the bare hyper passthrough, each a process of its own |
//! | [`target`] | a running server process, with its CPU time and memory |
//! | [`load`] | the closed loop and the open loop |
//! | [`report`] | Markdown tables |
#![allow(clippy::unwrap_used, clippy::panic, reason = "a bench that cannot measure stops")]

pub mod load;
pub mod plan;
pub mod report;
pub mod servers;
pub mod target;
