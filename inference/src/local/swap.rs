//! Which models are in memory: a pure state machine that is told what happened and says what to do.
//!
//! One [`Machine`] stands for one device with one memory budget. [`Machine::step`] is its only entry: an event goes in, effects come
//! out, and nothing else happens: no clock, no I/O, no lock, so that tests can walk through every order of events. A model goes
//! `Absent → Loading → Ready → Draining → Unloading → Absent` and never any other way; each round has a *generation*, and reports
//! of an older one change nothing.
//!
//! A request holds a *lease* of a model while it is answered. Leases are given out in `Ready` only, and at once. Requests for a model
//! that is not there wait in its queue; all of them share one load. Who has waited longest decides what is loaded next, and a model
//! that came stays for a while ([`Rules::min_residency`]): so demand for several models is served in groups (A B A B becomes
//! A A B B), everybody's turn comes, and the card does not thrash. What still runs when a model has to go is *parked*: it
//! has had its turn, waits in the model's queue behind all who wait now, and goes on after the next load.

mod schedule;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// A model of the machine: its place in the order of arrival, never used twice.
pub(crate) type ModelKey = u32;
/// A request, unique in the machine's life.
pub(crate) type RequestId = u64;
/// A moment, as the time since some fixed start.
pub(crate) type Moment = Duration;

/// Failures in a row after which a crashing model is left alone for a while.
const MOST_CRASHES: u32 = 3;
/// A model that served so long before it failed starts counting anew.
const FORGIVEN: Duration = Duration::from_secs(60);
const SHORTEST_COOLDOWN: Duration = Duration::from_secs(2);
const LONGEST_COOLDOWN: Duration = Duration::from_secs(300);

/// What holds for all models of a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    /// Bytes that all models together may take.
    pub(crate) budget: u64,
    /// A model stays so long before another may take its place.
    pub(crate) min_residency: Duration,
    /// Answers that run when a model has to go get so long to end; then they are parked.
    pub(crate) drain: Duration,
}

/// What holds for one model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Spec {
    /// Bytes it takes while it is in memory, as far as is known.
    pub(crate) bytes: u64,
    /// Never makes room for another.
    pub(crate) pinned: bool,
    /// Goes when nobody has used it for so long.
    pub(crate) keep_alive: Option<Duration>,
    /// How long a load is expected to take before one was measured.
    pub(crate) load_time: Duration,
}

/// How much a wish for a model is worth when it has no waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Want {
    /// Load it if there is free room.
    Preload,
    /// It will be needed at this time of day: load it if what has to go for it is idle.
    Schedule,
    /// It was missed lately: load it if what has to go for it is idle.
    Hint,
    /// Somebody said so: as strong as a waiting request.
    Operator,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is a new model.
    Added { model: ModelKey, spec: Spec },
    /// The model is not configured any more: it goes when what runs has ended.
    Retired { model: ModelKey },
    /// A request needs the model, until this moment at the latest.
    Asked { model: ModelKey, request: RequestId, deadline: Moment },
    /// A request has ended, waits no more, or its client has gone.
    Left { request: RequestId },
    /// The model is wished for, until this moment if there is one.
    Wanted { model: ModelKey, want: Want, until: Option<Moment> },
    /// The model shall go.
    Released { model: ModelKey },
    /// It is pinned from now on, or no more.
    Pinned { model: ModelKey, pinned: bool },
    /// It is in memory, and takes so much there.
    Loaded { model: ModelKey, generation: u64, bytes: u64 },
    /// It could not be loaded, or was not loaded to the end; nothing of it is left in memory.
    LoadFailed { model: ModelKey, generation: u64, reason: Arc<str> },
    /// It broke while it served; nothing of it is left in memory.
    Crashed { model: ModelKey, generation: u64, reason: Arc<str> },
    /// Nothing of it is left in memory, as was ordered.
    Unloaded { model: ModelKey, generation: u64 },
    /// There is more or less memory than before.
    Budget { bytes: u64 },
    /// Of the device, models can have so much: what is free and what they have. Others hold the rest.
    Reach { bytes: u64 },
    /// Time has passed.
    Tick,
    /// Everything ends.
    Shutdown,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Bring the file into the page cache: the model is next, but has no room yet.
    Prefetch { model: ModelKey },
    /// Load it and report.
    Load { model: ModelKey, generation: u64 },
    /// Stop loading it and report.
    Abort { model: ModelKey, generation: u64 },
    /// Park what runs, take it out of memory and report.
    Unload { model: ModelKey, generation: u64 },
    /// The request may use the model now.
    Grant { request: RequestId, generation: u64 },
    /// The request will not get the model.
    Refuse { request: RequestId, refusal: Refusal },
    /// The requests that were parked in this model will not go on.
    Abandon { model: ModelKey, refusal: Refusal },
    /// The retired model is out of memory and will not come back.
    Forget { model: ModelKey },
}

/// Why a request does not get its model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not even with everything else out of memory.
    NeverFits {
        /// Bytes it needs.
        need: u64,
        /// Bytes it could get.
        room: u64,
    },
    /// It would fit, but others on the device hold what it needs, and did so for as long as the request may wait.
    Crowded {
        /// Bytes it needs.
        need: u64,
        /// Bytes it could get.
        room: u64,
        /// Bytes of the budget that others hold.
        taken: u64,
    },
    /// It could not be loaded or crashes; it is not tried again before so long.
    Failed {
        /// What happened.
        reason: Arc<str>,
        /// Time until the next try.
        retry_after: Duration,
    },
    /// The request waited as long as it may.
    Late {
        /// When the model would have been there.
        ready_in: Duration,
    },
    /// It is not configured any more (perhaps another of its name is).
    Retired,
    /// The gateway stops.
    Stopping,
}

/// Where a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// Not in memory.
    Absent,
    /// On its way in.
    Loading {
        /// Since when.
        since: Moment,
        /// Whether it was ordered to stop.
        aborted: bool,
    },
    /// Serving.
    Ready {
        /// Since when.
        since: Moment,
    },
    /// Serving what it has, taking nothing new.
    Draining {
        /// Then what still runs is parked.
        until: Option<Moment>,
    },
    /// On its way out.
    Unloading,
}

/// A request that waits for a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Waiter {
    /// Which.
    pub(crate) request: RequestId,
    /// Its number in the order of arrival, over all models.
    pub(crate) arrival: u64,
    /// It waits no longer than until then.
    pub(crate) deadline: Moment,
    /// It was being answered when the model had to go; the engine keeps it and goes on by itself.
    pub(crate) parked: bool,
}

/// A failed model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Cooling {
    until: Moment,
    reason: Arc<str>,
}

/// A wish for a model without a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Wish {
    want: Want,
    /// Its place in the order of arrival.
    arrival: u64,
    /// Then it is given up.
    until: Option<Moment>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Model {
    pub(crate) spec: Spec,
    pub(crate) state: State,
    pub(crate) generation: u64,
    pub(crate) waiters: VecDeque<Waiter>,
    /// Requests that use it, with their deadlines.
    pub(crate) leases: BTreeMap<RequestId, Moment>,
    wanted: Option<Wish>,
    retired: bool,
    last_used: Moment,
    cooling: Option<Cooling>,
    /// Failures since it last served for long.
    strikes: u32,
}

impl Model {
    /// Bytes set aside for it now.
    pub(crate) fn reserved(&self) -> u64 {
        if self.state == State::Absent { 0 } else { self.spec.bytes }
    }

    /// Why it is left alone for now.
    pub(crate) fn failure(&self) -> Option<&Arc<str>> {
        self.cooling.as_ref().map(|cooling| &cooling.reason)
    }

    /// Takes in a wish: the strongest counts, and of equal ones the first, for as long as either lasts.
    fn wish(&mut self, wish: Wish) {
        if wish.want == Want::Operator {
            self.cooling = None;
        }
        let there = matches!(self.state, State::Ready { .. } | State::Loading { aborted: false, .. });
        match &mut self.wanted {
            _ if there || self.retired => {}
            Some(old) if old.want > wish.want => {}
            Some(old) if old.want == wish.want => {
                old.until = old.until.zip(wish.until).map(|(old, new)| old.max(new));
            }
            wanted => *wanted = Some(wish),
        }
    }

    /// Whether anybody needs it that has not got it.
    fn in_demand(&self) -> bool {
        !self.waiters.is_empty() || self.wanted.is_some()
    }
}

/// All models of one device.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) rules: Rules,
    pub(crate) models: BTreeMap<ModelKey, Model>,
    /// Bytes of the device that others do not hold.
    reach: u64,
    arrivals: u64,
    stopping: bool,
}

impl Machine {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules, models: BTreeMap::new(), reach: u64::MAX, arrivals: 0, stopping: false }
    }

    /// Takes in what happened at this moment and says what to do, in this order. Moments never go back.
    pub(crate) fn step(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.take(now, event, &mut effects);
        self.settle(now, &mut effects);
        debug_assert_eq!(self.broken_invariant(), None);
        effects
    }

    fn take(&mut self, now: Moment, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Added { model, spec } => {
                let cold = Model {
                    spec,
                    state: State::Absent,
                    generation: 0,
                    waiters: VecDeque::new(),
                    leases: BTreeMap::new(),
                    wanted: None,
                    retired: false,
                    last_used: now,
                    cooling: None,
                    strikes: 0,
                };
                self.models.entry(model).or_insert(cold);
            }
            Event::Asked { model, request, deadline } => self.asked(now, model, request, deadline, effects),
            Event::Left { request } => self.left(now, request),
            Event::Budget { bytes } => self.rules.budget = bytes,
            Event::Reach { bytes } => self.reach = bytes,
            Event::Tick => {}
            Event::Shutdown => {
                self.stopping = true;
                let all: Vec<ModelKey> = self.models.keys().copied().collect();
                all.into_iter().for_each(|model| self.dismiss(model, &Refusal::Stopping, effects));
            }
            Event::Retired { model } => {
                self.dismiss(model, &Refusal::Retired, effects);
                self.with(model, |model| model.retired = true);
            }
            Event::Wanted { model, want, until } => {
                let arrival = self.next_arrival();
                self.with(model, |model| model.wish(Wish { want, arrival, until }));
            }
            Event::Released { model } => self.with(model, |model| {
                model.wanted = None;
                model.spec.pinned = false;
                if let State::Ready { .. } = model.state {
                    model.state = State::Draining { until: None };
                }
            }),
            Event::Pinned { model, pinned } => self.with(model, |model| model.spec.pinned = pinned),
            Event::Loaded { model, generation, bytes } => self.reported(model, generation, |model| {
                if let State::Loading { since, .. } = model.state {
                    model.state = State::Ready { since: now };
                    model.spec.load_time = (model.spec.load_time + (now - since)) / 2;
                    model.spec.bytes = bytes;
                    model.last_used = now;
                    model.wanted = None;
                }
            }),
            Event::LoadFailed { model, generation, reason } => {
                let asked_to = self
                    .models
                    .get(&model)
                    .is_some_and(|model| matches!(model.state, State::Loading { aborted: true, .. }));
                self.fell(now, model, generation, (!asked_to).then_some(reason), 0, effects);
            }
            Event::Crashed { model, generation, reason } => {
                self.fell(now, model, generation, Some(reason), MOST_CRASHES, effects);
            }
            Event::Unloaded { model, generation } => self.fell(now, model, generation, None, 0, effects),
        }
    }

    fn asked(&mut self, now: Moment, key: ModelKey, request: RequestId, deadline: Moment, effects: &mut Vec<Effect>) {
        let arrival = self.next_arrival();
        let stopping = self.stopping;
        let refusal = match self.models.get_mut(&key) {
            _ if stopping => Refusal::Stopping,
            None => Refusal::Retired,
            Some(model) if model.retired => Refusal::Retired,
            Some(model) => match &model.cooling {
                Some(cooling) if cooling.until > now => {
                    Refusal::Failed { reason: cooling.reason.clone(), retry_after: cooling.until - now }
                }
                _ => return model.waiters.push_back(Waiter { request, arrival, deadline, parked: false }),
            },
        };
        effects.push(Effect::Refuse { request, refusal });
    }

    fn left(&mut self, now: Moment, request: RequestId) {
        for model in self.models.values_mut() {
            if model.leases.remove(&request).is_some() {
                model.last_used = now;
            }
            model.waiters.retain(|waiter| waiter.request != request);
        }
    }

    /// The model is out of memory: as ordered, or for this reason. A model that failed is left alone for a while; one that crashed
    /// only after `patience` failures in a row. What it was answering waits for the next load, if there will be one.
    fn fell(
        &mut self,
        now: Moment,
        key: ModelKey,
        generation: u64,
        reason: Option<Arc<str>>,
        patience: u32,
        effects: &mut Vec<Effect>,
    ) {
        let mut refusal = None;
        let mut arrivals = self.arrivals;
        self.reported(key, generation, |model| {
            if model.state == State::Absent {
                return;
            }
            if matches!(model.state, State::Ready { since } if now >= since + FORGIVEN) {
                model.strikes = 0;
            }
            model.park(&mut arrivals);
            model.state = State::Absent;
            let Some(reason) = reason else { return };
            model.strikes += 1;
            model.wanted = None;
            if model.strikes >= patience {
                let retry_after = (SHORTEST_COOLDOWN * 2u32.saturating_pow(model.strikes - 1)).min(LONGEST_COOLDOWN);
                model.cooling = Some(Cooling { until: now + retry_after, reason: reason.clone() });
                refusal = Some(Refusal::Failed { reason, retry_after });
            }
        });
        self.arrivals = arrivals;
        if let Some(refusal) = refusal {
            self.dismiss(key, &refusal, effects);
        }
    }

    /// Sends everybody away who waits for the model.
    fn dismiss(&mut self, key: ModelKey, refusal: &Refusal, effects: &mut Vec<Effect>) {
        let Some(model) = self.models.get_mut(&key) else { return };
        model.wanted = None;
        if model.waiters.iter().any(|waiter| waiter.parked) {
            effects.push(Effect::Abandon { model: key, refusal: refusal.clone() });
        }
        let waiting = model.waiters.drain(..).filter(|waiter| !waiter.parked);
        effects.extend(waiting.map(|waiter| Effect::Refuse { request: waiter.request, refusal: refusal.clone() }));
    }

    fn next_arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    fn with(&mut self, key: ModelKey, change: impl FnOnce(&mut Model)) {
        if let Some(model) = self.models.get_mut(&key) {
            change(model);
        }
    }

    /// A report counts if it is of the model's present round.
    fn reported(&mut self, key: ModelKey, generation: u64, change: impl FnOnce(&mut Model)) {
        if let Some(model) = self.models.get_mut(&key)
            && model.generation == generation
        {
            change(model);
        }
    }

    /// What must hold after every step; the name of what does not.
    pub(crate) fn broken_invariant(&self) -> Option<&'static str> {
        let loading = |model: &&Model| matches!(model.state, State::Loading { .. });
        let mut broken = None;
        let mut check = |holds: bool, name: &'static str| {
            if !holds {
                broken = broken.or(Some(name));
            }
        };
        check(self.models.values().filter(loading).count() <= 1, "two loads in flight");
        let mut seen = std::collections::BTreeSet::new();
        for model in self.models.values() {
            let leased = !model.leases.is_empty();
            let serves = matches!(model.state, State::Ready { .. } | State::Draining { .. });
            check(serves || !leased, "a lease of a model that does not serve");
            check(
                !matches!(model.state, State::Ready { .. }) || model.waiters.is_empty(),
                "waiting for a model that is ready",
            );
            check(!model.retired || model.waiters.iter().all(|waiter| waiter.parked), "waiting for a retired model");
            for request in model.leases.keys().chain(model.waiters.iter().map(|waiter| &waiter.request)) {
                check(seen.insert(*request), "a request in two places");
            }
        }
        broken
    }
}
