//! By lot, so that each backend comes first in proportion to its weight, and what is left of the order likewise (weighted random sampling:
//! Efraimidis and Spirakis 2006). A weight of 0 comes last.

use super::{Fitting, lot};

pub(super) fn order(fitting: &mut [Fitting], seed: u64) {
    let key = |fitting: &Fitting| {
        // In (0, 1]: 53 bits fill a double.
        let lot = ((lot(seed, fitting.place as u64) >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        -lot.ln() / f64::from(fitting.candidate.weight)
    };
    fitting.sort_by(|one, other| key(one).total_cmp(&key(other)));
}
