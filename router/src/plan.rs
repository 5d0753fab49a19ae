//! The plan: which backends are tried in which order, and why the others are not.

use crate::ask::Ask;
use crate::candidate::{Candidate, Health};
use crate::estimate::{CostEstimate, estimate};
use crate::fit::{Reason, fit};
use crate::strategy::{self, Fitting};
use std::fmt;
use std::sync::Arc;
use tollkeeper_config::{BackendId, ModelFacts, Strategy};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// What comes first.
    pub strategy: Strategy,
    /// A model that takes longer to come into memory, in milliseconds, comes behind those that are there.
    pub patience_ms: u64,
}

impl From<Strategy> for Rules {
    /// With a patience of two seconds.
    fn from(strategy: Strategy) -> Self {
        Self { strategy, patience_ms: 2000 }
    }
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
    /// It failed lately, and so comes after those that did not.
    pub cooling: bool,
    /// Its model is not in memory.
    pub absent: bool,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{};rank={}", strategy::name(self.strategy), self.rank)?;
        if self.strategy == Strategy::Pyramid {
            write!(f, ";tier={}", self.tier)?;
        }
        if self.cooling {
            f.write_str(";cooling")?;
        }
        if self.absent {
            f.write_str(";absent")?;
        }
        Ok(())
    }
}

/// Plans who should answer: every candidate becomes an attempt or is rejected with a reason. `seed` decides between backends
/// that are equal in all that matters. A model that is not in memory and takes longer than the rules are patient is asked only when no
/// other can answer.
pub fn plan(ask: &Ask, candidates: Vec<Candidate>, rules: impl Into<Rules>, seed: u64) -> Plan {
    let rules @ Rules { strategy, .. } = rules.into();
    let mut fitting = Vec::with_capacity(candidates.len());
    let mut rejected = Vec::new();
    for (place, candidate) in candidates.into_iter().enumerate() {
        match fit(ask, &candidate) {
            Ok(()) => fitting.push(Fitting { cost: estimate(ask, &candidate.facts), candidate, place }),
            Err(reason) => rejected.push((candidate.id, reason)),
        }
    }
    strategy::order(rules, &mut fitting, seed);
    let attempts = fitting.into_iter().enumerate().map(|(index, Fitting { candidate, cost, .. })| Attempt {
        why: Why {
            strategy,
            rank: index + 1,
            tier: candidate.tier,
            cooling: matches!(candidate.health, Health::Cooling { .. }),
            absent: matches!(candidate.health, Health::Absent { .. }),
        },
        id: candidate.id,
        facts: candidate.facts,
        cost,
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
