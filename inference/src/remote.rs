//! Cloud providers and other servers that speak OpenAI's dialect.

mod answer;
mod body;
mod client;
mod frames;
mod headroom;
mod probe;
pub mod providers;
pub mod questions;
mod request;
mod retry;

#[cfg(test)]
mod tests;

use crate::backend::{BackendHealth, BackendState};
use crate::health::{Flight, Health};
use crate::reply::{Call, Reply};
use client::HttpClient;
pub use headroom::Headroom;
pub(crate) use headroom::Told;
use probe::Probe;
pub use probe::{ServerLoad, ServerStatus};
use request::Manner;
use rustls::ClientConfig;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tollkeeper_config::Provider;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// Models whose health is remembered; further ones share the provider's. Configuration names far fewer.
const REMEMBERED_MODELS: usize = 1024;

/// A configured provider with its connections and what was learnt of it.
#[derive(Debug)]
pub(crate) struct Remote {
    name: Arc<str>,
    provider: Arc<Provider>,
    /// How to reach it, or why it cannot be reached as configured.
    reach: Result<Reach, Arc<str>>,
    health: Arc<Health>,
    models: Arc<Models>,
    /// What is known of it by asking, where it can be asked.
    probe: Option<Probe>,
    counters: Counters,
}

/// The models used so far.
type Models = RwLock<HashMap<Arc<str>, Arc<Health>>>;

#[derive(Debug)]
struct Reach {
    manner: Arc<Manner>,
    client: Arc<HttpClient>,
}

/// What a provider did, counted since it was configured.
#[derive(Debug, Default)]
struct Counters {
    tries: AtomicU64,
    retries: AtomicU64,
    bad_frames: Arc<AtomicU64>,
}

/// What a provider did, counted since it was configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoteCounts {
    /// Requests sent to it, repeated ones included.
    pub tries: u64,
    /// Of these, those that repeated a failed one.
    pub retries: u64,
    /// Stream frames that were not JSON and were passed on unread.
    pub bad_frames: u64,
}

/// Who is on the other side, for metrics and traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `gen_ai.provider.name`
    pub provider_name: &'static str,
    /// `server.address`
    pub server_address: Arc<str>,
}

/// The TLS settings that all providers share.
pub(crate) fn tls() -> ClientConfig {
    client::tls()
}

/// What keeps a provider from being used: its kind or address, as configured.
pub(crate) fn problem(provider: &Provider) -> Option<String> {
    manner(provider).err()
}

fn manner(provider: &Provider) -> Result<Manner, String> {
    let row = providers::find(&provider.kind).ok_or_else(|| {
        let kinds: Vec<_> = providers::ROWS.iter().map(|row| row.kind).collect();
        format!("there is no kind `{}`; the kinds are {}", provider.kind, kinds.join(", "))
    })?;
    Manner::new(row, provider)
}

impl Remote {
    /// Prepares a provider; nothing is connected before the first request, unless it is of a kind that is asked how it is.
    pub(crate) fn new(provider: Arc<Provider>, tls: &ClientConfig, runtime: &Handle) -> Self {
        let reach = match &provider.disabled {
            Some(reason) => Err(reason.as_str().into()),
            None => match manner(&provider) {
                Ok(manner) => Ok(Reach {
                    manner: Arc::new(manner),
                    client: Arc::new(HttpClient::new(tls.clone(), provider.connect_timeout)),
                }),
                Err(problem) => Err(format!("the provider `{}` cannot be used: {problem}", provider.name).into()),
            },
        };
        let name: Arc<str> = provider.name.as_str().into();
        let (health, models) = (Arc::new(Health::new(Instant::now())), Arc::default());
        let start = |reach| Probe::start(&name, provider.probe, reach, &health, &models, runtime);
        Self {
            probe: reach.as_ref().ok().and_then(start),
            name,
            provider,
            reach,
            health,
            models,
            counters: Counters::default(),
        }
    }

    /// Its configuration.
    pub(crate) fn provider(&self) -> &Provider {
        &self.provider
    }

    /// Sends a request to one of its models, `max_attempts` times at most.
    pub(crate) async fn send(&self, model: &Arc<str>, call: &Call) -> Result<Reply, ProviderFault> {
        let reach = self.reach.as_ref().map_err(|reason| ProviderFault::new(FaultKind::Unavailable, &**reason))?;
        let request = reach.manner.request(model, call)?;
        let (stream, generates) = (call.request.stream(), call.operation.generates());
        let flight = Flight::begin(self.health.clone(), self.model_health(model));
        let mut tries = 0;
        loop {
            tries += 1;
            self.counters.tries.fetch_add(1, Relaxed);
            let begun = Instant::now();
            let failure = match self.open(reach, request.clone(), stream, call.deadline).await {
                Ok(opened) => {
                    // A whole answer came when it was written: when it began nobody knows.
                    if stream || !generates {
                        flight.first_token(begun.elapsed());
                    }
                    return Ok(opened.into_reply(model, flight));
                }
                Err(failure) if generates => failure.amid(begun, self.provider.connect_timeout),
                Err(failure) => failure,
            };
            flight.failed(&failure.fault);
            tracing::debug!(
                request_id = &*call.request_id,
                provider = &*self.name,
                model = &**model,
                tries,
                kind = failure.fault.kind.name(),
                status = failure.fault.status,
                message = failure.fault.message,
                "try failed"
            );
            let pause =
                retry::pause(&failure.fault, tries).filter(|_| failure.again && tries < self.provider.max_attempts);
            match pause {
                Some(pause) if Instant::now() + pause < call.deadline => tokio::time::sleep(pause).await,
                _ => return Err(failure.fault),
            }
            if call.abandoned.load(Relaxed) {
                return Err(failure.fault);
            }
            self.counters.retries.fetch_add(1, Relaxed);
        }
    }

    /// The health of a model, remembered from now on.
    fn model_health(&self, model: &Arc<str>) -> Arc<Health> {
        if let Some(health) = self.models.read().unwrap_or_else(PoisonError::into_inner).get(model) {
            return health.clone();
        }
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if models.len() >= REMEMBERED_MODELS && !models.contains_key(model) {
            return Arc::new(Health::new(Instant::now()));
        }
        models.entry(model.clone()).or_insert_with(|| Arc::new(Health::new(Instant::now()))).clone()
    }

    /// The state of the provider as a whole.
    pub(crate) fn state(&self) -> BackendState {
        match &self.reach {
            Ok(_) => self.probed(self.health.state(Instant::now())),
            Err(reason) => BackendState::idle(BackendHealth::Unavailable(reason.clone())),
        }
    }

    fn probed(&self, state: BackendState) -> BackendState {
        match &self.probe {
            Some(probe) => probe.of_server(state),
            None => state,
        }
    }

    /// The state of one of its models: the worse of its own and the provider's, and what its server says about it.
    pub(crate) fn model_state(&self, model: &str) -> BackendState {
        let used = self.used_model_state(model);
        match &self.probe {
            Some(probe) => probe.of_model(model, used, self.health.state(Instant::now()).in_flight),
            None => used,
        }
    }

    /// What is known of a model by using it.
    fn used_model_state(&self, model: &str) -> BackendState {
        let provider = match &self.reach {
            Ok(_) => self.health.state(Instant::now()),
            Err(reason) => BackendState::idle(BackendHealth::Unavailable(reason.clone())),
        };
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = models.get(model).map(|health| health.state(Instant::now())) else {
            return BackendState { in_flight: 0, ..provider };
        };
        let health = match (provider.health, own.health) {
            (BackendHealth::Cooling { until: a }, BackendHealth::Cooling { until: b }) => {
                BackendHealth::Cooling { until: a.max(b) }
            }
            (BackendHealth::Ready, own) => own,
            (provider, _) => provider,
        };
        BackendState { health, ..own }
    }

    /// The models used so far.
    pub(crate) fn models(&self) -> Vec<Arc<str>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// What its server said last, if it is asked.
    pub(crate) fn server(&self) -> Option<ServerStatus> {
        Some(self.probe.as_ref()?.status(self.name.clone()))
    }

    /// What it did so far.
    pub(crate) fn counts(&self) -> RemoteCounts {
        RemoteCounts {
            tries: self.counters.tries.load(Relaxed),
            retries: self.counters.retries.load(Relaxed),
            bad_frames: self.counters.bad_frames.load(Relaxed),
        }
    }

    /// Who it is, if it can be reached at all.
    pub(crate) fn peer(&self) -> Option<Peer> {
        let manner = &self.reach.as_ref().ok()?.manner;
        Some(Peer { provider_name: manner.row.gen_ai_name, server_address: manner.endpoint.host.as_str().into() })
    }
}
