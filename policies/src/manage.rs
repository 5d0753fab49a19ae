//! Agents, keys and budgets that people make, change and take away while the gateway runs. Each change is in the ledger's chain, together with
//! the state that it leaves, before it holds. A secret is handed out once, when it is made; what is kept is its hash.

mod agents;
mod budgets;
mod keys;

pub use agents::AgentView;
pub use budgets::BudgetEntry;
pub use keys::{KeyChange, KeyView, NewKey};

use crate::control::{PAUSE, owner_id};
use crate::created::{AGENT, BUDGET, Book, Created, budget_body};
use crate::denied::Denied;
use crate::holds;
use crate::run::Run;
use crate::store::StateChange;
use crate::{Policies, Shared};
use jiff::Timestamp;
use serde_json::Value;
use std::sync::{Arc, MutexGuard, PoisonError};
use tollkeeper_config::{BudgetConfig, Config, Owner};

/// Where something was defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In the configuration file.
    File,
    /// At run time.
    Api,
}

impl Source {
    /// The name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Api => "api",
        }
    }
}

/// Why an agent, a key or a budget cannot be made or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManageError {
    /// No such agent.
    #[error("there is no agent `{0}`; `tollkeeper agents` lists them")]
    NoAgent(String),
    /// No such key.
    #[error("the agent `{agent}` has no key `{id}`; `tollkeeper keys {agent}` lists them")]
    NoKey {
        /// The agent.
        agent: Arc<str>,
        /// The id that was asked for.
        id: String,
    },
    /// No such budget.
    #[error("there is no budget `{0}` that was made through the API; `tollkeeper budgets` lists them")]
    NoBudget(String),
    /// The configuration file defines it.
    #[error("the configuration file defines the agent `{0}`, and it wins; change it there")]
    AgentInFile(String),
    /// A run has limits of its own.
    #[error("a run has no budgets: its limits are set when it is made, and `tollkeeper runs extend {0}` raises them")]
    OfRun(Arc<str>),
    /// The configuration file has one like it.
    #[error(
        "the configuration file has a budget of {owner} for the same window and measure, and it wins; change it there"
    )]
    BudgetInFile {
        /// Whose.
        owner: Owner,
    },
    /// There is one of that name.
    #[error("there is an agent `{0}` already; change it, or choose another name")]
    AgentExists(String),
    /// There is one like it.
    #[error("{owner} has a budget for the same window and measure, `{id}`; change that one")]
    BudgetExists {
        /// Whose.
        owner: Owner,
        /// The other's id.
        id: Arc<str>,
    },
    /// More than there may be.
    #[error("there are {0} already, which is the most; take away what is no longer needed")]
    TooMany(usize),
    /// The ledger cannot record it.
    #[error(transparent)]
    Denied(#[from] Denied),
}

/// What a change leaves.
#[derive(Default)]
struct Edit {
    agent: Option<(Arc<str>, Option<Created>)>,
    budgets: Vec<(Arc<str>, Option<BudgetConfig>)>,
    resumed: Option<Owner>,
}

impl Policies {
    /// The file, with the agents and budgets that were made at run time and that it does not define itself.
    pub fn effective(&self) -> Config {
        self.0.book().merged()
    }

    /// Puts on record that `actor` did something to `subject` that leaves no state of this crate's; `note` must hold no secrets.
    ///
    /// # Errors
    /// The ledger cannot record it.
    pub async fn note(&self, actor: &str, subject: &str, note: Value) -> Result<(), Denied> {
        self.0.ledger.change(self.0.now(), (actor, subject), note.to_string().into(), Vec::new()).await
    }

    /// Ends runs that nobody may use any more. What cannot be recorded now has ended all the same, and is tried again.
    async fn end_runs(&self, actor: &str, wanted: impl Fn(&Run) -> bool) {
        if let Err(denied) = self.cancel_runs(actor, wanted).await {
            tracing::warn!(%denied, "the end of runs cannot be recorded now; they have ended all the same");
        }
    }

    /// What was made of this agent at run time.
    fn created(&self, name: &str) -> Result<Created, ManageError> {
        let book = self.0.book();
        let missing = || match book.hides_agent(name) {
            true => ManageError::AgentInFile(name.to_owned()),
            false => ManageError::NoAgent(name.to_owned()),
        };
        book.agents.get(name).cloned().ok_or_else(missing)
    }

    /// Puts a change on record, and then has it hold.
    async fn commit(&self, actor: &str, subject: &str, note: Value, edit: Edit) -> Result<(), Denied> {
        let rules = edit.budgets.iter().filter_map(|(_, rule)| rule.as_ref());
        self.0.recall(self.0.left_out(rules)).await?;
        let _alone = match edit.resumed {
            Some(_) => Some(self.0.killing.lock().await),
            None => None,
        };
        let now = self.0.now();
        let mut state = Vec::new();
        if let Some((name, created)) = &edit.agent {
            let body = created.as_ref().map(Created::body);
            state.push(StateChange { kind: AGENT, id: name.clone(), body, changed: now });
        }
        for (id, rule) in &edit.budgets {
            let body = rule.as_ref().map(budget_body);
            state.push(StateChange { kind: BUDGET, id: id.clone(), body, changed: now });
        }
        if let Some(owner) = &edit.resumed {
            state.push(StateChange { kind: PAUSE, id: owner_id(owner).into(), body: None, changed: now });
            state.push(holds::gone(owner, now));
        }
        self.0.ledger.change(now, (actor, subject), note.to_string().into(), state).await?;
        let mut book = self.0.book();
        match edit.agent {
            Some((name, Some(created))) => _ = book.agents.insert(name, created),
            Some((name, None)) => _ = book.agents.remove(&name),
            None => {}
        }
        for (id, rule) in edit.budgets {
            match rule {
                Some(rule) => _ = book.budgets.insert(id, rule),
                None => _ = book.budgets.remove(&id),
            }
        }
        if let Some(owner) = edit.resumed {
            self.0.pauses.resume(&owner);
            self.0.watches.forget(&owner);
        }
        self.0.enforce(&book);
        Ok(())
    }
}

impl Shared {
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bounded(there: usize, most: usize) -> Result<(), ManageError> {
    if there < most { Ok(()) } else { Err(ManageError::TooMany(most)) }
}

fn time(at: i64) -> Timestamp {
    Timestamp::from_microsecond(at).unwrap_or_default()
}
