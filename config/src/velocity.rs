//! The checked settings of the spend-velocity detector: what is too fast for an agent, and what is done about it.

use crate::units::Usd;
use std::time::Duration;

/// When an agent or run spends too fast, and what is done about it. Rates are measured against its own normal.
#[derive(Debug, Clone, PartialEq)]
pub struct VelocityConfig {
    /// Whether it is watched at all (default yes).
    pub enabled: bool,
    /// Someone is told (default at 3 times normal, for 15 minutes); `None` is off, here and below.
    pub notify: Option<StageRule>,
    /// Requests are spaced out to the agent's normal pace (default at 4 times, for 5 minutes).
    pub throttle: Option<StageRule>,
    /// Only local models answer (default at 8 times, for 10 minutes).
    pub local: Option<StageRule>,
    /// Requests are refused (default at 16 times, for 30 minutes).
    pub pause: Option<StageRule>,
    /// Requests are refused until someone resumes the agent (default off).
    pub kill: Option<StageRule>,
    /// Multiple of normal which, kept up for hours, is told as a drift (default 2).
    pub drift: Option<f64>,
    /// So many times the same prompt or tool call is told as a loop (default 10); each later stage takes twice as many.
    pub loop_repeats: Option<u32>,
    /// Repeats that come no faster than this are polling, not a loop (default 20 s).
    pub loop_interval: Duration,
    /// How long after it was resumed by hand an agent cannot be stopped again for the same reason (default 1 h).
    pub grace: Duration,
    /// What is normal for an agent without history; a known agent's normal is never below an eighth of it.
    pub floor: VelocityFloor,
}

/// When a stage begins and how long it lasts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageRule {
    /// Multiple of the normal rate, more than 1.
    pub at: f64,
    /// How long it lasts after the rate was last too high; `None` is until someone resumes the agent.
    pub cool_down: Option<Duration>,
}

/// What is normal for an agent without history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VelocityFloor {
    /// Percent of the daily budget in an hour, for agents that have one (default 8).
    pub cap_percent: u32,
    /// USD in a minute, for agents without a daily budget (default 0.05).
    pub usd: Usd,
    /// Tokens in a minute, input and output (default 1,000,000).
    pub tokens: u64,
    /// Requests in a minute (default 30).
    pub calls: u32,
}

impl Default for VelocityConfig {
    fn default() -> Self {
        let rule = |at, minutes: u64| Some(StageRule { at, cool_down: Some(Duration::from_secs(minutes * 60)) });
        Self {
            enabled: true,
            notify: rule(3.0, 15),
            throttle: rule(4.0, 5),
            local: rule(8.0, 10),
            pause: rule(16.0, 30),
            kill: None,
            drift: Some(2.0),
            loop_repeats: Some(10),
            loop_interval: Duration::from_secs(20),
            grace: Duration::from_secs(3600),
            floor: VelocityFloor { cap_percent: 8, usd: Usd(50_000_000), tokens: 1_000_000, calls: 30 },
        }
    }
}
