//! The embedded engines: every local model on a thread of its own, loaded in the background, reloaded when the configuration changes.

mod answer;
mod batch;
mod board;
mod control;
mod embedder;
pub mod engine;
mod host;
#[cfg(feature = "llama-cpp")]
mod llama_cpp;
#[cfg(feature = "llama-cpp")]
mod load_log;
mod output;
mod prepare;
mod sampler;
#[cfg(feature = "llama-cpp")]
mod schema;
pub mod scripted;
mod slots;
mod stop;
#[allow(dead_code)]
mod swap;
mod template;
mod text;
mod tool_calls;
mod worker;

use crate::backend::{BackendHealth, BackendState};
use crate::reply::{Call, Reply};
use host::{Host, Stage};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tollkeeper_config::{Local, LocalModel};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// All local models, each on its engine's thread. Dropping it stops them.
pub struct LocalEngines {
    models: RwLock<Models>,
}

#[derive(Default)]
struct Models {
    serving: BTreeMap<Arc<str>, Arc<Host>>,
    /// Removed or changed models that still answer what they were asked.
    draining: Vec<Arc<Host>>,
}

impl LocalEngines {
    /// Starts loading every model in the background. A model that cannot be loaded says so in its state.
    pub fn start(config: &Local) -> Self {
        let engines = Self { models: RwLock::default() };
        engines.reload(config);
        engines
    }

    /// Starts models that are new, changed, or failed before; stops those that are gone or changed when they have answered what they
    /// were asked. Models that did not change stay loaded.
    pub fn reload(&self, config: &Local) {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        models.draining.retain(|host| !host.is_over());
        let before = std::mem::take(&mut models.serving);
        for (name, model) in &config.models {
            let kept = before
                .get(name.as_str())
                .filter(|host| runs_alike(host.model(), model) && !matches!(host.stage(), Stage::Failed(_)));
            let host = kept.cloned().unwrap_or_else(|| Arc::new(Host::start(model.clone())));
            models.serving.insert(name.as_str().into(), host);
        }
        for (name, host) in before {
            if !models.serving.get(&name).is_some_and(|kept| Arc::ptr_eq(kept, &host)) {
                host.drain();
                models.draining.push(host);
            }
        }
    }

    /// Sends a request to a model and returns when the answer begins. Dropping the answer (or this future) frees its slot within
    /// one decode step.
    ///
    /// # Errors
    /// `Unavailable`: no such model, or it failed to load. `Overloaded`: its queue is full. `BadRequest`, `ContextLength`: the
    /// request cannot be answered by this model. `Timeout`: the deadline passed before the first token. `Internal`: the engine crashed.
    pub async fn send(&self, name: &str, call: Call) -> Result<Reply, ProviderFault> {
        let host = self.host(name).ok_or_else(|| ProviderFault::new(FaultKind::Unavailable, unknown(name)))?;
        host.send(call).await
    }

    /// The state of a model. `in_flight` and `waiting` count sequences: a request for three answers is three.
    pub fn state(&self, name: &str) -> BackendState {
        match self.host(name) {
            Some(host) => host.state(),
            None => BackendState::idle(BackendHealth::Unavailable(unknown(name).into())),
        }
    }

    /// The names of all models.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).serving.keys().cloned().collect()
    }

    /// The exact number of prompt tokens of a request, when the model is loaded and would not refuse it.
    pub fn input_tokens(&self, name: &str, request: &Request) -> Option<u64> {
        self.host(name)?.input_tokens(request)
    }

    /// Waits until every model is loaded or has failed to load.
    pub async fn ready(&self) {
        let hosts: Vec<Arc<Host>> =
            self.models.read().unwrap_or_else(PoisonError::into_inner).serving.values().cloned().collect();
        for host in hosts {
            host.settled().await;
        }
    }

    /// Breaks off all answers, stops all engines and waits for their threads.
    pub async fn shutdown(&self) {
        let models = std::mem::take(&mut *self.models.write().unwrap_or_else(PoisonError::into_inner));
        let hosts: Vec<Arc<Host>> = models.serving.into_values().chain(models.draining).collect();
        hosts.iter().for_each(|host| host.stop());
        let joined = tokio::task::spawn_blocking(move || hosts.iter().for_each(|host| host.join()));
        if joined.await.is_err() {
            tracing::error!("the engine threads could not be waited for");
        }
    }

    fn host(&self, name: &str) -> Option<Arc<Host>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).serving.get(name).cloned()
    }
}

fn unknown(name: &str) -> String {
    format!("there is no local model `{name}`")
}

/// Whether a loaded model can go on under the new configuration: prices and abilities do not touch the engine.
fn runs_alike(old: &LocalModel, new: &LocalModel) -> bool {
    let engine =
        |model: &LocalModel| LocalModel { price: new.price.clone(), abilities: new.abilities, ..model.clone() };
    engine(old) == engine(new)
}
