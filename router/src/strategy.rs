//! How the backends that fit are put in order: one file per strategy.

mod cheapest;
mod ordered;
mod pyramid;

use crate::candidate::{Candidate, Health};
use crate::estimate::CostEstimate;
use crate::plan::Rules;
use tollkeeper_config::Strategy;

/// A backend that fits, with its estimate.
#[derive(Debug)]
pub(crate) struct Fitting {
    pub(crate) candidate: Candidate,
    pub(crate) cost: CostEstimate,
    /// Its place among the candidates, as written in the configuration.
    pub(crate) place: usize,
}

/// Puts the backends into the order in which they are tried. Those whose model takes too long to come keep that order too, behind
/// all others, and behind them those that are cooling.
pub(crate) fn order(Rules { strategy, patience_ms }: Rules, fitting: &mut [Fitting], seed: u64) {
    match strategy {
        Strategy::Ordered => ordered::order(fitting),
        Strategy::Pyramid => pyramid::order(fitting),
        Strategy::Cheapest => cheapest::order(fitting, seed),
    }
    fitting.sort_by_key(|fitting| match fitting.candidate.health {
        Health::Absent { ready_in_ms } if ready_in_ms > patience_ms => 1,
        Health::Cooling { .. } => 2,
        _ => 0,
    });
}

/// The strategy's name in [`crate::Why`].
pub(crate) fn name(strategy: Strategy) -> &'static str {
    match strategy {
        Strategy::Ordered => "ordered",
        Strategy::Pyramid => "pyramid",
        Strategy::Cheapest => "cheapest",
    }
}
