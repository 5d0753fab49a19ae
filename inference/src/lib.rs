//! Obtain tokens: one [`Fleet`] in front of local engines and remote providers.
//!
//! Prices, agents and budgets are unknown here. A request comes in as a [`Call`] for one backend, an answer goes out as a [`Reply`]
//! whose stream stops its backend when it is dropped. What is learnt on the way ([`health`]) can be read as a [`BackendState`].

pub mod backend;
pub mod health;
pub mod local;
pub mod remote;
pub mod reply;
#[cfg(test)]
mod tests;

pub use backend::{BackendHealth, BackendState};
pub use remote::{Headroom, Peer, RemoteCounts, ServerLoad, ServerStatus};
pub use reply::{Call, EventStream, Frame, FrameStream, Reply, ReplyBody};

use arc_swap::ArcSwap;
pub use local::{
    Beginnings, CardReading, GuessCount, KvStoreReading, LocalAction, LocalMemory, LocalStatus, Phase, Swap,
    SwapReport, Way,
};

use local::LocalEngines;
use remote::Remote;
use rustls::ClientConfig;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tollkeeper_config::{BackendId, Config, Provider};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// Why a configuration cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// Providers that cannot be used as configured: one line each, with what to do.
    #[error("{}", .0.join("\n"))]
    Providers(Vec<String>),
}

/// All backends of a configuration.
pub struct Fleet {
    local: LocalEngines,
    remotes: ArcSwap<Remotes>,
    tls: ClientConfig,
    /// Where servers are asked how they are; a reload may come from any thread.
    runtime: Handle,
}

/// Providers by name.
type Remotes = BTreeMap<Arc<str>, Arc<Remote>>;

impl Fleet {
    /// Starts every backend. Local models load in the background; a model that fails to load is `Unavailable`, not an error here.
    /// Nothing is sent to a provider before its first request, but servers of the kinds that can be asked how they are. `program` runs
    /// engines in processes of their own, if there is one: see [`local::process`]. Must be called within tokio's runtime.
    ///
    /// # Errors
    /// As [`Fleet::check`].
    pub fn start(config: &Config, program: Option<Arc<Path>>) -> Result<Self, FleetError> {
        Self::check(config)?;
        let tls = remote::tls();
        let runtime = Handle::current();
        let remotes = ArcSwap::from_pointee(remotes(&config.providers, &Remotes::new(), &tls, &runtime));
        Ok(Self { local: LocalEngines::start(&config.local, program), remotes, tls, runtime })
    }

    /// Whether every provider can be used as configured; a key that is not set is no error.
    ///
    /// # Errors
    /// All providers of an unknown kind, or with an address or header that cannot be used.
    pub fn check(config: &Config) -> Result<(), FleetError> {
        let problems: Vec<_> = config
            .providers
            .iter()
            .filter_map(|(name, provider)| Some(format!("provider `{name}`: {}", remote::problem(provider)?)))
            .collect();
        if problems.is_empty() { Ok(()) } else { Err(FleetError::Providers(problems)) }
    }

    /// Takes over a new configuration. Providers that did not change keep their connections and health, a provider that cannot be
    /// used becomes `Unavailable`, running answers go on.
    pub fn reload(&self, config: &Config) {
        self.local.reload(&config.local);
        self.remotes.rcu(|old| remotes(&config.providers, old, &self.tls, &self.runtime));
    }

    /// The state of one backend; `Unavailable` for one that is not configured.
    pub fn snapshot(&self, id: &BackendId) -> BackendState {
        match id {
            BackendId::Local(name) => self.local.state(name),
            BackendId::Remote { provider, model } => match self.remotes.load().get(provider) {
                Some(remote) => remote.model_state(model),
                None => BackendState::idle(BackendHealth::Unavailable(not_configured(provider).into())),
            },
        }
    }

    /// Sends a request to one backend, with a few tries if it is remote. A remote stream is returned when its first frame has
    /// arrived, so that whatever goes wrong before is an error here and another backend can be asked.
    ///
    /// # Errors
    /// What the backend did wrong. Nothing of an answer has been handed out.
    pub async fn send(&self, id: &BackendId, call: Call) -> Result<Reply, ProviderFault> {
        match id {
            BackendId::Local(name) => self.local.send(name, call).await,
            BackendId::Remote { provider, model } => {
                let remote = self.remotes.load().get(provider).cloned();
                let remote =
                    remote.ok_or_else(|| ProviderFault::new(FaultKind::Unavailable, not_configured(provider)))?;
                remote.send(model, &call).await
            }
        }
    }

    /// Where every local model is.
    pub fn local_models(&self) -> Vec<LocalStatus> {
        self.local.statuses()
    }

    /// Whether models are still being loaded for the first time since the start.
    pub fn preloading(&self) -> bool {
        self.local.preloading()
    }

    /// Does something with a local model; returns whether there is one of this name.
    pub fn act(&self, model: &str, action: LocalAction) -> bool {
        self.local.act(model, action)
    }

    /// A request went elsewhere because this backend's model was not in memory.
    pub fn missed(&self, id: &BackendId) {
        if let BackendId::Local(name) = id {
            self.local.missed(name);
        }
    }

    /// A local model shall come as if an operator had said so, if it can within so long.
    pub fn order(&self, model: &str, patience: Duration) {
        self.local.order(model, patience);
    }

    /// What bringing a local model into memory would take now; `None` if it is there or on its way, cannot come, or is unknown.
    pub fn way_for(&self, model: &str) -> Option<Way> {
        self.local.way_for(model)
    }

    /// What the swaps of local models took.
    pub fn swaps(&self) -> SwapReport {
        self.local.swaps()
    }

    /// What is kept of local conversations that have no slot.
    pub fn kept_kv(&self) -> KvStoreReading {
        self.local.kept_kv()
    }

    /// What local models may take, and what is left of it.
    pub fn local_memory(&self) -> LocalMemory {
        self.local.memory()
    }

    /// What the card that local models share showed when it was last looked at; `None` without one.
    pub fn card(&self) -> Option<Arc<CardReading>> {
        self.local.card()
    }

    /// The state of every local model (by name), every provider (by name) and every remote model used so far (`provider/model`).
    pub fn states(&self) -> Vec<(Arc<str>, BackendState)> {
        let mut states: Vec<_> =
            self.local.names().into_iter().map(|name| (name.clone(), self.local.state(&name))).collect();
        for (name, remote) in self.remotes.load().iter() {
            states.push((name.clone(), remote.state()));
            let models = remote.models().into_iter();
            states.extend(models.map(|model| (format!("{name}/{model}").into(), remote.model_state(&model))));
        }
        states
    }

    /// What the servers that are asked how they are said last.
    pub fn servers(&self) -> Vec<ServerStatus> {
        self.remotes.load().values().filter_map(|remote| remote.server()).collect()
    }

    /// What each provider did since it was configured.
    pub fn counts(&self) -> Vec<(Arc<str>, RemoteCounts)> {
        self.remotes.load().iter().map(|(name, remote)| (name.clone(), remote.counts())).collect()
    }

    /// Who answers for a remote backend, for metrics and traces; `None` for local models and unusable providers.
    pub fn peer(&self, id: &BackendId) -> Option<Peer> {
        match id {
            BackendId::Local(_) => None,
            BackendId::Remote { provider, .. } => self.remotes.load().get(provider)?.peer(),
        }
    }

    /// How many bytes of a request's text the backend need not read again, as far as can be told without asking it: of local models. Since what
    /// one client sent serves all, who may ask this can tell whether somebody has sent the same beginning, as the time to the first token tells too.
    pub fn cached(&self, id: &BackendId, beginnings: &Beginnings) -> u64 {
        match id {
            BackendId::Local(name) => self.local.cached(name, beginnings),
            BackendId::Remote { .. } => 0,
        }
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

    /// Stops the local engines and closes idle connections. Local answers that still run are broken off.
    pub async fn shutdown(&self) {
        self.remotes.store(Arc::default());
        self.local.shutdown().await;
    }
}

/// The providers of a configuration, taking over those that did not change.
fn remotes(
    providers: &BTreeMap<String, Arc<Provider>>,
    old: &Remotes,
    tls: &ClientConfig,
    runtime: &Handle,
) -> Remotes {
    let remote = |name: &str, provider: &Arc<Provider>| match old.get(name) {
        Some(remote) if remote.provider() == &**provider => remote.clone(),
        _ => Arc::new(Remote::new(provider.clone(), tls, runtime)),
    };
    providers.iter().map(|(name, provider)| (name.as_str().into(), remote(name, provider))).collect()
}

fn not_configured(provider: &str) -> String {
    format!("there is no provider `{provider}` in the configuration")
}
