//! Bottom-up: the lowest tier that fits, within a tier as written.

use super::Fitting;

pub(super) fn order(fitting: &mut [Fitting]) {
    fitting.sort_by_key(|fitting| (fitting.candidate.tier, fitting.place));
}
