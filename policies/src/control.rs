//! What people and agents change while the gateway runs: pauses and runs. Each change is in the ledger's chain, together
//! with the state that it leaves, before it is reported as done.

use crate::accounts::Accounts;
use crate::agent::{Caller, Roster};
use crate::denied::{Blocked, Denied, Stop};
use crate::event::{Event, What};
use crate::holds::{self, HOLD};
use crate::pauses::Pauses;
use crate::run::{NewRun, Run, RunEnd, RunError, RunLimits, RunView, Runs, Saved};
use crate::store::{StateChange, Store, StoreError};
use crate::velocity::Level;
use crate::watches::{Changed, Watches};
use crate::{Policies, Shared};
use serde_json::json;
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::broadcast;
use tollkeeper_config::{BackendId, OnLimit, Owner, Scope};

/// The kinds of state that are kept in the store.
const RUN: &str = "run";
pub(crate) const PAUSE: &str = "pause";
const VELOCITY: &str = "velocity";

/// The reason of a pause that keeps a kill by traffic over a restart, by which it is told from those that people make.
const KILLED: &str = "it spent so fast that it was stopped";

/// Takes runs and pauses over from the store.
pub(crate) fn restore(
    store: &mut dyn Store,
    runs: &mut Runs,
    accounts: &mut Accounts,
    pauses: &Pauses,
) -> Result<(), StoreError> {
    let mut saved = Vec::new();
    for (id, body) in store.state(RUN)? {
        let run: Saved =
            serde_json::from_str(&body).map_err(|cause| StoreError(format!("run {id}: {cause}").into()))?;
        saved.push((id, run));
    }
    runs.restore(accounts, saved);
    for (id, body) in store.state(PAUSE)? {
        let owner = parse_owner(&id).ok_or_else(|| StoreError(format!("nobody can be paused as {id}").into()))?;
        pauses.pause(&owner, body);
    }
    Ok(())
}

/// A run that has ended, how, and who ended it, while that is not on record.
pub(crate) type Unrecorded = (Arc<Run>, RunEnd, Arc<str>);

/// Carries a change out to its end, also when whoever asked for it has gone: what is on record and what holds must not differ.
pub(crate) async fn carried_out<T: Send + 'static>(change: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(change).await {
        Ok(done) => done,
        Err(broken) => std::panic::resume_unwind(broken.into_panic()),
    }
}

/// Takes over what was learned of agents.
pub(crate) fn restore_baselines(store: &mut dyn Store, roster: &Roster, watches: &Watches) -> Result<(), StoreError> {
    for (name, body) in store.state(VELOCITY)? {
        // One that cannot be read, or of an agent that is gone, is learned anew.
        if let (Some(agent), Ok(baseline)) = (roster.named(&name), serde_json::from_str(&body)) {
            watches.restore(agent, &baseline);
        }
    }
    Ok(())
}

pub(crate) fn owner_id(owner: &Owner) -> String {
    format!("{}/{}", owner.scope.name(), owner.id)
}

/// What gateways that share their budgets know a pause by.
pub(crate) fn mark_of(owner: &Owner) -> Arc<str> {
    format!("{PAUSE}:{}", owner_id(owner)).into()
}

/// Whose pause that is.
pub(crate) fn owner_of_mark(mark: &str) -> Option<Owner> {
    parse_owner(mark.strip_prefix(PAUSE)?.strip_prefix(':')?)
}

pub(crate) fn parse_owner(text: &str) -> Option<Owner> {
    let (scope, id) = text.split_once('/')?;
    let scope = Scope::ALL.into_iter().find(|known| known.name() == scope)?;
    Some(Owner::new(scope, id))
}

impl Policies {
    /// Everything that happens from now on. A listener that is slow misses the oldest.
    pub fn listen(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.events.listen()
    }

    /// Refuses everything that the owner asks for from now on, until [`resume`](Self::resume). What is in flight goes on.
    ///
    /// # Errors
    /// The ledger cannot record it; then nothing has changed.
    pub async fn pause(&self, actor: &str, owner: &Owner, reason: &str) -> Result<(), Denied> {
        let (this, actor, owner, reason): (Self, Arc<str>, Owner, Arc<str>) =
            (self.clone(), actor.into(), owner.clone(), reason.into());
        carried_out(async move {
            let note = json!({"paused": owner_id(&owner), "reason": &*reason});
            let id: Arc<str> = owner_id(&owner).into();
            this.0.record(&actor, &id, note, PAUSE, id.clone(), Some(reason.clone())).await?;
            let is_new = this.0.pauses.pause(&owner, reason.clone());
            if let Some(sharing) = this.0.sharing.as_ref().filter(|_| owner.scope != Scope::Run) {
                sharing.paused(&owner);
            }
            if is_new {
                this.0.tell_of(&owner, What::Stopped(owner.clone(), Stop::Paused { reason }));
            }
            Ok(())
        })
        .await
    }

    /// Ends a pause. Returns whether there was one.
    ///
    /// # Errors
    /// The ledger cannot record it; then nothing has changed.
    pub async fn resume(&self, actor: &str, owner: &Owner) -> Result<bool, Denied> {
        let (this, actor, owner): (Self, Arc<str>, Owner) = (self.clone(), actor.into(), owner.clone());
        carried_out(async move {
            let _alone = this.0.killing.lock().await;
            let id: Arc<str> = owner_id(&owner).into();
            let now = this.0.now();
            let mut state = vec![StateChange { kind: PAUSE, id: id.clone(), body: None, changed: now }];
            state.extend(this.0.watches.is_held(&owner).then(|| holds::gone(&owner, now)));
            this.0.ledger.change(now, (&actor, &id), json!({"resumed": &*id}).to_string().into(), state).await?;
            let resumed = this.0.watches.resume(&owner, this.0.now());
            let was = this.0.unpause(&owner) || resumed.is_some();
            if was {
                this.0.tell_of(&owner, What::Resumed(owner.clone()));
            }
            Ok(was)
        })
        .await
    }

    /// Who was killed stays so over a restart, until somebody resumes it.
    async fn keep_kills(&self) {
        let known = self.pauses();
        for owner in self.0.watches.killed(self.0.now()) {
            if known.iter().any(|(paused, _)| *paused == owner) {
                continue;
            }
            let this = self.clone();
            carried_out(async move {
                let _alone = this.0.killing.lock().await;
                // Not one whom somebody has let go meanwhile.
                if this.0.watches.killed(this.0.now()).contains(&owner) {
                    // Tried again with the next tick; until then it is refused as killed.
                    _ = this.pause("tollkeeper", &owner, KILLED).await;
                }
            })
            .await;
        }
    }

    /// Keeps what was learned of agents for the next start.
    pub(crate) async fn save_baselines(&self) {
        let now = self.0.now();
        let state: Vec<StateChange> = self
            .0
            .watches
            .baselines()
            .into_iter()
            .map(|(owner, baseline)| StateChange {
                kind: VELOCITY,
                id: owner.id,
                body: Some(json!(baseline).to_string().into()),
                changed: now,
            })
            .collect();
        if state.is_empty() {
            return;
        }
        if let Err(denied) = self.0.ledger.keep(state).await {
            tracing::warn!(%denied, "what was learned of the agents' spending could not be kept");
        }
    }

    /// Why nobody may name this alias or model now; also when everything is paused.
    pub fn paused_alias(&self, alias: &str) -> Option<Denied> {
        self.0.pauses.check_target(None, Some(alias)).err()
    }

    /// Why nobody may ask this backend now: its model, its provider or everything is paused.
    pub fn paused_backend(&self, backend: &BackendId) -> Option<Denied> {
        self.0.pauses.check_target(Some(backend), None).err()
    }

    /// Who is paused, and why.
    pub fn pauses(&self) -> Vec<(Owner, Arc<str>)> {
        self.0.pauses.all()
    }

    /// Makes a run of an agent. Returns it with its key, which is shown this once.
    ///
    /// # Errors
    /// No such agent, a parent that has ended or cannot pay, or a ledger that cannot record it.
    pub async fn create_run(&self, actor: &str, agent: &str, new: NewRun) -> Result<(RunView, String), RunError> {
        let known = self.0.roster.load().named(agent).cloned();
        let agent = known.ok_or_else(|| RunError::NoAgent(agent.to_owned()))?;
        let (this, actor): (Self, Arc<str>) = (self.clone(), actor.into());
        let made = carried_out(async move {
            let (run, key) = {
                let mut runs = this.0.runs_mut();
                let mut accounts = this.0.accounts();
                let now = accounts.now(&this.0.clock);
                runs.create(&mut accounts, agent.name.clone(), new, now)?
            };
            if let Err(denied) = this.0.record_runs(&actor, "created", std::slice::from_ref(&run)).await {
                let mut runs = this.0.runs_mut();
                runs.forget(&mut this.0.accounts(), &run);
                return Err(RunError::from(denied));
            }
            Ok((run, key))
        });
        let (run, key) = made.await?;
        Ok((self.view(&run), key))
    }

    /// The run of that id, if it has not been forgotten.
    pub fn run(&self, id: &str) -> Option<RunView> {
        let run = self.0.runs().get(id).cloned();
        run.map(|run| self.view(&run))
    }

    /// The wanted ones of all runs that are open or ended within the last day, the newest first.
    pub fn runs(&self, wanted: impl Fn(&Arc<Run>) -> bool) -> Vec<RunView> {
        let all: Vec<Arc<Run>> = self.0.runs().all().filter(|run| wanted(run)).cloned().collect();
        let mut views: Vec<RunView> = all.iter().map(|run| self.view(run)).collect();
        views.sort_by_key(|view| (std::cmp::Reverse(view.created), view.run.id.clone()));
        views
    }

    /// Runs that have not ended.
    pub fn open_runs(&self) -> usize {
        self.0.runs().open().len()
    }

    /// The velocity stage of every agent and run that is watched.
    pub fn stages(&self) -> Vec<(Owner, Level)> {
        self.0.watches.levels(self.0.now())
    }

    /// Adds to the limits of a run.
    ///
    /// # Errors
    /// It has ended, the run above it cannot pay, or the ledger cannot record it.
    pub async fn extend_run(&self, actor: &str, run: &Arc<Run>, more: &RunLimits) -> Result<RunView, RunError> {
        let (this, actor, extended, more): (Self, Arc<str>, _, _) = (self.clone(), actor.into(), run.clone(), *more);
        let done = carried_out(async move {
            let before = {
                let runs = this.0.runs();
                let mut accounts = this.0.accounts();
                let now = accounts.now(&this.0.clock);
                runs.extend(&mut accounts, &extended, &more, now)?
            };
            if let Err(denied) = this.0.record_runs(&actor, "extended", std::slice::from_ref(&extended)).await {
                let runs = this.0.runs();
                let mut accounts = this.0.accounts();
                let now = accounts.now(&this.0.clock);
                runs.shorten(&mut accounts, &extended, &before, now);
                return Err(RunError::from(denied));
            }
            Ok(())
        });
        done.await?;
        Ok(self.view(run))
    }

    /// Ends a run and all below it at once: nothing more is admitted, and what is in flight is cut. Ending one that has
    /// ended does nothing.
    ///
    /// # Errors
    /// The ledger cannot record it now; the run has ended all the same, and it is tried again.
    pub async fn cancel_run(&self, actor: &str, run: &Arc<Run>) -> Result<RunView, RunError> {
        self.cancel_runs(actor, |other| other.id == run.id).await?;
        Ok(self.view(run))
    }

    /// The same for all these runs.
    pub(crate) async fn cancel_runs(&self, actor: &str, wanted: impl Fn(&Run) -> bool) -> Result<(), Denied> {
        let ended = {
            let mut runs = self.0.runs_mut();
            let roots = runs.open().filter(|run| wanted(run)).map(|run| run.id.clone()).collect();
            let mut accounts = self.0.accounts();
            let now = accounts.now(&self.0.clock);
            runs.end(&mut accounts, &roots, RunEnd::Cancelled, now)
        };
        self.0.ended(&ended, RunEnd::Cancelled, actor);
        let this = self.clone();
        carried_out(async move { this.0.record_ends().await }).await
    }

    /// Ends the runs whose time is up; to be called every second or so.
    pub async fn tick(&self) {
        let (ended, forgotten) = {
            let mut runs = self.0.runs_mut();
            let mut accounts = self.0.accounts();
            let now = accounts.now(&self.0.clock);
            runs.tick(&mut accounts, now)
        };
        self.0.tell_velocity(self.0.watches.tick(self.0.now()));
        self.0.ended(&ended, RunEnd::Over, "tollkeeper");
        self.keep_kills().await;
        self.forget_holds().await;
        if let Err(denied) = self.0.record_ends().await {
            tracing::warn!(%denied, "the end of runs cannot be recorded now; they have ended all the same");
        }
        if !forgotten.is_empty() {
            let gone = |kind, id: Arc<str>| StateChange { kind, id, body: None, changed: 0 };
            let state = forgotten.iter().flat_map(|run| {
                let owner: Arc<str> = owner_id(&run.owner).into();
                [gone(RUN, run.id.clone()), gone(PAUSE, owner.clone()), gone(HOLD, owner)]
            });
            // What cannot be removed now is found ended at the next start, and forgotten then.
            _ = self.0.ledger.keep(state.collect()).await;
            for run in &forgotten {
                self.0.watches.forget(&run.owner);
                self.0.pauses.resume(&run.owner);
            }
        }
    }

    /// What follows from a refusal: it is told, and a budget that asks pauses whose it is.
    pub(crate) async fn refused(&self, caller: &Caller, denied: &Denied) {
        let Denied::Budget(blocked) = denied else { return };
        // One that degrades is told of by whoever finds another target, or none.
        if blocked.on_limit != OnLimit::Degrade {
            self.0.tell(caller, What::Denied(blocked.clone()));
        }
        if asks(blocked, 0) {
            self.ask(caller, blocked).await;
        }
    }

    /// The same when a budget cuts an answer of the caller that holds so much of it, in the limit's measure.
    pub(crate) fn cut_short(&self, caller: &Caller, blocked: &Blocked, held: i128) {
        self.0.tell(caller, What::Denied(Box::new(blocked.clone())));
        // The cut waits for no record of the pause; without a runtime there is nobody to go on either.
        if asks(blocked, held)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let (this, caller, blocked) = (self.clone(), caller.clone(), blocked.clone());
            runtime.spawn(async move { this.ask(&caller, &blocked).await });
        }
    }

    /// Pauses the run or the agent until somebody says that it may go on.
    async fn ask(&self, caller: &Caller, blocked: &Blocked) {
        let whose = match blocked.owner.scope {
            Scope::Run => blocked.owner.clone(),
            _ => Owner::new(Scope::Agent, caller.agent.name.clone()),
        };
        let reason = format!("it asks whether it may go on: {blocked}");
        // Unrecorded, it is refused all the same: by the budget, and by the ledger that is down.
        _ = self.pause("tollkeeper", &whose, &reason).await;
    }

    fn view(&self, run: &Arc<Run>) -> RunView {
        Runs::view(&self.0.accounts(), run)
    }
}

/// Whether a budget that could not pay wants to be asked; `held` is what the one that asks for more has of it already.
fn asks(blocked: &Blocked, held: i128) -> bool {
    // What only others' leases keep it from, it may get when they have ended.
    let is_spent = blocked.spent.saturating_add(held).saturating_add(blocked.estimate) > blocked.limit.units();
    blocked.on_limit == OnLimit::Ask && blocked.kept_pct.is_none() && is_spent
}

impl Shared {
    /// What takes the record of a kill by traffic out of the store, if there is one.
    pub(crate) fn kept_kill(&self, owner: &Owner, now: i64) -> Option<StateChange> {
        let gone = || StateChange { kind: PAUSE, id: owner_id(owner).into(), body: None, changed: now };
        self.pauses.is_because(owner, KILLED).then(gone)
    }

    /// A pause has ended. Returns whether there was one.
    pub(crate) fn unpause(&self, owner: &Owner) -> bool {
        let was = self.pauses.resume(owner);
        if let Some(sharing) = &self.sharing {
            sharing.resumed(owner);
        }
        was
    }

    pub(crate) fn runs(&self) -> RwLockReadGuard<'_, Runs> {
        self.runs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn runs_mut(&self) -> RwLockWriteGuard<'_, Runs> {
        self.runs.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn record(
        &self,
        actor: &str,
        subject: &str,
        note: serde_json::Value,
        kind: &'static str,
        id: Arc<str>,
        body: Option<Arc<str>>,
    ) -> Result<(), Denied> {
        let now = self.accounts().now(&self.clock);
        let state = vec![StateChange { kind, id, body, changed: now }];
        self.ledger.change(now, (actor, subject), note.to_string().into(), state).await
    }

    /// Records what became of runs, all in one row.
    async fn record_runs(&self, actor: &str, what: &'static str, runs: &[Arc<Run>]) -> Result<(), Denied> {
        let Some(first) = runs.first() else { return Ok(()) };
        let now = self.now();
        let saved: Vec<_> = runs.iter().map(|run| (run.id.clone(), json!(run.saved()))).collect();
        let shown = saved.iter().map(|(id, saved)| {
            let mut shown = saved.clone();
            if let Some(shown) = shown.as_object_mut() {
                // Not even hashes of keys.
                shown.remove("key");
                shown.remove("maker");
                shown.insert("id".into(), (**id).into());
            }
            shown
        });
        let note = json!({"change": what, "runs": shown.collect::<Vec<_>>()});
        let put = |(id, saved): (Arc<str>, serde_json::Value)| StateChange {
            kind: RUN,
            id,
            body: Some(saved.to_string().into()),
            changed: now,
        };
        let state = saved.into_iter().map(put).collect();
        self.ledger.change(now, (actor, &format!("run/{}", first.id)), note.to_string().into(), state).await
    }

    /// Runs have ended: tells of it, and has it recorded with the next [`record_ends`](Self::record_ends).
    fn ended(&self, runs: &[Arc<Run>], end: RunEnd, actor: &str) {
        self.tell_ended(runs, end);
        let mut unrecorded = self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner);
        unrecorded.extend(runs.iter().map(|run| (run.clone(), end, Arc::from(actor))));
    }

    /// Records the ends of runs; those that cannot be recorded now are kept for the next time.
    async fn record_ends(&self) -> Result<(), Denied> {
        loop {
            let due: Vec<Unrecorded> = {
                let unrecorded = self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner);
                let Some((_, end, actor)) = unrecorded.first() else { return Ok(()) };
                let same = |(_, other, by): &&Unrecorded| other == end && by == actor;
                unrecorded.iter().take_while(same).cloned().collect()
            };
            let runs: Vec<Arc<Run>> = due.iter().map(|(run, ..)| run.clone()).collect();
            let (_, end, actor) = &due[0];
            self.record_runs(actor, end.name(), &runs).await?;
            let recorded = |(run, ..): &Unrecorded| runs.iter().any(|done| done.id == run.id);
            self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner).retain(|one| !recorded(one));
        }
    }

    fn tell_ended(&self, ended: &[Arc<Run>], end: RunEnd) {
        for run in ended {
            self.events.tell(|| Event {
                at: self.clock.now(),
                agent: Some(run.agent.clone()),
                runs: run.chain().map(|run| run.id.clone()).collect(),
                what: What::RunEnded { why: end.name() },
            });
        }
    }

    /// Another gateway has ended a pause that was made here.
    pub(crate) async fn resumed_elsewhere(&self, owner: &Owner) {
        let _alone = self.killing.lock().await;
        let id: Arc<str> = owner_id(owner).into();
        let note = json!({"resumed": &*id, "by": "another gateway"});
        if let Err(denied) = self.record("tollkeeper", &id, note, PAUSE, id.clone(), None).await {
            tracing::warn!(%denied, %owner, "the end of a pause cannot be recorded; after a restart it holds again");
        }
        self.watches.resume(owner, self.now());
        self.pauses.resume(owner);
        self.tell_of(owner, What::Resumed(owner.clone()));
    }

    pub(crate) fn tell_of(&self, owner: &Owner, what: What) {
        let run = (owner.scope == Scope::Run).then(|| self.runs().get(&owner.id).cloned()).flatten();
        let agent = match (&run, owner.scope) {
            (Some(run), _) => Some(run.agent.clone()),
            (None, Scope::Agent) => Some(owner.id.clone()),
            (None, _) => None,
        };
        let runs = run.iter().flat_map(|run| run.chain()).map(|run| run.id.clone()).collect();
        self.events.tell(|| Event { at: self.clock.now(), agent, runs, what });
    }

    /// Tells of changes of stage.
    pub(crate) fn tell_velocity(&self, changed: Vec<Changed>) {
        for (owner, transition) in changed {
            tracing::warn!(owner = %owner, from = ?transition.from, to = ?transition.to, reason = ?transition.reason, "spend velocity");
            self.tell_of(&owner.clone(), What::Velocity(owner, transition));
        }
    }

    /// Tells what happened to a caller's request.
    pub(crate) fn tell(&self, caller: &Caller, what: What) {
        self.events.tell(|| Event {
            at: self.clock.now(),
            agent: Some(caller.agent.name.clone()),
            runs: caller.run.iter().flat_map(|run| run.chain()).map(|run| run.id.clone()).collect(),
            what,
        });
    }
}
