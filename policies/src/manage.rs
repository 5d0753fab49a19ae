//! Agents, keys and budgets that people make, change and take away while the gateway runs. Each change is in the ledger's chain, together with
//! the state that it leaves, before it holds. A secret is handed out once, when it is made; what is kept is its hash.

use crate::accounts::BudgetView;
use crate::agent::{KeyHash, random_hex};
use crate::control::{PAUSE, owner_id};
use crate::created::{AGENT, AgentSpec, BUDGET, Book, Created, CreatedKey, Scopes, budget_body, is_alike};
use crate::denied::Denied;
use crate::holds;
use crate::run::Run;
use crate::store::StateChange;
use crate::{Policies, Shared};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;
use tollkeeper_config::{AgentConfig, BudgetConfig, Config, Owner, Scope};

/// What secrets of keys begin with.
const KEY_PREFIX: &str = "tk-key-";
/// Characters of a secret that are shown with its key.
const SHOWN: usize = KEY_PREFIX.len() + 4;
/// More agents are not made.
const MOST_AGENTS: usize = 10_000;
/// More keys of one agent are not made.
const MOST_KEYS: usize = 32;
/// More budgets are not made.
const MOST_BUDGETS: usize = 10_000;

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

/// A key as it may be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyView {
    /// Its id, `key_…`.
    pub id: Arc<str>,
    /// How its secret begins.
    pub prefix: Arc<str>,
    /// When it was made.
    pub created: Timestamp,
    /// From then on it is refused.
    pub expires: Option<Timestamp>,
    /// Whether it is refused now although it has not expired.
    pub disabled: bool,
    /// What it is good for.
    pub scopes: Scopes,
}

/// What is asked for in a new key.
#[derive(Debug, Clone, Copy)]
pub struct NewKey {
    /// What it is good for.
    pub scopes: Scopes,
    /// From then on it is refused; `None` for never.
    pub expires: Option<Timestamp>,
}

/// What is changed of a key.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyChange {
    /// Whether it is refused.
    pub disabled: Option<bool>,
    /// When it expires.
    pub expires: Option<Option<Timestamp>>,
    /// What it is good for.
    pub scopes: Option<Scopes>,
}

/// A budget, where it comes from, and how it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetEntry {
    /// Its id, `bud_…`; `None` for the file's.
    pub id: Option<Arc<str>>,
    /// Where it was defined.
    pub source: Source,
    /// The budget.
    pub rule: BudgetConfig,
    /// How it stands; `None` when the file has one like it, which is the one that counts.
    pub view: Option<BudgetView>,
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
    /// All agents, by name; of a name that both define, the file's comes first.
    pub fn agents(&self) -> Vec<AgentView> {
        let book = self.0.book();
        let file = book.file.agents.values().map(|agent| of_file(agent));
        let made = book.agents.iter().map(|(name, made)| book.view(name, made));
        let mut all: Vec<AgentView> = file.chain(made).collect();
        all.sort_by(|a, b| (&a.name, a.shadowed).cmp(&(&b.name, b.shadowed)));
        all
    }

    /// The file, with the agents and budgets that were made at run time and that it does not define itself.
    pub fn effective(&self) -> Config {
        self.0.book().merged()
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

    /// Ends runs that nobody may use any more. What cannot be recorded now has ended all the same, and is tried again.
    async fn end_runs(&self, actor: &str, wanted: impl Fn(&Run) -> bool) {
        if let Err(denied) = self.cancel_runs(actor, wanted).await {
            tracing::warn!(%denied, "the end of runs cannot be recorded now; they have ended all the same");
        }
    }

    /// Makes a key of a created agent. Returns it with its secret, which is shown this once.
    ///
    /// # Errors
    /// The agent was not created at run time, has too many keys, or the ledger cannot record it.
    pub async fn create_key(&self, actor: &str, agent: &str, new: NewKey) -> Result<(KeyView, String), ManageError> {
        let _alone = self.0.changing.lock().await;
        let mut created = self.created(agent)?;
        let (key, secret) = self.0.forge(&created, new)?;
        created.keys.push(key.clone());
        let note = json!({"change": "key created", "key": note(&key)});
        self.keep_keys(actor, agent, note, created).await?;
        Ok((key.view(), secret))
    }

    /// Makes a key that does what another one does, and lets the old one expire when the overlap is over, or when it
    /// would have anyway. Returns both, and the secret of the new one.
    ///
    /// # Errors
    /// There is no such key, the agent has too many, or the ledger cannot record it.
    pub async fn rotate_key(
        &self,
        actor: &str,
        agent: &str,
        id: &str,
        overlap: Duration,
        expires: Option<Timestamp>,
    ) -> Result<(KeyView, KeyView, String), ManageError> {
        let _alone = self.0.changing.lock().await;
        let mut created = self.created(agent)?;
        let end = self.0.now().saturating_add(i64::try_from(overlap.as_micros()).unwrap_or(i64::MAX));
        let old = created.key(agent, id)?;
        let new = NewKey { scopes: old.scopes, expires };
        old.expires = Some(old.expires.map_or(end, |expires| expires.min(end)));
        let old = old.clone();
        let (key, secret) = self.0.forge(&created, new)?;
        created.keys.push(key.clone());
        let note = json!({"change": "key rotated", "old": note(&old), "key": note(&key)});
        self.keep_keys(actor, agent, note, created).await?;
        Ok((old.view(), key.view(), secret))
    }

    /// Changes a key.
    ///
    /// # Errors
    /// There is no such key, or the ledger cannot record it.
    pub async fn change_key(
        &self,
        actor: &str,
        agent: &str,
        id: &str,
        change: KeyChange,
    ) -> Result<KeyView, ManageError> {
        let _alone = self.0.changing.lock().await;
        let mut created = self.created(agent)?;
        let key = created.key(agent, id)?;
        key.disabled = change.disabled.unwrap_or(key.disabled);
        key.scopes = change.scopes.unwrap_or(key.scopes);
        if let Some(expires) = change.expires {
            key.expires = expires.map(Timestamp::as_microsecond);
        }
        let key = key.clone();
        self.keep_keys(actor, agent, json!({"change": "key changed", "key": note(&key)}), created).await?;
        Ok(key.view())
    }

    /// Takes a key away: it is unknown from now on, and the runs that were made with it end.
    ///
    /// # Errors
    /// There is no such key, or the ledger cannot record it.
    pub async fn remove_key(&self, actor: &str, agent: &str, id: &str) -> Result<(), ManageError> {
        let _alone = self.0.changing.lock().await;
        let mut created = self.created(agent)?;
        let gone = created.key(agent, id)?.clone();
        created.keys.retain(|key| key.id != gone.id);
        self.keep_keys(actor, agent, json!({"change": "key removed", "key": note(&gone)}), created).await?;
        self.end_runs(actor, |run| run.maker == Some(gone.hash)).await;
        Ok(())
    }

    /// All budgets as they stand, those of runs left out, and those made at run time that the file hides.
    pub fn budget_entries(&self) -> Vec<BudgetEntry> {
        let views = self.all_budgets();
        let book = self.0.book();
        let hidden = book.budgets.iter().filter(|(_, rule)| book.hides_budget(rule));
        let hidden: Vec<BudgetEntry> = hidden
            .map(|(id, rule)| BudgetEntry { id: Some(id.clone()), source: Source::Api, rule: rule.clone(), view: None })
            .collect();
        let made =
            |rule: &BudgetConfig| book.budgets.iter().find(|(_, made)| *made == rule && !book.hides_budget(rule));
        let standing = views.into_iter().map(|view| {
            let id = made(&view.rule).map(|(id, _)| id.clone());
            let source = if id.is_some() { Source::Api } else { Source::File };
            BudgetEntry { id, source, rule: view.rule.clone(), view: Some(view) }
        });
        let mut all: Vec<BudgetEntry> = standing.chain(hidden).collect();
        all.sort_by(|a, b| (&a.rule.owner, a.rule.window, &a.id).cmp(&(&b.rule.owner, b.rule.window, &b.id)));
        all
    }

    /// Makes a budget; what its owner has spent in the window counts.
    ///
    /// # Errors
    /// There is one like it, or too many, or the ledger cannot record it.
    pub async fn create_budget(&self, actor: &str, rule: BudgetConfig) -> Result<BudgetEntry, ManageError> {
        let _alone = self.0.changing.lock().await;
        {
            let book = self.0.book();
            bounded(book.budgets.len(), MOST_BUDGETS)?;
            book.unlike_others(&rule, None)?;
        }
        let id: Arc<str> = format!("bud_{}", random_hex::<8>()).into();
        self.keep_budget(actor, id, "created", rule).await
    }

    /// Puts what `change` makes of a budget that was made at run time in its place. What is spent and leased stays.
    ///
    /// # Errors
    /// `change` refuses, there is no such budget, or one like the new one, or the ledger cannot record it.
    pub async fn change_budget<E: From<ManageError>>(
        &self,
        actor: &str,
        id: &str,
        change: impl FnOnce(&BudgetConfig) -> Result<BudgetConfig, E>,
    ) -> Result<BudgetEntry, E> {
        let _alone = self.0.changing.lock().await;
        let old = self.0.book().made_budget(id)?.clone();
        let rule = change(&old)?;
        self.0.book().unlike_others(&rule, Some(id))?;
        Ok(self.keep_budget(actor, id.into(), "changed", rule).await?)
    }

    /// Takes a budget away that was made at run time.
    ///
    /// # Errors
    /// There is no such budget, or the ledger cannot record it.
    pub async fn remove_budget(&self, actor: &str, id: &str) -> Result<(), ManageError> {
        let _alone = self.0.changing.lock().await;
        self.0.book().made_budget(id)?;
        let edit = Edit { budgets: vec![(id.into(), None)], ..Edit::default() };
        Ok(self.commit(actor, &format!("budget/{id}"), json!({"change": "removed"}), edit).await?)
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

    async fn keep_keys(&self, actor: &str, agent: &str, note: Value, created: Created) -> Result<(), ManageError> {
        let edit = Edit { agent: Some((agent.into(), Some(created))), ..Edit::default() };
        Ok(self.commit(actor, &format!("agent/{agent}"), note, edit).await?)
    }

    async fn keep_budget(
        &self,
        actor: &str,
        id: Arc<str>,
        change: &str,
        rule: BudgetConfig,
    ) -> Result<BudgetEntry, ManageError> {
        let mut note: Value = serde_json::from_str(&budget_body(&rule)).unwrap_or_default();
        note["change"] = change.into();
        let edit = Edit { budgets: vec![(id.clone(), Some(rule.clone()))], ..Edit::default() };
        self.commit(actor, &format!("budget/{id}"), note, edit).await?;
        let view = self.budgets(&rule.owner).into_iter().find(|view| view.rule == rule);
        Ok(BudgetEntry { id: Some(id), source: Source::Api, rule, view })
    }

    /// Puts a change on record, and then has it hold.
    async fn commit(&self, actor: &str, subject: &str, note: Value, edit: Edit) -> Result<(), Denied> {
        let rules = edit.budgets.iter().filter_map(|(_, rule)| rule.as_ref());
        self.0.recall(self.0.left_out(rules)).await?;
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
            self.0.watches.release(&owner, now);
        }
        self.0.enforce(&book);
        Ok(())
    }
}

impl Shared {
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new key of an agent, and its secret.
    fn forge(&self, agent: &Created, new: NewKey) -> Result<(CreatedKey, String), ManageError> {
        bounded(agent.keys.len(), MOST_KEYS)?;
        let secret = format!("{KEY_PREFIX}{}", random_hex::<24>());
        let key = CreatedKey {
            id: format!("key_{}", random_hex::<8>()).into(),
            hash: KeyHash::of(&secret),
            prefix: secret[..SHOWN].into(),
            created: self.now(),
            expires: new.expires.map(Timestamp::as_microsecond),
            disabled: false,
            scopes: new.scopes,
        };
        Ok((key, secret))
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

    fn made_budget(&self, id: &str) -> Result<&BudgetConfig, ManageError> {
        self.budgets.get(id).ok_or_else(|| ManageError::NoBudget(id.to_owned()))
    }

    /// Whether a budget would be the only one of its owner, window and measure.
    fn unlike_others(&self, rule: &BudgetConfig, own: Option<&str>) -> Result<(), ManageError> {
        let owner = rule.owner.clone();
        if owner.scope == Scope::Run {
            return Err(ManageError::OfRun(owner.id));
        }
        if self.hides_budget(rule) {
            return Err(ManageError::BudgetInFile { owner });
        }
        match self.budgets.iter().find(|(id, other)| Some(&***id) != own && is_alike(other, rule)) {
            Some((id, _)) => Err(ManageError::BudgetExists { owner, id: id.clone() }),
            None => Ok(()),
        }
    }
}

impl Created {
    fn key(&mut self, agent: &str, id: &str) -> Result<&mut CreatedKey, ManageError> {
        let missing = || ManageError::NoKey { agent: agent.into(), id: id.to_owned() };
        self.keys.iter_mut().find(|key| *key.id == *id).ok_or_else(missing)
    }
}

impl CreatedKey {
    fn view(&self) -> KeyView {
        KeyView {
            id: self.id.clone(),
            prefix: self.prefix.clone(),
            created: time(self.created),
            expires: self.expires.map(time),
            disabled: self.disabled,
            scopes: self.scopes,
        }
    }
}

/// A key as the ledger names it: without its hash.
fn note(key: &CreatedKey) -> Value {
    json!({
        "id": &*key.id,
        "expires_us": key.expires,
        "disabled": key.disabled,
        "scopes": key.scopes.names(),
    })
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
            disabled: false,
        },
        created: None,
        keys: Vec::new(),
    }
}

fn bounded(there: usize, most: usize) -> Result<(), ManageError> {
    if there < most { Ok(()) } else { Err(ManageError::TooMany(most)) }
}

fn time(at: i64) -> Timestamp {
    Timestamp::from_microsecond(at).unwrap_or_default()
}
