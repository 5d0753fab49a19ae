//! What becomes of those whom their own traffic stopped: what a hand, new rules and the end of an agent do about it.

use crate::setup::{add_agent, clock, config, nano_per_token, scout, spend, stored, used};
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{Config, Owner, Scope, StageRule, VelocityConfig};
use tollkeeper_policies::velocity::Level;
use tollkeeper_policies::{
    AgentSpec, Caller, Denied, NewKey, NewRun, OutputBound, Policies, Scopes, Spend, Stop, What,
};

const NOON: &str = "2026-01-01T12:00:00Z";

/// One stage alone, which a prompt reaches that comes 32 times.
fn loops(kill: bool, cool_down: Option<Duration>) -> VelocityConfig {
    let rule = Some(StageRule { at: 40.0, cool_down });
    let (pause, kill) = if kill { (None, rule) } else { (rule, None) };
    let first = Some(if kill.is_some() { 2 } else { 4 });
    VelocityConfig {
        notify: None,
        throttle: None,
        local: None,
        pause,
        kill,
        loop_repeats: first,
        ..VelocityConfig::default()
    }
}

fn ruled(mut config: Config, rules: &VelocityConfig) -> Config {
    config.velocity = rules.clone();
    for agent in config.agents.values_mut() {
        Arc::make_mut(agent).velocity = rules.clone();
    }
    config
}

fn same() -> Spend {
    Spend { signature: Some(7), ..spend(nano_per_token(), 1, OutputBound::Whole(0)) }
}

async fn refusal(policies: &Policies, caller: &Caller) -> Option<(Owner, Stop)> {
    match policies.admit(caller, same()).await {
        Ok(lease) => {
            lease.settle(used(1, 0));
            None
        }
        Err(Denied::Stopped { who, stop }) => Some((who, stop)),
        Err(other) => panic!("{other}"),
    }
}

/// Asks the same until it is refused.
async fn stopped(policies: &Policies, caller: &Caller) -> (Owner, Stop) {
    for _ in 0..40 {
        if let Some(refused) = refusal(policies, caller).await {
            return refused;
        }
    }
    panic!("the same 40 times and nobody stops it");
}

fn agent(name: &str) -> Owner {
    Owner::new(Scope::Agent, name)
}

#[tokio::test]
async fn a_free_pass_ends_a_kill_but_no_pause_that_a_person_made() {
    let folder = tempfile::tempdir().unwrap();
    let config = ruled(stored(folder.path(), &[]), &loops(true, None));
    let clock = clock(NOON).0;
    let (policies, _) = Policies::open(&config, clock.clone()).unwrap();
    stopped(&policies, &scout(&policies)).await;
    policies.tick().await;
    assert_eq!(policies.pauses().len(), 1, "it stays so over a restart");
    policies.hold("ops", &agent("scout"), Level::Normal, None).await.unwrap();
    assert_eq!(refusal(&policies, &scout(&policies)).await, None);
    policies.tick().await;
    assert_eq!(refusal(&policies, &scout(&policies)).await, None, "and it is not kept again");
    policies.close().await;
    drop(policies);
    let (policies, _) = Policies::open(&config, clock.clone()).unwrap();
    assert_eq!(refusal(&policies, &scout(&policies)).await, None, "nor after a restart");
    policies.release("ops", &agent("scout")).await.unwrap();

    stopped(&policies, &scout(&policies)).await;
    policies.tick().await;
    policies.hold("ops", &agent("scout"), Level::Killed, None).await.unwrap();
    policies.close().await;
    drop(policies);
    let (policies, _) = Policies::open(&config, clock.clone()).unwrap();
    assert!(refusal(&policies, &scout(&policies)).await.is_some());
    policies.release("ops", &agent("scout")).await.unwrap();
    assert_eq!(refusal(&policies, &scout(&policies)).await, None, "its traffic decides, from normal");

    policies.pause("ops", &agent("scout"), "too dear").await.unwrap();
    policies.hold("ops", &agent("scout"), Level::Normal, None).await.unwrap();
    let (_, stop) = refusal(&policies, &scout(&policies)).await.unwrap();
    assert_eq!(stop, Stop::Paused { reason: "too dear".into() });
}

#[tokio::test]
async fn an_agent_that_was_killed_and_taken_away_leaves_nothing_to_the_next_of_its_name() {
    let policies = Policies::in_memory(&ruled(config(&[]), &loops(true, None)), clock(NOON).0);
    let make = async || {
        policies.create_agent("ops", "miner", AgentSpec::default()).await.unwrap();
        let (_, secret) = policies
            .create_key("ops", "miner", NewKey { scopes: Scopes { infer: true, runs: false }, expires: None })
            .await
            .unwrap();
        policies.authenticate(&secret).unwrap()
    };
    let miner = make().await;
    stopped(&policies, &miner).await;
    policies.tick().await;
    policies.remove_agent("ops", "miner").await.unwrap();
    policies.tick().await;
    assert_eq!(policies.pauses(), []);
    let miner = make().await;
    assert_eq!(refusal(&policies, &miner).await, None);
}

#[tokio::test]
async fn who_is_resumed_while_its_kill_goes_on_record_stays_so() {
    let policies = Policies::in_memory(&ruled(config(&[]), &loops(true, None)), clock(NOON).0);
    stopped(&policies, &scout(&policies)).await;
    let owner = agent("scout");
    let (resumed, ()) = tokio::join!(policies.resume("ops", &owner), policies.tick());
    assert!(resumed.unwrap());
    assert_eq!(policies.pauses(), []);
    assert_eq!(refusal(&policies, &scout(&policies)).await, None);
}

#[tokio::test]
async fn of_several_stops_the_one_that_lasts_longest_is_told() {
    let mut config = config(&[]);
    add_agent(&mut config, "miner", &[]);
    let (clock, hand) = clock(NOON);
    let at = |minutes: i64| Some(clock.now() + jiff::SignedDuration::from_mins(minutes));
    let policies = Policies::in_memory(&config, clock.clone());
    let (run, key) = policies.create_run("ops", "scout", NewRun::default()).await.unwrap();
    let (of_run, of_agent) = (Owner::new(Scope::Run, run.run.id.clone()), agent("scout"));
    let caller = policies.authenticate(&key).unwrap();
    let told = async || refusal(&policies, &caller).await.unwrap();

    policies.hold("ops", &of_agent, Level::Paused, at(10)).await.unwrap();
    policies.hold("ops", &of_run, Level::Paused, at(30)).await.unwrap();
    assert_eq!(told().await, (of_run.clone(), Stop::Velocity { until: at(30) }));
    policies.hold("ops", &of_agent, Level::Paused, at(40)).await.unwrap();
    assert_eq!(told().await, (of_agent.clone(), Stop::Velocity { until: at(40) }));
    policies.hold("ops", &of_run, Level::Killed, None).await.unwrap();
    assert_eq!(told().await, (of_run.clone(), Stop::Velocity { until: None }));
    policies.hold("ops", &of_run, Level::Normal, None).await.unwrap();
    policies.pause("ops", &of_agent, "too dear").await.unwrap();
    assert_eq!(told().await, (of_agent.clone(), Stop::Paused { reason: "too dear".into() }));
    policies.resume("ops", &of_agent).await.unwrap();
    policies.hold("ops", &of_agent, Level::Paused, at(10)).await.unwrap();
    policies.cancel_run("ops", &run.run).await.unwrap();
    assert_eq!(told().await.0, of_run, "the run does not come back");
    hand.advance(Duration::from_secs(3600));
    let miner = policies.authenticate("miner-key").unwrap();
    assert_eq!(refusal(&policies, &miner).await, None);
}

#[tokio::test]
async fn new_rules_reach_runs_that_are_open_and_end_what_they_no_longer_know() {
    let until_resumed = loops(false, None);
    for off in [
        VelocityConfig { pause: None, ..until_resumed.clone() },
        VelocityConfig { enabled: false, ..until_resumed.clone() },
    ] {
        let before = ruled(config(&[]), &until_resumed);
        let policies = Policies::in_memory(&before, clock(NOON).0);
        let (_, key) = policies.create_run("ops", "scout", NewRun::default()).await.unwrap();
        let caller = policies.authenticate(&key).unwrap();
        stopped(&policies, &caller).await;
        let mut events = policies.listen();
        policies.reload(&ruled(config(&[]), &off));
        for _ in 0..100 {
            assert_eq!(refusal(&policies, &caller).await, None, "neither the agent nor its run");
        }
        policies.tick().await;
        let mut ended = Vec::new();
        while let Ok(event) = events.try_recv() {
            if let What::Velocity(owner, change) = &event.what {
                assert_eq!((change.from, change.to), (Level::Paused, Level::Normal), "{owner}");
                ended.push(owner.scope);
            }
        }
        ended.sort();
        assert_eq!(ended, [Scope::Agent, Scope::Run], "both are told of, once");
    }
}
