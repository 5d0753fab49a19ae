//! Traffic like that of agents, made from a scenario file on a clock of its own, and what a watch makes of it.

use serde::Deserialize;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tollkeeper_config::{Usd, VelocityConfig};
use tollkeeper_policies::velocity::{Baseline, Level, Stage, Watch};

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// Throttled calls that would have to wait longer are refused.
const MOST_DELAY: std::time::Duration = std::time::Duration::from_secs(30);
/// A Monday, midnight.
const START: i64 = 1_767_571_200 * SECOND;

/// What the tests ask for and `velocity_rate` prints is of these seeds, which the detector's constants were not chosen by.
pub(crate) const EVALUATION: Range<u64> = 2_000..2_040;

/// One file of `tests/scenarios`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// What it is like.
    pub(crate) about: String,
    days: i64,
    daily_cap_usd: String,
    agent: Agent,
    work: Work,
    attack: Option<Attack>,
    pub(crate) expect: Expect,
}

/// What its calls are like.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Agent {
    /// Mean rate while it works; calls come at random.
    calls_per_minute: f64,
    /// Mean price of a call in thousandths of a dollar, and the spread (standard deviation of the logarithm).
    mills_per_call: f64,
    spread: f64,
    tokens_per_call: f64,
    seconds_per_call: f64,
    /// Share of calls that are several parallel ones, and how many at most.
    #[serde(default)]
    fan_out: f64,
    #[serde(default)]
    fan_out_most: u32,
    /// Share of calls that are sent again, once or twice.
    #[serde(default)]
    retries: f64,
    /// While it works it also asks the same thing every so many seconds.
    poll_seconds: Option<i64>,
}

/// When it works.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Work {
    /// From the first to the second hour of the day.
    hours: [i64; 2],
    /// Rate at weekends.
    #[serde(default = "one")]
    weekend: f64,
    /// How much more than its mean it does in the early afternoon, and less at night.
    #[serde(default)]
    wave: f64,
    #[serde(default = "one")]
    growth_per_week: f64,
    sessions: Option<Sessions>,
    batch: Option<Batch>,
    /// Days on which it rests, from the first up to the second.
    rest: Option<[i64; 2]>,
}

/// Work in sessions, each with an intensity of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sessions {
    minutes_between: f64,
    minutes: f64,
    spread: f64,
}

/// A job at night beside the day's work.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    hour: i64,
    minutes: i64,
    calls_per_minute: f64,
}

/// What goes wrong.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attack {
    day: i64,
    hour: i64,
    minutes: i64,
    /// Begins when the first session after that is so many minutes old.
    minutes_in_session: Option<f64>,
    /// Multiple of the agent's mean rate while it works, or of the rate that it had then if that was higher.
    times: f64,
    /// Multiple of the price and the tokens of a call.
    #[serde(default = "one")]
    dearer: f64,
    doubles_every_minutes: Option<f64>,
    #[serde(default)]
    same_prompt: bool,
}

/// What must come of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expect {
    /// Most times that someone is told, or more, while nothing is wrong.
    pub(crate) false_trips: usize,
    /// The worst that may come of work in which nothing is wrong.
    pub(crate) worst: String,
    /// The stage that counts as having caught what goes wrong.
    pub(crate) caught_by: Option<String>,
    /// Within so many seconds of its traffic.
    pub(crate) within_seconds: Option<f64>,
    /// Before it has spent so many percent of the daily cap.
    pub(crate) before_cap_percent: Option<f64>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// Times at which someone was told while nothing was wrong, in days.
    pub(crate) false_trips: Vec<f64>,
    pub(crate) worst: Level,
    /// When each level was reached: seconds and percent of the daily cap since it went wrong.
    pub(crate) reached: Vec<(Level, f64, f64)>,
    pub(crate) why: Vec<String>,
    pub(crate) calls: u64,
}

impl Outcome {
    pub(crate) fn caught(&self, level: Level) -> Option<(f64, f64)> {
        self.reached.iter().find(|(reached, ..)| *reached >= level).map(|(_, seconds, percent)| (*seconds, *percent))
    }
}

impl Scenario {
    pub(crate) fn goes_wrong(&self) -> bool {
        self.attack.is_some()
    }

    pub(crate) fn days(&self) -> i64 {
        self.days
    }
}

fn one() -> f64 {
    1.0
}

/// All scenarios, by name.
pub(crate) fn scenarios() -> Vec<(String, Scenario)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |file: PathBuf| {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let scenario = toml::from_str(&std::fs::read_to_string(&file).unwrap());
        (name, scenario.unwrap_or_else(|cause| panic!("{}: {cause}", file.display())))
    };
    files.into_iter().map(read).collect()
}

pub(crate) fn level(name: &str) -> Level {
    match name {
        "normal" => Level::Normal,
        "notify" => Level::Notify,
        "throttle" => Level::Throttle,
        "local" => Level::Local,
        "pause" => Level::Paused,
        other => panic!("no stage {other}"),
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers for a seed for ever.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// More than 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }

    /// Log-normal with this mean.
    fn around(&mut self, mean: f64, spread: f64) -> f64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        mean * (spread * normal - spread * spread / 2.0).exp()
    }
}

/// A scenario under way.
struct Simulation<'a> {
    scenario: &'a Scenario,
    random: Random,
    watch: Watch,
    cap: f64,
    /// Costs to come: when, nano-dollars, tokens.
    costs: BinaryHeap<Reverse<(i64, i64, u64)>>,
    /// The present or next session.
    session: (i64, i64, f64),
    /// Since when it goes wrong, the rate it had then, and what was spent since.
    wrong: Option<(i64, f64)>,
    spent: f64,
    outcome: Outcome,
}

/// Runs a scenario.
pub(crate) fn run(scenario: &Scenario, seed: u64, rules: &VelocityConfig) -> Outcome {
    let cap = Usd::parse_decimal(&scenario.daily_cap_usd).unwrap();
    let mut simulation = Simulation {
        scenario,
        random: Random(seed),
        watch: Watch::new(rules, Some(cap), &Baseline::default()),
        cap: cap.0 as f64,
        costs: BinaryHeap::new(),
        session: (0, 0, 1.0),
        wrong: None,
        spent: 0.0,
        outcome: Outcome::default(),
    };
    let mut now = START;
    while now < START + scenario.days * DAY && simulation.minute(now) {
        now += MINUTE;
    }
    simulation.outcome
}

impl Simulation<'_> {
    /// Lives through a minute. Returns false when what went wrong is over.
    fn minute(&mut self, minute: i64) -> bool {
        let rate = self.rate(minute);
        let rate = self.go_wrong(minute, rate);
        if let (Some((since, _)), Some(attack)) = (self.wrong, &self.scenario.attack)
            && minute >= since + attack.minutes * MINUTE
        {
            return false;
        }
        if rate > 0.0 {
            let mut at = minute as f64;
            loop {
                at += self.random.exponential(MINUTE as f64 / rate);
                if at >= (minute + MINUTE) as f64 {
                    break;
                }
                self.call(at as i64);
            }
            if let Some(every) = self.scenario.agent.poll_seconds.filter(|_| self.wrong.is_none()) {
                for second in (0..60).filter(|second| (minute / SECOND + second) % every == 0) {
                    self.arrive(minute + second * SECOND, 7);
                }
            }
        }
        self.settle(minute + MINUTE);
        true
    }

    /// Calls a minute in which nothing is wrong.
    fn rate(&mut self, now: i64) -> f64 {
        let work = &self.scenario.work;
        let (day, hour) = ((now - START) / DAY, (now - START) % DAY / HOUR);
        if work.rest.is_some_and(|[from, to]| (from..to).contains(&day)) {
            return 0.0;
        }
        let mut rate = self.scenario.agent.calls_per_minute * work.growth_per_week.powf(day as f64 / 7.0);
        if day % 7 >= 5 {
            rate *= work.weekend;
        }
        let angle = ((now - START) % DAY) as f64 / DAY as f64 - 14.0 / 24.0;
        rate *= 1.0 + work.wave * (angle * std::f64::consts::TAU).cos();
        if let Some(batch) = &work.batch
            && (batch.hour * HOUR..batch.hour * HOUR + batch.minutes * MINUTE).contains(&((now - START) % DAY))
        {
            return batch.calls_per_minute;
        }
        if !(work.hours[0]..work.hours[1]).contains(&hour) {
            return 0.0;
        }
        let Some(sessions) = &work.sessions else { return rate };
        while now >= self.session.1 {
            let start = now + (self.random.exponential(sessions.minutes_between) * MINUTE as f64) as i64;
            let length = self.random.exponential(sessions.minutes) * MINUTE as f64;
            self.session = (start, start + length as i64, self.random.around(1.0, sessions.spread));
        }
        if now >= self.session.0 { rate * self.session.2 } else { 0.0 }
    }

    /// The rate when things may have gone wrong.
    fn go_wrong(&mut self, now: i64, rate: f64) -> f64 {
        let Some(attack) = &self.scenario.attack else { return rate };
        let due = now >= START + attack.day * DAY + attack.hour * HOUR;
        let in_session = attack
            .minutes_in_session
            .is_none_or(|minutes| rate > 0.0 && now >= self.session.0 + (minutes * MINUTE as f64) as i64);
        if self.wrong.is_none() && due && in_session {
            self.wrong = Some((now, rate.max(self.scenario.agent.calls_per_minute)));
            self.spent = 0.0;
        }
        let Some((since, rate_then)) = self.wrong else { return rate };
        let doublings = attack.doubles_every_minutes.map_or(0.0, |every| (now - since) as f64 / MINUTE as f64 / every);
        rate_then * attack.times * doublings.exp2()
    }

    /// A call, or several at once, or one that is sent again.
    fn call(&mut self, at: i64) {
        let agent = &self.scenario.agent;
        let same = self.wrong.is_some() && self.scenario.attack.as_ref().is_some_and(|attack| attack.same_prompt);
        let signature = if same { 1 } else { self.random.bits() };
        let many = self.random.unit() <= agent.fan_out;
        let again = self.random.unit() <= agent.retries;
        let (most, count) = (agent.fan_out_most, self.random.bits());
        self.arrive(at, signature);
        if many && most >= 2 {
            for _ in 0..1 + count % u64::from(most - 1) {
                let signature = self.random.bits();
                self.arrive(at, signature);
            }
        }
        if again {
            for _ in 0..=count % 2 {
                self.arrive(at, signature);
            }
        }
    }

    fn arrive(&mut self, at: i64, signature: u64) {
        self.settle(at);
        let delay = match self.watch.stage(at) {
            Stage::Paused { .. } | Stage::Killed => return,
            Stage::Throttle { delay } if delay > MOST_DELAY => return,
            Stage::Throttle { delay } => delay.as_micros() as i64,
            _ => 0,
        };
        self.outcome.calls += 1;
        let agent = &self.scenario.agent;
        let dearer = self.scenario.attack.as_ref().filter(|_| self.wrong.is_some()).map_or(1.0, |attack| attack.dearer);
        let size = self.random.around(dearer, agent.spread);
        let usd = (size * agent.mills_per_call * 1e6) as i64;
        let length = self.random.around(agent.seconds_per_call, 0.5);
        self.spent += usd as f64;
        self.costs.push(Reverse((
            at + delay + (length * SECOND as f64) as i64,
            usd,
            (size * agent.tokens_per_call) as u64,
        )));
        let told = self.watch.admitted(at, Some(signature));
        self.note(at, told);
    }

    /// What costs have become known by then.
    fn settle(&mut self, until: i64) {
        while let Some(Reverse((at, usd, tokens))) = self.costs.peek().copied().filter(|Reverse(cost)| cost.0 <= until)
        {
            self.costs.pop();
            let told = self.watch.spent(at, Usd(usd), tokens);
            self.note(at, told);
        }
    }

    fn note(&mut self, at: i64, told: Option<tollkeeper_policies::velocity::Transition>) {
        let Some(told) = told.filter(|told| told.to > told.from) else { return };
        let day = (at - START) as f64 / DAY as f64;
        self.outcome.why.push(format!("{day:.3} {:?} -> {:?}: {:?}", told.from, told.to, told.reason));
        if let Some((since, _)) = self.wrong {
            let seconds = (at - since) as f64 / SECOND as f64;
            self.outcome.reached.push((told.to, seconds, self.spent / self.cap * 100.0));
        } else {
            self.outcome.worst = self.outcome.worst.max(told.to);
            if told.from == Level::Normal {
                self.outcome.false_trips.push(day);
            }
        }
    }
}
