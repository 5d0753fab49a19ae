//! Strategies tried out on a trace: a day's requests are sent through the real [`plan()`](crate::plan()) to backends that exist on paper only.
//!
//! Time is the simulation's own, and chance a seed, so that the same arguments give the same figures. What a backend does is drawn from what
//! the [`Fleet`] says of it; what is planned by is what a gateway would have seen of it until then: counts and rates that an engine shows
//! after each of its turns, smoothed times of earlier answers, failures that have happened. So an estimate that is wrong or late costs what it would
//! cost. Every strategy meets the same draws: how long a request takes at a backend does not depend on who else is tried.
//!
//! | module | what it is |
//! |---|---|
//! | [`trace`] | requests: when, how long, how hard |
//! | [`fleet`] | backends: how fast, how dear, how reliable |
//! | `engine` | a local engine: slots, turns, kept prompts, and what it shows |
//! | `cloud` | a remote model: drawn times, limits, failures, and what is learned of it |
//! | `world` | the run: events in the order of their times |
//! | [`outcome`] | what came of it |
//! | [`scenarios`] | kinds of traces, made of a seed |

mod cloud;
mod dice;
mod engine;
pub mod fleet;
pub mod outcome;
pub mod scenarios;
mod snapshot;
mod table;
pub mod trace;
mod world;

pub use fleet::Fleet;
pub use outcome::Outcome;
pub use table::TableError;
pub use trace::Request;
pub use world::run;

use tollkeeper_config::Strategy;

/// Microseconds since the trace's start.
type Micros = u64;

/// Who decides where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chooser {
    /// A strategy of the router, by what the gateway has seen.
    Strategy(Strategy),
    /// The first that can, as written: a list of fallbacks that knows of no time.
    StaticOrder,
    /// Of two that are drawn by lot, the one with fewer requests in work; then the others as written.
    RandomOfTwo,
    /// Somebody who knows how long each would take if nothing else came.
    OracleFastest,
    /// Somebody who knows how long the answer will be, and so what each would cost; among equals the fastest.
    OracleCheapest,
}

impl Chooser {
    /// All that a report compares, baselines first.
    pub const ALL: [Self; 11] = [
        Self::StaticOrder,
        Self::RandomOfTwo,
        Self::Strategy(Strategy::Pyramid),
        Self::Strategy(Strategy::Cheapest),
        Self::Strategy(Strategy::Fastest),
        Self::Strategy(Strategy::Balanced),
        Self::Strategy(Strategy::Sticky),
        Self::Strategy(Strategy::LeastBusy),
        Self::Strategy(Strategy::Weighted),
        Self::OracleFastest,
        Self::OracleCheapest,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strategy(strategy) => strategy.name(),
            Self::StaticOrder => "static order",
            Self::RandomOfTwo => "random of two",
            Self::OracleFastest => "oracle, time",
            Self::OracleCheapest => "oracle, cost",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|chooser| chooser.name() == name)
    }
}

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// The backends, as an alias lists them.
    pub fleet: &'a Fleet,
    /// The requests, in the order of their times.
    pub trace: &'a [Request],
    /// Difficulties (thousandths, ascending) from which a pyramid begins a tier higher.
    pub escalate_at: &'a [u16],
    /// What chance is made of.
    pub seed: u64,
}
