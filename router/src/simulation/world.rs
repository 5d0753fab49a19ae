//! The run: what comes, ends and fails, in the order of its time.

use super::cloud::{Failure, Provider};
use super::dice::Dice;
use super::engine::{Engine, Job};
use super::fleet::Place;
use super::outcome::{Outcome, Served};
use super::snapshot::{Backend, busy, candidate};
use super::trace::Request;
use super::{Chooser, Micros, Setup};
use crate::plan::{Plan, Rules, Wishes, plan, start_tier};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use tollkeeper_config::{Strategy, Usd};
use tollkeeper_protocol::usage::Usage;

/// What happens; each names a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The first token of a provider's answer.
    First { request: usize, backend: usize, after: Micros },
    /// Its last.
    End { request: usize, backend: usize, wrote_for: Micros },
    /// A provider has failed, and the next in the plan is tried.
    Failed { request: usize, backend: usize, failure: Failure },
}

/// What a backend would do with a request if nothing else came.
#[derive(Debug, Clone, Copy)]
struct Truth {
    backend: usize,
    duration: Micros,
    cost: Usd,
    fails: bool,
}

/// How long answers mostly are, by the type of the task: an agent does one kind of work, and a gateway learns by agent.
#[derive(Debug, Default)]
struct Lengths<'a>(HashMap<&'a str, VecDeque<u64>>);

impl<'a> Lengths<'a> {
    /// So many answers are remembered, and fewer than the other say nothing.
    const KEPT: usize = 64;
    const LEAST: usize = 8;

    fn saw(&mut self, row: &'a Request) {
        let lengths = self.0.entry(&row.task).or_default();
        lengths.push_back(row.output);
        if lengths.len() > Self::KEPT {
            lengths.pop_front();
        }
    }

    /// The median.
    fn usual(&self, row: &Request) -> Option<u64> {
        let mut sorted: Vec<u64> = self.0.get(&*row.task)?.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().filter(|_| sorted.len() >= Self::LEAST)
    }
}

/// Runs a trace to its end, and says what came of it.
pub fn run(setup: Setup<'_>, chooser: Chooser) -> Outcome {
    let backends = setup.fleet.models.iter().map(|model| match &model.place {
        Place::Local(spec) => Backend::Local(Engine::new(spec)),
        Place::Cloud(spec) => Backend::Cloud(Provider::new(spec)),
    });
    let mut world = World {
        setup,
        chooser,
        dice: Dice(setup.seed),
        backends: backends.collect(),
        events: BinaryHeap::new(),
        orders: vec![VecDeque::new(); setup.trace.len()],
        served: vec![Served::default(); setup.trace.len()],
        lengths: Lengths::default(),
    };
    for (request, row) in setup.trace.iter().enumerate() {
        let now = row.at_ms * 1000;
        world.catch_up(now);
        world.arrive(request, now);
    }
    world.catch_up(Micros::MAX);
    Outcome::of(&setup, chooser, &world.served)
}

struct World<'a> {
    setup: Setup<'a>,
    chooser: Chooser,
    dice: Dice,
    backends: Vec<Backend<'a>>,
    events: BinaryHeap<Reverse<(Micros, Event)>>,
    /// Whom each request has still to try.
    orders: Vec<VecDeque<usize>>,
    served: Vec<Served>,
    lengths: Lengths<'a>,
}

impl<'a> World<'a> {
    /// Lets happen what happens before then.
    fn catch_up(&mut self, until: Micros) {
        while let Some(Reverse((at, event))) = self.events.peek().copied().filter(|Reverse((at, _))| *at < until) {
            self.events.pop();
            self.advance(at);
            self.happen(at, event);
        }
        self.advance(until);
    }

    fn advance(&mut self, until: Micros) {
        for (at, backend) in self.backends.iter_mut().enumerate() {
            let Backend::Local(engine) = backend else { continue };
            engine.advance(until);
            for done in engine.done.drain(..) {
                let served = &mut self.served[done.request];
                (served.backend, served.first, served.end) = (Some(at), done.first, done.end);
                self.lengths.saw(&self.setup.trace[done.request]);
            }
        }
    }

    fn happen(&mut self, now: Micros, event: Event) {
        match event {
            Event::First { backend, after, .. } => {
                if let Backend::Cloud(provider) = &mut self.backends[backend] {
                    provider.saw_first(now, after);
                }
            }
            Event::End { request, backend, wrote_for } => {
                let row = &self.setup.trace[request];
                if let Backend::Cloud(provider) = &mut self.backends[backend] {
                    provider.saw_end(now, row.session, (row.input, row.output), wrote_for);
                }
                let served = &mut self.served[request];
                (served.backend, served.first, served.end) = (Some(backend), now - wrote_for, now);
                self.lengths.saw(row);
            }
            Event::Failed { request, backend, failure } => {
                if let Backend::Cloud(provider) = &mut self.backends[backend] {
                    provider.saw_failure(now, failure);
                }
                self.try_next(request, now);
            }
        }
    }

    fn arrive(&mut self, request: usize, now: Micros) {
        let row = &self.setup.trace[request];
        let planned = self.plan(request, row, now);
        let mut order: Vec<usize> = planned
            .attempts
            .iter()
            .filter_map(|attempt| self.setup.fleet.models.iter().position(|model| model.id == attempt.id))
            .collect();
        let truths: Vec<Truth> = order.iter().map(|backend| self.truth(*backend, request, now)).collect();
        match self.chooser {
            Chooser::Strategy(_) | Chooser::StaticOrder => {}
            Chooser::RandomOfTwo => self.draw_two(request, &planned, &mut order),
            Chooser::OracleFastest => order = by(&truths, |truth| (truth.fails, truth.duration, truth.cost.0)),
            Chooser::OracleCheapest => {
                order =
                    by(&truths, |truth| (truth.fails, u64::try_from(truth.cost.0).unwrap_or(0), truth.duration as i64));
            }
        }
        let served = &mut self.served[request];
        served.arrived = now;
        if let Some(chosen) = order.first().and_then(|first| truths.iter().find(|truth| truth.backend == *first)) {
            let sound = || truths.iter().filter(|truth| !truth.fails);
            let fastest = sound().map(|truth| truth.duration).min().unwrap_or(0);
            let cheapest = sound().map(|truth| truth.cost).min().unwrap_or(Usd::ZERO);
            let again = if chosen.fails { fastest } else { 0 };
            served.regret = (chosen.duration + again).saturating_sub(fastest);
            served.regret_usd = chosen.cost.saturating_sub(cheapest).max(Usd::ZERO);
        }
        self.bring_in(&planned, now);
        self.orders[request] = order.into();
        self.try_next(request, now);
    }

    /// The plan that a gateway would make now.
    fn plan(&self, request: usize, row: &Request, now: Micros) -> Plan {
        let models = self.setup.fleet.models.iter().zip(&self.backends);
        let candidates = models.map(|(model, backend)| candidate(model, backend, row, now)).collect();
        let start_tier = start_tier(Some(row.difficulty), self.setup.escalate_at);
        let (strategy, deadline_ms) = match self.chooser {
            Chooser::Strategy(strategy) => (strategy, row.deadline_ms),
            // They know of no time, and so of no deadline.
            _ => (Strategy::Ordered, None),
        };
        let start_tier = if strategy == Strategy::Pyramid { start_tier } else { 0 };
        let wishes = Wishes { deadline_ms, min_tier: row.min_tier, session: Some(row.session), ..Wishes::default() };
        let rules = Rules { start_tier, wishes, ..Rules::from(strategy) };
        plan(&row.ask(self.lengths.usual(row)), candidates, rules, self.dice.of(1).of(request as u64).0)
    }

    fn draw_two(&self, request: usize, planned: &Plan, order: &mut Vec<usize>) {
        // Neither does it ask whom it knows to be out of order.
        let sound = planned.attempts.iter().filter(|attempt| !attempt.why.cooling).count() as u64;
        if sound < 2 {
            return;
        }
        let dice = self.dice.of(2).of(request as u64);
        let below = |dice: Dice, most: u64| (((1.0 - dice.even()) * most as f64) as u64).min(most - 1) as usize;
        let one = below(dice.of(1), sound);
        let other = (one + 1 + below(dice.of(2), sound - 1)) % sound as usize;
        let quieter = if busy(&self.backends[order[other]]) < busy(&self.backends[order[one]]) { other } else { one };
        let chosen = order.remove(quieter);
        order.insert(0, chosen);
    }

    /// A model that is not in memory is brought in for requests that would have gone there.
    fn bring_in(&mut self, planned: &Plan, now: Micros) {
        let absent = planned.attempts.iter().filter(|attempt| attempt.why.absent);
        for attempt in absent {
            let at = self.setup.fleet.models.iter().position(|model| model.id == attempt.id);
            if let Some(Backend::Local(engine)) = at.map(|at| &mut self.backends[at]) {
                engine.load(now);
            }
        }
    }

    fn try_next(&mut self, request: usize, now: Micros) {
        let row = &self.setup.trace[request];
        while let Some(backend) = self.orders[request].pop_front() {
            let dice = self.draws(request, backend);
            let cost = self.cost(backend, row, now);
            match &mut self.backends[backend] {
                Backend::Local(engine) => {
                    if !engine.push(job(request, row, now)) {
                        continue;
                    }
                }
                Backend::Cloud(provider) => {
                    let begun = provider.begin(now);
                    let fate = provider.fate(dice, row, now);
                    let event = |at, event| Reverse((now + at, event));
                    match begun {
                        Err((after, failure)) => {
                            self.events.push(event(after, Event::Failed { request, backend, failure }));
                        }
                        Ok(()) if fate.fails => {
                            let failure = Failure::Broken;
                            self.events.push(event(fate.first, Event::Failed { request, backend, failure }));
                        }
                        Ok(()) => {
                            let wrote_for = fate.whole - fate.first;
                            self.events.push(event(fate.first, Event::First { request, backend, after: fate.first }));
                            self.events.push(event(fate.whole, Event::End { request, backend, wrote_for }));
                        }
                    }
                }
            }
            self.served[request].cost = cost;
            return;
        }
        // Nobody is left.
        let served = &mut self.served[request];
        (served.end, served.cost) = (now, Usd::ZERO);
    }

    /// What a request draws at a backend, whoever else is tried, and whenever.
    fn draws(&self, request: usize, backend: usize) -> Dice {
        self.dice.of(3).of(request as u64).of(backend as u64)
    }

    fn cost(&self, backend: usize, row: &Request, now: Micros) -> Usd {
        let cached_input = match &self.backends[backend] {
            Backend::Local(engine) => engine.known(row.session, row.shared),
            Backend::Cloud(provider) => provider.known(row.session, row.shared, now),
        };
        let usage = Usage { input: row.input, cached_input, output: row.output, ..Usage::default() };
        self.setup.fleet.models[backend].facts.price.charge(&usage)
    }

    fn truth(&self, backend: usize, request: usize, now: Micros) -> Truth {
        let row = &self.setup.trace[request];
        let cost = self.cost(backend, row, now);
        let (duration, fails) = match &self.backends[backend] {
            Backend::Local(engine) => {
                let mut engine = engine.clone();
                let taken = engine.push(job(request, row, now));
                engine.advance(Micros::MAX / 4);
                let done = engine.done.iter().find(|done| done.request == request);
                (done.map_or(0, |done| done.end.saturating_sub(now)), !taken)
            }
            Backend::Cloud(provider) => {
                let fate = provider.fate(self.draws(request, backend), row, now);
                let refused = provider.clone().begin(now).is_err();
                let fails = fate.fails || refused;
                (if fails { fate.first } else { fate.whole }, fails)
            }
        };
        Truth { backend, duration, cost, fails }
    }
}

fn by<K: Ord>(truths: &[Truth], key: impl Fn(&Truth) -> K) -> Vec<usize> {
    let mut sorted: Vec<&Truth> = truths.iter().collect();
    sorted.sort_by_key(|truth| key(truth));
    sorted.into_iter().map(|truth| truth.backend).collect()
}

fn job(request: usize, row: &Request, now: Micros) -> Job {
    Job {
        request,
        arrived: now,
        input: row.input,
        session: row.session,
        shared: row.shared,
        output: row.output,
        limit: row.max_output.unwrap_or(u64::MAX),
    }
}
