//! Keys of agents that were made at run time. A secret is handed out once, when it is made; what is kept is its hash.

use super::{Edit, ManageError, bounded, time};
use crate::agent::{KeyHash, random_hex};
use crate::created::{Created, CreatedKey, Scopes};
use crate::{Policies, Shared};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// What secrets of keys begin with.
const KEY_PREFIX: &str = "tk-key-";
/// Characters of a secret that are shown with its key.
const SHOWN: usize = KEY_PREFIX.len() + 4;
/// More keys of one agent are not made.
const MOST_KEYS: usize = 32;

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

impl Policies {
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

    async fn keep_keys(&self, actor: &str, agent: &str, note: Value, created: Created) -> Result<(), ManageError> {
        let edit = Edit { agent: Some((agent.into(), Some(created))), ..Edit::default() };
        Ok(self.commit(actor, &format!("agent/{agent}"), note, edit).await?)
    }
}

impl Shared {
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

impl Created {
    fn key(&mut self, agent: &str, id: &str) -> Result<&mut CreatedKey, ManageError> {
        let missing = || ManageError::NoKey { agent: agent.into(), id: id.to_owned() };
        self.keys.iter_mut().find(|key| *key.id == *id).ok_or_else(missing)
    }
}

impl CreatedKey {
    pub(super) fn view(&self) -> KeyView {
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
