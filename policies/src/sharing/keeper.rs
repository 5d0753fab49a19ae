//! The task beside the requests: says that this gateway lives, tells the store what it has to know, ends leases there, and
//! charges what gateways held that have died.

use super::{Ending, Line, Sharing};
use crate::control::{mark_of, owner_of_mark};
use crate::denied::Stop;
use crate::event::What;
use crate::shared::{Counter, Ended, SharedError};
use crate::{Policies, Shared};
use futures_util::future::join_all;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tollkeeper_config::{Owner, Scope};

/// So many leases are ended at once.
const AT_ONCE: usize = 64;
/// How long until what was not answered is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// How long a stop waits until the store knows what has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Counters whose standing is asked for in one call.
const ASKED_AT_ONCE: usize = 512;

/// How the store is that gateways share their budgets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedView {
    /// Why it cannot be used now; `None` when it can.
    pub trouble: Option<Arc<str>>,
    /// Leases that have ended here and not yet there.
    pub ending: usize,
    /// Leases of dead gateways that this one has charged since its start.
    pub unknown: u64,
}

impl Policies {
    /// How the store is that budgets are shared in; `None` when they are not.
    pub fn shared(&self) -> Option<SharedView> {
        let sharing = self.0.sharing.as_ref()?;
        Some(SharedView {
            trouble: sharing.trouble(),
            ending: sharing.ending(),
            unknown: sharing.unknown.load(Relaxed),
        })
    }

    /// Keeps up this gateway's part in shared budgets until [`close`](Self::close); without such budgets it returns at
    /// once. Nothing is admitted that needs them while nobody runs this.
    pub async fn keep_shared(&self) {
        let Some(sharing) = self.0.sharing.clone() else { return };
        tokio::select! {
            () = sharing.stop.cancelled() => {}
            () = keep(&self.0, &sharing) => {}
            () = end_leases(&self.0, &sharing) => {}
        }
    }

    /// Waits a while until the store knows what has ended, and lets the keeper go.
    pub(crate) async fn part(&self) {
        let Some(sharing) = &self.0.sharing else { return };
        let told = async {
            while sharing.ending() > 0 {
                sleep(RETRY / 10).await;
            }
        };
        if timeout(LAST_WORDS, told).await.is_err() {
            tracing::warn!(
                "the store that gateways share their budgets in was not told of all leases that ended; it charges what they held"
            );
        }
        sharing.stop.cancel();
    }
}

/// Four turns in the lease age, and one whenever something has to be told.
async fn keep(shared: &Shared, sharing: &Arc<Sharing>) {
    let mut marks = None;
    let mut recorded = Vec::new();
    loop {
        let turn = turn(shared, sharing, &mut marks, &mut recorded).await;
        if matches!(turn, Err(SharedError::Lost)) {
            // Others may have gone on without this gateway since the store forgot: then nothing but this says so.
            sharing.untold.store(true, Relaxed);
        }
        let pause = if turn.is_ok() { sharing.patience / 4 } else { RETRY };
        let trouble = turn.err().map(|error| Arc::from(error.to_string()));
        let before = sharing.trouble();
        match (&before, &trouble) {
            (None, Some(reason)) => tracing::warn!(%reason, "budgets cannot be shared with other gateways"),
            (Some(_), None) => tracing::info!("budgets are shared with other gateways"),
            _ => {}
        }
        sharing.troubled(trouble);
        tokio::select! { () = sleep(pause) => {}, () = sharing.awake.notified() => {} }
    }
}

async fn turn(
    shared: &Shared,
    sharing: &Sharing,
    marks: &mut Option<u64>,
    recorded: &mut Vec<Arc<str>>,
) -> Result<(), SharedError> {
    let beat = sharing.accounts.beat().await?;
    if sharing.untold.swap(false, Relaxed) || !beat.live {
        let restore = {
            let mut accounts = shared.accounts();
            let now = accounts.now(&shared.clock);
            let paused = shared.pauses.all().into_iter().filter(|(owner, _)| owner.scope != Scope::Run);
            let marks = paused.map(|(owner, reason)| (mark_of(&owner), reason)).collect();
            sharing.restore(now, accounts.shares(now), marks)
        };
        let restored = sharing.accounts.restore(&restore).await.inspect_err(|_| sharing.untold.store(true, Relaxed))?;
        if !restored {
            return Err(SharedError::Waiting);
        }
    }
    sharing.pay(shared.now()).await?;
    match_pauses(shared, sharing, marks).await?;
    sharing.accounts.reap().await?;
    let unknown = sharing.accounts.unknown(recorded).await?;
    sharing.unknown.fetch_add(u64::try_from(unknown.len()).unwrap_or(0), Relaxed);
    for lease in &unknown {
        // Its own ledger has the intent, and charges it when that gateway starts again.
        tracing::warn!(gateway = %lease.gateway, of = %lease.memo, charged = ?lease.charged, "a gateway has died; what it held counts as spent");
    }
    *recorded = unknown.into_iter().map(|lease| lease.lease).collect();
    look(shared, sharing).await
}

/// Asks how all budgets stand, for whoever wants to see them.
async fn look(shared: &Shared, sharing: &Sharing) -> Result<(), SharedError> {
    let (now, counters) = {
        let mut accounts = shared.accounts();
        let now = accounts.now(&shared.clock);
        let counters: HashSet<Counter> = accounts.shares(now).into_iter().map(|share| share.counter).collect();
        (now, counters.into_iter().collect::<Vec<_>>())
    };
    for some in counters.chunks(ASKED_AT_ONCE) {
        let tallies = sharing.accounts.standing(some, now).await?;
        sharing.see(some.iter().cloned().zip(tallies), now);
    }
    Ok(())
}

/// Has all gateways pause the same owners. A pause that was made here is told first; then what the store has holds.
async fn match_pauses(shared: &Shared, sharing: &Sharing, marks: &mut Option<u64>) -> Result<(), SharedError> {
    let resumed: Vec<Owner> = sharing.books().resumed.iter().cloned().collect();
    for owner in resumed {
        sharing.accounts.unmark(&mark_of(&owner)).await?;
        sharing.books().resumed.remove(&owner);
    }
    // Runs live on one gateway, and so do their pauses.
    let own: Vec<_> = shared.pauses.own().into_iter().filter(|(owner, _)| owner.scope != Scope::Run).collect();
    let known = sharing.books().paused.clone();
    for (owner, reason) in own.iter().filter(|(owner, _)| !known.contains(owner)) {
        sharing.accounts.mark(&mark_of(owner), reason).await?;
        sharing.books().paused.insert(owner.clone());
    }
    let changed = sharing.accounts.marks_changed();
    if *marks == Some(changed) {
        return Ok(());
    }
    let there: Vec<(Owner, Arc<str>)> = sharing
        .accounts
        .marks()
        .await?
        .into_iter()
        .filter_map(|(mark, reason)| Some((owner_of_mark(&mark)?, reason)))
        .collect();
    for (owner, _) in own.iter().filter(|(owner, _)| !there.iter().any(|(other, _)| other == owner)) {
        // Not one that was made in the meantime.
        if sharing.books().paused.remove(owner) {
            shared.resumed_elsewhere(owner).await;
        }
    }
    let (begun, over) = shared.pauses.others(there);
    begun
        .into_iter()
        .for_each(|(owner, reason)| shared.tell_of(&owner.clone(), What::Stopped(owner, Stop::Paused { reason })));
    over.into_iter().for_each(|owner| shared.tell_of(&owner.clone(), What::Resumed(owner)));
    *marks = Some(changed);
    Ok(())
}

/// Tells the store of every lease that has ended until it answers.
async fn end_leases(shared: &Shared, sharing: &Arc<Sharing>) {
    loop {
        let some: Vec<Ending> = {
            let mut books = sharing.books();
            let count = books.ended.len().min(AT_ONCE);
            books.telling = count;
            books.ended.drain(..count).collect()
        };
        if some.is_empty() {
            sharing.ended.notified().await;
            continue;
        }
        let now = shared.now();
        let ended =
            join_all(some.iter().map(|ending| sharing.accounts.settle(&ending.lease, now, &ending.costs))).await;
        let mut again = Vec::new();
        for (ending, answer) in some.into_iter().zip(ended) {
            match answer {
                Ok(ended) => tell_thresholds(shared, sharing, &ending, &ended, now),
                Err(SharedError::Gone) => {}
                Err(error) => {
                    _ = sharing.failed(&error);
                    again.push(ending);
                }
            }
        }
        let failed = !again.is_empty();
        {
            let mut books = sharing.books();
            books.telling = 0;
            again.into_iter().rev().for_each(|ending| books.ended.push_front(ending));
        }
        if failed {
            sleep(RETRY).await;
        }
    }
}

/// Of all gateways, the one whose charge crossed a threshold tells of it.
fn tell_thresholds(shared: &Shared, sharing: &Sharing, ending: &Ending, ended: &Ended, now: i64) {
    let Some((caller, lines)) = &ending.told else { return };
    if ended.charged_by.is_some() {
        tracing::warn!(lease = %ending.lease, "this gateway was taken for dead, and what it held was charged; the charge was put right");
    }
    sharing.see(lines.iter().map(|line| line.counter.clone()).zip(ended.tallies.iter().copied()), now);
    let each = lines.iter().zip(&ended.tallies).zip(&ending.costs);
    let crossed =
        each.filter_map(|((line, tally), cost): ((&Line, _), _)| Some((line, tally, line.crossed(tally, *cost)?)));
    for (line, tally, percent) in crossed {
        shared.tell(caller, What::Threshold { rule: line.rule.clone(), percent, spent: tally.settled });
    }
}
