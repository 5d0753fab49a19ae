//! The embedded engines (being written).

use crate::backend::{BackendHealth, BackendState};
use crate::reply::{Call, Reply};
use tollkeeper_config::Local;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// All local models, each on its engine's thread.
pub struct LocalEngines;

impl LocalEngines {
    /// Starts loading every model in the background.
    pub fn start(_config: &Local) -> Self {
        Self
    }

    /// Starts models that are new or changed, stops those that are gone.
    pub fn reload(&self, _config: &Local) {}

    /// Sends a request to a model.
    pub async fn send(&self, name: &str, _call: Call) -> Result<Reply, ProviderFault> {
        Err(ProviderFault::new(FaultKind::Unavailable, format!("the local model `{name}` is not there")))
    }

    /// The state of a model.
    pub fn state(&self, name: &str) -> BackendState {
        BackendState::idle(BackendHealth::Unavailable(format!("the local model `{name}` is not there").into()))
    }

    /// The names of all models.
    pub fn names(&self) -> Vec<std::sync::Arc<str>> {
        Vec::new()
    }

    /// The exact number of prompt tokens, when the model is loaded.
    pub fn input_tokens(&self, _name: &str, _request: &Request) -> Option<u64> {
        None
    }

    /// Waits until every model is loaded or has failed to load.
    pub async fn ready(&self) {}

    /// Stops all engines and waits for their threads.
    pub async fn shutdown(&self) {}
}
