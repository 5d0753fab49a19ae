//! Who has been stopped by hand, or by a budget that asks.

use crate::denied::{Denied, Stop};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use tollkeeper_config::{BackendId, Owner, Scope};

/// Pauses by owner.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    paused: RwLock<Paused>,
    /// How many there are: mostly none, and then nobody looks further.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Paused {
    /// Made here.
    own: HashMap<Owner, Arc<str>>,
    /// Made by other gateways that share their budgets with this one.
    others: HashMap<Owner, Arc<str>>,
}

impl Paused {
    fn reason(&self, owner: &Owner) -> Option<&Arc<str>> {
        self.own.get(owner).or_else(|| self.others.get(owner))
    }
}

impl Pauses {
    /// Pauses an owner until [`resume`](Self::resume). Returns whether it was not paused before.
    pub(crate) fn pause(&self, owner: &Owner, reason: Arc<str>) -> bool {
        self.change(|paused| {
            let new = paused.reason(owner).is_none();
            paused.own.insert(owner.clone(), reason);
            new
        })
    }

    /// Returns whether it was paused.
    pub(crate) fn resume(&self, owner: &Owner) -> bool {
        self.change(|paused| {
            let was = paused.own.remove(owner).is_some();
            paused.others.remove(owner).is_some() || was
        })
    }

    /// Whom other gateways pause. Returns who is paused by that, and whose pause is over.
    pub(crate) fn others(&self, all: Vec<(Owner, Arc<str>)>) -> (Vec<(Owner, Arc<str>)>, Vec<Owner>) {
        self.change(|paused| {
            let of_others = all.into_iter().filter(|(owner, _)| !paused.own.contains_key(owner));
            let before = std::mem::replace(&mut paused.others, of_others.collect());
            let begun = paused.others.iter().filter(|(owner, _)| !before.contains_key(*owner));
            let begun = begun.map(|(owner, reason)| (owner.clone(), reason.clone())).collect();
            let over = before.into_keys().filter(|owner| paused.reason(owner).is_none()).collect();
            (begun, over)
        })
    }

    /// Whether this is why it is paused.
    pub(crate) fn is_because(&self, owner: &Owner, why: &str) -> bool {
        let paused = self.paused.read().unwrap_or_else(PoisonError::into_inner);
        paused.reason(owner).is_some_and(|reason| **reason == *why)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Paused) -> T) -> T {
        let mut paused = self.paused.write().unwrap_or_else(PoisonError::into_inner);
        let done = change(&mut paused);
        self.count.store(paused.own.len() + paused.others.len(), Relaxed);
        done
    }

    /// Refuses the first of these owners that is paused.
    pub(crate) fn check<'a>(&self, owners: impl Iterator<Item = &'a Owner>) -> Result<(), Denied> {
        if self.count.load(Relaxed) == 0 {
            return Ok(());
        }
        let paused = self.paused.read().unwrap_or_else(PoisonError::into_inner);
        for owner in owners {
            if let Some(reason) = paused.reason(owner) {
                return Err(Denied::Stopped { who: owner.clone(), stop: Stop::Paused { reason: reason.clone() } });
            }
        }
        Ok(())
    }

    /// Refuses a target that is paused: its provider, its model, or the name that the client gave it. And everything, when that is.
    pub(crate) fn check_target(&self, backend: Option<&BackendId>, alias: Option<&str>) -> Result<(), Denied> {
        if self.count.load(Relaxed) == 0 {
            return Ok(());
        }
        let provider = backend.and_then(|backend| match backend {
            BackendId::Local(_) => None,
            BackendId::Remote { provider, .. } => Some(Owner::new(Scope::Provider, provider.clone())),
        });
        let model = backend.map(|backend| Owner::new(Scope::Model, backend.to_string()));
        let alias = alias.map(|alias| Owner::new(Scope::Alias, alias));
        let owners = [Some(Owner::everything()), alias, provider, model];
        self.check(owners.iter().flatten())
    }

    /// All pauses, by owner.
    pub(crate) fn all(&self) -> Vec<(Owner, Arc<str>)> {
        let paused = self.paused.read().unwrap_or_else(PoisonError::into_inner);
        let all: BTreeMap<_, _> = paused.others.iter().chain(&paused.own).collect();
        all.into_iter().map(|(owner, reason)| (owner.clone(), reason.clone())).collect()
    }

    /// Those that were made here.
    pub(crate) fn own(&self) -> Vec<(Owner, Arc<str>)> {
        let paused = self.paused.read().unwrap_or_else(PoisonError::into_inner);
        paused.own.iter().map(|(owner, reason)| (owner.clone(), reason.clone())).collect()
    }
}
