//! Velocity stages that a person has set: kept beside the ledger, so that they hold over a restart.

use crate::agent::{Agent, Roster};
use crate::control::{carried_out, owner_id, parse_owner};
use crate::denied::Denied;
use crate::event::What;
use crate::run::Runs;
use crate::store::{StateChange, Store, StoreError};
use crate::velocity::{Level, Standing};
use crate::watches::Watches;
use crate::{Policies, Shared};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::sync::Arc;
use tollkeeper_config::{Owner, Scope};

/// The kind of state in the store.
pub(crate) const HOLD: &str = "velocity_hold";

/// A stage as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    stage: String,
    /// Microseconds since 1970; without it, until it is released.
    until: Option<i64>,
}

/// Takes over what was set before a restart. What has ended meanwhile, or is of somebody who is gone, holds no more.
pub(crate) fn restore(
    store: &mut dyn Store,
    roster: &Roster,
    runs: &Runs,
    watches: &Watches,
    now: i64,
) -> Result<(), StoreError> {
    for (id, body) in store.state(HOLD)? {
        let unreadable = || StoreError(format!("nothing can be held as {id}: {body}").into());
        let kept: Kept = serde_json::from_str(&body).map_err(|_| unreadable())?;
        let named = Level::NAMES.into_iter().find(|(name, _)| *name == kept.stage);
        let (owner, (_, level)) = parse_owner(&id).zip(named).ok_or_else(unreadable)?;
        if let Some(agent) = agent_of(roster, runs, &owner) {
            watches.hold(&owner, &agent, now, level, kept.until);
        }
    }
    Ok(())
}

/// The agent that is meant, or whose run it is.
fn agent_of(roster: &Roster, runs: &Runs, owner: &Owner) -> Option<Arc<Agent>> {
    let name = match owner.scope {
        Scope::Agent => owner.id.clone(),
        Scope::Run => runs.get(&owner.id)?.agent.clone(),
        _ => return None,
    };
    roster.named(&name).cloned()
}

/// What takes a hold out of the store.
pub(crate) fn gone(owner: &Owner, now: i64) -> StateChange {
    StateChange { kind: HOLD, id: owner_id(owner).into(), body: None, changed: now }
}

impl Policies {
    /// Sets the velocity stage of an agent or run by hand, until a moment, [`release`](Self::release),
    /// [`resume`](Self::resume), or another is set: [`Level::Normal`] lets everything pass. It holds over a restart. One at
    /// which requests go on ends a kill by traffic; no stage ends a pause that somebody made. False when there is no such
    /// agent or run.
    ///
    /// # Errors
    /// The ledger cannot record it; then nothing has changed.
    pub async fn hold(
        &self,
        actor: &str,
        owner: &Owner,
        level: Level,
        until: Option<Timestamp>,
    ) -> Result<bool, Denied> {
        let agent = agent_of(&self.0.roster.load(), &self.0.runs(), owner);
        let Some(agent) = agent else { return Ok(false) };
        let (this, actor, owner): (Self, Arc<str>, Owner) = (self.clone(), actor.into(), owner.clone());
        carried_out(async move {
            let _alone = this.0.killing.lock().await;
            let (now, id) = (this.0.now(), Arc::<str>::from(owner_id(&owner)));
            let kept = Kept { stage: level.name().to_owned(), until: until.map(Timestamp::as_microsecond) };
            let note = json!({"held": &*id, "stage": level.name(), "until": until.map(|until| until.to_string())});
            let body = Some(json!(kept).to_string().into());
            let mut state = vec![StateChange { kind: HOLD, id: id.clone(), body, changed: now }];
            let kill = this.0.kept_kill(&owner, now).filter(|_| level < Level::Paused);
            let lets_go = kill.is_some();
            state.extend(kill);
            this.0.ledger.change(now, (&actor, &id), note.to_string().into(), state).await?;
            let changed = this.0.watches.hold(&owner, &agent, now, level, kept.until);
            this.0.let_go(&owner, lets_go);
            this.0.tell_velocity(changed.into_iter().collect());
            Ok(true)
        })
        .await
    }

    /// Ends what [`hold`](Self::hold) set, and a kill by traffic before that: from now on its traffic decides, from normal.
    /// Returns whether something was set.
    ///
    /// # Errors
    /// The ledger cannot record it; then nothing has changed.
    pub async fn release(&self, actor: &str, owner: &Owner) -> Result<bool, Denied> {
        if !self.0.watches.is_held(owner) {
            return Ok(false);
        }
        let (this, actor, owner): (Self, Arc<str>, Owner) = (self.clone(), actor.into(), owner.clone());
        carried_out(async move {
            let _alone = this.0.killing.lock().await;
            let (now, id) = (this.0.now(), owner_id(&owner));
            let note = json!({"released": id});
            let kill = this.0.kept_kill(&owner, now);
            let lets_go = kill.is_some();
            let state = kill.into_iter().chain([gone(&owner, now)]).collect();
            this.0.ledger.change(now, (&actor, &id), note.to_string().into(), state).await?;
            let (was, changed) = this.0.watches.release(&owner, now);
            this.0.let_go(&owner, lets_go);
            this.0.tell_velocity(changed.into_iter().collect());
            Ok(was)
        })
        .await
    }

    /// How every agent stands, and every run that is watched.
    pub fn standings(&self) -> Vec<(Owner, Standing)> {
        self.0.watches.standings(self.0.roster.load().agents(), self.0.now())
    }

    /// How many agents and runs have a stage that was set by hand.
    pub fn held(&self) -> usize {
        self.0.watches.held(self.0.now())
    }

    /// Holds whose time is over are kept no longer.
    pub(crate) async fn forget_holds(&self) {
        let now = self.0.now();
        let ended = self.0.watches.ended_holds(now);
        if !ended.is_empty() {
            // What stays in the store is found to have ended at the next start.
            _ = self.0.ledger.keep(ended.iter().map(|owner| gone(owner, now)).collect()).await;
        }
    }
}

impl Shared {
    /// What kept a kill by traffic has ended, if it was there.
    fn let_go(&self, owner: &Owner, was_kept: bool) {
        if was_kept {
            self.unpause(owner);
            self.tell_of(owner, What::Resumed(owner.clone()));
        }
    }
}
