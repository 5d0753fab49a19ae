//! Checks `[[agents]]`.

use super::rates::Written;
use super::{Check, is_first};
use crate::file::{RawAgent, RawBudget};
use crate::problem::Span;
use crate::settings::{AgentConfig, BudgetConfig, Config};
use crate::units::{Secret, Usd};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

impl Check<'_> {
    pub(super) fn agents(&mut self, raw: Vec<RawAgent>, admin: Option<&Secret>) -> BTreeMap<String, Arc<AgentConfig>> {
        if raw.is_empty() {
            self.warnings.push("there is no agent: every request will be refused with 401".to_owned());
        }
        let mut names = HashMap::new();
        let mut keys: HashMap<String, String> =
            admin.map(|key| (key.expose().to_owned(), "the operator".to_owned())).into_iter().collect();
        let mut agents = BTreeMap::new();
        for raw in raw {
            if let Some(agent) = self.agent(raw, &mut names, &mut keys) {
                agents.insert(agent.name.clone(), Arc::new(agent));
            }
        }
        agents
    }

    fn agent(
        &mut self,
        raw: RawAgent,
        names: &mut HashMap<String, Span>,
        keys: &mut HashMap<String, String>,
    ) -> Option<AgentConfig> {
        let budgets = self.budgets(raw.budgets.value);
        let rates = self.rates(Written {
            requests_per_minute: raw.requests_per_minute,
            tokens_per_minute: raw.tokens_per_minute,
            parallel: raw.parallel,
            queue: raw.queue,
        });
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
        Some(AgentConfig { name: name.value.0, key, models, priority: raw.priority.value, rates, budgets })
    }

    fn budgets(&mut self, raw: Vec<RawBudget>) -> Vec<BudgetConfig> {
        let mut windows = HashSet::new();
        let mut budgets = Vec::new();
        for raw in raw {
            if let Some(limit) = raw.limit_usd.as_ref().filter(|limit| limit.value <= Usd::ZERO) {
                let message =
                    "`limit_usd` must be more than 0; an agent that may spend nothing needs models that are free";
                self.problems.add(&limit.span, message);
            }
            let (Some(window), Some(limit)) = (raw.window, raw.limit_usd) else { continue };
            if !windows.insert(window.value) {
                self.problems.add(&window.span, "this agent has another budget for the same window");
            }
            budgets.push(BudgetConfig { window: window.value, limit: limit.value });
        }
        budgets
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
