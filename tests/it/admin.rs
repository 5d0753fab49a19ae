//! The administrative API over TCP: every answer here is also checked against the OpenAPI document that the gateway serves.

mod changes;
pub(crate) mod document;

use document::Operator;
use http::Method;
use serde_json::{Value, json};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use tollkeeper_policies::Clock;
use tollkeeper_tests::asks::{self, CHAT, chat};
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::{ADMIN_KEY, KEY, Setup};
use tollkeeper_tests::upstream::{Content, End, Gate, Hold, Script, Upstream};

const AGENTS: &str = "/admin/v1/agents";
const BUDGETS: &str = "/admin/v1/budgets";
/// A model whose answers of ten tokens cost 0.00001 USD.
const FLAT: &str = "[prices.\"up/flat\"]\ninput = \"0\"\noutput = \"1\"\nabilities = [\"chat\"]\n";

fn ask() -> Value {
    let mut ask = chat("up/flat");
    ask["max_tokens"] = json!(10);
    ask
}

async fn start() -> (Gateway, Upstream, Operator) {
    let upstream = Upstream::always(Script::words(10)).await;
    let gateway = Gateway::start(Setup::with(&upstream).raw(FLAT)).await;
    let operator = Operator::of(gateway.addr()).await;
    (gateway, upstream, operator)
}

async fn chats(gateway: &Gateway, key: &str) -> Answer {
    Client::new(gateway.addr()).key(key).post_json(CHAT, &ask()).await
}

fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.error()["code"]), (status, &json!(code)), "{}", answer.text());
}

/// A new agent with a key; gives the key's id and its secret.
async fn agent(operator: &Operator, body: Value) -> (String, String) {
    let name = body["name"].as_str().unwrap().to_owned();
    operator.good(Method::POST, AGENTS, &body).await;
    let key = operator.good(Method::POST, &format!("{AGENTS}/{name}/keys"), &json!({})).await;
    (key["id"].as_str().unwrap().to_owned(), key["key"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn an_agent_is_made_used_changed_and_taken_away() {
    let (gateway, _upstream, operator) = start().await;
    let (id, secret) = agent(&operator, json!({"name": "miner", "team": "red", "models": ["up/*"]})).await;
    assert_eq!(chats(&gateway, &secret).await.status, 200);
    let shown = operator.good(Method::GET, &format!("{AGENTS}/miner"), &Value::Null).await;
    assert_eq!(
        (&shown["source"], &shown["team"], &shown["models"], &shown["keys"][0]["status"]),
        (&json!("api"), &json!("red"), &json!(["up/*"]), &json!("active"))
    );
    assert!(!shown.to_string().contains(&secret), "a secret is shown once");
    let prefix = shown["keys"][0]["prefix"].as_str().unwrap();
    assert!(secret.starts_with(prefix) && prefix.len() * 3 < secret.len());

    // A change leaves what it does not name, and null takes away.
    let path = format!("{AGENTS}/miner");
    let changed = operator.good(Method::PATCH, &path, &json!({"models": ["local/*"], "team": null})).await;
    assert_eq!((&changed["models"], &changed["team"]), (&json!(["local/*"]), &Value::Null));
    refused(&chats(&gateway, &secret).await, 403, "model_not_allowed");
    operator.good(Method::PATCH, &path, &json!({"models": null, "disabled": true})).await;
    refused(&chats(&gateway, &secret).await, 401, "key_disabled");
    operator.good(Method::PATCH, &path, &json!({"disabled": false})).await;
    assert_eq!(chats(&gateway, &secret).await.status, 200);

    let rotated = operator.good(Method::POST, &format!("{path}/keys/{id}/rotate"), &json!({"overlap_s": 3600})).await;
    let new = rotated["key"].as_str().unwrap();
    assert_eq!((rotated["replaces"]["id"].as_str(), chats(&gateway, new).await.status), (Some(&*id), 200));
    assert_eq!(chats(&gateway, &secret).await.status, 200, "both work for an hour");
    let key = format!("{path}/keys/{id}");
    operator.good(Method::PATCH, &key, &json!({"expires_in_s": 0})).await;
    refused(&chats(&gateway, &secret).await, 401, "key_expired");
    operator.good(Method::DELETE, &key, &Value::Null).await;
    refused(&chats(&gateway, &secret).await, 401, "invalid_api_key");
    refused(&operator.ask(Method::DELETE, &key, &Value::Null).await, 404, "key_not_found");

    operator.good(Method::DELETE, &path, &Value::Null).await;
    refused(&chats(&gateway, new).await, 401, "invalid_api_key");
    refused(&operator.ask(Method::GET, &path, &Value::Null).await, 404, "agent_not_found");
    let ledger = gateway.stop().await;
    assert!(ledger.report.changes >= 9, "each of the nine changes is in the ledger's chain: {:?}", ledger.report);
}

#[tokio::test]
async fn a_key_opens_what_its_scopes_say() {
    let (gateway, _upstream, operator) = start().await;
    agent(&operator, json!({"name": "miner"})).await;
    let mut keys = Vec::new();
    for scope in ["infer", "runs"] {
        let made = operator.good(Method::POST, &format!("{AGENTS}/miner/keys"), &json!({"scopes": [scope]})).await;
        keys.push(made["key"].as_str().unwrap().to_owned());
    }
    let [infer, runs] = [&keys[0], &keys[1]];
    assert_eq!(chats(&gateway, infer).await.status, 200);
    refused(&Client::new(gateway.addr()).key(infer).post_json("/v1/runs", &json!({})).await, 403, "scope_missing");
    refused(&chats(&gateway, runs).await, 403, "scope_missing");
    let run = Client::new(gateway.addr()).key(runs).post_json("/v1/runs", &json!({"limits": {"calls": 1}})).await;
    assert_eq!(run.status, 201, "{}", run.text());
    refused(&chats(&gateway, run.json()["key"].as_str().unwrap()).await, 403, "scope_missing");
    let wrong = operator.ask(Method::POST, &format!("{AGENTS}/miner/keys"), &json!({"scopes": ["root"]})).await;
    assert_eq!((wrong.status, &wrong.error()["param"]), (400, &json!("scopes")));
}

#[tokio::test]
async fn rate_limits_of_created_agents_hold_and_change_at_once() {
    let (gateway, _upstream, operator) = start().await;
    let (_, secret) = agent(&operator, json!({"name": "miner", "requests_per_minute": 1})).await;
    assert_eq!(chats(&gateway, &secret).await.status, 200);
    refused(&chats(&gateway, &secret).await, 429, "rate_limit_exceeded");
    // The file is taken over again; what was made stays.
    gateway.reload(gateway.setup());
    refused(&chats(&gateway, &secret).await, 429, "rate_limit_exceeded");
    operator.good(Method::PATCH, &format!("{AGENTS}/miner"), &json!({"requests_per_minute": null})).await;
    assert_eq!(chats(&gateway, &secret).await.status, 200);
}

#[tokio::test]
async fn the_file_wins_and_says_so() {
    let (gateway, _upstream, operator) = start().await;
    let taken = operator.ask(Method::POST, AGENTS, &json!({"name": "scout"})).await;
    refused(&taken, 409, "defined_in_file");
    for (method, path) in [(Method::PATCH, ""), (Method::DELETE, ""), (Method::GET, "/keys"), (Method::POST, "/keys")] {
        refused(&operator.ask(method, &format!("{AGENTS}/scout{path}"), &json!({})).await, 409, "defined_in_file");
    }
    let (_, secret) = agent(&operator, json!({"name": "miner"})).await;

    let text = fs::read_to_string(gateway.setup().path("tollkeeper.toml")).unwrap();
    let with_miner = format!("{text}\n[[agents]]\nname = \"miner\"\nkey = \"tk-miner-of-the-file\"\n");
    fs::write(gateway.setup().path("tollkeeper.toml"), with_miner).unwrap();
    let reloaded = operator.good(Method::POST, "/admin/v1/reload", &Value::Null).await;
    assert_eq!((&reloaded["reloaded"], &reloaded["agents"]), (&json!(true), &json!(2)));
    refused(&chats(&gateway, &secret).await, 401, "invalid_api_key");
    assert_eq!(chats(&gateway, "tk-miner-of-the-file").await.status, 200);
    let all = operator.good(Method::GET, AGENTS, &Value::Null).await;
    let miners = all["data"].as_array().unwrap().iter().filter(|agent| agent["name"] == "miner");
    let miners: Vec<_> = miners.map(|agent| (agent["source"].clone(), agent["shadowed"].clone())).collect();
    assert_eq!(miners, [(json!("file"), json!(false)), (json!("api"), json!(true))]);
    let note = all["data"][1]["note"].as_str().unwrap();
    assert!(note.contains("wins"), "{note}");

    // A file with a mistake changes nothing.
    fs::write(gateway.setup().path("tollkeeper.toml"), "[[agents]]\nnam = 1\n").unwrap();
    let bad = operator.ask(Method::POST, "/admin/v1/reload", &Value::Null).await;
    refused(&bad, 422, "bad_configuration");
    assert!(bad.error()["message"].as_str().unwrap().contains("did you mean `name`"));
    assert_eq!(chats(&gateway, "tk-miner-of-the-file").await.status, 200);

    fs::write(gateway.setup().path("tollkeeper.toml"), text).unwrap();
    operator.good(Method::POST, "/admin/v1/reload", &Value::Null).await;
    assert_eq!(chats(&gateway, &secret).await.status, 200, "the created one is back");
}

#[tokio::test]
async fn budgets_hold_at_once_and_say_how_they_stand() {
    let (gateway, _upstream, operator) = start().await;
    let made =
        operator.good(Method::POST, BUDGETS, &json!({"agent": "scout", "window": "day", "limit_usd": "0.00002"})).await;
    let path = format!("{BUDGETS}/{}", made["id"].as_str().unwrap());
    for _ in 0..2 {
        assert_eq!(chats(&gateway, KEY).await.status, 200);
    }
    refused(&chats(&gateway, KEY).await, 402, "budget_exceeded");
    gateway.settled().await;
    let shown = operator.good(Method::GET, &path, &Value::Null).await;
    assert_eq!(
        (&shown["measure"], &shown["limit"], &shown["spent"], &shown["remaining"]),
        (&json!("usd"), &json!("0.00002"), &json!("0.00002"), &json!("0"))
    );
    let raised = operator.good(Method::PATCH, &path, &json!({"limit_usd": "0.00003"})).await;
    assert_eq!((&raised["remaining"], &raised["owner"]), (&json!("0.00001"), &json!("scout")));
    assert_eq!(chats(&gateway, KEY).await.status, 200);
    refused(&chats(&gateway, KEY).await, 402, "budget_exceeded");

    let again = json!({"agent": "scout", "window": "day", "time_zone": "Europe/Berlin", "limit_usd": "9"});
    refused(&operator.ask(Method::POST, BUDGETS, &again).await, 409, "budget_exists");
    operator.good(Method::DELETE, &path, &Value::Null).await;
    assert_eq!(chats(&gateway, KEY).await.status, 200);
    refused(&operator.ask(Method::GET, &path, &Value::Null).await, 404, "budget_not_found");
}

#[tokio::test]
async fn what_cannot_be_is_told_with_what_is_wrong_of_it() {
    let (_gateway, _upstream, operator) = start().await;
    let agents: &[(Value, &str)] = &[
        (json!({}), "name"),
        (json!({"name": "Miner"}), "name"),
        (json!({"name": "miner", "team": "a b"}), "team"),
        (json!({"name": "miner", "priority": "urgent"}), "priority"),
        (json!({"name": "miner", "max_request_usd": "0"}), "max_request_usd"),
        (json!({"name": "miner", "queue": 3}), "queue"),
        (json!({"name": "miner", "degrade_to": "nowhere"}), "degrade_to"),
        (json!({"name": "miner", "task_type": "Code Review"}), "task_type"),
    ];
    let day = |more: Value| {
        let mut body = json!({"window": "day"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let budgets: &[(Value, &str)] = &[
        (json!({"limit_usd": "1"}), "window"),
        (json!({"window": "fortnight", "limit_usd": "1"}), "window"),
        (day(json!({})), "limit_usd"),
        (day(json!({"limit_usd": "0"})), "limit_usd"),
        (day(json!({"limit_usd": "1", "limit_tokens": 1})), "limit_tokens"),
        (day(json!({"limit_tokens": 0})), "limit_tokens"),
        (day(json!({"limit_usd": "1", "agent": "nobody"})), "agent"),
        (day(json!({"limit_usd": "1", "agent": "scout", "provider": "up"})), "provider"),
        (day(json!({"limit_usd": "1", "time_zone": "Mars/Base"})), "time_zone"),
        (day(json!({"limit_usd": "1", "notify_at": [0]})), "notify_at"),
        (day(json!({"limit_usd": "1", "on_limit": "shrug"})), "on_limit"),
        (day(json!({"limit_usd": "1", "wrap_up_pct": 51})), "wrap_up_pct"),
    ];
    for (path, cases) in [(AGENTS, agents), (BUDGETS, budgets)] {
        for (body, param) in cases {
            let answer = operator.ask(Method::POST, path, body).await;
            assert_eq!((answer.status, &answer.error()["param"]), (400, &json!(param)), "{body}: {}", answer.text());
        }
    }
    for body in
        [json!({"name": "miner", "nam": 1}), json!({"name": "miner", "max_request_usd": "1.0000000001"}), json!([])]
    {
        assert_eq!(operator.ask(Method::POST, AGENTS, &body).await.status, 400, "{body}");
    }
    for query in ["group=planet", "group=agent,agent", "since=yesterday", "of=scout"] {
        assert_eq!(
            operator.ask(Method::GET, &format!("/admin/v1/spend?{query}"), &Value::Null).await.status,
            400,
            "{query}"
        );
    }
    let all = operator.good(Method::GET, AGENTS, &Value::Null).await;
    assert_eq!(all["data"].as_array().unwrap().len(), 1, "nothing was made of it");
}

#[tokio::test]
async fn agents_teams_and_runs_are_paused_and_resumed() {
    let (gateway, _upstream, operator) = start().await;
    let (_, secret) = agent(&operator, json!({"name": "miner", "team": "red"})).await;
    let run = operator.good(Method::POST, "/admin/v1/runs", &json!({"agent": "miner"})).await;
    let (id, of_run) = (run["id"].as_str().unwrap(), run["key"].as_str().unwrap());
    for (owner, stopped, going) in [
        (format!("runs/{id}"), of_run, &*secret),
        ("agents/miner".to_owned(), &*secret, KEY),
        ("teams/red".to_owned(), of_run, KEY),
    ] {
        let path = format!("/admin/v1/{owner}");
        operator.good(Method::POST, &format!("{path}/pause"), &json!({"reason": "lunch"})).await;
        let answer = chats(&gateway, stopped).await;
        refused(&answer, 403, "paused");
        assert!(answer.error()["message"].as_str().unwrap().contains("lunch"));
        assert_eq!(chats(&gateway, going).await.status, 200);
        let pauses = operator.good(Method::GET, "/admin/v1/pauses", &Value::Null).await;
        assert_eq!((pauses["data"].as_array().unwrap().len(), &pauses["data"][0]["reason"]), (1, &json!("lunch")));
        let resumed = operator.good(Method::POST, &format!("{path}/resume"), &Value::Null).await;
        assert_eq!(resumed["was_paused"], true);
        assert_eq!(chats(&gateway, stopped).await.status, 200);
        let again = operator.good(Method::POST, &format!("{path}/resume"), &Value::Null).await;
        assert_eq!(again["was_paused"], false);
    }
    let teams = operator.good(Method::GET, "/admin/v1/teams", &Value::Null).await;
    assert_eq!(teams["data"][0]["agents"], json!(["miner"]));
    for (path, code) in [("agents/x", "agent_not_found"), ("teams/x", "team_not_found"), ("runs/x", "run_not_found")] {
        refused(&operator.ask(Method::POST, &format!("/admin/v1/{path}/pause"), &json!({})).await, 404, code);
    }
}

/// 2026-03-04, milliseconds since 1970.
const START: i64 = 1_772_582_400_000;

#[tokio::test]
async fn a_stage_that_was_set_by_hand_holds_over_a_restart_until_it_ends_or_is_released() {
    let upstream = Upstream::always(Script::words(10)).await;
    let hand = Arc::new(AtomicI64::new(START));
    let gateway = Gateway::start_by(Setup::with(&upstream).raw(FLAT), Clock::fixed(hand.clone())).await;
    let operator = Operator::of(gateway.addr()).await;
    let (_, secret) = agent(&operator, json!({"name": "miner"})).await;
    let run = operator.good(Method::POST, "/admin/v1/runs", &json!({"agent": "scout"})).await;
    let (id, of_run) = (run["id"].as_str().unwrap(), run["key"].as_str().unwrap());
    let (scout, miner) = ("/admin/v1/agents/scout/velocity", "/admin/v1/agents/miner/velocity");
    let of_id = format!("/admin/v1/runs/{id}/velocity");
    let all = operator.good(Method::GET, "/admin/v1/velocity", &Value::Null).await;
    let stages: Vec<_> = all["data"].as_array().unwrap().iter().map(|one| (&one["owner"], &one["stage"])).collect();
    assert_eq!(stages, [(&json!("miner"), &json!("normal")), (&json!("scout"), &json!("normal"))]);

    let held = operator.good(Method::POST, scout, &json!({"stage": "paused", "for_s": 3600})).await;
    assert_eq!((&held["stage"], &held["held"]), (&json!("paused"), &json!(true)));
    assert_eq!(held["until"], "2026-03-04T01:00:00Z");
    operator.good(Method::POST, miner, &json!({"stage": "paused"})).await;
    operator.good(Method::POST, &of_id, &json!({"stage": "killed"})).await;
    let gateway = Gateway::start_by(gateway.stop().await.setup, Clock::fixed(hand.clone())).await;
    let operator = Operator::of(gateway.addr()).await;
    let answer = chats(&gateway, KEY).await;
    refused(&answer, 429, "spend_velocity_exceeded");
    // Clients wait by the system's clock, which is past that.
    assert_eq!(answer.header("retry-after"), "1");
    refused(&chats(&gateway, &secret).await, 403, "spend_velocity_exceeded");
    // Its agent is paused for a while, and it was killed itself, which does not end with that.
    refused(&chats(&gateway, of_run).await, 403, "spend_velocity_exceeded");
    assert_eq!(gateway.metrics().await.sum("tollkeeper_velocity_held", &[]), 3.0);

    hand.fetch_add(3_600_000, Relaxed);
    assert_eq!(chats(&gateway, KEY).await.status, 200, "an hour is over");
    assert_eq!(operator.good(Method::GET, scout, &Value::Null).await["held"], false);
    refused(&chats(&gateway, of_run).await, 403, "spend_velocity_exceeded");
    for (path, key) in [(miner, &*secret), (&*of_id, of_run)] {
        refused(&chats(&gateway, key).await, 403, "spend_velocity_exceeded");
        assert_eq!(operator.good(Method::DELETE, path, &Value::Null).await["was_held"], true);
        assert_eq!(chats(&gateway, key).await.status, 200);
        assert_eq!(operator.good(Method::DELETE, path, &Value::Null).await["was_held"], false);
    }
    operator.good(Method::POST, miner, &json!({"stage": "killed"})).await;
    operator.good(Method::POST, "/admin/v1/agents/miner/resume", &Value::Null).await;
    let gateway = Gateway::start_by(gateway.stop().await.setup, Clock::fixed(hand)).await;
    for key in [KEY, &secret, of_run] {
        assert_eq!(chats(&gateway, key).await.status, 200, "nothing comes back");
    }
}

#[tokio::test]
async fn a_stage_that_cannot_be_set_is_told_with_what_is_wrong_of_it() {
    let (_gateway, _upstream, operator) = start().await;
    for (body, param) in [
        (json!({"stage": "quick"}), "stage"),
        (json!({"stage": "local", "until": "tomorrow"}), "until"),
        (json!({"stage": "local", "until": "2020-01-01T00:00:00Z"}), "until"),
        (json!({"stage": "local", "for_s": 60, "until": "2099-01-01T00:00:00Z"}), "for_s"),
        (json!({"stage": "local", "for_s": u64::MAX}), "for_s"),
    ] {
        let answer = operator.ask(Method::POST, "/admin/v1/agents/scout/velocity", &body).await;
        assert_eq!((answer.status, &answer.error()["param"]), (400, &json!(param)), "{body}: {}", answer.text());
    }
    for (path, code) in [("agents/x", "agent_not_found"), ("runs/x", "run_not_found")] {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            let body = if method == Method::POST { json!({"stage": "local"}) } else { Value::Null };
            refused(&operator.ask(method, &format!("/admin/v1/{path}/velocity"), &body).await, 404, code);
        }
    }
}

#[tokio::test]
async fn what_is_in_flight_ends_when_its_key_is_switched_off_or_its_agent_goes() {
    for agent_goes in [false, true] {
        let gate = Gate::default();
        let upstream = Upstream::directed(move |request| {
            let whole = request.json()["stream"] != json!(true);
            let gate = gate.clone();
            Script::says(Content::Endless).with_hold(if whole { Hold::Head(gate) } else { Hold::Frames(gate) })
        })
        .await;
        let gateway = Gateway::start(Setup::with(&upstream)).await;
        let operator = Operator::of(gateway.addr()).await;
        let (id, secret) = agent(&operator, json!({"name": "miner"})).await;
        let made = Client::new(gateway.addr()).key(&secret).post_json("/v1/runs", &json!({})).await.json();
        let mut answers = tokio::task::JoinSet::new();
        for key in [&secret, made["key"].as_str().unwrap()] {
            for ask in [asks::streamed("up/plain"), chat("up/plain")] {
                let client = Client::new(gateway.addr()).key(key);
                answers.spawn(async move { client.post_json(CHAT, &ask).await });
            }
        }
        upstream.wait_for_requests(4).await;
        let path = format!("{AGENTS}/miner");
        if agent_goes {
            operator.good(Method::DELETE, &path, &Value::Null).await;
        } else {
            operator.good(Method::PATCH, &format!("{path}/keys/{id}"), &json!({"disabled": true})).await;
        }
        for answer in answers.join_all().await {
            let why = ["key_disabled", "run_cancelled"];
            assert!(why.iter().any(|code| answer.text().contains(code)), "{} {}", answer.status, answer.text());
        }
        gateway.settled().await;
        upstream.wait_until("the sockets to be cut", |served| served.iter().all(|one| one.end != End::Open)).await;
        if agent_goes {
            let run = format!("/admin/v1/runs/{}", made["id"].as_str().unwrap());
            assert_eq!(operator.good(Method::GET, &run, &Value::Null).await["status"], "cancelled");
        }
    }
}

#[tokio::test]
async fn targets_aliases_and_everything_are_paused_and_resumed() {
    let (large, small) = (Upstream::always(Script::words(10)).await, Upstream::always(Script::words(10)).await);
    let setup = Setup::with(&large).provider("small", &small.url(), "").alias("team/auto", &["up/a", "small/b"]);
    let gateway = Gateway::start(setup).await;
    let operator = Operator::of(gateway.addr()).await;
    let asks = async |model: &str| gateway.client().post_json(CHAT, &chat(model)).await;
    let backend = async |model: &str| asks(model).await.header("x-tollkeeper-backend").to_owned();
    let order = async |path: &str| {
        let body = if path.ends_with("pause") { json!({"reason": "too dear"}) } else { Value::Null };
        operator.good(Method::POST, &format!("/admin/v1/{path}"), &body).await
    };
    assert_eq!(backend("team/auto").await, "up/a");
    for owner in ["models/up%2Fa", "providers/up"] {
        order(&format!("{owner}/pause")).await;
        assert_eq!(backend("team/auto").await, "small/b", "{owner}: the next one answers");
        let answer = asks("up/a").await;
        refused(&answer, 403, "paused");
        assert_eq!(answer.header("x-should-retry"), "false");
        assert!(answer.error()["message"].as_str().unwrap().contains("too dear"), "{}", answer.text());
        assert_eq!(order(&format!("{owner}/resume")).await["was_paused"], true);
        assert_eq!(backend("team/auto").await, "up/a");
    }
    for owner in ["models/up%2Fa", "providers/small"] {
        order(&format!("{owner}/pause")).await;
    }
    let asked = large.received().len() + small.received().len();
    refused(&asks("team/auto").await, 403, "paused");
    assert_eq!(large.received().len() + small.received().len(), asked, "nobody is asked");
    assert_eq!(backend("up/c").await, "up/c", "another model of the provider");
    for owner in ["models/up%2Fa", "providers/small"] {
        order(&format!("{owner}/resume")).await;
    }

    order("aliases/team%2Fauto/pause").await;
    refused(&asks("team/auto").await, 403, "paused");
    assert_eq!(backend("small/b").await, "small/b", "its targets can be named");
    order("aliases/team%2Fauto/resume").await;

    let shown = order("pause").await;
    assert_eq!((&shown["scope"], &shown["owner"]), (&json!("everything"), &json!("everything")));
    refused(&asks("team/auto").await, 403, "paused");
    order("resume").await;
    assert_eq!(backend("team/auto").await, "up/a");
    for (path, code) in [
        ("models/nobody", "model_not_found"),
        ("providers/nobody", "provider_not_found"),
        ("aliases/nobody", "alias_not_found"),
    ] {
        refused(&operator.ask(Method::POST, &format!("/admin/v1/{path}/pause"), &json!({})).await, 404, code);
    }
}

#[tokio::test]
async fn what_is_paused_and_what_cannot_answer_are_told_apart() {
    let upstream = Upstream::start().await;
    let blind = "[prices.\"up/blind\"]\ninput = \"1\"\noutput = \"1\"\nabilities = [\"chat\"]\n";
    let gateway = Gateway::start(Setup::with(&upstream).raw(blind).alias("both", &["up/a", "up/blind"])).await;
    let operator = Operator::of(gateway.addr()).await;
    operator.good(Method::POST, "/admin/v1/models/up%2Fa/pause", &json!({"reason": "too dear"})).await;
    let mut ask = chat("both");
    ask["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    let answer = gateway.client().post_json(CHAT, &ask).await;
    let message = answer.error()["message"].as_str().unwrap().to_owned();
    assert_eq!(answer.status, 503, "{message}");
    assert!(message.contains("too dear") && message.contains("`up/blind` cannot call tools"), "{message}");
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn spend_is_told_by_groups() {
    let (gateway, _upstream, operator) = start().await;
    let (_, secret) = agent(&operator, json!({"name": "miner", "team": "red"})).await;
    for key in [KEY, &secret, &secret] {
        assert_eq!(chats(&gateway, key).await.status, 200);
    }
    gateway.settled().await;
    let spend = async |query: &str| operator.good(Method::GET, &format!("/admin/v1/spend{query}"), &Value::Null).await;
    let by_agent = spend("").await;
    let figures = |row: &Value| (row["agent"].clone(), row["attempts"].clone(), row["cost_usd"].clone());
    let rows: Vec<_> = by_agent["rows"].as_array().unwrap().iter().map(figures).collect();
    assert_eq!(rows, [(json!("miner"), json!(2), json!("0.00002")), (json!("scout"), json!(1), json!("0.00001"))]);
    assert_eq!(by_agent["total_usd"], "0.00003");
    let by_team = spend("?group=team,model,day&since=1h").await;
    let row = &by_team["rows"][1];
    assert_eq!(
        (&by_team["rows"][0]["team"], &row["team"], &row["model"]),
        (&Value::Null, &json!("red"), &json!("up/flat"))
    );
    assert!(row["day"].as_str().is_some_and(|day| day.len() == 10), "{row}");
    let later = spend("?agent=miner&since=2999-01-01").await;
    assert_eq!((&later["rows"], &later["total_usd"]), (&json!([]), &json!("0")));
}

#[tokio::test]
async fn what_was_made_outlives_the_gateway() {
    let (gateway, upstream, operator) = start().await;
    let (_, secret) = agent(&operator, json!({"name": "miner"})).await;
    operator.good(Method::POST, BUDGETS, &json!({"agent": "miner", "window": "total", "limit_requests": 2})).await;
    assert_eq!(chats(&gateway, &secret).await.status, 200);
    let before = operator.good(Method::GET, AGENTS, &Value::Null).await;
    let ledger = gateway.stop().await;
    for file in fs::read_dir(ledger.setup.path("data")).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "secrets are not kept");
    }

    let gateway = Gateway::start(ledger.setup).await;
    let operator = Operator::of(gateway.addr()).await;
    assert_eq!(operator.good(Method::GET, AGENTS, &Value::Null).await, before);
    assert_eq!(chats(&gateway, &secret).await.status, 200);
    refused(&chats(&gateway, &secret).await, 402, "budget_exceeded");
    drop(upstream);
}

#[tokio::test]
async fn the_operator_can_have_a_listener_of_its_own() {
    let upstream = Upstream::always(Script::words(10)).await;
    let gateway = Gateway::start(Setup::with(&upstream).server("admin_listen = \"127.0.0.1:0\"").raw(FLAT)).await;
    let apart = gateway.admin_addr().unwrap();
    let [main, admin] = [gateway.addr(), apart].map(|addr| Client::new(addr).key(ADMIN_KEY));
    refused(&main.get(AGENTS).await, 404, "unknown_url");
    assert_eq!(admin.get(AGENTS).await.status, 200);
    refused(&admin.get("/v1/models").await, 404, "unknown_url");
    refused(&Client::new(apart).key(KEY).post_json(CHAT, &ask()).await, 404, "unknown_url");
    assert_eq!(admin.get("/metrics").await.status, 200);
    assert_eq!(chats(&gateway, KEY).await.status, 200);

    // The idle listener is drained at once; that must not cut what still runs at the other.
    let mut open = Client::new(main_addr(&gateway)).key(KEY).stream(CHAT, &streamed()).await;
    assert!(open.next_event().await.unwrap().is_some());
    let (ledger, rest) = tokio::join!(gateway.stop(), open.rest());
    assert!(rest.text().contains("[DONE]"), "{}", rest.text());
    assert_eq!(ledger.attempts("up/flat"), 2);
}

fn main_addr(gateway: &Gateway) -> std::net::SocketAddr {
    gateway.addr()
}

fn streamed() -> Value {
    let mut ask = ask();
    ask["stream"] = json!(true);
    ask
}

#[tokio::test]
async fn only_the_operator_comes_in() {
    let (gateway, _upstream, operator) = start().await;
    let admin: Vec<_> = operator.operations().into_iter().filter(|(_, path)| path.starts_with("/admin/")).collect();
    assert!(admin.len() > 35, "{admin:?}");
    for (method, path) in admin {
        for client in [Client::new(gateway.addr()), Client::new(gateway.addr()).key(KEY)] {
            let answer = client.open(method.clone(), &path, "").await.rest().await;
            assert_eq!(answer.status, 401, "{method} {path}: {}", answer.text());
        }
    }
}

#[tokio::test]
async fn the_document_has_what_is_served_and_nothing_else() {
    let (gateway, _upstream, operator) = start().await;
    let client = Client::new(gateway.addr()).key(ADMIN_KEY);
    let operations = operator.operations();
    for (method, path) in &operations {
        let answer = client.open(method.clone(), path, "").await;
        if answer.status == 404 || answer.status == 405 {
            let answer = answer.rest().await;
            let code = answer.error()["code"].clone();
            assert!(code != "unknown_url" && code != "method_not_allowed", "{method} {path}: {}", answer.text());
        }
    }
    for path in ["/v1/chat/completions", "/v1/runs/x/events", "/admin/v1/agents/x/keys/x/rotate", "/metrics"] {
        assert!(operations.iter().any(|(_, known)| known == path), "{path}");
    }
    // What is not in it is not served.
    for path in operations.iter().map(|(_, path)| path).filter(|path| !path.starts_with("/v1/models/")) {
        let known: Vec<&Method> =
            operations.iter().filter(|(_, other)| other == path).map(|(method, _)| method).collect();
        for method in [Method::GET, Method::POST, Method::PATCH, Method::DELETE, Method::PUT] {
            if !known.contains(&&method) {
                refused(&client.open(method, path, "").await.rest().await, 405, "method_not_allowed");
            }
        }
    }
    let backends = operator.good(Method::GET, "/admin/v1/backends", &Value::Null).await;
    assert!(
        backends["data"]
            .as_array()
            .unwrap()
            .iter()
            .any(|backend| backend["name"] == "up" && backend["health"] == "ready")
    );
    operator.good(Method::GET, "/admin/v1/models", &Value::Null).await;
}
