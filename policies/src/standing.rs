//! Whether the key that a request came with is still good while the request runs.

use crate::Policies;
use crate::agent::{Caller, KeyRefused};
use crate::denied::{Denied, Stop};
use std::time::Duration;

impl Policies {
    /// Resolves when the caller's key, or one that its run or a run above it was made with, is no longer good: it has expired, was disabled or taken
    /// away, or its agent was.
    pub fn key_lost(&self, caller: &Caller) -> impl Future<Output = Denied> + Send + use<> {
        let (shared, caller) = (self.0.clone(), caller.clone());
        async move {
            let mut changed = shared.roster_changed.subscribe();
            loop {
                let now = shared.clock.now().as_microsecond();
                let until = match shared.standing(&caller, now) {
                    Ok(until) => until,
                    Err(refused) => return Denied::Stopped { who: caller.owner(), stop: Stop::Key(refused) },
                };
                let left = until.map(|at| Duration::from_micros(at.saturating_sub(now).unsigned_abs()));
                tokio::select! {
                    // The sender is in `shared`, and so is there.
                    _ = changed.changed() => {}
                    () = tokio::time::sleep(left.unwrap_or_default()), if left.is_some() => {}
                }
            }
        }
    }
}

impl crate::Shared {
    /// Until when the caller's key is good, if that is known (microseconds since 1970).
    fn standing(&self, caller: &Caller, now: i64) -> Result<Option<i64>, KeyRefused> {
        let roster = self.roster.load();
        let (_, until) = roster.standing((&caller.agent.name, caller.key), caller.run.as_deref(), now)?;
        Ok(until)
    }
}
