//! From what a client names to the backends that may answer.

use crate::catalog::ModelFacts;
use crate::settings::{Alias, BackendId, Config, Strategy};
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

impl Config {
    /// What is known of a backend; `None` when it has no known price.
    pub fn facts(&self, id: &BackendId) -> Option<Arc<ModelFacts>> {
        self.catalog.models.get(&id.to_string()).cloned()
    }

    /// The backends behind an alias, a local model's name or `provider/model`.
    pub fn resolve(&self, model: &str) -> Result<Resolved, UnknownModel> {
        if let Some(alias) = self.aliases.get(model) {
            let (targets, strategy) = (alias.targets.clone(), alias.strategy);
            return Ok(Resolved { alias: Some(alias.clone()), targets, strategy });
        }
        Err(UnknownModel { model: model.to_owned(), hint: String::new() })
    }
}
