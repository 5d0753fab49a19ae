//! What becomes of those whom their own traffic stopped: what a hand, new rules and the end of an agent do about it.

use crate::setup::{clock, config, nano_per_token, scout, spend, used};
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
