//! By expected cost; among equals the least busy, and among those by lot, so that equal backends share the work.

use super::{Fitting, lot};

pub(super) fn order(fitting: &mut [Fitting], seed: u64) {
    fitting.sort_by_key(|fitting| {
        let Fitting { candidate, cost, place, .. } = fitting;
        (cost.expected, candidate.queue_tokens, candidate.in_flight, lot(seed, *place as u64))
    });
}
