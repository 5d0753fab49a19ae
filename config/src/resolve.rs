//! From what a client names to the backends that may answer.

use crate::catalog::{Catalog, ModelFacts};
use crate::problem::did_you_mean;
use crate::settings::{Alias, BackendId, Config};
use crate::strategy::Strategy;
use std::sync::Arc;

/// What a model name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The alias it named; `None` when it named a backend.
    pub alias: Option<Arc<Alias>>,
    /// Backends in the alias's order, each with its tier; empty for an alias without a usable target.
    pub targets: Vec<(BackendId, u8)>,
    /// How to order them.
    pub strategy: Strategy,
}

/// A name that is neither an alias nor a model with a known price.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model `{model}` does not exist{hint}")]
pub struct UnknownModel {
    /// What was asked for.
    pub model: String,
    /// What to do about it, ready to follow the sentence; may be empty.
    pub hint: String,
}

impl Catalog {
    /// What is known of a backend; `None` when it has no known price.
    pub fn facts(&self, id: &BackendId) -> Option<Arc<ModelFacts>> {
        let by_provider = || match id {
            BackendId::Local(_) => None,
            BackendId::Remote { provider, .. } => self.providers.get(&**provider),
        };
        self.models.get(&id.to_string()).or_else(by_provider).cloned()
    }
}

impl Config {
    /// What is known of a backend; `None` when it has no known price.
    pub fn facts(&self, id: &BackendId) -> Option<Arc<ModelFacts>> {
        self.catalog.facts(id)
    }

    /// The backends behind an alias, a local model's name or `provider/model`, tried in this order.
    pub fn resolve(&self, model: &str) -> Result<Resolved, UnknownModel> {
        if let Some(alias) = self.aliases.get(model) {
            let (targets, strategy) = (alias.targets.clone(), alias.strategy);
            return Ok(Resolved { alias: Some(alias.clone()), targets, strategy });
        }
        match self.backend(model) {
            Some(id) if self.facts(&id).is_some() => {
                Ok(Resolved { alias: None, targets: vec![(id, 0)], strategy: Strategy::Ordered })
            }
            unpriced => Err(UnknownModel { model: model.to_owned(), hint: self.hint(model, unpriced.is_some()) }),
        }
    }

    fn backend(&self, model: &str) -> Option<BackendId> {
        if self.local.models.contains_key(model) {
            return Some(BackendId::Local(model.into()));
        }
        let (provider, name) = model.split_once('/').filter(|(_, name)| !name.is_empty())?;
        let configured = self.providers.contains_key(provider);
        configured.then(|| BackendId::Remote { provider: provider.into(), model: name.into() })
    }

    fn hint(&self, model: &str, unpriced: bool) -> String {
        // Comparing is quadratic in the length of the name, which a client chooses.
        let word = if model.len() <= 128 { model } else { "" };
        let near = did_you_mean(word, self.aliases.keys().chain(self.catalog.models.keys()).map(String::as_str));
        match (near.is_empty(), unpriced) {
            (false, _) => near,
            (true, true) => {
                "; its provider is configured, but it has no known price: ask the operator to add one".to_owned()
            }
            (true, false) => "; GET /v1/models lists those that do".to_owned(),
        }
    }
}
