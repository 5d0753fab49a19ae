//! Runs and the keys that they were made with: a run's key is good for no more than its maker's, and for no longer.

use crate::setup::{Hand, clock, config, nano_per_token, spend};
use futures_util::FutureExt;
use std::time::Duration;
use tollkeeper_policies::{
    AgentSpec, Caller, Clock, Denied, KeyChange, KeyRefused, Lost, ManageError, NewKey, NewRun, OutputBound, Policies,
    Scopes, Stop,
};

const INFER: Scopes = Scopes { infer: true, runs: false };
const RUNS: Scopes = Scopes { infer: false, runs: true };
const UNCHANGED: KeyChange = KeyChange { disabled: None, expires: None, scopes: None };

/// An agent that was made at run time, and its key's id and secret.
struct World {
    policies: Policies,
    clock: Clock,
    hand: Hand,
    id: String,
    secret: String,
}

impl World {
    async fn with(scopes: Scopes) -> Self {
        let (clock, hand) = clock("2026-01-01T12:00:00Z");
        let policies = Policies::in_memory(&config(&[]), clock.clone());
        policies.create_agent("operator", "miner", AgentSpec::default()).await.unwrap();
        let (key, secret) = policies.create_key("operator", "miner", NewKey { scopes, expires: None }).await.unwrap();
        Self { policies, clock, hand, id: key.id.to_string(), secret }
    }

    /// Makes a run with this key, and returns the key of the run.
    async fn run(&self, key: &str) -> String {
        let caller = self.policies.authenticate(key).unwrap();
        let new = NewRun { parent: caller.run.clone(), maker: caller.maker(), ..NewRun::default() };
        self.policies.create_run("miner", "miner", new).await.unwrap().1
    }

    async fn change(&self, change: KeyChange) {
        self.policies.change_key("operator", "miner", &self.id, change).await.unwrap();
    }

    fn refused(&self, key: &str) -> KeyRefused {
        self.policies.authenticate(key).unwrap_err()
    }

    fn caller(&self, key: &str) -> Caller {
        self.policies.authenticate(key).unwrap()
    }

    /// Why nothing of this caller may go on, if so.
    fn cut(&self, caller: &Caller) -> Option<KeyRefused> {
        match self.policies.key_lost(caller).now_or_never()? {
            Denied::Stopped { stop: Stop::Key(refused), .. } => Some(refused),
            other => panic!("cut by {other}"),
        }
    }
}

#[tokio::test]
async fn a_run_and_those_below_it_depend_on_the_key_that_made_the_first() {
    let world = World::with(Scopes::ALL).await;
    let run = world.run(&world.secret).await;
    let below = world.run(&run).await;
    let callers = [&world.secret, &run, &below].map(|key| world.caller(key));
    world.change(KeyChange { disabled: Some(true), ..UNCHANGED }).await;
    let (own, made) = (KeyRefused::Disabled, KeyRefused::Maker(Lost::Disabled));
    for ((key, caller), why) in [&world.secret, &run, &below].into_iter().zip(&callers).zip([own, made, made]) {
        assert_eq!((world.refused(key), world.cut(caller)), (why, Some(why)));
    }
    world.change(KeyChange { disabled: Some(false), ..UNCHANGED }).await;
    for (key, caller) in [&world.secret, &run, &below].into_iter().zip(&callers) {
        assert!(world.policies.authenticate(key).is_ok() && world.cut(caller).is_none());
    }
}

#[tokio::test]
async fn a_run_expires_with_the_key_that_made_it_also_after_a_rotation() {
    let world = World::with(Scopes::ALL).await;
    let run = world.run(&world.secret).await;
    let caller = world.caller(&run);
    let overlap = Duration::from_secs(60);
    let rotated = world.policies.rotate_key("operator", "miner", &world.id, overlap, None).await.unwrap();
    assert!(world.policies.authenticate(&run).is_ok() && world.cut(&caller).is_none(), "while both work");
    world.hand.advance(overlap);
    let why = KeyRefused::Maker(Lost::Expired);
    assert_eq!((world.refused(&run), world.cut(&caller)), (why, Some(why)));
    let next = world.run(&rotated.2).await;
    assert!(world.policies.authenticate(&next).is_ok(), "runs of the new key are not touched");
}

#[tokio::test]
async fn what_is_in_flight_is_cut_when_its_key_expires_though_nobody_does_anything() {
    let world = World::with(Scopes::ALL).await;
    let left = Duration::from_millis(20);
    world.change(KeyChange { expires: Some(Some(world.clock.now() + left)), ..UNCHANGED }).await;
    let caller = world.caller(&world.run(&world.secret).await);
    assert_eq!(world.cut(&caller), None);
    let cut = tokio::spawn(world.policies.key_lost(&caller));
    world.hand.advance(left);
    let cut = tokio::time::timeout(Duration::from_secs(30), cut).await.unwrap().unwrap();
    assert!(matches!(cut, Denied::Stopped { stop: Stop::Key(KeyRefused::Maker(Lost::Expired)), .. }), "{cut}");
}

#[tokio::test]
async fn runs_end_when_their_key_or_agent_is_taken_away() {
    for whole_agent in [false, true] {
        let world = World::with(Scopes::ALL).await;
        let run = world.run(&world.secret).await;
        let caller = world.caller(&run);
        // One of the operator, which depends on the agent alone.
        let new = NewRun::default();
        let (operators, operators_key) = world.policies.create_run("operator", "miner", new).await.unwrap();
        if whole_agent {
            world.policies.remove_agent("operator", "miner").await.unwrap();
        } else {
            world.policies.remove_key("operator", "miner", &world.id).await.unwrap();
        }
        let why = if whole_agent { KeyRefused::Disabled } else { KeyRefused::Maker(Lost::Gone) };
        assert_eq!((world.refused(&run), world.cut(&caller)), (why, Some(why)));
        let id = &caller.run.as_ref().unwrap().id;
        assert!(world.policies.run(id).unwrap().ended.is_some(), "it has ended, and given back what it had");
        assert!(caller.run.as_ref().unwrap().ended().now_or_never().is_some(), "what is in flight is cut");
        assert_eq!(world.policies.run(&operators.run.id).unwrap().ended.is_some(), whole_agent);
        // Also for another agent of the same name.
        if whole_agent {
            world.policies.create_agent("operator", "miner", AgentSpec::default()).await.unwrap();
            assert!(world.policies.authenticate(&run).is_err());
            let again = world.caller(&operators_key);
            let refused = world.policies.admit(&again, spend(nano_per_token(), 1, OutputBound::Whole(1))).await;
            assert!(matches!(refused, Err(Denied::Stopped { stop: Stop::Cancelled, .. })));
        }
    }
}

#[tokio::test]
async fn a_disabled_agent_stops_its_runs() {
    let world = World::with(Scopes::ALL).await;
    let run = world.run(&world.secret).await;
    let caller = world.caller(&run);
    let spec = AgentSpec { disabled: true, ..AgentSpec::default() };
    world.policies.change_agent("operator", "miner", |_| Ok::<_, ManageError>(spec)).await.unwrap();
    assert_eq!((world.refused(&run), world.cut(&caller)), (KeyRefused::Disabled, Some(KeyRefused::Disabled)));
}

#[tokio::test]
async fn the_key_of_a_run_is_good_for_no_more_than_the_key_that_made_it() {
    let world = World::with(RUNS).await;
    let run = world.run(&world.secret).await;
    let below = world.run(&run).await;
    assert_eq!([&run, &below].map(|key| world.caller(key).scopes), [RUNS; 2]);
    // What the key gets later its runs do not, and what is taken from it is taken from them.
    world.change(KeyChange { scopes: Some(Scopes::ALL), ..UNCHANGED }).await;
    assert_eq!(world.caller(&run).scopes, RUNS);
    let full = world.run(&world.secret).await;
    assert_eq!(world.caller(&full).scopes, Scopes::ALL);
    world.change(KeyChange { scopes: Some(INFER), ..UNCHANGED }).await;
    assert_eq!(world.caller(&full).scopes, INFER);
    // Runs of the operator have no such key.
    let key = world.policies.create_run("operator", "miner", NewRun::default()).await.unwrap().1;
    assert_eq!(world.caller(&key).scopes, Scopes::ALL);
}

#[tokio::test]
async fn what_a_run_depends_on_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (clock, _hand) = clock("2026-01-01T12:00:00Z");
    let config = crate::setup::stored(folder.path(), &[]);
    let policies = Policies::open(&config, clock.clone()).unwrap().0;
    policies.create_agent("operator", "miner", AgentSpec::default()).await.unwrap();
    let new = NewKey { scopes: RUNS, expires: None };
    let (key, secret) = policies.create_key("operator", "miner", new).await.unwrap();
    let maker = policies.authenticate(&secret).unwrap().maker();
    let new = NewRun { maker, ..NewRun::default() };
    let run = policies.create_run("miner", "miner", new).await.unwrap().1;
    policies.close().await;
    drop(policies);
    let policies = Policies::open(&config, clock).unwrap().0;
    assert_eq!(policies.authenticate(&run).unwrap().scopes, RUNS);
    let disabled = KeyChange { disabled: Some(true), ..UNCHANGED };
    policies.change_key("operator", "miner", &key.id, disabled).await.unwrap();
    assert_eq!(policies.authenticate(&run).unwrap_err(), KeyRefused::Maker(Lost::Disabled));
    policies.close().await;
}

#[tokio::test]
async fn the_key_of_the_file_is_a_maker_too() {
    let (clock, _hand) = clock("2026-01-01T12:00:00Z");
    let mut config = config(&[]);
    let policies = Policies::in_memory(&config, clock);
    let maker = policies.authenticate("scout-key").unwrap().maker();
    let run = policies.create_run("scout", "scout", NewRun { maker, ..NewRun::default() }).await.unwrap().1;
    let caller = policies.authenticate(&run).unwrap();
    policies.reload(&config);
    assert!(policies.authenticate(&run).is_ok(), "the same file changes nothing");
    let mut agent = (*config.agents["scout"]).clone();
    agent.key = Some(tollkeeper_config::Secret::new("another-key".to_owned()));
    config.agents.insert("scout".to_owned(), agent.into());
    policies.reload(&config);
    assert_eq!(policies.authenticate(&run).unwrap_err(), KeyRefused::Maker(Lost::Gone));
    assert!(policies.key_lost(&caller).now_or_never().is_some());
}
