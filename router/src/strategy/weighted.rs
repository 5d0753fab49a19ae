//! By lot, so that each backend comes first in proportion to its weight, and what is left of the order likewise (weighted random sampling:
//! Efraimidis and Spirakis 2006). A weight of 0 comes last.

use super::{Fitting, lot};

pub(super) fn order(fitting: &mut [Fitting], seed: u64) {
    let key = |fitting: &Fitting| {
        // In (0, 1]: 53 bits fill a double.
        let lot = ((lot(seed, fitting.place as u64) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        // The bits of what is not negative are in the order of the numbers, and those of 0/0 come last.
        (lot.ln().abs() / f64::from(fitting.candidate.weight)).abs().to_bits()
    };
    fitting.sort_by_cached_key(key);
}
