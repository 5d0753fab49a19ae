//! Whose request it is: the key in the head becomes an agent, or the operator.

use crate::app::App;
use crate::error::ApiError;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tollkeeper_policies::{Caller, Run};

/// The headers a key may come in when there is no `Authorization`: Anthropic's and Azure's clients use these.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

/// Whom this head's key belongs to: an agent, or one of its runs.
///
/// # Errors
/// There is no key, or nobody has it, or it is no longer good.
pub(crate) fn caller(app: &App, head: &HeaderMap) -> Result<Caller, ApiError> {
    app.policies.authenticate(key(head)?).map_err(ApiError::KeyRefused)
}

/// The same for who wants an answer of a model.
///
/// # Errors
/// The same, or the key is not good for that.
pub(crate) fn asker(app: &App, head: &HeaderMap) -> Result<Caller, ApiError> {
    let caller = caller(app, head)?;
    if caller.scopes.infer { Ok(caller) } else { Err(ApiError::ScopeMissing("infer")) }
}

/// Whether this head carries the operator's key.
///
/// # Errors
/// It does not, or no such key is configured.
pub(crate) fn operator(app: &App, head: &HeaderMap) -> Result<(), ApiError> {
    let config = app.config.load();
    let expected = config.server.admin_key.as_ref().ok_or(ApiError::NotOperator)?;
    let same: bool = key(head)?.as_bytes().ct_eq(expected.expose().as_bytes()).into();
    if same { Ok(()) } else { Err(ApiError::NotOperator) }
}

/// Who asks for something about runs.
pub(crate) enum Who {
    Operator,
    Caller(Caller),
}

impl Who {
    /// The name in the ledger.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Operator => "operator",
            Self::Caller(caller) => caller.run.as_ref().map_or(&*caller.agent.name, |run| &*run.id),
        }
    }

    /// The run whose key was used.
    pub(crate) fn run(&self) -> Option<&Arc<Run>> {
        match self {
            Self::Operator => None,
            Self::Caller(caller) => caller.run.as_ref(),
        }
    }
}

/// Whose key this head carries.
///
/// # Errors
/// There is no key, or nobody has it, or it is not good for runs.
pub(crate) fn who(app: &App, head: &HeaderMap) -> Result<Who, ApiError> {
    if operator(app, head).is_ok() {
        return Ok(Who::Operator);
    }
    let caller = caller(app, head)?;
    if caller.scopes.runs { Ok(Who::Caller(caller)) } else { Err(ApiError::ScopeMissing("runs")) }
}

fn key(head: &HeaderMap) -> Result<&str, ApiError> {
    let Some(authorization) = head.get(AUTHORIZATION) else {
        let value = KEY_HEADERS.iter().find_map(|name| head.get(*name)).ok_or(ApiError::NoKey)?;
        return value.to_str().map_err(|_| ApiError::BadKey);
    };
    let (scheme, key) = authorization.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(ApiError::BadKey)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(key.trim()) } else { Err(ApiError::BadKey) }
}
