//! What can be paused: who asks, what is asked, and everything.

use crate::setup::{add_agent, clock, config, nano_per_token, scout, spend, stored, used};
use tollkeeper_config::{BackendId, Owner, Scope};
use tollkeeper_policies::{Denied, OutputBound, Policies, Spend, Stop};

const NOON: &str = "2026-01-01T12:00:00Z";

fn remote(provider: &str, model: &str) -> BackendId {
    BackendId::Remote { provider: provider.into(), model: model.into() }
}

fn asks(alias: &str, backend: BackendId) -> Spend {
    Spend { alias: alias.into(), backend, ..spend(nano_per_token(), 1, OutputBound::Whole(0)) }
}

/// Who is paused that refuses this, if anybody.
async fn refused_by(policies: &Policies, spend: Spend) -> Option<Owner> {
    match policies.admit(&scout(policies), spend).await {
        Ok(lease) => {
            lease.settle(used(1, 0));
            None
        }
        Err(Denied::Stopped { who, stop: Stop::Paused { reason } }) => {
            assert_eq!(&*reason, "too dear");
            Some(who)
        }
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_is_paused_refuses_what_concerns_it_and_nothing_else() {
    let mut config = config(&[]);
    add_agent(&mut config, "other", &[]);
    let policies = Policies::in_memory(&config, clock(NOON).0);
    let here = || asks("auto", remote("up", "a/large"));
    let beside = [
        (Owner::new(Scope::Model, "up/a/large"), asks("auto", remote("up", "a/small"))),
        (Owner::new(Scope::Provider, "up"), asks("auto", remote("down", "a/large"))),
        (Owner::new(Scope::Alias, "auto"), asks("up/a/large", remote("up", "a/large"))),
    ];
    for (owner, beside) in beside {
        policies.pause("ops", &owner, "too dear").await.unwrap();
        assert_eq!(refused_by(&policies, here()).await, Some(owner.clone()));
        assert_eq!(refused_by(&policies, beside).await, None, "{owner}");
        let (of_alias, of_backend) = (policies.paused_alias("auto"), policies.paused_backend(&remote("up", "a/large")));
        assert_eq!(
            (of_alias.is_some(), of_backend.is_some()),
            (owner.scope == Scope::Alias, owner.scope != Scope::Alias)
        );
        assert!(policies.resume("ops", &owner).await.unwrap());
        assert_eq!(refused_by(&policies, here()).await, None, "{owner} goes on");
    }
    let everything = Owner::everything();
    policies.pause("ops", &everything, "too dear").await.unwrap();
    for spend in [here(), asks("home", BackendId::Local("home".into()))] {
        assert_eq!(refused_by(&policies, spend).await, Some(everything.clone()));
    }
    let other = policies.authenticate("other-key").unwrap();
    assert!(policies.admit(&other, here()).await.is_err());
    policies.resume("ops", &everything).await.unwrap();
    assert_eq!(refused_by(&policies, here()).await, None);
}

#[tokio::test]
async fn a_local_model_can_be_paused_too() {
    let policies = Policies::in_memory(&config(&[]), clock(NOON).0);
    let home = BackendId::Local("home".into());
    let owner = Owner::new(Scope::Model, home.to_string());
    policies.pause("ops", &owner, "too dear").await.unwrap();
    assert_eq!(refused_by(&policies, asks("auto", home)).await, Some(owner));
}

#[tokio::test]
async fn pauses_of_targets_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[]);
    let clock = clock(NOON).0;
    let owners = [Owner::new(Scope::Model, "up/a/large"), Owner::new(Scope::Alias, "a/b"), Owner::everything()];
    let policies = Policies::open(&config, clock.clone()).unwrap().0;
    for owner in &owners {
        policies.pause("ops", owner, "too dear").await.unwrap();
    }
    policies.close().await;
    drop(policies);
    let policies = Policies::open(&config, clock).unwrap().0;
    let paused: Vec<Owner> = policies.pauses().into_iter().map(|(owner, _)| owner).collect();
    for owner in &owners {
        assert!(paused.contains(owner), "{owner}");
    }
    assert_eq!(refused_by(&policies, asks("x", remote("up", "b"))).await, Some(Owner::everything()));
    policies.close().await;
}
