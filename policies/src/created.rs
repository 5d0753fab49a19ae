//! Agents and budgets that people made while the gateway ran, beside those of the configuration file, which wins where both name the same.

use crate::agent::{KeyHash, KeyTerms, Roster};
use crate::store::{Store, StoreError};
use saved::{SavedAgent, SavedBudget};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;
use tollkeeper_config::{AgentConfig, BudgetConfig, Config, Priority, RateLimits, Usd};

mod saved;

/// The kinds of state that are kept in the store.
pub(crate) const AGENT: &str = "agent";
pub(crate) const BUDGET: &str = "budget";

/// Where requests go that must not cost anything, as for agents of the file.
const LOCAL: &str = "local/fast";

/// What an agent may do, as it is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentSpec {
    /// The team that it belongs to.
    pub team: Option<String>,
    /// Patterns (`*` matches any run of characters) of aliases and models it may name.
    pub models: Vec<String>,
    /// How urgent its requests are where there is a queue.
    pub priority: Priority,
    /// The most that one request may cost, all its attempts together.
    pub max_request: Option<Usd>,
    /// How much it may ask.
    pub rates: RateLimits,
    /// The alias whose targets answer when a budget sends it to cheaper ones; without one `local/fast`.
    pub degrade_to: Option<String>,
    /// The type of its tasks where a request does not say one.
    pub task_type: Option<String>,
    /// Whether all its keys, and those of its runs, are refused.
    pub disabled: bool,
}

impl Default for AgentSpec {
    /// Any model, no limits.
    fn default() -> Self {
        Self {
            team: None,
            models: vec!["*".to_owned()],
            priority: Priority::default(),
            max_request: None,
            rates: RateLimits::default(),
            degrade_to: None,
            task_type: None,
            disabled: false,
        }
    }
}

/// What a key is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scopes {
    /// To ask models.
    pub infer: bool,
    /// To make, see and end runs.
    pub runs: bool,
}

impl Scopes {
    /// Everything.
    pub const ALL: Self = Self { infer: true, runs: true };
    /// Nothing.
    pub(crate) const NONE: Self = Self { infer: false, runs: false };
    /// What there is.
    pub const NAMES: [&'static str; 2] = ["infer", "runs"];

    /// What both are good for.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { infer: self.infer && other.infer, runs: self.runs && other.runs }
    }

    /// The names of what it is good for.
    pub fn names(self) -> Vec<&'static str> {
        Self::NAMES.into_iter().zip([self.infer, self.runs]).filter_map(|(name, has)| has.then_some(name)).collect()
    }

    /// Those of these names; `None` when one is unknown or there is none.
    pub fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut scopes = Self { infer: false, runs: false };
        for name in names {
            match name {
                "infer" => scopes.infer = true,
                "runs" => scopes.runs = true,
                _ => return None,
            }
        }
        (scopes.infer || scopes.runs).then_some(scopes)
    }
}

/// An agent that was made at run time.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Created {
    pub(crate) spec: AgentSpec,
    /// Microseconds since 1970.
    pub(crate) created: i64,
    pub(crate) keys: Vec<CreatedKey>,
}

/// One of its keys; the secret itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CreatedKey {
    pub(crate) id: Arc<str>,
    pub(crate) hash: KeyHash,
    /// How the secret begins, so that people can tell their keys apart.
    pub(crate) prefix: Arc<str>,
    /// Microseconds since 1970.
    pub(crate) created: i64,
    /// Microseconds since 1970.
    pub(crate) expires: Option<i64>,
    pub(crate) disabled: bool,
    pub(crate) scopes: Scopes,
}

/// All agents and budgets: the file's, and those made at run time.
#[derive(Debug)]
pub(crate) struct Book {
    pub(crate) file: Arc<Config>,
    pub(crate) agents: BTreeMap<Arc<str>, Created>,
    pub(crate) budgets: BTreeMap<Arc<str>, BudgetConfig>,
}

impl Book {
    /// What the store kept, beside this file.
    pub(crate) fn restore(store: &mut dyn Store, file: &Config) -> Result<Self, StoreError> {
        let agents = kept(store, AGENT, |saved: SavedAgent| saved.agent())?;
        let budgets = kept(store, BUDGET, |saved: SavedBudget| saved.budget())?;
        let book = Self { file: Arc::new(file.clone()), agents, budgets };
        book.warn();
        Ok(book)
    }

    /// Takes over another file.
    pub(crate) fn change_file(&mut self, file: &Config) {
        self.file = Arc::new(file.clone());
        self.warn();
    }

    /// Says what of the created the file hides.
    fn warn(&self) {
        for name in self.agents.keys().filter(|name| self.hides_agent(name)) {
            tracing::warn!(
                agent = &**name,
                "the configuration file defines this agent: what was made through the API under its name, keys included, is not used"
            );
        }
        for (id, rule) in self.budgets.iter().filter(|(_, rule)| self.hides_budget(rule)) {
            tracing::warn!(budget = &**id, owner = %rule.owner, window = %rule.window, "the configuration file has a budget like this one: that of the API is not used");
        }
    }

    /// Whether the file defines an agent of that name.
    pub(crate) fn hides_agent(&self, name: &str) -> bool {
        self.file.agents.contains_key(name)
    }

    /// Whether the file has a budget of the same owner, window and measure.
    pub(crate) fn hides_budget(&self, rule: &BudgetConfig) -> bool {
        self.file.budgets.iter().any(|other| is_alike(other, rule))
    }

    /// The file with what was created and what it does not hide.
    pub(crate) fn merged(&self) -> Config {
        let mut all = (*self.file).clone();
        for (name, created) in self.agents.iter().filter(|(name, _)| !self.hides_agent(name)) {
            all.agents.insert(name.to_string(), Arc::new(self.config(name, &created.spec)));
        }
        all.budgets.extend(self.budgets.values().filter(|rule| !self.hides_budget(rule)).cloned());
        all
    }

    fn config(&self, name: &str, spec: &AgentSpec) -> AgentConfig {
        let local = || self.file.aliases.get(LOCAL).filter(|alias| !alias.targets.is_empty());
        AgentConfig {
            name: name.to_owned(),
            key: None,
            models: spec.models.clone(),
            priority: spec.priority,
            rates: spec.rates,
            team: spec.team.clone(),
            max_request: spec.max_request,
            degrade_to: spec.degrade_to.clone().or_else(|| local().map(|alias| alias.name.clone())),
            task_type: spec.task_type.clone(),
            velocity: self.file.velocity.clone(),
        }
    }

    /// Gives the created agents that the file does not hide their keys.
    pub(crate) fn give_keys(&self, roster: &mut Roster) {
        for (name, Created { spec, keys, .. }) in self.agents.iter().filter(|(name, _)| !self.hides_agent(name)) {
            for CreatedKey { hash, expires, disabled, scopes, .. } in keys {
                let disabled = *disabled || spec.disabled;
                roster.give(name, *hash, KeyTerms { expires: *expires, disabled, scopes: *scopes });
            }
            if spec.disabled {
                roster.disable(name);
            }
        }
    }
}

/// Whether two budgets cap the same: of these the file's wins, and two cannot be made.
pub(crate) fn is_alike(one: &BudgetConfig, other: &BudgetConfig) -> bool {
    (&one.owner, one.window, one.limit.measure()) == (&other.owner, other.window, other.limit.measure())
}

/// All that the store keeps of a kind.
fn kept<S: DeserializeOwned, T>(
    store: &mut dyn Store,
    kind: &str,
    read: impl Fn(S) -> Option<T>,
) -> Result<BTreeMap<Arc<str>, T>, StoreError> {
    let mut all = BTreeMap::new();
    for (id, body) in store.state(kind)? {
        let saved = serde_json::from_str(&body).map_err(|cause| StoreError(format!("{kind} {id}: {cause}").into()))?;
        let made = read(saved).ok_or_else(|| StoreError(format!("{kind} {id} cannot be understood").into()))?;
        all.insert(id, made);
    }
    Ok(all)
}

impl Created {
    /// As it is kept in the store.
    pub(crate) fn body(&self) -> Arc<str> {
        SavedAgent::of(self).body()
    }
}

/// A budget as it is kept in the store.
pub(crate) fn budget_body(rule: &BudgetConfig) -> Arc<str> {
    SavedBudget::of(rule).body()
}
