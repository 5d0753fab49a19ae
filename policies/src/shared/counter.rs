//! Which counter a budget counts in at a time: the name that all gateways know it by.

use crate::window::bounds;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{BudgetConfig, Owner, Window};

/// A rolling window forgets in steps of this part of its length.
const SLOTS: i64 = 64;

/// One counter: a budget's owner, measure and window. The limit is no part of it, so it can change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Counter {
    /// Its name.
    pub key: Arc<str>,
    /// When its window ends, microseconds since 1970; kept for ever without one.
    pub ends: Option<i64>,
    /// Set for a rolling window.
    pub rolls: Option<Rolls>,
}

/// A rolling window's measures, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rolls {
    /// How far back it counts.
    pub length: i64,
    /// The steps in which it forgets.
    pub slot: i64,
}

impl Counter {
    /// The counter of a budget for what is admitted at that time (microseconds since 1970).
    pub fn of(rule: &BudgetConfig, admitted: i64) -> Self {
        let Owner { scope, id } = &rule.owner;
        let mut key = format!("{}:{}:{}", scope.name(), rule.limit.measure(), rule.window).replace(' ', "_");
        let (mut ends, mut rolls) = (None, None);
        if let Window::Rolling(length) = rule.window {
            rolls = Some(Rolls::over(length));
        } else {
            let (start, end) = bounds(rule.window, &rule.zone, admitted);
            ends = (end != i64::MAX).then_some(end);
            // Windows of other zones are others, even those that begin together now and then.
            if start != i64::MIN {
                let zone = rule.zone.iana_name().map_or_else(|| format!("{:?}", rule.zone), str::to_owned);
                _ = write!(key, ":{zone}:{start}");
            }
        }
        // At the end, because it may hold anything.
        _ = write!(key, ":{id}");
        Self { key: key.into(), ends, rolls }
    }

    /// When it may be forgotten, milliseconds since 1970.
    pub(super) fn ends_ms(&self, now: i64) -> Option<i64> {
        let end = self.rolls.map(|rolls| now.saturating_add(rolls.length)).or(self.ends);
        end.map(|end| end / 1000 + 1)
    }
}

impl Rolls {
    /// A rolling window of this length; slots as in a gateway's own counters.
    pub fn over(length: Duration) -> Self {
        let length = i64::try_from(length.as_micros()).unwrap_or(i64::MAX);
        Self { length, slot: (length / SLOTS).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::budget;
    use std::collections::HashSet;
    use tollkeeper_config::{Limit, Scope, Usd};

    #[test]
    fn counters_are_told_apart_by_all_that_a_budget_is_but_its_limit() {
        let minute = 60_000_000;
        let windows =
            [Window::Minute, Window::Hour, Window::Day, Window::Total, Window::Rolling(Duration::from_secs(600))];
        let limits = [Limit::Usd(Usd(7)), Limit::Tokens(7), Limit::Requests(7)];
        let owners = [(Scope::Agent, "a"), (Scope::Agent, "a:b"), (Scope::Team, "a"), (Scope::Run, "a")];
        let mut keys = HashSet::new();
        for (scope, id) in owners {
            for window in windows {
                for limit in limits {
                    let rule = budget(Owner::new(scope, id), window, limit);
                    let counter = Counter::of(&rule, 90 * minute);
                    assert!(keys.insert(counter.key.clone()), "{} twice", counter.key);
                    let larger = BudgetConfig { limit: Limit::Usd(Usd(8)), ..rule.clone() };
                    assert!(!matches!(limit, Limit::Usd(_)) || Counter::of(&larger, 90 * minute) == counter);
                    assert_eq!(Counter::of(&rule, 90 * minute + 1), counter);
                    let later = Counter::of(&rule, 90 * minute + minute * 60 * 24);
                    let for_ever = matches!(window, Window::Total | Window::Rolling(_));
                    assert_eq!(later.key == counter.key, for_ever, "{}", counter.key);
                    assert_eq!(counter.ends.is_none(), for_ever);
                }
            }
        }
    }
}
