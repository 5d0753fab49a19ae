//! The integration tests of Tollkeeper: one binary, one module a theme. The harness is the library of this crate.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod harness;
mod tidy;
