//! This gateway's part in budgets that other gateways share: what its leases hold in the shared store, which of them have
//! ended there, and what it spent while the store was away.
//!
//! Its own accounts count all that it does itself; the shared store adds what the others do. So every lease is taken here
//! first, without asking anybody, and then there, in one round trip. [`Books`] are changed only while the accounts are
//! locked where both change: what the store is told after a loss of memory is read from both at one moment.

mod keeper;
mod line;
mod part;

pub use keeper::SharedView;
pub(crate) use line::Line;
pub(crate) use part::Part;

use crate::accounts::BudgetView;
use crate::agent::{Caller, random_hex};
use crate::clock::Clock;
use crate::denied::Denied;
use crate::shared::{Counter, OpenLease, Restore, Share, SharedAccounts, SharedError, Tally};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tollkeeper_config::{BudgetConfig, Config, Limit, Owner, Scope, SharedStore, Usd};

/// More leases than this wait to be ended only while the store answers nothing for long; nothing is admitted then.
const MOST_ENDED: usize = 65_536;
/// Standings of this many counters are kept in mind.
const MOST_SEEN: usize = 8_192;

/// This gateway's part in shared budgets.
#[derive(Debug)]
pub(crate) struct Sharing {
    accounts: SharedAccounts,
    /// How long a stream waits for a store that does not answer.
    patience: Duration,
    books: Mutex<Books>,
    seen: Mutex<Seen>,
    /// The keeper has something to do.
    awake: Notify,
    /// Leases have ended.
    ended: Notify,
    /// The store has to be told what this gateway spent.
    untold: AtomicBool,
    /// Why it cannot be used now.
    trouble: Mutex<Option<Arc<str>>>,
    unknown: AtomicU64,
    pub(crate) stop: CancellationToken,
}

/// How counters stood when they were last heard of, and when their windows end.
type Seen = HashMap<Arc<str>, (Tally, Option<i64>)>;

/// What is to be told to the store, sooner or later.
#[derive(Debug, Default)]
struct Books {
    /// Leases that are open there, as far as is known here.
    open: HashMap<Arc<str>, Held>,
    ended: VecDeque<Ending>,
    /// How many of them are being told.
    telling: usize,
    /// What was spent on nobody's word but this gateway's, by counter.
    owed: HashMap<Counter, i64>,
    /// What of it is being told, as a lease of its own that is told until it is answered.
    debt: Option<Debt>,
    /// How often these books were read for the store: answers from before may be of a memory that it lost.
    read: u64,
    /// Owners whose pauses the store knows from here, and those whose end it has to be told.
    paused: HashSet<Owner>,
    resumed: HashSet<Owner>,
}

#[derive(Debug)]
struct Held {
    admitted: i64,
    memo: Arc<str>,
    step: u32,
    held: Vec<(Counter, i64)>,
}

/// A lease that has ended here.
#[derive(Debug, Clone)]
struct Ending {
    lease: Arc<str>,
    /// In the order of its lines; none for one that cost nothing.
    costs: Vec<i64>,
    /// Whose it was, and which budgets it counts in: for who is to be told that a threshold was crossed.
    told: Option<(Caller, Arc<[Line]>)>,
}

#[derive(Debug, Clone)]
struct Debt {
    lease: Arc<str>,
    costs: Vec<(Counter, i64)>,
}

impl Sharing {
    /// The part of a gateway that is configured to share its budgets.
    ///
    /// # Errors
    /// The address cannot be read.
    pub(crate) fn of(config: &Config, clock: &Clock) -> Result<Option<Arc<Self>>, SharedError> {
        config.shared.as_ref().map(|settings| Self::new(settings, clock.clone()).map(Arc::new)).transpose()
    }

    fn new(settings: &SharedStore, clock: Clock) -> Result<Self, SharedError> {
        Ok(Self {
            accounts: SharedAccounts::new(settings, clock)?,
            patience: settings.lease_age,
            books: Mutex::default(),
            seen: Mutex::default(),
            awake: Notify::new(),
            ended: Notify::new(),
            untold: AtomicBool::new(true),
            trouble: Mutex::new(Some("it was not asked yet".into())),
            unknown: AtomicU64::new(0),
            stop: CancellationToken::new(),
        })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases that have ended here and not there.
    fn ending(&self) -> usize {
        let books = self.books();
        books.ended.len() + books.telling
    }

    /// The store has to be told what was spent, because it forgot or because a budget is new.
    pub(crate) fn tell_again(&self) {
        self.untold.store(true, Relaxed);
        self.awake.notify_one();
    }

    /// A pause that others have to hear of.
    pub(crate) fn paused(&self, owner: &Owner) {
        self.books().resumed.remove(owner);
        self.awake.notify_one();
    }

    /// The end of a pause, wherever it was made.
    pub(crate) fn resumed(&self, owner: &Owner) {
        let mut books = self.books();
        books.paused.remove(owner);
        books.resumed.insert(owner.clone());
        drop(books);
        self.awake.notify_one();
    }

    /// A lease has ended; the accounts are locked, and count what it cost from now on.
    fn end(&self, ending: Ending) {
        let mut books = self.books();
        books.open.remove(&ending.lease);
        books.ended.push_back(ending);
        drop(books);
        self.ended.notify_one();
    }

    /// So much was spent without asking; the accounts are locked, and count it from now on.
    fn owe(&self, costs: impl Iterator<Item = (Counter, i64)>) {
        let mut books = self.books();
        for (counter, cost) in costs.filter(|(_, cost)| *cost != 0) {
            let owed = books.owed.entry(counter).or_default();
            *owed = owed.saturating_add(cost);
        }
        drop(books);
        self.awake.notify_one();
    }

    /// What the store is told after it forgot; the accounts are locked. `shares` are what they have settled.
    fn restore(&self, now: i64, mut shares: Vec<Share>, marks: Vec<(Arc<str>, Arc<str>)>) -> Restore {
        let mut books = self.books();
        books.read += 1;
        let told = books.debt.iter().flat_map(|debt| debt.costs.iter().map(|(counter, cost)| (counter, *cost)));
        // What is owed is told as a lease of its own.
        let owed = books.owed.iter().map(|(counter, cost)| (counter, *cost)).chain(told);
        shares.extend(owed.map(|(counter, cost)| Share { counter: counter.clone(), settled: -cost, admitted: now }));
        let open = |(lease, held): (&Arc<str>, &Held)| OpenLease {
            lease: lease.clone(),
            admitted: held.admitted,
            memo: held.memo.clone(),
            step: held.step,
            held: held.held.clone(),
        };
        Restore { now, shares, leases: books.open.iter().map(open).collect(), marks }
    }

    /// Remembers how counters stand.
    fn see(&self, counters: impl Iterator<Item = (Counter, Tally)>, now: i64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (counter, tally) in counters {
            if seen.len() >= MOST_SEEN {
                seen.retain(|_, (_, ends)| ends.is_some_and(|ends| ends > now));
            }
            seen.insert(counter.key, (tally, counter.ends));
        }
    }

    /// How a budget's counter stood when it was last heard of.
    fn standing(&self, rule: &BudgetConfig, now: i64) -> Option<Tally> {
        if rule.owner.scope == Scope::Run {
            return None;
        }
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&Counter::of(rule, now).key).map(|(tally, _)| *tally)
    }

    /// What a budget in USD has left, as far as is known.
    pub(crate) fn left(&self, rule: &BudgetConfig, now: i64) -> Option<Usd> {
        let Limit::Usd(limit) = rule.limit else { return None };
        let tally = self.standing(rule, now)?;
        Some(Usd(bounded(i128::from(limit.0) - tally.settled - tally.leased)))
    }

    /// Adds what others have spent and lease.
    pub(crate) fn complete(&self, view: &mut BudgetView, now: i64) {
        let Some(tally) = self.standing(&view.rule, now) else { return };
        view.spent = view.spent.max(tally.settled);
        view.reserved = view.reserved.max(tally.leased);
        view.remaining = (view.rule.limit.units() - view.spent - view.reserved).clamp(0, view.remaining);
    }

    /// The store cannot be used, for this reason; or it can.
    fn troubled(&self, reason: Option<Arc<str>>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Why the store cannot be used now.
    pub(crate) fn trouble(&self) -> Option<Arc<str>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What follows from an answer that is none.
    fn failed(&self, error: &SharedError) -> Denied {
        if matches!(error, SharedError::Lost) {
            self.tell_again();
        }
        Denied::SharedDown { reason: error.to_string().into() }
    }
}

/// An id that no other lease has.
fn new_id() -> Arc<str> {
    random_hex::<16>().into()
}

/// As much of an amount as fits; none below zero.
fn bounded(units: i128) -> i64 {
    i64::try_from(units.max(0)).unwrap_or(i64::MAX)
}

/// The least of what budgets in USD have left.
pub(crate) fn tighter(one: Option<Usd>, other: Option<Usd>) -> Option<Usd> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
