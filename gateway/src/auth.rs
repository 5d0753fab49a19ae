//! Whose request it is: the key in the head becomes an agent, or the operator.

use crate::app::App;
use crate::error::ApiError;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::sync::Arc;
use subtle::ConstantTimeEq;
use tollkeeper_policies::Agent;

/// The headers a key may come in when there is no `Authorization`: Anthropic's and Azure's clients use these.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "api-key"];

/// The agent that this head's key belongs to.
///
/// # Errors
/// There is no key, or nobody has it.
pub(crate) fn agent(app: &App, head: &HeaderMap) -> Result<Arc<Agent>, ApiError> {
    app.policies.authenticate(key(head)?).ok_or(ApiError::BadKey)
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

fn key(head: &HeaderMap) -> Result<&str, ApiError> {
    let Some(authorization) = head.get(AUTHORIZATION) else {
        let value = KEY_HEADERS.iter().find_map(|name| head.get(*name)).ok_or(ApiError::NoKey)?;
        return value.to_str().map_err(|_| ApiError::BadKey);
    };
    let (scheme, key) = authorization.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(ApiError::BadKey)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(key.trim()) } else { Err(ApiError::BadKey) }
}
