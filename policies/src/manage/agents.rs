//! Agents that people make, change and take away while the gateway runs.

use super::{Edit, KeyView, ManageError, Source, bounded, time};
use crate::Policies;
use crate::created::{AgentSpec, Book, Created, CreatedKey};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use tollkeeper_config::{AgentConfig, Owner, Scope};

/// More agents are not made.
const MOST_AGENTS: usize = 10_000;

/// An agent as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentView {
    /// Its name.
    pub name: Arc<str>,
    /// Where it was defined.
    pub source: Source,
    /// It was made at run time, but the file defines an agent of its name, which is the one that counts.
    pub shadowed: bool,
    /// What it may do.
    pub spec: AgentSpec,
    /// When it was made; `None` for the file's.
    pub created: Option<Timestamp>,
    /// Its keys; the file's key is not among them.
    pub keys: Vec<KeyView>,
}

impl Policies {
    /// All agents, by name; of a name that both define, the file's comes first.
    pub fn agents(&self) -> Vec<AgentView> {
        let book = self.0.book();
        let file = book.file.agents.values().map(|agent| of_file(agent));
        let made = book.agents.iter().map(|(name, made)| book.view(name, made));
        let mut all: Vec<AgentView> = file.chain(made).collect();
        all.sort_by(|a, b| (&a.name, a.shadowed).cmp(&(&b.name, b.shadowed)));
        all
    }

    /// Makes an agent, which has no keys yet.
    ///
    /// # Errors
    /// There is one, or too many, or the ledger cannot record it.
    pub async fn create_agent(&self, actor: &str, name: &str, spec: AgentSpec) -> Result<AgentView, ManageError> {
        let _alone = self.0.changing.lock().await;
        let created = {
            let book = self.0.book();
            if book.hides_agent(name) {
                return Err(ManageError::AgentInFile(name.to_owned()));
            }
            if book.agents.contains_key(name) {
                return Err(ManageError::AgentExists(name.to_owned()));
            }
            bounded(book.agents.len(), MOST_AGENTS)?;
            Created { spec, created: self.0.now(), keys: Vec::new() }
        };
        self.keep_agent(actor, name, "created", created).await
    }

    /// Changes what a created agent may do, from what that is to what `change` makes of it.
    ///
    /// # Errors
    /// `change` refuses, the agent was not created at run time, or the ledger cannot record it.
    pub async fn change_agent<E: From<ManageError>>(
        &self,
        actor: &str,
        name: &str,
        change: impl FnOnce(AgentSpec) -> Result<AgentSpec, E>,
    ) -> Result<AgentView, E> {
        // From what is looked at to what is on record, so that of two changes at once neither takes the other's back.
        let _alone = self.0.changing.lock().await;
        let created = self.created(name)?;
        let created = Created { spec: change(created.spec)?, ..created };
        Ok(self.keep_agent(actor, name, "changed", created).await?)
    }

    /// Takes a created agent away, with its keys, its budgets made at run time and its pause, and ends its runs. What it spent stays on
    /// record, and counts again when an agent of its name is made.
    ///
    /// # Errors
    /// It was not created at run time, or the ledger cannot record it.
    pub async fn remove_agent(&self, actor: &str, name: &str) -> Result<(), ManageError> {
        let _alone = self.0.changing.lock().await;
        self.created(name)?;
        let owner = Owner::new(Scope::Agent, name);
        let budgets = {
            let book = self.0.book();
            let shown = book.hides_agent(name);
            let own = book.budgets.iter().filter(|(_, rule)| rule.owner == owner && !shown);
            own.map(|(id, _)| (id.clone(), None)).collect()
        };
        let shown = self.0.book().hides_agent(name);
        let edit = Edit { agent: Some((name.into(), None)), budgets, resumed: (!shown).then_some(owner) };
        self.commit(actor, &format!("agent/{name}"), json!({"change": "removed"}), edit).await?;
        if !shown {
            self.end_runs(actor, |run| *run.agent == *name).await;
        }
        Ok(())
    }

    async fn keep_agent(
        &self,
        actor: &str,
        name: &str,
        change: &str,
        created: Created,
    ) -> Result<AgentView, ManageError> {
        let mut note: Value = serde_json::from_str(&created.body()).unwrap_or_default();
        if let Some(note) = note.as_object_mut() {
            // Not even hashes of keys.
            note.remove("keys");
            note.insert("change".into(), change.into());
        }
        let edit = Edit { agent: Some((name.into(), Some(created.clone()))), ..Edit::default() };
        self.commit(actor, &format!("agent/{name}"), note, edit).await?;
        let book = self.0.book();
        Ok(book.view(&name.into(), &created))
    }
}

impl Book {
    fn view(&self, name: &Arc<str>, made: &Created) -> AgentView {
        AgentView {
            name: name.clone(),
            source: Source::Api,
            shadowed: self.hides_agent(name),
            spec: made.spec.clone(),
            created: Some(time(made.created)),
            keys: made.keys.iter().map(CreatedKey::view).collect(),
        }
    }
}

fn of_file(agent: &AgentConfig) -> AgentView {
    AgentView {
        name: agent.name.as_str().into(),
        source: Source::File,
        shadowed: false,
        spec: AgentSpec {
            team: agent.team.clone(),
            models: agent.models.clone(),
            priority: agent.priority,
            max_request: agent.max_request,
            rates: agent.rates,
            degrade_to: agent.degrade_to.clone(),
            task_type: agent.task_type.clone(),
            disabled: false,
        },
        created: None,
        keys: Vec::new(),
    }
}
