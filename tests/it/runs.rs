//! Runs over HTTP: keys that are budgets, children that carve from their parents, events, and what is cut when a run ends.

use serde_json::{Value, json};
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{CHAT, chat, streamed};
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::{ADMIN_KEY, Setup};
use tollkeeper_tests::upstream::{Content, End, Gate, Hold, Script, Upstream};
use tollkeeper_tests::wait::eventually;

const RUNS: &str = "/v1/runs";
/// A model whose answers of ten tokens cost 10,000 nano-dollars.
const FLAT: &str = "[prices.\"up/flat\"]\ninput = \"0\"\noutput = \"1\"\nabilities = [\"chat\"]\n";
const ANSWER: i64 = 10_000;

fn ask() -> Value {
    let mut ask = chat("up/flat");
    ask["max_tokens"] = json!(10);
    ask
}

fn code(answer: &Answer) -> Value {
    answer.error()["code"].clone()
}

fn usd(nano: i64) -> String {
    Usd(nano).to_string()
}

async fn create(client: &Client, body: Value) -> (String, String) {
    let answer = client.post_json(RUNS, &body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let run = answer.json();
    let text = |name: &str| run[name].as_str().unwrap().to_owned();
    assert!(text("id").starts_with("run_") && text("key").starts_with("tk-run-"));
    assert_eq!((&run["object"], &run["status"]), (&json!("run"), &json!("active")));
    (text("id"), text("key"))
}

async fn show(client: &Client, id: &str) -> Value {
    let answer = client.get(&format!("{RUNS}/{id}")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let run = answer.json();
    assert_eq!(run["key"], Value::Null, "a key is shown once");
    run
}

async fn flat() -> (Gateway, Upstream) {
    let upstream = Upstream::always(Script::words(10)).await;
    let gateway = Gateway::start(Setup::with(&upstream).raw(FLAT).agent("digger", "tk-digger", &[])).await;
    (gateway, upstream)
}

#[tokio::test]
async fn the_key_is_the_budget() {
    let (gateway, _upstream) = flat().await;
    let agent = gateway.client();
    let (id, key) = create(&agent, json!({"label": "fix the tests", "limits": {"usd": usd(3 * ANSWER)}})).await;
    let run = gateway.client().key(&key);
    for _ in 0..3 {
        assert_eq!(run.post_json(CHAT, &ask()).await.status, 200);
    }
    let answer = run.post_json(CHAT, &ask()).await;
    assert_eq!((answer.status, code(&answer)), (402, json!("budget_exceeded")));
    assert_eq!((&answer.error()["budget"]["scope"], &answer.error()["budget"]["id"]), (&json!("run"), &json!(id)));
    // The agent itself goes on.
    assert_eq!(agent.post_json(CHAT, &ask()).await.status, 200);
    let view = show(&run, &id).await;
    assert_eq!(view["spent"], json!({"usd": usd(3 * ANSWER), "tokens": view["spent"]["tokens"], "calls": 3}));
    assert_eq!(
        (&view["label"], &view["agent"], &view["reserved_usd"]),
        (&json!("fix the tests"), &json!("scout"), &json!(usd(0)))
    );
    let ledger = gateway.stop().await;
    assert_eq!(ledger.total(), Usd(4 * ANSWER));
}

#[tokio::test]
async fn tokens_and_calls_are_limits_too() {
    let (gateway, upstream) = flat().await;
    for (limits, served) in [(json!({"calls": 2}), 2), (json!({"tokens": 1}), 0)] {
        let (_, key) = create(&gateway.client(), json!({"limits": limits})).await;
        let before = upstream.received().len();
        let run = gateway.client().key(&key);
        while run.post_json(CHAT, &ask()).await.status == 200 {}
        assert_eq!(upstream.received().len() - before, served, "{limits}");
    }
}

#[tokio::test]
async fn children_carve_from_their_parent_and_give_back_what_they_leave() {
    let (gateway, _upstream) = flat().await;
    let (parent, parent_key) = create(&gateway.client(), json!({"limits": {"usd": usd(10 * ANSWER)}})).await;
    let owner = gateway.client().key(&parent_key);
    let (child, child_key) = create(&owner, json!({"limits": {"usd": usd(6 * ANSWER)}})).await;
    let worker = gateway.client().key(&child_key);
    assert_eq!(show(&owner, &parent).await["reserved_usd"], usd(6 * ANSWER));
    // What is left cannot be given away twice.
    let answer = owner.post_json(RUNS, &json!({"limits": {"usd": usd(5 * ANSWER)}})).await;
    assert_eq!((answer.status, code(&answer)), (402, json!("budget_exceeded")), "{}", answer.text());
    for _ in 0..2 {
        assert_eq!(worker.post_json(CHAT, &ask()).await.status, 200);
    }
    for _ in 0..4 {
        assert_eq!(owner.post_json(CHAT, &ask()).await.status, 200);
    }
    assert_eq!(owner.post_json(CHAT, &ask()).await.status, 402, "the rest is the child's");
    let view = show(&owner, &parent).await;
    assert_eq!((&view["spent"]["usd"], &view["reserved_usd"]), (&json!(usd(6 * ANSWER)), &json!(usd(4 * ANSWER))));
    assert_eq!(show(&owner, &child).await["parent"], json!(parent));

    assert_eq!(owner.post_json(&format!("{RUNS}/{child}/cancel"), &json!({})).await.json()["status"], "cancelled");
    assert_eq!(show(&owner, &parent).await["reserved_usd"], usd(0));
    for _ in 0..4 {
        assert_eq!(owner.post_json(CHAT, &ask()).await.status, 200, "what it left came back");
    }
    assert_eq!(owner.post_json(CHAT, &ask()).await.status, 402);
    let answer = worker.post_json(CHAT, &ask()).await;
    assert_eq!((answer.status, code(&answer)), (403, json!("run_cancelled")));
}

#[tokio::test]
async fn who_may_see_and_change_a_run() {
    let (gateway, _upstream) = flat().await;
    let (id, key) = create(&gateway.client(), json!({"limits": {"usd": usd(ANSWER)}})).await;
    let (other, _) = create(&gateway.client(), json!({})).await;
    let path = format!("{RUNS}/{id}");
    let (run, digger, operator) =
        (gateway.client().key(&key), gateway.client().key("tk-digger"), gateway.client().key(ADMIN_KEY));
    for (client, path, status) in [
        (&run, &path, 200),
        (&operator, &path, 200),
        (&digger, &path, 404),
        (&run, &format!("{RUNS}/{other}"), 404),
        (&gateway.client().key("nobody"), &path, 401),
    ] {
        assert_eq!(client.get(path).await.status, status);
    }
    let ids = |answer: Answer| answer.json()["data"].as_array().unwrap().len();
    assert_eq!(ids(gateway.client().get(RUNS).await), 2);
    assert_eq!((ids(run.get(RUNS).await), ids(digger.get(RUNS).await), ids(operator.get(RUNS).await)), (1, 0, 2));
    // A run cannot raise its own limits; its agent can.
    let more = json!({"usd": usd(ANSWER)});
    let answer = run.post_json(&format!("{path}/extend"), &more).await;
    assert_eq!((answer.status, code(&answer)), (403, json!("own_run")));
    assert_eq!(digger.post_json(&format!("{path}/extend"), &more).await.status, 404);
    let answer = gateway.client().post_json(&format!("{path}/extend"), &more).await;
    assert_eq!((answer.status, &answer.json()["limits"]["usd"]), (200, &json!(usd(2 * ANSWER))));
    for _ in 0..2 {
        assert_eq!(run.post_json(CHAT, &ask()).await.status, 200);
    }
    assert_eq!(run.post_json(CHAT, &ask()).await.status, 402);
    // Only the operator makes runs of others.
    assert_eq!(gateway.client().post_json(RUNS, &json!({"agent": "digger"})).await.status, 404);
    create(&operator, json!({"agent": "digger"})).await;
    assert_eq!(code(&operator.post_json(RUNS, &json!({"agent": "nobody"})).await), json!("agent_not_found"));
    let answer = operator.post_json(RUNS, &json!({"agent": "digger", "parent": id})).await;
    assert_eq!((answer.status, &answer.error()["param"]), (400, &json!("parent")));
}

#[tokio::test]
async fn nonsense_is_refused_by_name() {
    let (gateway, _upstream) = flat().await;
    for (body, hint) in [
        (json!({"limit": {}}), "unknown field `limit`"),
        (json!({"limits": {"usd": "1.2.3"}}), "1.2.3 is no amount in USD"),
        (json!({"limits": {"usd": -1}}), "-1 is no amount in USD"),
        (json!({"limits": {"tokens": -5}}), "invalid value"),
        (json!({"policy": {"on_limit": "explode"}}), "on_limit"),
        (json!({"policy": {"wrap_up_pct": 80}}), "wrap_up_pct"),
    ] {
        let answer = gateway.client().post_json(RUNS, &body).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text().contains(hint), "{body}: {}", answer.text());
    }
    assert_eq!(gateway.client().get(&format!("{RUNS}/run_0")).await.status, 404);
    create(&gateway.client(), json!({"limits": {"usd": 0.25, "wall_s": 60}})).await;
}

#[tokio::test]
async fn cancelling_cuts_what_is_in_flight_of_the_whole_subtree() {
    let upstream = Upstream::directed(|received| {
        let whole = received.json()["stream"] != json!(true);
        let gate = Gate::default();
        Script::says(Content::Endless).with_hold(if whole { Hold::Head(gate) } else { Hold::Frames(gate) })
    })
    .await;
    let gateway = Gateway::start(Setup::with(&upstream).raw(FLAT)).await;
    let (top, top_key) = create(&gateway.client(), json!({"limits": {"usd": "1"}})).await;
    let (_, child_key) = create(&gateway.client().key(&top_key), json!({"limits": {"usd": "0.5"}})).await;
    let (_, grandchild_key) = create(&gateway.client().key(&child_key), json!({})).await;
    let mut answers = tokio::task::JoinSet::new();
    for (key, stream) in [(&top_key, true), (&child_key, true), (&grandchild_key, true), (&grandchild_key, false)] {
        let client = gateway.client().key(key);
        let ask = if stream { streamed("up/flat") } else { ask() };
        answers.spawn(async move { client.post_json(CHAT, &ask).await });
    }
    upstream.wait_for_requests(4).await;
    assert_eq!(gateway.client().post_json(&format!("{RUNS}/{top}/cancel"), &json!({})).await.status, 200);
    for answer in answers.join_all().await {
        assert!(answer.text().contains("run_cancelled"), "{}", answer.text());
    }
    upstream.wait_until("the sockets to be cut", |served| served.iter().all(|served| served.end != End::Open)).await;
    gateway.settled().await;
    assert_eq!(show(&gateway.client(), &top).await["reserved_usd"], usd(0));
}

#[tokio::test]
async fn a_run_ends_when_its_time_is_up() {
    let upstream = Upstream::always(Script::says(Content::Endless).with_hold(Hold::Frames(Gate::default()))).await;
    let gateway = Gateway::start(Setup::with(&upstream).raw(FLAT)).await;
    let (id, key) = create(&gateway.client(), json!({"limits": {"wall_s": 1}})).await;
    let run = gateway.client().key(&key);
    let answer = run.post_json(CHAT, &streamed("up/flat")).await;
    assert!(answer.text().contains("run_over"), "{}", answer.text());
    let answer = run.post_json(CHAT, &ask()).await;
    assert_eq!((answer.status, code(&answer)), (403, json!("run_over")));
    eventually("the run to be shown as over", async || {
        (show(&gateway.client(), &id).await["status"] == "over").then_some(())
    })
    .await;
}

#[tokio::test]
async fn events_tell_what_happens_until_the_end() {
    let (gateway, _upstream) = flat().await;
    let (id, key) = create(&gateway.client(), json!({"limits": {"usd": usd(2 * ANSWER)}})).await;
    let run = gateway.client().key(&key);
    let mut events = run.open(http::Method::GET, &format!("{RUNS}/{id}/events"), "").await;
    let first: Value = serde_json::from_str(&events.next_event().await.unwrap().unwrap()).unwrap();
    assert_eq!(first["id"], json!(id));
    for status in [200, 200, 402] {
        assert_eq!(run.post_json(CHAT, &ask()).await.status, status);
    }
    gateway.client().post_json(&format!("{RUNS}/{id}/cancel"), &json!({})).await;
    let rest = events.rest().await;
    let names: Vec<&str> =
        std::str::from_utf8(&rest.body).unwrap().lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names, ["threshold", "usage", "threshold", "usage", "denied", "ended", "run"]);
    let told: Vec<Value> = rest.events().iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    assert_eq!(
        (&told[0]["percent"], &told[2]["percent"], &told[1]["usd"]),
        (&json!(50), &json!(95), &json!(usd(ANSWER)))
    );
    assert_eq!(told.last().unwrap()["status"], "cancelled");
}

#[tokio::test]
async fn who_watches_a_run_that_is_cancelled_hears_of_all_it_cost() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let gateway = Gateway::start(Setup::with(&upstream).raw(FLAT)).await;
    let (id, key) = create(&gateway.client(), json!({})).await;
    let run = gateway.client().key(&key);
    let events = gateway.client().open(http::Method::GET, &format!("{RUNS}/{id}/events"), "").await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut open = run.stream(CHAT, &streamed("up/flat")).await;
        open.next_event().await.unwrap().unwrap();
        streams.push(open);
    }
    gateway.client().post_json(&format!("{RUNS}/{id}/cancel"), &json!({})).await;
    let rest = events.rest().await;
    let names: Vec<&str> =
        std::str::from_utf8(&rest.body).unwrap().lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names.iter().filter(|name| **name == "usage").count(), 8, "{names:?}");
    let told: Vec<Value> = rest.events().iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    let charged: Vec<&str> =
        told.iter().filter(|event| event["backend"].is_string()).filter_map(|event| event["usd"].as_str()).collect();
    let sum = charged.iter().map(|usd| Usd::parse_decimal(usd).unwrap().0).sum();
    assert_eq!(told.last().unwrap()["spent"]["usd"], json!(usd(sum)), "the last state holds all of it");
}

#[tokio::test]
async fn some_runs_may_use_local_models_only() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream);
    let script = setup.path("local.json");
    std::fs::write(&script, r#"{"otherwise": "at home"}"#).unwrap();
    let setup = setup
        .raw(&format!("[[local.models]]\nname = \"home\"\npath = {script:?}\nengine = \"scripted\"\n"))
        .alias("both", &["up/a", "home"]);
    let gateway = Gateway::start(setup).await;
    let (_, key) = create(&gateway.client(), json!({"policy": {"local_only": true}})).await;
    let run = gateway.client().key(&key);
    for model in ["both", "home", "up/a"] {
        let answer = run.post_json(CHAT, &chat(model)).await;
        assert_eq!((answer.status, answer.header("x-tollkeeper-backend")), (200, "home"), "{model}: {}", answer.text());
    }
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn runs_and_what_they_spent_survive_a_restart() {
    let upstream = Upstream::always(Script::words(10)).await;
    let setup = Setup::with(&upstream).raw(FLAT);
    let gateway = Gateway::start(setup).await;
    let (parent, parent_key) = create(&gateway.client(), json!({"limits": {"usd": usd(5 * ANSWER)}})).await;
    let (child, child_key) =
        create(&gateway.client().key(&parent_key), json!({"limits": {"usd": usd(2 * ANSWER)}})).await;
    assert_eq!(gateway.client().key(&child_key).post_json(CHAT, &ask()).await.status, 200);
    let before = (show(&gateway.client(), &parent).await, show(&gateway.client(), &child).await);
    let gateway = Gateway::start(gateway.stop().await.setup).await;
    assert_eq!((show(&gateway.client(), &parent).await, show(&gateway.client(), &child).await), before);
    let worker = gateway.client().key(&child_key);
    assert_eq!((worker.post_json(CHAT, &ask()).await.status, worker.post_json(CHAT, &ask()).await.status), (200, 402));
}
