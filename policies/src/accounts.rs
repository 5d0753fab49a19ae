//! All accounts: who owns what budgets, and what they have spent and hold.
//!
//! One lock around this makes every decision all-or-nothing: a lease is taken from all accounts over a request, or from
//! none.
//!
//! Time never runs backwards here: while the clock is behind the latest time seen, that time stands still. A closed
//! window is therefore never entered again within a process. After a restart the clock is believed, and charges dated
//! after the window's start all count in it.

use crate::agent::Caller;
use crate::amounts::{Amounts, most_output};
use crate::budget::{Budget, Crossed, Period};
use crate::clock::Clock;
use crate::denied::{Blocked, Denied};
use crate::history::History;
use crate::lease::{OutputBound, Spend};
use crate::shared::Share;
use crate::sharing::Line;
use crate::window::{reset_time, start_time};
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tollkeeper_config::{BackendId, BudgetConfig, Limit, Owner, Scope, Usd};

/// Accounts of targets are made as they are named until there are so many accounts.
const MOST_LAZY: usize = 4096;

/// One budget as it stands. Amounts are in the limit's measure: nano-dollars, tokens or requests.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetView {
    /// The budget.
    pub rule: BudgetConfig,
    /// Settled in this window; with gateways that share their budgets by all of them, as far as this one has heard.
    pub spent: i128,
    /// Of it, what this gateway itself has settled: the sum of its own ledger.
    pub own_spent: i128,
    /// Leased in this window by requests in flight.
    pub reserved: i128,
    /// What can still be leased; never below zero.
    pub remaining: i128,
    /// When the window began; `None` for totals and rolling windows.
    pub starts_at: Option<Timestamp>,
    /// When the window ends; `None` for totals and rolling windows.
    pub resets_at: Option<Timestamp>,
}

/// An account that a request counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cover {
    pub(crate) account: usize,
    /// Whether money is leased there: not where it was carved out beforehand, and is leased already.
    pub(crate) money: bool,
}

/// What was leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Output tokens covered.
    pub(crate) tokens: u64,
    /// Their cost and the input's, at worst.
    pub(crate) amount: Amounts,
}

/// All accounts.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    /// The latest time seen, microseconds since 1970.
    latest: i64,
    by_owner: HashMap<Owner, usize>,
    /// The accounts of models and their providers.
    by_backend: HashMap<BackendId, (Option<usize>, Option<usize>)>,
    list: Vec<Account>,
    /// Places in the list that nobody owns.
    free: Vec<usize>,
    /// Whether a target was left without an account: then the ledger alone knows what it spent.
    left_out: bool,
    /// Owners of accounts that do not know yet what was spent before they were made.
    without_past: HashSet<Owner>,
}

#[derive(Debug)]
struct Account {
    owner: Owner,
    past: History,
    budgets: Vec<Budget>,
    /// The account that its money was carved from, and how much of it is neither spent nor given back.
    carved: Option<Carved>,
}

/// A share of another account, leased there as a whole and spent from here.
#[derive(Debug, Clone, Copy)]
struct Carved {
    from: usize,
    /// When it was carved: decides in which windows of the other account it counts.
    admitted: i64,
    left: i128,
    /// Nothing new is spent from it; what its open leases hold is still kept.
    ended: bool,
}

/// The one over a request that affords least.
struct Tightest<'a> {
    account: &'a Account,
    budget: &'a Budget,
    period: Period,
    affords: Option<u64>,
}

impl Accounts {
    /// The time now in microseconds, never before a time given earlier.
    pub(crate) fn now(&mut self, clock: &Clock) -> i64 {
        self.latest = self.latest.max(clock.now().as_microsecond());
        self.latest
    }

    /// The owner's account, made when there is none.
    pub(crate) fn of(&mut self, owner: &Owner) -> usize {
        if let Some(account) = self.by_owner.get(owner) {
            return *account;
        }
        let account = self.free.pop().unwrap_or(self.list.len());
        if account == self.list.len() {
            self.list.push(Account::new(owner.clone()));
        } else {
            self.list[account] = Account::new(owner.clone());
        }
        self.by_owner.insert(owner.clone(), account);
        account
    }

    /// All accounts that an attempt of this caller counts in.
    pub(crate) fn covers(&mut self, caller: &Caller, spend: &Spend) -> Box<[Cover]> {
        let target = self.target(&spend.backend, &spend.alias);
        let runs = caller.run.iter().flat_map(|run| &run.covers);
        runs.chain(&caller.agent.covers).copied().chain(target).collect()
    }

    /// The accounts of a target: model, provider and alias. Names that clients make up get none once there are many:
    /// what has a budget has an account already.
    fn target(&mut self, backend: &BackendId, alias: &Arc<str>) -> impl Iterator<Item = Cover> + use<> {
        let alias = self.lazily(|| Owner::new(Scope::Alias, alias.clone()));
        let (model, provider) = match self.by_backend.get(backend) {
            Some(known) => *known,
            None => {
                let model = self.lazily(|| Owner::new(Scope::Model, backend.to_string()));
                let provider = match backend {
                    BackendId::Local(_) => None,
                    BackendId::Remote { provider, .. } => self.lazily(|| Owner::new(Scope::Provider, provider.clone())),
                };
                let is_local = matches!(backend, BackendId::Local(_));
                if model.is_some() && (is_local || provider.is_some()) {
                    self.by_backend.insert(backend.clone(), (model, provider));
                }
                (model, provider)
            }
        };
        [alias, model, provider].into_iter().flatten().map(|account| Cover { account, money: true })
    }

    fn lazily(&mut self, owner: impl FnOnce() -> Owner) -> Option<usize> {
        let owner = owner();
        let known = self.by_owner.get(&owner).copied();
        let made = known.or_else(|| (self.list.len() < MOST_LAZY).then(|| self.of(&owner)));
        self.left_out |= made.is_none();
        made
    }

    /// Whether there may be spending of this owner that is in no account.
    pub(crate) fn is_left_out(&self, owner: &Owner) -> bool {
        let is_target = matches!(owner.scope, Scope::Alias | Scope::Model | Scope::Provider);
        let has_none = self.left_out && is_target && !self.by_owner.contains_key(owner);
        has_none || self.without_past.contains(owner)
    }

    /// Gives an owner that was left out an account, whose past is still to be [recalled](Self::recall).
    pub(crate) fn begin_recall(&mut self, owner: &Owner) {
        let account = self.of(owner);
        // After an earlier try that failed: the ledger knows that too.
        self.list[account].past.unsettle();
        self.without_past.insert(owner.clone());
    }

    /// Puts what the ledger knows, with ascending starts as it was cut at `now`, before what an account has counted itself.
    pub(crate) fn recall(&mut self, account: usize, now: i64, settled: impl Iterator<Item = (i64, Amounts)>) {
        let mut past = History::default();
        settled.for_each(|(start, amounts)| past.restore(start, now, amounts));
        let account = &mut self.list[account];
        self.without_past.remove(&account.owner);
        past.follow(std::mem::take(&mut account.past));
        account.past = past;
        let rules: Vec<BudgetConfig> = account.budgets.drain(..).map(|budget| budget.rule).collect();
        account.limit(rules.iter().collect(), self.latest);
    }

    /// Counts what the ledger says was settled, by time of admission; with ascending starts for each account.
    pub(crate) fn restore(&mut self, account: usize, start: i64, settled: Amounts) {
        self.list[account].past.restore(start, self.latest, settled);
    }

    /// Sets the budgets of all accounts but those that `kept` says are not configured here; what is spent and leased
    /// stays, and counts for budgets that are new.
    pub(crate) fn limit(&mut self, rules: &[BudgetConfig], now: i64, kept: impl Fn(&Owner) -> bool) {
        let mut by_account: HashMap<usize, Vec<&BudgetConfig>> = HashMap::new();
        for rule in rules {
            by_account.entry(self.of(&rule.owner)).or_default().push(rule);
        }
        for (place, account) in self.list.iter_mut().enumerate().filter(|(_, account)| !kept(&account.owner)) {
            account.limit(by_account.remove(&place).unwrap_or_default(), now);
        }
    }

    /// Sets the budgets of one account.
    pub(crate) fn limit_one(&mut self, account: usize, rules: &[BudgetConfig], now: i64) {
        self.list[account].limit(rules.iter().collect(), now);
    }

    /// The budgets over these accounts that other gateways share: all but those of runs, which live on one gateway.
    pub(crate) fn lines(&self, covers: &[Cover], now: i64, spend: &Spend) -> Vec<Line> {
        let accounts = covers.iter().map(|cover| &self.list[cover.account]);
        let shared = accounts.filter(|account| account.owner.scope != Scope::Run);
        let rules = shared.flat_map(|account| &account.budgets).map(|budget| &budget.rule);
        // What is free is in nobody's money.
        let counts = |rule: &&BudgetConfig| !(matches!(rule.limit, Limit::Usd(_)) && spend.price.is_free());
        rules.filter(counts).map(|rule| Line::of(rule, now)).collect()
    }

    /// The budgets over these accounts.
    pub(crate) fn rules(&self, covers: &[Cover]) -> impl Iterator<Item = &BudgetConfig> {
        covers.iter().flat_map(|cover| &self.list[cover.account].budgets).map(|budget| &budget.rule)
    }

    /// What is settled in each of those that other gateways share.
    pub(crate) fn shares(&mut self, now: i64) -> Vec<Share> {
        let shared = self.list.iter_mut().filter(|account| account.owner.scope != Scope::Run);
        let mut shares = Vec::new();
        for account in shared {
            account.roll(now);
            shares.extend(account.budgets.iter().flat_map(|budget| budget.shares(now)));
        }
        shares
    }

    /// Opens a lease at `now`, in every account or in none.
    pub(crate) fn take(&mut self, covers: &[Cover], now: i64, spend: &Spend) -> Result<Grant, Denied> {
        self.roll(covers, now);
        let want = match spend.output {
            OutputBound::Whole(tokens) => tokens,
            OutputBound::Growing { slice, max } => slice.max(1).min(max.unwrap_or(u64::MAX)),
        }
        .min(i64::MAX.unsigned_abs());
        let grant = self.fit(covers, now, spend, Amounts::ZERO, (want.min(spend.answers.max(1)), want))?;
        for cover in covers {
            let amount = cover.part(grant.amount);
            self.list[cover.account].each(
                now,
                |sums| {
                    sums.leased += amount;
                    sums.open += 1;
                },
                |budget| budget.lease(now, amount),
            );
        }
        Ok(grant)
    }

    /// The most output tokens that all budgets over an attempt can pay now; `None` without any.
    pub(crate) fn affords(&mut self, covers: &[Cover], now: i64, spend: &Spend) -> Option<u64> {
        self.roll(covers, now);
        let budgets =
            covers.iter().flat_map(|cover| self.list[cover.account].budgets.iter().map(|budget| (*cover, budget)));
        let counted = budgets.filter(|(cover, budget)| cover.money || !matches!(budget.rule.limit, Limit::Usd(_)));
        let tokens = counted.map(|(_, budget)| {
            let room = budget.room(&budget.period(now), spend.final_answer).max(0);
            most_output(spend, budget.rule.limit, room).unwrap_or(0)
        });
        tokens.min()
    }

    /// Extends a lease admitted at `admitted` that holds `held` so that it covers `want` output tokens, or fewer but at
    /// least `least`.
    pub(crate) fn extend(
        &mut self,
        covers: &[Cover],
        (admitted, now): (i64, i64),
        spend: &Spend,
        held: Amounts,
        bounds: (u64, u64),
    ) -> Result<Grant, Denied> {
        self.roll(covers, now);
        let grant = self.fit(covers, admitted, spend, held, bounds)?;
        for cover in covers {
            self.list[cover.account].grow(admitted, cover.part(grant.amount - held));
        }
        Ok(grant)
    }

    /// Ends a lease that holds `held` and cost `cost`. Returns the thresholds that were crossed by it.
    pub(crate) fn close(
        &mut self,
        covers: &[Cover],
        (admitted, now): (i64, i64),
        held: Amounts,
        cost: Amounts,
    ) -> Vec<(Owner, Crossed)> {
        let mut crossed = Vec::new();
        for cover in covers {
            let held = cover.part(held);
            let account = &mut self.list[cover.account];
            account.each(
                admitted,
                |sums| {
                    sums.leased -= held;
                    sums.settled += cost;
                    sums.open -= 1;
                },
                |budget| budget.settle(admitted, held, cost),
            );
            crossed.extend(account.crossed(now));
            if cover.money {
                self.use_carved(cover.account, held.nano, cost.nano);
            }
        }
        crossed
    }

    /// What is spent from a carved share is no longer leased where it was carved from, and so on upwards.
    fn use_carved(&mut self, mut account: usize, held: i128, cost: i128) {
        while let Some(carved) = &mut self.list[account].carved {
            // Once ended, a share is what its open leases hold.
            let used = if carved.ended { held } else { cost }.min(carved.left);
            carved.left -= used;
            let Carved { from, admitted, .. } = *carved;
            self.list[from].grow(admitted, Amounts { nano: -used, ..Amounts::ZERO });
            account = from;
        }
    }

    /// Makes the money of an account a share of another one's: leases it there as a whole.
    pub(crate) fn carve(&mut self, account: usize, from: usize, amount: Usd, now: i64) {
        self.list[from].roll(now);
        self.list[from].grow(now, Amounts::usd(amount));
        self.list[account].carved = Some(Carved { from, admitted: now, left: amount.0.into(), ended: false });
    }

    /// Enlarges the share of an account that was carved before.
    pub(crate) fn carve_more(&mut self, account: usize, more: Usd) {
        if let Some(carved) = &mut self.list[account].carved {
            carved.left += i128::from(more.0);
            let Carved { from, admitted, .. } = *carved;
            self.list[from].grow(admitted, Amounts::usd(more));
        }
    }

    /// Gives back what is left of a share, but for what open leases hold.
    pub(crate) fn end_carved(&mut self, account: usize) {
        let held = self.list[account].past.since(i64::MIN).leased.nano;
        let Some(carved) = &mut self.list[account].carved else { return };
        let back = (carved.left - held).max(0);
        (carved.left, carved.ended) = (carved.left - back, true);
        let Carved { from, admitted, .. } = *carved;
        self.list[from].grow(admitted, Amounts { nano: -back, ..Amounts::ZERO });
    }

    /// What the tightest budget in USD can still lease at `now`, never below zero; `None` without one.
    pub(crate) fn remaining(&mut self, covers: &[Cover], now: i64) -> Option<Usd> {
        self.roll(covers, now);
        self.money_left(covers, now, true).map(|left| amount(left.max(0)))
    }

    /// The same of one account, without what is kept for a final answer.
    pub(crate) fn unkept(&mut self, cover: Cover, now: i64) -> Option<Usd> {
        self.roll(&[cover], now);
        self.money_left(&[cover], now, false).map(|left| amount(left.max(0)))
    }

    fn money_left(&self, covers: &[Cover], now: i64, wrapping_up: bool) -> Option<i128> {
        let budgets = covers.iter().filter(|cover| cover.money).flat_map(|cover| &self.list[cover.account].budgets);
        let in_usd = budgets.filter(|budget| matches!(budget.rule.limit, Limit::Usd(_)));
        in_usd.map(|budget| budget.room(&budget.period(now), wrapping_up)).min()
    }

    /// The budgets of these accounts as they stand at `now`.
    pub(crate) fn view(&mut self, accounts: impl IntoIterator<Item = usize>, now: i64) -> Vec<BudgetView> {
        let mut views = Vec::new();
        for account in accounts {
            let account = &mut self.list[account];
            account.roll(now);
            views.extend(account.budgets.iter().map(|budget| {
                let period = budget.period(now);
                let spent = period.settled.of(budget.rule.limit);
                BudgetView {
                    rule: budget.rule.clone(),
                    spent,
                    own_spent: spent,
                    reserved: period.leased.of(budget.rule.limit),
                    remaining: budget.room(&period, true).max(0),
                    starts_at: start_time(period.start),
                    resets_at: reset_time(period.end),
                }
            }));
        }
        views
    }

    /// Frees the account of an owner that nothing is admitted for any more and no lease of which is open.
    pub(crate) fn forget(&mut self, owner: &Owner) {
        let Some(account) = self.by_owner.get(owner).copied() else { return };
        if self.list[account].past.since(i64::MIN).open == 0 {
            self.by_owner.remove(owner);
            self.list[account] = Account::new(owner.clone());
            self.free.push(account);
        }
    }

    /// The owner's account, if it has one.
    pub(crate) fn known(&self, owner: &Owner) -> Option<usize> {
        self.by_owner.get(owner).copied()
    }

    /// The accounts of these owners.
    pub(crate) fn all(&self, of: impl Fn(&Owner) -> bool) -> Vec<usize> {
        (0..self.list.len()).filter(|account| of(&self.list[*account].owner)).collect()
    }

    /// Everything that an account has ever settled, and what its open leases hold.
    pub(crate) fn totals(&self, account: usize) -> (Amounts, Amounts) {
        let sums = self.list[account].past.since(i64::MIN);
        (sums.settled, sums.leased)
    }

    /// Its open leases.
    pub(crate) fn open(&self, account: usize) -> u64 {
        u64::try_from(self.list[account].past.since(i64::MIN).open).unwrap_or(0)
    }

    fn roll(&mut self, covers: &[Cover], now: i64) {
        for cover in covers {
            self.list[cover.account].roll(now);
        }
    }

    /// How much of what is wanted fits beside all other leases; `held` is this lease's own share already.
    fn fit(
        &self,
        covers: &[Cover],
        admitted: i64,
        spend: &Spend,
        held: Amounts,
        (least, want): (u64, u64),
    ) -> Result<Grant, Denied> {
        let grant = |tokens| Grant { tokens, amount: Amounts::worst(spend, tokens) };
        let whole = grant(want);
        let mut tightest: Option<Tightest<'_>> = None;
        for cover in covers {
            let account = &self.list[cover.account];
            for budget in &account.budgets {
                let limit = budget.rule.limit;
                if matches!(limit, Limit::Usd(_)) && !cover.money {
                    continue;
                }
                let period = budget.period(admitted);
                // What needs no more than is held, nothing at first, fits however deep in the red the budget is.
                let room = budget.room(&period, spend.final_answer).max(0) + held.of(limit);
                if whole.amount.of(limit) <= room {
                    continue;
                }
                let affords = most_output(spend, limit, room);
                let key = |affords: Option<u64>, end| (affords, std::cmp::Reverse(end));
                if tightest.as_ref().is_none_or(|old| key(affords, period.end) < key(old.affords, old.period.end)) {
                    tightest = Some(Tightest { account, budget, period, affords });
                }
            }
        }
        let most = match spend.request_left.filter(|left| whole.amount.nano > i128::from(left.0)) {
            None => want,
            Some(left) => {
                let affords = most_output(spend, Limit::Usd(left), left.0.into()).filter(|tokens| *tokens >= least);
                affords.ok_or_else(|| Denied::Request { left, estimate: spend.worst(least) })?
            }
        };
        match tightest {
            None if most == want => Ok(whole),
            None => Ok(grant(most)),
            Some(tightest) => match tightest.affords.filter(|tokens| *tokens >= least) {
                Some(tokens) => Ok(grant(tokens.min(most))),
                None => Err(tightest.denied(grant(least).amount - held, spend)),
            },
        }
    }
}

impl Tightest<'_> {
    fn denied(&self, estimate: Amounts, spend: &Spend) -> Denied {
        let rule = &self.budget.rule;
        let of = |amounts: Amounts| amounts.of(rule.limit);
        let wrapping_up = !spend.final_answer && of(estimate) <= self.budget.room(&self.period, true);
        Denied::Budget(Box::new(Blocked {
            owner: self.account.owner.clone(),
            window: rule.window,
            limit: rule.limit,
            spent: of(self.period.settled),
            reserved: of(self.period.leased),
            estimate: of(estimate),
            resets_at: reset_time(self.period.end),
            on_limit: rule.on_limit,
            kept_pct: wrapping_up.then_some(rule.wrap_up_pct),
        }))
    }
}

impl Cover {
    fn part(self, amounts: Amounts) -> Amounts {
        if self.money { amounts } else { amounts.without_usd() }
    }
}

impl Account {
    fn new(owner: Owner) -> Self {
        Self { owner, past: History::default(), budgets: Vec::new(), carved: None }
    }

    fn limit(&mut self, rules: Vec<&BudgetConfig>, now: i64) {
        if !rules.is_empty() {
            self.roll(now);
        }
        let mut old = std::mem::take(&mut self.budgets);
        for rule in rules {
            self.budgets.push(match old.iter().position(|budget| budget.rule.is_same_budget(rule)) {
                Some(place) => {
                    let mut budget = old.swap_remove(place);
                    budget.change(rule.clone(), now);
                    budget
                }
                None => Budget::new(rule.clone(), now, &self.past),
            });
        }
    }

    fn roll(&mut self, now: i64) {
        self.past.roll(now);
        self.budgets.iter_mut().for_each(|budget| budget.roll(now));
    }

    /// Changes what was admitted then, in the past and in every budget.
    fn each(&mut self, admitted: i64, sums: impl Fn(&mut crate::history::Sums), budget: impl Fn(&mut Budget)) {
        self.past.at(admitted, sums);
        self.budgets.iter_mut().for_each(budget);
    }

    fn grow(&mut self, admitted: i64, more: Amounts) {
        self.each(admitted, |sums| sums.leased += more, |budget| budget.extend(admitted, more));
    }

    fn crossed(&mut self, now: i64) -> Vec<(Owner, Crossed)> {
        let owner = &self.owner;
        self.budgets.iter_mut().filter_map(|budget| Some((owner.clone(), budget.crossed(now)?))).collect()
    }
}

/// A sum as an amount; beyond what an amount holds, the nearest.
pub(crate) fn amount(nano: i128) -> Usd {
    Usd(i64::try_from(nano).unwrap_or(if nano < 0 { i64::MIN } else { i64::MAX }))
}
