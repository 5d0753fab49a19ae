//! One shared budget that a lease counts in.

use super::bounded;
use crate::amounts::{Amounts, most_output};
use crate::denied::{Blocked, Denied};
use crate::lease::Spend;
use crate::shared::{Counter, Tally, Want};
use crate::window::{bounds, reset_time};
use tollkeeper_config::{BudgetConfig, Limit, OnSharedDown, Usd};

/// A budget, and the counter of the window that the lease was admitted in.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) rule: BudgetConfig,
    pub(crate) counter: Counter,
    ends: i64,
}

impl Line {
    pub(crate) fn of(rule: &BudgetConfig, admitted: i64) -> Self {
        let (_, ends) = bounds(rule.window, &rule.zone, admitted);
        Self { rule: rule.clone(), counter: Counter::of(rule, admitted), ends }
    }

    /// The same with the budget as it is now; one that is gone limits nothing any more.
    pub(super) fn renewed(&self, rules: &[BudgetConfig]) -> Self {
        let mut renewed = self.clone();
        match rules.iter().find(|rule| rule.is_same_budget(&self.rule)) {
            Some(rule) => renewed.rule = rule.clone(),
            None => renewed.rule.limit = renewed.rule.limit.highest(),
        }
        renewed
    }

    /// What a lease asks for that is to cover `want` output tokens, or fewer but at least `least`.
    pub(super) fn want(&self, spend: &Spend, (least, want): (u64, u64)) -> Want {
        let units = |tokens| bounded(Amounts::worst(spend, tokens).of(self.rule.limit));
        Want {
            counter: self.counter.clone(),
            limit: self.rule.usable(spend.final_answer),
            least: units(least),
            most: units(want),
        }
    }

    /// Output tokens that so much of the counter pays for.
    pub(super) fn affords(&self, spend: &Spend, held: i64) -> Option<u64> {
        most_output(spend, self.rule.limit, held.into())
    }

    pub(super) fn counts_alone(&self) -> bool {
        self.rule.on_shared_down == OnSharedDown::Local
    }

    /// What is left in USD beside what the lease holds, and what that has not used.
    pub(super) fn left(&self, tally: &Tally, cost: i128) -> Option<Usd> {
        matches!(self.rule.limit, Limit::Usd(_)).then(|| {
            let others = tally.settled + tally.leased - tally.held;
            Usd(bounded(self.rule.limit.units() - others - cost))
        })
    }

    /// The highest threshold that `cost` took the counter past.
    pub(super) fn crossed(&self, tally: &Tally, cost: i64) -> Option<u8> {
        let limit = self.rule.limit.units().max(1);
        let reached = |settled: i128| {
            let percent = settled.saturating_mul(100) / limit;
            self.rule.notify_at.iter().rev().copied().find(|threshold| i128::from(*threshold) <= percent)
        };
        let now = reached(tally.settled);
        now.filter(|_| now > reached(tally.settled - i128::from(cost)))
    }

    /// The refusal to pay `estimate` more.
    pub(super) fn denied(&self, tally: &Tally, spend: &Spend, estimate: i128) -> Denied {
        let taken = tally.settled + tally.leased;
        let wrapping_up = !spend.final_answer && taken + estimate <= self.rule.limit.units();
        Denied::Budget(Box::new(Blocked {
            owner: self.rule.owner.clone(),
            window: self.rule.window,
            limit: self.rule.limit,
            spent: tally.settled,
            reserved: tally.leased,
            estimate,
            resets_at: reset_time(self.ends),
            on_limit: self.rule.on_limit,
            kept_pct: wrapping_up.then_some(self.rule.wrap_up_pct),
        }))
    }
}
