//! May this agent spend it: identity, budgets, leases, metering and the ledger.
//!
//! [`Policies::admit`] leases what an attempt may cost from every budget of its agent, and has the ledger record the
//! intent before the attempt may be dispatched. The [`Lease`] grows while tokens flow and ends as a [`Charge`]. For
//! every budget, at every instant, settled + leased stays within the limit; only a backend that reports more than was
//! leased can exceed it, and that is recorded as an overrun.

mod agent;
mod budget;
mod clock;
mod denied;
mod lease;
mod ledger;
mod metering;
mod rate;
pub mod report;
mod store;
mod window;

/// The small world of the integration tests, for the unit tests too.
#[cfg(test)]
#[expect(dead_code, reason = "each kind of tests needs another part of it")]
#[path = "../tests/it/setup.rs"]
mod setup;
#[cfg(test)]
extern crate self as tollkeeper_policies;

pub use agent::Agent;
pub use budget::BudgetView;
pub use clock::Clock;
pub use denied::{Denied, Scope};
pub use lease::{Lease, Outcome, OutputBound, Payer, Settlement, Spend};
pub use metering::{Charge, Pieces};
pub use rate::{Left, RateAsk, RateDenied, RateGuard, RateLimit, RateScope, Rates, Standing};
pub use window::window_name;

use agent::Roster;
use arc_swap::ArcSwap;
use budget::Accounts;
use ledger::{Ledger, Opened};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::memory::Memory;
use store::sqlite::Sqlite;
use store::{Store, StoreError};
use tollkeeper_config::{Config, Usd};
use window::{WINDOWS, bounds};

/// Agents, budgets and the ledger; a cheap handle. When the last handle and the last lease are gone, the ledger is
/// closed.
#[derive(Debug, Clone)]
pub struct Policies(Arc<Shared>);

/// What handles and leases share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) clock: Clock,
    pub(crate) ledger: Ledger,
    pub(crate) open_leases: Gauge,
    pub(crate) overruns: Overruns,
    accounts: Mutex<Accounts>,
    roster: ArcSwap<Roster>,
}

/// Counts what is open.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicUsize);

/// Counts charges above what was leased.
#[derive(Debug, Default)]
pub(crate) struct Overruns {
    count: AtomicU64,
    nano: AtomicI64,
}

/// What start-up found of requests that an earlier gateway left open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// How many.
    pub unknown: u64,
    /// What they were charged: what they had leased.
    pub amount: Usd,
}

/// Why the ledger could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another gateway uses it.
    #[error("the ledger {path} is in use by another gateway (process {pid}); give each gateway its own `store.path`")]
    Locked {
        /// The ledger's file.
        path: PathBuf,
        /// The other gateway's process id, as far as its lock file tells.
        pid: String,
    },
    /// A newer version wrote it.
    #[error(
        "the ledger {path} has schema version {found}, but this gateway knows only versions up to {known}; use a newer gateway"
    )]
    Newer {
        /// The ledger's file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// It could not be opened or read.
    #[error("cannot open the ledger {path}: {reason}")]
    Store {
        /// The ledger's file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

impl Policies {
    /// Opens the SQLite ledger, charges what an earlier gateway left open, and counts what is already spent. The ledger
    /// is locked until [`close`](Self::close) or until the last handle and lease are gone.
    pub fn open(config: &Config, clock: Clock) -> Result<(Self, Recovered), OpenError> {
        let store = Sqlite::open(&config.store.path, config.store.durability)?;
        Self::start(config, clock, Box::new(store), true).map_err(|StoreError(reason)| OpenError::Store {
            path: config.store.path.clone(),
            reason: reason.to_string(),
        })
    }

    /// Keeps the ledger in memory, where it grows with every request and is forgotten at the end: for tests and
    /// benches.
    pub fn in_memory(config: &Config, clock: Clock) -> Self {
        let started = Self::start(config, clock, Box::new(Memory::default()), false);
        started.expect("rows in memory can be read and no thread is started").0
    }

    pub(crate) fn start(
        config: &Config,
        clock: Clock,
        store: Box<dyn Store>,
        own_thread: bool,
    ) -> Result<(Self, Recovered), StoreError> {
        let mut ledger = Opened::new(store)?;
        let mut accounts = Accounts::default();
        let now = accounts.now(&clock);
        let mut recovered = Recovered::default();
        for row in ledger.recover(now)? {
            recovered.unknown += 1;
            recovered.amount = recovered.amount.saturating_add(row.cost);
        }
        for (agent, settled) in ledger.store().spent(&WINDOWS.map(|window| bounds(window, now).0))? {
            let account = accounts.named(&agent);
            accounts.restore(account, now, &settled);
        }
        let roster = ArcSwap::from_pointee(enrol(config, &mut accounts));
        // Every request holds one place, and its settlement may still hold it while the next attempt is admitted.
        let places = config.server.max_in_flight.saturating_mul(2).saturating_add(64);
        let shared = Shared {
            clock,
            ledger: ledger.start(places, own_thread)?,
            open_leases: Gauge::default(),
            overruns: Overruns::default(),
            accounts: Mutex::new(accounts),
            roster,
        };
        Ok((Self(Arc::new(shared)), recovered))
    }

    /// The agent with this key.
    pub fn authenticate(&self, key: &str) -> Option<Arc<Agent>> {
        self.0.roster.load().find(key).cloned()
    }

    /// Takes over agents and limits from a new configuration; what was spent stays spent, leases go on. The store's
    /// path cannot change.
    pub fn reload(&self, config: &Config) {
        let roster = enrol(config, &mut self.0.accounts());
        self.0.roster.store(Arc::new(roster));
    }

    /// Leases what an attempt may cost from every budget that covers it, all or none, and waits until the intent is
    /// recorded. Cancelling the wait releases the lease.
    pub async fn admit(&self, agent: &Arc<Agent>, spend: Spend) -> Result<Lease, Denied> {
        Lease::admit(&self.0, agent.name.clone(), agent.account, spend).await
    }

    /// The agent's budgets as they stand.
    pub fn budgets(&self, agent: &Agent) -> Vec<BudgetView> {
        let mut accounts = self.0.accounts();
        let now = accounts.now(&self.0.clock);
        accounts.view(agent.account, now)
    }

    /// What the agent's tightest budget can still lease; `None` without budgets.
    pub fn remaining(&self, agent: &Agent) -> Option<Usd> {
        let mut accounts = self.0.accounts();
        let now = accounts.now(&self.0.clock);
        accounts.remaining(agent.account, now)
    }

    /// Leases that are not settled.
    pub fn open_leases(&self) -> usize {
        self.0.open_leases.0.load(Relaxed)
    }

    /// Ledger rows that wait to be written.
    pub fn queue_depth(&self) -> usize {
        self.0.ledger.depth()
    }

    /// Whether the ledger could record the last rows it was given.
    pub fn store_up(&self) -> bool {
        self.0.ledger.is_up()
    }

    /// Charges above what was leased since the start: how many, and their sum.
    pub fn overruns(&self) -> (u64, Usd) {
        (self.0.overruns.count.load(Relaxed), Usd(self.0.overruns.nano.load(Relaxed)))
    }

    /// Returns when all that was charged before is on record, or false when the ledger cannot be written.
    pub async fn flush(&self) -> bool {
        self.0.ledger.flush().await
    }

    /// Writes what is queued and closes the ledger; later admissions are refused. Leases that are still open then
    /// become unknown charges at the next start, so settle them first.
    pub async fn close(&self) {
        self.0.ledger.stop().await;
    }
}

impl Shared {
    /// Never held while waiting for anything.
    pub(crate) fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gauge {
    pub(crate) fn begin(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub(crate) fn end(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Overruns {
    pub(crate) fn count(&self, overrun: Usd) {
        if overrun > Usd::ZERO {
            self.count.fetch_add(1, Relaxed);
            let add = |sum: i64| Some(sum.saturating_add(overrun.0));
            // The closure always gives a value, and so this cannot fail.
            _ = self.nano.fetch_update(Relaxed, Relaxed, add);
        }
    }
}

/// Gives every configured agent its account and limits, and makes the table of keys.
fn enrol(config: &Config, accounts: &mut Accounts) -> Roster {
    Roster::new(config.agents.values().map(|agent| {
        let account = accounts.named(&agent.name);
        accounts.limit(account, &agent.budgets);
        Agent::new(agent, accounts.name(account), account)
    }))
}
