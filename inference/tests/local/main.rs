//! The embedded engines through their public door: [`tollkeeper_inference::local::LocalEngines`].

mod ask;
#[cfg(feature = "llama-cpp")]
mod llama;
mod loading;
#[cfg(feature = "llama-cpp")]
mod model;
mod serving;
