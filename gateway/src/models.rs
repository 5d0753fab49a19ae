//! `GET /v1/models`: what an agent may name.

use crate::app::App;
use crate::auth;
use crate::body::Body;
use crate::error::{ApiError, ok_json};
use crate::json::List;
use http::{HeaderMap, Response};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use tollkeeper_config::Config;
use tollkeeper_inference::ServerStatus;
use tollkeeper_policies::Agent;

/// All that this agent may name: aliases, local models, and the known models of usable providers. Where a provider has one price for all its
/// models, those are known that its server says it has.
pub(crate) fn list(app: &App, head: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let agent = auth::caller(app, head)?.agent;
    let config = app.config.load();
    let servers = app.fleet.servers();
    let data = names(&config, &servers, &agent).into_iter().map(|(id, owner)| Entry::new(id, owner)).collect();
    Ok(ok_json(json!(List::of(data)).to_string()))
}

/// One of them.
pub(crate) fn one(app: &App, head: &HeaderMap, id: &str) -> Result<Response<Body>, ApiError> {
    let agent = auth::caller(app, head)?.agent;
    let config = app.config.load();
    let resolved = config.resolve(id).map_err(ApiError::UnknownModel)?;
    if !agent.may_use(id) {
        return Err(ApiError::ModelForbidden { agent: agent.name.to_string(), model: id.to_owned() });
    }
    let owner = match (&resolved.alias, resolved.targets.first()) {
        (None, Some((tollkeeper_config::BackendId::Remote { provider, .. }, _))) => provider.to_string(),
        (None, Some(_)) => "local".to_owned(),
        _ => "tollkeeper".to_owned(),
    };
    Ok(ok_json(json!(Entry::new(id.to_owned(), owner)).to_string()))
}

fn names(config: &Config, servers: &[ServerStatus], agent: &Agent) -> Vec<(String, String)> {
    let aliases = config.aliases.keys().map(|name| (name.clone(), "tollkeeper".to_owned()));
    let local = config.local.models.keys().map(|name| (name.clone(), "local".to_owned()));
    let usable = |name: &str| config.providers.get(name).is_some_and(|provider| provider.disabled.is_none());
    let remote = config.catalog.models.keys().filter_map(|id| {
        let (provider, _) = id.split_once('/')?;
        usable(provider).then(|| (id.clone(), provider.to_owned()))
    });
    let priced = servers.iter().filter(|server| config.catalog.providers.contains_key(&*server.provider));
    let found = priced.flat_map(|server| {
        server.models.iter().map(|(model, _)| (format!("{}/{model}", server.provider), server.provider.to_string()))
    });
    let mut names: Vec<_> =
        aliases.chain(local).chain(remote).chain(found).filter(|(id, _)| agent.may_use(id)).collect();
    names.sort_unstable();
    names.dedup_by(|a, b| a.0 == b.0);
    names
}

/// OpenAI's model object.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Model")]
pub(crate) struct Entry {
    /// What requests name it by.
    id: String,
    /// Always `model`.
    object: &'static str,
    /// Always 0: when a model was made is not known here, but clients want the field.
    created: u64,
    /// The provider, `local`, or `tollkeeper` for aliases.
    owned_by: String,
}

impl Entry {
    fn new(id: String, owned_by: String) -> Self {
        Self { id, object: "model", created: 0, owned_by }
    }
}
