//! By the estimated time to the end of the answer; among equals the cheapest, and among those by lot.

use super::{Fitting, lot};

pub(super) fn order(fitting: &mut [Fitting], seed: u64) {
    fitting.sort_by_key(|fitting| (fitting.time.duration_ms, fitting.cost.expected, lot(seed, fitting.place as u64)));
}
