//! Bottom-up: the lowest tier that fits from where the request begins, within a tier as written. The tiers below come last, the highest first:
//! rather an answer by a weaker model than none.

use super::Fitting;

pub(super) fn order(fitting: &mut [Fitting], start: u8) {
    fitting.sort_by_key(|fitting| {
        let tier = fitting.candidate.tier;
        let below = tier < start;
        (below, if below { u8::MAX - tier } else { tier }, fitting.place)
    });
}
