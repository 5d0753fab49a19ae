//! As written: the first that fits, the others as fallbacks.

use super::Fitting;

pub(super) fn order(fitting: &mut [Fitting]) {
    fitting.sort_by_key(|fitting| fitting.place);
}
