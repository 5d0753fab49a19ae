//! From a request to a plan: what it wants, how hard it is, who may answer it, and how they are at this moment.

use crate::app::App;
use crate::economics::{Economics, Missed};
use crate::error::ApiError;
use crate::learning::{Group, Start};
use crate::signature;
use crate::wishes::Asked;
use std::cell::LazyCell;
use std::sync::Arc;
use tokio::time::Instant;
use tollkeeper_config::{Alias, BackendId, Config, Resolved, Strategy};
use tollkeeper_inference::{BackendHealth, BackendState, Beginnings};
use tollkeeper_policies::{Caller, Denied};
use tollkeeper_protocol::Request;
use tollkeeper_router::learning::{Choice, Evidence, choose};
use tollkeeper_router::{
    Ask, Candidate, Difficulty, Health, Pace, Plan, Rules, Strain, TaskType, Wishes, ask, plan as plan_of, plan_from,
    start_tier,
};

/// Under this type is learned what tasks teach whose type is neither built in nor configured.
const OTHER: &str = "other";

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

/// What a plan was made of beside the backends: displayed as `task=code;difficulty=0.612;learned`, as far as it was looked at, and
/// `missed=small` if a model is missed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Basis {
    /// The type of the task.
    pub(crate) task_type: Option<Arc<str>>,
    /// 0 to 1.
    pub(crate) difficulty: Option<f32>,
    /// Where a pyramid begins, where that is learned.
    pub(crate) start: Option<Start>,
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
        let (planned, hinted) = self.planned_hinting(resolved, None, false);
        hinted.iter().for_each(|id| self.app.fleet.missed(id));
        match planned.plan.refusal() {
            Some((kind, why)) => Err(ApiError::NoBackend(kind, why)),
            None => Ok(planned),
        }
    }

    /// The plan as it would be made now, also when nobody can answer; for a prompt of so many tokens, if that is said. With `whole`, all that
    /// can be known of the request is looked at.
    pub(crate) fn planned(&self, resolved: Resolved, input_tokens: Option<u64>, whole: bool) -> Planned {
        self.planned_hinting(resolved, input_tokens, whole).0
    }

    /// The same, and the models that would have come first had they been in memory, and shall come when what has to go is idle.
    fn planned_hinting(&self, resolved: Resolved, input_tokens: Option<u64>, whole: bool) -> (Planned, Vec<BackendId>) {
        let (mut basis, mut rules) = self.rules(&resolved, whole);
        let group = self.group(&resolved, &basis, &rules);
        let alias = resolved.alias;
        let weights = alias.as_ref().map_or(&[][..], |alias| &alias.weights);
        let weight = |tier: u8| weights.get(usize::from(tier)).copied().unwrap_or(1);
        let targets = resolved.targets.into_iter();
        let beginnings = LazyCell::new(|| Beginnings::of(&self.request));
        let candidates: Vec<_> =
            targets.filter_map(|(id, tier)| self.candidate(id, tier, weight(tier), &beginnings)).collect();
        let mut ask = ask(&self.request);
        ask.usual_output = self.app.policies.usual_output(&self.caller.agent);
        if let Some(tokens) = input_tokens {
            (ask.input_tokens, ask.longest_input) = (tokens, tokens);
        }
        let loaded = Economics::as_if_loaded(&candidates);
        let said = rules.start_tier;
        let plan = plan_from(&ask, candidates, rules.clone(), self.seed, |ready| {
            let Some(group) = group else { return said };
            // Who only wants to know what would be done does not try anything out.
            let start = self.start(group, ready, (!whole).then_some(self.seed));
            if let Some(choice) = start.as_ref().map(|start| start.choice).filter(|choice| choice.moved) {
                rules.start_tier = choice.tier;
            }
            basis.start = start;
            rules.start_tier
        });
        let wanted = loaded.map(|loaded| plan_of(&ask, loaded, rules.clone(), self.seed));
        let wanted = wanted.as_ref();
        basis.missed = wanted.and_then(|wanted| self.app.economics.missed(self.app, self.config, wanted, &plan));
        let hinted = wanted.map_or_else(Vec::new, |wanted| Economics::hinted(self.config, wanted, &plan));
        (Planned { ask, plan, basis, rules, alias }, hinted)
    }

    /// How the targets are to be ordered. Whatever the rules do not depend on is not looked at.
    fn rules(&self, resolved: &Resolved, whole: bool) -> (Basis, Rules) {
        // Who asks knows best, then whoever made the agent.
        let said = self.asked.task_type.as_ref().or(self.caller.agent.task_type.as_ref());
        let mut basis = Basis { task_type: said.cloned(), ..Basis::default() };
        let matters = whole || !self.config.tasks.is_empty() || self.config.learning.is_some();
        if basis.task_type.is_none() && matters {
            basis.task_type = TaskType::of(&self.request).map(|task| task.name().into());
        }
        let rule = basis.task_type.as_ref().and_then(|task| self.config.tasks.get(&**task));
        let wishes = self.asked.wishes.clone();
        let wishes = match rule {
            Some(rule) if resolved.alias.is_some() => wishes.within(rule),
            // Whoever names a model leaves nothing to choose.
            Some(rule) => wishes.below(rule.max_cost),
            None => wishes,
        };
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

    /// What a pyramid learns of this request for others, if it does.
    fn group(&self, resolved: &Resolved, basis: &Basis, rules: &Rules) -> Option<Group> {
        let is_pyramid = rules.wishes.strategy.unwrap_or(rules.strategy) == Strategy::Pyramid;
        self.config.learning.filter(|_| is_pyramid)?;
        let alias = resolved.alias.as_ref()?.name.as_str().into();
        let task = basis.task_type.as_ref()?;
        // Types that clients make up are one: else they could fill what is known.
        let is_known = TaskType::from_name(task).is_some()
            || self.config.tasks.contains_key(&**task)
            || self.caller.agent.task_type.as_ref() == Some(task);
        let task = if is_known { task.clone() } else { OTHER.into() };
        Some(Group { alias, task, said: rules.start_tier })
    }

    /// Where a pyramid begins by what is known, among tiers that can answer.
    fn start(&self, group: Group, ready: &[u8], seed: Option<u64>) -> Option<Start> {
        let settings = self.config.learning.as_ref()?;
        let known = self.app.learning.known(&group, settings, self.app.clock.now().as_millisecond());
        let of =
            |tier: u8| known.iter().find(|(known, _)| *known == tier).map_or_else(Evidence::default, |known| known.1);
        // Where none can answer at once the answer says something all the same.
        let as_said = Choice { tier: group.said, moved: false, explored: false };
        let choice = choose(ready, group.said, of, settings, seed).unwrap_or(as_said);
        Some(Start { group: Arc::new(group), choice })
    }

    fn candidate(
        &self,
        id: BackendId,
        tier: u8,
        weight: u32,
        beginnings: &LazyCell<Beginnings, impl FnOnce() -> Beginnings>,
    ) -> Option<Candidate> {
        let facts = self.app.economics.facts(self.config, &id)?;
        let state = self.app.fleet.snapshot(&id);
        let BackendState { health, in_flight, queue_tokens, ttft, prefill, decode, waiting, .. } = state;
        let BackendState { unread, slots, overall, failing_permille, headroom, .. } = state;
        let strain = Strain { failing_permille, requests_left: headroom.requests, tokens_left: headroom.tokens };
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
        let cached = match id {
            // In tokens as the prompt is estimated.
            BackendId::Local(_) => self.app.fleet.cached(&id, beginnings) / ask::BYTES_PER_TOKEN,
            BackendId::Remote { .. } => 0,
        };
        let (first, rate) = self.app.paces.of(&id);
        let pace = Pace {
            ttft_ms: first.or(ttft).map(|ttft| u64::try_from(ttft.as_millis()).unwrap_or(u64::MAX)),
            prefill,
            decode: decode.or(rate),
            cached,
            unread,
            waiting,
            slots,
            overall,
        };
        Some(Candidate { id, tier, facts, health, in_flight, queue_tokens, pace, strain, weight })
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
        if let Some(Choice { moved, explored, .. }) = self.start.as_ref().map(|start| start.choice) {
            f.write_str(if moved { ";learned" } else { "" })?;
            f.write_str(if explored { ";trial" } else { "" })?;
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
