//! One limit of so many cells (requests or tokens) a minute, whose takings can be corrected when it is known what they really came to.
//!
//! The decision is `governor`'s: its GCRA says whether cells conform, and if not, how long that takes. What it decides upon is kept here,
//! because its own stores forget what a request had taken and so cannot give anything back. A limit's state is its *debt*: how long it takes
//! until all that was taken is paid off, at one cell each `60 s / limit`. Since time only pays debts that are there, taking something back
//! later is not a subtraction: what had been paid off in the meantime would have been paid off for somebody else. So each taking that may still
//! be corrected stays in `open`, with what happened between it and the next one as one function, and the debt is computed again from there.
//! At every instant the debt is therefore what it would be if every request had taken, when it came, what is known of it now.

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use std::cell::Cell;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

/// The time in which a limit's cells come back, in nanoseconds.
const MINUTE: u64 = 60_000_000_000;

/// No debt grows beyond this many nanoseconds (36 years): sums of two fit easily.
const MOST: u64 = 1 << 60;

/// A limit and its debt.
#[derive(Debug)]
pub(super) struct Limiter {
    limit: NonZeroU32,
    quota: Quota,
    /// Nanoseconds in which one cell is paid off; rounded up, so that never more than the limit comes back in a minute.
    cell: u64,
    /// Nanoseconds until all is paid off, as of `at`.
    debt: u64,
    /// Nanoseconds since the start of all limits.
    at: u64,
    /// Takings that may be corrected, the oldest first.
    open: VecDeque<Taking>,
}

/// Cells that are taken and may be corrected.
#[derive(Debug)]
struct Taking {
    id: u64,
    cells: u64,
    /// The debt just before it.
    before: u64,
    /// What became of the debt between this and the next taking.
    then: Course,
}

/// A stretch of time with settled takings in it, as a function of the debt at its begin: `max(debt + shift, least)`.
#[derive(Debug, Clone, Copy, Default)]
struct Course {
    shift: i64,
    least: u64,
}

impl Course {
    /// Time passes.
    fn pay(&mut self, nanos: u64) {
        self.shift = self.shift.saturating_sub_unsigned(nanos);
        self.least = self.least.saturating_sub(nanos);
    }

    /// Cells are taken.
    fn take(&mut self, nanos: u64) {
        self.shift = self.shift.saturating_add_unsigned(nanos);
        self.least = self.least.saturating_add(nanos).min(MOST);
    }

    /// And then the other.
    fn then(&mut self, next: Self) {
        self.shift = self.shift.saturating_add(next.shift);
        self.least = self.least.saturating_add_signed(next.shift).max(next.least).min(MOST);
    }

    fn after(self, debt: u64) -> u64 {
        debt.saturating_add_signed(self.shift).max(self.least).min(MOST)
    }
}

/// What may be taken now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Granted {
    cells: NonZeroU32,
    debt: u64,
}

impl Limiter {
    /// A limit of so many cells a minute, none of them taken.
    pub(super) fn new(limit: NonZeroU32, now: u64) -> Self {
        let cell = MINUTE.div_ceil(u64::from(limit.get()));
        let period = Quota::with_period(Duration::from_nanos(cell));
        let quota = period.unwrap_or(Quota::per_minute(limit)).allow_burst(limit);
        Self { limit, quota, cell, debt: 0, at: now, open: VecDeque::new() }
    }

    /// Whether so many cells may be taken now, or how long that will take if nobody else takes any. More cells than the limit need all of it:
    /// they would never conform, and what they really come to is corrected afterwards.
    pub(super) fn check(&mut self, now: u64, cells: u64) -> Result<Granted, Duration> {
        self.pay(now);
        let limit = self.limit;
        let cells = u32::try_from(cells).ok().and_then(NonZeroU32::new).map_or(limit, |cells| cells.min(limit));
        let store = Debt(Cell::new(self.debt));
        let governor: RateLimiter<_, _, _, NoOpMiddleware<Nanos>> = RateLimiter::new(self.quota, store, Standstill);
        match governor.check_n(cells) {
            Ok(Ok(())) => Ok(Granted { cells, debt: governor.into_state_store().0.get() }),
            Ok(Err(until)) => Err(until.wait_time_from(Standstill.now())),
            // Not with at most as many cells as the limit has; if it were so, all of them would have to come back.
            Err(_insufficient) => Err(Duration::from_nanos(self.debt)),
        }
    }

    /// Takes what a check has just granted. It may be corrected by its id, which must grow from taking to taking, until it is settled.
    pub(super) fn take(&mut self, granted: Granted, id: u64) {
        let cells = u64::from(granted.cells.get());
        self.open.push_back(Taking { id, cells, before: self.debt, then: Course::default() });
        self.debt = granted.debt;
    }

    /// A taking came to `cells`, whatever was thought of it before (`told`). Beyond a change of the limit only more than that is counted.
    pub(super) fn correct(&mut self, now: u64, id: u64, told: u64, cells: u64) {
        self.pay(now);
        let Ok(place) = self.open.binary_search_by_key(&id, |taking| taking.id) else {
            self.debt = self.debt.saturating_add(nanos(cells.saturating_sub(told), self.cell)).min(MOST);
            return;
        };
        self.open[place].cells = cells;
        // Those before it are not touched by it, and mostly it is among the last.
        let mut debt = self.open[place].before;
        for taking in self.open.iter_mut().skip(place) {
            taking.before = debt;
            debt = taking.then.after(debt + nanos(taking.cells, self.cell));
        }
        self.debt = debt;
    }

    /// A taking is corrected no more.
    pub(super) fn settle(&mut self, now: u64, id: u64) {
        self.pay(now);
        let Ok(place) = self.open.binary_search_by_key(&id, |taking| taking.id) else { return };
        let Some(settled) = self.open.remove(place) else { return };
        // What lies before all that are open is in the debt before the first of them.
        if let Some(before) = place.checked_sub(1).and_then(|before| self.open.get_mut(before)) {
            before.then.take(nanos(settled.cells, self.cell));
            before.then.then(settled.then);
        }
    }

    /// Another limit holds from now on: as many cells are taken as were before. Those of open takings are not given back any more.
    pub(super) fn change(&mut self, now: u64, limit: NonZeroU32) {
        self.pay(now);
        let new = Self::new(limit, now);
        let debt = (u128::from(self.debt) * u128::from(new.cell)).div_ceil(u128::from(self.cell));
        *self = Self { debt: u64::try_from(debt).unwrap_or(MOST).min(MOST), ..new };
    }

    /// The limit, what of it may be taken now, and how long it takes until all of it may.
    pub(super) fn left(&mut self, now: u64) -> (NonZeroU32, u32, Duration) {
        self.pay(now);
        let room = nanos(u64::from(self.limit.get()), self.cell).saturating_sub(self.debt);
        let remaining = u32::try_from(room / self.cell).unwrap_or(u32::MAX);
        (self.limit, remaining, Duration::from_nanos(self.debt))
    }

    pub(super) fn limit(&self) -> NonZeroU32 {
        self.limit
    }

    /// Pays off what time has paid.
    fn pay(&mut self, now: u64) {
        let nanos = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.debt = self.debt.saturating_sub(nanos);
        if let Some(last) = self.open.back_mut() {
            last.then.pay(nanos);
        }
    }
}

/// In which time so many cells are paid off.
fn nanos(cells: u64, cell: u64) -> u64 {
    cells.saturating_mul(cell).min(MOST)
}

/// The debt, where `governor` looks for its state.
struct Debt(Cell<u64>);

impl StateStore for Debt {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, debt) = decide(Some(self.0.get().into()))?;
        self.0.set(debt.into());
        Ok(outcome)
    }
}

/// A clock that stands at zero: a debt is a time from now.
struct Standstill;

impl Clock for Standstill {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(0)
    }
}

#[cfg(test)]
mod tests;
