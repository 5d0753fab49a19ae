//! What targets spent that were left without an account, because there were too many, when they get one after all: for a budget.

use crate::denied::Denied;
use crate::{Policies, Shared};
use std::sync::Arc;
use tollkeeper_config::{BudgetConfig, Owner};

impl Shared {
    /// Those of these owners whose spending is in no account: it is to be [recalled](Self::recall), until when they are known for that.
    pub(crate) fn left_out<'a>(&self, rules: impl Iterator<Item = &'a BudgetConfig>) -> Vec<Owner> {
        let mut accounts = self.accounts();
        let owners: Vec<Owner> =
            rules.map(|rule| &rule.owner).filter(|owner| accounts.is_left_out(owner)).cloned().collect();
        owners.iter().for_each(|owner| accounts.begin_recall(owner));
        owners
    }

    /// Gives these owners accounts that know what the ledger knows of them. What they have in flight right now is not in it.
    pub(crate) async fn recall(&self, mut owners: Vec<Owner>) -> Result<(), Denied> {
        if owners.is_empty() {
            return Ok(());
        }
        let _alone = self.recalling.lock().await;
        let now = {
            let mut accounts = self.accounts();
            // Somebody else may have done it meanwhile.
            owners.retain(|owner| accounts.is_left_out(owner));
            if owners.is_empty() {
                return Ok(());
            }
            // From now on they count themselves. What is settled before it is read is counted twice: rather too much than too little.
            for owner in &owners {
                accounts.begin_recall(owner);
            }
            accounts.now(&self.clock)
        };
        let mut settled = self.ledger.settled(now).await?;
        settled.sort_by_key(|settled| settled.start);
        let mut accounts = self.accounts();
        for owner in &owners {
            let account = accounts.of(owner);
            let of_owner = settled.iter().filter(|settled| settled.owners().contains(owner));
            accounts.recall(account, now, of_owner.map(|settled| (settled.start, settled.amounts())));
        }
        Ok(())
    }
}

impl Policies {
    /// The same without waiting: the budgets of these owners hold already, and know their past a moment later.
    pub(crate) fn recall_soon(&self, owners: Vec<Owner>) {
        if owners.is_empty() {
            return;
        }
        // A new file is taken in by whichever thread saw it.
        let runtime = tokio::runtime::Handle::try_current().ok().or_else(|| self.0.runtime.clone());
        let Some(runtime) = runtime else {
            tracing::error!("what was spent before cannot be counted in new budgets of targets without a runtime");
            return;
        };
        let shared: Arc<Shared> = self.0.clone();
        runtime.spawn(async move {
            if let Err(denied) = shared.recall(owners).await {
                tracing::error!(%denied, "what was spent before is not counted in new budgets of targets until they are read again");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::Policies;
    use crate::lease::{OutputBound, Spend};
    use crate::ledger::row::Row;
    use crate::setup::{budget, clock, config, nano_per_token, scout, spend, used};
    use crate::store::memory::Memory;
    use crate::store::settled::Settled;
    use crate::store::{Kept, StateChange, Store, StoreError, Tail};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use tollkeeper_config::{BackendId, Limit, Owner, Scope, Usd, Window};

    /// A store in memory that cannot be read while it is told so.
    struct Unread(Memory, Arc<AtomicBool>);

    impl Store for Unread {
        fn tail(&mut self) -> Result<Tail, StoreError> {
            self.0.tail()
        }

        fn append(&mut self, rows: &[Row], state: &[StateChange]) -> Result<(), StoreError> {
            self.0.append(rows, state)
        }

        fn state(&mut self, kind: &str) -> Result<Kept, StoreError> {
            self.0.state(kind)
        }

        fn open_attempts(&mut self, seq: i64) -> Result<Vec<Row>, StoreError> {
            self.0.open_attempts(seq)
        }

        fn settled(&mut self, now: i64) -> Result<Vec<Settled>, StoreError> {
            if self.1.load(Relaxed) { Err(StoreError("the disk is on fire".into())) } else { self.0.settled(now) }
        }
    }

    #[tokio::test]
    async fn a_past_that_could_not_be_read_is_not_forgotten() {
        let fails = Arc::new(AtomicBool::new(false));
        let store = Box::new(Unread(Memory::default(), fails.clone()));
        let policies = Policies::start(&config(&[]), clock("2026-01-01T12:00:00Z").0, store, false).unwrap().0;
        // More models than accounts are made for.
        for number in 0..=2100 {
            let backend = BackendId::Remote { provider: "up".into(), model: format!("model-{number}").into() };
            let alias = backend.to_string().into();
            let spend = Spend { alias, backend, ..spend(nano_per_token(), 30, OutputBound::Whole(0)) };
            policies.admit(&scout(&policies), spend).await.unwrap().settle(used(30, 0));
        }
        let late = budget(Owner::new(Scope::Model, "up/model-2100"), Window::Day, Limit::Usd(Usd(100)));
        fails.store(true, Relaxed);
        assert!(policies.create_budget("operator", late.clone()).await.is_err());
        fails.store(false, Relaxed);
        // What is spent meanwhile is counted once.
        let backend = BackendId::Remote { provider: "up".into(), model: "model-2100".into() };
        let alias = backend.to_string().into();
        let ask = |tokens| Spend { alias, backend, ..spend(nano_per_token(), tokens, OutputBound::Whole(0)) };
        policies.admit(&scout(&policies), ask(50)).await.unwrap().settle(used(50, 0));
        let made = policies.create_budget("operator", late).await.unwrap();
        assert_eq!(made.view.unwrap().spent, 80);
    }
}
