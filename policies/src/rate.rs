//! Rate limits: requests and tokens a minute and parallel requests, of agents and of aliases.
//!
//! A request is let in by all limits over it or by none. What a minute allows is taken when the request comes (its tokens as estimated) and is
//! corrected when it is known what it came to; a request that leaves before it was let in has taken nothing. When all places for parallel
//! requests are taken it waits, first for its agent's, then for its alias's: always in this order, so that no two requests wait for each other.
//!
//! Nobody waits for what a minute allows: who would have to is refused and told the exact time.

mod gate;
mod limiter;

use crate::clock::Clock;
use gate::{Entry, Gate};
use limiter::Limiter;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot::Receiver;
use tollkeeper_config::{Config, Priority, RateLimits};

/// All rate limits and what is used of them; a cheap handle.
#[derive(Debug, Clone)]
pub struct Rates(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    owners: Vec<Owner>,
    /// By scope, then by name.
    places: [HashMap<Arc<str>, usize>; 2],
    /// Given to takings and to those who wait.
    next_id: u64,
    now: u64,
}

/// An agent or alias that has or had limits.
#[derive(Debug)]
struct Owner {
    scope: RateScope,
    name: Arc<str>,
    /// Whether its limits are those of the configuration.
    configured: bool,
    requests: Option<Limiter>,
    tokens: Option<Limiter>,
    gate: Gate,
}

/// Whose limit it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RateScope {
    /// One agent's.
    Agent,
    /// That of an alias, for all who name it.
    Alias,
}

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RateLimit {
    /// Requests a minute.
    Requests,
    /// Tokens a minute.
    Tokens,
    /// Requests at once.
    Parallel,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct RateAsk<'a> {
    /// The agent.
    pub agent: &'a str,
    /// What it names; only aliases have limits of their own.
    pub alias: &'a str,
    /// The queue that it waits in.
    pub priority: Priority,
}

/// Why a request is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RateDenied {
    /// A minute does not allow it now; of several limits the one that takes longest.
    #[error(
        "{scope} `{id}` is at its limit of {limit} {} a minute (`{}`); try again in {}",
        .what.name(), .what.key(), seconds(*.retry_after)
    )]
    Rate {
        /// Whose limit it is.
        scope: RateScope,
        /// Its owner's name.
        id: Arc<str>,
        /// Requests or tokens.
        what: RateLimit,
        /// How many a minute.
        limit: u32,
        /// After exactly so long it would be let in, if nobody else came.
        retry_after: Duration,
    },
    /// All places are taken and so many wait already that no more may.
    #[error(
        "{scope} `{id}` has {limit} requests in flight and {waiting} waiting, which is its limit (`parallel`, `queue`); try again in about {}",
        seconds(*.retry_after)
    )]
    Busy {
        /// Whose limit it is.
        scope: RateScope,
        /// Its owner's name.
        id: Arc<str>,
        /// How many may run at once.
        limit: u32,
        /// How many of the same priority wait.
        waiting: usize,
        /// An estimate from how long requests took.
        retry_after: Duration,
    },
}

/// What is left of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// How many a minute.
    pub limit: u32,
    /// How many may be taken now.
    pub remaining: u32,
    /// How long until all may, if nobody takes any.
    pub reset: Duration,
}

/// What is left of the limits over a request: for each kind the tightest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Of requests a minute; `None` without such a limit.
    pub requests: Option<Left>,
    /// Of tokens a minute; `None` without such a limit.
    pub tokens: Option<Left>,
}

/// A request that is let in. Dropping it frees its places; what it took of a minute stays taken, as last corrected.
#[derive(Debug)]
#[must_use = "the places are free again when this is dropped"]
pub struct RateGuard {
    rates: Rates,
    takings: Vec<Taking>,
    places: Vec<Place>,
    /// What it was last said to use, in tokens.
    told: u64,
    admitted: bool,
}

#[derive(Debug)]
struct Taking {
    owner: usize,
    what: RateLimit,
    id: u64,
}

#[derive(Debug)]
struct Place {
    owner: usize,
    /// Nanoseconds since the start.
    since: u64,
}

/// A request at its first gate: let in, or waiting there with other gates behind.
type Arrived<'a> = (RateGuard, Option<(Waiting<'a>, std::vec::IntoIter<usize>)>);

/// A place in a queue.
struct Waiting<'a> {
    rates: &'a Rates,
    owner: usize,
    id: u64,
    class: Priority,
    grant: Receiver<()>,
    done: bool,
}

impl Rates {
    /// The limits of a configuration, nothing of them used.
    pub fn new(config: &Config, clock: Clock) -> Self {
        let rates = Self(Arc::new(Shared { clock, state: Mutex::default() }));
        rates.reload(config);
        rates
    }

    /// Takes over the limits of a new configuration. What is used stays used, who runs runs on, and who waits keeps its place in the queue, even
    /// of a limit that is gone.
    pub fn reload(&self, config: &Config) {
        let (mut state, now) = self.state();
        let agents = config.agents.iter().map(|(name, agent)| (RateScope::Agent, name, agent.rates));
        let aliases = config.aliases.iter().map(|(name, alias)| (RateScope::Alias, name, alias.rates));
        let listed: Vec<_> = agents.chain(aliases).collect();
        for owner in &mut state.owners {
            let there = match owner.scope {
                RateScope::Agent => config.agents.contains_key(&*owner.name),
                RateScope::Alias => config.aliases.contains_key(&*owner.name),
            };
            if owner.configured && !there {
                owner.limit(RateLimits::default(), now);
            }
        }
        for (scope, name, limits) in listed {
            if let Some(owner) = state.owner(scope, name, limits) {
                owner.limit(limits, now);
                owner.configured = true;
            }
        }
    }

    /// Gives limits to an agent or alias that the configuration does not know; later configurations leave them as they are unless they do.
    pub fn limit(&self, scope: RateScope, name: &str, limits: RateLimits) {
        let (mut state, now) = self.state();
        if let Some(owner) = state.owner(scope, name, limits) {
            owner.limit(limits, now);
            owner.configured = false;
        }
    }

    /// Lets a request in, at once or when places are free for it. `tokens` estimates what it will use, and is asked only when that is limited.
    /// Dropping the future of this leaves the queue and gives everything back; it is for the caller to bound the wait in this way.
    ///
    /// # Errors
    /// A minute does not allow it, or too many wait. Then nothing is taken.
    pub async fn admit(&self, ask: RateAsk<'_>, tokens: impl FnOnce() -> u64) -> Result<RateGuard, RateDenied> {
        let (mut guard, mut waiting, mut gates) = match self.arrive(ask, tokens)? {
            (guard, None) => return Ok(guard),
            (guard, Some((waiting, gates))) => (guard, waiting, gates),
        };
        loop {
            // The sender lives until it is used, see `Gate::grant`.
            _ = (&mut waiting.grant).await;
            let next = {
                let (mut state, now) = self.state();
                waiting.done = true;
                guard.places.push(Place { owner: waiting.owner, since: now });
                let next = state.enter(self, ask.priority, &mut gates, &mut guard, now);
                if let Ok(None) = next {
                    guard.let_in(&mut state, now);
                }
                next
            };
            match next? {
                Some(next) => waiting = next,
                None => return Ok(guard),
            }
        }
    }

    /// Refused, let in, or waiting at the first of the gates that has no place, with those behind it.
    fn arrive(&self, ask: RateAsk<'_>, tokens: impl FnOnce() -> u64) -> Result<Arrived<'_>, RateDenied> {
        let mut guard =
            RateGuard { rates: self.clone(), takings: Vec::new(), places: Vec::new(), told: 0, admitted: false };
        // Estimating reads the whole request: not under the lock.
        if self.limits_tokens(ask) {
            guard.told = tokens().max(1);
        }
        let (mut state, now) = self.state();
        let over = state.over(ask.agent, ask.alias);
        let granted = state.check(&over, guard.told.max(1), now)?;
        let mut gates = over.into_iter();
        let entered = state.enter(self, ask.priority, &mut gates, &mut guard, now);
        let waiting = match entered {
            Ok(waiting) => waiting,
            Err(denied) => {
                // The guard gives back what it holds, for which it needs the lock.
                drop(state);
                return Err(denied);
            }
        };
        for (owner, what, granted) in granted {
            state.next_id += 1;
            let id = state.next_id;
            if let Some(limiter) = state.limiter(owner, what) {
                limiter.take(granted, id);
                guard.takings.push(Taking { owner, what, id });
            }
        }
        if waiting.is_none() {
            guard.let_in(&mut state, now);
        }
        Ok((guard, waiting.map(|waiting| (waiting, gates))))
    }

    fn limits_tokens(&self, ask: RateAsk<'_>) -> bool {
        let (state, _) = self.state();
        state.over(ask.agent, ask.alias).iter().any(|owner| state.owners[*owner].tokens.is_some())
    }

    /// What is left now of the limits over what this agent asks of this alias.
    pub fn standing(&self, agent: &str, alias: &str) -> Standing {
        let (mut state, now) = self.state();
        let mut standing = Standing::default();
        for place in state.over(agent, alias) {
            let owner = &mut state.owners[place];
            tighten(&mut standing.requests, owner.requests.as_mut(), now);
            tighten(&mut standing.tokens, owner.tokens.as_mut(), now);
        }
        standing
    }

    /// How many requests of each priority wait for a place.
    pub fn waiting(&self) -> [(Priority, usize); 2] {
        let (state, _) = self.state();
        [Priority::Interactive, Priority::Batch]
            .map(|class| (class, state.owners.iter().map(|owner| owner.gate.waiting(class)).sum()))
    }

    /// The state, and nanoseconds since the start, which never run backwards. Never held while waiting for anything.
    fn state(&self) -> (MutexGuard<'_, State>, u64) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that it grows from holder to holder.
        let now = u64::try_from(self.0.clock.monotonic().as_nanos()).unwrap_or(u64::MAX);
        state.now = state.now.max(now);
        let now = state.now;
        (state, now)
    }
}

impl State {
    /// The owner of this name; made if it has limits.
    fn owner(&mut self, scope: RateScope, name: &str, limits: RateLimits) -> Option<&mut Owner> {
        let places = &mut self.places[scope as usize];
        let place = match places.get(name) {
            Some(place) => *place,
            None if limits == RateLimits::default() => return None,
            None => {
                let name: Arc<str> = name.into();
                places.insert(name.clone(), self.owners.len());
                let gate = Gate::default();
                self.owners.push(Owner { scope, name, configured: false, requests: None, tokens: None, gate });
                self.owners.len() - 1
            }
        };
        self.owners.get_mut(place)
    }

    /// Whose limits are over a request, in the order in which their gates are passed.
    fn over(&self, agent: &str, alias: &str) -> Vec<usize> {
        self.places.iter().zip([agent, alias]).filter_map(|(places, name)| places.get(name).copied()).collect()
    }

    fn limiter(&mut self, owner: usize, what: RateLimit) -> Option<&mut Limiter> {
        let owner = self.owners.get_mut(owner)?;
        match what {
            RateLimit::Requests => owner.requests.as_mut(),
            RateLimit::Tokens => owner.tokens.as_mut(),
            RateLimit::Parallel => None,
        }
    }

    /// What all limits over a request grant. When some do not, the one that takes longest: after that time all of them would.
    fn check(
        &mut self,
        over: &[usize],
        tokens: u64,
        now: u64,
    ) -> Result<Vec<(usize, RateLimit, limiter::Granted)>, RateDenied> {
        let mut granted = Vec::with_capacity(4);
        let mut longest: Option<RateDenied> = None;
        for &owner in over {
            for (what, cells) in [(RateLimit::Requests, 1), (RateLimit::Tokens, tokens)] {
                let Some(limiter) = self.limiter(owner, what) else { continue };
                let limit = limiter.limit().get();
                match limiter.check(now, cells) {
                    Ok(grant) => granted.push((owner, what, grant)),
                    Err(wait) if longest.as_ref().is_some_and(|denied| denied.retry_after() >= wait) => {}
                    Err(retry_after) => {
                        let Owner { scope, name, .. } = &self.owners[owner];
                        let (scope, id) = (*scope, name.clone());
                        longest = Some(RateDenied::Rate { scope, id, what, limit, retry_after });
                    }
                }
            }
        }
        longest.map_or(Ok(granted), Err)
    }

    /// Passes gates up to the first that has no place.
    fn enter<'r>(
        &mut self,
        rates: &'r Rates,
        class: Priority,
        gates: &mut std::vec::IntoIter<usize>,
        guard: &mut RateGuard,
        now: u64,
    ) -> Result<Option<Waiting<'r>>, RateDenied> {
        for owner in gates {
            self.next_id += 1;
            let id = self.next_id;
            let gate = &mut self.owners[owner].gate;
            match gate.enter(id, class) {
                Entry::In => guard.places.push(Place { owner, since: now }),
                Entry::Waits(grant) => return Ok(Some(Waiting { rates, owner, id, class, grant, done: false })),
                Entry::Full(retry_after) => {
                    let limit = gate.limit().map_or(0, NonZeroU32::get);
                    let waiting = gate.waiting(class);
                    let Owner { scope, name, .. } = &self.owners[owner];
                    return Err(RateDenied::Busy { scope: *scope, id: name.clone(), limit, waiting, retry_after });
                }
            }
        }
        Ok(None)
    }
}

impl Owner {
    fn limit(&mut self, limits: RateLimits, now: u64) {
        change(&mut self.requests, limits.requests_per_minute, now);
        change(&mut self.tokens, limits.tokens_per_minute, now);
        self.gate.change(limits.parallel, limits.queue);
    }
}

fn change(limiter: &mut Option<Limiter>, limit: Option<NonZeroU32>, now: u64) {
    match (&mut *limiter, limit) {
        (Some(old), Some(limit)) if old.limit() == limit => {}
        (Some(old), Some(limit)) => old.change(now, limit),
        (_, limit) => *limiter = limit.map(|limit| Limiter::new(limit, now)),
    }
}

/// Keeps what is left of the tighter limit: that of which less may be taken now, of equals that which takes longer to come back.
fn tighten(tightest: &mut Option<Left>, limiter: Option<&mut Limiter>, now: u64) {
    let Some((limit, remaining, reset)) = limiter.map(|limiter| limiter.left(now)) else { return };
    let left = Left { limit: limit.get(), remaining, reset };
    if tightest.is_none_or(|other| (remaining, other.reset) < (other.remaining, reset)) {
        *tightest = Some(left);
    }
}

impl RateGuard {
    /// What it is taken to use, in tokens: the estimate, or what it was last corrected to. 0 when tokens are not limited.
    pub fn tokens(&self) -> u64 {
        self.told
    }

    /// It uses so many tokens in all, instead of what was thought before. The limits stand then as if it had taken just these when it came;
    /// more than there were delay those who come later.
    pub fn correct(&mut self, tokens: u64) {
        if self.takings.is_empty() {
            return;
        }
        let (mut state, now) = self.rates.state();
        for taking in self.takings.iter().filter(|taking| taking.what == RateLimit::Tokens) {
            if let Some(limiter) = state.limiter(taking.owner, taking.what) {
                limiter.correct(now, taking.id, self.told, tokens);
            }
        }
        self.told = tokens;
    }

    /// Nothing but its tokens will be corrected from here on.
    fn let_in(&mut self, state: &mut State, now: u64) {
        self.admitted = true;
        for taking in self.takings.extract_if(.., |taking| taking.what == RateLimit::Requests) {
            if let Some(limiter) = state.limiter(taking.owner, taking.what) {
                limiter.settle(now, taking.id);
            }
        }
    }
}

impl Drop for RateGuard {
    fn drop(&mut self) {
        if self.takings.is_empty() && self.places.is_empty() {
            return;
        }
        let (mut state, now) = self.rates.state();
        for taking in self.takings.drain(..) {
            let Some(limiter) = state.limiter(taking.owner, taking.what) else { continue };
            if !self.admitted {
                limiter.correct(now, taking.id, u64::MAX, 0);
            }
            limiter.settle(now, taking.id);
        }
        for place in self.places.drain(..) {
            if let Some(owner) = state.owners.get_mut(place.owner) {
                owner.gate.leave(Duration::from_nanos(now.saturating_sub(place.since)));
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let (mut state, _) = self.rates.state();
        let gate = &mut state.owners[self.owner].gate;
        if !gate.forget(self.id, self.class) {
            gate.free();
        }
    }
}

impl RateDenied {
    /// How long to stay away.
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Rate { retry_after, .. } | Self::Busy { retry_after, .. } => *retry_after,
        }
    }

    /// What is limited.
    pub fn what(&self) -> RateLimit {
        match self {
            Self::Rate { what, .. } => *what,
            Self::Busy { .. } => RateLimit::Parallel,
        }
    }
}

impl RateScope {
    /// The name in texts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Alias => "alias",
        }
    }
}

impl RateLimit {
    /// The name in texts and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Parallel => "parallel",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Requests => "requests_per_minute",
            Self::Tokens => "tokens_per_minute",
            Self::Parallel => "parallel",
        }
    }
}

impl std::fmt::Display for RateScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Milliseconds, rounded up: nobody should come too early.
fn seconds(time: Duration) -> String {
    let millis = time.as_nanos().div_ceil(1_000_000);
    match (millis / 1000, millis % 1000) {
        (0, millis) => format!("{millis} ms"),
        (seconds, 0) => format!("{seconds} s"),
        (seconds, millis) => format!("{seconds}.{millis:03} s"),
    }
}
