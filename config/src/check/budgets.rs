//! Checks `[[budgets]]`, and the budgets in an agent's own table.

use super::Check;
use crate::budget::{BudgetConfig, Limit, Owner, Scope};
use crate::catalog::Catalog;
use crate::file::RawBudget;
use crate::problem::{Span, did_you_mean};
use crate::read::Maybe;
use crate::settings::{Alias, LocalModel, Provider};
use crate::units::Usd;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a budget may name.
pub(super) struct Known<'a> {
    /// Of all agents that are written, also of those that have a problem of their own.
    pub(super) agents: BTreeSet<String>,
    pub(super) teams: BTreeSet<String>,
    pub(super) aliases: &'a BTreeMap<String, Arc<Alias>>,
    pub(super) providers: &'a BTreeMap<String, Arc<Provider>>,
    pub(super) local: &'a [Arc<LocalModel>],
    pub(super) catalog: &'a Catalog,
}

impl Known<'_> {
    /// The names that a scope's owners can have; any model of a provider may be named besides those of the catalogue.
    fn of(&self, scope: Scope) -> BTreeSet<&str> {
        match scope {
            Scope::Agent => self.agents.iter().map(String::as_str).collect(),
            Scope::Team => self.teams.iter().map(String::as_str).collect(),
            Scope::Alias => self.aliases.keys().map(String::as_str).collect(),
            Scope::Provider => self.providers.keys().map(String::as_str).collect(),
            Scope::Model => {
                let local = self.local.iter().map(|model| model.name.as_str());
                local.chain(self.catalog.models.keys().map(String::as_str)).collect()
            }
            Scope::Everything | Scope::Run => BTreeSet::new(),
        }
    }

    fn has(&self, scope: Scope, name: &str) -> bool {
        let of_provider = || name.split_once('/').is_some_and(|(provider, _)| self.providers.contains_key(provider));
        self.of(scope).contains(name) || (scope == Scope::Model && of_provider())
    }
}

impl Check<'_> {
    /// The budgets of `[[budgets]]`, after those of the agents' own tables.
    pub(super) fn budgets(
        &mut self,
        raw: Vec<RawBudget>,
        mut budgets: Vec<BudgetConfig>,
        known: &Known<'_>,
    ) -> Vec<BudgetConfig> {
        for raw in raw {
            let owner = self.owner(&raw, known);
            let budget = self.budget(raw, owner);
            let twice = |(new, _): &(BudgetConfig, Span)| {
                let same = |old: &BudgetConfig| old.is_same_budget(new);
                budgets.iter().any(same)
            };
            if let Some((budget, span)) = &budget
                && twice(&(budget.clone(), span.clone()))
            {
                self.problems.add(span, format!("{} has another budget for the same window", budget.owner));
            }
            budgets.extend(budget.map(|(budget, _)| budget));
        }
        budgets
    }

    /// The budgets of an agent's own table.
    pub(super) fn own_budgets(&mut self, raw: Vec<RawBudget>, agent: Option<&str>) -> Vec<BudgetConfig> {
        let mut budgets: Vec<BudgetConfig> = Vec::new();
        for raw in raw {
            if let Some((name, key)) =
                owners(&raw).into_iter().find_map(|(_, name, key)| Some((name, key.at.as_ref()?)))
            {
                let message = format!(
                    "a budget in an agent's own table is that agent's; budgets with `{name}` are `[[budgets]]`"
                );
                self.problems.add(&key.span, message);
            }
            let owner = agent.map(|agent| Owner::new(Scope::Agent, agent));
            let Some((budget, span)) = self.budget(raw, owner) else { continue };
            if budgets.iter().any(|old| old.is_same_budget(&budget)) {
                self.problems.add(&span, "this agent has another budget for the same window");
            }
            budgets.push(budget);
        }
        budgets
    }

    fn owner(&mut self, raw: &RawBudget, known: &Known<'_>) -> Option<Owner> {
        let named: Vec<_> =
            owners(raw).into_iter().filter_map(|(scope, name, key)| Some((scope, name, key.at.as_ref()?))).collect();
        if let [_, (_, second, key), ..] = named[..] {
            self.problems
                .add(&key.span, format!("a budget covers one thing: `{second}` cannot stand beside `{}`", named[0].1));
            return None;
        }
        let Some((scope, name, key)) = named.first() else { return Some(Owner::everything()) };
        let id = key.value.as_str();
        if !known.has(*scope, id) && !self.broken.contains(id) {
            let near = did_you_mean(id, known.of(*scope));
            self.problems.add(&key.span, format!("there is no {name} `{id}`{near}"));
            return None;
        }
        Some(Owner::new(*scope, id))
    }

    /// The budget, and the place of its window.
    fn budget(&mut self, raw: RawBudget, owner: Option<Owner>) -> Option<(BudgetConfig, Span)> {
        let limit = self.limit(&raw);
        let window = raw.window?;
        let mut notify_at: Vec<u8> =
            raw.notify_at.value.iter().filter_map(|percent| u8::try_from(percent.value.0).ok()).collect();
        notify_at.sort_unstable();
        notify_at.dedup();
        let budget = BudgetConfig {
            owner: owner?,
            window: window.value,
            zone: raw.time_zone.value.0,
            limit: limit?,
            notify_at,
            on_limit: raw.on_limit.value,
            wrap_up_pct: u8::try_from(raw.wrap_up_pct.value.0).unwrap_or(0),
            on_shared_down: raw.on_shared_down.value,
        };
        Some((budget, window.span))
    }

    fn limit(&mut self, raw: &RawBudget) -> Option<Limit> {
        if let Some(limit) = raw.limit_usd.at.as_ref().filter(|limit| limit.value <= Usd::ZERO) {
            let message = "`limit_usd` must be more than 0; who may spend nothing needs models that are free";
            self.problems.add(&limit.span, message);
        }
        let usd = raw.limit_usd.at.as_ref().map(|limit| (Limit::Usd(limit.value), &limit.span));
        let tokens = raw.limit_tokens.at.as_ref().map(|limit| (Limit::Tokens(limit.value.0), &limit.span));
        let requests = raw.limit_requests.at.as_ref().map(|limit| (Limit::Requests(limit.value.0), &limit.span));
        let limits: Vec<_> = [usd, tokens, requests].into_iter().flatten().collect();
        let written = [raw.limit_usd.written, raw.limit_tokens.written, raw.limit_requests.written];
        match limits[..] {
            [(limit, _)] => Some(limit),
            [_, (_, span), ..] => {
                self.problems.add(span, "a budget has one limit; write a second budget for the second");
                None
            }
            [] => {
                if let (Some(window), false) = (&raw.window, written.contains(&true)) {
                    let message = "a budget needs a limit: `limit_usd`, `limit_tokens` or `limit_requests`";
                    self.problems.add(&window.span, message);
                }
                None
            }
        }
    }
}

/// The keys that name an owner.
fn owners(raw: &RawBudget) -> [(Scope, &'static str, &Maybe<String>); 5] {
    [
        (Scope::Agent, "agent", &raw.agent),
        (Scope::Team, "team", &raw.team),
        (Scope::Alias, "alias", &raw.alias),
        (Scope::Model, "model", &raw.model),
        (Scope::Provider, "provider", &raw.provider),
    ]
}
