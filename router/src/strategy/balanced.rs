//! By cost and time, half each: both as thousandths of the highest among the backends that fit.

use super::{Fitting, lot};

pub(super) fn order(fitting: &mut [Fitting], seed: u64) {
    let dearest = fitting.iter().map(|fitting| fitting.cost.expected.0).max().unwrap_or(0);
    let slowest = fitting.iter().map(|fitting| fitting.time.duration_ms).max().unwrap_or(0);
    let share = |part: u128, whole: u128| (part * 1000).checked_div(whole).unwrap_or(0);
    fitting.sort_by_cached_key(|fitting| {
        let cost = share(positive(fitting.cost.expected.0), positive(dearest));
        let time = share(fitting.time.duration_ms.into(), slowest.into());
        (cost + time, lot(seed, fitting.place as u64))
    });
}

fn positive(nano: i64) -> u128 {
    u128::try_from(nano).unwrap_or(0)
}
