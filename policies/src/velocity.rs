//! Spend velocity: whether an agent or run spends far faster than is normal for it, and what is done about it.
//!
//! A [`Watch`] is told of every admitted call and of every cost, and says which [`Stage`] holds. It is pure: it has no
//! clock, takes constant memory (about three kilobytes) and constant time for each call.
//!
//! **What is normal.** Agents work for minutes and rest for hours, so a rate over all time says nothing. Time is counted
//! in bins of work (a quarter of an hour, ended early by a minute of rest; half an hour for drifts). Of their rates the mean
//! and the mean square are kept (EWMAs with a memory of a day of work), less what chance adds to a square: of amounts that
//! come at random, the sum of their squares (Campbell's theorem for compound Poisson sums). Their quotient, the rate that a
//! unit of work meets, is what is normal: that of the busier times. The spread of a log-normal with these moments says how
//! busy a session may be by chance. Before there is history a configured rate is assumed, which counts for less and less
//! over two hours of work. No bin counts for more than 2.5 times normal, and what was throttled or stopped counts for
//! nothing once an agent is known, so that an attack does not teach that it is normal.
//!
//! **What is too fast.** Each measure (USD, tokens, calls, and calls with parallel ones counted once: turns) fills one bucket
//! for each stage. A bucket drains at the stage's multiple of normal: it is the one-sided CUSUM of Page (1954; NIST/SEMATECH
//! e-Handbook of Statistical Methods §6.3.2.3) with that multiple as its reference value, which is the likelihood ratio test
//! of a Poisson rate against one a few times as high (Lucas 1985, "Counted data CUSUM's"). How deep it is decides how often
//! chance alone fills it: for lumps of size q at random times that is below e^(−θh/q) at each of them, where e^θ = 1 + kθ for
//! the multiple k (Lundberg's bound), so that h is the evidence asked for, divided by θ, in lumps. The evidence comes of the
//! false alarms that are allowed: a tenth of one a month for an agent that calls six times a minute, and so 260,000 times.
//! Turns are lumps of one; for the others the lump is `E[x³]/E[x²]` of what comes within a second, and half more evidence is
//! asked for, as prices have long tails. An excess of fewer than five calls or eight seconds is never enough. Stages are
//! climbed one by one, two seconds apart at least. A slow CUSUM over half hours tells of drifts.
//!
//! **Bursts.** An agent whose sessions differ is measured against its busiest ones too, three standard deviations up: the
//! first stage begins no lower than 1.8 times that, and is as deep as chance in such a session makes it. Within a session
//! that is narrowed down by what it has done up to half a minute ago (a Gamma prior of the learned mean and spread, and
//! Poisson counts), so that a loop in the midst of a session is measured against that session.
//!
//! **False alarms.** After an alarm has ended, or somebody has resumed, the next one within 30 days takes more evidence: an
//! allowance that is spent and comes back, as in alpha-investing (Foster & Stine 2008).
//!
//! **What cannot be had.** Calls that come at random carry only so much information. At six turns a minute, ten times that
//! is thirty in half a minute where three are normal. Telling at the sixteenth misses 2 loops in 1,000 within that time (a
//! Poisson count of mean 30 below 16) and cries wolf 0.1 times a month (of mean 3, 16 or more, in any half minute); no test
//! does much better at both. An agent that calls more seldom is caught after as many calls, so later.
//!
//! **The unknown.** With less than two hours of work behind it an agent is told of once, and throttled at most: that
//! already bounds what it spends to what is assumed to be normal. The same traffic can be an agent's first batch job or a
//! loop; only its history tells them apart. Of turns alone it is told, no more.
//!
//! **Loops.** The same signature (prompt or tool call) again and again fills a bucket of its own, whatever the rate is.
//!
//! Statistics are `f64`: no amount of money is decided by them. They are sums, products and quotients of finite numbers
//! that are not negative, and every divisor is more than 0, so that none becomes infinite or NaN.

mod baseline;
mod doubt;
mod gauge;
mod ladder;
mod repeats;
mod session;
mod standing;

pub use baseline::Learned;
pub use gauge::LearnedMeasure;
pub use ladder::{Level, Stage};
pub use standing::{Speed, Standing};

use doubt::Doubt;
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
/// Parallel calls are one turn if they come within this time, in microseconds, or within this share of what lies between turns
/// in normal work: a loop is not to hide in it.
const PARALLEL: f64 = 100_000.0;
const PARALLEL_SHARE: f64 = 0.03;
/// The rate of turns that is assumed without history is this share of that of calls.
const ASSUMED_TURNS: f64 = 0.2;
const MEASURES: [Measure; 4] = [Measure::Usd, Measure::Tokens, Measure::Calls, Measure::Turns];

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Measure {
    /// Money, in nano-dollars.
    Usd,
    /// Input and output tokens.
    Tokens,
    /// Admitted calls.
    Calls,
    /// Admitted calls, parallel ones counted once.
    Turns,
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
    /// The stage was turned off.
    Off,
    /// Someone resumed it.
    Resumed,
    /// Someone set it.
    Held,
    /// The time that someone set it for is over, or someone released it.
    Released,
}

impl Measure {
    fn unit(self) -> &'static str {
        match self {
            Self::Usd => "USD",
            Self::Tokens => "tokens",
            Self::Calls => "calls",
            Self::Turns => "calls that are not parallel",
        }
    }

    fn shown(self, units: u64) -> String {
        match self {
            Self::Usd => Usd(i64::try_from(units).unwrap_or(i64::MAX)).to_string(),
            Self::Tokens | Self::Calls | Self::Turns => units.to_string(),
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
            Self::Off => f.write_str("this stage was turned off"),
            Self::Resumed => f.write_str("somebody resumed it"),
            Self::Held => f.write_str("somebody set it"),
            Self::Released => f.write_str("what somebody had set is over"),
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
    #[serde(default)]
    turns: LearnedMeasure,
    #[serde(default)]
    doubt: Doubt,
}

/// What held before something happened, and why it holds no more if nothing else changes it.
#[derive(Debug, Clone, Copy)]
struct Before {
    level: Level,
    over: Reason,
}

/// Watches one agent or run. Times are microseconds since 1970; one before an earlier one counts as that.
#[derive(Debug, Clone)]
pub struct Watch {
    enabled: bool,
    drifts: bool,
    gauges: [Gauge; MEASURES.len()],
    repeats: Repeats,
    ladder: Ladder,
    doubt: Doubt,
    calls: u64,
    /// When the present turn began.
    turn: i64,
    now: i64,
    /// The earliest time for the next throttled call.
    next: i64,
}

impl Watch {
    /// Watches someone of whom `baseline` is known. `daily_cap` is what it may spend in a day (or a run in all), if there
    /// is such a limit.
    pub fn new(rules: &VelocityConfig, daily_cap: Option<Usd>, baseline: &Baseline) -> Self {
        let stages = [rules.notify, rules.throttle, rules.local, rules.pause, rules.kill];
        let is_on = |rule: &Option<StageRule>| rules.enabled && rule.is_some();
        let on = stages.iter().enumerate().fold(0, |on, (stage, rule)| on | u8::from(is_on(rule)) << stage);
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
        let calls = f64::from(rules.floor.calls) / 60.0;
        let repeats = rules.loop_repeats.map(f64::from);
        let mut watch = Self {
            enabled: rules.enabled,
            drifts: rules.drift.is_some(),
            gauges: [
                Gauge::lumps(bounds, usd, most, baseline.usd),
                Gauge::lumps(bounds, rules.floor.tokens as f64 / 60.0, None, baseline.tokens),
                Gauge::lumps(bounds, calls, None, baseline.calls),
                Gauge::single(bounds, calls * ASSUMED_TURNS, baseline.turns),
            ],
            turn: i64::MIN,
            repeats: Repeats::new(repeats, micros(rules.loop_interval) as f64),
            ladder: Ladder::new(on, cool_downs, micros(rules.grace)),
            doubt: baseline.doubt,
            calls: 0,
            now: i64::MIN,
            next: i64::MIN,
        };
        watch.weigh_doubt();
        watch
    }

    /// Takes over other rules or another cap. Baseline and stage stay, unless that is off now (a kill stays all the same);
    /// what was under suspicion starts anew.
    pub fn configure(&mut self, rules: &VelocityConfig, daily_cap: Option<Usd>) {
        let fresh = Self::new(rules, daily_cap, &self.baseline());
        let ladder = self.ladder.with(fresh.ladder);
        *self = Self { ladder, calls: self.calls, now: self.now, next: self.next, ..fresh };
    }

    /// What was learned, for [`new`](Self::new) after a restart.
    pub fn baseline(&self) -> Baseline {
        let [usd, tokens, calls, turns] = MEASURES.map(|measure| self.gauges[measure as usize].learned());
        Baseline { usd, tokens, calls, turns, doubt: self.doubt }
    }

    /// Counts a call. `signature` is a hash of what it asks: its last message or tool call. A throttled call takes its
    /// turn with this, so ask [`stage`](Self::stage) for its delay before.
    pub fn admitted(&mut self, now: i64, signature: Option<u64>) -> Option<Transition> {
        let (now, before) = self.begin(now)?;
        if !self.enabled {
            return self.end(before, None);
        }
        self.calls = self.calls.saturating_add(1);
        if self.is_known() {
            self.ladder.is_known(now);
        }
        if self.ladder.level() == Level::Throttle {
            self.next = self.next.max(now).saturating_add(self.spacing());
        }
        let example = self.is_example();
        let full = self.gauges[Measure::Calls as usize].add(now, 1.0, self.calls, example);
        let mut reason = self.rise(now, Measure::Calls, full);
        let turns = &mut self.gauges[Measure::Turns as usize];
        let parallel = PARALLEL.min(PARALLEL_SHARE * 1e6 / turns.normal());
        if now.saturating_sub(self.turn) as f64 >= parallel {
            self.turn = now;
            let full = turns.add(now, 1.0, self.calls, example);
            reason = self.rise(now, Measure::Turns, full).or(reason);
        }
        if let Some(signature) = signature {
            let (bits, count) = self.repeats.see(now, signature);
            if self.ladder.rise(now, bits) {
                reason = Some(Reason::Loop { repeats: count as u32 });
            }
        }
        self.end(before, reason)
    }

    /// Counts a cost as it becomes known: at a lease's extension or settlement.
    pub fn spent(&mut self, now: i64, usd: Usd, tokens: u64) -> Option<Transition> {
        let (now, before) = self.begin(now)?;
        if !self.enabled {
            return self.end(before, None);
        }
        let mut reason = None;
        for (measure, amount) in [(Measure::Usd, usd.0.max(0) as f64), (Measure::Tokens, tokens as f64)] {
            let full = self.gauges[measure as usize].add(now, amount, self.calls, self.is_example());
            reason = self.rise(now, measure, full).or(reason);
        }
        self.end(before, reason)
    }

    /// Lets cool-downs end. The other calls do so too: this is for whoever wants to be told in time.
    pub fn tick(&mut self, now: i64) -> Option<Transition> {
        let (_, before) = self.begin(now)?;
        self.end(before, None)
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
        let (from, held) = (self.ladder.cooled(self.now), self.ladder.is_set_by_hand());
        self.clear();
        self.ladder.resume(self.now);
        if from > Level::Normal && !held {
            self.doubt.alarm(self.now);
            self.weigh_doubt();
        }
        (from != Level::Normal).then_some(Transition { from, to: Level::Normal, reason: Reason::Resumed })
    }

    /// Sets a stage by hand, until a moment or until it is released, resumed, or another is set: [`Level::Normal`] lets
    /// everything pass. Until then nothing else changes it.
    pub fn hold(&mut self, now: i64, level: Level, until: Option<i64>) -> Option<Transition> {
        self.now = self.now.max(now);
        let from = self.ladder.cooled(self.now);
        self.ladder.hold(level, self.now, until);
        (from != level).then_some(Transition { from, to: level, reason: Reason::Held })
    }

    /// Ends what was set by hand; its traffic decides from now on.
    pub fn release(&mut self, now: i64) -> Option<Transition> {
        self.now = self.now.max(now);
        if !self.ladder.is_held(self.now) {
            return None;
        }
        let from = self.ladder.cooled(self.now);
        self.clear();
        self.ladder.release(self.now);
        (from != Level::Normal).then_some(Transition { from, to: Level::Normal, reason: Reason::Released })
    }

    /// Whether someone has set its stage by hand, and that has not ended.
    pub fn is_held(&self, now: i64) -> bool {
        self.ladder.is_held(now.max(self.now))
    }

    /// How it stands.
    pub fn standing(&self, now: i64) -> Standing {
        let now = now.max(self.now);
        let held = self.ladder.is_held(now);
        let speed = |measure| {
            let gauge = &self.gauges[measure as usize];
            Speed { measure, present: per_hour(gauge.present(now)), normal: per_hour(gauge.normal()) }
        };
        Standing {
            stage: self.stage(now),
            held,
            until: self.ladder.until().filter(|_| held),
            known: self.is_known(),
            speeds: MEASURES.map(speed),
        }
    }

    /// Forgets what is normal, for an agent that was given other work.
    pub fn forget(&mut self, rules: &VelocityConfig, daily_cap: Option<Usd>) {
        let fresh = Self::new(rules, daily_cap, &Baseline::default());
        (self.gauges, self.doubt) = (fresh.gauges, fresh.doubt);
    }

    /// The time that counts, and what held before whatever happens now; `None` when nobody is watched and nothing holds.
    fn begin(&mut self, now: i64) -> Option<(i64, Before)> {
        self.now = self.now.max(now);
        let (level, held) = (self.ladder.level(), self.ladder.is_set_by_hand());
        if !self.enabled && !held && level == Level::Normal {
            return None;
        }
        let over = if self.ladder.is_turned_off() { Reason::Off } else { Reason::Cooled };
        self.ladder.cool(self.now);
        if held {
            if !self.ladder.is_set_by_hand() {
                self.clear();
            }
            return Some((self.now, Before { level, over: Reason::Released }));
        }
        if level > Level::Normal && self.ladder.level() == Level::Normal {
            self.doubt.alarm(self.now);
            self.weigh_doubt();
        } else if self.doubt.forget(self.now) {
            self.weigh_doubt();
        }
        Some((self.now, Before { level, over }))
    }

    fn weigh_doubt(&mut self) {
        let times = self.doubt.times();
        self.gauges.iter_mut().for_each(|gauge| gauge.doubt(times));
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

    fn end(&mut self, before: Before, reason: Option<Reason>) -> Option<Transition> {
        let (from, to) = (before.level, self.ladder.level());
        if to == from {
            return None;
        }
        if to >= Level::Paused {
            // What led here is dealt with; whoever comes back begins anew.
            self.clear();
        }
        Some(Transition { from, to, reason: reason.unwrap_or(before.over) })
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
