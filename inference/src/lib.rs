//! Obtain tokens: one [`Fleet`] in front of local engines and remote providers.
//!
//! Prices, agents and budgets are unknown here.

pub mod backend;
pub mod health;
pub mod local;
pub mod remote;
pub mod reply;

pub use backend::{BackendHealth, BackendState};
pub use reply::{Call, EventStream, Frame, FrameStream, Reply, ReplyBody};

use local::LocalEngines;
use std::sync::Arc;
use tollkeeper_config::{BackendId, Config};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// A provider that cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// One line for each provider that cannot be used.
    #[error("{}", .0.join("\n"))]
    Providers(Vec<String>),
}

/// All backends of a configuration.
pub struct Fleet {
    local: LocalEngines,
}

impl Fleet {
    /// Starts every backend. Local models load in the background; a model that fails to load is `Unavailable`, not an error here.
    ///
    /// # Errors
    /// A provider of an unknown kind or with an unusable address, all of them at once.
    pub fn start(config: &Config) -> Result<Self, FleetError> {
        Ok(Self { local: LocalEngines::start(&config.local) })
    }

    /// Takes over a new configuration. Providers that did not change keep their connections and health; running answers go on.
    pub fn reload(&self, config: &Config) {
        self.local.reload(&config.local);
    }

    /// The state of one backend; `Unavailable` for one that is not configured.
    pub fn snapshot(&self, id: &BackendId) -> BackendState {
        match id {
            BackendId::Local(name) => self.local.state(name),
            BackendId::Remote { .. } => BackendState::idle(BackendHealth::Unavailable(format!("{id} is not there").into())),
        }
    }

    /// Sends a request to one backend, with a few tries if it is remote. A remote stream is returned when its first frame has arrived.
    ///
    /// # Errors
    /// What the backend did wrong; no token has been produced for the client.
    pub async fn send(&self, id: &BackendId, call: Call) -> Result<Reply, ProviderFault> {
        match id {
            BackendId::Local(name) => self.local.send(name, call).await,
            BackendId::Remote { .. } => Err(ProviderFault::new(FaultKind::Unavailable, format!("{id} is not there"))),
        }
    }

    /// The state of every local model (by name), every provider (by name) and every remote model used so far (`provider/model`).
    pub fn states(&self) -> Vec<(Arc<str>, BackendState)> {
        self.local.names().into_iter().map(|name| (name.clone(), self.local.state(&name))).collect()
    }

    /// The exact number of prompt tokens of a request, when the backend can count them now (a loaded local model).
    pub fn input_tokens(&self, id: &BackendId, request: &Request) -> Option<u64> {
        match id {
            BackendId::Local(name) => self.local.input_tokens(name, request),
            BackendId::Remote { .. } => None,
        }
    }

    /// Waits until every local model is loaded or has failed to load.
    pub async fn ready(&self) {
        self.local.ready().await;
    }

    /// Stops the local engines and closes idle connections; answers that still run are broken off.
    pub async fn shutdown(&self) {
        self.local.shutdown().await;
    }
}
