//! Who is asking, and what may they name.

use crate::setup::{add_agent, clock, config};
use tollkeeper_config::Secret;
use tollkeeper_policies::Policies;

#[test]
fn a_key_finds_its_agent_and_nothing_else_does() {
    let mut config = config(&[]);
    add_agent(&mut config, "digger", &[]);
    let policies = Policies::in_memory(&config, clock("2026-01-01T00:00:00Z").0);
    assert_eq!(&*policies.authenticate("scout-key").unwrap().agent.name, "scout");
    assert_eq!(&*policies.authenticate("digger-key").unwrap().agent.name, "digger");
    for wrong in ["", "scout-ke", "scout-key ", "SCOUT-KEY", "scout"] {
        assert!(policies.authenticate(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_reload_changes_keys_models_and_agents() {
    let mut config = config(&[]);
    add_agent(&mut config, "digger", &[]);
    let policies = Policies::in_memory(&config, clock("2026-01-01T00:00:00Z").0);
    let mut scout = (*config.agents["scout"]).clone();
    scout.key = Some(Secret::new("new-key"));
    scout.models = vec!["local/*".to_owned()];
    config.agents.insert("scout".to_owned(), scout.into());
    config.agents.remove("digger");
    policies.reload(&config);
    assert!(policies.authenticate("scout-key").is_err());
    assert!(policies.authenticate("digger-key").is_err());
    assert!(!policies.authenticate("new-key").unwrap().agent.may_use("cloud/fast"));
}

#[test]
fn patterns_of_models() {
    let cases: &[(&[&str], &str, bool)] = &[
        (&["*"], "anything/at/all", true),
        (&["*"], "", true),
        (&[], "auto", false),
        (&["auto"], "auto", true),
        (&["auto"], "auto2", false),
        (&["auto"], "Auto", false),
        (&["local/*"], "local/fast", true),
        (&["local/*"], "local/", true),
        (&["local/*"], "local", false),
        (&["local/*", "cloud/fast"], "cloud/fast", true),
        (&["openai/*-mini"], "openai/gpt-4o-mini", true),
        (&["openai/*-mini"], "openai/gpt-4o-mini-2", false),
        (&["*/gpt*mini"], "openrouter/openai/gpt-4o-mini", true),
        (&["a*b*c"], "aXbXbXc", true),
        (&["a*b*c"], "aXbXbX", false),
        (&["**"], "x", true),
        (&["fast*"], "schön/fast", false),
        (&["sch*n/fast"], "schön/fast", true),
    ];
    for (models, named, allowed) in cases {
        let mut config = config(&[]);
        let mut scout = (*config.agents["scout"]).clone();
        scout.models = models.iter().map(|model| (*model).to_owned()).collect();
        config.agents.insert("scout".to_owned(), scout.into());
        let policies = Policies::in_memory(&config, clock("2026-01-01T00:00:00Z").0);
        let scout = policies.authenticate("scout-key").unwrap();
        assert_eq!(scout.agent.may_use(named), *allowed, "{models:?} {named}");
    }
}

#[test]
fn a_key_is_never_shown() {
    let policies = Policies::in_memory(&config(&[]), clock("2026-01-01T00:00:00Z").0);
    let agent = policies.authenticate("scout-key").unwrap();
    let shown = format!("{agent:?} {policies:?}");
    assert!(shown.contains("scout") && !shown.contains("scout-key"), "{shown}");
    // Nor its hash, which would let somebody check guesses.
    assert!(shown.contains("KeyHash(…)"), "{shown}");
}
