//! More local models than memory: nobody is lost in a swap, long answers go on after it, and who can go elsewhere does.

use serde_json::{Value, json};
use std::path::Path;
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::process::{Process, run};
use tollkeeper_tests::setup::{ADMIN_KEY, Setup};
use tollkeeper_tests::upstream::Upstream;
use tollkeeper_tests::wait::eventually;

/// Memory for one of the models that [`model`] makes.
const ROOM: &str = "vram = \"10MiB\"\nmin_residency = \"1ms\"\ndrain = \"20ms\"\n";
const ADMIN: &str = "/admin/v1/models";

fn local(setup: Setup, lines: &str) -> Setup {
    setup.raw(&format!("[local]\n{lines}"))
}

/// The set-up with one more model of 8 MiB that answers with its own name, and counts without end when asked to.
fn model(setup: Setup, name: &str, lines: &str) -> Setup {
    let path = setup.path(&format!("{name}.json"));
    std::fs::write(&path, json!({"otherwise": name, "answers": {"count": null}, "step_millis": 1}).to_string())
        .unwrap();
    setup.raw(&format!(
        "[[local.models]]\nname = \"{name}\"\npath = {path:?}\nengine = \"scripted\"\ncontext = 2048\nmemory = \"8MiB\"\n{lines}\n"
    ))
}

fn two() -> Setup {
    model(model(local(Setup::new(), ROOM), "a", ""), "b", "")
}

fn operator(gateway: &Gateway) -> Client {
    Client::new(gateway.addr()).key(ADMIN_KEY)
}

async fn state(gateway: &Gateway, name: &str) -> String {
    let all = operator(gateway).get(ADMIN).await.json();
    let model = all["models"].as_array().unwrap().iter().find(|model| model["name"] == name).unwrap().clone();
    model["state"].as_str().unwrap().to_owned()
}

fn said(answer: &Answer) -> String {
    let chunks = answer.events();
    let chunks = chunks.iter().filter_map(|data| serde_json::from_str::<Value>(data).ok());
    chunks.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
}

fn count(model: &str, tokens: u32) -> Value {
    let mut ask = streamed(model);
    ask["messages"][0]["content"] = json!("count");
    ask["max_tokens"] = json!(tokens);
    ask
}

#[tokio::test]
async fn sixteen_clients_of_two_models_that_do_not_fit_together_all_get_their_answers() {
    let gateway = Gateway::start(two()).await;
    let clients = (0..16).map(|number| {
        let client = gateway.client();
        tokio::spawn(async move {
            for round in 0..8 {
                let name = if (number + round) % 2 == 0 { "a" } else { "b" };
                let answer = client.post_json(CHAT, &chat(name)).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                assert_eq!(answer.json()["choices"][0]["message"]["content"], name);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    for client in clients {
        client.await.unwrap();
    }
    let all = operator(&gateway).get(ADMIN).await.json();
    let there = all["models"].as_array().unwrap().iter().filter(|model| model["state"] == "ready").count();
    assert!(there <= 1, "only one fits: {all}");
    let metrics = gateway.metrics().await;
    let loads = metrics.sum("tollkeeper_swap_phases_total", &[("phase", "load")]);
    let unloads = metrics.sum("tollkeeper_swap_phases_total", &[("phase", "unload")]);
    assert!(loads >= 2.0 && (loads - unloads).abs() <= 1.0, "{loads} loads, {unloads} unloads");
    assert_eq!(metrics.sum("tollkeeper_local_memory_bytes", &[("kind", "budget")]), f64::from(10 << 20));
    assert_eq!(metrics.sum("tollkeeper_local_model_state", &[("model", "a")]), 1.0, "a model is in one state");
}

#[tokio::test]
async fn an_answer_that_is_longer_than_the_drain_goes_on_after_the_swap_and_is_the_same() {
    let gateway = Gateway::start(two()).await;
    let undisturbed = said(&gateway.client().post_json(CHAT, &count("a", 600)).await);
    assert_eq!(undisturbed.len(), 600);
    let mut long = gateway.client().stream(CHAT, &count("a", 600)).await;
    let first = long.next_event().await.unwrap().unwrap();
    let other = gateway.client().post_json(CHAT, &chat("b")).await;
    assert_eq!((other.status, &other.json()["choices"][0]["message"]["content"]), (200, &json!("b")));
    let rest = long.rest().await;
    let mut events = vec![first];
    events.extend(rest.events());
    let text: String = events
        .iter()
        .filter_map(|data| serde_json::from_str::<Value>(data).ok())
        .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(text, undisturbed);
    let metrics = gateway.metrics().await;
    let loads = |model| metrics.sum("tollkeeper_swap_phases_total", &[("phase", "load"), ("model", model)]);
    assert_eq!((loads("a"), loads("b")), (2.0, 1.0), "it was swapped in the middle");
}

#[tokio::test]
async fn who_can_be_answered_elsewhere_does_not_wait_for_a_swap_and_the_model_comes_when_there_is_room() {
    let upstream = Upstream::start().await;
    let setup = local(Setup::with(&upstream), &format!("{ROOM}patience = \"1ms\"\n"));
    let setup = model(model(setup, "a", ""), "b", "").alias("either", &["b", "up/plain"]);
    let gateway = Gateway::start(setup).await;
    eventually("a", async || (state(&gateway, "a").await == "ready").then_some(())).await;
    let busy = gateway.client().stream(CHAT, &count("a", 2000)).await;
    let answer = gateway.client().post_json(CHAT, &chat("either")).await;
    assert_eq!((answer.status, answer.header("x-tollkeeper-backend")), (200, "up/plain"));
    assert_eq!(state(&gateway, "a").await, "ready", "a wish does not take a busy model's place");
    drop(busy);
    eventually("b", async || (state(&gateway, "b").await == "ready").then_some(())).await;
    let answer = gateway.client().post_json(CHAT, &chat("either")).await;
    assert_eq!(answer.header("x-tollkeeper-backend"), "b");
}

#[tokio::test]
async fn how_long_a_model_takes_depends_on_who_is_at_work_at_this_moment() {
    let upstream = Upstream::start().await;
    let lines = "vram = \"10MiB\"\nmin_residency = \"1ms\"\ndrain = \"1h\"\npatience = \"1m\"\n";
    let setup = model(model(local(Setup::with(&upstream), lines), "a", ""), "b", "");
    let gateway = Gateway::start(setup.alias("either", &["b", "up/plain"])).await;
    eventually("a", async || (state(&gateway, "a").await == "ready").then_some(())).await;
    let first = async || {
        let plan = gateway.client().post_json("/v1/route/explain", &chat("either")).await.json();
        plan["attempts"][0]["backend"].as_str().unwrap().to_owned()
    };
    assert_eq!(first().await, "b", "nobody has to be waited for");
    let mut busy = gateway.client().stream(CHAT, &count("a", 2000)).await;
    busy.next_event().await.unwrap().unwrap();
    assert_eq!(first().await, "up/plain", "the answer may take up to an hour");
    drop(busy);
    eventually("b before the cloud", async || (first().await == "b").then_some(())).await;
}

#[tokio::test]
async fn who_waits_too_long_is_told_when_to_come_again() {
    let lines = "vram = \"10MiB\"\nmin_residency = \"1h\"\nmax_wait = \"30ms\"\n";
    let setup = model(model(local(Setup::new(), lines), "a", ""), "b", "");
    let gateway = Gateway::start(setup).await;
    eventually("a", async || (state(&gateway, "a").await == "ready").then_some(())).await;
    let answer = gateway.client().post_json(CHAT, &chat("b")).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((3500..=3602).contains(&wait), "the residency of the other is an hour, not {wait} s");
    assert!(answer.error()["message"].as_str().unwrap().contains("not in memory"), "{}", answer.text());
    assert_eq!(gateway.client().post_json(CHAT, &chat("a")).await.status, 200);
}

#[tokio::test]
async fn a_pinned_model_stays_and_who_cannot_fit_beside_it_hears_what_is_missing() {
    let setup = model(model(local(Setup::new(), ROOM), "a", "pin = true"), "b", "");
    let gateway = Gateway::start(setup).await;
    assert_eq!(gateway.client().post_json(CHAT, &chat("a")).await.status, 200);
    let answer = gateway.client().post_json(CHAT, &chat("b")).await;
    assert_eq!(answer.status, 503);
    let message = answer.error()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("needs 8.0 MiB") && message.contains("6.0 MiB are missing"), "{message}");
    let unpinned = operator(&gateway).post(&format!("{ADMIN}/a/unpin"), "").await;
    assert_eq!((unpinned.status, &unpinned.json()["pinned"]), (202, &json!(false)));
    assert_eq!(gateway.client().post_json(CHAT, &chat("b")).await.status, 200);
}

#[tokio::test]
async fn an_idle_model_goes_and_the_next_request_brings_it_back() {
    let setup = model(local(Setup::new(), ROOM), "a", "keep_alive = \"1ms\"");
    let gateway = Gateway::start(setup).await;
    for _ in 0..2 {
        eventually("its end", async || (state(&gateway, "a").await == "absent").then_some(())).await;
        assert_eq!(gateway.client().post_json(CHAT, &chat("a")).await.status, 200);
    }
}

#[tokio::test]
async fn the_operator_loads_and_unloads_and_nobody_else() {
    let setup = model(model(local(Setup::new(), ROOM), "a", ""), "b", "preload = false");
    let gateway = Gateway::start(setup).await;
    for (path, status) in
        [(format!("{ADMIN}/b/load"), 401), (format!("{ADMIN}/b"), 404), (format!("{ADMIN}/b/burn"), 404)]
    {
        assert_eq!(gateway.client().post(&path, "").await.status, status, "{path}");
    }
    assert_eq!(gateway.client().get(ADMIN).await.status, 401);
    let nobody = operator(&gateway).post(&format!("{ADMIN}/nobody/load"), "").await;
    assert_eq!((nobody.status, &nobody.error()["code"]), (404, &json!("model_not_found")));
    eventually("a", async || (state(&gateway, "a").await == "ready").then_some(())).await;
    assert_eq!(state(&gateway, "b").await, "absent");
    assert_eq!(operator(&gateway).post(&format!("{ADMIN}/b/load"), "").await.status, 202);
    eventually("b", async || (state(&gateway, "b").await == "ready").then_some(())).await;
    assert_eq!(state(&gateway, "a").await, "absent", "it made room");
    assert_eq!(operator(&gateway).post(&format!("{ADMIN}/b/unload"), "").await.status, 202);
    eventually("b's end", async || (state(&gateway, "b").await == "absent").then_some(())).await;
    let swaps = operator(&gateway).get(ADMIN).await.json()["swaps"].clone();
    let of_b = swaps.as_array().unwrap().iter().filter(|swap| swap["model"] == "b").collect::<Vec<_>>();
    assert!(of_b[0]["phases"]["load_ms"].is_number() && of_b[1]["phases"]["drain_ms"].is_number(), "{swaps}");
}

#[tokio::test]
async fn the_command_line_shows_and_moves_models() {
    let setup = two();
    let process = Process::start(&setup).await;
    let port = process.addr().port();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("client.toml");
    std::fs::write(&config, format!("[server]\nlisten = \"127.0.0.1:{port}\"\nadmin_key = \"{ADMIN_KEY}\"\n[store]\npath = \"unused.db\"\n[[agents]]\nname = \"x\"\nkey = \"y\"\n")).unwrap();
    let ask = async |arguments: &[&str]| {
        let all: Vec<&str> = ["models", "-c", "client.toml"].into_iter().chain(arguments.iter().copied()).collect();
        let output = run(Path::new(folder.path()), &all).await;
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        (output.status.success(), out + &err)
    };
    let (good, text) = ask(&["load", "b"]).await;
    assert!(good && text.contains("b "), "{text}");
    eventually("b", async || {
        ask(&["status"]).await.1.lines().find(|line| line.starts_with("b ") && line.contains("ready")).map(drop)
    })
    .await;
    let (good, text) = ask(&[]).await;
    assert!(good && text.contains("absent") && text.ends_with("2.0 MiB of 10.0 MiB free\n"), "{text}");
    let (good, text) = ask(&["pin", "nobody"]).await;
    assert!(!good && text.contains("no local model `nobody`"), "{text}");
    process.kill().await;
    let (good, text) = ask(&[]).await;
    assert!(!good && text.contains("is it running?"), "{text}");
}
