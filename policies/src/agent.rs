//! Who is asking: keys to agents, and which models each may name.

use crate::accounts::Cover;
use crate::created::Scopes;
use crate::lease::Payer;
use crate::run::Run;
use rand::RngCore;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tollkeeper_config::{AgentConfig, Owner, Priority, Scope, Usd, VelocityConfig};

/// An agent as configured when it was looked up. Its limits are not in here: they hold at once when the configuration
/// changes.
#[derive(Debug, PartialEq)]
pub struct Agent {
    /// Its name in logs, metrics and the ledger.
    pub name: Arc<str>,
    /// How urgent its requests are unless they say otherwise.
    pub priority: Priority,
    /// The team it belongs to.
    pub team: Option<Arc<str>>,
    /// The most that one of its requests may cost.
    pub max_request: Option<Usd>,
    /// The alias to fall back on when it has to do with less.
    pub degrade_to: Option<Arc<str>>,
    /// The type of its tasks where a request does not say one.
    pub task_type: Option<Arc<str>>,
    models: Vec<Box<str>>,
    key: Option<KeyHash>,
    /// When it spends too fast.
    pub(crate) velocity: VelocityConfig,
    /// What it may spend in a day, if there is such a limit.
    pub(crate) daily_cap: Option<Usd>,
    /// Itself and its team, as owners of budgets and pauses.
    pub(crate) owners: Vec<Owner>,
    /// The accounts of itself, of its team and of everything.
    pub(crate) covers: Vec<Cover>,
}

/// Who asks, and for what.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The agent.
    pub agent: Arc<Agent>,
    /// The run whose key was used.
    pub run: Option<Arc<Run>>,
    /// What the key is good for.
    pub scopes: Scopes,
    /// Its hash.
    pub(crate) key: KeyHash,
}

impl Caller {
    /// What the runs that it makes depend on.
    pub fn maker(&self) -> Maker {
        // Those made with a run's key are below it, and depend on what it does.
        let key = self.run.is_none().then_some(self.key);
        Maker { key, scopes: self.scopes }
    }

    /// Whose key it is.
    pub(crate) fn owner(&self) -> Owner {
        let run = self.run.as_ref().map(|run| run.owner.clone());
        run.unwrap_or_else(|| Owner::new(Scope::Agent, self.agent.name.clone()))
    }

    /// Who pays, with the client's own name for what it works on.
    pub(crate) fn payer(&self, task: Option<Arc<str>>) -> Payer {
        Payer {
            agent: self.agent.name.clone(),
            team: self.agent.team.clone(),
            run: self.run.as_ref().map(|run| run.id.clone()),
            task,
        }
    }

    /// What it counts as for pauses.
    pub(crate) fn owners(&self) -> impl Iterator<Item = &Owner> {
        let runs = self.run.iter().flat_map(|run| run.chain()).map(|run| &run.owner);
        runs.chain(&self.agent.owners)
    }
}

impl Agent {
    pub(crate) fn new(config: &AgentConfig, daily_cap: Option<Usd>, owners: Vec<Owner>, covers: Vec<Cover>) -> Self {
        Self {
            name: config.name.as_str().into(),
            priority: config.priority,
            team: config.team.as_deref().map(Into::into),
            max_request: config.max_request,
            degrade_to: config.degrade_to.as_deref().map(Into::into),
            task_type: config.task_type.as_deref().map(Into::into),
            models: config.models.iter().map(|pattern| pattern.as_str().into()).collect(),
            key: config.key.as_ref().map(|key| KeyHash::of(key.expose())),
            velocity: config.velocity.clone(),
            daily_cap,
            owners,
            covers,
        }
    }

    /// Whether one of its patterns covers this alias or model; `*` stands for any run of characters, slashes included.
    pub fn may_use(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| matches(pattern.as_bytes(), model.as_bytes()))
    }
}

/// SHA-256 of a key. Keys are long random texts, so a plain hash at rest is enough.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeyHash(pub(crate) [u8; 32]);

impl KeyHash {
    pub(crate) fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    pub(crate) fn hex(self) -> String {
        hex(&self.0)
    }

    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let digits: Option<Vec<u8>> =
            text.chars().map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
        let bytes: Vec<u8> =
            digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
        (text.len() == 64).then(|| bytes.try_into().ok().map(Self)).flatten()
    }

    /// Compares in constant time.
    pub(crate) fn is(self, other: Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Random bytes as hexadecimal digits.
pub(crate) fn random_hex<const BYTES: usize>() -> String {
    let mut bytes = [0; BYTES];
    rand::rng().fill_bytes(&mut bytes);
    hex(&bytes)
}

/// What holds for one key of an agent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyTerms {
    /// From then on it is refused; microseconds since 1970.
    pub(crate) expires: Option<i64>,
    pub(crate) disabled: bool,
    pub(crate) scopes: Scopes,
}

/// Why a key opens nothing. The texts are for whoever holds the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    /// Nobody has it.
    #[error("this API key is not known here; check it, or have the operator make one (`tollkeeper keys`)")]
    Unknown,
    /// Its time is up.
    #[error("this API key has expired; have the operator make another one")]
    Expired,
    /// It, or its agent, was switched off.
    #[error("this API key, or its agent, is disabled; ask the operator")]
    Disabled,
    /// It is a run's, and the key that the run was made with is no longer good.
    #[error(
        "this is the key of a run, and the API key that the run was made with {0}; make another run, or ask the operator"
    )]
    Maker(Lost),
}

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Its time is up.
    #[error("has expired")]
    Expired,
    /// It was switched off.
    #[error("is disabled")]
    Disabled,
    /// Nobody has it any more.
    #[error("was taken away")]
    Gone,
}

impl From<Lost> for KeyRefused {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Expired => Self::Expired,
            Lost::Disabled => Self::Disabled,
            Lost::Gone => Self::Unknown,
        }
    }
}

/// Who makes a run: the run is good for no more than that, and for no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maker {
    /// The key of an agent that it was made with.
    pub(crate) key: Option<KeyHash>,
    pub(crate) scopes: Scopes,
}

impl Default for Maker {
    /// The operator.
    fn default() -> Self {
        Self { key: None, scopes: Scopes::ALL }
    }
}

/// All agents, by the hashes of their keys and by name.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    by_key: HashMap<KeyHash, Held>,
    by_name: HashMap<Arc<str>, Arc<Agent>>,
}

/// A key and whose it is.
#[derive(Debug)]
struct Held {
    hash: KeyHash,
    agent: Arc<Agent>,
    terms: KeyTerms,
}

impl Roster {
    /// Of two agents with one key the first keeps it: which of them would pay must not depend on chance.
    pub(crate) fn new(agents: impl IntoIterator<Item = Agent>) -> Self {
        let mut roster = Self::default();
        for agent in agents.into_iter().map(Arc::new) {
            roster.by_name.insert(agent.name.clone(), agent.clone());
            if let Some(hash) = agent.key {
                roster.hold(hash, agent, KeyTerms { expires: None, disabled: false, scopes: Scopes::ALL });
            }
        }
        roster
    }

    /// All agents.
    pub(crate) fn agents(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.by_name.values()
    }

    /// The agent of that name.
    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Agent>> {
        self.by_name.get(name)
    }

    fn hold(&mut self, hash: KeyHash, agent: Arc<Agent>, terms: KeyTerms) {
        let _: &mut Held = self.by_key.entry(hash).or_insert(Held { hash, agent, terms });
    }

    /// Gives an agent one more key.
    pub(crate) fn give(&mut self, name: &str, hash: KeyHash, terms: KeyTerms) {
        if let Some(agent) = self.by_name.get(name).cloned() {
            self.hold(hash, agent, terms);
        }
    }

    /// Nobody finds the agent by its name any more, such as for one of its runs.
    pub(crate) fn disable(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    /// Whether a key, and those that the runs above it were made with, is good at `now`: for what, and until when if nobody changes anything
    /// (microseconds since 1970).
    pub(crate) fn standing(
        &self,
        (agent, key): (&str, KeyHash),
        run: Option<&Run>,
        now: i64,
    ) -> Result<(Scopes, Option<i64>), KeyRefused> {
        if self.named(agent).is_none() {
            return Err(KeyRefused::Disabled);
        }
        let Some(run) = run else {
            let terms = self.terms(agent, key, now)?;
            return Ok((terms.scopes, terms.expires));
        };
        let (mut scopes, mut until) = (run.scopes, None);
        for key in run.chain().filter_map(|run| run.maker) {
            let terms = self.terms(agent, key, now).map_err(KeyRefused::Maker)?;
            scopes = scopes.and(terms.scopes);
            until = [until, terms.expires].into_iter().flatten().min();
        }
        Ok((scopes, until))
    }

    /// What holds for a key of that agent at `now`.
    fn terms(&self, agent: &str, key: KeyHash, now: i64) -> Result<KeyTerms, Lost> {
        let (_, terms) = self.find(key).filter(|(owner, _)| *owner.name == *agent).ok_or(Lost::Gone)?;
        match terms {
            KeyTerms { disabled: true, .. } => Err(Lost::Disabled),
            KeyTerms { expires: Some(expires), .. } if expires <= now => Err(Lost::Expired),
            terms => Ok(terms),
        }
    }

    /// The agent with this key. The table is searched by hash, and the hash found is then compared in constant time, so
    /// that timing tells nothing that helps to guess a key.
    pub(crate) fn find(&self, hash: KeyHash) -> Option<(&Arc<Agent>, KeyTerms)> {
        self.by_key.get(&hash).filter(|held| held.hash.is(hash)).map(|held| (&held.agent, held.terms))
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
