//! `/admin/v1`: what the operator can see and change while the gateway runs. Everything here needs the operator's key.

pub(crate) mod agents;
pub(crate) mod budgets;
pub(crate) mod learning;
pub(crate) mod models;
pub(crate) mod operate;
pub(crate) mod velocity;

use crate::app::App;
use crate::body::Body;
use crate::error::ApiError;
use http::{Request, Response};
use hyper::body::Incoming;
use schemars::JsonSchema;
use serde::Serialize;
use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use tollkeeper_config::Scope;
use tollkeeper_inference::LocalAction;

/// Who did it, in the ledger.
pub(crate) const OPERATOR: &str = "operator";

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Agents,
    NewAgent,
    Agent,
    ChangeAgent,
    RemoveAgent,
    Keys,
    NewKey,
    ChangeKey,
    RemoveKey,
    RotateKey,
    Teams,
    Budgets,
    NewBudget,
    Budget,
    ChangeBudget,
    RemoveBudget,
    Pauses,
    Pause(Scope),
    Resume(Scope),
    Velocities,
    Velocity(Scope),
    Hold(Scope),
    Release(Scope),
    Learning,
    Unlearn,
    Spend,
    FlushLedger,
    Backends,
    Reload,
    LocalModels,
    LocalModel(LocalAction),
}

/// It was done.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Done {
    done: bool,
}

impl Default for Done {
    fn default() -> Self {
        Self { done: true }
    }
}

/// Serves one request of the operator, whose key has been looked at.
///
/// # Errors
/// Whatever stops it.
pub(crate) async fn serve(
    app: &Arc<App>,
    call: Call,
    names: &[Cow<'_, str>],
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let name = |place: usize| names.get(place).map_or("", |name| &**name);
    let (head, body) = request.into_parts();
    match call {
        Call::Agents => Ok(agents::list(app)),
        Call::NewAgent => agents::create(app, body).await,
        Call::Agent => agents::one(app, name(0)),
        Call::ChangeAgent => agents::change(app, name(0), body).await,
        Call::RemoveAgent => agents::remove(app, name(0)).await,
        Call::Keys => agents::keys(app, name(0)),
        Call::NewKey => agents::create_key(app, name(0), body).await,
        Call::ChangeKey => agents::change_key(app, name(0), name(1), body).await,
        Call::RemoveKey => agents::remove_key(app, name(0), name(1)).await,
        Call::RotateKey => agents::rotate_key(app, name(0), name(1), body).await,
        Call::Teams => Ok(agents::teams(app)),
        Call::Budgets => Ok(budgets::list(app)),
        Call::NewBudget => budgets::create(app, body).await,
        Call::Budget => budgets::one(app, name(0)),
        Call::ChangeBudget => budgets::change(app, name(0), body).await,
        Call::RemoveBudget => budgets::remove(app, name(0)).await,
        Call::Pauses => Ok(operate::pauses(app)),
        Call::Pause(scope) => operate::pause(app, scope, name(0), body).await,
        Call::Resume(scope) => operate::resume(app, scope, name(0)).await,
        Call::Velocities => Ok(velocity::list(app)),
        Call::Velocity(scope) => velocity::one(app, scope, name(0)),
        Call::Hold(scope) => velocity::hold(app, scope, name(0), body).await,
        Call::Release(scope) => velocity::release(app, scope, name(0)).await,
        Call::Learning => Ok(learning::report(app)),
        Call::Unlearn => learning::reset(app, head.uri.query().unwrap_or("")).await,
        Call::Spend => operate::spend(app, head.uri.query().unwrap_or("")).await,
        Call::FlushLedger => operate::flush(app).await,
        Call::Backends => Ok(operate::backends(app)),
        Call::Reload => operate::reload(app).await,
        Call::LocalModels => Ok(models::models(app)),
        Call::LocalModel(action) => models::act(app, name(0), action).await,
    }
}

/// Does something whole, even if the client leaves meanwhile: what is on record must also hold.
async fn whole<T, F>(app: &Arc<App>, work: impl FnOnce(Arc<App>) -> F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    tokio::spawn(work(app.clone())).await.unwrap_or(Err(ApiError::Panicked))
}
