//! Where most of the prompt is known already; else always the same for the same conversation, whoever else comes and goes (rendezvous
//! hashing: Thaler and Ravishankar 1998).

use super::{Fitting, lot};
use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};

pub(super) fn order(fitting: &mut [Fitting], session: u64) {
    fitting.sort_by_cached_key(|fitting| {
        let mut backend = DefaultHasher::new();
        fitting.candidate.id.hash(&mut backend);
        (Reverse(fitting.candidate.pace.cached), lot(session, backend.finish()))
    });
}
