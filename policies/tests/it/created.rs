//! Agents, keys and budgets that are made while the gateway runs, beside those of the file.

use crate::setup::{Hand, add_agent, budget, clock, config, nano_per_token, scout, spend, stored, used};
use jiff::Timestamp;
use std::path::Path;
use std::time::Duration;
use tollkeeper_config::{BudgetConfig, Config, Limit, Owner, Scope, Usd, Window};
use tollkeeper_policies::report::{ExportFilter, Format, export, verify};
use tollkeeper_policies::{
    AgentSpec, Caller, Clock, Denied, KeyChange, KeyRefused, ManageError, NewKey, NewRun, OutputBound, Policies,
    Scopes, Source,
};

const NOON: &str = "2026-01-01T12:00:00Z";
const FOREVER: NewKey = NewKey { scopes: Scopes::ALL, expires: None };

fn start() -> (Policies, Clock, Hand) {
    let (clock, hand) = clock(NOON);
    (Policies::in_memory(&config(&[]), clock.clone()), clock, hand)
}

fn open(config: &Config, clock: &Clock) -> Policies {
    Policies::open(config, clock.clone()).unwrap().0
}

async fn with_key(policies: &Policies, name: &str) -> (String, String) {
    policies.create_agent("operator", name, AgentSpec::default()).await.unwrap();
    let (key, secret) = policies.create_key("operator", name, FOREVER).await.unwrap();
    (key.id.to_string(), secret)
}

/// Spends one nano-dollar for each of these input tokens.
async fn spend_tokens(policies: &Policies, caller: &Caller, tokens: u64) -> Result<(), Denied> {
    let lease = policies.admit(caller, spend(nano_per_token(), tokens, OutputBound::Whole(0))).await?;
    lease.settle(used(tokens, 0));
    Ok(())
}

fn rows(path: &Path) -> String {
    let mut text = Vec::new();
    export(path, &ExportFilter::default(), Format::JsonLines, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_created_agent_works_until_its_key_expires_is_disabled_or_goes() {
    let (policies, clock, hand) = start();
    let (id, secret) = with_key(&policies, "miner").await;
    assert_eq!(&*policies.authenticate(&secret).unwrap().agent.name, "miner");

    let hour = clock.now() + Duration::from_secs(3600);
    let change = |disabled, expires| KeyChange { disabled, expires, scopes: None };
    policies.change_key("operator", "miner", &id, change(Some(true), None)).await.unwrap();
    assert_eq!(policies.authenticate(&secret).unwrap_err(), KeyRefused::Disabled);
    policies.change_key("operator", "miner", &id, change(Some(false), Some(Some(hour)))).await.unwrap();
    hand.advance(Duration::from_secs(3599));
    assert!(policies.authenticate(&secret).is_ok(), "a second before its end");
    hand.advance(Duration::from_secs(1));
    assert_eq!(policies.authenticate(&secret).unwrap_err(), KeyRefused::Expired);
    policies.change_key("operator", "miner", &id, change(None, Some(None))).await.unwrap();
    assert!(policies.authenticate(&secret).is_ok());
    policies.remove_key("operator", "miner", &id).await.unwrap();
    assert_eq!(policies.authenticate(&secret).unwrap_err(), KeyRefused::Unknown);
}

#[tokio::test]
async fn both_keys_work_while_a_rotation_overlaps() {
    let (policies, clock, hand) = start();
    let (id, old) = with_key(&policies, "miner").await;
    let overlap = Duration::from_secs(600);
    let (ending, new, secret) = policies.rotate_key("operator", "miner", &id, overlap, None).await.unwrap();
    assert_eq!(ending.expires, Some(clock.now() + overlap));
    assert_eq!((new.expires, new.scopes), (None, Scopes::ALL));
    assert!(policies.authenticate(&old).is_ok() && policies.authenticate(&secret).is_ok());
    hand.advance(overlap);
    assert_eq!(policies.authenticate(&old).unwrap_err(), KeyRefused::Expired);
    assert!(policies.authenticate(&secret).is_ok());
    // A key that ends sooner is not given more time by it.
    let (again, _, _) = policies.rotate_key("operator", "miner", &id, overlap, None).await.unwrap();
    assert_eq!(again.expires, ending.expires);
}

#[tokio::test]
async fn a_disabled_agent_takes_its_runs_with_it() {
    let (policies, _, _) = start();
    let (_, secret) = with_key(&policies, "miner").await;
    let (_, of_run) = policies.create_run("miner", "miner", NewRun::default()).await.unwrap();
    let off = AgentSpec { disabled: true, ..AgentSpec::default() };
    policies.change_agent("operator", "miner", |_| Ok::<_, ManageError>(off)).await.unwrap();
    for key in [&secret, &of_run] {
        assert_eq!(policies.authenticate(key).unwrap_err(), KeyRefused::Disabled);
    }
    policies.change_agent("operator", "miner", |_| Ok::<_, ManageError>(AgentSpec::default())).await.unwrap();
    for key in [&secret, &of_run] {
        assert!(policies.authenticate(key).is_ok());
    }
}

#[tokio::test]
async fn the_file_wins_for_what_it_names() {
    let (policies, _, _) = start();
    let taken = policies.create_agent("operator", "scout", AgentSpec::default()).await.unwrap_err();
    assert_eq!(taken, ManageError::AgentInFile("scout".into()));
    let (_, secret) = with_key(&policies, "miner").await;

    let mut with_miner = config(&[]);
    add_agent(&mut with_miner, "miner", &[]);
    policies.reload(&with_miner);
    assert_eq!(policies.authenticate(&secret).unwrap_err(), KeyRefused::Unknown, "the file's agent has the file's key");
    assert!(policies.authenticate("miner-key").is_ok());
    let miners: Vec<_> = policies.agents().into_iter().filter(|agent| &*agent.name == "miner").collect();
    let shown: Vec<_> = miners.iter().map(|agent| (agent.source, agent.shadowed)).collect();
    assert_eq!(shown, [(Source::File, false), (Source::Api, true)]);

    policies.reload(&config(&[]));
    assert!(policies.authenticate(&secret).is_ok(), "it is back when the file no longer names it");
    assert!(policies.authenticate("miner-key").is_err());
}

#[tokio::test]
async fn created_budgets_hold_at_once_and_count_what_was_spent() {
    let (policies, _, _) = start();
    let caller = scout(&policies);
    spend_tokens(&policies, &caller, 70).await.unwrap();
    let owner = Owner::new(Scope::Agent, "scout");
    let made =
        policies.create_budget("operator", budget(owner.clone(), Window::Day, Limit::Usd(Usd(100)))).await.unwrap();
    let id = made.id.unwrap().to_string();
    assert_eq!(made.view.unwrap().spent, 70);
    assert!(matches!(spend_tokens(&policies, &caller, 31).await, Err(Denied::Budget(_))));
    spend_tokens(&policies, &caller, 30).await.unwrap();

    let larger = budget(owner.clone(), Window::Day, Limit::Usd(Usd(150)));
    policies.change_budget("operator", &id, |_| Ok::<_, ManageError>(larger)).await.unwrap();
    spend_tokens(&policies, &caller, 50).await.unwrap();
    assert!(matches!(spend_tokens(&policies, &caller, 1).await, Err(Denied::Budget(_))));
    policies.remove_budget("operator", &id).await.unwrap();
    spend_tokens(&policies, &caller, 1_000).await.unwrap();
    assert_eq!(policies.remove_budget("operator", &id).await, Err(ManageError::NoBudget(id)));
}

#[tokio::test]
async fn a_run_gets_no_budget_beside_its_limits() {
    let (policies, _, _) = start();
    let (run, _) = policies.create_run("operator", "scout", NewRun::default()).await.unwrap();
    let owner = Owner::new(Scope::Run, run.run.id.clone());
    let rule = budget(owner, Window::Day, Limit::Usd(Usd(100)));
    let refused = policies.create_budget("operator", rule.clone()).await.unwrap_err();
    assert_eq!(refused, ManageError::OfRun(run.run.id.clone()));
    assert!(refused.to_string().contains("tollkeeper runs extend"), "{refused}");
    let other = budget(Owner::everything(), Window::Day, Limit::Usd(Usd(100)));
    let id = policies.create_budget("operator", other).await.unwrap().id.unwrap();
    let moved = policies.change_budget("operator", &id, |_| Ok(rule)).await;
    assert_eq!(moved, Err(ManageError::OfRun(run.run.id.clone())));
}

#[tokio::test]
async fn of_many_changes_at_once_none_takes_another_back() {
    let (policies, _, _) = start();
    policies.create_agent("operator", "miner", AgentSpec::default()).await.unwrap();
    let owner = Owner::new(Scope::Agent, "miner");
    let rule = budget(owner, Window::Day, Limit::Usd(Usd(100)));
    let id = policies.create_budget("operator", rule).await.unwrap().id.unwrap();
    let mut changes = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (agents, budgets, id) = (policies.clone(), policies.clone(), id.clone());
        changes.spawn(async move {
            let model = |mut spec: AgentSpec| {
                spec.models.push(format!("up/{number}"));
                Ok::<_, ManageError>(spec)
            };
            agents.change_agent("operator", "miner", model).await.map(|_| ())
        });
        changes.spawn(async move {
            let notice = |old: &BudgetConfig| {
                let notify_at = old.notify_at.iter().copied().chain([number]).collect();
                Ok::<_, ManageError>(BudgetConfig { notify_at, ..old.clone() })
            };
            budgets.change_budget("operator", &id, notice).await.map(|_| ())
        });
    }
    assert!(changes.join_all().await.into_iter().all(|done| done.is_ok()));
    let agent = policies.agents().into_iter().find(|agent| &*agent.name == "miner").unwrap();
    assert_eq!(agent.spec.models.len(), 21, "{:?}", agent.spec.models);
    assert_eq!(policies.budget_entries()[0].rule.notify_at.len(), 20);
}

#[tokio::test]
async fn of_two_budgets_alike_the_files_counts() {
    let (policies, _, _) = start();
    let owner = Owner::new(Scope::Agent, "scout");
    let rule = budget(owner.clone(), Window::Day, Limit::Usd(Usd(100)));
    let id = policies.create_budget("operator", rule.clone()).await.unwrap().id.unwrap();
    let twice = policies.create_budget("operator", budget(owner.clone(), Window::Day, Limit::Usd(Usd(5)))).await;
    assert_eq!(twice, Err(ManageError::BudgetExists { owner: owner.clone(), id: id.clone() }));

    policies.reload(&config(&[(Window::Day, 1_000)]));
    let caller = scout(&policies);
    spend_tokens(&policies, &caller, 900).await.unwrap();
    let entries = policies.budget_entries();
    let shown: Vec<_> = entries.iter().map(|entry| (entry.source, entry.view.is_some())).collect();
    assert_eq!(shown, [(Source::File, true), (Source::Api, false)]);
    let other = policies.change_budget("operator", &id, |_| Ok(rule.clone())).await;
    assert_eq!(other, Err(ManageError::BudgetInFile { owner }));

    policies.reload(&config(&[]));
    assert!(matches!(spend_tokens(&policies, &caller, 1).await, Err(Denied::Budget(_))), "900 of 100 are spent");
}

#[tokio::test]
async fn what_was_made_survives_a_restart_and_no_secret_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let config = stored(folder.path(), &[]);
    let (clock, hand) = clock(NOON);
    let policies = open(&config, &clock);
    let team = AgentSpec { team: Some("red".into()), models: vec!["local/*".into()], ..AgentSpec::default() };
    policies.create_agent("operator", "miner", team.clone()).await.unwrap();
    let end = clock.now() + Duration::from_secs(60);
    let new = NewKey { scopes: Scopes { infer: true, runs: false }, expires: Some(end) };
    let (key, secret) = policies.create_key("operator", "miner", new).await.unwrap();
    let owner = Owner::new(Scope::Team, "red");
    policies.create_budget("operator", budget(owner.clone(), Window::Day, Limit::Tokens(10))).await.unwrap();
    let (before, budgets) = (policies.agents(), policies.budget_entries());
    let shown = format!("{before:?} {policies:?}");
    policies.close().await;
    drop(policies);

    let policies = open(&config, &clock);
    assert_eq!(policies.agents(), before);
    assert_eq!(policies.budget_entries(), budgets);
    let caller = policies.authenticate(&secret).unwrap();
    assert_eq!((caller.agent.team.as_deref(), caller.scopes), (Some("red"), new.scopes));
    assert!(caller.agent.may_use("local/fast") && !caller.agent.may_use("cloud/fast"));
    assert!(matches!(spend_tokens(&policies, &caller, 11).await, Err(Denied::Budget(_))));
    hand.set("2026-01-01T12:01:00Z");
    assert_eq!(policies.authenticate(&secret).unwrap_err(), KeyRefused::Expired);
    policies.close().await;
    drop(policies);

    assert!(verify(&config.store.path).is_ok());
    let written = format!("{shown}{}", rows(&config.store.path));
    assert!(written.contains("agent/miner") && written.contains(&*key.id), "each change is on record: {written}");
    assert!(!written.contains(&secret));
    let hash = sha256(&secret);
    assert!(!written.contains(&hash), "nor can guesses be checked against the exported ledger");
    for file in std::fs::read_dir(config.store.path.parent().unwrap()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

#[tokio::test]
async fn an_agent_that_goes_takes_its_budgets_and_its_pause_along() {
    let (policies, _, _) = start();
    let (_, secret) = with_key(&policies, "miner").await;
    let owner = Owner::new(Scope::Agent, "miner");
    policies.create_budget("operator", budget(owner.clone(), Window::Day, Limit::Usd(Usd(1)))).await.unwrap();
    policies.pause("operator", &owner, "by hand").await.unwrap();
    policies.remove_agent("operator", "miner").await.unwrap();
    assert_eq!(policies.authenticate(&secret).unwrap_err(), KeyRefused::Unknown);
    assert!(policies.pauses().is_empty() && policies.budget_entries().is_empty());
    assert_eq!(policies.remove_agent("operator", "miner").await, Err(ManageError::NoAgent("miner".into())));
    let (_, again) = with_key(&policies, "miner").await;
    spend_tokens(&policies, &policies.authenticate(&again).unwrap(), 1_000).await.unwrap();
}

#[tokio::test]
async fn changes_at_once_are_all_kept() {
    let (policies, _, _) = start();
    policies.create_agent("operator", "miner", AgentSpec::default()).await.unwrap();
    let keys = (0..10).map(|_| {
        let policies = policies.clone();
        tokio::spawn(async move { policies.create_key("operator", "miner", FOREVER).await.unwrap().1 })
    });
    for key in keys.collect::<Vec<_>>() {
        assert!(policies.authenticate(&key.await.unwrap()).is_ok());
    }
    let miner = policies.agents().into_iter().find(|agent| &*agent.name == "miner").unwrap();
    assert_eq!(miner.keys.len(), 10);
    assert!(miner.created.is_some_and(|at| at == NOON.parse::<Timestamp>().unwrap()));
}

fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
