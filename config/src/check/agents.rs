//! Checks `[[agents]]`.

use super::{Check, is_first};
use crate::budget::BudgetConfig;
use crate::file::{RawAgent, RawVelocity};
use crate::problem::{Span, did_you_mean};
use crate::read::At;
use crate::settings::{AgentConfig, Alias, Config};
use crate::units::{Secret, Usd};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Where requests go that must not cost anything.
const LOCAL: &str = "local/fast";

impl Check<'_> {
    /// The agents, and the budgets that stand in their tables.
    pub(super) fn agents(
        &mut self,
        raw: Vec<RawAgent>,
        admin: Option<&Secret>,
        aliases: &BTreeMap<String, Arc<Alias>>,
        velocity: &RawVelocity,
    ) -> (BTreeMap<String, Arc<AgentConfig>>, Vec<BudgetConfig>) {
        if raw.is_empty() {
            self.warnings.push("there is no agent: every request will be refused with 401".to_owned());
        }
        let mut names = HashMap::new();
        let mut keys: HashMap<String, String> =
            admin.map(|key| (key.expose().to_owned(), "the operator".to_owned())).into_iter().collect();
        let (mut agents, mut budgets) = (BTreeMap::new(), Vec::new());
        for mut raw in raw {
            let own = std::mem::take(&mut raw.budgets.value);
            let name = raw.name.as_ref().map(|name| name.value.value.0.clone());
            budgets.extend(self.own_budgets(own, name.as_deref()));
            if let Some(agent) = self.agent(raw, velocity, &mut names, &mut keys, aliases) {
                agents.insert(agent.name.clone(), Arc::new(agent));
            }
        }
        (agents, budgets)
    }

    fn agent(
        &mut self,
        raw: RawAgent,
        velocity: &RawVelocity,
        names: &mut HashMap<String, Span>,
        keys: &mut HashMap<String, String>,
        aliases: &BTreeMap<String, Arc<Alias>>,
    ) -> Option<AgentConfig> {
        let rates = self.rates(raw.rates);
        let velocity = self.velocity(velocity, Some(raw.velocity.value));
        if let Some(limit) = raw.max_request_usd.at.as_ref().filter(|limit| limit.value <= Usd::ZERO) {
            self.problems.add(&limit.span, "`max_request_usd` must be more than 0");
        }
        let degrade_to = self.degrade_to(raw.degrade_to.at, aliases);
        let name = raw.name.map(|name| name.value);
        let whose = name.as_ref().map_or("an agent".to_owned(), |name| format!("the agent `{}`", name.value.0));
        let key = raw.key.and_then(|key| Some((self.key(&whose, &key)?, key.span)));
        let name = name?;
        let first = is_first(names, &name.value.0, &name.span, &whose, &mut self.problems);
        let (key, span) = key?;
        match keys.get(key.expose()) {
            Some(other) if first => self.problems.add(&span, format!("{whose} has the same key as {other}")),
            _ => drop(keys.insert(key.expose().to_owned(), whose)),
        }
        let models = raw.models.value.into_iter().map(|pattern| pattern.value).collect();
        Some(AgentConfig {
            name: name.value.0,
            key: Some(key),
            models,
            priority: raw.priority.value,
            rates,
            velocity,
            team: raw.team.at.map(|team| team.value.0),
            max_request: raw.max_request_usd.at.map(|limit| limit.value),
            degrade_to,
            task_type: raw.task_type.at.map(|task| task.value.0),
        })
    }

    /// The alias to fall back on: the one named, else the built-in one for local models if there are any.
    fn degrade_to(&mut self, named: Option<At<String>>, aliases: &BTreeMap<String, Arc<Alias>>) -> Option<String> {
        let Some(named) = named else {
            let local = aliases.get(LOCAL).filter(|alias| !alias.targets.is_empty());
            return local.map(|alias| alias.name.clone());
        };
        if !aliases.contains_key(&named.value) && !self.broken.contains(&named.value) {
            let near = did_you_mean(&named.value, aliases.keys().map(String::as_str));
            self.problems.add(&named.span, format!("there is no alias `{}`{near}", named.value));
        }
        Some(named.value)
    }
}

/// Warnings for models without `*` that agents may name but that do not exist.
pub(super) fn models_that_match_nothing(config: &Config) -> Vec<String> {
    let named = config.agents.values().flat_map(|agent| agent.models.iter().map(move |model| (agent, model)));
    named
        .filter(|(_, model)| !model.contains('*'))
        .filter_map(|(agent, model)| {
            let unknown = config.resolve(model).err()?;
            Some(format!("the agent `{}` may name a model that is not there: {unknown}", agent.name))
        })
        .collect()
}
