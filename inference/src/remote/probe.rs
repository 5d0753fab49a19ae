//! Asks servers that one runs oneself how they are, in the background, so that no request has to find out.
//!
//! One task for each provider whose kind can be asked. It ends with its [`Probe`], that is when the provider is gone from the
//! configuration or has changed. Every question has a time limit and every answer a length; what cannot be read is as if it had not been said.

mod gauges;
mod lists;
mod view;

use super::body::TimedBody;
use super::client::{self, HttpClient};
use super::providers::percent_encoded;
use super::questions::{METRICS, Questions};
use super::request::Manner;
use super::retry::random_share;
use super::{Models as Used, Reach};
use crate::backend::BackendState;
use crate::health::Health;
use arc_swap::ArcSwap;
use bytes::Bytes;
use gauges::Gauges;
use http::StatusCode;
use lists::Models;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use view::{Told, View};

/// How long one question may take, the answer's end included.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest list of models or slots that is read.
const LONGEST_LIST: usize = 1024 * 1024;
/// The longest text of gauges that is read; vLLM's has a few hundred kilobytes with many adapters.
const LONGEST_GAUGES: usize = 4 * 1024 * 1024;
/// The longest answer to whether a server is well that is read; its status says all.
const LONGEST_HEALTH: usize = 64 * 1024;
/// Loaded models of one llama-server's router that are asked for their gauges.
const MOST_INSTANCES: usize = 16;
/// The longest pause between two probes of a server that is away, unless its probes are further apart anyway.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is known of a server by asking it; dropping it ends the asking.
#[derive(Debug)]
pub(super) struct Probe {
    view: Arc<ArcSwap<View>>,
    _task: AbortOnDropHandle<()>,
}

/// What a probe of a server saw last.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerStatus {
    /// The provider's name.
    pub provider: Arc<str>,
    /// Whether it was well; `None` before the first probe.
    pub up: Option<bool>,
    /// The models it has, 256 at most, and whether each is in memory, where it tells.
    pub models: Vec<(Arc<str>, Option<bool>)>,
    /// How busy its engines were.
    pub loads: Vec<ServerLoad>,
}

/// How busy a server was with one model.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerLoad {
    /// The model; `*` when the server has several and does not tell them apart.
    pub model: Arc<str>,
    /// Requests being answered, whoever sent them.
    pub running: u32,
    /// Requests waiting.
    pub waiting: u32,
    /// Share of the KV cache in use, 0 to 1; `None` when it does not tell.
    pub kv_usage: Option<f32>,
}

impl Probe {
    /// Begins to ask; `None` when the kind cannot be asked or must not be.
    pub(super) fn start(
        name: &Arc<str>,
        every: Option<Duration>,
        reach: &Reach,
        health: &Arc<Health>,
        models: &Arc<Used>,
        runtime: &Handle,
    ) -> Option<Self> {
        let questions = reach.manner.row.questions?;
        let view = Arc::new(ArcSwap::default());
        let asker = Asker {
            name: name.clone(),
            every: every?,
            manner: reach.manner.clone(),
            client: reach.client.clone(),
            questions,
            health: health.clone(),
            models: models.clone(),
            view: view.clone(),
        };
        Some(Self { view, _task: AbortOnDropHandle::new(runtime.spawn(asker.run())) })
    }

    /// What is known of a model's backend by asking, laid over what is known by using it; `all` requests of ours are at the server.
    pub(super) fn of_model(&self, model: &str, state: BackendState, all: u32) -> BackendState {
        self.view.load().of_model(model, state, all)
    }

    /// The same for the server as a whole.
    pub(super) fn of_server(&self, state: BackendState) -> BackendState {
        let all = state.in_flight;
        self.view.load().of_server(state, all)
    }

    /// What was seen last.
    pub(super) fn status(&self, provider: Arc<str>) -> ServerStatus {
        let view = self.view.load();
        let models: Vec<_> = view.models.iter().flat_map(|models| &models.all).collect();
        let only = if let [only] = models[..] { only.name.clone() } else { "*".into() };
        let load = |(model, load): &(Option<Arc<str>>, view::Load)| {
            let Gauges { running, waiting, kv } = load.seen();
            ServerLoad { model: model.clone().unwrap_or_else(|| only.clone()), running, waiting, kv_usage: kv }
        };
        let loads = view.loads.iter().map(load).collect();
        let models = models.iter().map(|model| (model.name.clone(), model.loaded)).collect();
        ServerStatus { provider, up: view.up, models, loads }
    }
}

/// The task that asks.
struct Asker {
    name: Arc<str>,
    every: Duration,
    manner: Arc<Manner>,
    client: Arc<HttpClient>,
    questions: &'static Questions,
    health: Arc<Health>,
    models: Arc<Used>,
    view: Arc<ArcSwap<View>>,
}

impl Asker {
    async fn run(self) {
        let mut failures = 0;
        loop {
            let verdict = self.well().await;
            failures = if verdict.is_ok() { 0 } else { failures + 1 };
            let pause = pause(self.every, failures);
            self.note(verdict, pause);
            if failures == 0 {
                self.look().await;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether the server is well, else what is wrong.
    async fn well(&self) -> Result<(), String> {
        let path = self.questions.health;
        let (status, _) = self.ask(path, LONGEST_HEALTH).await?;
        // One that has no such path, or wants another key for it, is there all the same.
        if status.is_server_error() { Err(format!("it answers {status} to {path}")) } else { Ok(()) }
    }

    /// Opens or closes the breaker.
    fn note(&self, verdict: Result<(), String>, pause: Duration) {
        let before = self.view.load().up;
        match verdict {
            Ok(()) => {
                self.health.reached();
                self.used().iter().for_each(|(_, health)| health.reached());
                if before == Some(false) {
                    tracing::info!(provider = &*self.name, "the server is back");
                }
            }
            Err(why) => {
                // Until the next probe has had its time.
                self.health.cut_off(Instant::now(), pause + 2 * PATIENCE);
                self.view.store(Arc::new(View::away(&self.view.load())));
                if before != Some(false) {
                    tracing::warn!(provider = &*self.name, why, "the server is away");
                }
            }
        }
    }

    /// Asks what the server has and how busy it is.
    async fn look(&self) {
        let before = self.view.load_full();
        let models = self.list().await;
        let router = models.as_ref().filter(|models| self.questions.loaded.is_none() && models.tell_loaded());
        let told = match router {
            Some(models) => self.instances(models).await,
            None => self.gauges().await,
        };
        self.view.store(Arc::new(View::well(&before, self.questions.names, models, told)));
    }

    /// The models it has.
    async fn list(&self) -> Option<Models> {
        let read = async |path| Models::read(&self.answer(path, LONGEST_LIST).await?);
        let mut models = read(self.questions.models).await?;
        if let Some(path) = self.questions.loaded
            && let Some(loaded) = read(path).await
        {
            models.mark_loaded(&loaded);
        }
        Some(models)
    }

    /// How busy it is, by model where it tells.
    async fn gauges(&self) -> Vec<(Option<Arc<str>>, Told)> {
        let Some(names) = &self.questions.gauges else { return Vec::new() };
        let Some(text) = self.answer(METRICS, LONGEST_GAUGES).await else { return self.slots().await };
        let told = gauges::read(&String::from_utf8_lossy(&text), names).into_iter();
        let told = told.filter(|(model, _)| model.as_deref().is_none_or(lists::is_name));
        told.map(|(model, gauges)| {
            let own = self.own(model.as_deref());
            (model.map(Arc::from), Told { gauges, full: None, own })
        })
        .collect()
    }

    /// How many slots are busy, if that is all it tells.
    async fn slots(&self) -> Vec<(Option<Arc<str>>, Told)> {
        let busy = self.own(None) > 0;
        let Some(path) = self.questions.slots.filter(|_| busy) else { return Vec::new() };
        let Some((running, full)) = self.answer(path, LONGEST_LIST).await.and_then(|body| lists::slots(&body)) else {
            return Vec::new();
        };
        let gauges = Gauges { running, waiting: 0, kv: None };
        // Requests that wait are not told, but those of ours that do not run must be waiting.
        let own = self.own(None);
        let gauges = Gauges { waiting: own.saturating_sub(running), ..gauges };
        vec![(None, Told { gauges, full: Some(full), own })]
    }

    /// The gauges of each loaded model behind llama-server's router, which has none of its own. Asking brings no model into memory.
    async fn instances(&self, models: &Models) -> Vec<(Option<Arc<str>>, Told)> {
        let Some(names) = &self.questions.gauges else { return Vec::new() };
        let mut told = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        for model in models.all.iter().filter(|model| model.loaded == Some(true)).take(MOST_INSTANCES) {
            if Instant::now() > deadline {
                break;
            }
            let path = format!("{METRICS}?model={}&autoload=false", percent_encoded(&model.name));
            let Some(text) = self.answer(&path, LONGEST_GAUGES).await else { continue };
            for (_, gauges) in gauges::read(&String::from_utf8_lossy(&text), names) {
                told.push((Some(model.name.clone()), Told { gauges, full: None, own: self.own(Some(&model.name)) }));
            }
        }
        told
    }

    /// Requests of ours to a model, or to the whole server.
    fn own(&self, model: Option<&str>) -> u32 {
        let now = Instant::now();
        match model {
            None => self.health.state(now).in_flight,
            Some(model) => {
                let same = |(name, health): &(Arc<str>, Arc<Health>)| {
                    lists::same(model, name).then(|| health.state(now).in_flight)
                };
                self.used().iter().filter_map(same).sum()
            }
        }
    }

    /// The models that have been used.
    fn used(&self) -> Vec<(Arc<str>, Arc<Health>)> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.iter().map(|(name, health)| (name.clone(), health.clone())).collect()
    }

    /// The body of a good answer.
    async fn answer(&self, path: &str, longest: usize) -> Option<Bytes> {
        match self.ask(path, longest).await {
            Ok((status, body)) if status.is_success() => Some(body),
            Ok((status, _)) => {
                tracing::debug!(provider = &*self.name, path, status = status.as_u16(), "a question was not answered");
                None
            }
            Err(why) => {
                tracing::debug!(provider = &*self.name, path, why, "a question was not answered");
                None
            }
        }
    }

    /// Asks one question.
    async fn ask(&self, path: &str, longest: usize) -> Result<(StatusCode, Bytes), String> {
        let request = self.manner.question(path).map_err(|error| format!("{path} makes no address: {error}"))?;
        let deadline = Instant::now() + PATIENCE;
        let answering = async {
            let sent = self.client.send(request).await;
            let (response, place) = sent.map_err(|error| client::fault(&self.name, &error).message)?;
            let (head, incoming) = response.into_parts();
            let body = TimedBody::new(self.name.clone(), incoming, place, PATIENCE, deadline);
            let body = body.collect(longest).await.map_err(|fault| fault.message)?;
            Ok((head.status, body))
        };
        timeout_at(deadline, answering)
            .await
            .unwrap_or_else(|_| Err(format!("no answer to {path} within {PATIENCE:?}")))
    }
}

/// How long to wait after so many failures in a row: a tenth more or less than configured, so that servers are not all asked at once, and
/// longer and longer while a server is away.
fn pause(every: Duration, failures: u32) -> Duration {
    let longer = every.saturating_mul(1 << failures.saturating_sub(1).min(3));
    let pause = if failures == 0 { every } else { longer.min(LONGEST_PAUSE) };
    pause.mul_f64(0.9 + random_share() / 5.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_are_away_are_asked_less_often() {
        let seconds = |every: u64, failures| {
            let pause = pause(Duration::from_secs(every), failures).as_secs_f64();
            (pause * 0.99 / 1.1, pause * 1.01 / 0.9)
        };
        for (every, failures, expected) in [
            (5, 0, 5.0),
            (5, 1, 5.0),
            (5, 2, 10.0),
            (5, 3, 20.0),
            (5, 4, 30.0),
            (5, 99, 30.0),
            (1, 99, 8.0),
            (3600, 0, 3600.0),
            (3600, 1, 30.0),
        ] {
            let (least, most) = seconds(every, failures);
            assert!((least..most).contains(&expected), "{every} s after {failures} failures");
        }
    }
}
