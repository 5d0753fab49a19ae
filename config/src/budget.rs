//! What a budget is: whose spending it caps, at what, within which window, and what happens at the limit.

use crate::units::{Usd, parse_duration};
use jiff::tz::TimeZone;
use std::sync::Arc;
use std::time::Duration;

/// A cap on what is spent within a window.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetConfig {
    /// Whose spending it caps.
    pub owner: Owner,
    /// Within which window.
    pub window: Window,
    /// Where calendar windows begin and end.
    pub zone: TimeZone,
    /// The cap.
    pub limit: Limit,
    /// Percentages of the limit that are worth a notice, ascending.
    pub notify_at: Vec<u8>,
    /// What happens to a request that it cannot pay.
    pub on_limit: OnLimit,
    /// Percentage of the limit that only a final answer without tools may use.
    pub wrap_up_pct: u8,
    /// What happens while the store that it is shared through cannot be reached.
    pub on_shared_down: OnSharedDown,
}

/// Whose spending a budget caps.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// What it is.
    pub scope: Scope,
    /// Its name; that of [`Scope::Everything`] is the scope's.
    pub id: Arc<str>,
}

/// What can have a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// The whole gateway.
    Everything,
    /// A provider, with all its models.
    Provider,
    /// A model of a provider, or a local one.
    Model,
    /// What clients name.
    Alias,
    /// Agents of one team.
    Team,
    /// One agent.
    Agent,
    /// One run of an agent.
    Run,
}

/// The time over which a budget counts. Calendar windows begin in the budget's time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// From second 0.
    Minute,
    /// From minute 0.
    Hour,
    /// From midnight.
    Day,
    /// From Monday, midnight.
    Week,
    /// From the first, midnight.
    Month,
    /// Forever.
    Total,
    /// The last so long; whole seconds.
    Rolling(Duration),
}

/// A cap in one of the measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Money.
    Usd(Usd),
    /// Tokens of prompts and answers together.
    Tokens(u64),
    /// Attempts that were charged, free ones included.
    Requests(u64),
}

/// What happens to a request that a budget cannot pay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OnLimit {
    /// It is refused.
    #[default]
    Deny,
    /// A cheaper target answers it, down to a local one; without one it is refused.
    Degrade,
    /// It is refused, and its agent is paused until somebody resumes it.
    Ask,
}

/// What happens to a request while the store that its budget is shared through cannot be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum OnSharedDown {
    /// It is refused.
    #[default]
    Deny,
    /// What this gateway alone has spent decides; together, gateways can then spend the limit once each.
    Local,
}

impl Owner {
    /// The owner of that name.
    pub fn new(scope: Scope, id: impl Into<Arc<str>>) -> Self {
        Self { scope, id: id.into() }
    }

    /// The whole gateway.
    pub fn everything() -> Self {
        Self::new(Scope::Everything, Scope::Everything.name())
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.scope {
            Scope::Everything => f.write_str(self.scope.name()),
            _ => write!(f, "{} `{}`", self.scope.name(), self.id),
        }
    }
}

impl Scope {
    /// All of them, the widest first.
    pub const ALL: [Self; 7] =
        [Self::Everything, Self::Provider, Self::Model, Self::Alias, Self::Team, Self::Agent, Self::Run];

    /// The name in configuration files, error bodies and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Provider => "provider",
            Self::Model => "model",
            Self::Alias => "alias",
            Self::Team => "team",
            Self::Agent => "agent",
            Self::Run => "run",
        }
    }
}

impl Window {
    /// Shortest and longest rolling window.
    const ROLLING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(31 * 86_400));

    const CALENDAR: [(&'static str, Self); 6] = [
        ("minute", Self::Minute),
        ("hour", Self::Hour),
        ("day", Self::Day),
        ("week", Self::Week),
        ("month", Self::Month),
        ("total", Self::Total),
    ];

    /// Reads a calendar window's name, or `rolling` and a duration from a minute to 31 days.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(length) = text.strip_prefix("rolling ") {
            let (shortest, longest) = Self::ROLLING;
            let length = parse_duration(length.trim())?;
            let whole = length.subsec_nanos() == 0 && (shortest..=longest).contains(&length);
            return whole.then_some(Self::Rolling(length));
        }
        Self::CALENDAR.into_iter().find_map(|(name, window)| (name == text).then_some(window))
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Rolling(length) = self else {
            let named = Self::CALENDAR.into_iter().find(|(_, window)| window == self);
            return f.write_str(named.map_or("", |(name, _)| name));
        };
        let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
        let seconds = length.as_secs();
        let (unit, name) = units.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit)).unwrap_or((1, "s"));
        write!(f, "rolling {}{name}", seconds / unit)
    }
}

impl OnLimit {
    /// All of them, with their names.
    pub const NAMES: [(&'static str, Self); 3] = [("deny", Self::Deny), ("degrade", Self::Degrade), ("ask", Self::Ask)];

    /// The name in configuration files and in the API.
    pub fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

impl BudgetConfig {
    /// Whether both cap the same: then a changed limit goes on with what was counted.
    pub fn is_same_budget(&self, other: &Self) -> bool {
        (&self.owner, self.window, &self.zone, self.limit.measure())
            == (&other.owner, other.window, &other.zone, other.limit.measure())
    }

    /// The limit, or the part of it that requests other than final answers may use; in the limit's measure.
    pub fn usable(&self, wrapping_up: bool) -> i128 {
        let limit = self.limit.units();
        if wrapping_up { limit } else { limit - limit * i128::from(self.wrap_up_pct) / 100 }
    }
}

impl OnSharedDown {
    /// All of them, with their names.
    pub const NAMES: [(&'static str, Self); 2] = [("deny", Self::Deny), ("local", Self::Local)];

    /// The name in configuration files and in the API.
    pub fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, value)| *value == self).map_or("", |(name, _)| name)
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

impl Limit {
    /// The measure's name in error bodies and metrics.
    pub fn measure(self) -> &'static str {
        match self {
            Self::Usd(_) => "usd",
            Self::Tokens(_) => "tokens",
            Self::Requests(_) => "requests",
        }
    }

    /// An amount in this measure as people read it: USD as an exact decimal, or a count.
    pub fn shown(self, units: i128) -> String {
        match self {
            Self::Usd(_) => {
                Usd(i64::try_from(units).unwrap_or(if units < 0 { i64::MIN } else { i64::MAX })).to_string()
            }
            Self::Tokens(_) | Self::Requests(_) => units.to_string(),
        }
    }

    /// The highest cap in this measure.
    #[must_use]
    pub fn highest(self) -> Self {
        match self {
            Self::Usd(_) => Self::Usd(Usd(i64::MAX)),
            Self::Tokens(_) => Self::Tokens(u64::MAX),
            Self::Requests(_) => Self::Requests(u64::MAX),
        }
    }

    /// The cap in nano-dollars, tokens or requests.
    pub fn units(self) -> i128 {
        match self {
            Self::Usd(usd) => usd.0.into(),
            Self::Tokens(count) | Self::Requests(count) => count.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_written_as_they_are_read() {
        for text in ["minute", "hour", "day", "week", "month", "total", "rolling 24h", "rolling 90s", "rolling 7d"] {
            let window = Window::parse(text).unwrap();
            assert_eq!(Window::parse(&window.to_string()), Some(window), "{text}");
        }
        assert_eq!(Window::parse("rolling 60m").unwrap().to_string(), "rolling 1h");
        for text in ["", "days", "rolling", "rolling 0s", "rolling 59s", "rolling 32d", "rolling 61500ms", "24h"] {
            assert_eq!(Window::parse(text), None, "{text}");
        }
    }
}
