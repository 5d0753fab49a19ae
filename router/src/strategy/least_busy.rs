//! By what waits there, then by how much it works on; among equals the cheapest, and among those by lot.

use super::{Fitting, lot};

pub(super) fn order(fitting: &mut [Fitting], seed: u64) {
    fitting.sort_by_key(|fitting| {
        let Fitting { candidate, cost, place, .. } = fitting;
        (candidate.queue_tokens, candidate.in_flight, cost.expected, lot(seed, *place as u64))
    });
}
