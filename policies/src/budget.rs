//! Caps per calendar window, and the counters under them.
//!
//! A lease, its extensions and its settlement all count in the windows in which it was admitted, however long it runs:
//! so a ledger row says by its admission time alone what it counts towards, and what was granted at 23:59 cannot eat
//! tomorrow's budget. A stream that outlives its window goes on spending what that window has left.
//!
//! Time never runs backwards here: while the clock is behind the latest time seen, that time stands still. A closed
//! window is therefore never entered again within a process. After a restart the clock is believed, and charges dated
//! after the window's start all count in it.

use crate::clock::Clock;
use crate::denied::{Denied, Scope};
use crate::lease::{OutputBound, Spend};
use crate::metering::affordable;
use crate::window::{WINDOWS, bounds, reset_time};
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::Arc;
use tollkeeper_config::{BudgetConfig, Usd, Window};

/// One budget as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetView {
    /// The window.
    pub window: Window,
    /// The cap.
    pub limit: Usd,
    /// Settled in this window.
    pub spent: Usd,
    /// Leased in this window by requests in flight.
    pub reserved: Usd,
    /// What can still be leased; never below zero.
    pub remaining: Usd,
    /// When the window ends; `None` for a total.
    pub resets_at: Option<Timestamp>,
}

/// Settled sums in nano-dollars for each of [`WINDOWS`].
pub(crate) type Sums = [i128; 6];

/// All accounts. One lock around this makes every decision all-or-nothing.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    /// The latest time seen, microseconds since 1970.
    latest: i64,
    by_name: HashMap<Arc<str>, usize>,
    list: Vec<Account>,
}

/// One agent's limits, and its counters for every window whether limited or not: a limit that is added later counts
/// what was spent before.
#[derive(Debug)]
struct Account {
    name: Arc<str>,
    limits: Vec<BudgetConfig>,
    windows: [Vec<Period>; 6],
}

/// One instance of a window, such as one day. The newest comes last; older ones stay while leases of theirs are open.
#[derive(Debug, Clone, Copy)]
struct Period {
    start: i64,
    end: i64,
    settled: i128,
    leased: i128,
    open: usize,
}

/// What was leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Output tokens covered.
    pub(crate) tokens: u64,
    /// Their cost and the input's, at worst.
    pub(crate) amount: Usd,
}

impl Accounts {
    /// The time now in microseconds, never before a time given earlier.
    pub(crate) fn now(&mut self, clock: &Clock) -> i64 {
        self.latest = self.latest.max(clock.now().as_microsecond());
        self.latest
    }

    /// The account of that name, made when there is none. Accounts are never removed: their leases may still be open.
    pub(crate) fn named(&mut self, name: &str) -> usize {
        if let Some(account) = self.by_name.get(name) {
            return *account;
        }
        let name: Arc<str> = name.into();
        self.by_name.insert(name.clone(), self.list.len());
        self.list.push(Account { name, limits: Vec::new(), windows: Default::default() });
        self.list.len() - 1
    }

    pub(crate) fn name(&self, account: usize) -> Arc<str> {
        self.list[account].name.clone()
    }

    /// Sets the limits; what is spent and leased stays.
    pub(crate) fn limit(&mut self, account: usize, limits: &[BudgetConfig]) {
        self.list[account].limits = limits.to_vec();
    }

    /// Counts what the ledger says was settled in the windows that hold `now`.
    pub(crate) fn restore(&mut self, account: usize, now: i64, settled: &Sums) {
        let account = &mut self.list[account];
        account.roll(now);
        for (periods, sum) in account.windows.iter_mut().zip(settled) {
            if let Some(period) = periods.last_mut() {
                period.settled = *sum;
            }
        }
    }

    /// Opens a lease at `now`, in every budget or in none.
    pub(crate) fn take(&mut self, account: usize, now: i64, spend: &Spend) -> Result<Grant, Denied> {
        let account = &mut self.list[account];
        account.roll(now);
        let want = match spend.output {
            OutputBound::Whole(tokens) => tokens,
            OutputBound::Growing { slice, max } => slice.max(1).min(max.unwrap_or(u64::MAX)),
        }
        .min(i64::MAX.unsigned_abs());
        let grant = account.fit(now, spend, Usd::ZERO, want.min(spend.answers.max(1)), want)?;
        account.at(now, |period| {
            period.leased += i128::from(grant.amount.0);
            period.open += 1;
        });
        Ok(grant)
    }

    /// Extends a lease admitted at `admitted` that holds `held` so that it covers `want` output tokens, or fewer but at
    /// least `least`.
    pub(crate) fn extend(
        &mut self,
        account: usize,
        admitted: i64,
        spend: &Spend,
        held: Usd,
        (least, want): (u64, u64),
    ) -> Result<Grant, Denied> {
        let account = &mut self.list[account];
        let grant = account.fit(admitted, spend, held, least, want)?;
        let more = i128::from(grant.amount.0) - i128::from(held.0);
        account.at(admitted, |period| period.leased += more);
        Ok(grant)
    }

    /// Ends a lease that holds `held` and cost `cost`. Returns what the tightest budget can still lease at `now`.
    pub(crate) fn close(&mut self, account: usize, admitted: i64, now: i64, held: Usd, cost: Usd) -> Option<Usd> {
        self.list[account].at(admitted, |period| {
            period.leased -= i128::from(held.0);
            period.settled += i128::from(cost.0);
            period.open -= 1;
        });
        self.remaining(account, now)
    }

    /// What the tightest budget of an account can still lease at `now`, never below zero.
    pub(crate) fn remaining(&mut self, account: usize, now: i64) -> Option<Usd> {
        let account = &mut self.list[account];
        account.roll(now);
        account.tightest(now).map(|(.., room)| amount(room.max(0)))
    }

    /// The budgets of an account as they stand at `now`.
    pub(crate) fn view(&mut self, account: usize, now: i64) -> Vec<BudgetView> {
        let account = &mut self.list[account];
        account.roll(now);
        let view = |budget: &BudgetConfig| {
            let period = account.period(budget.window, now);
            BudgetView {
                window: budget.window,
                limit: budget.limit,
                spent: amount(period.settled),
                reserved: amount(period.leased),
                remaining: amount(period.room(budget.limit).max(0)),
                resets_at: reset_time(period.end),
            }
        };
        account.limits.iter().map(view).collect()
    }
}

impl Account {
    /// Opens the windows that hold `now`, and forgets those before them that no lease needs.
    fn roll(&mut self, now: i64) {
        for (window, periods) in WINDOWS.into_iter().zip(&mut self.windows) {
            if periods.last().is_some_and(|newest| now < newest.end) {
                continue;
            }
            periods.retain(|period| period.open > 0);
            let (start, end) = bounds(window, now);
            periods.push(Period { start, end, settled: 0, leased: 0, open: 0 });
        }
    }

    /// The window that held `admitted`; the newest one when the time lies before all that are known.
    fn period(&self, window: Window, admitted: i64) -> Period {
        let periods = &self.windows[window as usize];
        let found = periods.iter().rev().find(|period| period.start <= admitted).or(periods.last());
        found.copied().unwrap_or(Period { start: i64::MIN, end: i64::MAX, settled: 0, leased: 0, open: 0 })
    }

    /// Changes the counters of the windows that held `admitted`. They are there: an open lease keeps its windows.
    fn at(&mut self, admitted: i64, change: impl Fn(&mut Period)) {
        for periods in &mut self.windows {
            if let Some(period) = periods.iter_mut().rev().find(|period| period.start <= admitted) {
                change(period);
            }
        }
    }

    /// The budget with the least room at `admitted`; of equals the one that resets last.
    fn tightest(&self, admitted: i64) -> Option<(BudgetConfig, Period, i128)> {
        let with_room = |budget: &BudgetConfig| {
            let period = self.period(budget.window, admitted);
            (*budget, period, period.room(budget.limit))
        };
        self.limits.iter().map(with_room).min_by_key(|(_, period, room)| (*room, std::cmp::Reverse(period.end)))
    }

    /// How much of what is wanted fits beside all other leases; `held` is this lease's own share already.
    fn fit(&self, admitted: i64, spend: &Spend, held: Usd, least: u64, want: u64) -> Result<Grant, Denied> {
        let grant = |tokens| Grant { tokens, amount: spend.worst(tokens) };
        let whole = grant(want);
        let Some((budget, period, room)) = self.tightest(admitted) else { return Ok(whole) };
        // What needs no more than is held, nothing at first, fits however deep in the red the budget is.
        let room = room.max(0) + i128::from(held.0);
        if i128::from(whole.amount.0) <= room {
            return Ok(whole);
        }
        match affordable(&spend.price, spend.input_tokens, room) {
            Some(tokens) if tokens >= least => Ok(grant(tokens.min(want))),
            _ => Err(Denied::Budget {
                scope: Scope::Agent,
                id: self.name.clone(),
                window: budget.window,
                limit: budget.limit,
                spent: amount(period.settled),
                reserved: amount(period.leased),
                estimate: grant(least).amount.saturating_sub(held),
                resets_at: reset_time(period.end),
            }),
        }
    }
}

impl Period {
    /// What can still be leased, negative after an overrun or under a lowered limit.
    fn room(&self, limit: Usd) -> i128 {
        i128::from(limit.0) - self.settled - self.leased
    }
}

/// A sum as an amount; beyond what an amount holds, the nearest.
fn amount(nano: i128) -> Usd {
    Usd(i64::try_from(nano).unwrap_or(if nano < 0 { i64::MIN } else { i64::MAX }))
}
