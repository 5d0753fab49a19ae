//! What the gateway has learned of its routes, kept for it over restarts beside the ledger: ids and texts, which mean nothing here.

use crate::Policies;
use crate::denied::Denied;
use crate::store::{Kept, StateChange, Store, StoreError};
use std::sync::{Arc, Mutex, PoisonError};

/// The kind of state in the store.
const ROUTE: &str = "route";

/// What a start found, until somebody takes it.
#[derive(Debug, Default)]
pub(crate) struct Learned(Mutex<Kept>);

impl Learned {
    pub(crate) fn restore(store: &mut dyn Store) -> Result<Self, StoreError> {
        Ok(Self(Mutex::new(store.state(ROUTE)?)))
    }
}

impl Policies {
    /// What an earlier gateway kept of its routes: ids and texts. The second time there is nothing.
    pub fn take_learned(&self) -> Vec<(Arc<str>, Arc<str>)> {
        std::mem::take(&mut *self.0.learned.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps what was learned of routes, by id; `None` takes it away. Returns when it is durable.
    ///
    /// # Errors
    /// The ledger cannot record it; then what was kept before is.
    pub async fn keep_learned(&self, changed: Vec<(Arc<str>, Option<Arc<str>>)>) -> Result<(), Denied> {
        if changed.is_empty() {
            return Ok(());
        }
        let now = self.0.now();
        let state = changed.into_iter().map(|(id, body)| StateChange { kind: ROUTE, id, body, changed: now });
        self.0.ledger.keep(state.collect()).await
    }
}

#[cfg(test)]
mod tests {
    use crate::Policies;
    use crate::setup::{clock, config};
    use crate::store::sqlite::Sqlite;
    use std::path::Path;
    use tollkeeper_config::{Durability, Window};

    fn open(path: &Path) -> Policies {
        let store = Sqlite::open(path, Durability::Process).unwrap();
        let (clock, _hand) = clock("2026-03-04T05:06:07Z");
        Policies::start(&config(&[(Window::Day, 1_000_000_000)]), clock, Box::new(store), true).unwrap().0
    }

    #[tokio::test]
    async fn what_was_learned_is_there_after_a_restart_until_it_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let policies = open(&path);
        assert_eq!(policies.take_learned(), []);
        let kept = [("a", Some("1")), ("b", Some("2")), ("a", Some("3"))];
        let kept = kept.map(|(id, body)| (id.into(), body.map(Into::into)));
        policies.keep_learned(kept.into()).await.unwrap();
        policies.close().await;
        drop(policies);

        let policies = open(&path);
        assert_eq!(policies.take_learned(), [("a".into(), "3".into()), ("b".into(), "2".into())]);
        assert_eq!(policies.take_learned(), [], "it is given once");
        policies.keep_learned(vec![("a".into(), None)]).await.unwrap();
        policies.close().await;
        drop(policies);
        assert_eq!(open(&path).take_learned(), [("b".into(), "2".into())]);
    }
}
