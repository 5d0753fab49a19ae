//! By expected cost; among equals the least busy, and among those by lot, so that equal backends share the work.

use super::Fitting;

pub(super) fn order(fitting: &mut [Fitting], seed: u64) {
    fitting.sort_by_key(|fitting| {
        let Fitting { candidate, cost, place } = fitting;
        (cost.expected, candidate.queue_tokens, candidate.in_flight, lot(seed, *place))
    });
}

/// A number that depends on every bit of the seed and differs between places (the mixing step of SplitMix64).
fn lot(seed: u64, place: usize) -> u64 {
    let mut mixed = seed.wrapping_add((place as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
