//! One budget: a limit, and the counters of the windows it is counted in.
//!
//! A lease, its extensions and its settlement all count in the calendar window in which it was admitted, however long it
//! runs: so a ledger row says by its admission time alone what it counts towards, and what was granted at 23:59 cannot
//! eat tomorrow's budget. A stream that outlives its window goes on spending what that window has left.
//!
//! A rolling window counts what was admitted within its length, up to a slot longer, and every open lease however old.

use crate::amounts::Amounts;
use crate::history::History;
use crate::shared::{Counter, Share};
use crate::window::bounds;
use std::collections::VecDeque;
use tollkeeper_config::{BudgetConfig, Window};

/// A rolling window forgets in steps of this part of its length.
const SLOTS: i64 = 64;

/// A budget with its counters.
#[derive(Debug)]
pub(crate) struct Budget {
    pub(crate) rule: BudgetConfig,
    count: Count,
    /// The highest threshold that the newest window has crossed, in percent.
    told: u8,
}

#[derive(Debug)]
enum Count {
    /// Instances of a calendar window, such as one day each. The newest comes last; older ones stay while leases of
    /// theirs are open.
    Calendar(Vec<Period>),
    Rolling(Rolling),
}

/// One instance of a window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Period {
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) settled: Amounts,
    pub(crate) leased: Amounts,
    open: usize,
}

#[derive(Debug)]
struct Rolling {
    length: i64,
    slot: i64,
    /// What was admitted in each slot and is settled, by the slot's start, ascending.
    slots: VecDeque<(i64, Amounts)>,
    settled: Amounts,
    leased: Amounts,
}

/// A budget that got past one of its thresholds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Crossed {
    pub(crate) rule: BudgetConfig,
    pub(crate) percent: u8,
    pub(crate) period: Period,
}

impl PartialEq for Period {
    fn eq(&self, other: &Self) -> bool {
        (self.start, self.end, self.settled, self.leased) == (other.start, other.end, other.settled, other.leased)
    }
}

impl Budget {
    /// Counts what the account's past says. Thresholds that are already crossed are not news.
    pub(crate) fn new(rule: BudgetConfig, now: i64, past: &History) -> Self {
        let count = match rule.window {
            Window::Rolling(length) => Count::Rolling(Rolling::new(length, now, past)),
            window => {
                let (start, end) = bounds(window, &rule.zone, now);
                let sums = past.since(start);
                Count::Calendar(vec![Period {
                    start,
                    end,
                    settled: sums.settled,
                    leased: sums.leased,
                    open: sums.open,
                }])
            }
        };
        let mut budget = Self { rule, count, told: 0 };
        budget.crossed(now);
        budget
    }

    /// Another limit, other thresholds or another policy for the same window.
    pub(crate) fn change(&mut self, rule: BudgetConfig, now: i64) {
        (self.rule, self.told) = (rule, 0);
        self.crossed(now);
    }

    /// Opens the window that holds `now`, and forgets what no longer counts.
    pub(crate) fn roll(&mut self, now: i64) {
        match &mut self.count {
            Count::Calendar(periods) => {
                if periods.last().is_some_and(|newest| now < newest.end) {
                    return;
                }
                periods.retain(|period| period.open > 0);
                let (start, end) = bounds(self.rule.window, &self.rule.zone, now);
                periods.push(Period { start, end, settled: Amounts::ZERO, leased: Amounts::ZERO, open: 0 });
                self.told = 0;
            }
            Count::Rolling(rolling) => rolling.roll(now),
        }
    }

    /// The window that held `admitted`; the newest one when the time lies before all that are known.
    pub(crate) fn period(&self, admitted: i64) -> Period {
        match &self.count {
            Count::Calendar(periods) => {
                let found = periods.iter().rev().find(|period| period.start <= admitted).or(periods.last());
                found.copied().unwrap_or_else(|| Period::unbounded(Amounts::ZERO, Amounts::ZERO))
            }
            Count::Rolling(rolling) => Period::unbounded(rolling.settled, rolling.leased),
        }
    }

    /// A lease of so much begins.
    pub(crate) fn lease(&mut self, admitted: i64, amount: Amounts) {
        self.at(admitted, |period| {
            period.leased += amount;
            period.open += 1;
        });
    }

    /// A lease grows, or another account's share in this one changes.
    pub(crate) fn extend(&mut self, admitted: i64, more: Amounts) {
        self.at(admitted, |period| period.leased += more);
    }

    /// A lease ends.
    pub(crate) fn settle(&mut self, admitted: i64, held: Amounts, cost: Amounts) {
        self.at(admitted, |period| {
            period.leased -= held;
            period.settled += cost;
            period.open -= 1;
        });
        if let Count::Rolling(rolling) = &mut self.count {
            rolling.add(admitted, cost);
        }
    }

    /// Changes the counters of the window that held `admitted`. It is there: an open lease keeps its window.
    fn at(&mut self, admitted: i64, change: impl Fn(&mut Period)) {
        match &mut self.count {
            Count::Calendar(periods) => {
                if let Some(period) = periods.iter_mut().rev().find(|period| period.start <= admitted) {
                    change(period);
                }
            }
            Count::Rolling(rolling) => {
                let mut all = Period { open: 1, ..Period::unbounded(Amounts::ZERO, rolling.leased) };
                change(&mut all);
                rolling.leased = all.leased;
            }
        }
    }

    /// What can still be leased, negative after an overrun or under a lowered limit; `wrapping_up` may use the last share.
    pub(crate) fn room(&self, period: &Period, wrapping_up: bool) -> i128 {
        self.rule.usable(wrapping_up) - period.settled.of(self.rule.limit) - period.leased.of(self.rule.limit)
    }

    /// What is settled in every window that counts, for a store that other gateways share; nothing is a share too.
    pub(crate) fn shares(&self, now: i64) -> Vec<Share> {
        let counter = |admitted| Counter::of(&self.rule, admitted);
        let share = |counter, settled: Amounts, admitted| {
            let settled = settled.of(self.rule.limit);
            Share { counter, settled: i64::try_from(settled).unwrap_or(i64::MAX), admitted }
        };
        match &self.count {
            Count::Calendar(periods) => {
                periods.iter().map(|period| share(counter(period.start.max(0)), period.settled, now)).collect()
            }
            Count::Rolling(rolling) => {
                let none = rolling.slots.is_empty().then_some((now, Amounts::ZERO));
                let slots = rolling.slots.iter().copied().chain(none);
                slots.map(|(start, settled)| share(counter(now), settled, start)).collect()
            }
        }
    }

    /// The highest threshold that was crossed since this was asked before.
    pub(crate) fn crossed(&mut self, now: i64) -> Option<Crossed> {
        let period = self.period(now);
        let limit = self.rule.limit.units().max(1);
        let percent = period.settled.of(self.rule.limit).saturating_mul(100) / limit;
        let reached = self.rule.notify_at.iter().rev().find(|threshold| i128::from(**threshold) <= percent);
        let reached = reached.copied().unwrap_or(0);
        let news = reached > self.told;
        // A rolling window can fall below a threshold, and cross it again.
        self.told = reached;
        news.then(|| Crossed { rule: self.rule.clone(), percent: reached, period })
    }
}

impl Period {
    fn unbounded(settled: Amounts, leased: Amounts) -> Self {
        Self { start: i64::MIN, end: i64::MAX, settled, leased, open: 0 }
    }
}

impl Rolling {
    fn new(length: std::time::Duration, now: i64, past: &History) -> Self {
        let length = i64::try_from(length.as_micros()).unwrap_or(i64::MAX);
        let all = past.since(i64::MIN);
        let (slots, settled) = (VecDeque::new(), Amounts::ZERO);
        let mut rolling = Self { length, slot: (length / SLOTS).max(1), slots, settled, leased: all.leased };
        // As if all of a bucket had been admitted at its end: rather counted for too long than not long enough.
        for (last, settled) in past.settled_since(now - length) {
            rolling.add(last.min(now), settled);
        }
        rolling
    }

    fn roll(&mut self, now: i64) {
        while let Some((start, settled)) = self.slots.front().copied()
            && start + self.slot <= now - self.length
        {
            self.settled -= settled;
            self.slots.pop_front();
        }
    }

    /// Counts what was admitted then, unless its slot has passed.
    fn add(&mut self, admitted: i64, cost: Amounts) {
        let start = admitted - admitted.rem_euclid(self.slot);
        let passed = self.slots.back().is_some_and(|(newest, _)| start + self.slot <= *newest - self.length);
        if passed || cost == Amounts::ZERO {
            return;
        }
        let after = self.slots.partition_point(|(other, _)| *other <= start);
        match after.checked_sub(1).map(|place| &mut self.slots[place]) {
            Some((same, settled)) if *same == start => *settled += cost,
            _ => self.slots.insert(after, (start, cost)),
        }
        self.settled += cost;
    }
}
