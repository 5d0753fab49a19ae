//! What was settled, by who pays and by time of admission: what counters of any window are restored from.

use crate::amounts::Amounts;
use crate::ledger::row::Row;
use std::collections::BTreeMap;
use std::sync::Arc;
use tollkeeper_config::{BackendId, Owner, Scope};

/// Microseconds.
pub(crate) const MINUTE: i64 = 60_000_000;
/// Microseconds. Every time zone in use is off from UTC by a multiple of it, so that no hour or day begins inside one.
pub(crate) const QUARTER: i64 = 15 * MINUTE;
/// How far back minutes are told apart, and how far quarters.
const MINUTES_FOR: i64 = 120 * MINUTE;
const QUARTERS_FOR: i64 = 32 * 24 * 60 * MINUTE;
/// What is older is told apart from nothing else that is.
pub(crate) const KEPT_FOR: i64 = QUARTERS_FOR + 24 * 60 * MINUTE;

/// The closed attempts of one payer, alias and backend that were admitted in one stretch of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) agent: Arc<str>,
    pub(crate) team: Option<Arc<str>>,
    pub(crate) alias: Arc<str>,
    pub(crate) backend: BackendId,
    pub(crate) run: Option<Arc<str>>,
    /// Where the stretch begins, microseconds since 1970: a minute of the last two hours, a quarter of an hour of the
    /// last 32 days, or `i64::MIN` for all before that.
    pub(crate) start: i64,
    /// Nano-dollars.
    pub(crate) nano: i128,
    /// Input and output.
    pub(crate) tokens: i128,
    /// Settlements and unknowns; what was released counts nothing.
    pub(crate) requests: i64,
}

impl Settled {
    /// Whose budgets it counts in, all but runs: those are known by the runs' own tree.
    pub(crate) fn owners(&self) -> Vec<Owner> {
        let mut owners = vec![
            Owner::everything(),
            Owner::new(Scope::Agent, self.agent.clone()),
            Owner::new(Scope::Alias, self.alias.clone()),
            Owner::new(Scope::Model, self.backend.to_string()),
        ];
        owners.extend(self.team.clone().map(|team| Owner::new(Scope::Team, team)));
        if let BackendId::Remote { provider, .. } = &self.backend {
            owners.push(Owner::new(Scope::Provider, provider.clone()));
        }
        owners
    }

    /// How much it was.
    pub(crate) fn amounts(&self) -> Amounts {
        Amounts { nano: self.nano, tokens: self.tokens, requests: self.requests.into() }
    }
}

/// From when on minutes are told apart, and from when on quarters, both on the edge of a quarter.
pub(crate) fn edges(now: i64) -> (i64, i64) {
    let edge = |before: i64| {
        let at = now.saturating_sub(before);
        at.saturating_sub(at.rem_euclid(QUARTER))
    };
    (edge(MINUTES_FOR), edge(QUARTERS_FOR))
}

/// Adds up rows.
pub(super) fn settled<'a>(rows: impl Iterator<Item = &'a Row>, now: i64) -> Vec<Settled> {
    let (minutes, quarters) = edges(now);
    let start = |at: i64| match at {
        at if at >= minutes => at - at.rem_euclid(MINUTE),
        at if at >= quarters => at - at.rem_euclid(QUARTER),
        _ => i64::MIN,
    };
    let mut sums = BTreeMap::new();
    for row in rows.filter(|row| row.outcome.is_some()) {
        let start = start(row.admitted);
        let key = (&row.agent, &row.team, &row.alias, row.backend.to_string(), &row.run, start);
        let sum = sums.entry(key).or_insert_with(|| Settled {
            agent: row.agent.clone(),
            team: row.team.clone(),
            alias: row.alias.clone(),
            backend: row.backend.clone(),
            run: row.run.clone(),
            start,
            nano: 0,
            tokens: 0,
            requests: 0,
        });
        sum.nano += i128::from(row.cost.0);
        sum.tokens += i128::from(row.usage.input) + i128::from(row.usage.output);
        let counts = row.counts();
        sum.requests += counts.attempts - counts.releases;
    }
    sums.into_values().collect()
}
