//! From the raw file to a [`Config`]: fills secrets in, resolves names, and reports everything that does not fit together.

mod agents;
mod aliases;
mod budgets;
mod learning;
mod local;
mod prices;
mod providers;
mod rates;
mod secrets;
mod server;
mod shared;
mod store;
mod tasks;
mod velocity;
mod webhooks;

use crate::file::RawFile;
use crate::problem::{Problems, Span};
use crate::settings::{Config, Log};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What all checks share.
pub(crate) struct Check<'a> {
    pub(crate) problems: Problems<'a>,
    warnings: Vec<String>,
    /// Where relative paths start.
    folder: &'a Path,
    env: &'a dyn Fn(&str) -> Option<String>,
    /// Names of models, providers and prices whose definition has a problem, so that using them is not another one.
    broken: HashSet<String>,
}

impl<'a> Check<'a> {
    pub(crate) fn new(problems: Problems<'a>, folder: &'a Path, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { problems, warnings: Vec::new(), folder, env, broken: HashSet::new() }
    }

    /// The whole configuration. Meaningful only if no problem was found.
    pub(crate) fn file(&mut self, raw: RawFile) -> Config {
        let server = self.server(raw.server.value);
        let (local, models) = self.local(raw.local.value);
        let providers = self.providers(&raw.providers.value);
        let catalog = self.catalog(&models, &raw.providers.value, &providers, raw.prices.value);
        let names = self.names(raw.aliases.value, &models, &providers, &catalog);
        let aliases = self.aliases(&names);
        let tasks = self.tasks(raw.tasks.value, &names, &aliases);
        let learning = self.learning(&raw.learning.value);
        let velocity = self.velocity(&raw.velocity.value, None);
        let written = &raw.agents.value;
        let all = written.iter().filter_map(|agent| Some(agent.name.as_ref()?.value.value.0.clone())).collect();
        let teams = written.iter().filter_map(|agent| Some(agent.team.at.as_ref()?.value.0.clone())).collect();
        let (agents, own) = self.agents(raw.agents.value, server.admin_key.as_ref(), &aliases, &raw.velocity.value);
        let known = budgets::Known {
            agents: all,
            teams,
            aliases: &aliases,
            providers: &providers,
            local: &models,
            catalog: &catalog,
        };
        let budgets = self.budgets(raw.budgets.value, own, &known);
        let beside = raw.store.value.path.value.clone();
        let notify = self.notify(raw.notify.value, raw.webhooks.value, &beside);
        let shared = raw.shared.at.and_then(|shared| self.shared(shared.value));
        let store = self.store(raw.store.value, shared.as_ref().map(|shared| shared.gateway.as_str()));
        let log = raw.log.value;
        let mut config = Config {
            server,
            store,
            shared,
            log: Log { format: log.format.value, filter: log.filter.value },
            local,
            providers,
            aliases,
            tasks,
            learning,
            agents,
            budgets,
            notify,
            velocity,
            catalog: Arc::new(catalog),
            warnings: std::mem::take(&mut self.warnings),
        };
        let unknown = agents::models_that_match_nothing(&config);
        config.warnings.extend(unknown);
        config
    }

    fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }
}

/// Reports a name that was seen before. Returns whether this one is new.
fn is_first(
    seen: &mut HashMap<String, Span>,
    name: &str,
    span: &Span,
    what: impl std::fmt::Display,
    problems: &mut Problems<'_>,
) -> bool {
    if let Some(first) = seen.get(name) {
        let (line, _) = problems.place(first.start);
        problems.add(span, format!("{what} is defined twice, first in line {line}"));
        return false;
    }
    seen.insert(name.to_owned(), span.clone());
    true
}
