//! Places for those who watch runs: so many in all, and so many for the runs of one agent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Streams of events that may be open at once.
const MOST: usize = 256;
/// Of runs of one agent.
const MOST_OF_AGENT: usize = 64;

/// How many watch the runs of each agent.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<HashMap<Arc<str>, usize>>);

/// A place; free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    watchers: Arc<Watchers>,
    agent: Arc<str>,
}

impl Watchers {
    /// A place, if there is one.
    pub(crate) fn enter(self: &Arc<Self>, agent: &Arc<str>) -> Option<Place> {
        let mut watching = self.lock();
        let of_agent = watching.get(agent).copied().unwrap_or(0);
        if of_agent >= MOST_OF_AGENT || watching.values().sum::<usize>() >= MOST {
            return None;
        }
        watching.insert(agent.clone(), of_agent + 1);
        Some(Place { watchers: self.clone(), agent: agent.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut watching = self.watchers.lock();
        let left = watching.get(&self.agent).map_or(0, |count| count - 1);
        match left {
            0 => _ = watching.remove(&self.agent),
            _ => _ = watching.insert(self.agent.clone(), left),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_cannot_take_all_places() {
        let watchers = Arc::new(Watchers::default());
        let take = |agent: &str| watchers.enter(&agent.into());
        let mut busy: Vec<Place> = (0..MOST_OF_AGENT).map(|_| take("busy").unwrap()).collect();
        assert!(take("busy").is_none());
        let others: Vec<Place> =
            (0..MOST - MOST_OF_AGENT).map(|which| take(&format!("a{}", which % 9)).unwrap()).collect();
        assert!(take("late").is_none(), "there are no more");
        busy.pop();
        let late = take("late").unwrap();
        assert!(take("busy").is_none());
        drop((busy, others, late));
        assert!(watchers.lock().is_empty());
    }
}
