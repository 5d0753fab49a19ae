//! Models that cannot be loaded, and configurations that change.

use crate::ask::{ask, begin, call, chat, echo, engines, local, model, read};
use crate::serving::scripted;
use serde_json::json;
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_inference::BackendHealth;
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::fault::FaultKind;

pub(crate) fn why_unavailable(engines: &LocalEngines, name: &str) -> String {
    match engines.state(name).health {
        BackendHealth::Unavailable(reason) => reason.to_string(),
        other => panic!("{name} is {other:?}"),
    }
}

#[tokio::test]
async fn a_model_that_fails_to_load_says_why_and_the_others_serve() {
    let (refusing, _folder) = scripted("refusing", &json!({"load_error": "out of cheese"}));
    let models = [
        echo("good"),
        model("missing", EngineKind::Scripted, "/nowhere/script.json"),
        #[cfg(not(feature = "candle"))]
        model("other", EngineKind::Candle, "/nowhere/model.gguf"),
        refusing,
    ];
    let engines = engines(models).await;
    for (name, words) in [
        ("missing", "/nowhere/script.json"),
        ("missing", "No such file"),
        #[cfg(not(feature = "candle"))]
        ("other", "no candle engine"),
        ("refusing", "out of cheese"),
    ] {
        let reason = why_unavailable(&engines, name);
        assert!(reason.contains(words), "{reason}");
        let fault = engines.send(name, call(Request::Chat(chat("x")))).await.unwrap_err();
        assert_eq!((fault.kind, fault.message), (FaultKind::Unavailable, reason));
    }
    assert_eq!(engines.send("nobody", call(Request::Chat(chat("x")))).await.unwrap_err().kind, FaultKind::Unavailable);
    assert_eq!(ask(&engines, "good", Request::Chat(chat("x"))).await.unwrap().text(), "x");
    assert_eq!(engines.input_tokens("missing", &Request::Chat(chat("x"))), None);
}

#[tokio::test]
async fn a_reload_keeps_what_did_not_change_and_lets_the_rest_finish() {
    let (talking, _folder) = scripted("talking", &json!({"answers": {"go": null}}));
    let talking = LocalModel { context: 1000, ..talking };
    let engines = engines([echo("kept"), talking.clone()]).await;
    let before = ask(&engines, "kept", Request::Chat(chat("x"))).await.unwrap();
    assert_eq!(before.usage.cached_input, 0);
    let running = begin(&engines, "talking", call(Request::Chat(chat("go")))).await.unwrap();

    let dearer =
        LocalModel { abilities: tollkeeper_config::Abilities { chat: true, ..Default::default() }, ..echo("kept") };
    engines.reload(&local([dearer, echo("new")]));
    engines.ready().await;
    let names: Vec<String> = engines.names().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["kept", "new"]);
    let after = ask(&engines, "kept", Request::Chat(chat("x"))).await.unwrap();
    assert_eq!(after.usage.cached_input, after.usage.input - 1, "it stayed loaded, with its KV");
    assert_eq!(ask(&engines, "new", Request::Chat(chat("y"))).await.unwrap().text(), "y");
    assert_eq!(
        engines.send("talking", call(Request::Chat(chat("go")))).await.unwrap_err().kind,
        FaultKind::Unavailable
    );
    let answer = read(running).await;
    assert!(answer.fault.is_none(), "the removed model finished its answer");
    assert!(answer.usage.output > 900);
}

#[tokio::test]
async fn a_changed_model_is_loaded_again_and_a_failed_one_gets_another_chance() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("late.json");
    let config = local([echo("changing"), model("late", EngineKind::Scripted, &path)]);
    let engines = LocalEngines::start(&config, None);
    engines.ready().await;
    assert!(matches!(engines.state("late").health, BackendHealth::Unavailable(_)));
    std::fs::write(&path, "{\"otherwise\": \"here\"}").unwrap();
    engines.reload(&config);
    engines.ready().await;
    assert_eq!(ask(&engines, "late", Request::Chat(chat("x"))).await.unwrap().text(), "here");
    engines.reload(&local([LocalModel { context: 60, ..echo("changing") }]));
    engines.ready().await;
    let fault = engines.send("changing", call(Request::Chat(chat(&"x".repeat(60))))).await.unwrap_err();
    assert!(fault.message.contains("a context of 60 tokens"), "{fault}");
}

#[tokio::test]
async fn a_request_waits_for_a_model_that_is_being_loaded() {
    let engines = LocalEngines::start(&local([echo("m")]), None);
    assert_eq!(ask(&engines, "m", Request::Chat(chat("early"))).await.unwrap().text(), "early");
}
