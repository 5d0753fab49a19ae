//! From a request to a plan: what it wants, how hard it is, who may answer it, and how they are at this moment.

use crate::app::App;
use crate::economics::Missed;
use crate::error::ApiError;
use crate::signature;
use crate::wishes::Asked;
use std::sync::Arc;
use tokio::time::Instant;
use tollkeeper_config::{Alias, BackendId, Config, Resolved, Strategy};
use tollkeeper_inference::{BackendHealth, BackendState};
use tollkeeper_policies::{Caller, Denied};
use tollkeeper_protocol::Request;
use tollkeeper_router::{
    Ask, Candidate, Difficulty, Health, Pace, Plan, Rules, TaskType, Wishes, ask, plan, start_tier,
};

/// Plans one request.
pub(crate) struct Planner<'a> {
    pub(crate) app: &'a Arc<App>,
    pub(crate) config: &'a Arc<Config>,
    pub(crate) caller: &'a Caller,
    pub(crate) request: Arc<Request>,
    pub(crate) asked: Asked,
    /// Whether the caller spends so fast that only local models may answer it.
    pub(crate) slowed: bool,
    /// Decides between backends that are equal in all that matters.
    pub(crate) seed: u64,
}

/// What a plan was made of beside the backends: displayed as `task=code;difficulty=0.612`, as far as it was looked at, and `missed=small` if a
/// model is missed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Basis {
    /// The type of the task.
    pub(crate) task_type: Option<Arc<str>>,
    /// 0 to 1.
    pub(crate) difficulty: Option<f32>,
    /// The local model that would answer had it been in memory, and that a cloud answers for until its swap pays.
    pub(crate) missed: Option<Arc<Missed>>,
}

/// A plan, what is asked of each backend, and what it was made of.
pub(crate) struct Planned {
    pub(crate) ask: Ask,
    pub(crate) plan: Plan,
    pub(crate) basis: Basis,
    pub(crate) rules: Rules,
    /// What was named, if it is an alias.
    pub(crate) alias: Option<Arc<Alias>>,
}

impl Planner<'_> {
    /// The targets that the caller may use: for some that is local ones only.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn permitted(&self, resolved: Resolved) -> Result<Resolved, ApiError> {
        let by_run = self.caller.run.as_ref().is_some_and(|run| run.local_only());
        if !by_run && !self.slowed {
            return Ok(resolved);
        }
        let resolved = local(resolved);
        let found = if resolved.targets.is_empty() { self.last_resort().map(local) } else { Some(resolved) };
        found.filter(|resolved| !resolved.targets.is_empty()).ok_or(ApiError::LocalOnly)
    }

    /// The targets of the agent's `degrade_to`.
    pub(crate) fn last_resort(&self) -> Option<Resolved> {
        let alias = self.caller.agent.degrade_to.as_ref()?;
        if self.app.policies.paused_alias(alias).is_some() {
            return None;
        }
        self.config.resolve(alias).ok()
    }

    /// Plans who should answer.
    ///
    /// # Errors
    /// Nobody can.
    pub(crate) fn plan(&self, resolved: Resolved) -> Result<Planned, ApiError> {
        let paused: Vec<Denied> =
            resolved.targets.iter().filter_map(|(id, _)| self.app.policies.paused_backend(id)).collect();
        if paused.len() == resolved.targets.len()
            && let Some(first) = paused.into_iter().next()
        {
            return Err(ApiError::denied(first));
        }
        let planned = self.planned(resolved, None, false);
        self.note_missed(&planned);
        match planned.plan.refusal() {
            Some((kind, why)) => Err(ApiError::NoBackend(kind, why)),
            None => Ok(planned),
        }
    }

    /// The plan as it would be made now, also when nobody can answer; for a prompt of so many tokens, if that is said. With `whole`, all that
    /// can be known of the request is looked at.
    pub(crate) fn planned(&self, resolved: Resolved, input_tokens: Option<u64>, whole: bool) -> Planned {
        let (mut basis, rules) = self.rules(&resolved, whole);
        let alias = resolved.alias;
        let weights = alias.as_ref().map_or(&[][..], |alias| &alias.weights);
        let weight = |tier: u8| weights.get(usize::from(tier)).copied().unwrap_or(1);
        let targets = resolved.targets.into_iter();
        let candidates: Vec<_> = targets.filter_map(|(id, tier)| self.candidate(id, tier, weight(tier))).collect();
        let mut ask = ask(&self.request);
        if let Some(tokens) = input_tokens {
            (ask.input_tokens, ask.longest_input) = (tokens, tokens);
        }
        let loaded = self.app.economics.as_if_loaded(self.config, &candidates);
        let plan = plan(&ask, candidates, rules, self.seed);
        basis.missed = loaded.and_then(|loaded| {
            let wanted = tollkeeper_router::plan(&ask, loaded, rules, self.seed);
            self.app.economics.missed(self.app, self.config, &wanted, &plan)
        });
        Planned { ask, plan, basis, rules, alias }
    }

    /// How the targets are to be ordered. Whatever the rules do not depend on is not looked at.
    fn rules(&self, resolved: &Resolved, whole: bool) -> (Basis, Rules) {
        let mut basis = Basis { task_type: self.asked.task_type.clone(), ..Basis::default() };
        if basis.task_type.is_none() && (whole || !self.config.tasks.is_empty()) {
            basis.task_type = TaskType::of(&self.request).map(|task| task.name().into());
        }
        let rule = basis.task_type.as_ref().and_then(|task| self.config.tasks.get(&**task));
        let wishes = rule.map_or(self.asked.wishes, |rule| self.asked.wishes.within(rule));
        let strategy = wishes.strategy.unwrap_or(resolved.strategy);
        let escalate_at = resolved.alias.as_ref().map_or(&[][..], |alias| &alias.escalate_at);
        if whole || (strategy == Strategy::Pyramid && !escalate_at.is_empty()) {
            basis.difficulty = Difficulty::of(&self.request).map(|score| score.value);
        }
        let session = match strategy {
            Strategy::Sticky => wishes.session.or_else(|| signature::conversation(&self.request)),
            _ => wishes.session,
        };
        let patience_ms = u64::try_from(self.config.local.swap.patience.as_millis()).unwrap_or(u64::MAX);
        let start_tier = if strategy == Strategy::Pyramid { start_tier(basis.difficulty, escalate_at) } else { 0 };
        let wishes = Wishes { session, ..wishes };
        (basis, Rules { strategy: resolved.strategy, patience_ms, start_tier, wishes })
    }

    /// Says which local models would have come before the first attempt had they been in memory.
    fn note_missed(&self, Planned { plan, basis, .. }: &Planned) {
        // Who comes when that pays is counted when it is known what its absence cost.
        if basis.missed.is_none() && plan.attempts.first().is_some_and(|first| !first.why.absent) {
            for missed in plan.attempts.iter().filter(|attempt| attempt.why.absent) {
                self.app.fleet.missed(&missed.id);
            }
        }
    }

    fn candidate(&self, id: BackendId, tier: u8, weight: u32) -> Option<Candidate> {
        let facts = self.app.economics.facts(self.config, &id)?;
        let BackendState { health, in_flight, queue_tokens, ttft, prefill, decode, .. } = self.app.fleet.snapshot(&id);
        let health = match health {
            BackendHealth::Ready => Health::Ready,
            BackendHealth::Absent { ready_in } => {
                let ready_in = self.app.economics.ready_in(self.app, self.config, &id, ready_in);
                Health::Absent { ready_in_ms: u64::try_from(ready_in.as_millis()).unwrap_or(u64::MAX) }
            }
            BackendHealth::Cooling { until } => Health::Cooling { until_ms: self.unix_ms(until) },
            BackendHealth::Unavailable(why) => Health::Unavailable(why),
        };
        // Somebody's word counts before what the backend says of itself.
        let paused = self.app.policies.paused_backend(&id);
        let health = paused.map_or(health, |denied| Health::Unavailable(denied.to_string().into()));
        let pace = Pace {
            ttft_ms: ttft.map(|ttft| u64::try_from(ttft.as_millis()).unwrap_or(u64::MAX)),
            prefill,
            decode: decode.or_else(|| self.app.paces.of(&id)),
            cached: 0,
        };
        Some(Candidate { id, tier, facts, health, in_flight, queue_tokens, pace, weight })
    }

    fn unix_ms(&self, moment: Instant) -> u64 {
        let now = u64::try_from(self.app.clock.now().as_millisecond()).unwrap_or(0);
        now + u64::try_from(moment.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(0)
    }
}

impl std::fmt::Display for Basis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(task) = &self.task_type {
            write!(f, ";task={task}")?;
        }
        if let Some(difficulty) = self.difficulty {
            write!(f, ";difficulty={difficulty:.3}")?;
        }
        if let Some(missed) = &self.missed {
            write!(f, ";{missed}")?;
        }
        Ok(())
    }
}

/// Leaves the local targets.
fn local(mut resolved: Resolved) -> Resolved {
    resolved.targets.retain(|(id, _)| matches!(id, BackendId::Local(_)));
    resolved
}
