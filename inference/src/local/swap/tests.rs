//! The machine under test: a world of simulated engines in which loads take time, requests come and go, and everything is counted.

mod explore;
mod property;
mod races;

use super::*;
use std::collections::BTreeSet;

const A: ModelKey = 0;
const B: ModelKey = 1;
const C: ModelKey = 2;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn spec(bytes: u64) -> Spec {
    Spec { bytes, pinned: false, keep_alive: None, load_time: secs(20) }
}

fn rules(budget: u64) -> Rules {
    Rules { budget, min_residency: secs(10), drain: secs(5) }
}

/// Whether this event sends a model away whatever others need.
fn orders_one_away(event: &Event) -> bool {
    matches!(event, Event::Released { .. } | Event::Retired { .. } | Event::Shutdown)
}

/// Whether a model that is in use has to go although nobody waits and no operator wants another.
fn sent_away_for_a_wish(before: &Machine, after: &Machine) -> bool {
    let needed =
        |model: &Model| !model.waiters.is_empty() || model.wanted.is_some_and(|wish| wish.want == Want::Operator);
    let goes = |(key, model): (&ModelKey, &Model)| {
        let now = after.models.get(key).map(|model| model.state);
        let drained = matches!(now, Some(State::Draining { .. } | State::Unloading));
        matches!(model.state, State::Ready { .. }) && drained && !model.leases.is_empty()
    };
    before.models.iter().any(goes) && !before.models.values().any(needed) && !after.models.values().any(needed)
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Served,
    Refused(Refusal),
    Abandoned,
    Cancelled,
}

#[derive(Debug, Clone)]
struct Request {
    model: ModelKey,
    asked: Moment,
    deadline: Moment,
    /// Work left, once it is granted.
    work: Duration,
    granted: Option<Moment>,
    end: Option<End>,
}

/// Something that will happen at a moment.
#[derive(Debug, Clone)]
enum Happening {
    LoadEnds { model: ModelKey, generation: u64 },
    UnloadEnds { model: ModelKey, generation: u64 },
    Ask(RequestId),
    Tell(Event),
    Crash(ModelKey),
}

/// A device with engines that take their time.
struct World {
    machine: Machine,
    now: Moment,
    agenda: Vec<(Moment, u64, Happening)>,
    order: u64,
    requests: BTreeMap<RequestId, Request>,
    load_takes: Duration,
    failing: BTreeSet<ModelKey>,
    loads: Vec<ModelKey>,
    /// Models whose bytes are truly in memory, by the engines' own account.
    resident: BTreeMap<ModelKey, u64>,
    effects: Vec<Effect>,
}

impl World {
    fn new(rules: Rules, models: &[Spec]) -> Self {
        let mut world = Self {
            machine: Machine::new(rules),
            now: secs(1000),
            agenda: Vec::new(),
            order: 0,
            requests: BTreeMap::new(),
            load_takes: secs(20),
            failing: BTreeSet::new(),
            loads: Vec::new(),
            resident: BTreeMap::new(),
            effects: Vec::new(),
        };
        for (model, spec) in (0..).zip(models) {
            world.tell(Event::Added { model, spec: spec.clone() });
        }
        world
    }

    /// Plans something for so long after now.
    fn after(&mut self, wait: Duration, what: Happening) {
        self.order += 1;
        self.agenda.push((self.now + wait, self.order, what));
    }

    /// A request that comes so long after now, works for so long and waits for at most so long.
    fn request(&mut self, wait: Duration, model: ModelKey, work: Duration, patience: Duration) -> RequestId {
        let id = self.requests.len() as u64;
        let asked = self.now + wait;
        let request = Request { model, asked, deadline: asked + patience, work, granted: None, end: None };
        self.requests.insert(id, request);
        self.after(wait, Happening::Ask(id));
        id
    }

    fn tell(&mut self, event: Event) {
        let (before, ordered) = (self.machine.clone(), orders_one_away(&event));
        let effects = self.machine.step(self.now, event);
        assert_eq!(self.machine.broken_invariant(), None);
        assert!(ordered || !sent_away_for_a_wish(&before, &self.machine), "who was in use went for a mere wish");
        for effect in effects {
            self.effects.push(effect.clone());
            self.apply(effect);
        }
        self.progress_is_possible();
    }

    /// Others leave so many bytes of the device, but never less than models hold.
    fn reach(&mut self, bytes: u64) {
        let held: u64 = self.machine.models.values().map(Model::reserved).sum();
        self.tell(Event::Reach { bytes: bytes.max(held) });
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Load { model, generation } => {
                self.loads.push(model);
                let bytes = self.machine.models[&model].spec.bytes;
                assert_eq!(self.resident.insert(model, bytes), None, "loaded twice");
                let room = self.machine.rules.budget.min(self.machine.reach);
                assert!(self.resident.values().sum::<u64>() <= room, "two models in the same bytes");
                self.after(self.load_takes, Happening::LoadEnds { model, generation });
            }
            Effect::Abort { model, generation } => {
                self.agenda.retain(|(_, _, what)| !matches!(what, Happening::LoadEnds { model: m, .. } if *m == model));
                self.after(Duration::from_millis(10), Happening::LoadEnds { model, generation });
            }
            Effect::Unload { model, generation } => {
                self.after(Duration::from_millis(100), Happening::UnloadEnds { model, generation });
            }
            Effect::Grant { request, generation } => {
                let (now, request_state) = (self.now, self.requests.get_mut(&request).unwrap());
                assert_eq!(
                    generation, self.machine.models[&request_state.model].generation,
                    "a lease of an old generation"
                );
                assert!(request_state.end.is_none() && request_state.granted.is_none(), "granted twice");
                request_state.granted = Some(now);
            }
            Effect::Refuse { request, refusal } => self.end(request, End::Refused(refusal)),
            Effect::Abandon { model, .. } => {
                let parked: Vec<RequestId> = self
                    .requests
                    .iter()
                    .filter(|(_, request)| request.model == model && request.granted.is_some() && request.end.is_none())
                    .map(|(id, _)| *id)
                    .collect();
                parked.into_iter().for_each(|id| self.end(id, End::Abandoned));
            }
            Effect::Prefetch { .. } | Effect::Forget { .. } => {}
        }
    }

    fn end(&mut self, id: RequestId, end: End) {
        let request = self.requests.get_mut(&id).unwrap();
        assert_eq!(request.end, None, "request {id} ended twice: now {end:?}");
        request.end = Some(end);
    }

    /// Whoever waits, waits for something that will happen.
    fn progress_is_possible(&self) {
        let waits = self.machine.models.values().any(|model| !model.waiters.is_empty());
        // What others hold they give back some day.
        let happens = !self.agenda.is_empty()
            || self.machine.taken() > 0
            || self.machine.next_wake(self.now).is_some()
            || self.machine.models.values().any(|model| !model.leases.is_empty());
        assert!(!waits || happens, "somebody waits for nothing: {:#?}", self.machine);
    }

    /// When the next running answer ends: it works while its model serves it.
    fn next_answer(&self) -> Option<(Moment, RequestId)> {
        let running = self.machine.models.values().flat_map(|model| model.leases.keys());
        running.map(|id| (self.now + self.requests[id].work, *id)).min()
    }

    /// Goes on to the next moment at which something happens; `false` when nothing ever will.
    fn advance(&mut self) -> bool {
        let agenda = self.agenda.iter().map(|(at, order, _)| (*at, *order)).min();
        let answer = self.next_answer();
        let wake = self.machine.next_wake(self.now);
        let Some(next) = [agenda.map(|(at, _)| at), answer.map(|(at, _)| at), wake].into_iter().flatten().min() else {
            return false;
        };
        let passed = next - self.now;
        let running: Vec<RequestId> =
            self.machine.models.values().flat_map(|model| model.leases.keys().copied()).collect();
        for id in running {
            let request = self.requests.get_mut(&id).unwrap();
            request.work = request.work.saturating_sub(passed);
        }
        self.now = next;
        if let Some((_, id)) = answer.filter(|(at, _)| *at == next) {
            self.end(id, End::Served);
            self.tell(Event::Left { request: id });
        } else if let Some((_, order)) = agenda.filter(|(at, _)| *at == next) {
            let at = self.agenda.iter().position(|(_, other, _)| *other == order).unwrap();
            let (_, _, what) = self.agenda.remove(at);
            self.happen(what);
        } else {
            self.tell(Event::Tick);
        }
        true
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::LoadEnds { model, generation } => {
                let aborted = matches!(self.machine.models[&model].state, State::Loading { aborted: true, .. });
                if aborted || self.failing.contains(&model) {
                    self.resident.remove(&model);
                    self.tell(Event::LoadFailed { model, generation, reason: "the test says so".into() });
                } else {
                    let bytes = self.resident[&model];
                    self.tell(Event::Loaded { model, generation, bytes });
                }
            }
            Happening::UnloadEnds { model, generation } => {
                self.resident.remove(&model);
                self.tell(Event::Unloaded { model, generation });
            }
            Happening::Ask(id) => {
                let Request { model, deadline, .. } = self.requests[&id];
                self.tell(Event::Asked { model, request: id, deadline });
            }
            Happening::Tell(Event::Left { request }) => {
                if self.requests[&request].end.is_none() && self.requests[&request].asked <= self.now {
                    self.end(request, End::Cancelled);
                    self.tell(Event::Left { request });
                }
            }
            Happening::Tell(event) => self.tell(event),
            Happening::Crash(model) => {
                let Some(state) = self.machine.models.get(&model) else { return };
                if matches!(state.state, State::Ready { .. } | State::Draining { .. }) {
                    self.resident.remove(&model);
                    let generation = state.generation;
                    self.tell(Event::Crashed { model, generation, reason: "the test says so".into() });
                }
            }
        }
    }

    /// Runs until nothing happens any more.
    fn run(&mut self) {
        let mut steps = 0;
        while self.advance() {
            steps += 1;
            assert!(steps < 20_000, "it never comes to rest: {:#?}", self.machine);
        }
    }

    fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(self.advance(), "nothing happens any more");
        }
    }

    fn state(&self, model: ModelKey) -> State {
        self.machine.models[&model].state
    }

    fn is_ready(&self, model: ModelKey) -> bool {
        matches!(self.state(model), State::Ready { .. })
    }

    fn end_of(&self, id: RequestId) -> &End {
        self.requests[&id].end.as_ref().unwrap_or_else(|| panic!("request {id} has not ended: {:#?}", self.machine))
    }

    fn waited(&self, id: RequestId) -> Duration {
        self.requests[&id].granted.expect("granted") - self.requests[&id].asked
    }

    /// Loads a model and lets its residency pass.
    fn settle_in(&mut self, model: ModelKey) {
        let id = self.request(Duration::ZERO, model, Duration::from_millis(1), secs(600));
        self.run_until(|world| world.requests[&id].end.is_some());
        self.after(self.machine.rules.min_residency, Happening::Tell(Event::Tick));
        self.run_until(|world| world.agenda.is_empty());
        self.loads.clear();
        self.effects.clear();
    }
}

#[test]
fn the_way_of_a_model_is_who_would_go_for_it_and_how_long_it_takes() {
    let mut machine = Machine::new(rules(20));
    for model in [A, B, C] {
        machine.step(secs(0), Event::Added { model, spec: spec(10) });
    }
    assert_eq!(machine.way_for(C), Some((vec![], secs(20))), "there is room");
    for (model, at) in [(A, secs(1)), (B, secs(2))] {
        machine.step(at, Event::Wanted { model, want: Want::Operator, until: None });
        assert_eq!(machine.way_for(model), None, "it is on its way");
        machine.step(at, Event::Loaded { model, generation: 1, bytes: 10 });
    }
    assert_eq!(machine.way_for(A), None, "it is there");
    assert_eq!(machine.way_for(C), Some((vec![A], secs(20))), "the longest unused, however young");
    machine.step(secs(3), Event::Asked { model: A, request: 1, deadline: secs(900) });
    assert_eq!(machine.way_for(C), Some((vec![B], secs(20))), "an idle one before a busy one");
    machine.step(secs(3), Event::Asked { model: B, request: 2, deadline: secs(900) });
    let both = secs(5 + 20 + 5 + 10);
    assert_eq!(machine.way_for(C), Some((vec![A], both)), "what it answers has time to end, and may have to come back");
    machine.step(secs(3), Event::Pinned { model: A, pinned: true });
    machine.step(secs(3), Event::Pinned { model: B, pinned: true });
    assert_eq!(machine.way_for(C), None, "nobody makes room");
}

/// A machine with room for one of three models, of which A is there.
fn with_a() -> Machine {
    let mut machine = Machine::new(rules(10));
    for model in [A, B, C] {
        machine.step(secs(0), Event::Added { model, spec: spec(10) });
    }
    machine.step(secs(0), Event::Wanted { model: A, want: Want::Operator, until: None });
    machine.step(secs(20), Event::Loaded { model: A, generation: 1, bytes: 10 });
    machine
}

#[test]
fn room_that_is_made_for_a_model_is_its_alone_and_it_is_on_its_way() {
    let mut machine = with_a();
    machine.step(secs(25), Event::Asked { model: A, request: 1, deadline: secs(900) });
    let way = machine.way_for(B);
    assert!(way.is_some());
    machine.step(secs(25), Event::Wanted { model: B, want: Want::Operator, until: Some(secs(40)) });
    assert_eq!(machine.way_for(B), way, "who is there stays for its time, in which much may change");
    assert_eq!(machine.way_for(C), None, "it would have to wait for the other, whoever goes then");
    machine.step(secs(30), Event::Tick);
    assert!(matches!(machine.models[&A].state, State::Draining { .. }));
    assert_eq!((machine.way_for(B), machine.way_for(C)), (None, None), "it takes nothing more, and leaves no room");
    machine.step(secs(35), Event::Tick);
    assert_eq!((machine.models[&A].state, machine.way_for(B)), (State::Unloading, None));
    machine.step(secs(35), Event::Unloaded { model: A, generation: 1 });
    assert!(matches!(machine.models[&B].state, State::Loading { .. }));

    // What waits to go on with A does not break off the load when its order would have run out.
    let effects = machine.step(secs(41), Event::Tick);
    assert_eq!((effects, machine.models[&A].waiters.len()), (vec![], 1));
    machine.step(secs(55), Event::Loaded { model: B, generation: 1, bytes: 10 });
    assert!(matches!(machine.models[&B].state, State::Ready { .. }));
}

#[test]
fn an_order_that_runs_out_sends_nobody_away() {
    let mut machine = with_a();
    machine.step(secs(21), Event::Wanted { model: B, want: Want::Operator, until: Some(secs(26)) });
    assert_eq!(machine.next_wake(secs(21)), Some(secs(26)));
    assert_eq!(machine.step(secs(26), Event::Tick), vec![]);
    assert_eq!(machine.step(secs(30), Event::Tick), vec![]);
    assert_eq!(machine.models[&A].state, State::Ready { since: secs(20) });
}
