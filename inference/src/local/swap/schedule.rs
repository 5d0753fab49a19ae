//! What follows from a state of the machine: who is granted, who is sent away, what goes and what comes.

use super::{Effect, Machine, Model, ModelKey, Moment, Refusal, State, Waiter, Want};
use std::cmp::Reverse;
use std::time::Duration;

/// No load is expected to take less, or to be nearer to its end.
const SHORTEST_LOAD: Duration = Duration::from_millis(50);

/// Said to take so long: what nobody can know.
const UNKNOWN_WAIT: Duration = Duration::from_secs(60);

impl Model {
    /// Ends all leases; their requests wait for the next load, behind all who wait now: else a long answer would bring its model
    /// back at once, and whoever it went for would wait on.
    pub(super) fn park(&mut self, arrivals: &mut u64) {
        for (request, deadline) in std::mem::take(&mut self.leases) {
            *arrivals += 1;
            self.waiters.push_back(Waiter { request, arrival: *arrivals, deadline, parked: true });
        }
    }

    /// Its place in the order in which models are loaded; the lowest comes first.
    fn rank(&self) -> Option<(Reverse<Want>, u64)> {
        let waiting = self.waiters.front().map(|waiter| (Reverse(Want::Operator), waiter.arrival));
        let wanted = self.wanted.map(|wish| (Reverse(wish.want), wish.arrival));
        waiting.into_iter().chain(wanted).min()
    }

    /// Gives everybody a lease who waits.
    fn grant(&mut self, effects: &mut Vec<Effect>) {
        for waiter in std::mem::take(&mut self.waiters) {
            self.leases.insert(waiter.request, waiter.deadline);
            if !waiter.parked {
                effects.push(Effect::Grant { request: waiter.request, generation: self.generation });
            }
        }
    }

    fn is_going(&self) -> bool {
        matches!(self.state, State::Draining { .. } | State::Unloading)
    }

    /// From when on it may be taken out of memory for another; `None` is not in sight.
    fn evictable(&self, power: Want, residency: Duration) -> Option<Moment> {
        // Whatever the rules say, loading must not become all that is done.
        let residency = residency.max(self.spec.load_time / 2);
        match (self.state, power) {
            (State::Ready { .. }, _) if self.spec.pinned => None,
            (State::Ready { since }, Want::Operator) => Some(since + residency),
            (State::Ready { since }, Want::Hint | Want::Schedule) if self.leases.is_empty() => {
                Some(since.max(self.last_used) + residency)
            }
            _ => None,
        }
    }

    /// What is left of a load that began then, if it takes as long as the ones before; never nothing.
    fn load_left(&self, now: Moment, since: Moment) -> Duration {
        self.spec.load_time.saturating_sub(now - since).max(SHORTEST_LOAD)
    }
}

impl Machine {
    /// Brings the machine to rest. Who can be served is served before anything is taken away.
    pub(super) fn settle(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        self.expire(now, effects);
        for model in self.models.values_mut() {
            model.cooling.take_if(|cooling| cooling.until <= now);
            if let State::Ready { .. } = model.state {
                model.grant(effects);
            }
        }
        self.wind_down(now, effects);
        self.schedule(now, effects);
        self.unload(now, effects);
        self.close(effects);
    }

    /// Sends away who has waited too long, and gives up wishes whose time is over. Parked requests are the engine's: it ends them, and says so.
    fn expire(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let keys: Vec<ModelKey> = self.models.keys().copied().collect();
        for key in keys {
            self.with(key, |model| {
                // A load that has begun is brought to its end.
                let loads = matches!(model.state, State::Loading { .. });
                model.wanted.take_if(|wish| !loads && wish.until.is_some_and(|until| until <= now));
            });
            let late = |waiter: &Waiter| waiter.deadline <= now && !waiter.parked;
            if !self.models.get(&key).is_some_and(|model| model.waiters.iter().any(late)) {
                continue;
            }
            let refusal = self.too_late(now, key);
            self.with(key, |model| {
                let gone = model.waiters.iter().filter(|waiter| late(waiter));
                effects.extend(gone.map(|waiter| Effect::Refuse { request: waiter.request, refusal: refusal.clone() }));
                model.waiters.retain(|waiter| !late(waiter));
            });
        }
    }

    /// Why it was not there in time: because of others on the device, or because it takes longer.
    fn too_late(&self, now: Moment, key: ModelKey) -> Refusal {
        let need = self.models.get(&key).map_or(0, |model| model.spec.bytes);
        let room = self.room().saturating_sub(self.sum(|model| model.spec.pinned));
        match self.taken() {
            taken if taken > 0 && need > room => Refusal::Crowded { need, room, taken },
            _ => Refusal::Late { ready_in: self.ready_in(now, key) },
        }
    }

    /// Begins to take out what is over: retired, not used any more, or everything.
    fn wind_down(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        for (key, model) in &mut self.models {
            let unused = model.leases.is_empty() && !model.spec.pinned;
            let idle_for = now.saturating_sub(model.last_used);
            match model.state {
                State::Loading { since, aborted: false } if self.stopping || model.retired => {
                    model.state = State::Loading { since, aborted: true };
                    effects.push(Effect::Abort { model: *key, generation: model.generation });
                }
                State::Ready { .. } | State::Draining { .. } if self.stopping => {
                    model.state = State::Draining { until: Some(now) };
                }
                State::Ready { .. } | State::Draining { .. } if model.retired => {
                    model.state = State::Draining { until: None };
                }
                State::Ready { .. } if unused && model.spec.keep_alive.is_some_and(|limit| idle_for >= limit) => {
                    model.state = State::Draining { until: None };
                }
                _ => {}
            }
        }
    }

    /// Sends away whose model will not come back, and forgets those models.
    fn close(&mut self, effects: &mut Vec<Effect>) {
        let refusal = if self.stopping { Refusal::Stopping } else { Refusal::Retired };
        let over = |model: &Model| (self.stopping || model.retired) && !model.waiters.is_empty();
        let keys: Vec<ModelKey> = self.models.iter().filter(|(_, model)| over(model)).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.dismiss(key, &refusal, effects));
        self.models.retain(|key, model| {
            let gone = model.retired && model.state == State::Absent;
            if gone {
                effects.push(Effect::Forget { model: *key });
            }
            !gone
        });
    }

    /// Decides what is loaded, and what has to go for it.
    fn schedule(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        if self.stopping {
            return;
        }
        // Bytes that those who come first, but cannot be loaded yet, are still to get.
        let mut promised = 0u64;
        let mut first = true;
        for (power, key) in self.queue() {
            let need = self.models.get(&key).map_or(0, |model| model.spec.bytes);
            let pinned = self.sum(|model| model.spec.pinned);
            let most = self.rules.budget.saturating_sub(pinned);
            if need > most {
                self.dismiss(key, &Refusal::NeverFits { need, room: most }, effects);
                continue;
            }
            // It waits for others on the device to leave; nobody has to wait for it, or to go.
            if need > self.room().saturating_sub(pinned) {
                continue;
            }
            // Whoever comes later may take what the first do not count on.
            let coming = self.sum(Model::is_going) + self.sum(|model| model.evictable(power, Duration::ZERO).is_some());
            let held = promised.saturating_sub(coming);
            if !self.is_loading() && self.promised() + need + held <= self.room() {
                self.load(now, key, effects);
                continue;
            }
            if std::mem::take(&mut first) {
                self.make_way(now, power, key, effects);
            }
            if power == Want::Operator {
                promised += need;
            }
        }
    }

    /// Who is to be loaded, first come first, with the power to make others go.
    fn queue(&self) -> Vec<(Want, ModelKey)> {
        let waits = |model: &Model| model.state == State::Absent && model.cooling.is_none() && !model.retired;
        let mut queue: Vec<_> = self
            .models
            .iter()
            .filter(|(_, model)| waits(model))
            .filter_map(|(key, model)| Some((model.rank()?, *key)))
            .collect();
        queue.sort_unstable();
        queue.into_iter().map(|((Reverse(power), _), key)| (power, key)).collect()
    }

    fn load(&mut self, now: Moment, key: ModelKey, effects: &mut Vec<Effect>) {
        self.with(key, |model| {
            model.generation += 1;
            model.state = State::Loading { since: now, aborted: false };
            effects.push(Effect::Load { model: key, generation: model.generation });
        });
        debug_assert!(self.promised() <= self.room(), "more is promised than there is");
    }

    /// Does what can be done now so that this model can be loaded: stops a load that nobody waits for, hurries what is going, and
    /// sends away what it takes, the longest unused first. While another load runs nothing is sent away: it can serve until then.
    fn make_way(&mut self, now: Moment, power: Want, key: ModelKey, effects: &mut Vec<Effect>) {
        let patience = now + self.rules.drain;
        for (other, model) in &mut self.models {
            match model.state {
                State::Loading { since, aborted: false } if power == Want::Operator && !model.in_demand() => {
                    model.state = State::Loading { since, aborted: true };
                    effects.push(Effect::Abort { model: *other, generation: model.generation });
                }
                State::Draining { until: None } if power == Want::Operator && !model.retired => {
                    model.state = State::Draining { until: Some(patience) };
                }
                _ => {}
            }
        }
        if self.is_loading() {
            return;
        }
        let need = self.models.get(&key).map_or(0, |model| model.spec.bytes);
        let staying = self.sum(|model| !model.is_going());
        let missing = (need + staying).saturating_sub(self.room());
        if missing == 0 {
            return;
        }
        let victims = self.victims(now, power, missing);
        for victim in &victims {
            self.with(*victim, |model| model.state = State::Draining { until: Some(patience) });
        }
        if !victims.is_empty() {
            effects.push(Effect::Prefetch { model: key });
        }
    }

    /// Models that can go now and together give back so many bytes; none if they cannot.
    fn victims(&self, now: Moment, power: Want, missing: u64) -> Vec<ModelKey> {
        let residency = self.rules.min_residency;
        let may_go = |model: &Model| model.evictable(power, residency).is_some_and(|from| from <= now);
        let mut order: Vec<_> = self.models.iter().filter(|(_, model)| may_go(model)).collect();
        order.sort_by_key(|(_, model)| (!model.leases.is_empty(), model.last_used));
        let mut freed = 0;
        let mut victims: Vec<(ModelKey, u64)> = Vec::new();
        for (key, model) in order {
            if freed < missing {
                freed += model.spec.bytes;
                victims.push((*key, model.spec.bytes));
            }
        }
        if freed < missing {
            return Vec::new();
        }
        // A small one that was taken first may not be needed beside a large one.
        victims.retain(|(_, bytes)| {
            let needed = freed - bytes < missing;
            if !needed {
                freed -= bytes;
            }
            needed
        });
        victims.into_iter().map(|(key, _)| key).collect()
    }

    /// Takes out what has drained or had its time.
    fn unload(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        for (key, model) in &mut self.models {
            let State::Draining { until } = model.state else { continue };
            if model.leases.is_empty() || until.is_some_and(|until| until <= now) {
                model.park(&mut self.arrivals);
                model.state = State::Unloading;
                effects.push(Effect::Unload { model: *key, generation: model.generation });
            }
        }
    }

    fn is_loading(&self) -> bool {
        self.models.values().any(|model| matches!(model.state, State::Loading { .. }))
    }

    /// Bytes set aside for the models that are so.
    fn sum(&self, which: impl Fn(&Model) -> bool) -> u64 {
        self.models.values().filter(|model| which(model)).map(Model::reserved).sum()
    }

    /// Bytes that may be promised: the budget, less what others hold of the device.
    pub(super) fn room(&self) -> u64 {
        self.rules.budget.min(self.reach)
    }

    /// Bytes of the budget that others hold.
    pub(crate) fn taken(&self) -> u64 {
        self.rules.budget - self.room()
    }

    /// Bytes set aside for models.
    pub(crate) fn promised(&self) -> u64 {
        self.sum(|_| true)
    }

    /// Bytes that nobody has.
    pub(crate) fn free(&self) -> u64 {
        self.room().saturating_sub(self.promised())
    }

    /// How long until this model can serve, by the loads so far; an estimate that assumes that all answers take their full time.
    pub(crate) fn ready_in(&self, now: Moment, key: ModelKey) -> Duration {
        let Some(model) = self.models.get(&key) else { return Duration::ZERO };
        match (model.state, self.outlook(now, key)) {
            (State::Ready { .. }, _) => Duration::ZERO,
            (State::Loading { since, .. }, _) => model.load_left(now, since),
            (_, (room_at, load)) => room_at - now + load,
        }
    }

    /// When there is room for the model (or when its load began), and how long its load takes.
    fn outlook(&self, now: Moment, key: ModelKey) -> (Moment, Duration) {
        let Some(model) = self.models.get(&key) else { return (now, Duration::ZERO) };
        match model.state {
            State::Ready { .. } => return (now, Duration::ZERO),
            State::Loading { since, .. } => return (since, model.spec.load_time),
            _ => {}
        }
        let cooling = model.cooling.as_ref().map_or(Duration::ZERO, |cooling| cooling.until.saturating_sub(now));
        let ahead: Vec<ModelKey> =
            self.queue().into_iter().map(|(_, key)| key).take_while(|other| *other != key).collect();
        let wait = |key: &ModelKey| self.models.get(key).map_or(Duration::ZERO, |model| model.spec.load_time);
        let others: Duration = ahead.iter().map(|key| wait(key) + self.rules.min_residency).sum();
        (now + cooling + others + self.until_room(now, model.spec.bytes), model.spec.load_time.max(SHORTEST_LOAD))
    }

    /// How long until so many bytes are free and no other load runs.
    fn until_room(&self, now: Moment, need: u64) -> Duration {
        let mut waits = Vec::new();
        let mut longest = Duration::ZERO;
        for model in self.models.values() {
            let drain = if model.leases.is_empty() { Duration::ZERO } else { self.rules.drain };
            match model.state {
                State::Loading { since, .. } => {
                    longest = longest.max(model.load_left(now, since));
                    waits.push((model.load_left(now, since) + self.rules.min_residency, model.spec.bytes));
                }
                State::Draining { until } => {
                    waits.push((until.map_or(drain, |until| until.saturating_sub(now)), model.spec.bytes));
                }
                State::Unloading => waits.push((Duration::ZERO, model.spec.bytes)),
                State::Ready { .. } => {
                    let from = model.evictable(Want::Operator, self.rules.min_residency);
                    waits.extend(from.map(|from| (from.saturating_sub(now) + drain, model.spec.bytes)));
                }
                State::Absent => {}
            }
        }
        waits.sort_unstable();
        let mut free = self.free();
        for (wait, bytes) in waits {
            if free >= need {
                break;
            }
            free += bytes;
            longest = longest.max(wait);
        }
        // Others hold it, and nobody knows until when.
        if free < need { longest.max(UNKNOWN_WAIT) } else { longest }
    }

    /// What loading this model would take, were it to begin now: who has to go, whoever is young or answers, and how long models move for it.
    /// `None` if it is there or on its way, or cannot come.
    pub(crate) fn way_for(&self, key: ModelKey) -> Option<(Vec<ModelKey>, Duration)> {
        let model = self.models.get(&key).filter(|model| model.state == State::Absent && model.cooling.is_none())?;
        let staying = self.sum(|model| !model.is_going());
        // Room that is made for others is not for this one.
        let strongest = self.queue().into_iter().take_while(|(power, other)| *power == Want::Operator && *other != key);
        let needs = strongest.filter_map(|(_, other)| Some(self.models.get(&other)?.spec.bytes));
        let most = self.room().saturating_sub(self.sum(|model| model.spec.pinned));
        let ahead: u64 = needs.filter(|need| *need <= most).sum();
        let missing = (model.spec.bytes + staying + ahead).saturating_sub(self.room());
        let ordered = model.rank().is_some_and(|(Reverse(power), _)| power == Want::Operator);
        if missing == 0 && ordered {
            return None;
        }
        let victims = if missing == 0 { Vec::new() } else { self.victims(Moment::MAX, Want::Operator, missing) };
        if missing > 0 && victims.is_empty() {
            return None;
        }
        let busy =
            victims.iter().filter_map(|victim| self.models.get(victim)).filter(|victim| !victim.leases.is_empty());
        let back: Vec<Duration> = busy.map(|victim| victim.spec.load_time).collect();
        // What is parked brings its model back, and this one has to drain for that in its turn.
        let drains = if back.is_empty() { Duration::ZERO } else { self.rules.drain * 2 };
        Some((victims, drains + model.spec.load_time.max(SHORTEST_LOAD) + back.iter().sum::<Duration>()))
    }

    /// When the next thing happens by itself.
    pub(crate) fn next_wake(&self, now: Moment) -> Option<Moment> {
        let residency = self.rules.min_residency;
        let crowded = self.models.values().any(|model| model.state == State::Absent && model.in_demand());
        let moments = self.models.values().flat_map(|model| {
            let deadlines = model.waiters.iter().filter(|waiter| !waiter.parked).map(|waiter| waiter.deadline);
            let cooling = model.cooling.as_ref().map(|cooling| cooling.until);
            let drained = if let State::Draining { until } = model.state { until } else { None };
            let there = matches!(model.state, State::Ready { .. });
            let idle = there && model.leases.is_empty() && !model.spec.pinned;
            let unused = model.spec.keep_alive.filter(|_| idle).map(|limit| model.last_used + limit);
            let given_up = model.wanted.and_then(|wish| wish.until);
            let free = [Want::Operator, Want::Hint].map(|power| model.evictable(power, residency).filter(|_| crowded));
            deadlines.chain(cooling).chain(drained).chain(unused).chain(given_up).chain(free.into_iter().flatten())
        });
        moments.filter(|moment| *moment > now).min()
    }
}
