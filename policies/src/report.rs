//! Reads the ledger for people, while the gateway may be running.

mod compact;
mod export;
mod invoice;
mod reconcile;
mod verify;

pub(crate) use compact::keep;
pub use compact::{CompactError, Compacted, compact};
pub use export::{ExportError, ExportFilter, Exported, Format, export};
pub use invoice::InvoiceError;
pub use reconcile::{Figures, Reconcile, ReconcileError, ReconcileLine, reconcile};
pub use verify::{AgentTotals, VerifyError, VerifyReport, verify};

pub use crate::store::schema::{Losses, MigrateError, Migrated, migrate};

use crate::place::Place;
use crate::store::StoreError;
use crate::store::reader::Reader;
use jiff::Timestamp;
use std::sync::Arc;
use tollkeeper_config::Usd;

/// Which charges to add up, and by what.
#[derive(Debug, Clone, Default)]
pub struct SpendFilter {
    /// Only this agent.
    pub agent: Option<String>,
    /// Admitted at or after.
    pub since: Option<Timestamp>,
    /// Admitted before.
    pub until: Option<Timestamp>,
    /// One row per backend as well.
    pub by_backend: bool,
    /// One row per day (UTC) as well.
    pub by_day: bool,
}

/// The spend of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpendRow {
    /// The agent.
    pub agent: String,
    /// The backend, when grouped by it.
    pub backend: Option<String>,
    /// The day of admission in UTC, when grouped by it.
    pub day: Option<jiff::civil::Date>,
    /// Closed attempts, free and released ones included.
    pub attempts: u64,
    /// Of them, attempts that a crash left open; charged at what they had leased.
    pub unknown: u64,
    /// Prompt tokens, cached ones included.
    pub input: u64,
    /// Of them, read from a cache.
    pub cached_input: u64,
    /// Of them, written to a cache.
    pub cache_write: u64,
    /// Generated tokens.
    pub output: u64,
    /// Of them, reasoning.
    pub reasoning: u64,
    /// What it cost.
    pub cost: Usd,
    /// Of it, above what was leased.
    pub overrun: Usd,
}

/// Why a ledger could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It could not be opened or read.
    #[error("cannot read the ledger {place}: {reason}")]
    Unreadable {
        /// Where it is.
        place: Place,
        /// What the store said.
        reason: Arc<str>,
    },
}

/// What charges can be grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpendGroup {
    /// Who paid.
    Agent,
    /// The agent's team at that time.
    Team,
    /// What answered, `provider/model` or a local model.
    Model,
    /// What the client had named.
    Alias,
    /// The run.
    Run,
    /// The day of admission in UTC.
    Day,
    /// The gateway that wrote it; nothing in a file, which is one gateway's.
    Gateway,
}

impl SpendGroup {
    /// All of them, with their names.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("agent", Self::Agent),
        ("team", Self::Team),
        ("model", Self::Model),
        ("alias", Self::Alias),
        ("run", Self::Run),
        ("day", Self::Day),
        ("gateway", Self::Gateway),
    ];

    /// The name in queries and answers.
    pub fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }

    /// Reads names with commas between them.
    ///
    /// # Errors
    /// One is unknown or comes twice, or there is none.
    pub fn list(names: &str) -> Result<Vec<Self>, String> {
        let mut groups = Vec::new();
        for name in names.split(',') {
            let found = Self::NAMES.into_iter().find(|(known, _)| *known == name.trim()).map(|(_, group)| group);
            match found.filter(|group| !groups.contains(group)) {
                Some(group) => groups.push(group),
                None => {
                    return Err(
                        "group by one or more of agent, team, model, alias, run, day and gateway, each once".to_owned()
                    );
                }
            }
        }
        Ok(groups)
    }
}

/// Which charges to add up, and by what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpendQuery {
    /// One sum for each combination of these; at least one.
    pub groups: Vec<SpendGroup>,
    /// Only this agent.
    pub agent: Option<String>,
    /// Admitted at or after.
    pub since: Option<Timestamp>,
    /// Admitted before.
    pub until: Option<Timestamp>,
}

/// The spend of one group; the figures are those of [`SpendRow`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the figures are those of `SpendRow`")]
pub struct SpendSum {
    /// Names in the order of the query's groups; `None` where there is none, such as an agent without a team.
    pub group: Vec<Option<String>>,
    pub attempts: u64,
    pub unknown: u64,
    pub input: u64,
    pub cached_input: u64,
    pub cache_write: u64,
    pub output: u64,
    pub reasoning: u64,
    pub cost: Usd,
    pub overrun: Usd,
}

/// Adds up charges by any groups, ordered by them. Attempts in flight are not in it.
///
/// # Errors
/// The ledger cannot be read.
pub fn spend_by(place: impl Into<Place>, query: &SpendQuery) -> Result<Vec<SpendSum>, ReportError> {
    let place = place.into();
    Reader::open(&place).and_then(|mut ledger| ledger.spend(query)).map_err(unreadable(&place))
}

/// The ledgers that there are: of a file itself, of a database those of its gateways, ordered by name.
///
/// # Errors
/// They cannot be read.
pub fn ledgers(place: impl Into<Place>) -> Result<Vec<Place>, ReportError> {
    let place = place.into();
    let chains = Reader::open(&place).and_then(|mut ledger| ledger.chains()).map_err(unreadable(&place))?;
    let of = |chain: Option<Arc<str>>| chain.and_then(|name| place.clone().of_gateway(&name));
    Ok(chains.into_iter().map(|chain| of(chain).unwrap_or_else(|| place.clone())).collect())
}

fn unreadable(place: &Place) -> impl Fn(StoreError) -> ReportError + Copy + '_ {
    move |StoreError(reason)| ReportError::Unreadable { place: place.clone(), reason }
}

/// Adds up charges, grouped by agent, ordered by agent, day and backend. Attempts in flight are not in it.
///
/// # Errors
/// The ledger cannot be read.
pub fn spend(place: impl Into<Place>, filter: &SpendFilter) -> Result<Vec<SpendRow>, ReportError> {
    let mut groups = vec![SpendGroup::Agent];
    groups.extend(filter.by_day.then_some(SpendGroup::Day));
    groups.extend(filter.by_backend.then_some(SpendGroup::Model));
    let SpendFilter { agent, since, until, .. } = filter.clone();
    let sums = spend_by(place, &SpendQuery { groups, agent, since, until })?;
    let row = |sum: SpendSum| {
        let mut names = sum.group.into_iter();
        SpendRow {
            agent: names.next().flatten().unwrap_or_default(),
            day: filter.by_day.then(|| names.next().flatten()).flatten().and_then(|day| day.parse().ok()),
            backend: filter.by_backend.then(|| names.next().flatten()).flatten(),
            attempts: sum.attempts,
            unknown: sum.unknown,
            input: sum.input,
            cached_input: sum.cached_input,
            cache_write: sum.cache_write,
            output: sum.output,
            reasoning: sum.reasoning,
            cost: sum.cost,
            overrun: sum.overrun,
        }
    };
    Ok(sums.into_iter().map(row).collect())
}
