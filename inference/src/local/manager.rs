//! The machine of [`super::swap`] at work: requests ask it for leases, engine threads report to it, a timer wakes it, and what it says
//! is done at once.
//!
//! Every event is taken in under one lock, and its effects are carried out under the same lock, so that orders reach the engine
//! threads in the order in which they were decided. Carrying one out never waits: it flips a flag, wakes a thread or answers a waiter.

use super::card::{self, Card, CardReading, Watchman};
use super::host::{Home, Host, Report};
use super::journal::{Journal, Phase, SwapReport};
use super::kv_store::KvStore;
use super::prefetch;
use super::swap::{Effect, Event, Machine, Model, ModelKey, Moment, Refusal, RequestId, Rules, Spec, State, Want};
use super::vram::shown;
use arc_swap::ArcSwap;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tollkeeper_config::{EngineKind, LocalModel, Speculate};
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

/// Decides which models of a device are in memory, and tells their threads.
pub(crate) struct Manager {
    floor: Mutex<Floor>,
    start: Instant,
    home: Home,
    wake: watch::Sender<Option<Moment>>,
    /// Where every model is; replaced when one moved.
    statuses: ArcSwap<BTreeMap<ModelKey, Status>>,
    /// Counts the replacements.
    moves: watch::Sender<u64>,
}

/// What the lock protects.
struct Floor {
    machine: Machine,
    hosts: BTreeMap<ModelKey, Arc<Host>>,
    waiting: HashMap<RequestId, oneshot::Sender<Result<(), Refusal>>>,
    requests: RequestId,
    models: ModelKey,
    journal: Journal,
    watchman: Watchman,
}

/// The memory that local models share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalMemory {
    /// Bytes that models may take together.
    pub budget: u64,
    /// Bytes that may be promised and that no model has.
    pub free: u64,
    /// Bytes of the budget that others hold on the card.
    pub taken: u64,
}

/// What bringing a model into memory would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The models that have to go for it.
    pub victims: Vec<Arc<str>>,
    /// How long models move for it: until it serves, and where some that have to go are at work, until those are back, since what they could
    /// not end in time waits for them and brings them in again.
    pub takes: Duration,
}

/// Where a model is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Status {
    pub(crate) state: State,
    /// Why it is left alone for now.
    pub(crate) failed: Option<Arc<str>>,
    pub(crate) pinned: bool,
    /// Bytes it takes in memory, or would take.
    pub(crate) bytes: u64,
}

/// The right to use a model in its present round; given back on drop. It begins as a place in the model's queue.
pub(crate) struct Lease {
    manager: Arc<Manager>,
    request: RequestId,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.request).finish()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut floor = self.manager.enter();
        floor.waiting.remove(&self.request);
        self.manager.step(&mut floor, Event::Left { request: self.request });
    }
}

impl Manager {
    /// A manager of so much memory. Must be called inside a runtime: its timer is a task there.
    pub(crate) fn start(rules: Rules, home: Home) -> Arc<Self> {
        let (wake, alarm) = watch::channel(None);
        let manager = Arc::new(Self {
            floor: Mutex::new(Floor {
                machine: Machine::new(rules),
                hosts: BTreeMap::new(),
                waiting: HashMap::new(),
                requests: 0,
                models: 0,
                journal: Journal::default(),
                watchman: Watchman::default(),
            }),
            start: Instant::now(),
            home,
            wake,
            statuses: ArcSwap::default(),
            moves: watch::channel(0).0,
        });
        tokio::spawn(keep_time(Arc::downgrade(&manager), alarm));
        if let Some(card) = manager.home.card.clone() {
            manager.seen(&card.last());
            tokio::spawn(watch(Arc::downgrade(&manager), card));
        }
        manager
    }

    fn enter(&self) -> MutexGuard<'_, Floor> {
        self.floor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        self.start.elapsed()
    }

    fn tell(&self, event: Event) {
        self.step(&mut self.enter(), event);
    }

    fn step(&self, floor: &mut Floor, event: Event) {
        let now = self.now();
        let of_request = matches!(event, Event::Asked { .. } | Event::Left { .. });
        let effects = floor.machine.step(now, event);
        // Requests for models that are there move no model: most are such.
        let moved = !of_request || !effects.iter().all(|effect| matches!(effect, Effect::Grant { .. }));
        effects.into_iter().for_each(|effect| self.carry_out(floor, now, effect));
        self.wake.send_if_modified(|wake| {
            let next = floor.machine.next_wake(now);
            next != std::mem::replace(wake, next)
        });
        if moved {
            self.publish(floor, now);
        }
    }

    fn carry_out(&self, floor: &mut Floor, now: Moment, effect: Effect) {
        match effect {
            Effect::Prefetch { model } => {
                if let Some(host) = floor.hosts.get(&model) {
                    prefetch::begin(&host.model().path);
                    if let Speculate::Draft(draft) = &host.model().speculate {
                        prefetch::begin(draft);
                    }
                }
            }
            Effect::Load { model, generation } => {
                if let Some(host) = floor.hosts.get(&model) {
                    floor.journal.loading(&host.model().name, now);
                    host.load(generation);
                }
            }
            Effect::Abort { model, .. } => {
                if let Some(host) = floor.hosts.get(&model) {
                    host.abort();
                }
            }
            Effect::Unload { model, .. } => {
                if let Some(host) = floor.hosts.get(&model) {
                    floor.journal.drained(&host.model().name, now);
                    host.unload();
                }
            }
            Effect::Grant { request, .. } => answer(floor, request, Ok(())),
            Effect::Refuse { request, refusal } => answer(floor, request, Err(refusal)),
            Effect::Abandon { model, refusal } => {
                if let Some(host) = floor.hosts.get(&model) {
                    host.abandon(fault(host.model(), &refusal));
                }
            }
            Effect::Forget { model } => {
                if let Some(host) = floor.hosts.remove(&model) {
                    tracing::info!(model = host.model().name, "local model removed");
                    host.leave();
                    // The last handle waits for the thread, which this may be.
                    std::thread::spawn(move || drop(host));
                }
            }
        }
    }

    /// Shows where the models are, if one has moved.
    fn publish(&self, floor: &mut Floor, now: Moment) {
        let status = |model: &Model| Status {
            state: model.state,
            failed: model.failure().cloned(),
            pinned: model.spec.pinned,
            bytes: model.spec.bytes,
        };
        let statuses: BTreeMap<ModelKey, Status> =
            floor.machine.models.iter().map(|(key, model)| (*key, status(model))).collect();
        let before = self.statuses.load();
        if **before == statuses {
            return;
        }
        for (key, status) in &statuses {
            let drains = |status: &Status| matches!(status.state, State::Draining { .. });
            if let (true, Some(host)) = (drains(status), floor.hosts.get(key))
                && !before.get(key).is_some_and(drains)
            {
                floor.journal.draining(&host.model().name, now);
            }
        }
        self.statuses.store(Arc::new(statuses));
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// Takes in a model and starts its thread.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn add(self: &Arc<Self>, model: Arc<LocalModel>, spec: Spec) -> std::io::Result<(ModelKey, Arc<Host>)> {
        let mut floor = self.enter();
        let key = floor.models;
        floor.models += 1;
        let manager = Arc::downgrade(self);
        let name = model.name.clone();
        let host = Host::start(
            model,
            self.home.clone(),
            Box::new(move |generation, report| {
                if let Some(manager) = manager.upgrade() {
                    manager.report(key, &name, generation, report);
                }
            }),
        )?;
        let host = Arc::new(host);
        floor.hosts.insert(key, host.clone());
        self.step(&mut floor, Event::Added { model: key, spec });
        Ok((key, host))
    }

    fn report(&self, model: ModelKey, name: &str, generation: u64, report: Report) {
        let mut floor = self.enter();
        let now = self.now();
        let event = match report {
            Report::Loaded { bytes, load, warm_up } => {
                floor.journal.phases(name, now, &[(Phase::Load, load), (Phase::WarmUp, warm_up)]);
                let known = floor.machine.models.get(&model).map_or(0, |model| model.spec.bytes);
                Event::Loaded { model, generation, bytes: bytes.unwrap_or(known) }
            }
            Report::LoadFailed(reason) => {
                tracing::error!(model = name, %reason, "the model could not be loaded");
                Event::LoadFailed { model, generation, reason }
            }
            Report::Crashed(reason) => {
                tracing::error!(model = name, %reason, "the engine crashed");
                floor.journal.crashed(name);
                Event::Crashed { model, generation, reason }
            }
            Report::Unloaded { save, free } => {
                tracing::info!(model = name, ?save, ?free, "model unloaded");
                floor.journal.phases(name, now, &[(Phase::Save, save), (Phase::Unload, free)]);
                Event::Unloaded { model, generation }
            }
        };
        self.step(&mut floor, event);
    }

    /// Waits for a lease of a model, until this moment at most.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn lease(self: &Arc<Self>, model: ModelKey, deadline: Instant) -> Result<Lease, Refusal> {
        let asked = self.now();
        let (lease, mut answer) = {
            let mut floor = self.enter();
            let request = floor.requests;
            floor.requests += 1;
            let (sender, answer) = oneshot::channel();
            floor.waiting.insert(request, sender);
            let deadline = deadline.saturating_duration_since(self.start);
            self.step(&mut floor, Event::Asked { model, request, deadline });
            (Lease { manager: self.clone(), request }, answer)
        };
        // Most need not wait.
        if let Ok(answer) = answer.try_recv() {
            return answer.map(|()| lease);
        }
        let answer = answer.await.unwrap_or(Err(Refusal::Stopping));
        let mut floor = self.enter();
        if let Some(host) = floor.hosts.get(&model).cloned() {
            floor.journal.waited(&host.model().name, self.now() - asked);
        }
        drop(floor);
        answer.map(|()| lease)
    }

    /// Where a model is.
    pub(crate) fn status_of(&self, model: ModelKey) -> Option<Status> {
        self.statuses.load().get(&model).cloned()
    }

    /// How long until a model can serve, by what loads took so far and who is at work at this moment.
    pub(crate) fn ready_in(&self, model: ModelKey) -> Duration {
        self.enter().machine.ready_in(self.now(), model)
    }

    /// Wishes for a model without a request.
    pub(crate) fn want(&self, model: ModelKey, want: Want) {
        self.tell(Event::Wanted { model, want, until: None });
    }

    /// The same, given up after so long.
    pub(crate) fn want_for(&self, model: ModelKey, want: Want, patience: Duration) {
        self.tell(Event::Wanted { model, want, until: Some(self.now() + patience) });
    }

    /// What loading a model would take now; `None` if it is there or on its way, or cannot come.
    pub(crate) fn way_for(&self, model: ModelKey) -> Option<Way> {
        let floor = self.enter();
        let (victims, takes) = floor.machine.way_for(model)?;
        let name = |victim: &ModelKey| Some(floor.hosts.get(victim)?.model().name.as_str().into());
        Some(Way { victims: victims.iter().filter_map(name).collect(), takes })
    }

    /// Takes a model out of memory when what runs has ended.
    pub(crate) fn release(&self, model: ModelKey) {
        self.tell(Event::Released { model });
    }

    /// Pins a model, or no more.
    pub(crate) fn pin(&self, model: ModelKey, pinned: bool) {
        self.tell(Event::Pinned { model, pinned });
    }

    /// Lets a model go that is not configured any more.
    pub(crate) fn retire(&self, model: ModelKey) {
        self.tell(Event::Retired { model });
    }

    /// Waits until no model is being loaded.
    pub(crate) async fn settled(&self) {
        let mut moves = self.moves.subscribe();
        while self.is_loading() {
            if moves.changed().await.is_err() {
                return;
            }
        }
    }

    /// What models may take, and what is left of it.
    pub(crate) fn memory(&self) -> LocalMemory {
        let machine = &self.enter().machine;
        LocalMemory { budget: machine.rules.budget, free: machine.free(), taken: machine.taken() }
    }

    /// What the card showed last, if there is one.
    pub(crate) fn card(&self) -> Option<Arc<CardReading>> {
        Some(self.home.card.as_ref()?.last())
    }

    /// The card was looked at: what others hold of it is not promised.
    pub(super) fn seen(&self, reading: &CardReading) {
        let ours = reading.ours();
        let mut floor = self.enter();
        let bytes = reading.within_reach(ours.max(floor.resident()), floor.machine.promised());
        self.step(&mut floor, Event::Reach { bytes });
        let Floor { machine, watchman, .. } = &mut *floor;
        watchman.note(reading, machine.rules.budget, machine.taken());
    }

    /// Other rules from now on.
    pub(crate) fn rules(&self, rules: Rules) {
        let mut floor = self.enter();
        let bytes = rules.budget;
        floor.machine.rules = rules;
        self.step(&mut floor, Event::Budget { bytes });
    }

    /// Where the KV of all models is kept.
    pub(crate) fn store(&self) -> &Arc<KvStore> {
        &self.home.store
    }

    /// What happened so far.
    pub(crate) fn swaps(&self) -> SwapReport {
        self.enter().journal.report()
    }

    /// Whether a model is being loaded.
    pub(crate) fn is_loading(&self) -> bool {
        self.statuses.load().values().any(|status| matches!(status.state, State::Loading { .. }))
    }

    /// Refuses everybody, and tells every thread to break off what it does; the hosts are to be joined.
    pub(crate) fn stop(&self) -> Vec<Arc<Host>> {
        let mut floor = self.enter();
        self.step(&mut floor, Event::Shutdown);
        let hosts: Vec<Arc<Host>> = std::mem::take(&mut floor.hosts).into_values().collect();
        hosts.iter().for_each(|host| host.leave());
        hosts
    }
}

fn answer(floor: &mut Floor, request: RequestId, answer: Result<(), Refusal>) {
    if let Some(waiting) = floor.waiting.remove(&request) {
        // Who has gone meanwhile says so himself.
        let _ = waiting.send(answer);
    }
}

impl Floor {
    /// Bytes that engines have said to hold on the card.
    fn resident(&self) -> u64 {
        let serves = |state| matches!(state, State::Ready { .. } | State::Draining { .. });
        let models = self.machine.models.iter().filter(|(_, model)| serves(model.state));
        models
            .filter(|(key, _)| self.hosts.get(key).is_some_and(|host| says_what_it_holds(host.model())))
            .map(|(_, model)| model.spec.bytes)
            .sum()
    }
}

/// Whether the bytes of this model, once it is loaded, are those that its engine has on the card.
fn says_what_it_holds(model: &LocalModel) -> bool {
    model.engine == EngineKind::LlamaCpp && model.gpu_layers != Some(0) && model.residency.memory.is_none()
}

/// Looks at the card again and again, as long as there is a manager.
async fn watch(manager: Weak<Manager>, card: Arc<Card>) {
    loop {
        tokio::time::sleep(card::PACE).await;
        let looking = card.clone();
        let Ok(reading) = tokio::task::spawn_blocking(move || looking.look()).await else { return };
        let Some(manager) = manager.upgrade() else { return };
        manager.seen(&reading);
    }
}

/// Tells the manager when the time has come that it waits for, as long as there is a manager.
async fn keep_time(manager: Weak<Manager>, mut alarm: watch::Receiver<Option<Moment>>) {
    let Some(start) = manager.upgrade().map(|manager| manager.start) else { return };
    loop {
        let wake = *alarm.borrow_and_update();
        let changed = match wake {
            None => alarm.changed().await,
            Some(at) => match tokio::time::timeout_at(start + at, alarm.changed()).await {
                Ok(changed) => changed,
                Err(_) => {
                    let Some(manager) = manager.upgrade() else { return };
                    manager.tell(Event::Tick);
                    Ok(())
                }
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

/// What a client hears when it does not get a lease.
pub(crate) fn fault(model: &LocalModel, refusal: &Refusal) -> ProviderFault {
    let name = &model.name;
    let unavailable = |message: String, retry_after: Option<Duration>| ProviderFault {
        retry_after,
        ..ProviderFault::new(FaultKind::Unavailable, message)
    };
    match refusal {
        Refusal::Failed { reason, retry_after } => unavailable(reason.to_string(), Some(*retry_after)),
        Refusal::Late { ready_in } => {
            let message = format!(
                "the model `{name}` is not in memory and could not be loaded in time; it may be there in about {} s",
                ready_in.as_secs_f64().ceil()
            );
            unavailable(message, Some(*ready_in))
        }
        Refusal::NeverFits { need, room } => {
            let message = format!(
                "the model `{name}` needs {} of memory, and at most {} can be had for it: {} are missing; {}",
                shown(*need),
                shown(*room),
                shown(need.saturating_sub(*room)),
                "give `local.vram` more, unpin another model, or make this one smaller (`fit = true` chooses how)",
            );
            unavailable(message, None)
        }
        Refusal::Crowded { need, room, taken } => {
            let message = format!(
                "the model `{name}` needs {} of memory, and {} can be had for it: other programs hold {} of the card's memory that is \
                 meant for local models; end them, or make this one smaller (`fit = true` chooses how)",
                shown(*need),
                shown(*room),
                shown(*taken),
            );
            unavailable(message, None)
        }
        Refusal::Retired => unavailable(format!("the model `{name}` is being unloaded"), None),
        Refusal::Stopping => unavailable("the gateway is stopping".to_owned(), None),
    }
}
