//! Runs as they are kept in the store, and back.

use super::{NewRun, Run, RunEnd, RunLimits, RunPolicy, Runs, State};
use crate::accounts::Accounts;
use crate::agent::{KeyHash, Maker};
use crate::created::Scopes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{OnLimit, Usd};

/// A run as it is kept in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    agent: String,
    pub(super) parent: Option<String>,
    label: Option<String>,
    usd_nano: Option<i64>,
    tokens: Option<u64>,
    calls: Option<u64>,
    wall_ms: Option<u64>,
    on_limit: String,
    local_only: bool,
    wrap_up_pct: u8,
    created_us: i64,
    ended_us: Option<i64>,
    cancelled: bool,
    /// SHA-256 of the key.
    key: String,
    /// SHA-256 of the agent's key that it was made with.
    #[serde(default)]
    maker: Option<String>,
    /// What its key is good for; everything where it does not say.
    #[serde(default)]
    scopes: Option<Vec<String>>,
}

impl Saved {
    pub(super) fn run(self, runs: &Runs, accounts: &mut Accounts, id: Arc<str>) -> Arc<Run> {
        let new = NewRun {
            parent: self.parent.and_then(|parent| runs.get(&parent).cloned()),
            label: self.label,
            limits: RunLimits {
                usd: self.usd_nano.map(Usd),
                tokens: self.tokens,
                calls: self.calls,
                wall: self.wall_ms.map(Duration::from_millis),
            },
            policy: RunPolicy {
                on_limit: OnLimit::named(&self.on_limit).unwrap_or_default(),
                local_only: self.local_only,
                wrap_up_pct: self.wrap_up_pct,
            },
            maker: Maker {
                // One that cannot be read is nobody's, and so it is refused.
                key: self.maker.map(|key| KeyHash::from_hex(&key).unwrap_or(KeyHash([0; 32]))),
                scopes: match &self.scopes {
                    Some(names) => Scopes::named(names.iter().map(String::as_str)).unwrap_or(Scopes::NONE),
                    None => Scopes::ALL,
                },
            },
        };
        // A key that cannot be read fits nobody.
        let key = KeyHash::from_hex(&self.key).unwrap_or(KeyHash([0; 32]));
        let run = Runs::make(accounts, id, self.agent.into(), key, new, self.created_us);
        if let Some(at) = self.ended_us {
            run.state().ended = Some((if self.cancelled { RunEnd::Cancelled } else { RunEnd::Over }, at));
            run.cancelled.cancel();
        }
        run
    }
}

impl Run {
    /// What a restart must know of it.
    pub(crate) fn saved(&self) -> Saved {
        let State { limits, ended } = *self.state();
        Saved {
            agent: self.agent.to_string(),
            parent: self.parent.as_ref().map(|parent| parent.id.to_string()),
            label: self.label.clone(),
            usd_nano: limits.usd.map(|usd| usd.0),
            tokens: limits.tokens,
            calls: limits.calls,
            wall_ms: limits.wall.map(|wall| u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
            on_limit: self.policy.on_limit.name().into(),
            local_only: self.policy.local_only,
            wrap_up_pct: self.policy.wrap_up_pct,
            created_us: self.created,
            ended_us: ended.map(|(_, at)| at),
            cancelled: ended.is_some_and(|(end, _)| end == RunEnd::Cancelled),
            key: self.key.hex(),
            maker: self.maker.map(KeyHash::hex),
            scopes: Some(self.scopes.names().into_iter().map(str::to_owned).collect()),
        }
    }
}
