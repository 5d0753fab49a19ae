//! Spend velocity: whether an agent or run spends far faster than is normal for it, and what is done about it.
//!
//! A [`Watch`] is told of every admitted call and of every cost, and says which [`Stage`] holds. It is pure: it has no
//! clock, takes constant memory (about two kilobytes) and constant time for each call.
//!
//! **What is normal.** Agents work for minutes and rest for hours, so a rate over all time says nothing. Time is counted
//! in bins of work (a quarter of an hour, ended early by a minute of rest; half an hour for drifts). Their rates go into an
//! EWMA (Roberts 1959; NIST/SEMATECH e-Handbook of Statistical Methods §6.3.2.4) that weighs what lies above it nineteen
//! times as much as what lies below: it goes to the 0.95-expectile (Newey & Powell 1987), the rate of the busier times,
//! because an agent is not to be stopped whenever it is busier than its mean. Before there is history a configured rate is
//! assumed, which counts for a quarter of an hour of work. No bin counts for more than three times normal, and what was
//! throttled or stopped counts for nothing once an agent is known, so that an attack does not teach that it is normal.
//!
//! **What is too fast.** Each measure (USD, tokens, calls) fills one bucket for each stage. A bucket drains at the
//! stage's multiple of normal: it is the one-sided CUSUM of Page (1954; NIST handbook §6.3.2.3) with that multiple as its
//! reference value. How deep it is decides how often chance alone fills it: for amounts that come at random as lumps
//! of size q that chance is below e^(−θh/q) at each of them, where e^θ = 1 + kθ for the multiple k (Lundberg's bound), and
//! so h is the evidence asked for, divided by θ, in lumps. The lump is `E[x³]/E[x²]` of what comes within a second: dear
//! calls and parallel ones make it larger. An excess of fewer than five calls or eight seconds is never enough. Stages are
//! climbed one by one, two seconds apart at least. A slow CUSUM over half hours tells of drifts.
//!
//! **The unknown.** With less than two hours of work behind it an agent is told of once, and throttled at most: that
//! already bounds what it spends to what is assumed to be normal. The same traffic can be an agent's first batch job or a
//! loop; only its history tells them apart.
//!
//! **Loops.** The same signature (prompt or tool call) again and again fills a bucket of its own, whatever the rate is.
//!
//! Statistics are `f64`: no amount of money is decided by them. They are sums, products and quotients of finite numbers
//! that are not negative, and every divisor is more than 0, so that none becomes infinite or NaN.

mod baseline;
mod gauge;
mod ladder;
mod repeats;

pub use baseline::Learned;
pub use gauge::LearnedMeasure;
pub use ladder::{Level, Stage};

use gauge::{Bounds, Full, Gauge};
use ladder::Ladder;
use repeats::Repeats;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tollkeeper_config::{StageRule, Usd, VelocityConfig};

/// Share of the daily cap that no bucket for USD exceeds, however dear the calls: what leaks while it fills comes on top,
/// and both together are to stay below 2 %.
const CAP_SHARE: f64 = 0.0075;
/// Longest and shortest time between throttled calls, in microseconds.
const SPACING: (f64, f64) = (50_000.0, 60_000_000.0);
const MEASURES: [Measure; 3] = [Measure::Usd, Measure::Tokens, Measure::Calls];

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Measure {
    /// Money, in nano-dollars.
    Usd,
    /// Input and output tokens.
    Tokens,
    /// Admitted calls.
    Calls,
}

/// Why the stage changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A rate is too high for the stage that was left.
    Fast {
        /// Of what.
        measure: Measure,
        /// The rate since it became too high, in the measure's unit per hour.
        rate: u64,
        /// The normal rate, likewise.
        normal: u64,
    },
    /// A rate has been higher than normal for hours.
    Drift {
        /// Of what.
        measure: Measure,
        /// The normal rate that it left, in the measure's unit per hour.
        normal: u64,
    },
    /// The same prompt or tool call came again and again.
    Loop {
        /// So often, less what polling would have come to.
        repeats: u32,
    },
    /// The cool-down ended.
    Cooled,
    /// Someone resumed it.
    Resumed,
    /// Someone set it.
    Held,
}

impl Measure {
    fn unit(self) -> &'static str {
        match self {
            Self::Usd => "USD",
            Self::Tokens => "tokens",
            Self::Calls => "calls",
        }
    }

    fn shown(self, units: u64) -> String {
        match self {
            Self::Usd => Usd(i64::try_from(units).unwrap_or(i64::MAX)).to_string(),
            Self::Tokens | Self::Calls => units.to_string(),
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fast { measure, rate, normal } => {
                let (rate, normal) = (measure.shown(*rate), measure.shown(*normal));
                write!(f, "{rate} {} an hour, normal is {normal}", measure.unit())
            }
            Self::Drift { measure, normal } => {
                write!(f, "for hours more than {} {} an hour, which was normal", measure.shown(*normal), measure.unit())
            }
            Self::Loop { repeats } => write!(f, "the same was asked {repeats} times"),
            Self::Cooled => f.write_str("the rate is normal again"),
            Self::Resumed => f.write_str("somebody resumed it"),
            Self::Held => f.write_str("somebody set it"),
        }
    }
}

/// A change of stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// What held before.
    pub from: Level,
    /// What holds now.
    pub to: Level,
    /// Why.
    pub reason: Reason,
}

/// What is normal for an agent, to be kept over a restart; [`Default`] is an agent without history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    usd: LearnedMeasure,
    tokens: LearnedMeasure,
    calls: LearnedMeasure,
}

/// Watches one agent or run. Times are microseconds since 1970; one before an earlier one counts as that.
#[derive(Debug, Clone)]
pub struct Watch {
    enabled: bool,
    drifts: bool,
    gauges: [Gauge; MEASURES.len()],
    repeats: Repeats,
    ladder: Ladder,
    calls: u64,
    now: i64,
    /// The earliest time for the next throttled call.
    next: i64,
}

impl Watch {
    /// Watches someone of whom `baseline` is known. `daily_cap` is what it may spend in a day (or a run in all), if there
    /// is such a limit.
    pub fn new(rules: &VelocityConfig, daily_cap: Option<Usd>, baseline: &Baseline) -> Self {
        let stages = [rules.notify, rules.throttle, rules.local, rules.pause, rules.kill];
        let on = stages.iter().enumerate().fold(0, |on, (stage, rule)| on | u8::from(rule.is_some()) << stage);
        // Each stage is as strict as the next that is on: the first bucket is what an excess is measured from.
        let multiples = [0, 1, 2, 3, 4].map(|stage| {
            let next = stages[stage..].iter().flatten().next();
            next.map_or(1e6, |rule| rule.at.clamp(1.1, 1e6))
        });
        let cool_downs = stages.map(|rule: Option<StageRule>| rule.and_then(|rule| rule.cool_down).map(micros));
        let bounds = Bounds::new(multiples, rules.drift.unwrap_or(2.0).clamp(1.1, 1e6));
        let cap = daily_cap.map(|cap| cap.0.max(1) as f64);
        let usd = match cap {
            Some(cap) => cap * f64::from(rules.floor.cap_percent) / 100.0 / 3600.0,
            None => rules.floor.usd.0.max(1) as f64 / 60.0,
        };
        let most = cap.map(|cap| cap * CAP_SHARE);
        let repeats = rules.loop_repeats.map(f64::from);
        Self {
            enabled: rules.enabled,
            drifts: rules.drift.is_some(),
            gauges: [
                Gauge::new(bounds, usd, most, baseline.usd).long_tailed(),
                Gauge::new(bounds, rules.floor.tokens as f64 / 60.0, None, baseline.tokens).long_tailed(),
                Gauge::new(bounds, f64::from(rules.floor.calls) / 60.0, None, baseline.calls),
            ],
            repeats: Repeats::new(repeats, micros(rules.loop_interval) as f64),
            ladder: Ladder::new(on, cool_downs, micros(rules.grace)),
            calls: 0,
            now: i64::MIN,
            next: i64::MIN,
        }
    }

    /// Takes over other rules or another cap. Stage and baseline stay; what was under suspicion starts anew.
    pub fn configure(&mut self, rules: &VelocityConfig, daily_cap: Option<Usd>) {
        let fresh = Self::new(rules, daily_cap, &self.baseline());
        let ladder = self.ladder.with(fresh.ladder);
        *self = Self { ladder, calls: self.calls, now: self.now, next: self.next, ..fresh };
    }

    /// What was learned, for [`new`](Self::new) after a restart.
    pub fn baseline(&self) -> Baseline {
        let [usd, tokens, calls] = [0, 1, 2].map(|at| self.gauges[at].learned());
        Baseline { usd, tokens, calls }
    }

    /// Counts a call. `signature` is a hash of what it asks: its last message or tool call. A throttled call takes its
    /// turn with this, so ask [`stage`](Self::stage) for its delay before.
    pub fn admitted(&mut self, now: i64, signature: Option<u64>) -> Option<Transition> {
        let (now, from) = self.begin(now)?;
        self.calls = self.calls.saturating_add(1);
        if self.is_known() {
            self.ladder.is_known(now);
        }
        if self.ladder.level() == Level::Throttle {
            self.next = self.next.max(now).saturating_add(self.spacing());
        }
        let full = self.gauges[Measure::Calls as usize].add(now, 1.0, self.calls, self.is_example());
        let mut reason = self.rise(now, Measure::Calls, full);
        if let Some(signature) = signature {
            let (bits, count) = self.repeats.see(now, signature);
            if self.ladder.rise(now, bits) {
                reason = Some(Reason::Loop { repeats: count as u32 });
            }
        }
        self.end(from, reason)
    }

    /// Counts a cost as it becomes known: at a lease's extension or settlement.
    pub fn spent(&mut self, now: i64, usd: Usd, tokens: u64) -> Option<Transition> {
        let (now, from) = self.begin(now)?;
        let mut reason = None;
        for (measure, amount) in [(Measure::Usd, usd.0.max(0) as f64), (Measure::Tokens, tokens as f64)] {
            let full = self.gauges[measure as usize].add(now, amount, self.calls, self.is_example());
            reason = self.rise(now, measure, full).or(reason);
        }
        self.end(from, reason)
    }

    /// Lets cool-downs end. The other calls do so too: this is for whoever wants to be told in time.
    pub fn tick(&mut self, now: i64) -> Option<Transition> {
        let (_, from) = self.begin(now)?;
        self.end(from, None)
    }

    /// What holds now.
    pub fn stage(&self, now: i64) -> Stage {
        let now = now.max(self.now);
        match self.ladder.cooled(now) {
            Level::Normal => Stage::Normal,
            Level::Notify => Stage::Notify,
            Level::Throttle => {
                let wait = self.next.max(now).saturating_sub(now);
                Stage::Throttle { delay: Duration::from_micros(wait.unsigned_abs()) }
            }
            Level::Local => Stage::Local,
            Level::Paused => Stage::Paused { until: self.ladder.until() },
            Level::Killed => Stage::Killed,
        }
    }

    /// Back to normal by hand. For the time of grace nothing up to the stage that is left begins again, and what is going
    /// on is learned.
    pub fn resume(&mut self, now: i64) -> Option<Transition> {
        self.now = self.now.max(now);
        let from = self.ladder.cooled(self.now);
        self.clear();
        self.ladder.resume(self.now);
        (from != Level::Normal).then_some(Transition { from, to: Level::Normal, reason: Reason::Resumed })
    }

    /// Sets a stage by hand, until it is resumed or another is set: [`Level::Normal`] lets everything pass. Until then nothing else
    /// changes it.
    pub fn hold(&mut self, now: i64, level: Level) -> Option<Transition> {
        self.now = self.now.max(now);
        let from = self.ladder.cooled(self.now);
        self.ladder.hold(level, self.now);
        (from != level).then_some(Transition { from, to: level, reason: Reason::Held })
    }

    /// Forgets what is normal, for an agent that was given other work.
    pub fn forget(&mut self, rules: &VelocityConfig, daily_cap: Option<Usd>) {
        let fresh = Self::new(rules, daily_cap, &Baseline::default());
        self.gauges = fresh.gauges;
    }

    /// The time that counts, and the level before whatever happens now; `None` when nobody is watched.
    fn begin(&mut self, now: i64) -> Option<(i64, Level)> {
        if !self.enabled {
            return None;
        }
        self.now = self.now.max(now);
        let from = self.ladder.level();
        self.ladder.cool(self.now);
        Some((self.now, from))
    }

    fn rise(&mut self, now: i64, measure: Measure, full: Full) -> Option<Reason> {
        let gauge = &self.gauges[measure as usize];
        if full.stages != 0 && self.ladder.rise(now, full.stages) {
            if self.ladder.level() == Level::Notify && !self.is_known() {
                self.ladder.tell_once(now);
            }
            let rate = per_hour(gauge.excess_rate());
            return Some(Reason::Fast { measure, rate, normal: per_hour(gauge.normal()) });
        }
        let drifted = full.drift && self.drifts && self.ladder.rise(now, 1);
        drifted.then(|| Reason::Drift { measure, normal: per_hour(gauge.slow_normal()) })
    }

    fn end(&mut self, from: Level, reason: Option<Reason>) -> Option<Transition> {
        let to = self.ladder.level();
        if to == from {
            return None;
        }
        if to >= Level::Paused {
            // What led here is dealt with; whoever comes back begins anew.
            self.clear();
        }
        Some(Transition { from, to, reason: reason.unwrap_or(Reason::Cooled) })
    }

    /// Whether what happens now may teach what is normal.
    fn is_example(&self) -> bool {
        self.ladder.level() < Level::Throttle || !self.is_known()
    }

    /// Whether its own history says what is normal.
    fn is_known(&self) -> bool {
        self.gauges[Measure::Calls as usize].is_known()
    }

    /// Microseconds from one throttled call to the next: as many as a call of this kind comes to in normal work.
    fn spacing(&self) -> i64 {
        let seconds = self.gauges.iter().map(|gauge| gauge.seconds_of_a_call(self.calls)).fold(0.0, f64::max);
        (seconds * 1e6).clamp(SPACING.0, SPACING.1) as i64
    }

    fn clear(&mut self) {
        self.gauges.iter_mut().for_each(Gauge::clear);
        self.repeats.clear();
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// As a whole number; beyond what one holds, the nearest.
fn per_hour(per_second: f64) -> u64 {
    (per_second * 3600.0).round() as u64
}
