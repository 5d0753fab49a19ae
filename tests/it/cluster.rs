//! Servers of one's own behind an alias: the gateway knows how they are before a request has to find out.

use serde_json::Value;
use tollkeeper_tests::asks::{CHAT, chat};
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::model_server::{Kind, ModelServer, Telling};
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::Upstream;
use tollkeeper_tests::wait::eventually;

const BACKEND: &str = "x-tollkeeper-backend";

fn cheapest(targets: &[&str]) -> String {
    format!("[[aliases]]\nname = \"team\"\nstrategy = \"cheapest\"\ntargets = {targets:?}\n")
}

async fn ask(gateway: &Gateway, model: &str) -> Answer {
    gateway.client().post_json(CHAT, &chat(model)).await
}

/// Who answers.
async fn backend(gateway: &Gateway, model: &str) -> String {
    let answer = ask(gateway, model).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header(BACKEND).to_owned()
}

/// Waits until a metric of a provider has this value.
async fn until(gateway: &Gateway, metric: &str, provider: &str, value: f64) {
    eventually(&format!("{metric} of {provider} = {value}"), async || {
        let metrics = gateway.metrics().await;
        let there = metrics.values(metric, "provider").contains(provider);
        (there && metrics.sum(metric, &[("provider", provider)]) == value).then_some(())
    })
    .await;
}

async fn until_up(gateway: &Gateway, provider: &str, up: bool) {
    until(gateway, "tollkeeper_server_up", provider, f64::from(u8::from(up))).await;
}

async fn until_waiting(gateway: &Gateway, provider: &str, requests: u32) {
    until(gateway, "tollkeeper_server_requests_waiting", provider, f64::from(requests)).await;
}

/// Waits until a server has been asked so often from now on.
async fn until_asked(server: &ModelServer, times: usize) {
    let before = server.mood().asked.len();
    eventually("more questions", async || (server.mood().asked.len() >= before + times).then_some(())).await;
}

fn tries(samples: &tollkeeper_tests::metrics::Samples, provider: &str) -> f64 {
    samples.sum("tollkeeper_provider_tries_total", &[("provider", provider)])
}

#[tokio::test]
async fn the_work_goes_where_the_queue_is_shortest() {
    for kind in [Kind::Vllm, Kind::SgLang, Kind::LlamaServer] {
        let (a, b) = (ModelServer::start(kind, &["m"]).await, ModelServer::start(kind, &["m"]).await);
        let toml = a.provider("a", "") + &b.provider("b", "") + &cheapest(&["a/m", "b/m"]);
        let gateway = Gateway::start(Setup::new().raw(&toml)).await;
        for (busy, idle, expected) in [((&a, "a"), (&b, "b"), "b/m"), ((&b, "b"), (&a, "a"), "a/m")] {
            busy.0.set(|mood| (mood.running, mood.waiting, mood.kv) = (4, 3, 0.5));
            idle.0.set(|mood| (mood.running, mood.waiting, mood.kv) = (0, 0, 0.0));
            until_waiting(&gateway, busy.1, 3).await;
            until_waiting(&gateway, idle.1, 0).await;
            for _ in 0..8 {
                assert_eq!(backend(&gateway, "team").await, expected, "{kind:?}");
            }
            let metrics = gateway.metrics().await;
            let of = |metric: &str| metrics.sum(metric, &[("provider", busy.1), ("model", "m")]);
            assert_eq!(of("tollkeeper_server_requests_running"), 4.0);
            let kv = if kind == Kind::LlamaServer { 0.0 } else { 0.5 };
            assert_eq!(of("tollkeeper_server_kv_usage_ratio"), kv, "{kind:?}");
        }
        assert_eq!((a.mood().chats.len(), b.mood().chats.len()), (8, 8));
    }
}

#[tokio::test]
async fn a_dead_server_is_passed_over_before_a_request_finds_out_and_comes_back_by_itself() {
    let (mut a, b) = (ModelServer::start(Kind::Vllm, &["m"]).await, ModelServer::start(Kind::SgLang, &["m"]).await);
    a.stop().await;
    let toml = a.provider("a", "") + &b.provider("b", "");
    let gateway = Gateway::start(Setup::new().raw(&toml).alias("team", &["a/m", "b/m"])).await;
    until_up(&gateway, "a", false).await;
    until_up(&gateway, "b", true).await;
    assert_eq!(backend(&gateway, "team").await, "b/m");
    assert_eq!(tries(&gateway.metrics().await, "a"), 0.0, "nobody had to find out");
    assert_eq!(gateway.metrics().await.sum("tollkeeper_backend_state", &[("backend", "a")]), 1.0);

    // Failures of requests lead to a long cooling, which its return ends.
    for _ in 0..9 {
        let answer = ask(&gateway, "a/m").await;
        assert!(answer.status >= 500, "{}", answer.text());
    }
    a.restart().await;
    until_up(&gateway, "a", true).await;
    assert_eq!(backend(&gateway, "team").await, "a/m");

    a.set(|mood| mood.well = false);
    until_up(&gateway, "a", false).await;
    assert_eq!(backend(&gateway, "team").await, "b/m");
    assert_eq!(backend(&gateway, "a/m").await, "a/m", "who names it alone may still try");
}

#[tokio::test]
async fn a_model_that_the_server_does_not_have_is_refused_with_the_reason() {
    let cases = [
        (Kind::Vllm, true),
        (Kind::Ollama, true),
        (Kind::LlamaRouter, true),
        // These answer to any name.
        (Kind::SgLang, false),
        (Kind::LlamaServer, false),
    ];
    for (kind, refused) in cases {
        let server = ModelServer::start(kind, &["here"]).await;
        let gateway = Gateway::start(Setup::new().raw(&server.provider("s", ""))).await;
        until_up(&gateway, "s", true).await;
        until_asked(&server, 8).await;
        assert_eq!(backend(&gateway, "s/here").await, "s/here");
        let answer = ask(&gateway, "s/gone").await;
        if refused {
            assert_eq!(answer.status, 503, "{kind:?}: {}", answer.text());
            let message = answer.error()["message"].as_str().unwrap().to_owned();
            assert!(message.contains("the server has no model `gone`; it has `here`"), "{message}");
            assert_eq!(server.mood().chats, ["here"], "it was not asked");
            server.set(|mood| mood.models.push(("gone".to_owned(), true)));
            eventually("the model", async || (ask(&gateway, "s/gone").await.status == 200).then_some(())).await;
        } else {
            assert_eq!(answer.status, 200, "{kind:?}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn gauges_that_cannot_be_read_do_no_harm() {
    for telling in [Telling::Garbage, Telling::Endless, Telling::Never, Telling::Off] {
        let server = ModelServer::start(Kind::Vllm, &["m"]).await;
        server.set(|mood| mood.telling = telling);
        let gateway = Gateway::start(Setup::new().raw(&server.provider("s", ""))).await;
        eventually("the question", async || server.mood().asked.contains(&"/metrics".to_owned()).then_some(())).await;
        assert_eq!(backend(&gateway, "s/m").await, "s/m", "{telling:?}");
        until_up(&gateway, "s", true).await;
        if telling == Telling::Endless {
            let mood =
                eventually("the end of the endless", async || Some(server.mood()).filter(|mood| mood.closed > 0));
            let taken = mood.await.taken;
            assert!(taken < 64 << 20, "{taken} bytes were taken");
        }
        if telling != Telling::Never {
            until_asked(&server, 6).await;
        }
        let metrics = gateway.metrics().await;
        assert!(metrics.values("tollkeeper_server_requests_waiting", "provider").is_empty(), "{telling:?}");
        server.set(|mood| (mood.telling, mood.waiting) = (Telling::Truth, 2));
        until_waiting(&gateway, "s", 2).await;
    }
}

#[tokio::test]
async fn a_reload_ends_the_questions_to_a_server_that_is_gone_and_no_others() {
    let servers = [ModelServer::start(Kind::Vllm, &["m"]).await, ModelServer::start(Kind::Vllm, &["m"]).await];
    let stays = ModelServer::start(Kind::Ollama, &["m"]).await;
    let [old, new] = &servers;
    let setup = |moves: &str| Setup::new().raw(&(moves.to_owned() + &stays.provider("stays", "")));
    let gateway = Gateway::start(setup(&old.provider("moves", ""))).await;
    until_asked(old, 4).await;

    gateway.reload(&setup(&new.provider("moves", "")));
    until_asked(new, 4).await;
    let asked = old.mood().asked.len();
    until_asked(new, 9).await;
    until_asked(&stays, 9).await;
    assert_eq!(old.mood().asked.len(), asked, "the old one is left alone");

    gateway.reload(&setup(&new.provider("moves", "probe = \"off\"")));
    until_asked(&stays, 4).await;
    let asked = new.mood().asked.len();
    until_asked(&stays, 9).await;
    assert_eq!(new.mood().asked.len(), asked);
    assert_eq!(gateway.metrics().await.values("tollkeeper_server_up", "provider"), ["stays"].into());
    assert_eq!(backend(&gateway, "moves/m").await, "moves/m");
}

#[tokio::test]
async fn the_list_of_models_holds_what_servers_have() {
    let server = ModelServer::start(Kind::Ollama, &["gemma3:latest", "org/coder"]).await;
    let many: Vec<String> = (0..300).map(|number| format!("m{number}")).collect();
    let large = ModelServer::start(Kind::Vllm, &many.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let priced = Upstream::start().await;
    let narrow = "[[agents]]\nname = \"narrow\"\nkey = \"tk-narrow\"\nmodels = [\"s/org/*\"]\n";
    let setup = Setup::with(&priced).raw(&(server.provider("s", "") + &large.provider("large", "") + narrow));
    let gateway = Gateway::start(setup).await;
    let ids = async |key: Option<&str>| -> Vec<String> {
        let client = key.map_or_else(|| gateway.client(), |key| Client::new(gateway.addr()).key(key));
        let list = client.get("/v1/models").await.json();
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    eventually("the models", async || ids(None).await.contains(&"s/gemma3:latest".to_owned()).then_some(())).await;
    eventually("the many", async || {
        (ids(None).await.iter().filter(|id| id.starts_with("large/")).count() == 256).then_some(())
    })
    .await;
    assert_eq!(ids(Some("tk-narrow")).await, ["s/org/coder"]);
    assert_eq!(backend(&gateway, "s/gemma3").await, "s/gemma3", "Ollama's `latest` may be left out");
    assert_eq!(backend(&gateway, "large/m299").await, "large/m299", "a list that was cut refuses nobody");
}

#[tokio::test]
async fn what_is_in_memory_is_told_and_asking_brings_nothing_into_it() {
    for kind in [Kind::Ollama, Kind::LlamaRouter] {
        let server = ModelServer::start(kind, &["in", "out"]).await;
        server.set(|mood| (mood.models[1].1, mood.running, mood.waiting) = (false, 2, 1));
        let gateway = Gateway::start(Setup::new().raw(&server.provider("s", ""))).await;
        until(&gateway, "tollkeeper_server_model_loaded", "s", 1.0).await;
        let metrics = gateway.metrics().await;
        let loaded = |model| metrics.sum("tollkeeper_server_model_loaded", &[("model", model)]);
        assert_eq!((loaded("in"), loaded("out")), (1.0, 0.0), "{kind:?}");
        assert_eq!(backend(&gateway, "s/out").await, "s/out", "the server loads it when it is asked for");
        if kind == Kind::LlamaRouter {
            until_waiting(&gateway, "s", 1).await;
            let about: Vec<_> = server.mood().asked.into_iter().filter(|path| path.contains("model=")).collect();
            assert!(about.iter().all(|path| path == "/metrics?model=in&autoload=false"), "{about:?}");
            let asked = server.mood().asked;
            assert!(!asked.iter().any(|path| path == "/metrics" || path == "/slots"), "{asked:?}");
        }
    }
}

#[tokio::test]
async fn slots_are_asked_for_only_while_the_server_works_for_us() {
    let server = ModelServer::start(Kind::LlamaServer, &["m"]).await;
    server.set(|mood| (mood.telling, mood.hold, mood.running) = (Telling::Off, true, 2));
    let gateway = Gateway::start(Setup::new().raw(&server.provider("s", ""))).await;
    let slots = || server.mood().asked.iter().filter(|path| *path == "/slots").count();
    until_asked(&server, 9).await;
    assert_eq!(slots(), 0, "that would keep it from falling asleep");
    let client = gateway.client();
    let asking = tokio::spawn(async move { client.post_json(CHAT, &chat("s/m")).await });
    eventually("the question", async || (slots() > 0).then_some(())).await;
    until(&gateway, "tollkeeper_server_requests_running", "s", 2.0).await;
    server.set(|mood| mood.hold = false);
    assert_eq!(asking.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_server_that_is_not_asked_is_as_any_other() {
    let server = ModelServer::start(Kind::Vllm, &["here"]).await;
    let gateway = Gateway::start(Setup::new().raw(&server.provider("s", "probe = \"off\""))).await;
    assert_eq!(backend(&gateway, "s/whatever").await, "s/whatever");
    assert_eq!(server.mood().asked, Vec::<String>::new());
    let list: Value = gateway.client().get("/v1/models").await.json();
    assert!(!list.to_string().contains("s/here"), "{list}");
}
