//! The tables of the spend-velocity detector as they are written.

use crate::read::{Whole, table};
use crate::units::Usd;
use crate::value::{Multiple, PauseTime, Repeats};
use std::time::Duration;

table! {
    /// When an agent spends too fast, and what is done about it.
    RawVelocity "[velocity]" {
        /// Whether agents are watched.
        enabled: bool = default(true),
        /// At so many times its normal rate of USD, tokens or requests someone is told.
        trip: Multiple = default(3.0),
        /// How long that lasts after the rate was last too high; meanwhile nobody is told again.
        trip_cool_down: Duration = default("15m"),
        /// At so many times its normal rate its requests are spaced out to its normal pace.
        throttle: Multiple = default(4.0),
        /// How long that lasts after the rate was last too high.
        throttle_cool_down: Duration = default("5m"),
        /// At so many times its normal rate only local models answer it.
        local: Multiple = default(8.0),
        /// How long that lasts after the rate was last too high.
        local_cool_down: Duration = default("10m"),
        /// At so many times its normal rate its requests are refused.
        pause: Multiple = default(16.0),
        /// How long that lasts.
        pause_cool_down: PauseTime = default("30m"),
        /// At so many times its normal rate it is stopped until someone resumes it.
        kill: Multiple = default("off"),
        /// At so many times its normal rate, kept up for hours, someone is told of a drift.
        drift: Multiple = default(2.0),
        /// The same prompt or tool call so many times is told as a loop; it takes twice as often for each stage after that.
        loop_repeats: Repeats = default(10),
        /// Repeats that come no faster than this are polling, not a loop.
        loop_interval: Duration = default("20s"),
        /// How long after it was resumed by hand an agent cannot come to the stage that it left.
        grace: Duration = default("1h"),
        /// What is normal for an agent without history: percent of its daily budget in an hour. Here and below, a known agent's normal is never
        /// below an eighth of it.
        floor_cap_percent: Whole<1, 100> = default(8),
        /// The same in USD a minute, for agents without a daily budget.
        floor_usd: Usd = default("0.05"),
        /// The same in tokens a minute, input and output.
        floor_tokens: Whole<1, 1_000_000_000> = default(1000000),
        /// The same in requests a minute; of those that are not parallel, a fifth.
        floor_calls: Whole<1, 1_000_000> = default(30),
    }
}

table! {
    /// What differs for this agent from `[velocity]`.
    RawOwnVelocity "`velocity`" {
        /// As in `[velocity]`, here and below.
        enabled: bool = optional,
        /// As there.
        trip: Multiple = optional,
        /// As there.
        trip_cool_down: Duration = optional,
        /// As there.
        throttle: Multiple = optional,
        /// As there.
        throttle_cool_down: Duration = optional,
        /// As there.
        local: Multiple = optional,
        /// As there.
        local_cool_down: Duration = optional,
        /// As there.
        pause: Multiple = optional,
        /// As there.
        pause_cool_down: PauseTime = optional,
        /// As there.
        kill: Multiple = optional,
        /// As there.
        drift: Multiple = optional,
        /// As there.
        loop_repeats: Repeats = optional,
        /// As there.
        loop_interval: Duration = optional,
        /// As there.
        grace: Duration = optional,
        /// As there.
        floor_cap_percent: Whole<1, 100> = optional,
        /// As there.
        floor_usd: Usd = optional,
        /// As there.
        floor_tokens: Whole<1, 1_000_000_000> = optional,
        /// As there.
        floor_calls: Whole<1, 1_000_000> = optional,
    }
}
