//! The HTTP edge and the composition root: everything the binary does, as a library, so that tests run the real gateway in their own process.
//!
//! `infer.rs` tells the way of one request; `app.rs` holds what all requests share; `listen.rs` accepts connections and drains them.

mod admin;
mod app;
mod auth;
mod billable;
mod body;
mod cascade;
pub mod cli;
mod cut;
mod dispatch;
mod economics;
mod error;
mod feedback;
mod health;
mod held;
mod infer;
mod json;
mod learning;
mod limits;
mod listen;
mod meter;
mod metrics;
mod models;
mod notify;
mod openapi;
mod paces;
mod planning;
mod quote;
mod relay;
mod request_body;
mod routes;
mod runs;
mod signature;
mod stack;
mod telemetry;
mod told;
mod unary;
mod wishes;

pub use app::{Gateway, Options, Running, StartError};
