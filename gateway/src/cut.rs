//! What ends a request from outside: its run is cancelled or has used up its time, or its agent is killed.

use crate::app::App;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_config::{Owner, Scope};
use tollkeeper_policies::{Caller, Denied, Run, Stop};

/// Resolves when the request must end, with the reason.
pub(crate) type Cut = Pin<Box<dyn Future<Output = Denied> + Send>>;

/// Resolves when the caller is killed, or its run or one above it ends.
pub(crate) fn cut(app: &App, caller: &Caller) -> Cut {
    let killed = app.policies.killed(caller);
    let Some(run) = caller.run.clone() else { return Box::pin(killed) };
    let over = run.ends().map(|ends| {
        let left = Duration::try_from(ends.duration_since(app.clock.now())).unwrap_or_default();
        Instant::now() + left
    });
    Box::pin(async move {
        let over = async {
            match over {
                Some(over) => tokio::time::sleep_until(over).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            denied = run.ended() => denied,
            denied = killed => denied,
            () = over => is_over(&run),
        }
    })
}

fn is_over(run: &Run) -> Denied {
    Denied::Stopped { who: Owner::new(Scope::Run, run.id.clone()), stop: Stop::Over }
}
