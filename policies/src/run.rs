//! Runs: a task of an agent with limits of its own and a key that is good for nothing else. The key is the budget.
//!
//! A child that has a limit in USD carves it from the nearest run above it that has one: there it counts as leased at
//! once, as spent when it is, and what the child leaves is given back when it ends. Tokens, calls and time are checked
//! in every run of the chain. The agent's own budgets hold for every request as always.

mod saved;

pub(crate) use saved::Saved;

use crate::accounts::{Accounts, Cover, amount};
use crate::agent::{KeyHash, Maker, random_hex};
use crate::created::Scopes;
use crate::denied::{Denied, Stop};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tollkeeper_config::{BudgetConfig, Limit, OnLimit, OnSharedDown, Owner, Scope, Usd, Window};

/// What keys of runs begin with.
const KEY_PREFIX: &str = "tk-run-";

/// Runs one below the other.
const DEEPEST: usize = 8;

/// Percentages of a run's limits that are worth an event.
const NOTIFY_AT: [u8; 3] = [50, 80, 95];

/// Runs that have ended are remembered so long.
const REMEMBERED: i64 = 24 * 3_600_000_000;

/// What a run may spend; what is `None` is bounded by the runs above it and the agent's budgets alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunLimits {
    /// Money.
    pub usd: Option<Usd>,
    /// Tokens of prompts and answers together.
    pub tokens: Option<u64>,
    /// Attempts.
    pub calls: Option<u64>,
    /// Time from its creation; then what is in flight is cut.
    pub wall: Option<Duration>,
}

/// How a run behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunPolicy {
    /// What happens to a request that its limits cannot pay.
    pub on_limit: OnLimit,
    /// Only local models may answer.
    pub local_only: bool,
    /// Percentage of the limits that only a final answer without tools may use, at most 50.
    pub wrap_up_pct: u8,
}

/// What is asked for in a new run.
#[derive(Debug, Clone, Default)]
pub struct NewRun {
    /// The run above it.
    pub parent: Option<Arc<Run>>,
    /// For people.
    pub label: Option<String>,
    /// What it may spend.
    pub limits: RunLimits,
    /// How it behaves.
    pub policy: RunPolicy,
    /// Who makes it.
    pub maker: Maker,
}

/// A run.
#[derive(Debug)]
pub struct Run {
    /// Its id, `run_…`.
    pub id: Arc<str>,
    /// The agent's name.
    pub agent: Arc<str>,
    /// The run above it.
    pub parent: Option<Arc<Run>>,
    /// For people.
    pub label: Option<String>,
    /// How it behaves.
    pub policy: RunPolicy,
    /// Microseconds since 1970.
    pub(crate) created: i64,
    pub(crate) key: KeyHash,
    /// The key of its agent that it was made with: it is refused when that is.
    pub(crate) maker: Option<KeyHash>,
    /// What its key is good for: never more than the key that it was made with, or that of a run above it.
    pub(crate) scopes: Scopes,
    pub(crate) owner: Owner,
    pub(crate) account: usize,
    /// Its own account and those of the runs above it.
    pub(crate) covers: Vec<Cover>,
    /// The account that its money is carved from.
    carved_from: Option<usize>,
    state: Mutex<State>,
    cancelled: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct State {
    limits: RunLimits,
    ended: Option<(RunEnd, i64)>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// Somebody cancelled it.
    Cancelled,
    /// Its time was up.
    Over,
}

/// A run as it stands.
#[derive(Debug, Clone)]
pub struct RunView {
    /// The run.
    pub run: Arc<Run>,
    /// What it may spend now.
    pub limits: RunLimits,
    /// Spent by it and by the runs below it.
    pub spent: Usd,
    /// Leased by requests in flight, and carved by the runs below it.
    pub reserved: Usd,
    /// Tokens settled.
    pub tokens: u64,
    /// Attempts settled.
    pub calls: u64,
    /// Attempts that are not settled yet, in it and below it.
    pub open: u64,
    /// When it was made.
    pub created: Timestamp,
    /// When its time is up.
    pub ends: Option<Timestamp>,
    /// How and when it ended.
    pub ended: Option<(RunEnd, Timestamp)>,
}

/// Why a run cannot be made or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// No such agent.
    #[error("there is no agent `{0}`")]
    NoAgent(String),
    /// No such run, or none that this caller may see.
    #[error("there is no run `{0}`, or it ended more than a day ago")]
    NoRun(String),
    /// It has ended.
    #[error("the run `{0}` has ended")]
    Ended(Arc<str>),
    /// The run above it cannot pay.
    #[error("the run `{parent}` has {left} USD left and cannot give {wanted} USD away")]
    Unaffordable {
        /// The run that was to pay.
        parent: Arc<str>,
        /// What it has.
        left: Usd,
        /// What was asked for.
        wanted: Usd,
    },
    /// Too many, one below the other.
    #[error("runs can be nested {DEEPEST} deep")]
    TooDeep,
    /// Too many.
    #[error(
        "there are {0} runs already, counting those that ended within a day; cancel some that are no longer needed, or wait"
    )]
    TooMany(usize),
    /// The ledger cannot record it.
    #[error(transparent)]
    Denied(#[from] Denied),
}

impl RunEnd {
    /// The name in the API and in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Over => "over",
        }
    }

    fn stop(self) -> Stop {
        match self {
            Self::Cancelled => Stop::Cancelled,
            Self::Over => Stop::Over,
        }
    }
}

impl Run {
    /// Its budgets.
    fn rules(&self, limits: &RunLimits) -> Vec<BudgetConfig> {
        let limits = [limits.usd.map(Limit::Usd), limits.tokens.map(Limit::Tokens), limits.calls.map(Limit::Requests)];
        let rule = |limit| BudgetConfig {
            owner: self.owner.clone(),
            window: Window::Total,
            zone: TimeZone::UTC,
            limit,
            notify_at: NOTIFY_AT.to_vec(),
            on_limit: self.policy.on_limit,
            wrap_up_pct: self.policy.wrap_up_pct,
            on_shared_down: OnSharedDown::default(),
        };
        limits.into_iter().flatten().map(rule).collect()
    }

    /// It and the runs above it, the innermost first.
    pub fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |run| run.parent.as_deref())
    }

    /// Whether only local models may answer, by its own policy or one above it.
    pub fn local_only(&self) -> bool {
        self.chain().any(|run| run.policy.local_only)
    }

    /// Why nothing may be spent any more at `now`, by it or a run above it.
    pub(crate) fn stopped(&self, now: i64) -> Option<Denied> {
        self.chain().find_map(|run| {
            let state = *run.state();
            let over = || run.ends_at(&state.limits).is_some_and(|ends| ends <= now).then_some(RunEnd::Over);
            let end = state.ended.map(|(end, _)| end).or_else(over)?;
            Some(Denied::Stopped { who: run.owner.clone(), stop: end.stop() })
        })
    }

    /// When the first of it and the runs above it has used up its time.
    pub fn ends(&self) -> Option<Timestamp> {
        self.chain()
            .filter_map(|run| run.ends_at(&run.state().limits))
            .min()
            .and_then(|at| Timestamp::from_microsecond(at).ok())
    }

    /// Resolves when it, or a run above it, has ended.
    pub async fn ended(&self) -> Denied {
        self.cancelled.cancelled().await;
        let stop = self.stopped(i64::MIN);
        stop.unwrap_or(Denied::Stopped { who: self.owner.clone(), stop: Stop::Cancelled })
    }

    /// Whether it has ended, as far as that was noticed.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().ended.is_some()
    }

    fn ends_at(&self, limits: &RunLimits) -> Option<i64> {
        let micros = i64::try_from(limits.wall?.as_micros()).unwrap_or(i64::MAX);
        Some(self.created.saturating_add(micros))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All runs that are open, and those that ended lately.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    by_id: HashMap<Arc<str>, Arc<Run>>,
    by_key: HashMap<KeyHash, Arc<Run>>,
    /// Those that have not ended, by id.
    open: HashMap<Arc<str>, Arc<Run>>,
    /// How many each agent has, ended ones included.
    of_agent: HashMap<Arc<str>, usize>,
}

impl Runs {
    /// An agent may have so many runs that have not ended.
    const MOST_OPEN: usize = 1000;
    /// So many in all: what ended is remembered for a day.
    const MOST_OF_AGENT: usize = 10_000;
    /// More than these of all agents, ended ones included, are refused.
    const MOST: usize = 100_000;

    pub(crate) fn of_key(&self, key: KeyHash) -> Option<&Arc<Run>> {
        self.by_key.get(&key).filter(|run| run.key.is(key))
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Arc<Run>> {
        self.by_id.get(id)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.by_id.values()
    }

    /// Those that have not ended.
    pub(crate) fn open(&self) -> impl ExactSizeIterator<Item = &Arc<Run>> {
        self.open.values()
    }

    /// Makes a run and its key.
    pub(crate) fn create(
        &mut self,
        accounts: &mut Accounts,
        agent: Arc<str>,
        new: NewRun,
        now: i64,
    ) -> Result<(Arc<Run>, String), RunError> {
        if self.by_id.len() >= Self::MOST {
            return Err(RunError::TooMany(Self::MOST));
        }
        let all = self.of_agent.get(&agent).copied().unwrap_or(0);
        let open = self.open.values().filter(|run| run.agent == agent).count();
        for (count, most) in [(all, Self::MOST_OF_AGENT), (open, Self::MOST_OPEN)] {
            if count >= most {
                return Err(RunError::TooMany(most));
            }
        }
        if let Some(parent) = &new.parent {
            if parent.stopped(now).is_some() {
                return Err(RunError::Ended(parent.id.clone()));
            }
            if parent.chain().count() >= DEEPEST {
                return Err(RunError::TooDeep);
            }
        }
        let payer = new.limits.usd.and_then(|usd| Some((usd, payer(new.parent.as_deref()?)?)));
        if let Some((wanted, payer)) = payer {
            payer.can_give(accounts, wanted, now)?;
        }
        let (id, key) = (format!("run_{}", random_hex::<12>()), format!("{KEY_PREFIX}{}", random_hex::<24>()));
        let run = Self::make(accounts, id.into(), agent, KeyHash::of(&key), new, now);
        run.open(accounts, now);
        self.insert(run.clone());
        Ok((run, key))
    }

    /// Takes runs over that were saved, without their shares: what they have spent is not known yet.
    pub(crate) fn restore(&mut self, accounts: &mut Accounts, mut saved: Vec<(Arc<str>, Saved)>) {
        while !saved.is_empty() {
            let known =
                |(_, run): &(Arc<str>, Saved)| run.parent.as_deref().is_none_or(|id| self.by_id.contains_key(id));
            let (now, later): (Vec<_>, Vec<_>) = saved.into_iter().partition(known);
            if now.is_empty() {
                // Their parents are forgotten, and so they have ended.
                return;
            }
            for (id, saved) in now {
                let run = saved.run(self, accounts, id);
                self.insert(run);
            }
            saved = later;
        }
    }

    /// Gives the restored runs their limits and what is left of their shares.
    pub(crate) fn restore_shares(&self, accounts: &mut Accounts, now: i64) {
        for run in self.by_id.values() {
            run.open(accounts, now);
            if run.state().ended.is_some() {
                accounts.end_carved(run.account);
            }
        }
    }

    /// Takes back a run that could not be recorded.
    pub(crate) fn forget(&mut self, accounts: &mut Accounts, run: &Arc<Run>) {
        let now = run.created;
        for run in self.end(accounts, &[run.id.clone()].into(), RunEnd::Cancelled, now) {
            self.remove(accounts, &run);
        }
    }

    fn make(
        accounts: &mut Accounts,
        id: Arc<str>,
        agent: Arc<str>,
        key: KeyHash,
        new: NewRun,
        created: i64,
    ) -> Arc<Run> {
        let owner = Owner::new(Scope::Run, id.clone());
        let account = accounts.of(&owner);
        let above = new.parent.as_deref();
        let carved_from = new.limits.usd.and(above.and_then(payer)).map(|payer| payer.account);
        // Those that its money was carved from, and theirs was, hold it already.
        let payers: Vec<usize> = std::iter::successors(carved_from.or_else(|| above?.payer_above()), |payer| {
            above?.chain().find(|run| run.account == *payer)?.payer_above()
        })
        .collect();
        let chain = above.into_iter().flat_map(Run::chain).map(|run| run.account);
        let covers = std::iter::once(account).chain(chain);
        let covers = covers.map(|account| Cover { account, money: !payers.contains(&account) }).collect();
        let cancelled = above.map_or_else(CancellationToken::new, |above| above.cancelled.child_token());
        let scopes = above.map_or(Scopes::ALL, |above| above.scopes).and(new.maker.scopes);
        let run = Run {
            id,
            agent,
            parent: new.parent,
            label: new.label,
            policy: new.policy,
            created,
            key,
            maker: new.maker.key,
            scopes,
            owner,
            account,
            covers,
            carved_from,
            state: Mutex::new(State { limits: new.limits, ended: None }),
            cancelled,
        };
        Arc::new(run)
    }

    fn insert(&mut self, run: Arc<Run>) {
        if !run.has_ended() {
            self.open.insert(run.id.clone(), run.clone());
        }
        *self.of_agent.entry(run.agent.clone()).or_default() += 1;
        self.by_key.insert(run.key, run.clone());
        self.by_id.insert(run.id.clone(), run);
    }

    /// Forgets a run that has ended.
    fn remove(&mut self, accounts: &mut Accounts, run: &Run) {
        self.by_id.remove(&run.id);
        self.by_key.remove(&run.key);
        if let Entry::Occupied(mut count) = self.of_agent.entry(run.agent.clone()) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        accounts.forget(&run.owner);
    }

    /// Adds to the limits of a run that has not ended. Returns what they were.
    pub(crate) fn extend(
        &self,
        accounts: &mut Accounts,
        run: &Run,
        more: &RunLimits,
        now: i64,
    ) -> Result<RunLimits, RunError> {
        if run.stopped(now).is_some() {
            return Err(RunError::Ended(run.id.clone()));
        }
        let before = run.state().limits;
        let mut limits = before;
        if let (Some(wanted), Some(_), Some(payer)) = (more.usd, limits.usd, run.parent.as_deref().and_then(payer)) {
            payer.can_give(accounts, wanted, now)?;
            accounts.carve_more(run.account, wanted);
        }
        // A limit that is not there cannot be raised.
        limits.usd = limits.usd.map(|usd| usd.saturating_add(more.usd.unwrap_or_default()));
        limits.tokens = limits.tokens.map(|tokens| tokens.saturating_add(more.tokens.unwrap_or_default()));
        limits.calls = limits.calls.map(|calls| calls.saturating_add(more.calls.unwrap_or_default()));
        limits.wall = limits.wall.map(|wall| wall.saturating_add(more.wall.unwrap_or_default()));
        run.state().limits = limits;
        accounts.limit_one(run.account, &run.rules(&limits), now);
        Ok(before)
    }

    /// Takes back an extension that could not be recorded.
    pub(crate) fn shorten(&self, accounts: &mut Accounts, run: &Run, before: &RunLimits, now: i64) {
        let mut state = run.state();
        if let (Some(had), Some(has)) = (before.usd, state.limits.usd) {
            accounts.carve_more(run.account, had.saturating_sub(has));
        }
        state.limits = *before;
        drop(state);
        accounts.limit_one(run.account, &run.rules(before), now);
    }

    /// Ends runs and all below them: cuts what is in flight, and gives back what is left. Returns those that ended now.
    pub(crate) fn end(
        &mut self,
        accounts: &mut Accounts,
        roots: &HashSet<Arc<str>>,
        end: RunEnd,
        now: i64,
    ) -> Vec<Arc<Run>> {
        let below = self.open.values().filter(|other| other.chain().any(|above| roots.contains(&above.id)));
        let mut ended: Vec<Arc<Run>> = below.cloned().collect();
        // The innermost first, so that each gives back to a run that still counts it.
        ended.sort_by_key(|run| std::cmp::Reverse(run.chain().count()));
        for run in &ended {
            self.open.remove(&run.id);
            run.state().ended = Some((end, now));
            accounts.end_carved(run.account);
            run.cancelled.cancel();
        }
        ended
    }

    /// Ends the runs whose time is up, and forgets those that ended long ago. Returns both.
    pub(crate) fn tick(&mut self, accounts: &mut Accounts, now: i64) -> (Vec<Arc<Run>>, Vec<Arc<Run>>) {
        let is_over = |run: &&Arc<Run>| {
            let state = *run.state();
            run.ends_at(&state.limits).is_some_and(|ends| ends <= now)
        };
        let over: HashSet<Arc<str>> = self.open.values().filter(is_over).map(|run| run.id.clone()).collect();
        let ended = if over.is_empty() { Vec::new() } else { self.end(accounts, &over, RunEnd::Over, now) };
        // What a run spent counts in those above it as long as they are known: rows of the ledger name the innermost alone.
        let is_past = |run: &Run| run.state().ended.is_some_and(|(_, at)| at <= now - REMEMBERED);
        let is_old = |run: &&Arc<Run>| run.chain().all(is_past);
        let old: Vec<Arc<Run>> = self.by_id.values().filter(is_old).cloned().collect();
        for run in &old {
            self.remove(accounts, run);
        }
        (ended, old)
    }

    /// A run as it stands.
    pub(crate) fn view(accounts: &Accounts, run: &Arc<Run>) -> RunView {
        let state = *run.state();
        let (settled, leased) = accounts.totals(run.account);
        let count = |count: i128| u64::try_from(count).unwrap_or(0);
        let time = |at: i64| Timestamp::from_microsecond(at).unwrap_or_default();
        RunView {
            run: run.clone(),
            limits: state.limits,
            spent: amount(settled.nano),
            reserved: amount(leased.nano),
            tokens: count(settled.tokens),
            calls: count(settled.requests),
            open: accounts.open(run.account),
            created: time(run.created),
            ends: run.ends_at(&state.limits).map(time),
            ended: state.ended.map(|(end, at)| (end, time(at))),
        }
    }
}

impl Run {
    /// Opens its account: its limits, and its share of the run that it is carved from, as far as it is not spent.
    fn open(&self, accounts: &mut Accounts, now: i64) {
        let limits = self.state().limits;
        accounts.limit_one(self.account, &self.rules(&limits), now);
        if let (Some(from), Some(usd)) = (self.carved_from, limits.usd) {
            let spent = accounts.totals(self.account).0.nano;
            accounts.carve(self.account, from, amount((i128::from(usd.0) - spent).max(0)), now);
        }
    }

    /// The account that its money, or that of the run above it, is carved from.
    fn payer_above(&self) -> Option<usize> {
        self.chain().find_map(|run| run.carved_from)
    }

    fn can_give(&self, accounts: &mut Accounts, wanted: Usd, now: i64) -> Result<(), RunError> {
        let left = accounts.unkept(Cover { account: self.account, money: true }, now);
        match left {
            Some(left) if left < wanted => Err(RunError::Unaffordable { parent: self.id.clone(), left, wanted }),
            _ => Ok(()),
        }
    }
}

/// The nearest of a run and those above it that has a limit in USD.
fn payer(run: &Run) -> Option<&Run> {
    run.chain().find(|run| run.state().limits.usd.is_some())
}
