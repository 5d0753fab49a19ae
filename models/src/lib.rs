//! The model that ships with Tollkeeper: its trainer, a GGUF writer and a generator of random-weight files.

pub mod chat_model;
pub mod data;
pub mod gguf;
pub mod projector;
pub mod quant;
pub mod random;
pub mod reranker;
pub mod rng;
#[cfg(feature = "train")]
pub mod train;
