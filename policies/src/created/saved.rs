//! Created agents and budgets as they are kept in the store, and back.

use super::{AgentSpec, Created, CreatedKey, Scopes};
use crate::agent::KeyHash;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::num::NonZeroU32;
use std::sync::Arc;
use tollkeeper_config::{
    BudgetConfig, Limit, OnLimit, OnSharedDown, Owner, Priority, RateLimits, Scope, Usd, Window, zone_named,
};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedAgent {
    team: Option<String>,
    models: Vec<String>,
    priority: String,
    max_request_nano: Option<i64>,
    requests_per_minute: Option<NonZeroU32>,
    tokens_per_minute: Option<NonZeroU32>,
    parallel: Option<NonZeroU32>,
    queue: u32,
    degrade_to: Option<String>,
    /// Missing where an earlier version wrote it.
    #[serde(default)]
    task_type: Option<String>,
    disabled: bool,
    created_us: i64,
    keys: Vec<SavedKey>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedKey {
    id: String,
    /// SHA-256 of the secret.
    sha256: String,
    prefix: String,
    created_us: i64,
    expires_us: Option<i64>,
    disabled: bool,
    scopes: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedBudget {
    scope: String,
    owner: String,
    window: String,
    time_zone: String,
    measure: String,
    limit: i64,
    notify_at: Vec<u8>,
    on_limit: String,
    wrap_up_pct: u8,
    /// Missing where an earlier version wrote it.
    #[serde(default)]
    on_shared_down: String,
}

impl SavedAgent {
    pub(super) fn of(Created { spec, created, keys }: &Created) -> Self {
        let RateLimits { requests_per_minute, tokens_per_minute, parallel, queue } = spec.rates;
        Self {
            team: spec.team.clone(),
            models: spec.models.clone(),
            priority: spec.priority.name().to_owned(),
            max_request_nano: spec.max_request.map(|usd| usd.0),
            requests_per_minute,
            tokens_per_minute,
            parallel,
            queue,
            degrade_to: spec.degrade_to.clone(),
            task_type: spec.task_type.clone(),
            disabled: spec.disabled,
            created_us: *created,
            keys: keys.iter().map(SavedKey::of).collect(),
        }
    }

    pub(super) fn body(&self) -> Arc<str> {
        json!(self).to_string().into()
    }

    pub(super) fn agent(self) -> Option<Created> {
        let spec = AgentSpec {
            team: self.team,
            models: self.models,
            priority: Priority::named(&self.priority)?,
            max_request: self.max_request_nano.map(Usd),
            rates: RateLimits {
                requests_per_minute: self.requests_per_minute,
                tokens_per_minute: self.tokens_per_minute,
                parallel: self.parallel,
                queue: self.queue,
            },
            degrade_to: self.degrade_to,
            task_type: self.task_type,
            disabled: self.disabled,
        };
        let keys: Option<Vec<CreatedKey>> = self.keys.into_iter().map(SavedKey::key).collect();
        Some(Created { spec, created: self.created_us, keys: keys? })
    }
}

impl SavedKey {
    fn of(key: &CreatedKey) -> Self {
        Self {
            id: key.id.to_string(),
            sha256: key.hash.hex(),
            prefix: key.prefix.to_string(),
            created_us: key.created,
            expires_us: key.expires,
            disabled: key.disabled,
            scopes: key.scopes.names().into_iter().map(str::to_owned).collect(),
        }
    }

    fn key(self) -> Option<CreatedKey> {
        Some(CreatedKey {
            id: self.id.into(),
            hash: KeyHash::from_hex(&self.sha256)?,
            prefix: self.prefix.into(),
            created: self.created_us,
            expires: self.expires_us,
            disabled: self.disabled,
            scopes: Scopes::named(self.scopes.iter().map(String::as_str))?,
        })
    }
}

impl SavedBudget {
    pub(super) fn of(rule: &BudgetConfig) -> Self {
        Self {
            scope: rule.owner.scope.name().to_owned(),
            owner: rule.owner.id.to_string(),
            window: rule.window.to_string(),
            time_zone: rule.zone.iana_name().unwrap_or("UTC").to_owned(),
            measure: rule.limit.measure().to_owned(),
            // Limits are made from numbers of at most 63 bits.
            limit: i64::try_from(rule.limit.units()).unwrap_or(i64::MAX),
            notify_at: rule.notify_at.clone(),
            on_limit: rule.on_limit.name().to_owned(),
            wrap_up_pct: rule.wrap_up_pct,
            on_shared_down: rule.on_shared_down.name().to_owned(),
        }
    }

    pub(super) fn body(&self) -> Arc<str> {
        json!(self).to_string().into()
    }

    pub(super) fn budget(self) -> Option<BudgetConfig> {
        let count = u64::try_from(self.limit).ok();
        Some(BudgetConfig {
            owner: Owner::new(Scope::ALL.into_iter().find(|scope| scope.name() == self.scope)?, self.owner),
            window: Window::parse(&self.window)?,
            zone: zone_named(&self.time_zone).ok()?,
            limit: match &*self.measure {
                "usd" => Limit::Usd(Usd(self.limit)),
                "tokens" => Limit::Tokens(count?),
                "requests" => Limit::Requests(count?),
                _ => return None,
            },
            notify_at: self.notify_at,
            on_limit: OnLimit::named(&self.on_limit)?,
            wrap_up_pct: self.wrap_up_pct,
            on_shared_down: OnSharedDown::named(&self.on_shared_down).unwrap_or_default(),
        })
    }
}
