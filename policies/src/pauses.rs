//! Who has been stopped by hand, or by a budget that asks.

use crate::denied::{Denied, Stop};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use tollkeeper_config::Owner;

/// Pauses by owner.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    paused: RwLock<HashMap<Owner, Arc<str>>>,
    /// How many there are: mostly none, and then nobody looks further.
    count: AtomicUsize,
}

impl Pauses {
    /// Pauses an owner until [`resume`](Self::resume). Returns whether it was not paused before.
    pub(crate) fn pause(&self, owner: &Owner, reason: Arc<str>) -> bool {
        let mut paused = self.paused.write().unwrap_or_else(PoisonError::into_inner);
        let new = paused.insert(owner.clone(), reason).is_none();
        self.count.store(paused.len(), Relaxed);
        new
    }

    /// Returns whether it was paused.
    pub(crate) fn resume(&self, owner: &Owner) -> bool {
        let mut paused = self.paused.write().unwrap_or_else(PoisonError::into_inner);
        let was = paused.remove(owner).is_some();
        self.count.store(paused.len(), Relaxed);
        was
    }

    /// Refuses the first of these owners that is paused.
    pub(crate) fn check<'a>(&self, owners: impl Iterator<Item = &'a Owner>) -> Result<(), Denied> {
        if self.count.load(Relaxed) == 0 {
            return Ok(());
        }
        let paused = self.paused.read().unwrap_or_else(PoisonError::into_inner);
        for owner in owners {
            if let Some(reason) = paused.get(owner) {
                return Err(Denied::Stopped { who: owner.clone(), stop: Stop::Paused { reason: reason.clone() } });
            }
        }
        Ok(())
    }

    /// All pauses, by owner.
    pub(crate) fn all(&self) -> Vec<(Owner, Arc<str>)> {
        let paused = self.paused.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = paused.iter().map(|(owner, reason)| (owner.clone(), reason.clone())).collect();
        all.sort();
        all
    }
}
