//! What routes learn: feedback and what can be told without it move where a pyramid begins, within what is allowed, and over restarts.

use crate::admin::document::Operator;
use http::Method;
use serde_json::{Value, json};
use tollkeeper_servers::PostgresServer;
use tollkeeper_tests::asks::CHAT;
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::process::run;
use tollkeeper_tests::setup::{KEY, Setup};
use tollkeeper_tests::upstream::{Gate, Hold, Script, Upstream};
use tollkeeper_tests::wait::eventually;

const FEEDBACK: &str = "/v1/feedback";
const REPORT: &str = "/admin/v1/learning";

/// Follows what it believes, and tries nothing out.
const ON: &str = "[learning]\non = true\nexplore = 0\nexplore_most = 0\n";

/// Three tiers: a scripted local model, `up/small` and `up/large`; a second agent; and this table.
fn tiers(upstream: &Upstream, learning: &str) -> Setup {
    let setup = Setup::with(upstream).agent("digger", "tk-digger", &[]);
    let script = setup.path("local.json");
    std::fs::write(&script, r#"{"otherwise": "at home"}"#).unwrap();
    setup
        .raw(&format!(
            "[[local.models]]\nname = \"home\"\npath = {script:?}\nengine = \"scripted\"\ncontext = 1024\n\
             abilities = [\"chat\", \"tools\", \"json_schema\"]\n"
        ))
        .raw(&pyramid("\"home\", \"up/small\", \"up/large\""))
        .raw(learning)
}

/// A gateway whose local model is in memory.
async fn started(setup: Setup) -> Gateway {
    let gateway = Gateway::start(setup).await;
    eventually("the local model", async || {
        let state = gateway.metrics().await.sum("tollkeeper_backend_state", &[("backend", "home")]);
        (state == 0.0).then_some(())
    })
    .await;
    gateway
}

fn pyramid(targets: &str) -> String {
    format!("[[aliases]]\nname = \"team/smart\"\nstrategy = \"pyramid\"\ntargets = [{targets}]\n")
}

/// Asks for something of that type; no two questions are the same.
async fn ask(client: Client, task: &str, number: u32) -> Answer {
    let body =
        json!({"model": "team/smart", "messages": [{"role": "user", "content": format!("Do number {number}.")}]});
    let answer = client.header("x-tollkeeper-task-type", task).post_json(CHAT, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

fn backend(answer: &Answer) -> &str {
    answer.header("x-tollkeeper-backend")
}

fn why(answer: &Answer) -> &str {
    answer.header("x-tollkeeper-why")
}

fn id(answer: &Answer) -> &str {
    answer.header("x-tollkeeper-request-id")
}

/// Says what `scout` thinks of an answer.
async fn say(gateway: &Gateway, answer: &Answer, outcome: &str) -> Value {
    let said = gateway.client().post_json(FEEDBACK, &json!({"request_id": id(answer), "outcome": outcome})).await;
    assert_eq!(said.status, 200, "{}", said.text());
    said.json()
}

/// Says of answers to such tasks that they are bad, until another tier begins.
async fn move_up(gateway: &Gateway, task: &str) -> u32 {
    for number in 0..10 {
        let answer = ask(gateway.client(), task, number).await;
        if backend(&answer) != "home" {
            return number;
        }
        say(gateway, &answer, "bad").await;
    }
    panic!("ten bad answers move nothing");
}

async fn report(gateway: &Gateway) -> Value {
    Operator::of(gateway.addr()).await.good(Method::GET, REPORT, &Value::Null).await
}

#[tokio::test]
async fn feedback_moves_where_requests_of_that_type_begin() {
    let upstream = Upstream::start().await;
    let gateway = started(tiers(&upstream, ON)).await;
    let first = ask(gateway.client(), "code", 100).await;
    assert_eq!((backend(&first), why(&first)), ("home", "pyramid;rank=1;tier=0;task=code"));
    let heard = say(&gateway, &first, "good").await;
    assert_eq!(heard["backend"], "home");
    assert_eq!((&heard["task_type"], &heard["tier"], &heard["score"]), (&json!("code"), &json!(0), &json!(1.0)));
    assert!(move_up(&gateway, "code").await > 1, "one bad answer is not enough");

    let answer = ask(gateway.client(), "code", 200).await;
    assert_eq!((backend(&answer), why(&answer)), ("up/small", "pyramid;rank=1;tier=1;from=1;task=code;learned"));
    assert_eq!(backend(&ask(gateway.client(), "chat", 201).await), "home", "other tasks begin where they did");
    // It is the agent's word, and counts for all.
    assert_eq!(backend(&ask(gateway.client().key("tk-digger"), "code", 202).await), "up/small");
    let shown = report(&gateway).await;
    let code = shown["data"].as_array().unwrap().iter().find(|group| group["task_type"] == "code").unwrap();
    assert_eq!((&code["alias"], &code["begins_with"]), (&json!("team/smart"), &json!(1)));
    let home = &code["tiers"][0];
    let number = |name: &str| home[name].as_f64().unwrap();
    assert_eq!((&home["backends"], number("good")), (&json!(["home"]), 1.0));
    assert!(number("bad") >= 2.0 && number("mean") < 0.8, "{home}");
    assert!(number("low") < number("mean") && number("mean") < number("high"), "{home}");
    assert_eq!(home["explored_share"], 0.0);

    let metrics = gateway.metrics().await;
    let outcomes =
        |outcome| metrics.sum("tollkeeper_learning_outcomes_total", &[("source", "feedback"), ("outcome", outcome)]);
    assert_eq!((outcomes("good"), outcomes("bad")), (1.0, number("bad")));
    assert!(metrics.sum("tollkeeper_learning_starts_total", &[("by", "learned")]) >= 3.0);
    assert_eq!(metrics.sum("tollkeeper_learning_starts_total", &[("by", "trial")]), 0.0);
}

#[tokio::test]
async fn what_was_learned_never_leads_to_who_is_not_allowed() {
    let upstream = Upstream::start().await;
    let gateway = started(tiers(&upstream, ON)).await;
    move_up(&gateway, "code").await;
    for (name, value, wanted) in [
        ("x-tollkeeper-max-tier", "0", "home"),
        ("x-tollkeeper-local-only", "true", "home"),
        ("x-tollkeeper-max-cost-usd", "0", "home"),
        ("x-tollkeeper-min-tier", "2", "up/large"),
    ] {
        let answer = ask(gateway.client().header(name, value), "code", 50).await;
        assert_eq!(backend(&answer), wanted, "{name}: {value}");
        assert!(!why(&answer).contains("learned"), "{}", why(&answer));
    }
    // Another order than the pyramid's has no beginning to move.
    let answer = ask(gateway.client().header("x-tollkeeper-strategy", "ordered"), "code", 51).await;
    assert_eq!((backend(&answer), why(&answer)), ("home", "ordered;rank=1;task=code"));
    let said = gateway.client().post_json(FEEDBACK, &json!({"request_id": id(&answer), "outcome": "bad"})).await;
    assert_eq!(said.status, 404, "there is no tier that it could be counted for");
}

#[tokio::test]
async fn it_is_there_after_a_restart_until_it_is_forgotten() {
    let upstream = Upstream::start().await;
    outlasts_restarts(tiers(&upstream, ON)).await;
}

#[tokio::test]
async fn so_it_is_in_a_database() {
    let upstream = Upstream::start().await;
    let store = format!("url = {:?}\ngateway = \"left\"", PostgresServer::shared().database());
    outlasts_restarts(tiers(&upstream, ON).store(&store)).await;
}

async fn outlasts_restarts(setup: Setup) {
    let gateway = started(setup).await;
    move_up(&gateway, "code").await;
    move_up(&gateway, "chat").await;
    let mut before = report(&gateway).await;
    let setup = gateway.shut().await;

    let gateway = Gateway::start(setup).await;
    let mut after = report(&gateway).await;
    // Answers are not remembered over a restart, only what was said of them.
    before["remembered"] = Value::Null;
    after["remembered"] = Value::Null;
    for shown in [&mut before, &mut after] {
        for tier in
            shown["data"].as_array_mut().unwrap().iter_mut().flat_map(|group| group["tiers"].as_array_mut().unwrap())
        {
            // What fades in between is less than is shown.
            (tier["good"], tier["low"], tier["high"]) = (Value::Null, Value::Null, Value::Null);
            tier["bad"] = json!(tier["bad"].as_f64().unwrap().round());
        }
    }
    assert_eq!(before, after);
    assert_eq!(backend(&ask(gateway.client(), "code", 60).await), "up/small");

    let operator = Operator::of(gateway.addr()).await;
    let wrong = operator.ask(Method::DELETE, "/admin/v1/learning?task=code", &Value::Null).await;
    assert_eq!((wrong.status, &wrong.error()["param"]), (400, &json!("task")), "{}", wrong.text());
    let reset = operator.good(Method::DELETE, "/admin/v1/learning?task_type=code", &Value::Null).await;
    assert_eq!(reset, json!({"forgotten": 1}));
    assert_eq!(backend(&ask(gateway.client(), "code", 61).await), "home");
    assert_eq!(backend(&ask(gateway.client(), "chat", 62).await), "up/small");
    let reset = operator.good(Method::DELETE, "/admin/v1/learning?alias=team%2Fsmart", &Value::Null).await;
    assert_eq!(reset, json!({"forgotten": 2}), "the one that was asked for since is there again");
    let gateway = Gateway::start(gateway.shut().await).await;
    assert_eq!(report(&gateway).await["data"], json!([]), "forgotten is forgotten");
    assert_eq!(backend(&ask(gateway.client(), "chat", 63).await), "home");
}

#[tokio::test]
async fn other_models_in_a_tier_are_another_tier() {
    let upstream = Upstream::start().await;
    let setup = tiers(&upstream, ON);
    let gateway = Gateway::start(setup).await;
    move_up(&gateway, "code").await;
    let last = ask(gateway.client(), "code", 70).await;
    assert_eq!(backend(&last), "up/small");
    let other = Upstream::start().await;
    let changed = Setup::with(&upstream)
        .provider("new", &other.url(), "")
        .raw(&pyramid("\"new/tiny\", \"up/small\", \"up/large\""))
        .raw(ON);
    gateway.reload(&changed);
    let answer = ask(gateway.client(), "code", 71).await;
    assert_eq!(backend(&answer), "new/tiny", "what the one before it did says nothing of it");
    say(&gateway, &last, "good").await;
}

#[tokio::test]
async fn it_is_off_unless_it_is_turned_on() {
    let upstream = Upstream::start().await;
    let gateway = started(tiers(&upstream, "")).await;
    for number in 0..5 {
        let answer = ask(gateway.client(), "code", number).await;
        assert_eq!((backend(&answer), why(&answer)), ("home", "pyramid;rank=1;tier=0;task=code"));
        let said = gateway.client().post_json(FEEDBACK, &json!({"request_id": id(&answer), "outcome": "bad"})).await;
        assert_eq!((said.status, &said.error()["code"]), (409, &json!("learning_off")), "{}", said.text());
    }
    let shown = report(&gateway).await;
    assert_eq!((&shown["on"], &shown["data"], &shown["remembered"]), (&json!(false), &json!([]), &json!(0)));
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("tollkeeper_learning_starts_total", &[]), 0.0);
}

#[tokio::test]
async fn feedback_is_for_ones_own_answers_and_the_last_word_counts() {
    let upstream = Upstream::start().await;
    let gateway = started(tiers(&upstream, ON)).await;
    let asker = Operator::of(gateway.addr()).await.with_key(KEY);
    let answer = ask(gateway.client(), "code", 1).await;
    let body = |outcome: Value| json!({"request_id": id(&answer), "outcome": outcome});
    let stranger = gateway.client().key("tk-digger").post_json(FEEDBACK, &body(json!("bad"))).await;
    assert_eq!((stranger.status, &stranger.error()["code"]), (404, &json!("request_not_found")));
    let unknown = asker.ask(Method::POST, FEEDBACK, &json!({"request_id": "req_0", "outcome": "bad"})).await;
    assert_eq!(unknown.status, 404, "{}", unknown.text());
    assert_eq!(Client::new(gateway.addr()).post_json(FEEDBACK, &body(json!("bad"))).await.status, 401);

    for (wrong, param) in [
        (body(json!("fine")), "outcome"),
        (body(json!(1.5)), "outcome"),
        (body(json!(-0.1)), "outcome"),
        (body(json!(null)), "outcome"),
        (body(json!("score")), "score"),
        (json!({"request_id": id(&answer), "outcome": "score", "score": "high"}), "score"),
        (json!({"request_id": id(&answer), "outcome": "good", "score": 0.5}), "score"),
        (json!({"request_id": 7, "outcome": "good"}), "request_id"),
    ] {
        let refused = asker.ask(Method::POST, FEEDBACK, &wrong).await;
        assert_eq!((refused.status, &refused.error()["param"]), (400, &json!(param)), "{wrong}: {}", refused.text());
        assert!(refused.text().contains(&format!("`{param}`")), "{}", refused.text());
    }
    for (wrong, named) in [
        (json!({"outcome": "good"}), "request_id"),
        (json!({"request_id": id(&answer)}), "outcome"),
        (json!({"request_id": id(&answer), "outcome": "good", "stars": 5}), "stars"),
    ] {
        let refused = asker.ask(Method::POST, FEEDBACK, &wrong).await;
        assert_eq!(refused.status, 400);
        assert!(refused.text().contains(named), "{}", refused.text());
        assert!(!asker.allows(&Method::POST, FEEDBACK, &wrong), "the document allows {wrong}");
    }

    let mut replaced = false;
    for (outcome, score) in [(json!("bad"), 0.0), (json!("bad"), 0.0), (json!(0.25), 0.25), (json!("good"), 1.0)] {
        let heard = asker.good(Method::POST, FEEDBACK, &body(outcome)).await;
        assert_eq!((&heard["score"], &heard["replaced"]), (&json!(score), &json!(replaced)));
        replaced = true;
    }
    let by_score = json!({"request_id": id(&answer), "outcome": "score", "score": 0.75});
    asker.good(Method::POST, FEEDBACK, &by_score).await;
    let shown = report(&gateway).await;
    let home = &shown["data"][0]["tiers"][0];
    assert_eq!((&home["good"], &home["bad"]), (&json!(0.75), &json!(0.25)), "one answer, one outcome: {home}");
}

#[tokio::test]
async fn what_fails_its_check_or_is_asked_again_counts_a_little() {
    let upstream = Upstream::start().await;
    let gateway = started(tiers(&upstream, ON)).await;
    let client =
        || gateway.client().header("x-tollkeeper-min-tier", "1").header("x-tollkeeper-task-type", "extraction");
    // The provider answers with words.
    let mut wants_json = json!({"model": "team/smart", "messages": [{"role": "user", "content": "As JSON."}]});
    wants_json["response_format"] = json!({"type": "json_object"});
    let failed = client().post_json(CHAT, &wants_json).await;
    assert_eq!((failed.status, backend(&failed)), (200, "up/small"));
    let tier = async || report(&gateway).await["data"][0]["tiers"][0].clone();
    assert_eq!((&tier().await["good"], &tier().await["bad"]), (&json!(0.0), &json!(0.25)));
    // The same again: of that answer the worst is known already, and somebody's word is worth more than either.
    client().post_json(CHAT, &wants_json).await;
    assert_eq!(tier().await["bad"], json!(0.5), "the second answer failed too");
    assert_eq!(say(&gateway, &failed, "good").await["replaced"], true);
    assert_eq!((&tier().await["good"], &tier().await["bad"]), (&json!(1.0), &json!(0.25)));

    let plain = json!({"model": "team/smart", "messages": [{"role": "user", "content": "Say it well."}]});
    let client = || gateway.client().header("x-tollkeeper-task-type", "writing");
    let first = client().post_json(CHAT, &plain).await;
    assert_eq!(backend(&first), "home");
    // Somebody else may ask the same.
    gateway.client().key("tk-digger").header("x-tollkeeper-task-type", "writing").post_json(CHAT, &plain).await;
    let writing = async || {
        let shown = report(&gateway).await;
        shown["data"].as_array().unwrap().iter().find(|group| group["task_type"] == "writing").unwrap()["tiers"][0]
            .clone()
    };
    assert_eq!(writing().await["bad"], json!(0.0));
    client().post_json(CHAT, &plain).await;
    assert_eq!(writing().await["bad"], json!(0.25));
    let metrics = gateway.metrics().await;
    let bad = |source| metrics.sum("tollkeeper_learning_outcomes_total", &[("source", source), ("outcome", "bad")]);
    assert_eq!((bad("check_failed"), bad("retried")), (2.0, 1.0));
}

/// The tier 0 of tasks of a type, as it is shown.
async fn lowest(gateway: &Gateway, task: &str) -> Value {
    let shown = report(gateway).await;
    let groups = shown["data"].as_array().unwrap();
    groups.iter().find(|group| group["task_type"] == task).unwrap_or_else(|| panic!("{shown}"))["tiers"][0].clone()
}

#[tokio::test]
async fn who_asks_the_same_of_something_else_is_content() {
    let upstream = Upstream::start().await;
    let gateway = started(tiers(&upstream, ON)).await;
    let send = async |messages: Value| {
        let body = json!({"model": "team/smart", "messages": messages});
        let answer = gateway.client().header("x-tollkeeper-task-type", "summarise").post_json(CHAT, &body).await;
        assert_eq!((answer.status, backend(&answer)), (200, "home"), "{}", answer.text());
    };
    let user = |text: &str| json!({"role": "user", "content": text});
    let call = json!({"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}});
    let calls = json!({"role": "assistant", "content": null, "tool_calls": [call]});
    let result = json!({"role": "tool", "tool_call_id": "1", "content": "nothing"});
    for text in ["The first text.", "The second text.", "The third text."] {
        send(json!([user(text), user("Summarise the text above.")])).await;
        send(json!([user(text), calls, result])).await;
    }
    assert_eq!(lowest(&gateway, "summarise").await["bad"], json!(0.0));
    send(json!([user("The third text."), user("Summarise the text above.")])).await;
    assert_eq!(lowest(&gateway, "summarise").await["bad"], json!(0.25));
    // The same call again, whatever came out of it: it goes in circles.
    send(json!([user("The third text."), calls, result, calls, result])).await;
    assert_eq!(lowest(&gateway, "summarise").await["bad"], json!(0.5));
}

#[tokio::test]
async fn the_form_of_an_answer_is_that_of_its_schema_also_in_a_stream_and_no_praise_for_one_that_is_asked_again() {
    let upstream = Upstream::start().await;
    let setup = tiers(&upstream, ON);
    std::fs::write(setup.path("local.json"), r#"{"otherwise": "{\"n\": 1}"}"#).unwrap();
    let gateway = started(setup).await;
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
    let send = async |text: &str, stream: bool| {
        let body = json!({
            "model": "team/smart", "stream": stream, "messages": [{"role": "user", "content": text}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        });
        let answer = gateway.client().header("x-tollkeeper-task-type", "extraction").post_json(CHAT, &body).await;
        assert_eq!((answer.status, backend(&answer)), (200, "home"), "{}: {}", why(&answer), answer.text());
    };
    let seen = async || {
        let home = lowest(&gateway, "extraction").await;
        (home["good"].as_f64().unwrap(), home["bad"].as_f64().unwrap())
    };
    send("one", false).await;
    assert_eq!(seen().await, (0.25, 0.0));
    send("two", true).await;
    assert_eq!(seen().await, (0.5, 0.0), "a streamed answer of a local model is looked at too");
    send("one", false).await;
    assert_eq!(seen().await, (0.5, 0.25), "the first is bad now, the third good");
}

#[tokio::test]
async fn types_that_clients_make_up_are_one_group() {
    let upstream = Upstream::start().await;
    let known = "[[tasks]]\nname = \"legal\"\n";
    let gateway = started(tiers(&upstream, &format!("{ON}{known}"))).await;
    for (number, task) in ["made-up", "legal", "another", "code"].into_iter().enumerate() {
        let answer = ask(gateway.client(), task, number as u32).await;
        assert!(why(&answer).contains(&format!("task={task}")), "{}", why(&answer));
        let heard = say(&gateway, &answer, "good").await;
        assert_eq!(heard["task_type"], if number % 2 == 0 { "other" } else { task });
    }
    let shown = report(&gateway).await;
    let tasks: Vec<&Value> = shown["data"].as_array().unwrap().iter().map(|group| &group["task_type"]).collect();
    assert_eq!(tasks, ["code", "legal", "other"]);
    assert_eq!(lowest(&gateway, "other").await["good"], json!(2.0));
}

#[tokio::test]
async fn an_answer_of_a_model_that_was_taken_out_says_nothing_of_the_one_in_its_place() {
    let (upstream, gate) = (Upstream::start().await, Gate::default());
    let setup = || Setup::with(&upstream).raw(ON);
    let gateway = Gateway::start(setup().raw(&pyramid("\"up/small\", \"up/large\""))).await;
    upstream.next(Script::words(2).with_hold(Hold::Head(gate.clone())));
    let client = gateway.client();
    let running = tokio::spawn(async move { ask(client, "code", 1).await });
    upstream.wait_for_requests(1).await;
    gateway.reload(&setup().raw(&pyramid("\"up/other\", \"up/large\"")));
    gate.open_wide();
    let late = running.await.unwrap();
    assert_eq!(backend(&late), "up/small");
    assert_eq!(report(&gateway).await["data"], json!([]));
    let said = gateway.client().post_json(FEEDBACK, &json!({"request_id": id(&late), "outcome": "bad"})).await;
    assert_eq!((said.status, &said.error()["code"]), (409, &json!("not_counted")), "{}", said.text());
    let answer = ask(gateway.client(), "code", 2).await;
    assert_eq!(backend(&answer), "up/other");
    say(&gateway, &answer, "good").await;
    let lowest = lowest(&gateway, "code").await;
    assert_eq!((&lowest["good"], &lowest["bad"], &lowest["answered"]), (&json!(1.0), &json!(0.0), &json!(1)));
}

#[tokio::test]
async fn an_explanation_says_what_is_believed_and_tries_nothing_out() {
    let upstream = Upstream::start().await;
    let all = "[learning]\non = true\nexplore = 1\nexplore_most = 1\n";
    let gateway = started(tiers(&upstream, all)).await;
    let body = json!({"model": "team/smart", "messages": [{"role": "user", "content": "Explain."}]});
    for _ in 0..5 {
        let plan = gateway.client().post_json("/v1/route/explain", &body).await.json();
        assert_eq!((&plan["start_tier"], &plan["attempts"][0]["backend"]), (&json!(0), &json!("home")));
        assert!(!plan["attempts"][0]["why"].as_str().unwrap().contains("trial"), "{plan}");
    }
    assert_eq!(report(&gateway).await["data"], json!([]), "what is explained is not an answer");
    let answer = ask(gateway.client(), "code", 1).await;
    assert_eq!((backend(&answer), why(&answer)), ("up/small", "pyramid;rank=1;tier=1;from=1;task=code;learned;trial"));
    let small = report(&gateway).await["data"][0]["tiers"][0].clone();
    assert_eq!((&small["answered"], &small["explored_share"]), (&json!(1), &json!(1.0)));
}

#[tokio::test]
async fn the_command_line_shows_it_and_forgets_it() {
    let upstream = Upstream::start().await;
    let gateway = started(tiers(&upstream, ON)).await;
    move_up(&gateway, "code").await;
    let folder = gateway.setup().folder();
    let (file, url) = (folder.join("tollkeeper.toml"), format!("http://{}", gateway.addr()));
    let tollkeeper = async |arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.extend(["-c", file.to_str().unwrap(), "--url", &url]);
        let output = run(folder, &all).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let table = tollkeeper(&["learning"]).await;
    let home = table.lines().nth(1).unwrap();
    assert!(home.contains("team/smart") && home.contains("code") && home.contains("home"), "{table}");
    let shown: Value = serde_json::from_str(&tollkeeper(&["learning", "--json"]).await).unwrap();
    assert_eq!(shown["data"][0]["begins_with"], 1);
    assert_eq!(tollkeeper(&["learning", "reset", "--task-type", "chat"]).await.trim(), "forgotten: 0");
    assert_eq!(tollkeeper(&["learning", "reset"]).await.trim(), "forgotten: 1");
    assert_eq!(backend(&ask(gateway.client(), "code", 80).await), "home");
}
