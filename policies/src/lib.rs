//! May this agent spend it: identity, budgets, leases, metering and the ledger.
//!
//! [`Policies::admit`] leases what an attempt may cost from every budget of its agent, and has the ledger record the
//! intent before the attempt may be dispatched. The [`Lease`] grows while tokens flow and ends as a [`Charge`]. For
//! every budget, at every instant, settled + leased stays within the limit; only a backend that reports more than was
//! leased can exceed it, and that is recorded as an overrun.

mod accounts;
mod agent;
mod amounts;
mod answers;
mod budget;
mod clock;
mod control;
mod created;
mod denied;
mod event;
mod history;
mod holds;
mod learned;
mod lease;
mod ledger;
mod manage;
mod metering;
mod pauses;
mod place;
mod rate;
mod recall;
pub mod report;
mod run;
pub mod shared;
mod sharing;
mod standing;
mod store;
pub mod velocity;
mod watches;
mod window;

/// The small world of the integration tests, for the unit tests too.
#[cfg(test)]
#[expect(dead_code, reason = "each kind of tests needs another part of it")]
#[path = "../tests/it/setup.rs"]
mod setup;
#[cfg(test)]
extern crate self as tollkeeper_policies;

pub use accounts::BudgetView;
pub use agent::{Agent, Caller, KeyRefused, Lost, Maker};
pub use clock::Clock;
pub use created::{AgentSpec, Scopes};
pub use denied::{Blocked, Denied, Stop};
pub use event::{Event, What};
pub use lease::{Lease, Outcome, OutputBound, Payer, Settlement, Spend};
pub use manage::{AgentView, BudgetEntry, KeyChange, KeyView, ManageError, NewKey, Source};
pub use metering::{Charge, Pieces};
pub use place::{Database, Place};
pub use rate::{Left, RateAsk, RateDenied, RateGuard, RateLimit, RateScope, Rates, Standing};
pub use run::{NewRun, Run, RunEnd, RunError, RunLimits, RunPolicy, RunView};
pub use sharing::SharedView;

use accounts::{Accounts, Cover};
use agent::{KeyHash, Roster};
use amounts::most_output;
use answers::Answers;
use arc_swap::ArcSwap;
use created::Book;
use event::Events;
use learned::Learned;
use ledger::{Ledger, Opened};
use pauses::Pauses;
use run::Runs;
use sharing::{Sharing, tighter};
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use store::memory::Memory;
use store::settled::Settled;
use store::{Store, StoreError};
use tollkeeper_config::{BackendId, BudgetConfig, Config, Limit, Owner, Scope, Usd, Window};
use watches::Watches;

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
    pub(crate) pauses: Pauses,
    pub(crate) watches: Watches,
    /// Ends of runs that are not on record yet.
    unrecorded: Mutex<Vec<control::Unrecorded>>,
    /// Locked before [`Shared::accounts`] by who needs both.
    runs: RwLock<Runs>,
    accounts: Mutex<Accounts>,
    roster: ArcSwap<Roster>,
    /// Told after each change of it.
    pub(crate) roster_changed: tokio::sync::watch::Sender<()>,
    /// Locked before [`Shared::accounts`] by who needs both.
    book: Mutex<Book>,
    /// Held by who changes the book, from what is looked at to what is on record.
    changing: tokio::sync::Mutex<()>,
    /// Where it was opened, for what is asked for from threads without one.
    runtime: Option<tokio::runtime::Handle>,
    /// Held while pasts are read from the ledger.
    recalling: tokio::sync::Mutex<()>,
    /// Held while a kill is put on record, and while somebody ends one, from what is looked at to what holds. Taken after `changing`.
    killing: tokio::sync::Mutex<()>,
    events: Events,
    /// What other gateways share with this one.
    pub(crate) sharing: Option<Arc<Sharing>>,
    pub(crate) answers: Answers,
    learned: Learned,
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
    #[error("the ledger {place} is in use by another gateway (process {pid}); give each gateway its own `store.path`")]
    Locked {
        /// Where the ledger is.
        place: Place,
        /// The other gateway's process id, as far as its lock file tells.
        pid: String,
    },
    /// Another gateway writes under this name, or gateways use the tables that are to be changed.
    #[error("the ledger {place} is in use by another gateway ({holder}); give each gateway its own `store.gateway`")]
    Held {
        /// Where the ledger is.
        place: Place,
        /// What the database tells of the other gateway.
        holder: String,
    },
    /// A newer version wrote it.
    #[error(
        "the ledger {place} has schema version {found}, but this gateway knows only versions up to {known}; use a newer gateway"
    )]
    Newer {
        /// Where the ledger is.
        place: Place,
        /// Its version.
        found: i64,
        /// The newest version known here.
        known: i64,
    },
    /// The store that gateways share their budgets in cannot be used as configured.
    #[error("{0}")]
    Shared(#[from] shared::SharedError),
    /// It could not be opened or read.
    #[error("cannot open the ledger {place}: {reason}")]
    Store {
        /// Where the ledger is.
        place: Place,
        /// What went wrong.
        reason: String,
    },
}

impl Policies {
    /// Opens the ledger, charges what an earlier gateway left open, and counts what is already spent. The ledger
    /// is locked until [`close`](Self::close) or until the last handle and lease are gone.
    pub fn open(config: &Config, clock: Clock) -> Result<(Self, Recovered), OpenError> {
        report::keep(&config.store, clock.now());
        let store = store::open(&config.store)?;
        let sharing = Sharing::of(config, &clock)?;
        Self::start_with(config, clock, store, true, sharing).map_err(|StoreError(reason)| OpenError::Store {
            place: Place::own(&config.store),
            reason: reason.to_string(),
        })
    }

    /// Keeps the ledger in memory, where it grows with every request and is forgotten at the end, and shares nothing: for
    /// tests and benches.
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
        Self::start_with(config, clock, store, own_thread, None)
    }

    fn start_with(
        config: &Config,
        clock: Clock,
        store: Box<dyn Store>,
        own_thread: bool,
        sharing: Option<Arc<Sharing>>,
    ) -> Result<(Self, Recovered), StoreError> {
        let mut ledger = Opened::new(store)?;
        let mut accounts = Accounts::default();
        let now = accounts.now(&clock);
        let mut recovered = Recovered::default();
        for row in ledger.recover(now)? {
            recovered.unknown += 1;
            recovered.amount = recovered.amount.saturating_add(row.cost);
        }
        let mut runs = Runs::default();
        let pauses = Pauses::default();
        control::restore(ledger.store(), &mut runs, &mut accounts, &pauses)?;
        let mut settled = ledger.store().settled(now)?;
        settled.sort_by_key(|settled| settled.start);
        settled.iter().for_each(|settled| restore(&mut accounts, &runs, settled));
        runs.restore_shares(&mut accounts, now);
        let book = Book::restore(ledger.store(), config)?;
        let mut roster = enrol(&book.merged(), &mut accounts, now);
        let watches = Watches::default();
        control::restore_baselines(ledger.store(), &roster, &watches)?;
        holds::restore(ledger.store(), &roster, &runs, &watches, now)?;
        book.give_keys(&mut roster);
        let learned = Learned::restore(ledger.store())?;
        let roster = ArcSwap::from_pointee(roster);
        // Every request holds one place, and its settlement may still hold it while the next attempt is admitted.
        let places = config.server.max_in_flight.saturating_mul(2).saturating_add(64);
        let shared = Shared {
            clock,
            ledger: ledger.start(places, own_thread)?,
            open_leases: Gauge::default(),
            overruns: Overruns::default(),
            pauses,
            watches,
            unrecorded: Mutex::default(),
            runs: RwLock::new(runs),
            accounts: Mutex::new(accounts),
            roster,
            roster_changed: tokio::sync::watch::Sender::default(),
            book: Mutex::new(book),
            changing: tokio::sync::Mutex::default(),
            runtime: tokio::runtime::Handle::try_current().ok(),
            recalling: tokio::sync::Mutex::default(),
            killing: tokio::sync::Mutex::default(),
            events: Events::default(),
            sharing,
            answers: Answers::default(),
            learned,
        };
        Ok((Self(Arc::new(shared)), recovered))
    }

    /// Whose key this is: an agent's, or a run's.
    ///
    /// # Errors
    /// Nobody's, or it is no longer good.
    pub fn authenticate(&self, key: &str) -> Result<Caller, KeyRefused> {
        let key = KeyHash::of(key);
        let roster = self.0.roster.load();
        let (agent, run) = match roster.find(key) {
            Some((agent, _)) => (agent, None),
            None => {
                let run = self.0.runs().of_key(key).cloned().ok_or(KeyRefused::Unknown)?;
                (roster.named(&run.agent).ok_or(KeyRefused::Disabled)?, Some(run))
            }
        };
        let now = self.0.clock.now().as_microsecond();
        let (scopes, _) = roster.standing((&agent.name, key), run.as_deref(), now)?;
        Ok(Caller { agent: agent.clone(), run, scopes, key })
    }

    /// Takes over agents and limits from a new configuration; what was spent stays spent, leases go on, and what was made
    /// at run time stays unless the configuration defines it now. The store's path cannot change.
    pub fn reload(&self, config: &Config) {
        let left_out = self.0.left_out(config.budgets.iter());
        let mut book = self.0.book();
        book.change_file(config);
        self.0.enforce(&book);
        drop(book);
        self.recall_soon(left_out);
    }

    /// Leases what an attempt may cost from every budget that covers it, all or none, and waits until the intent is
    /// recorded. Cancelling the wait releases the lease.
    ///
    /// # Errors
    /// A budget cannot pay, the caller was stopped, or the ledger cannot record it.
    pub async fn admit(&self, caller: &Caller, spend: Spend) -> Result<Lease, Denied> {
        let admitted = Lease::admit(&self.0, caller, spend).await;
        if let Err(denied) = &admitted {
            self.refused(caller, denied).await;
        }
        admitted
    }

    /// The length in tokens that nine of ten of the agent's answers by this backend do not exceed; `None` while too few
    /// were seen.
    pub fn expected_output(&self, agent: &Agent, backend: &BackendId) -> Option<u64> {
        self.output_percentile(agent, backend, 90)
    }

    /// The length in tokens that so many of a hundred of the agent's answers by this backend do not exceed; `None` while too few were seen.
    pub fn output_percentile(&self, agent: &Agent, backend: &BackendId, percent: u32) -> Option<u64> {
        self.0.answers.percentile(&agent.name, Some(backend), percent)
    }

    /// The length in tokens of the agent's median answer, whoever gave it; `None` while too few were seen.
    pub fn usual_output(&self, agent: &Agent) -> Option<u64> {
        self.0.answers.percentile(&agent.name, None, 50)
    }

    /// Whether the caller spends so fast that only local models may answer it.
    pub fn is_slowed_to_local(&self, caller: &Caller) -> bool {
        let now = self.0.now();
        self.0.watches.local_only(caller, now)
    }

    /// Resolves when the caller is killed because of what it spends.
    pub fn killed(&self, caller: &Caller) -> impl Future<Output = Denied> + Send + use<> {
        let alive = self.0.watches.alive(caller);
        async move {
            let ends = alive.into_iter().map(|(who, token)| {
                Box::pin(async move {
                    token.cancelled().await;
                    Denied::Stopped { who, stop: Stop::Velocity { until: None } }
                })
            });
            futures_util::future::select_all(ends).await.0
        }
    }

    /// Tells whoever listens what happened to a caller's request.
    pub fn tell(&self, caller: &Caller, what: What) {
        self.0.tell(caller, what);
    }

    /// The budgets of an owner as they stand.
    pub fn budgets(&self, owner: &Owner) -> Vec<BudgetView> {
        let mut accounts = self.0.accounts();
        let now = accounts.now(&self.0.clock);
        let account = accounts.known(owner);
        let views = accounts.view(account, now);
        drop(accounts);
        self.as_shared(views, now)
    }

    /// All budgets as they stand, those of runs left out, ordered by owner and window.
    pub fn all_budgets(&self) -> Vec<BudgetView> {
        let mut accounts = self.0.accounts();
        let now = accounts.now(&self.0.clock);
        let all = accounts.all(|owner| owner.scope != Scope::Run);
        let views = accounts.view(all, now);
        drop(accounts);
        let mut views = self.as_shared(views, now);
        views.sort_by(|one, other| (&one.rule.owner, one.rule.window).cmp(&(&other.rule.owner, other.rule.window)));
        views
    }

    /// The same with what other gateways have spent and lease, as far as this one has heard of it.
    fn as_shared(&self, mut views: Vec<BudgetView>, now: i64) -> Vec<BudgetView> {
        if let Some(sharing) = &self.0.sharing {
            views.iter_mut().for_each(|view| sharing.complete(view, now));
        }
        views
    }

    /// What the tightest budget in USD over the caller can still lease, whatever the target; `None` without one.
    pub fn remaining(&self, caller: &Caller) -> Option<Usd> {
        let mut accounts = self.0.accounts();
        let now = accounts.now(&self.0.clock);
        let runs = caller.run.iter().flat_map(|run| &run.covers);
        let covers: Vec<Cover> = runs.chain(&caller.agent.covers).copied().collect();
        let left = accounts.remaining(&covers, now);
        let Some(sharing) = &self.0.sharing else { return left };
        tighter(left, accounts.rules(&covers).filter_map(|rule| sharing.left(rule, now)).min())
    }

    /// The most output tokens that all budgets over an attempt can pay now, beside its input; `None` without any budget.
    pub fn affords(&self, caller: &Caller, spend: &Spend) -> Option<u64> {
        let mut accounts = self.0.accounts();
        let now = accounts.now(&self.0.clock);
        let covers = accounts.covers(caller, spend);
        let own = accounts.affords(&covers, now, spend);
        let Some(sharing) = &self.0.sharing else { return own };
        let left = accounts.rules(&covers).filter_map(|rule| sharing.left(rule, now));
        let others = left.map(|left| most_output(spend, Limit::Usd(left), left.0.into()).unwrap_or(0));
        own.into_iter().chain(others).min()
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
        self.0.ledger.is_up() && !self.0.ledger.hangs()
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
        self.part().await;
        self.save_baselines().await;
        self.0.ledger.stop().await;
    }
}

impl Shared {
    /// Never held while waiting for anything.
    pub(crate) fn accounts(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds since 1970, never before a time given earlier.
    pub(crate) fn now(&self) -> i64 {
        self.accounts().now(&self.clock)
    }

    /// Has the agents and budgets of the book hold.
    pub(crate) fn enforce(&self, book: &Book) {
        let mut accounts = self.accounts();
        let now = accounts.now(&self.clock);
        let mut roster = enrol(&book.merged(), &mut accounts, now);
        drop(accounts);
        self.watches.configure(&roster);
        book.give_keys(&mut roster);
        self.roster.store(Arc::new(roster));
        self.roster_changed.send_replace(());
        // Budgets that are new count there what this gateway has spent before.
        if let Some(sharing) = &self.sharing {
            sharing.tell_again();
        }
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

/// Gives every configured agent its accounts and every owner its limits, and makes the table of keys.
fn enrol(config: &Config, accounts: &mut Accounts, now: i64) -> Roster {
    accounts.limit(&config.budgets, now, |owner| owner.scope == Scope::Run);
    let agents: Vec<Agent> = config
        .agents
        .values()
        .map(|agent| {
            let mut owners = vec![Owner::new(Scope::Agent, agent.name.as_str())];
            owners.extend(agent.team.as_deref().map(|team| Owner::new(Scope::Team, team)));
            let mut covers: Vec<Cover> =
                owners.iter().map(|owner| Cover { account: accounts.of(owner), money: true }).collect();
            covers.push(Cover { account: accounts.of(&Owner::everything()), money: true });
            Agent::new(agent, daily_cap(config, &owners), owners, covers)
        })
        .collect();
    Roster::new(agents)
}

/// The tightest limit in USD that one of these owners has for a day.
fn daily_cap(config: &Config, owners: &[Owner]) -> Option<Usd> {
    let of_day = |rule: &&BudgetConfig| rule.window == Window::Day && owners.contains(&rule.owner);
    let limits = config.budgets.iter().filter(of_day).filter_map(|rule| match rule.limit {
        Limit::Usd(limit) => Some(limit),
        Limit::Tokens(_) | Limit::Requests(_) => None,
    });
    limits.min()
}

/// Counts what the ledger says was settled for everybody whom it concerns.
fn restore(accounts: &mut Accounts, runs: &Runs, settled: &Settled) {
    let mut owners = settled.owners();
    let run = settled.run.as_deref().and_then(|run| runs.get(run));
    owners.extend(run.iter().flat_map(|run| run.chain()).map(|run| run.owner.clone()));
    for owner in owners {
        let account = accounts.of(&owner);
        accounts.restore(account, settled.start, settled.amounts());
    }
}
