//! What targets spent that were left without an account, because there were too many, when they get one after all: for a budget.

use crate::denied::Denied;
use crate::{Policies, Shared};
use std::sync::Arc;
use tollkeeper_config::{BudgetConfig, Owner};

impl Shared {
    /// Those of these owners whose spending is in no account.
    pub(crate) fn left_out<'a>(&self, rules: impl Iterator<Item = &'a BudgetConfig>) -> Vec<Owner> {
        let accounts = self.accounts();
        rules.map(|rule| &rule.owner).filter(|owner| accounts.is_left_out(owner)).cloned().collect()
    }

    /// Gives these owners accounts that know what the ledger knows of them. What they have in flight right now is not in it.
    pub(crate) async fn recall(&self, owners: Vec<Owner>) -> Result<(), Denied> {
        if owners.is_empty() {
            return Ok(());
        }
        let now = {
            let mut accounts = self.accounts();
            // From now on they count themselves. What is settled before it is read is counted twice: rather too much than too little.
            for owner in &owners {
                accounts.of(owner);
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
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            tracing::error!("what was spent before cannot be counted in new budgets of targets without a runtime");
            return;
        };
        let shared: Arc<Shared> = self.0.clone();
        runtime.spawn(async move {
            if let Err(denied) = shared.recall(owners).await {
                tracing::error!(%denied, "what was spent before is not counted in new budgets of targets until the next start");
            }
        });
    }
}
