//! The plan: which backends are tried in which order, and why the others are not.

use crate::ask::Ask;
use crate::candidate::{Candidate, Health};
use crate::estimate::{CostEstimate, TimeEstimate, estimate, time};
use crate::fit::{Reason, fit, wanted};
use crate::strategy::{self, Fitting};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use tollkeeper_config::{BackendId, Link, ModelFacts, Strategy, TaskRule, Usd};
use tollkeeper_protocol::fault::FaultKind;

/// Which backends are tried, in this order, and which are not.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The attempts, first to last.
    pub attempts: Vec<Attempt>,
    /// The backends that cannot do what is asked, in the order they were given.
    pub rejected: Vec<(BackendId, Reason)>,
}

/// How an alias wants its backends in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// What comes first.
    pub strategy: Strategy,
    /// A model that takes longer to come into memory, in milliseconds, comes behind those that are there.
    pub patience_ms: u64,
    /// The tier that a pyramid begins with.
    pub start_tier: u8,
    /// What this one request wants.
    pub wishes: Wishes,
}

/// What one request wants beyond what it needs, by its headers or by the type of its task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Another order than the alias's.
    pub strategy: Option<Strategy>,
    /// The most that its answer may be expected to cost.
    pub max_cost: Option<Usd>,
    /// Who takes longer, in milliseconds, comes behind those that do not.
    pub deadline_ms: Option<u64>,
    /// The lowest tier that answers.
    pub min_tier: Option<u8>,
    /// The highest.
    pub max_tier: Option<u8>,
    /// Only local models answer.
    pub local_only: bool,
    /// What conversation it belongs to.
    pub session: Option<u64>,
    /// Who answers, in this order, and nobody else.
    pub chain: Option<Arc<[Link]>>,
}

impl Wishes {
    /// With what the operator set for its type of task: where both say something, the narrower holds, and the client's order.
    #[must_use]
    pub fn within(self, rule: &TaskRule) -> Self {
        let least = |one: Option<u8>, other: Option<u8>| one.into_iter().chain(other).min();
        Self {
            strategy: self.strategy.or(rule.strategy),
            min_tier: self.min_tier.max(rule.min_tier),
            max_tier: least(self.max_tier, rule.max_tier),
            chain: rule.chain.clone(),
            ..self.below(rule.max_cost)
        }
    }

    /// With another ceiling of the expected cost; the lower one holds.
    #[must_use]
    pub fn below(self, max_cost: Option<Usd>) -> Self {
        Self { max_cost: self.max_cost.into_iter().chain(max_cost).min(), ..self }
    }

    /// The place of a backend that may answer, and the most that its answer may be expected to cost; `place` without a chain.
    pub(crate) fn place(&self, id: &BackendId, place: usize) -> Option<(usize, Option<Usd>)> {
        let Some(chain) = &self.chain else { return Some((place, self.max_cost)) };
        let (place, link) = chain.iter().enumerate().find(|(_, link)| link.id == *id)?;
        Some((place, link.max_cost.into_iter().chain(self.max_cost).min()))
    }
}

impl From<Strategy> for Rules {
    /// From the bottom, with a patience of two seconds.
    fn from(strategy: Strategy) -> Self {
        Self { strategy, patience_ms: 2000, start_tier: 0, wishes: Wishes::default() }
    }
}

/// The tier that a pyramid begins with for a request of this difficulty (0 to 1): one higher for each threshold (thousandths, ascending) that it
/// reaches.
pub fn start_tier(difficulty: Option<f32>, escalate_at: &[u16]) -> u8 {
    let Some(difficulty) = difficulty else { return 0 };
    let reached = escalate_at.iter().filter(|threshold| difficulty * 1000.0 >= f32::from(**threshold)).count();
    u8::try_from(reached).unwrap_or(u8::MAX)
}

/// One backend to try.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// Which backend.
    pub id: BackendId,
    /// Price, context and abilities.
    pub facts: Arc<ModelFacts>,
    /// Why it stands where it stands.
    pub why: Why,
    /// What it may cost.
    pub cost: CostEstimate,
    /// How long it may take.
    pub time: TimeEstimate,
    /// Tokens of the prompt that it need not read again.
    pub cached: u64,
}

/// Why an attempt stands where it stands; displayed as a short list such as `pyramid;rank=2;tier=1;cooling`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Why {
    /// How the backends were put in order.
    pub strategy: Strategy,
    /// The attempt's place in the plan, from 1.
    pub rank: usize,
    /// The backend's tier.
    pub tier: u8,
    /// The tier that a pyramid began with.
    pub start: u8,
    /// It failed lately, and so comes after those that did not.
    pub cooling: bool,
    /// Its model is not in memory.
    pub absent: bool,
    /// It will probably take longer than the request wants.
    pub late: bool,
    /// It fails often, or its provider is about to limit the rate, and so it comes after those that do well.
    pub strained: bool,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};rank={}", self.strategy.name(), self.rank)?;
        if self.strategy == Strategy::Pyramid {
            write!(f, ";tier={}", self.tier)?;
            if self.start > 0 {
                write!(f, ";from={}", self.start)?;
            }
        }
        let signs =
            [(self.cooling, "cooling"), (self.absent, "absent"), (self.late, "late"), (self.strained, "strained")];
        for (is, name) in signs {
            if is {
                write!(f, ";{name}")?;
            }
        }
        Ok(())
    }
}

/// Plans who should answer: every candidate becomes an attempt or is rejected with a reason. `seed` decides between backends
/// that are equal in all that matters. A model that is not in memory and takes longer than the rules are patient is asked only when no
/// other can answer; so, behind those, is who will probably be late.
pub fn plan(ask: &Ask, candidates: Vec<Candidate>, rules: impl Into<Rules>, seed: u64) -> Plan {
    let rules = rules.into();
    let start = rules.start_tier;
    plan_from(ask, candidates, rules, seed, |_| start)
}

/// The same with a pyramid that begins where `start` says, which is given the tiers of those who can answer at once, ascending. Who can answer
/// is decided before that, so that whatever it says nobody is tried who would not be otherwise.
pub fn plan_from(
    ask: &Ask,
    candidates: Vec<Candidate>,
    mut rules: Rules,
    seed: u64,
    start: impl FnOnce(&[u8]) -> u8,
) -> Plan {
    let strategy = rules.wishes.strategy.unwrap_or(rules.strategy);
    let mut fitting = Vec::with_capacity(candidates.len());
    let mut rejected = Vec::new();
    for (place, candidate) in candidates.into_iter().enumerate() {
        let cost = estimate(ask, &candidate.facts);
        match fit(ask, &candidate).and_then(|()| wanted(&rules.wishes, &candidate, &cost, place)) {
            Ok(place) => {
                let strained = candidate.is_strained(ask.input_tokens);
                fitting.push(Fitting { cost, time: time(ask, &candidate), strained, candidate, place });
            }
            Err(reason) => rejected.push((candidate.id, reason)),
        }
    }
    if strategy == Strategy::Pyramid {
        let at_once = fitting.iter().filter(|fitting| fitting.behind(&rules) == 0);
        let tiers: BTreeSet<u8> = at_once.map(|fitting| fitting.candidate.tier).collect();
        rules.start_tier = start(&Vec::from_iter(tiers));
    }
    strategy::order(strategy, &rules, &mut fitting, seed);
    let attempts = fitting.into_iter().enumerate().map(|(index, fitting)| Attempt {
        why: Why {
            strategy,
            rank: index + 1,
            tier: fitting.candidate.tier,
            start: rules.start_tier,
            cooling: matches!(fitting.candidate.health, Health::Cooling { .. }),
            absent: matches!(fitting.candidate.health, Health::Absent { .. }),
            late: fitting.is_late(&rules),
            strained: fitting.strained,
        },
        cost: fitting.cost,
        time: fitting.time,
        cached: fitting.candidate.pace.cached.min(ask.input_tokens),
        id: fitting.candidate.id,
        facts: fitting.candidate.facts,
    });
    Plan { attempts: attempts.collect(), rejected }
}

impl Plan {
    /// When there is nothing to try: whose fault it is and a text for the caller that says why of every backend. If some
    /// backend could do it but for being out of use, that is what has to change, else the request.
    pub fn refusal(&self) -> Option<(FaultKind, String)> {
        if !self.attempts.is_empty() {
            return None;
        }
        let has = |kind| self.rejected.iter().any(|(_, reason)| reason.kind() == kind);
        let kinds = [FaultKind::Unavailable, FaultKind::ContextLength, FaultKind::BadRequest];
        let kind = kinds.into_iter().find(|kind| has(*kind)).unwrap_or(FaultKind::Unavailable);
        let reasons: Vec<String> = self.rejected.iter().map(|(id, reason)| format!("`{id}` {reason}")).collect();
        let text = match reasons.is_empty() {
            true => "no backend is configured for this model".to_owned(),
            false => format!("no backend can answer this request: {}", reasons.join("; ")),
        };
        Some((kind, text))
    }
}
