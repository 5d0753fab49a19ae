//! Who is asking: keys to agents, and which models each may name.

use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tollkeeper_config::{AgentConfig, Priority};

/// An agent as configured when it was looked up. Its limits are not in here: they hold at once when the configuration
/// changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its name in logs, metrics and the ledger.
    pub name: Arc<str>,
    /// How urgent its requests are unless they say otherwise.
    pub priority: Priority,
    models: Vec<Box<str>>,
    key: KeyHash,
    /// Its account's place in [`crate::budget::Accounts`].
    pub(crate) account: usize,
}

impl Agent {
    pub(crate) fn new(config: &AgentConfig, name: Arc<str>, account: usize) -> Self {
        let models = config.models.iter().map(|pattern| pattern.as_str().into()).collect();
        Self { name, priority: config.priority, models, key: KeyHash::of(config.key.expose()), account }
    }

    /// Whether one of its patterns covers this alias or model; `*` stands for any run of characters, slashes included.
    pub fn may_use(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| matches(pattern.as_bytes(), model.as_bytes()))
    }
}

/// SHA-256 of a key. Keys are long random texts, so a plain hash at rest is enough.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct KeyHash([u8; 32]);

impl KeyHash {
    fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }
}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// All agents by the hash of their key.
#[derive(Debug, Default)]
pub(crate) struct Roster(HashMap<KeyHash, Arc<Agent>>);

impl Roster {
    /// Of two agents with one key the first keeps it: which of them would pay must not depend on chance.
    pub(crate) fn new(agents: impl IntoIterator<Item = Agent>) -> Self {
        let mut by_key = HashMap::new();
        for agent in agents {
            let first = by_key.entry(agent.key).or_insert_with(|| Arc::new(agent));
            let _: &mut Arc<Agent> = first;
        }
        Self(by_key)
    }

    /// The agent with this key. The table is searched by hash, and the hash found is then compared in constant time, so
    /// that timing tells nothing that helps to guess a key.
    pub(crate) fn find(&self, key: &str) -> Option<&Arc<Agent>> {
        let hash = KeyHash::of(key);
        self.0.get(&hash).filter(|agent| bool::from(agent.key.0.ct_eq(&hash.0)))
    }
}

/// Glob matching in time O(pattern × text) at worst, without allocation: on a mismatch only the last star is widened.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            (p, t) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}
