//! How the backends that fit are put in order: one file per strategy.

mod balanced;
mod cheapest;
mod fastest;
mod least_busy;
mod ordered;
mod pyramid;
mod sticky;
mod weighted;

use crate::candidate::{Candidate, Health};
use crate::estimate::{CostEstimate, TimeEstimate};
use crate::plan::Rules;
use tollkeeper_config::Strategy;

/// A backend that fits, with its estimates.
#[derive(Debug)]
pub(crate) struct Fitting {
    pub(crate) candidate: Candidate,
    pub(crate) cost: CostEstimate,
    pub(crate) time: TimeEstimate,
    /// Whether it would probably fail or refuse.
    pub(crate) strained: bool,
    /// Its place among the candidates, as written in the configuration.
    pub(crate) place: usize,
}

impl Fitting {
    /// Whether it will probably take longer than the request wants.
    pub(crate) fn is_late(&self, rules: &Rules) -> bool {
        rules.wishes.deadline_ms.is_some_and(|deadline| self.time.duration_ms > deadline)
    }

    /// How far behind those it comes that can answer at once, for which it is 0.
    pub(crate) fn behind(&self, rules: &Rules) -> u8 {
        match self.candidate.health {
            Health::Cooling { .. } => 4,
            _ if self.is_late(rules) => 3,
            Health::Absent { ready_in_ms } if ready_in_ms > rules.patience_ms => 2,
            _ if self.strained => 1,
            _ => 0,
        }
    }
}

/// Puts the backends into the order in which they are tried. Those that are strained keep that order too, behind all others, behind them those
/// whose model takes too long to come, then those that are late, and last those that are cooling.
pub(crate) fn order(strategy: Strategy, rules: &Rules, fitting: &mut [Fitting], seed: u64) {
    match strategy {
        Strategy::Ordered => ordered::order(fitting),
        Strategy::Pyramid => pyramid::order(fitting, rules.start_tier),
        Strategy::Cheapest => cheapest::order(fitting, seed),
        Strategy::Fastest => fastest::order(fitting, seed),
        Strategy::Balanced => balanced::order(fitting, seed),
        Strategy::Sticky => sticky::order(fitting, rules.wishes.session.unwrap_or(seed)),
        Strategy::LeastBusy => least_busy::order(fitting, seed),
        Strategy::Weighted => weighted::order(fitting, seed),
    }
    fitting.sort_by_key(|fitting| fitting.behind(rules));
}

/// A number that depends on every bit of the seed and differs between places (the mixing step of SplitMix64).
pub(crate) fn lot(seed: u64, place: u64) -> u64 {
    let mut mixed = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
