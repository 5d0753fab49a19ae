//! Budgets of targets that were used before anybody thought of a budget, when there are more targets than accounts.

use crate::setup::{budget, clock, config, nano_per_token, scout, spend, used};
use tollkeeper_config::{BackendId, BudgetConfig, Limit, Owner, Scope, Usd, Window};
use tollkeeper_policies::{Denied, OutputBound, Policies, Spend};

/// Names more models than accounts are made for, and spends 70 nano-dollars on one that has none.
async fn with_too_many_targets() -> Policies {
    let policies = Policies::in_memory(&config(&[]), clock("2026-01-01T12:00:00Z").0);
    let charge = async |model: &str, tokens: u64| {
        let backend = BackendId::Remote { provider: "up".into(), model: model.into() };
        let alias = backend.to_string().into();
        let spend = Spend { alias, backend, ..spend(nano_per_token(), tokens, OutputBound::Whole(0)) };
        policies.admit(&scout(&policies), spend).await.unwrap().settle(used(tokens, 0));
    };
    for number in 0..2100 {
        charge(&format!("model-{number}"), 1).await;
    }
    charge("late", 30).await;
    charge("late", 40).await;
    policies
}

fn late(scope: Scope) -> BudgetConfig {
    budget(Owner::new(scope, "up/late"), Window::Day, Limit::Usd(Usd(100)))
}

#[tokio::test]
async fn a_budget_of_a_target_that_had_no_account_knows_what_was_spent() {
    let policies = with_too_many_targets().await;
    for scope in [Scope::Model, Scope::Alias] {
        let made = policies.create_budget("operator", late(scope)).await.unwrap();
        assert_eq!(made.view.unwrap().spent, 70, "{scope:?}");
    }
    let none = budget(Owner::new(Scope::Model, "up/never"), Window::Day, Limit::Usd(Usd(100)));
    assert_eq!(policies.create_budget("operator", none).await.unwrap().view.unwrap().spent, 0);
    let backend = BackendId::Remote { provider: "up".into(), model: "late".into() };
    let spend = |tokens| Spend {
        alias: "up/late".into(),
        backend: backend.clone(),
        ..spend(nano_per_token(), tokens, OutputBound::Whole(0))
    };
    assert!(matches!(policies.admit(&scout(&policies), spend(31)).await, Err(Denied::Budget(_))));
    policies.admit(&scout(&policies), spend(30)).await.unwrap().settle(used(30, 0));
    assert_eq!(policies.budgets(&Owner::new(Scope::Model, "up/late"))[0].spent, 100);
}

#[tokio::test]
async fn a_new_file_with_such_a_budget_counts_it_too() {
    let policies = with_too_many_targets().await;
    let mut config = config(&[]);
    config.budgets.push(late(Scope::Model));
    policies.reload(&config);
    let owner = Owner::new(Scope::Model, "up/late");
    while policies.budgets(&owner)[0].spent == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(policies.budgets(&owner)[0].spent, 70);
}
