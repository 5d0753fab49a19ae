//! The embedded engines: every local model on a thread of its own, loaded in the background, reloaded when the configuration changes.

mod answer;
mod batch;
mod board;
#[cfg(feature = "candle")]
mod candle;
mod card;
mod control;
mod daily;
mod draft;
mod dry;
mod embedder;
pub mod engine;
mod form;
mod formats;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gbnf;
mod gguf;
mod guess;
mod guide;
mod host;
mod journal;
mod known;
mod kv_store;
#[cfg(feature = "llama-cpp")]
mod llama_cpp;
#[cfg(feature = "llama-cpp")]
mod load_log;
mod manager;
#[cfg(any(feature = "llama-cpp", feature = "candle"))]
mod model_file;
mod nvml;
mod output;
pub mod picture;
mod prefetch;
mod prepare;
pub mod process;
mod queue;
mod sampler;
pub mod scripted;
mod size;
mod slots;
mod stop;
mod swap;
mod teach;
mod template;
mod text;
pub mod vocabulary;
mod vram;
mod worker;

use crate::backend::{BackendHealth, BackendState};
use crate::reply::{Call, Reply};
use card::Card;
pub use card::CardReading;
use daily::Timetable;
use host::{Home, Host};
use jiff::Timestamp;
pub use journal::{Phase, Swap, SwapReport};
pub use known::Beginnings;
pub use kv_store::KvStoreReading;
use kv_store::{Budget, KvStore};
pub use manager::{LocalMemory, Way};
use manager::{Manager, Status, fault};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use swap::{ModelKey, Refusal, Rules, Spec, State, Want};
use tokio::sync::watch;
use tokio::time::Instant;
use tollkeeper_config::{KvCache, Local, LocalModel, SwapRules};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// All local models, each with an engine thread of its own, in one budget of memory. Dropping it stops them.
pub struct LocalEngines {
    manager: Arc<Manager>,
    models: RwLock<BTreeMap<Arc<str>, Entry>>,
    max_wait: RwLock<Duration>,
    /// Whether all models that are loaded at the start were there once.
    settled: AtomicBool,
    timetable: watch::Sender<Timetable>,
    /// The card that they share; another one needs a restart.
    card: Option<Arc<Card>>,
}

/// A configured model.
#[derive(Clone)]
struct Entry {
    key: ModelKey,
    host: Arc<Host>,
    /// As it was configured; it may run smaller, if it may be fitted.
    configured: Arc<LocalModel>,
}

/// A local model as an operator sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalStatus {
    /// Its name.
    pub name: Arc<str>,
    /// `absent`, `loading`, `ready`, `draining`, `unloading` or `failed`.
    pub state: &'static str,
    /// Why it failed.
    pub reason: Option<Arc<str>>,
    /// Whether it makes room for others.
    pub pinned: bool,
    /// How long until it can serve; zero when it does.
    pub ready_in: Duration,
    /// How much of its load is done, 0 to 1, while it is loaded: tensors read, as its engine counts them. `None` if that does not tell.
    pub progress: Option<f32>,
    /// Bytes it takes in memory, or would take.
    pub bytes: u64,
    /// Slots, and those of them that are in use.
    pub slots: (u32, u32),
    /// Tokens of context of each slot.
    pub context: u32,
    /// Tokens of prompts read in a second, as measured; `None` before that.
    pub prefill_rate: Option<f64>,
    /// Tokens written in a second, all answers together, by how many answers there are at most (1, 2, 4, 8 and so on), as far as measured.
    pub decode_rates: Vec<(u32, f64)>,
    /// Guessed tokens since its settings changed last; `None` if none are guessed.
    pub guesses: Option<GuessCount>,
}

/// How guessed tokens of a model fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuessCount {
    /// `lookup` or `draft`.
    pub source: &'static str,
    /// Tokens that were checked.
    pub guessed: u64,
    /// Those of them that were drawn then.
    pub accepted: u64,
}

impl LocalStatus {
    /// All values of `state`.
    pub const STATES: [&'static str; 6] = ["absent", "loading", "ready", "draining", "unloading", "failed"];
}

/// What an operator can do with a local model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalAction {
    /// Bring it into memory; others make room for it.
    Load,
    /// Take it out of memory when what runs has ended. The next request brings it back.
    Unload,
    /// Never take it out for another.
    Pin,
    /// Let it make room for others again.
    Unpin,
}

impl LocalEngines {
    /// Starts the threads of all models and begins to load as many of them as there is room for, in the order of the file. `program`
    /// runs those engines that have a process of their own (see [`process`]); without one, only threads do. Must be called inside a
    /// runtime.
    pub fn start(config: &Local, program: Option<Arc<Path>>) -> Self {
        Self::start_in(config, Home { program, card: Card::find(&config.gpu), store: KvStore::new(kept(config)) })
    }

    fn start_in(config: &Local, home: Home) -> Self {
        let card = home.card.clone();
        let (timetable, times) = watch::channel(Timetable::new());
        let engines = Self {
            manager: Manager::start(rules(config, home.card.as_deref()), home),
            models: RwLock::default(),
            max_wait: RwLock::new(config.swap.max_wait),
            settled: AtomicBool::new(false),
            timetable,
            card,
        };
        let manager = Arc::downgrade(&engines.manager);
        let wish = move |model| {
            if let Some(manager) = manager.upgrade() {
                manager.want_for(model, Want::Schedule, daily::PATIENCE);
            }
        };
        tokio::spawn(daily::ring(times, Timestamp::now, wish));
        engines.reload(config);
        engines
    }

    /// Takes over a new configuration. Models that did not change stay as they are; one that failed gets another chance; those that are
    /// gone or changed end when they have answered what they were asked.
    pub fn reload(&self, config: &Local) {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        *self.max_wait.write().unwrap_or_else(PoisonError::into_inner) = config.swap.max_wait;
        let rules = rules(config, self.card.as_deref());
        let budget = rules.budget;
        self.manager.rules(rules);
        let mut before = std::mem::take(&mut *models);
        for (name, model) in &config.models {
            let kept = before.remove(name.as_str());
            let entry = match kept {
                Some(entry) if runs_alike(&entry.configured, model) => {
                    if self.manager.status_of(entry.key).is_some_and(|status| status.failed.is_some()) {
                        self.manager.want(entry.key, Want::Operator);
                    }
                    self.manager.pin(entry.key, model.residency.pin);
                    Some(Entry { configured: model.clone(), ..entry })
                }
                gone => {
                    if let Some(gone) = gone {
                        self.manager.retire(gone.key);
                    }
                    self.add(model, budget)
                }
            };
            if let Some(entry) = entry {
                models.insert(name.as_str().into(), entry);
            }
        }
        before.into_values().for_each(|gone| self.manager.retire(gone.key));
        let times = models.values().map(|entry| (entry.key, entry.configured.preload_at.clone()));
        self.timetable.send_replace(times.filter(|(_, times)| !times.is_empty()).collect());
    }

    fn add(&self, configured: &Arc<LocalModel>, budget: u64) -> Option<Entry> {
        let (model, bytes) = size::plan(configured, budget);
        let residency = model.residency;
        let spec = Spec {
            bytes,
            pinned: residency.pin,
            keep_alive: residency.keep_alive,
            load_time: size::expected_load(bytes),
        };
        match self.manager.add(model, spec) {
            Ok((key, host)) => {
                if residency.preload || residency.pin {
                    self.manager.want(key, if residency.pin { Want::Operator } else { Want::Preload });
                }
                Some(Entry { key, host, configured: configured.clone() })
            }
            Err(error) => {
                tracing::error!(model = configured.name, %error, "no thread for the model");
                None
            }
        }
    }

    /// Sends a request to a model and returns when the answer begins; a model that is not in memory is brought in first. Dropping the
    /// answer (or this future) frees its slot within one decode step.
    ///
    /// # Errors
    /// `Unavailable`: no such model, or it failed to load, or did not come in time (then `retry_after` says when it may be there).
    /// `Overloaded`: its queue is full. `BadRequest`, `ContextLength`: the request cannot be answered by this model. `Timeout`: the
    /// deadline passed before the first token. `Internal`: the engine crashed.
    pub async fn send(&self, name: &str, call: Call) -> Result<Reply, ProviderFault> {
        loop {
            let Some(Entry { key, host, .. }) = self.entry(name) else {
                return Err(ProviderFault::new(FaultKind::Unavailable, unknown(name)));
            };
            let ticket = host.admit(&call)?;
            // What is wrong with the request is said before a model is loaded for it, if that can be known.
            let early = host.prepare(&call).await.transpose()?;
            let patience = Instant::now() + *self.max_wait.read().unwrap_or_else(PoisonError::into_inner);
            let lease = match self.manager.lease(key, call.deadline.min(patience)).await {
                Ok(lease) => lease,
                // The configuration changed meanwhile: perhaps there is another model of this name.
                Err(Refusal::Retired) if self.entry(name).is_some_and(|entry| entry.key != key) => continue,
                Err(Refusal::Late { .. }) if call.deadline <= patience => return Err(host::late(name)),
                Err(refusal) => return Err(fault(host.model(), &refusal)),
            };
            let work = match early {
                Some(work) => work,
                None => host.prepare(&call).await.unwrap_or_else(|| Err(host::late(name)))?,
            };
            return host.answer(work, &call, ticket, lease).await;
        }
    }

    /// The state of a model. `in_flight` and `waiting` count sequences: a request for three answers is three.
    pub fn state(&self, name: &str) -> BackendState {
        let found = self.entry(name).and_then(|entry| Some((self.manager.status_of(entry.key)?, entry)));
        let Some((status, Entry { key, host, .. })) = found else {
            return BackendState::idle(BackendHealth::Unavailable(unknown(name).into()));
        };
        let health = match (&status.failed, status.state) {
            (Some(reason), _) => BackendHealth::Unavailable(reason.clone()),
            (None, State::Ready { .. }) => BackendHealth::Ready,
            (None, _) => BackendHealth::Absent { ready_in: self.manager.ready_in(key) },
        };
        let reading = host.reading();
        BackendState {
            health,
            in_flight: reading.running,
            waiting: host.taken().saturating_sub(reading.running),
            queue_tokens: reading.queue_tokens,
            unread: reading.unread,
            slots: Some(host.model().slots),
            ttft: reading.ttft,
            prefill: known_rate(reading.rates.prefill),
            decode: known_rate(reading.rates.decode_of_one(reading.running + 1)),
            overall: known_rate(reading.rates.overall),
            kv_usage: Some(reading.kv_usage),
            ..BackendState::idle(BackendHealth::Ready)
        }
    }

    /// Where every model is, by name.
    pub fn statuses(&self) -> Vec<LocalStatus> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner).clone();
        let shown = |(name, Entry { key, host, .. }): (Arc<str>, Entry)| {
            let status = self.manager.status_of(key)?;
            let (model, reading) = (host.model(), host.reading());
            let known = |rate: &f64| *rate > 0.0;
            let decode_rates = (0..).map(|power| 1 << power).zip(reading.rates.decode);
            Some(LocalStatus {
                name,
                state: state_name(&status),
                progress: host.progress().filter(|_| matches!(status.state, State::Loading { .. })),
                pinned: status.pinned,
                ready_in: self.manager.ready_in(key),
                bytes: status.bytes,
                slots: (model.slots, reading.running),
                prefill_rate: Some(reading.rates.prefill).filter(known),
                decode_rates: decode_rates.filter(|(_, rate)| known(rate)).collect(),
                context: model.context,
                guesses: host.guesses().map(|(source, guessed, accepted)| GuessCount { source, guessed, accepted }),
                reason: status.failed,
            })
        };
        models.into_iter().filter_map(shown).collect()
    }

    /// Does something with a model; returns whether there is one of this name. What comes of it shows in [`LocalEngines::statuses`].
    pub fn act(&self, name: &str, action: LocalAction) -> bool {
        let Some(Entry { key, .. }) = self.entry(name) else { return false };
        match action {
            LocalAction::Load => self.manager.want(key, Want::Operator),
            LocalAction::Unload => self.manager.release(key),
            LocalAction::Pin => self.manager.pin(key, true),
            LocalAction::Unpin => self.manager.pin(key, false),
        }
        true
    }

    /// Somebody was sent elsewhere because this model was not in memory: load it when what has to go for it is idle.
    pub fn missed(&self, name: &str) {
        if let Some(Entry { key, .. }) = self.entry(name) {
            self.manager.want(key, Want::Hint);
        }
    }

    /// A model shall come as if an operator had said so, if it can within so long; a load that has begun then goes on.
    pub fn order(&self, name: &str, patience: Duration) {
        if let Some(Entry { key, .. }) = self.entry(name) {
            self.manager.want_for(key, Want::Operator, patience);
        }
    }

    /// What bringing a model into memory would take now; `None` if it is there or on its way, cannot come, or is unknown.
    pub fn way_for(&self, name: &str) -> Option<Way> {
        self.manager.way_for(self.entry(name)?.key)
    }

    /// What models may take, and what is left of it.
    pub fn memory(&self) -> LocalMemory {
        self.manager.memory()
    }

    /// What the card that they share showed when it was last looked at; `None` without one.
    pub fn card(&self) -> Option<Arc<CardReading>> {
        self.manager.card()
    }

    /// What the swaps so far took.
    pub fn swaps(&self) -> SwapReport {
        self.manager.swaps()
    }

    /// What is kept of conversations that have no slot.
    pub fn kept_kv(&self) -> KvStoreReading {
        self.manager.store().reading()
    }

    /// Whether models are still being loaded for the first time since the start.
    pub fn preloading(&self) -> bool {
        let first = !self.settled.load(Ordering::Relaxed);
        let loading = first && self.manager.is_loading();
        if first && !loading {
            self.settled.store(true, Ordering::Relaxed);
        }
        loading
    }

    /// The names of all models.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// How many bytes of a request's text the model's engine has read before.
    pub fn cached(&self, name: &str, beginnings: &Beginnings) -> u64 {
        self.entry(name).map_or(0, |entry| entry.host.cached(beginnings))
    }

    /// The exact number of prompt tokens of a request, when the model was loaded before and would not refuse it.
    pub fn input_tokens(&self, name: &str, request: &Request) -> Option<u64> {
        self.entry(name)?.host.input_tokens(request)
    }

    /// Waits until no model is being loaded: what there was room for is there, or has failed.
    pub async fn ready(&self) {
        self.manager.settled().await;
    }

    /// Breaks off all answers, stops all engines and waits for their threads.
    pub async fn shutdown(&self) {
        std::mem::take(&mut *self.models.write().unwrap_or_else(PoisonError::into_inner));
        let hosts = self.manager.stop();
        let store = self.manager.store().clone();
        let joined = tokio::task::spawn_blocking(move || {
            hosts.iter().for_each(|host| host.join());
            store.flush();
        });
        if joined.await.is_err() {
            tracing::error!("the engine threads could not be waited for");
        }
    }

    fn entry(&self, name: &str) -> Option<Entry> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}

impl Drop for LocalEngines {
    fn drop(&mut self) {
        self.manager.stop().iter().for_each(|host| host.join());
    }
}

fn rules(config: &Local, card: Option<&Card>) -> Rules {
    let SwapRules { min_residency, drain, .. } = config.swap;
    let budget = config.vram.unwrap_or_else(|| card.map_or_else(size::of_machine, Card::budget));
    Rules { budget, min_residency, drain }
}

fn kept(config: &Local) -> Budget {
    let KvCache { memory, disk, folder } = config.kv_cache.clone();
    Budget { memory, disk, folder }
}

fn state_name(status: &Status) -> &'static str {
    match (status.state, &status.failed) {
        (State::Absent, Some(_)) => "failed",
        (State::Absent, None) => "absent",
        (State::Loading { .. }, _) => "loading",
        (State::Ready { .. }, _) => "ready",
        (State::Draining { .. }, _) => "draining",
        (State::Unloading, _) => "unloading",
    }
}

fn unknown(name: &str) -> String {
    format!("there is no local model `{name}`")
}

/// Whether a loaded model can go on under the new configuration: prices, abilities and pins do not touch the engine.
fn runs_alike(old: &LocalModel, new: &LocalModel) -> bool {
    let engine = |model: &LocalModel| LocalModel {
        price: new.price.clone(),
        abilities: new.abilities,
        residency: new.residency,
        preload_at: new.preload_at.clone(),
        ..model.clone()
    };
    engine(old) == engine(new)
}
/// Whole tokens a second; `None` for those that are not known.
fn known_rate(rate: f64) -> Option<u32> {
    (rate >= 1.0).then_some(rate as u32)
}
