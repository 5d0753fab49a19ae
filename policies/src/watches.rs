//! The velocity watches of agents and runs: who asks them, and what follows when one changes its stage.

use crate::agent::{Agent, Caller, Roster};
use crate::denied::{Denied, Stop};
use crate::velocity::{Baseline, Level, Stage, Standing, Transition, Watch};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tollkeeper_config::{Owner, Scope, Usd, VelocityConfig};

/// A throttled request waits so long for its turn; one whose turn is later is refused until then.
const LONGEST_TURN: Duration = Duration::from_secs(10);

/// All watches.
#[derive(Debug, Default)]
pub(crate) struct Watches(Mutex<HashMap<Owner, Watched>>);

#[derive(Debug)]
struct Watched {
    watch: Watch,
    /// Whose rules it has: the agent, or that of the run.
    agent: Arc<str>,
    /// What it was made with.
    rules: VelocityConfig,
    cap: Option<Usd>,
    /// Whether the store says that its stage was set by hand.
    kept: bool,
    /// Cancelled when it is killed; what is in flight ends then.
    alive: CancellationToken,
}

/// A change of stage, and whose.
pub(crate) type Changed = (Owner, Transition);

/// What a request has to do before it is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing.
    Now,
    /// Wait so long; it has taken its turn.
    After(Duration),
}

impl Watches {
    /// Refuses callers that are stopped, and makes throttled ones take their turn. `signature` is a hash of what is asked.
    pub(crate) fn turn(
        &self,
        caller: &Caller,
        now: i64,
        signature: Option<u64>,
    ) -> (Result<Turn, Denied>, Vec<Changed>) {
        let mut all = self.lock();
        let (mut longest, mut stopped) = (Duration::ZERO, None);
        for owner in watched(caller) {
            let Some(watched) = all.get(owner) else { continue };
            let until = match watched.watch.stage(now) {
                Stage::Normal | Stage::Notify | Stage::Local => continue,
                Stage::Throttle { delay } if delay <= LONGEST_TURN => {
                    longest = longest.max(delay);
                    continue;
                }
                Stage::Throttle { delay } => {
                    Some(now.saturating_add(i64::try_from(delay.as_micros()).unwrap_or(i64::MAX)))
                }
                Stage::Paused { until } => until,
                Stage::Killed => None,
            };
            stopped = later(stopped, (owner, until));
        }
        if let Some(stopped) = stopped {
            return (Err(refusal(stopped)), Vec::new());
        }
        if longest.is_zero() {
            return (Ok(Turn::Now), Vec::new());
        }
        (Ok(Turn::After(longest)), count(&mut all, caller, |watch| watch.admitted(now, signature)))
    }

    /// Refuses callers that are paused or killed.
    pub(crate) fn is_stopped(&self, caller: &Caller, now: i64) -> Result<(), Denied> {
        let all = self.lock();
        let mut stopped = None;
        for owner in watched(caller) {
            let until = match all.get(owner).map(|watched| watched.watch.stage(now)) {
                Some(Stage::Paused { until }) => until,
                Some(Stage::Killed) => None,
                _ => continue,
            };
            stopped = later(stopped, (owner, until));
        }
        stopped.map_or(Ok(()), |stopped| Err(refusal(stopped)))
    }

    /// Counts a call that did not have to wait for its turn.
    pub(crate) fn admitted(&self, caller: &Caller, now: i64, signature: Option<u64>) -> Vec<Changed> {
        count(&mut self.lock(), caller, |watch| watch.admitted(now, signature))
    }

    /// Counts what a call cost.
    pub(crate) fn spent(&self, caller: &Caller, now: i64, usd: Usd, tokens: u64) -> Vec<Changed> {
        count(&mut self.lock(), caller, |watch| watch.spent(now, usd, tokens))
    }

    /// Whether only local models may answer this caller.
    pub(crate) fn local_only(&self, caller: &Caller, now: i64) -> bool {
        let all = self.lock();
        watched(caller).any(|owner| all.get(owner).is_some_and(|watched| watched.watch.stage(now) == Stage::Local))
    }

    /// Cancelled when the caller is killed.
    pub(crate) fn alive(&self, caller: &Caller) -> Vec<(Owner, CancellationToken)> {
        let mut all = self.lock();
        let token = |owner: &Owner| (owner.clone(), entry(&mut all, owner, &caller.agent).alive.clone());
        watched(caller).map(token).collect()
    }

    /// Lets cool-downs end, and what was set until a moment that has passed.
    pub(crate) fn tick(&self, now: i64) -> Vec<Changed> {
        let mut all = self.lock();
        let changed = all.iter_mut().filter_map(|(owner, watched)| {
            let transition = watched.watch.tick(now)?;
            watched.revive(now);
            Some((owner.clone(), transition))
        });
        changed.collect()
    }

    /// Back to normal, by hand.
    pub(crate) fn resume(&self, owner: &Owner, now: i64) -> Option<Changed> {
        let mut all = self.lock();
        let watched = all.get_mut(owner)?;
        watched.kept = false;
        let changed = watched.watch.resume(now);
        watched.revive(now);
        Some((owner.clone(), changed?))
    }

    /// Sets a stage by hand, until a moment or until it is released.
    pub(crate) fn hold(
        &self,
        owner: &Owner,
        agent: &Agent,
        now: i64,
        level: Level,
        until: Option<i64>,
    ) -> Option<Changed> {
        let mut all = self.lock();
        let watched = entry(&mut all, owner, agent);
        watched.kept = true;
        let changed = watched.watch.hold(now, level, until);
        watched.revive(now);
        changed.map(|transition| {
            act(&mut all, owner, &transition);
            (owner.clone(), transition)
        })
    }

    /// Ends what was set by hand. Returns whether something was.
    pub(crate) fn release(&self, owner: &Owner, now: i64) -> (bool, Option<Changed>) {
        let mut all = self.lock();
        let Some(watched) = all.get_mut(owner) else { return (false, None) };
        let was = std::mem::take(&mut watched.kept);
        let changed = watched.watch.release(now).map(|transition| (owner.clone(), transition));
        watched.revive(now);
        (was, changed)
    }

    /// Whether somebody has set its stage by hand.
    pub(crate) fn is_held(&self, owner: &Owner) -> bool {
        self.lock().get(owner).is_some_and(|watched| watched.kept)
    }

    /// How many have a stage that was set by hand.
    pub(crate) fn held(&self, now: i64) -> usize {
        self.lock().values().filter(|watched| watched.watch.is_held(now)).count()
    }

    /// Who was held until a moment that has passed; each is named once.
    pub(crate) fn ended_holds(&self, now: i64) -> Vec<Owner> {
        let mut all = self.lock();
        let ended = all.iter_mut().filter(|(_, watched)| watched.kept && !watched.watch.is_held(now));
        ended
            .map(|(owner, watched)| {
                watched.kept = false;
                owner.clone()
            })
            .collect()
    }

    /// How these agents stand, and everybody else who is watched, by name.
    pub(crate) fn standings<'a>(
        &self,
        agents: impl Iterator<Item = &'a Arc<Agent>>,
        now: i64,
    ) -> Vec<(Owner, Standing)> {
        let all = self.lock();
        let mut standings: BTreeMap<Owner, Standing> =
            all.iter().map(|(owner, watched)| (owner.clone(), watched.watch.standing(now))).collect();
        for agent in agents {
            if let Some(owner) = agent.owners.first() {
                let fresh = || Watched::new(agent, &Baseline::default()).watch.standing(now);
                standings.entry(owner.clone()).or_insert_with(fresh);
            }
        }
        standings.into_iter().collect()
    }

    /// Takes over the rules of these agents, for their runs too.
    pub(crate) fn configure(&self, roster: &Roster) {
        for watched in self.lock().values_mut() {
            if let Some(agent) = roster.named(&watched.agent)
                && (&watched.rules, watched.cap) != (&agent.velocity, agent.daily_cap)
            {
                watched.watch.configure(&agent.velocity, agent.daily_cap);
                (watched.rules, watched.cap) = (agent.velocity.clone(), agent.daily_cap);
            }
        }
    }

    /// What was learned of an agent before a restart.
    pub(crate) fn restore(&self, agent: &Agent, baseline: &Baseline) {
        if let Some(owner) = agent.owners.first() {
            self.lock().insert(owner.clone(), Watched::new(agent, baseline));
        }
    }

    /// What is to be known after a restart.
    pub(crate) fn baselines(&self) -> Vec<(Owner, Baseline)> {
        let all = self.lock();
        let of_agents = all.iter().filter(|(owner, _)| owner.scope == Scope::Agent);
        of_agents.map(|(owner, watched)| (owner.clone(), watched.watch.baseline())).collect()
    }

    /// What holds of everybody who is watched.
    pub(crate) fn levels(&self, now: i64) -> Vec<(Owner, Level)> {
        self.lock().iter().map(|(owner, watched)| (owner.clone(), watched.watch.stage(now).level())).collect()
    }

    /// Who is refused until somebody resumes it, because it was too fast.
    pub(crate) fn killed(&self, now: i64) -> Vec<Owner> {
        let all = self.lock();
        let killed = all.iter().filter(|(_, watched)| !watched.kept && watched.watch.stage(now) == Stage::Killed);
        killed.map(|(owner, _)| owner.clone()).collect()
    }

    /// A run has ended, or an agent was taken away.
    pub(crate) fn forget(&self, owner: &Owner) {
        self.lock().remove(owner);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Owner, Watched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who is stopped, and until when in microseconds since 1970; without it, until a hand ends it.
type Stopped<'a> = (&'a Owner, Option<i64>);

/// Of two stops the one that ends later: whoever comes back at the end of the other would be refused again.
fn later<'a>(one: Option<Stopped<'a>>, other: Stopped<'a>) -> Option<Stopped<'a>> {
    let end = |stopped: &Stopped<'_>| stopped.1.unwrap_or(i64::MAX);
    Some(one.filter(|one| end(one) >= end(&other)).unwrap_or(other))
}

fn refusal((who, until): Stopped<'_>) -> Denied {
    let until = until.and_then(|at| Timestamp::from_microsecond(at).ok());
    Denied::Stopped { who: who.clone(), stop: Stop::Velocity { until } }
}

/// The agent, the run whose key was used, and the runs above it, as far as they have not ended.
fn watched(caller: &Caller) -> impl Iterator<Item = &Owner> {
    let runs = caller.run.iter().flat_map(|run| run.chain()).filter(|run| !run.has_ended());
    caller.agent.owners.iter().take(1).chain(runs.map(|run| &run.owner))
}

impl Watched {
    fn new(agent: &Agent, baseline: &Baseline) -> Self {
        Self {
            watch: Watch::new(&agent.velocity, agent.daily_cap, baseline),
            agent: agent.name.clone(),
            rules: agent.velocity.clone(),
            cap: agent.daily_cap,
            kept: false,
            alive: CancellationToken::new(),
        }
    }

    /// What is admitted from now on is not cut, unless it is killed.
    fn revive(&mut self, now: i64) {
        if self.alive.is_cancelled() && self.watch.stage(now) != Stage::Killed {
            self.alive = CancellationToken::new();
        }
    }
}

fn count(
    all: &mut HashMap<Owner, Watched>,
    caller: &Caller,
    mut tell: impl FnMut(&mut Watch) -> Option<Transition>,
) -> Vec<Changed> {
    let mut changed = Vec::new();
    for owner in watched(caller) {
        if let Some(transition) = tell(&mut entry(all, owner, &caller.agent).watch) {
            act(all, owner, &transition);
            changed.push((owner.clone(), transition));
        }
    }
    changed
}

/// Cuts what is in flight of someone who is killed.
fn act(all: &mut HashMap<Owner, Watched>, owner: &Owner, transition: &Transition) {
    if let (Level::Killed, Some(watched)) = (transition.to, all.get(owner)) {
        watched.alive.cancel();
    }
}

fn entry<'a>(all: &'a mut HashMap<Owner, Watched>, owner: &Owner, agent: &Agent) -> &'a mut Watched {
    all.entry(owner.clone()).or_insert_with(|| Watched::new(agent, &Baseline::default()))
}
