//! What people and agents change while the gateway runs: pauses and runs. Each change is in the ledger's chain, together
//! with the state that it leaves, before it is reported as done.

use crate::accounts::Accounts;
use crate::agent::Caller;
use crate::denied::{Denied, Stop};
use crate::event::{Event, What};
use crate::pauses::Pauses;
use crate::run::{NewRun, Run, RunEnd, RunError, RunLimits, RunView, Runs, Saved};
use crate::store::{StateChange, Store, StoreError};
use crate::{Policies, Shared};
use serde_json::json;
use std::sync::{Arc, PoisonError, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::broadcast;
use tollkeeper_config::{OnLimit, Owner, Scope};

/// The kinds of state that are kept in the store.
const RUN: &str = "run";
const PAUSE: &str = "pause";

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

fn owner_id(owner: &Owner) -> String {
    format!("{}/{}", owner.scope.name(), owner.id)
}

fn parse_owner(text: &str) -> Option<Owner> {
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
        let note = json!({"paused": owner_id(owner), "reason": reason});
        self.0.record(actor, &owner_id(owner), note, PAUSE, owner_id(owner).into(), Some(reason.into())).await?;
        if self.0.pauses.pause(owner, reason.into()) {
            self.0.tell_of(owner, What::Stopped(owner.clone(), Stop::Paused { reason: reason.into() }));
        }
        Ok(())
    }

    /// Ends a pause. Returns whether there was one.
    ///
    /// # Errors
    /// The ledger cannot record it; then nothing has changed.
    pub async fn resume(&self, actor: &str, owner: &Owner) -> Result<bool, Denied> {
        let note = json!({"resumed": owner_id(owner)});
        self.0.record(actor, &owner_id(owner), note, PAUSE, owner_id(owner).into(), None).await?;
        let was = self.0.pauses.resume(owner);
        if was {
            self.0.tell_of(owner, What::Resumed(owner.clone()));
        }
        Ok(was)
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
        let (run, key) = {
            let mut runs = self.0.runs_mut();
            let mut accounts = self.0.accounts();
            let now = accounts.now(&self.0.clock);
            runs.create(&mut accounts, agent.name.clone(), new, now)?
        };
        if let Err(denied) = self.0.record_run(actor, "created", &run).await {
            let mut runs = self.0.runs_mut();
            runs.forget(&mut self.0.accounts(), &run);
            return Err(denied.into());
        }
        Ok((self.view(&run), key))
    }

    /// The run of that id, if it has not been forgotten.
    pub fn run(&self, id: &str) -> Option<RunView> {
        let run = self.0.runs().get(id).cloned();
        run.map(|run| self.view(&run))
    }

    /// All runs that are open or ended within the last day, the newest first.
    pub fn runs(&self) -> Vec<RunView> {
        let all: Vec<Arc<Run>> = self.0.runs().all().cloned().collect();
        let mut views: Vec<RunView> = all.iter().map(|run| self.view(run)).collect();
        views.sort_by_key(|view| (std::cmp::Reverse(view.created), view.run.id.clone()));
        views
    }

    /// Adds to the limits of a run.
    ///
    /// # Errors
    /// It has ended, the run above it cannot pay, or the ledger cannot record it.
    pub async fn extend_run(&self, actor: &str, run: &Arc<Run>, more: &RunLimits) -> Result<RunView, RunError> {
        {
            let runs = self.0.runs();
            let mut accounts = self.0.accounts();
            let now = accounts.now(&self.0.clock);
            runs.extend(&mut accounts, run, more, now)?;
        }
        self.0.record_run(actor, "extended", run).await?;
        Ok(self.view(run))
    }

    /// Ends a run and all below it at once: nothing more is admitted, and what is in flight is cut. Ending one that has
    /// ended does nothing.
    ///
    /// # Errors
    /// The ledger cannot record it; the run has ended all the same.
    pub async fn cancel_run(&self, actor: &str, run: &Arc<Run>) -> Result<RunView, RunError> {
        let ended = {
            let runs = self.0.runs();
            let mut accounts = self.0.accounts();
            let now = accounts.now(&self.0.clock);
            runs.end(&mut accounts, run, RunEnd::Cancelled, now)
        };
        self.0.tell_ended(&ended, RunEnd::Cancelled);
        for run in &ended {
            self.0.record_run(actor, "cancelled", run).await?;
        }
        Ok(self.view(run))
    }

    /// Ends the runs whose time is up; to be called every second or so.
    pub async fn tick(&self) {
        let (ended, forgotten) = {
            let mut runs = self.0.runs_mut();
            let mut accounts = self.0.accounts();
            let now = accounts.now(&self.0.clock);
            runs.tick(&mut accounts, now)
        };
        self.0.tell_ended(&ended, RunEnd::Over);
        for run in &ended {
            if let Err(denied) = self.0.record_run("tollkeeper", "over", run).await {
                tracing::warn!(run = &*run.id, %denied, "the end of a run could not be recorded; its time is up all the same");
            }
        }
        for run in &forgotten {
            let subject = format!("run/{}", run.id);
            // What cannot be removed now is found over at the next start.
            _ = self.0.record("tollkeeper", &subject, json!({"forgotten": true}), RUN, run.id.clone(), None).await;
        }
    }

    /// What follows from a refusal: it is told, and a budget that asks pauses whose it is.
    pub(crate) async fn refused(&self, caller: &Caller, denied: &Denied) {
        let Denied::Budget(blocked) = denied else { return };
        self.0.tell(caller, What::Denied(blocked.clone()));
        if blocked.on_limit != OnLimit::Ask || blocked.kept_pct.is_some() {
            return;
        }
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

impl Shared {
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

    async fn record_run(&self, actor: &str, what: &'static str, run: &Arc<Run>) -> Result<(), Denied> {
        let saved = run.saved();
        let mut note = json!(saved);
        if let Some(note) = note.as_object_mut() {
            note.remove("key");
            note.insert("change".into(), what.into());
        }
        self.record(actor, &format!("run/{}", run.id), note, RUN, run.id.clone(), Some(json!(saved).to_string().into()))
            .await
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

    fn tell_of(&self, owner: &Owner, what: What) {
        let run = (owner.scope == Scope::Run).then(|| self.runs().get(&owner.id).cloned()).flatten();
        let agent = match (&run, owner.scope) {
            (Some(run), _) => Some(run.agent.clone()),
            (None, Scope::Agent) => Some(owner.id.clone()),
            (None, _) => None,
        };
        let runs = run.iter().flat_map(|run| run.chain()).map(|run| run.id.clone()).collect();
        self.events.tell(|| Event { at: self.clock.now(), agent, runs, what });
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
