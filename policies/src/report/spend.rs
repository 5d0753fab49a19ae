//! Adds up what was charged, by any groups.

use super::{ReportError, unreadable};
use crate::place::Place;
use crate::store::reader::Reader;
use jiff::Timestamp;
use tollkeeper_config::Usd;

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
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl Default for SpendQuery {
    /// Everything, by agent.
    fn default() -> Self {
        Self { groups: vec![SpendGroup::Agent], agent: None, since: None, until: None }
    }
}

/// The spend of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpendSum {
    /// Names in the order of the query's groups; `None` where there is none, such as an agent without a team.
    pub group: Vec<Option<String>>,
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

/// Adds up charges by any groups, ordered by them. Attempts in flight are not in it.
///
/// # Errors
/// The ledger cannot be read.
pub fn spend_by(place: impl Into<Place>, query: &SpendQuery) -> Result<Vec<SpendSum>, ReportError> {
    let place = place.into();
    Reader::open(&place).and_then(|mut ledger| ledger.spend(query)).map_err(unreadable(&place))
}
