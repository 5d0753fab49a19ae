//! What ends a request from outside: its run is cancelled or has used up its time, its agent is killed, or its key is no longer good.

use crate::app::App;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tollkeeper_config::{Owner, Scope};
use tollkeeper_policies::{Caller, Denied, Run, Stop};

/// Resolves when the request must end, with the reason.
pub(crate) type Cut = Pin<Box<dyn Future<Output = Denied> + Send>>;

/// Resolves when the caller is killed or loses its key, or its run or one above it ends.
pub(crate) fn cut(app: &App, caller: &Caller) -> Cut {
    let (killed, key_lost) = (app.policies.killed(caller), app.policies.key_lost(caller));
    let killed = async move {
        tokio::select! {
            denied = killed => denied,
            denied = key_lost => denied,
        }
    };
    let Some(run) = caller.run.clone() else { return Box::pin(killed) };
    let clock = app.clock.clone();
    Box::pin(async move {
        let over = async {
            // Its time may be extended meanwhile.
            while let Some(ends) = run.ends() {
                match Duration::try_from(ends.duration_since(clock.now())) {
                    Ok(left) if !left.is_zero() => tokio::time::sleep(left).await,
                    _ => return,
                }
            }
            std::future::pending().await
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
