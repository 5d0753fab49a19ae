//! All that can happen to three models and four requests, state by state: invariants hold in each, and from each everything ends.

use super::*;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

const REQUESTS: u64 = 4;
const PATIENCE: Duration = secs(9);

/// Where a request is, as the test has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Seen {
    Unasked,
    Waiting,
    Granted,
    Ended,
}

#[derive(Debug, Clone)]
struct Node {
    machine: Machine,
    now: Moment,
    requests: [Seen; REQUESTS as usize],
    /// Crashes, failures and the like that may still happen.
    troubles: u8,
    /// Requests that may come.
    asked: u64,
}

impl Node {
    /// The state without what does not matter for the future: absolute times, generations, old ages.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let ahead = |moment: Moment| moment.saturating_sub(self.now);
        let age = |moment: Moment| (self.now - moment).min(self.machine.rules.min_residency);
        let mut arrivals: Vec<u64> = self
            .machine
            .models
            .values()
            .flat_map(|model| {
                let waiting = model.waiters.iter().map(|waiter| waiter.arrival);
                waiting.chain(model.wanted.map(|wish| wish.arrival))
            })
            .collect();
        arrivals.sort_unstable();
        let rank = |arrival: u64| arrivals.binary_search(&arrival).unwrap();
        for model in self.machine.models.values() {
            match model.state {
                State::Absent => 0u8.hash(&mut hasher),
                State::Loading { aborted, .. } => (1u8, aborted).hash(&mut hasher),
                State::Ready { since } => (2u8, age(since)).hash(&mut hasher),
                State::Draining { until } => (3u8, until.map(ahead)).hash(&mut hasher),
                State::Unloading => 4u8.hash(&mut hasher),
            }
            for waiter in &model.waiters {
                (waiter.request, rank(waiter.arrival), ahead(waiter.deadline), waiter.parked).hash(&mut hasher);
            }
            for (request, deadline) in &model.leases {
                (request, ahead(*deadline)).hash(&mut hasher);
            }
            (
                model.wanted.map(|wish| (wish.want, rank(wish.arrival), wish.until.map(ahead))),
                model.retired,
                model.spec.pinned,
            )
                .hash(&mut hasher);
            (age(model.last_used), model.strikes, model.cooling.as_ref().map(|cooling| ahead(cooling.until)))
                .hash(&mut hasher);
        }
        (self.requests, self.troubles, self.machine.stopping, self.machine.reach, self.machine.models.len())
            .hash(&mut hasher);
        hasher.finish()
    }

    /// What an engine could report, and what time would bring.
    fn driven(&self) -> Vec<(Moment, Event)> {
        let mut events = Vec::new();
        for (key, model) in &self.machine.models {
            let (model, generation) = (*key, model.generation);
            match self.machine.models[&model].state {
                State::Loading { aborted, .. } => {
                    let bytes = self.machine.models[&model].spec.bytes;
                    events.push((self.now, Event::Loaded { model, generation, bytes }));
                    if aborted {
                        events.push((self.now, Event::LoadFailed { model, generation, reason: "aborted".into() }));
                    }
                }
                State::Unloading => events.push((self.now, Event::Unloaded { model, generation })),
                _ => {}
            }
        }
        for (id, seen) in (0..).zip(self.requests) {
            if seen == Seen::Granted {
                events.push((self.now, Event::Left { request: id }));
            }
        }
        events.extend(self.machine.next_wake(self.now).map(|wake| (wake, Event::Tick)));
        if self.machine.reach < u64::MAX {
            events.push((self.now, Event::Reach { bytes: u64::MAX }));
        }
        events
    }

    /// All that can happen next.
    fn possible(&self) -> Vec<(Moment, Event, u8)> {
        let mut events: Vec<_> = self.driven().into_iter().map(|(now, event)| (now, event, 0)).collect();
        // Requests are alike: the next one is asked, for any model.
        if let Some(request) = (0..self.asked).find(|id| self.requests[*id as usize] == Seen::Unasked) {
            let deadline = self.now + PATIENCE;
            events.extend((0..3).map(|model| (self.now, Event::Asked { model, request, deadline }, 0)));
        }
        for (id, seen) in (0..).zip(self.requests) {
            if seen == Seen::Waiting {
                events.push((self.now, Event::Left { request: id }, 1));
            }
        }
        for (key, model) in &self.machine.models {
            let (key, generation) = (*key, model.generation);
            match model.state {
                State::Loading { aborted: false, .. } => {
                    events.push((self.now, Event::LoadFailed { model: key, generation, reason: "failed".into() }, 1));
                }
                State::Ready { .. } | State::Draining { .. } => {
                    events.push((self.now, Event::Crashed { model: key, generation, reason: "crashed".into() }, 1));
                }
                _ => {}
            }
            events.push((self.now, Event::Released { model: key }, 1));
            if key == A {
                events.push((self.now, Event::Retired { model: A }, 1));
                events.push((self.now, Event::Pinned { model: A, pinned: !model.spec.pinned }, 1));
                events.push((self.now, Event::Wanted { model: A, want: Want::Hint, until: None }, 1));
                let until = Some(self.now + PATIENCE);
                events.push((self.now, Event::Wanted { model: A, want: Want::Schedule, until }, 1));
            }
        }
        events.push((self.now, Event::Shutdown, 1));
        events.push((self.now, Event::Reach { bytes: 2 }, 1));
        events.retain(|(_, _, cost)| *cost <= self.troubles);
        events
    }

    fn after(&self, now: Moment, event: Event, cost: u8) -> Self {
        let mut next = Self { now, troubles: self.troubles - cost, ..self.clone() };
        let ordered = orders_one_away(&event);
        match &event {
            Event::Asked { request, .. } => next.requests[*request as usize] = Seen::Waiting,
            Event::Left { request } => next.requests[*request as usize] = Seen::Ended,
            _ => {}
        }
        let effects = next.machine.step(now, event);
        for effect in effects {
            next.note(&effect);
        }
        assert_eq!(next.machine.broken_invariant(), None, "{:#?}", next.machine);
        let (before, promised) = (self.machine.promised(), next.machine.promised());
        // What others take is not taken from models that are there; they get nothing more.
        assert!(promised <= next.machine.room() || promised <= before, "more is promised than there is");
        assert!(ordered || !sent_away_for_a_wish(&self.machine, &next.machine), "who was in use went for a mere wish");
        next
    }

    fn note(&mut self, effect: &Effect) {
        match effect {
            Effect::Grant { request, generation } => {
                assert_eq!(self.requests[*request as usize], Seen::Waiting, "granted without waiting");
                self.requests[*request as usize] = Seen::Granted;
                let holder = self.machine.models.values().find(|model| model.leases.contains_key(request)).unwrap();
                assert_eq!(holder.generation, *generation);
            }
            Effect::Refuse { request, .. } => {
                assert_eq!(self.requests[*request as usize], Seen::Waiting, "refused without waiting");
                self.requests[*request as usize] = Seen::Ended;
            }
            // The engine ends what it had parked: everything of the machine that is granted but has no place any more.
            Effect::Abandon { .. } => {
                for id in 0..REQUESTS {
                    let placed = self.machine.models.values().any(|model| {
                        model.leases.contains_key(&id) || model.waiters.iter().any(|waiter| waiter.request == id)
                    });
                    if self.requests[id as usize] == Seen::Granted && !placed {
                        self.requests[id as usize] = Seen::Ended;
                    }
                }
            }
            _ => {}
        }
    }

    /// With engines that do what they are told and answers that end, every request ends.
    fn must_end(&self) {
        let mut node = self.clone();
        for _ in 0..200 {
            let waits = node.requests.iter().any(|seen| matches!(seen, Seen::Waiting | Seen::Granted));
            if !waits {
                return;
            }
            // Parked answers cannot end while they are parked.
            let leased = |request: &u64| node.machine.models.values().any(|model| model.leases.contains_key(request));
            let next = node
                .driven()
                .into_iter()
                .find(|(_, event)| !matches!(event, Event::Left { request } if !leased(request)));
            let Some((now, event)) = next else { panic!("somebody waits for nothing: {node:#?}") };
            node = node.after(now, event, 0);
        }
        panic!("it does not come to an end: {node:#?}");
    }
}

fn explore(asked: u64, troubles: u8) -> usize {
    let mut machine = Machine::new(Rules { budget: 3, min_residency: secs(2), drain: secs(1) });
    for (model, bytes) in [(A, 2), (B, 2), (C, 1)] {
        machine.step(secs(100), Event::Added { model, spec: Spec { load_time: secs(1), ..spec(bytes) } });
    }
    let first = Node { machine, now: secs(100), requests: [Seen::Unasked; REQUESTS as usize], troubles, asked };
    let mut known = HashSet::from([first.fingerprint()]);
    let mut open = vec![first];
    while let Some(node) = open.pop() {
        node.must_end();
        for (now, event, cost) in node.possible() {
            let next = node.after(now, event, cost);
            if known.insert(next.fingerprint()) {
                open.push(next);
            }
        }
    }
    known.len()
}

#[test]
fn every_state_of_three_models_and_four_requests() {
    let states = explore(REQUESTS, 0);
    println!("{states} states");
    assert!(states > 10_000, "the exploration became shallow: {states} states");
}

#[test]
fn every_state_of_two_requests_with_one_failure_cancellation_or_order() {
    let states = explore(2, 1);
    println!("{states} states");
    assert!(states > 4_000, "the exploration became shallow: {states} states");
}

#[test]
#[ignore = "takes minutes; run by `make test-long`"]
fn every_state_with_one_failure_cancellation_or_order() {
    let states = explore(REQUESTS, 1);
    println!("{states} states");
    assert!(states > 100_000, "the exploration became shallow: {states} states");
}
