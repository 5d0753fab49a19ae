//! The stages, and how one leads to the next: up one at a time, down when they have cooled, anywhere by hand.

use super::gauge::STAGES;
use std::time::Duration;

/// Each stage gets so many microseconds to take effect before the next one may begin.
const STEP: i64 = 2_000_000;
/// Of whom little is known is told once a week.
const UNKNOWN: i64 = 7 * 86_400_000_000;

/// How far it has come, mildest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is wrong.
    #[default]
    Normal,
    /// Someone was told.
    Notify,
    /// Requests are spaced out.
    Throttle,
    /// Only local models answer.
    Local,
    /// Requests are refused for some time or until it is resumed.
    Paused,
    /// Requests are refused until it is resumed.
    Killed,
}

/// What holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing is wrong.
    Normal,
    /// Someone was told; requests go on.
    Notify,
    /// The next request has to wait.
    Throttle {
        /// So long.
        delay: Duration,
    },
    /// Only local models may answer.
    Local,
    /// Requests are refused.
    Paused {
        /// Microseconds since 1970 at which that ends; `None` is when someone resumes it.
        until: Option<i64>,
    },
    /// Requests are refused until someone resumes it.
    Killed,
}

impl Stage {
    /// The level without what comes with it.
    pub fn level(self) -> Level {
        match self {
            Self::Normal => Level::Normal,
            Self::Notify => Level::Notify,
            Self::Throttle { .. } => Level::Throttle,
            Self::Local => Level::Local,
            Self::Paused { .. } => Level::Paused,
            Self::Killed => Level::Killed,
        }
    }
}

impl Level {
    /// All of them with their names, mildest first.
    pub const NAMES: [(&'static str, Self); 6] = [
        ("normal", Self::Normal),
        ("notify", Self::Notify),
        ("throttle", Self::Throttle),
        ("local", Self::Local),
        ("paused", Self::Paused),
        ("killed", Self::Killed),
    ];

    /// The name in the API, in notices and in the ledger.
    pub fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(_, level)| *level == self).map_or("", |(name, _)| name)
    }
}

const LEVELS: [Level; STAGES] = [Level::Notify, Level::Throttle, Level::Local, Level::Paused, Level::Killed];

/// Until when a stage was set by hand; without a time, until it is released.
#[derive(Debug, Clone, Copy)]
struct Held {
    until: Option<i64>,
}

/// Where an agent or run stands.
#[derive(Debug, Clone)]
pub(super) struct Ladder {
    /// A bit for each stage that is on.
    on: u8,
    /// Microseconds that each stage lasts; `None` is until it is resumed.
    cool_downs: [Option<i64>; STAGES],
    grace: i64,
    level: Level,
    entered: i64,
    /// Until when each stage lasts if nothing happens.
    hot: [i64; STAGES],
    /// Whether the first stage lasts until it is known.
    once: bool,
    /// Set by hand: nothing else changes it, until then.
    held: Option<Held>,
    /// Up to this level nothing begins until then.
    spared: (Level, i64),
}

impl Held {
    fn has_ended(self, now: i64) -> bool {
        self.until.is_some_and(|until| now >= until)
    }
}

impl Ladder {
    pub(super) fn new(on: u8, cool_downs: [Option<i64>; STAGES], grace: i64) -> Self {
        Self {
            on,
            cool_downs,
            grace,
            level: Level::Normal,
            entered: i64::MIN,
            hot: [i64::MIN; STAGES],
            once: false,
            held: None,
            spared: (Level::Normal, i64::MIN),
        }
    }

    /// Someone was told of an agent of whom little is known: that lasts for a week, or until it is known.
    pub(super) fn tell_once(&mut self, now: i64) {
        self.hot[0] = now.saturating_add(UNKNOWN);
        self.once = true;
    }

    /// It is known now.
    pub(super) fn is_known(&mut self, now: i64) {
        if std::mem::take(&mut self.once) {
            self.hot[0] = self.hot[0].min(now.saturating_add(self.cool_downs[0].unwrap_or(0)));
        }
    }

    /// Other rules, the same standing.
    pub(super) fn with(&self, rules: Self) -> Self {
        Self { on: rules.on, cool_downs: rules.cool_downs, grace: rules.grace, ..self.clone() }
    }

    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// When the present stage ends if nothing happens; `None` for those that a hand must end.
    pub(super) fn until(&self) -> Option<i64> {
        if let Some(held) = self.held {
            return held.until;
        }
        let stage = (self.level as usize).checked_sub(1)?;
        self.cool_downs[stage].map(|_| self.hot[stage])
    }

    /// The level that holds at `now`, cool-downs that have ended counted.
    pub(super) fn cooled(&self, now: i64) -> Level {
        if let Some(held) = self.held {
            return if held.has_ended(now) { Level::Normal } else { self.level };
        }
        let mut level = self.level;
        while let Some(stage) = (level as usize).checked_sub(1) {
            let lasts = self.cool_downs[stage].is_none() || now < self.hot[stage];
            if lasts && !self.is_off(level) {
                return level;
            }
            // A pause ends all that led to it.
            level = if level >= Level::Paused { Level::Normal } else { self.milder(stage) };
        }
        level
    }

    /// Whether rules that came after this level was reached have turned it off. A kill is always ended by hand.
    fn is_off(&self, level: Level) -> bool {
        let stage = (level as usize).checked_sub(1).filter(|_| level < Level::Killed);
        stage.is_some_and(|stage| self.on >> stage & 1 == 0)
    }

    /// Whether the present level was turned off while its traffic kept it there.
    pub(super) fn is_turned_off(&self) -> bool {
        self.held.is_none() && self.is_off(self.level)
    }

    /// The next milder stage that is on, or normal.
    fn milder(&self, stage: usize) -> Level {
        (0..stage).rev().find(|stage| self.on >> stage & 1 == 1).map_or(Level::Normal, |stage| LEVELS[stage])
    }

    /// Goes down to what holds at `now`.
    pub(super) fn cool(&mut self, now: i64) {
        let level = self.cooled(now);
        self.held = self.held.filter(|held| !held.has_ended(now));
        if level != self.level {
            self.set(level, now);
        }
    }

    /// Whether it was set by hand when it was looked at last.
    pub(super) fn is_set_by_hand(&self) -> bool {
        self.held.is_some()
    }

    /// Whether it was set by hand, and that has not ended.
    pub(super) fn is_held(&self, now: i64) -> bool {
        self.held.is_some_and(|held| !held.has_ended(now))
    }

    /// What is too fast for the stages of these bits keeps the present one going, and leads to the next. Returns whether it
    /// led there.
    pub(super) fn rise(&mut self, now: i64, bits: u8) -> bool {
        let spared = if now < self.spared.1 { self.spared.0 as usize } else { 0 };
        let bits = bits & self.on;
        let bits = if bits >> spared == 0 { 0 } else { bits };
        let place = self.level as usize;
        if bits == 0 || self.held.is_some() || self.level >= Level::Killed {
            return false;
        }
        // A pause ends when it was said to end.
        if self.level < Level::Paused {
            for stage in (0..place).filter(|stage| bits >> stage & 1 == 1) {
                let until = now.saturating_add(self.cool_downs[stage].unwrap_or(0));
                self.hot[stage] = self.hot[stage].max(until);
            }
        }
        let stepped = self.level == Level::Normal || now.saturating_sub(self.entered) >= STEP;
        let next = (place.max(spared)..STAGES).find(|stage| self.on >> stage & 1 == 1);
        let Some(next) = next.filter(|next| stepped && self.all_up_to(*next, bits)) else { return false };
        // Where requests are refused nothing gets faster: who is fast enough to be killed is killed at once.
        let kill = STAGES - 1;
        let next = if LEVELS[next] == Level::Paused && bits >> kill & 1 == 1 { kill } else { next };
        self.hot[next] = now.saturating_add(self.cool_downs[next].unwrap_or(0));
        self.set(LEVELS[next], now);
        true
    }

    /// Whether it is too fast for this stage and for all milder ones.
    fn all_up_to(&self, stage: usize, bits: u8) -> bool {
        let wanted = self.on & !(u8::MAX << (stage + 1));
        bits & wanted == wanted
    }

    /// Back to normal by hand: for the time of grace nothing up to the level that is left begins again.
    pub(super) fn resume(&mut self, now: i64) {
        self.spared = (self.level.min(Level::Paused), now.saturating_add(self.grace));
        self.release(now);
    }

    /// Stays at a level until then, or until it is released.
    pub(super) fn hold(&mut self, level: Level, now: i64, until: Option<i64>) {
        self.held = Some(Held { until });
        self.set(level, now);
    }

    /// Back to normal, from where its traffic decides.
    pub(super) fn release(&mut self, now: i64) {
        self.held = None;
        self.set(Level::Normal, now);
    }

    fn set(&mut self, level: Level, now: i64) {
        (self.level, self.entered) = (level, now);
        // What is above it has ended.
        let above = &mut self.hot[level as usize..];
        above.iter_mut().for_each(|hot| *hot = i64::MIN);
    }
}
