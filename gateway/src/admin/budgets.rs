//! `/admin/v1/budgets`: those of the configuration file and those made through the API, as they stand.

use super::{Done, OPERATOR, whole};
use crate::app::App;
use crate::body::Body;
use crate::error::{ApiError, created_json, ok_json};
use crate::json::{List, Money, bad, changed, read};
use http::Response;
use hyper::body::Incoming;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use tollkeeper_config::{BudgetConfig, Limit, OnLimit, OnSharedDown, Owner, Scope, Usd, Window, zone_named};
use tollkeeper_policies::{BudgetEntry, ManageError, Source};

/// As in the configuration file.
const NOTIFY_AT: [u8; 3] = [50, 80, 95];
const MOST_WRAP_UP: u8 = 50;
/// Larger counts are refused, as in the configuration file.
const MOST_COUNT: u64 = 1_000_000_000_000_000;

/// A budget as it is asked for; the keys are those of `[[budgets]]`. It covers everything, or what one of the first five
/// keys names, and has one limit. In a change, what is missing stays and null takes away.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BudgetBody {
    /// The agent whose spending it caps.
    agent: Option<String>,
    /// The team, all its agents together.
    team: Option<String>,
    /// The alias, as clients name it.
    alias: Option<String>,
    /// The model, `provider/model` or a local one.
    model: Option<String>,
    /// The provider, all its models together.
    provider: Option<String>,
    /// `minute`, `hour`, `day`, `week`, `month`, `total`, or `rolling 24h` with any length from 1m to 31d.
    window: Option<String>,
    /// Where calendar windows begin and end, such as `Europe/Berlin`; without it `UTC`.
    time_zone: Option<String>,
    /// The cap in USD; or one of the next two.
    limit_usd: Option<Money>,
    /// The cap in tokens, of prompts and answers together.
    limit_tokens: Option<u64>,
    /// The cap in requests.
    limit_requests: Option<u64>,
    /// Percentages of the cap that are worth a notice; without it 50, 80 and 95.
    notify_at: Option<Vec<u8>>,
    /// What happens to a request that it cannot pay: `deny`, `degrade` or `ask`.
    on_limit: Option<String>,
    /// Percentage of the cap, at most 50, that only a final answer without tools may use.
    wrap_up_pct: u8,
    /// With gateways that share their budgets, what happens while that store cannot be reached: `deny`, or `local`.
    on_shared_down: Option<String>,
}

/// A budget. Amounts are in its measure, as texts: USD exact, tokens and requests counted.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct BudgetShown {
    /// Null for one of the configuration file.
    id: Option<String>,
    /// `file` or `api`.
    source: &'static str,
    /// It was made through the API, but the configuration file has one like it: this one is not used.
    shadowed: bool,
    /// What to know of it.
    note: Option<&'static str>,
    /// `everything`, `provider`, `model`, `alias`, `team` or `agent`.
    scope: &'static str,
    /// Whose it is, such as the agent's name.
    owner: String,
    window: String,
    time_zone: String,
    /// `usd`, `tokens` or `requests`.
    measure: &'static str,
    limit: String,
    /// Settled in this window; null when it is shadowed. Of gateways that share their budgets, by all of them.
    spent: Option<String>,
    /// Of it, what this gateway settled itself: the sum of its own ledger.
    own_spent: Option<String>,
    /// Set aside in this window for requests in flight.
    reserved: Option<String>,
    /// What can still be set aside.
    remaining: Option<String>,
    /// When the window began, RFC 3339; null for totals and rolling windows.
    starts_at: Option<String>,
    /// When the window ends, RFC 3339; null for totals and rolling windows.
    resets_at: Option<String>,
    notify_at: Vec<u8>,
    /// `deny`, `degrade` or `ask`.
    on_limit: &'static str,
    wrap_up_pct: u8,
    /// `deny` or `local`.
    on_shared_down: &'static str,
}

pub(crate) fn list(app: &App) -> Response<Body> {
    let shown = app.policies.budget_entries().iter().map(show).collect();
    ok_json(json!(List::of(shown)).to_string())
}

pub(crate) fn one(app: &App, id: &str) -> Result<Response<Body>, ApiError> {
    Ok(ok_json(json!(show(&find(app, id)?)).to_string()))
}

pub(crate) async fn create(app: &Arc<App>, body: Incoming) -> Result<Response<Body>, ApiError> {
    let rule = read::<BudgetBody>(app, body).await?.rule(app, None)?;
    let made = whole(app, |app| async move { Ok(app.policies.create_budget(OPERATOR, rule).await?) }).await?;
    Ok(created_json(json!(show(&made)).to_string()))
}

pub(crate) async fn change(app: &Arc<App>, id: &str, body: Incoming) -> Result<Response<Body>, ApiError> {
    let id = id.to_owned();
    let change: Value = read(app, body).await?;
    find(app, &id)?;
    let made = whole(app, |app| async move {
        let change = |old: &BudgetConfig| changed(&BudgetBody::of(old), change)?.rule(&app, Some(&old.owner));
        app.policies.change_budget(OPERATOR, &id, change).await
    });
    let made = made.await?;
    Ok(ok_json(json!(show(&made)).to_string()))
}

pub(crate) async fn remove(app: &Arc<App>, id: &str) -> Result<Response<Body>, ApiError> {
    let id = id.to_owned();
    whole(app, |app| async move { Ok(app.policies.remove_budget(OPERATOR, &id).await?) }).await?;
    Ok(ok_json(json!(Done::default()).to_string()))
}

fn find(app: &App, id: &str) -> Result<BudgetEntry, ApiError> {
    let found = app.policies.budget_entries().into_iter().find(|entry| entry.id.as_deref() == Some(id));
    found.ok_or_else(|| ManageError::NoBudget(id.chars().take(128).collect()).into())
}

pub(super) fn show(entry: &BudgetEntry) -> BudgetShown {
    let BudgetEntry { id, source, rule, view } = entry;
    let shown = |units: Option<i128>| units.map(|units| rule.limit.shown(units));
    let shadowed = view.is_none();
    let note = match source {
        Source::File => Some("defined in the configuration file; change it there"),
        Source::Api if shadowed => Some(
            "the configuration file has a budget of this owner, window and measure, and it wins: this one is not used",
        ),
        Source::Api => None,
    };
    BudgetShown {
        id: id.as_deref().map(str::to_owned),
        source: source.name(),
        shadowed,
        note,
        scope: rule.owner.scope.name(),
        owner: rule.owner.id.to_string(),
        window: rule.window.to_string(),
        time_zone: rule.zone.iana_name().unwrap_or("UTC").to_owned(),
        measure: rule.limit.measure(),
        limit: rule.limit.shown(rule.limit.units()),
        spent: shown(view.as_ref().map(|view| view.spent)),
        own_spent: shown(view.as_ref().map(|view| view.own_spent)),
        reserved: shown(view.as_ref().map(|view| view.reserved)),
        remaining: shown(view.as_ref().map(|view| view.remaining)),
        starts_at: view.as_ref().and_then(|view| view.starts_at).map(|at| at.to_string()),
        resets_at: view.as_ref().and_then(|view| view.resets_at).map(|at| at.to_string()),
        notify_at: rule.notify_at.clone(),
        on_limit: rule.on_limit.name(),
        wrap_up_pct: rule.wrap_up_pct,
        on_shared_down: rule.on_shared_down.name(),
    }
}

impl BudgetBody {
    fn of(rule: &BudgetConfig) -> Self {
        let named = |scope| (rule.owner.scope == scope).then(|| rule.owner.id.to_string());
        let mut body = Self {
            agent: named(Scope::Agent),
            team: named(Scope::Team),
            alias: named(Scope::Alias),
            model: named(Scope::Model),
            provider: named(Scope::Provider),
            window: Some(rule.window.to_string()),
            time_zone: rule.zone.iana_name().map(str::to_owned),
            notify_at: Some(rule.notify_at.clone()),
            on_limit: Some(rule.on_limit.name().to_owned()),
            wrap_up_pct: rule.wrap_up_pct,
            on_shared_down: Some(rule.on_shared_down.name().to_owned()),
            ..Self::default()
        };
        match rule.limit {
            Limit::Usd(usd) => body.limit_usd = Some(Money(usd)),
            Limit::Tokens(count) => body.limit_tokens = Some(count),
            Limit::Requests(count) => body.limit_requests = Some(count),
        }
        body
    }

    fn rule(self, app: &App, old: Option<&Owner>) -> Result<BudgetConfig, ApiError> {
        let window = self.window.as_deref().ok_or_else(|| bad("window", "`window` is missing, such as \"day\""))?;
        let window = Window::parse(window).ok_or_else(|| {
            let windows = "minute, hour, day, week, month, total, or \"rolling 24h\" with any length from 1m to 31d";
            bad("window", format!("`window` must be {windows}"))
        })?;
        let zone = self.time_zone.as_deref().unwrap_or("UTC");
        let zone = zone_named(zone)
            .map_err(|_| bad("time_zone", format!("\"{zone}\" is no time zone that this machine knows")))?;
        let mut notify_at = self.notify_at.clone().unwrap_or_else(|| NOTIFY_AT.to_vec());
        if notify_at.iter().any(|percent| !(1..=100).contains(percent)) {
            return Err(bad("notify_at", "`notify_at` must be percentages from 1 to 100"));
        }
        notify_at.sort_unstable();
        notify_at.dedup();
        let on_limit = self.on_limit.as_deref().map_or(Some(OnLimit::default()), OnLimit::named);
        let on_limit =
            on_limit.ok_or_else(|| bad("on_limit", "`on_limit` must be \"deny\", \"degrade\" or \"ask\""))?;
        if self.wrap_up_pct > MOST_WRAP_UP {
            return Err(bad("wrap_up_pct", format!("`wrap_up_pct` must be at most {MOST_WRAP_UP}")));
        }
        let alone = self.on_shared_down.as_deref().map_or(Some(OnSharedDown::default()), OnSharedDown::named);
        let on_shared_down =
            alone.ok_or_else(|| bad("on_shared_down", "`on_shared_down` must be \"deny\" or \"local\""))?;
        let (owner, limit, wrap_up_pct) = (self.owner(app, old)?, self.limit()?, self.wrap_up_pct);
        Ok(BudgetConfig { owner, window, zone, limit, notify_at, on_limit, wrap_up_pct, on_shared_down })
    }

    fn limit(&self) -> Result<Limit, ApiError> {
        let usd = self.limit_usd.map(|Money(usd)| ("limit_usd", Limit::Usd(usd)));
        let tokens = self.limit_tokens.map(|count| ("limit_tokens", Limit::Tokens(count)));
        let requests = self.limit_requests.map(|count| ("limit_requests", Limit::Requests(count)));
        let limits: Vec<_> = [usd, tokens, requests].into_iter().flatten().collect();
        match limits[..] {
            [(name, limit)] => {
                let most = if matches!(limit, Limit::Usd(_)) { i64::MAX.into() } else { i128::from(MOST_COUNT) };
                if (1..=most).contains(&limit.units()) {
                    return Ok(limit);
                }
                let enough = match limit {
                    Limit::Usd(_) => "who may spend nothing needs models that are free".to_owned(),
                    _ => format!("and at most {MOST_COUNT}"),
                };
                Err(bad(name, format!("`{name}` must be more than {}; {enough}", Usd::ZERO)))
            }
            [_, (name, _), ..] => Err(bad(name, "a budget has one limit; make a second budget for the second")),
            [] => Err(bad("limit_usd", "a budget needs a limit: `limit_usd`, `limit_tokens` or `limit_requests`")),
        }
    }

    /// Whose budget it is; what it has been may be gone.
    fn owner(&self, app: &App, old: Option<&Owner>) -> Result<Owner, ApiError> {
        let owners = [
            (Scope::Agent, &self.agent),
            (Scope::Team, &self.team),
            (Scope::Alias, &self.alias),
            (Scope::Model, &self.model),
            (Scope::Provider, &self.provider),
        ];
        let named: Vec<_> = owners.into_iter().filter_map(|(scope, name)| Some((scope, name.as_ref()?))).collect();
        match named[..] {
            [] => Ok(Owner::everything()),
            [(scope, name)]
                if old.is_some_and(|old| old.scope == scope && *old.id == **name) || exists(app, scope, name) =>
            {
                Ok(Owner::new(scope, name.as_str()))
            }
            [(scope, name)] => {
                let scope = scope.name();
                Err(bad(scope, format!("there is no {scope} `{name}`")))
            }
            [(first, _), (second, _), ..] => {
                let (first, second) = (first.name(), second.name());
                Err(bad(second, format!("a budget covers one thing: `{second}` cannot stand beside `{first}`")))
            }
        }
    }
}

/// Whether there is something of that name, as far as it must be known beforehand.
pub(super) fn exists(app: &App, scope: Scope, name: &str) -> bool {
    let config = app.config.load();
    match scope {
        Scope::Agent => app.policies.agents().iter().any(|agent| *agent.name == *name),
        Scope::Team => app.policies.agents().iter().any(|agent| agent.spec.team.as_deref() == Some(name)),
        Scope::Alias => config.aliases.contains_key(name),
        Scope::Provider => config.providers.contains_key(name),
        Scope::Model => {
            let of_provider = || name.split_once('/').is_some_and(|(of, _)| config.providers.contains_key(of));
            config.local.models.contains_key(name) || config.catalog.models.contains_key(name) || of_provider()
        }
        Scope::Everything | Scope::Run => false,
    }
}
