//! Which backend answers: difficulty, task types, what the client wants, and what it is told of it beforehand.

use serde_json::{Value, json};
use tollkeeper_tests::asks::{CHAT, chat};
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::{Fault, Script, Upstream};
use tollkeeper_tests::wait::eventually;

const EXPLAIN: &str = "/v1/route/explain";
const QUOTE: &str = "/v1/quote";
const EASY: &str = "A baker has 3 loaves and bakes 4 more. How many loaves does she have?";
const HARD: &str = "A tank holds 840 litres. A pump fills it at 12.5 litres per minute while a leak loses 15% of what is pumped in during the first \
    20 minutes and twice that share afterwards. After half of the tank is full a second pump of three quarters of the first one's rate is added, \
    but it has to rest for 4 minutes after every 10. If the pumps start at 9:40, how many more minutes than an hour does it take until the tank \
    is 90% full, and how many litres have been lost by then if a third of the loss is caught and poured back?";

fn said(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

/// A scripted local model at the bottom, then `up/small`, then `up/large`, which costs ten times as much.
fn tiers(upstream: &Upstream, more: &str) -> Setup {
    let setup = Setup::with(upstream);
    let script = setup.path("local.json");
    std::fs::write(&script, r#"{"otherwise": "at home"}"#).unwrap();
    let price = |name: &str, usd: &str| {
        format!("[prices.\"up/{name}\"]\ninput = \"{usd}\"\noutput = \"{usd}\"\nabilities = [\"chat\", \"tools\"]\n")
    };
    setup
        .raw(&format!("[[local.models]]\nname = \"home\"\npath = {script:?}\nengine = \"scripted\"\n"))
        .raw(&price("small", "1"))
        .raw(&price("large", "10"))
        .raw(&format!(
            "[[aliases]]\nname = \"smart\"\nstrategy = \"pyramid\"\ntargets = [\"home\", \"up/small\", \"up/large\"]\n{more}\n"
        ))
}

fn backend(answer: &Answer) -> &str {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-tollkeeper-backend")
}

async fn difficulty(client: &Client, text: &str) -> f64 {
    client.post_json(EXPLAIN, &said("smart", text)).await.json()["difficulty"].as_f64().unwrap()
}

#[tokio::test]
async fn a_hard_question_begins_higher_and_says_so() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(tiers(&upstream, "")).await;
    let (easy, hard) = (difficulty(&gateway.client(), EASY).await, difficulty(&gateway.client(), HARD).await);
    assert!(easy + 0.02 < hard, "{easy} {hard}");
    // Without thresholds difficulty is no matter, and nobody looks at it.
    let answer = gateway.client().post_json(CHAT, &said("smart", HARD)).await;
    assert_eq!(backend(&answer), "home");
    let why = answer.header("x-tollkeeper-why");
    assert!(why.starts_with("pyramid;rank=1;tier=0") && !why.contains("difficulty"), "{why}");

    let threshold = format!("escalate_at = [{:.3}]", (easy + hard) / 2.0);
    let gateway = Gateway::start(tiers(&upstream, &threshold)).await;
    let answer = gateway.client().post_json(CHAT, &said("smart", EASY)).await;
    assert_eq!(backend(&answer), "home");
    let answer = gateway.client().post_json(CHAT, &said("smart", HARD)).await;
    assert_eq!(backend(&answer), "up/small");
    let why = answer.header("x-tollkeeper-why").to_owned();
    assert!(why.starts_with("pyramid;rank=1;tier=1;from=1;difficulty=0."), "{why}");
}

#[tokio::test]
async fn what_a_request_wants_is_done_or_refused_by_name() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(tiers(&upstream, "")).await;
    let with = |name: &str, value: &str| gateway.client().header(name, value);
    for (name, value, wanted) in [
        ("x-tollkeeper-min-tier", "1", "up/small"),
        ("x-tollkeeper-min-tier", "2", "up/large"),
        ("x-tollkeeper-local-only", "true", "home"),
        ("x-tollkeeper-strategy", "cheapest", "home"),
    ] {
        let answer = with(name, value).post_json(CHAT, &said("smart", EASY)).await;
        assert_eq!(backend(&answer), wanted, "{name}: {value}");
    }
    // As a key of `metadata`, for clients that set no headers; a header counts first.
    let mut ask = said("smart", EASY);
    ask["metadata"] = json!({"x-tollkeeper-min-tier": "2"});
    assert_eq!(backend(&gateway.client().post_json(CHAT, &ask).await), "up/large");
    assert_eq!(backend(&with("x-tollkeeper-min-tier", "1").post_json(CHAT, &ask).await), "up/small");
    // 512 tokens are expected: half a thousandth of a dollar at the small one, ten times that at the large one.
    let dear = with("x-tollkeeper-min-tier", "2").header("x-tollkeeper-max-cost-usd", "0.001");
    let answer = dear.post_json(CHAT, &said("smart", EASY)).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("is expected to cost 0.005"), "{}", answer.text());
    for (name, value) in [
        ("x-tollkeeper-strategy", "lucky"),
        ("x-tollkeeper-max-cost-usd", "much"),
        ("x-tollkeeper-deadline-ms", "-1"),
        ("x-tollkeeper-min-tier", "256"),
        ("x-tollkeeper-local-only", "perhaps"),
        ("x-tollkeeper-priority", "urgent"),
        ("x-tollkeeper-task-type", "Code Review"),
    ] {
        let answer = with(name, value).post_json(CHAT, &said("smart", EASY)).await;
        assert_eq!((answer.status, &answer.error()["param"]), (400, &json!(name)), "{}", answer.text());
    }
}

#[tokio::test]
async fn a_task_type_has_its_tiers_and_its_price() {
    let upstream = Upstream::start().await;
    let table = "[[tasks]]\nname = \"code\"\nmin_tier = 1\n[[tasks]]\nname = \"audit\"\nmin_tier = 2\n\
        [[tasks]]\nname = \"translation\"\nmax_tier = 0\nmax_cost_usd = \"0.001\"\n";
    let gateway = Gateway::start(tiers(&upstream, "").raw(table)).await;
    let code =
        "Write a Rust function that reverses a linked list.\n```rust\nstruct Node { next: Option<Box<Node>> }\n```";
    let answer = gateway.client().post_json(CHAT, &said("smart", code)).await;
    assert_eq!(backend(&answer), "up/small");
    assert!(answer.header("x-tollkeeper-why").ends_with(";task=code"), "{}", answer.header("x-tollkeeper-why"));
    let audit = gateway.client().header("x-tollkeeper-task-type", "audit");
    assert_eq!(backend(&audit.post_json(CHAT, &said("smart", code)).await), "up/large");
    // The client may want less than the operator allows, not more.
    let more = gateway.client().header("x-tollkeeper-task-type", "translation").header("x-tollkeeper-min-tier", "1");
    let answer = more.post_json(CHAT, &said("smart", EASY)).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("wants one from 1 to 0"), "{}", answer.text());
}

#[tokio::test]
async fn a_task_type_has_its_chain_and_each_link_its_price() {
    let upstream = Upstream::start().await;
    let table = "[[tasks]]\nname = \"audit\"\nstrategy = \"ordered\"\n\
        chain = [{ target = \"up/large\", max_cost_usd = \"0.01\" }, { target = \"home\" }]\n";
    let gateway = Gateway::start(tiers(&upstream, "").raw(table)).await;
    let audit = gateway.client().header("x-tollkeeper-task-type", "audit");
    let asked = |tokens: u64| {
        let mut ask = said("smart", EASY);
        ask["max_completion_tokens"] = json!(tokens);
        ask
    };
    // The last of the alias is the first of the chain, as long as it may cost what it costs.
    assert_eq!(backend(&audit.post_json(CHAT, &asked(10)).await), "up/large");
    assert_eq!(backend(&audit.post_json(CHAT, &asked(4000)).await), "up/large", "nobody answers at such length mostly");
    let plan = audit.post_json(EXPLAIN, &asked(10)).await.json();
    assert_eq!(plan["rejected"][0]["backend"], "up/small", "{plan}");
    assert!(plan["rejected"][0]["reason"].as_str().unwrap().contains("not in the chain"), "{plan}");
    let mut long = asked(10);
    long["messages"][0]["content"] = json!(EASY.repeat(52));
    assert_eq!(backend(&audit.post_json(CHAT, &long).await), "home");
    let plan = audit.post_json(EXPLAIN, &long).await.json();
    assert!(plan["rejected"].to_string().contains("the request may cost 0.01 USD"), "{plan}");
    // An upstream that fails is followed by the next of the chain, not by the next of the alias.
    for _ in 0..2 {
        upstream.next(Script::fault(Fault::Status { status: 503, retry_after: None, code: None }));
    }
    assert_eq!(backend(&audit.post_json(CHAT, &asked(10)).await), "home");
}

#[tokio::test]
async fn who_names_a_model_gets_it_whatever_tiers_and_chain_its_type_of_task_has() {
    let upstream = Upstream::start().await;
    let table = "[[tasks]]\nname = \"audit\"\nmin_tier = 1\nmax_cost_usd = \"0.1\"\nchain = [{ target = \"home\" }]\n";
    let gateway = Gateway::start(tiers(&upstream, "").raw(table)).await;
    let audit = gateway.client().header("x-tollkeeper-task-type", "audit");
    assert_eq!(backend(&audit.post_json(CHAT, &said("up/large", EASY)).await), "up/large");
    let long = said("up/large", &EASY.repeat(2000));
    let answer = audit.post_json(CHAT, &long).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("the request may cost 0.1 USD"), "{}", answer.text());
}

#[tokio::test]
async fn an_agent_that_does_one_kind_of_task_need_not_say_so() {
    let upstream = Upstream::start().await;
    let table = "[[tasks]]\nname = \"audit\"\nmin_tier = 2\n[[tasks]]\nname = \"code\"\nmin_tier = 1\n\
        [[agents]]\nname = \"auditor\"\nkey = \"tk-auditor\"\ntask_type = \"audit\"\n";
    let gateway = Gateway::start(tiers(&upstream, "").raw(table)).await;
    let auditor = || gateway.client().key("tk-auditor");
    let answer = auditor().post_json(CHAT, &said("smart", EASY)).await;
    assert_eq!(backend(&answer), "up/large");
    assert!(answer.header("x-tollkeeper-why").ends_with(";task=audit"), "{}", answer.header("x-tollkeeper-why"));
    let answer = auditor().header("x-tollkeeper-task-type", "code").post_json(CHAT, &said("smart", EASY)).await;
    assert_eq!(backend(&answer), "up/small", "what the request says counts first");
    assert_eq!(backend(&gateway.client().post_json(CHAT, &said("smart", EASY)).await), "home");
}

#[tokio::test]
async fn a_plan_is_explained_and_quoted_without_asking_anybody() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(tiers(&upstream, "")).await;
    let client = gateway.client().header("x-tollkeeper-min-tier", "1");
    let mut ask = said("smart", HARD);
    ask["max_completion_tokens"] = json!(100);
    let plan = client.post_json(EXPLAIN, &ask).await.json();
    assert_eq!(
        (&plan["strategy"], &plan["task_type"], &plan["refused"]),
        (&json!("pyramid"), &json!("maths"), &Value::Null)
    );
    let backends: Vec<_> = plan["attempts"].as_array().unwrap().iter().map(|one| one["backend"].clone()).collect();
    assert_eq!(backends, ["up/small", "up/large"]);
    assert_eq!(plan["rejected"][0]["backend"], "home");
    assert!(plan["rejected"][0]["reason"].as_str().unwrap().contains("tier 0"), "{plan}");
    assert!(upstream.received().is_empty());
    let answer = client.post_json(CHAT, &ask).await;
    assert_eq!(backend(&answer), "up/small", "what was explained is what happens");

    let size = json!({"model": "smart", "input_tokens": 1000, "output_tokens": 100});
    let quote = eventually("a quote with the local model loaded", async || {
        let quote = gateway.client().post_json(QUOTE, &size).await.json();
        (quote["attempts"][0]["loaded"] == json!(true)).then_some(quote)
    })
    .await;
    let small = &quote["attempts"][1];
    assert_eq!(
        (&small["backend"], &small["input_usd"], &small["expected_usd"]),
        (&json!("up/small"), &json!("0.001"), &json!("0.0011"))
    );
    assert_eq!(quote["attempts"][0]["expected_usd"], json!("0"));
    let refused = gateway.client().post_json(QUOTE, &json!({"model": "up/small", "input_tokens": 1, "tier": 1})).await;
    assert_eq!(refused.status, 400, "an unknown key is told: {}", refused.text());
    assert_eq!(Client::new(gateway.addr()).post_json(QUOTE, &json!({"input_tokens": 1})).await.status, 401);
    assert_eq!(gateway.client().post_json(EXPLAIN, &chat("nobody")).await.status, 404);
    gateway.settled().await;
    assert_eq!(gateway.stop().await.attempts("up/small"), 1, "a quote is no attempt");
}

#[tokio::test]
async fn who_is_about_to_limit_the_rate_or_fails_often_is_passed_over() {
    let upstream = Upstream::always(Script::words(5).with_requests_left(0)).await;
    let gateway = Gateway::start(tiers(&upstream, "")).await;
    let client = gateway.client().header("x-tollkeeper-min-tier", "1");
    let first = async || backend(&client.post_json(CHAT, &said("smart", EASY)).await).to_owned();
    assert_eq!(first().await, "up/small");
    // That answer said that there is no room for another.
    let plan = client.post_json(EXPLAIN, &said("smart", EASY)).await.json();
    let whys: Vec<_> = plan["attempts"].as_array().unwrap().iter().map(|one| one["why"].as_str().unwrap()).collect();
    assert!(whys[0].starts_with("pyramid;rank=1;tier=2") && whys[1].contains(";strained"), "{whys:?}");
    assert_eq!(first().await, "up/large");

    let upstream = Upstream::start().await;
    let gateway = Gateway::start(tiers(&upstream, "")).await;
    let client = gateway.client().header("x-tollkeeper-min-tier", "1");
    let first = async || backend(&client.post_json(CHAT, &said("smart", EASY)).await).to_owned();
    for _ in 0..2 {
        upstream.next(Script::fault(Fault::NotJson));
        assert_eq!(first().await, "up/large", "the next in the plan answers for it");
    }
    assert_eq!(first().await, "up/large", "who failed twice is not asked first");
    assert_eq!(upstream.received().len(), 5);
}

#[tokio::test]
async fn what_an_engine_has_read_of_a_prompt_shows_in_the_plan() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(tiers(&upstream, "")).await;
    let rules = "Answer in one word. ".repeat(60);
    let turn = |text: &str| json!({"model": "smart", "messages": [{"role": "system", "content": rules}, {"role": "user", "content": text}]});
    let known = async |text: &str| {
        let plan = gateway.client().post_json(EXPLAIN, &turn(text)).await.json();
        let home = plan["attempts"].as_array().unwrap().iter().find(|one| one["backend"] == "home").unwrap().clone();
        (home["cached_tokens"].as_u64().unwrap(), plan["input_tokens"].as_u64().unwrap())
    };
    assert_eq!(known("Who?").await.0, 0);
    assert_eq!(backend(&gateway.client().post_json(CHAT, &turn("Who?")).await), "home");
    gateway.settled().await;
    let (cached, all) = known("And where?").await;
    assert!(cached * 10 > all * 8 && cached < all, "{cached} of {all}");
}

#[tokio::test]
async fn an_agents_usual_answer_is_what_is_expected() {
    let upstream = Upstream::always(Script::words(40)).await;
    let gateway = Gateway::start(tiers(&upstream, "")).await;
    let quote = async || {
        let size = json!({"model": "up/small", "input_tokens": 1000});
        gateway.client().post_json(QUOTE, &size).await.json()["attempts"][0].clone()
    };
    let before = quote().await;
    assert_eq!((&before["expected_usd"], &before["p95_usd"]), (&json!("0.001512"), &Value::Null));
    for _ in 0..8 {
        assert_eq!(backend(&gateway.client().post_json(CHAT, &said("up/small", EASY)).await), "up/small");
    }
    gateway.settled().await;
    let after = quote().await;
    for figure in ["expected_usd", "p50_usd", "p95_usd"] {
        assert_eq!(after[figure], json!("0.00104"), "{figure}");
    }
}

#[tokio::test]
async fn the_router_learns_how_fast_a_remote_model_writes() {
    let upstream = Upstream::always(Script::words(40)).await;
    let gateway = Gateway::start(tiers(&upstream, "")).await;
    let quote = async || {
        let size = json!({"model": "up/small", "input_tokens": 10, "output_tokens": 500});
        gateway.client().post_json(QUOTE, &size).await.json()["attempts"][0]["duration_ms"].as_u64().unwrap()
    };
    // A second until the first token and 50 tokens a second are taken for granted.
    assert_eq!(quote().await, 11_000);
    let mut ask = said("up/small", EASY);
    gateway.client().post_json(CHAT, &ask).await;
    gateway.settled().await;
    let whole = quote().await;
    assert!((1_000..11_000).contains(&whole), "a test's provider is faster, but nobody saw a first token: {whole}");
    ask["stream"] = json!(true);
    gateway.client().post_json(CHAT, &ask).await;
    gateway.settled().await;
    let streamed = quote().await;
    assert!(
        streamed < whole,
        "a test's provider is faster than what was taken for granted of its first token: {streamed} of {whole}"
    );
    let metrics = gateway.metrics().await;
    for (what, seen) in [("ttft", 1.0), ("duration", 2.0), ("cost", 2.0)] {
        assert_eq!(metrics.sum("tollkeeper_route_estimate_ratio_count", &[("what", what)]), seen, "{what}");
    }
}

#[tokio::test]
async fn a_models_pace_is_its_own_however_long_another_was_waited_for() {
    let upstream = Upstream::always(Script::words(40)).await;
    let dead = Upstream::always(Script::fault(Fault::StallBeforeHead)).await;
    let setup = tiers(&upstream, "")
        .provider("dead", &dead.url(), "first_byte_timeout = \"1s\"")
        .alias("late", &["dead/plain", "up/small"]);
    let gateway = Gateway::start(setup).await;
    let mut ask = said("late", EASY);
    ask["stream"] = json!(true);
    assert_eq!(backend(&gateway.client().post_json(CHAT, &ask).await), "up/small");
    gateway.settled().await;
    let size = json!({"model": "up/small", "input_tokens": 10, "output_tokens": 500});
    let quote = gateway.client().post_json(QUOTE, &size).await.json()["attempts"][0].clone();
    let [first, all] = ["ttft_ms", "duration_ms"].map(|key| quote[key].as_u64().unwrap());
    // By the first token of the request, its tokens would seem to have taken no time at all, which says nothing.
    assert!(first < 1_000 && all < first + 10_000, "{quote}");
}
