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
        let mut key = name(&rule.owner);
        _ = write!(key, ":{}:{}", rule.limit.measure(), rule.window.to_string().replace(' ', "_"));
        if let Window::Rolling(length) = rule.window {
            return Self { key: key.into(), ends: None, rolls: Some(Rolls::over(length)) };
        }
        let (start, end) = bounds(rule.window, &rule.zone, admitted);
        // Windows of other zones are others, even those that begin together now and then.
        if start != i64::MIN {
            _ = write!(
                key,
                ":{}:{start}",
                rule.zone.iana_name().map_or_else(|| format!("{:?}", rule.zone), str::to_owned)
            );
        }
        Self { key: key.into(), ends: (end != i64::MAX).then_some(end), rolls: None }
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

fn name(owner: &Owner) -> String {
    format!("{}:{}", owner.scope.name(), owner.id)
}
