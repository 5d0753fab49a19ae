//! Budgets of every kind at the edge: teams, models, rolling windows, tokens, what happens at the limit, and a crowd at the last cent.

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{CHAT, EMBEDDINGS, chat, embedding, streamed, streamed_with_usage};
use tollkeeper_tests::client::Answer;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::{Content, End, Gate, Hold, Script, Upstream};

/// What a token of output costs at the model `up/flat`, in nano-dollars; its input is free.
const NANO: i64 = 1000;
const FLAT: &str = "[prices.\"up/flat\"]\ninput = \"0\"\noutput = \"1\"\nabilities = [\"chat\", \"tools\"]\n";
/// Output tokens of each request of a crowd.
const TOKENS: i64 = 10;

fn code(answer: &Answer) -> Value {
    answer.error()["code"].clone()
}

fn bounded(model: &str, stream: bool) -> Value {
    let mut ask = if stream { streamed(model) } else { chat(model) };
    ask["max_tokens"] = json!(TOKENS);
    ask
}

fn with_tool(model: &str) -> Value {
    let mut ask = chat(model);
    ask["tools"] = json!([{"type": "function", "function": {"name": "run", "parameters": {"type": "object"}}}]);
    ask
}

fn local(setup: Setup) -> Setup {
    let script = setup.path("local.json");
    std::fs::write(&script, r#"{"otherwise": "at home"}"#).unwrap();
    setup.raw(&format!("[[local.models]]\nname = \"home\"\npath = {script:?}\nengine = \"scripted\"\n"))
}

/// A thousand at once, of whom a budget affords exactly 137. Returns the status of each once all are answered.
async fn crowd(gateway: &Gateway, upstream: &Upstream, gate: &Gate, ask: &Value) -> Vec<u16> {
    let mut asks = JoinSet::new();
    for _ in 0..1000 {
        let (client, ask) = (gateway.client(), ask.clone());
        asks.spawn(async move { client.post_json(CHAT, &ask).await.status });
    }
    let mut statuses = Vec::new();
    while statuses.len() < 863 {
        let status = asks.join_next().await.unwrap().unwrap();
        assert_eq!(status, 402, "nobody is answered before the gate is open");
        statuses.push(status);
    }
    upstream.wait_for_requests(137).await;
    gate.open_wide();
    statuses.extend(asks.join_all().await);
    statuses
}

fn count(statuses: &[u16], status: u16) -> usize {
    statuses.iter().filter(|found| **found == status).count()
}

#[tokio::test]
async fn of_a_thousand_at_once_exactly_those_are_served_that_the_budget_affords() {
    for (stream, fallback) in [(false, false), (true, false), (false, true)] {
        let gate = Gate::default();
        let script = Script::says(Content::Endless).with_hold(Hold::Head(gate.clone()));
        let upstream = Upstream::always(script).await;
        let limit = Usd(137 * TOKENS * NANO);
        let mut setup = Setup::with(&upstream).raw(FLAT).budgets(&[("total", &limit.to_string())]);
        if fallback {
            // A free local target that cannot answer is no way around the budget.
            let broken = setup.path("broken.json");
            std::fs::write(&broken, r#"{"load_error": "broken"}"#).unwrap();
            setup =
                setup.raw(&format!("[[local.models]]\nname = \"home\"\npath = {broken:?}\nengine = \"scripted\"\n"));
        }
        let gateway =
            Gateway::start(setup.alias("crowd", if fallback { &["home", "up/flat"] } else { &["up/flat"] })).await;
        let statuses = crowd(&gateway, &upstream, &gate, &bounded("crowd", stream)).await;
        assert_eq!(
            (count(&statuses, 200), count(&statuses, 402)),
            (137, 863),
            "stream: {stream}, fallback: {fallback}"
        );
        gateway.settled().await;
        let served = upstream.served();
        assert_eq!((served.len(), upstream.billed().output), (137, 137 * 10));
        assert_eq!(gateway.stop().await.total(), limit, "to the nano-dollar");
    }
}

#[tokio::test]
async fn streams_cut_midway_are_charged_for_what_was_delivered_and_free_the_rest() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let limit = Usd(137 * TOKENS * NANO);
    let gateway = Gateway::start(Setup::with(&upstream).raw(FLAT).budgets(&[("total", &limit.to_string())])).await;
    let mut asks = JoinSet::new();
    for number in 0..60 {
        let client = gateway.client();
        asks.spawn(async move {
            let mut open = client.stream(CHAT, &streamed("up/flat")).await;
            let mut words = 0;
            // Some leave after a few words, the others stay until the budget ends them.
            while number % 3 != 0 || words < 5 {
                match open.next_event().await {
                    Ok(Some(event)) => {
                        words += i64::from(event.contains("\"content\":\"") && !event.contains("\"content\":\"\""))
                    }
                    _ => break,
                }
            }
            (open.status, words)
        });
    }
    let answers = asks.join_all().await;
    gateway.settled().await;
    let delivered: i64 = answers.iter().filter(|(status, _)| *status == 200).map(|(_, words)| words * NANO).sum();
    let total = gateway.stop().await.total();
    assert!(total <= limit, "{total} of {limit} spent");
    assert!(total.0 >= delivered, "{delivered} delivered, {total} charged");
    assert!(total.0 * 100 >= limit.0 * 97, "{total} of {limit} could be spent");
    assert!(upstream.served().iter().all(|served| served.end != End::Open), "nobody goes on generating");
}

#[tokio::test]
async fn a_stream_that_a_budget_ends_says_so_whoever_reads_it() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    for ask in [streamed("up/flat"), streamed_with_usage("up/flat")] {
        let limit = Usd(40 * NANO).to_string();
        let gateway = Gateway::start(Setup::with(&upstream).raw(FLAT).budgets(&[("total", &limit)])).await;
        let answer = gateway.client().post_json(CHAT, &ask).await;
        let events: Vec<Value> = answer.events().iter().filter_map(|data| serde_json::from_str(data).ok()).collect();
        let last = events.iter().find(|event| event["choices"][0]["finish_reason"] == "length").unwrap();
        assert_eq!(last["tollkeeper"]["stopped"]["code"], "budget_exceeded");
        assert!(last["tollkeeper"]["stopped"]["message"].as_str().unwrap().contains("scout"), "{last}");
        assert_eq!(answer.events().last().unwrap(), "[DONE]");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn every_scope_can_have_a_budget_and_the_tightest_is_named() {
    let upstream = Upstream::start().await;
    let cases = [
        ("", "everything", "everything", "usd"),
        ("team = \"field\"", "team", "field", "usd"),
        ("agent = \"scout\"", "agent", "scout", "usd"),
        ("alias = \"work\"", "alias", "work", "usd"),
        ("model = \"up/plain\"", "model", "up/plain", "usd"),
        ("provider = \"up\"", "provider", "up", "usd"),
        ("team = \"field\"", "team", "field", "tokens"),
        ("provider = \"up\"", "provider", "up", "requests"),
    ];
    for (owner, scope, id, measure) in cases {
        let limit = match measure {
            "usd" => "limit_usd = \"0.000000001\"",
            "tokens" => "limit_tokens = 1",
            _ => "limit_requests = 1",
        };
        let rule = format!("[[budgets]]\n{owner}\nwindow = \"rolling 1h\"\n{limit}\n");
        let setup = Setup::with(&upstream).scout("team = \"field\"").alias("work", &["up/plain"]).raw(&rule);
        let gateway = Gateway::start(setup).await;
        if measure == "requests" {
            assert_eq!(gateway.client().post_json(CHAT, &chat("work")).await.status, 200);
        }
        let answer = gateway.client().post_json(CHAT, &chat("work")).await;
        assert_eq!(answer.status, 402, "{owner}: {}", answer.text());
        let budget = answer.error()["budget"].clone();
        assert_eq!((&budget["scope"], &budget["id"]), (&json!(scope), &json!(id)), "{owner}");
        assert_eq!((&budget["window"], &budget["resets_at"]), (&json!("rolling 1h"), &Value::Null));
        for amount in ["limit", "spent", "reserved", "estimate"] {
            assert!(budget[format!("{amount}_{measure}")].is_string(), "{budget}");
        }
        let metrics = gateway.metrics().await;
        let labels = [("scope", scope), ("owner", id), ("measure", measure), ("window", "rolling 1h")];
        assert!(metrics.sum("tollkeeper_budget_limit", &labels) > 0.0);
    }
}

#[tokio::test]
async fn at_the_limit_a_cheaper_target_answers_and_says_so() {
    let (cheap, dear) = (Upstream::start().await, Upstream::start().await);
    let price = "price = { input = \"1000\", output = \"1000\" }";
    let provider = format!(
        "[[providers]]\nname = \"dear\"\nkind = \"custom\"\napi_key = \"k\"\nbase_url = \"{}\"\n{price}\n",
        dear.url()
    );
    let setup = |on_limit: &str, limit: &str| {
        let budget = format!("budgets = [{{ window = \"day\", limit_usd = \"{limit}\", on_limit = \"{on_limit}\" }}]");
        local(Setup::with(&cheap).raw(&provider)).scout(&budget).alias("best", &["dear/a", "up/b"])
    };
    // Enough for the cheap one only.
    let gateway = Gateway::start(setup("degrade", "0.0005")).await;
    let answer = gateway.client().post_json(CHAT, &chat("best")).await;
    assert_eq!((answer.status, answer.header("x-tollkeeper-backend")), (200, "up/b"), "{}", answer.text());
    assert_eq!(answer.header("x-tollkeeper-degraded"), "budget");
    // Enough for none of them: the agent's own models answer, also when one of the others was named.
    let poor = setup("degrade", "0.000000001");
    gateway.reload(&poor);
    for model in ["best", "dear/a"] {
        let answer = gateway.client().post_json(CHAT, &chat(model)).await;
        assert_eq!((answer.status, answer.header("x-tollkeeper-backend")), (200, "home"), "{}", answer.text());
        assert_eq!(answer.header("x-tollkeeper-degraded"), "budget");
    }
    assert!(dear.received().is_empty());
    gateway.stop().await;

    // Without the policy it is refused, whatever comes later in the list.
    let gateway = Gateway::start(setup("deny", "0.0005")).await;
    let answer = gateway.client().post_json(CHAT, &chat("best")).await;
    assert_eq!((answer.status, code(&answer)), (402, json!("budget_exceeded")));
}

#[tokio::test]
async fn the_last_share_is_for_a_final_answer_without_tools() {
    let upstream = Upstream::always(Script::words(TOKENS as u32)).await;
    let limit = Usd(20 * TOKENS * NANO);
    let budget = format!("budgets = [{{ window = \"total\", limit_usd = \"{limit}\", wrap_up_pct = 10 }}]");
    let gateway = Gateway::start(Setup::with(&upstream).raw(FLAT).scout(&budget)).await;
    let ask = |tool: bool| {
        let mut ask = if tool { with_tool("up/flat") } else { chat("up/flat") };
        ask["max_tokens"] = json!(TOKENS);
        ask
    };
    for _ in 0..18 {
        assert_eq!(gateway.client().post_json(CHAT, &ask(true)).await.status, 200);
    }
    let answer = gateway.client().post_json(CHAT, &ask(true)).await;
    assert_eq!(answer.status, 402);
    let message = answer.error()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("last 10 % are kept for a final answer"), "{message}");
    for _ in 0..2 {
        assert_eq!(gateway.client().post_json(CHAT, &ask(false)).await.status, 200, "without tools it may");
    }
    assert_eq!(gateway.client().post_json(CHAT, &ask(false)).await.status, 402);
    assert_eq!(gateway.stop().await.total(), limit);
}

#[tokio::test]
async fn a_budget_that_asks_pauses_until_somebody_resumes() {
    let upstream = Upstream::always(Script::words(TOKENS as u32)).await;
    let setup = |limit: i64| {
        let limit = Usd(limit * TOKENS * NANO);
        let budget = format!("budgets = [{{ window = \"total\", limit_usd = \"{limit}\", on_limit = \"ask\" }}]");
        Setup::with(&upstream).raw(FLAT).scout(&budget)
    };
    let gateway = Gateway::start(setup(1)).await;
    let ask = bounded("up/flat", false);
    assert_eq!(gateway.client().post_json(CHAT, &ask).await.status, 200);
    assert_eq!(gateway.client().post_json(CHAT, &ask).await.status, 402);
    // More money alone does not end a pause.
    gateway.reload(&setup(3));
    let answer = gateway.client().post_json(CHAT, &ask).await;
    assert_eq!((answer.status, code(&answer)), (403, json!("paused")));
    assert_eq!(answer.header("x-should-retry"), "false");
}

#[tokio::test]
async fn one_request_may_not_cost_more_than_its_own_limit() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let limit = format!("max_request_usd = \"{}\"", Usd(25 * NANO));
    let gateway = Gateway::start(Setup::with(&upstream).raw(FLAT).scout(&limit)).await;
    let mut ask = chat("up/flat");
    ask["max_tokens"] = json!(1000);
    let answer = gateway.client().post_json(CHAT, &ask).await;
    assert_eq!((answer.status, &answer.json()["usage"]["completion_tokens"]), (200, &json!(25)));
    let answer = gateway.client().post_json(CHAT, &streamed_with_usage("up/flat")).await;
    let events: Vec<Value> = answer.events().iter().filter_map(|data| serde_json::from_str(data).ok()).collect();
    let words = events
        .iter()
        .filter(|event| event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()));
    // A provider's stream is counted by its bytes, rather too high.
    let words = words.count();
    assert!((12..=25).contains(&words), "{words} words for 25 tokens");
    // What cannot even begin is refused.
    let dear = "[prices.\"up/dear\"]\ninput = \"1000000\"\noutput = \"1\"\nabilities = [\"chat\", \"embeddings\"]\n";
    gateway.reload(&Setup::with(&upstream).raw(FLAT).raw(dear).scout(&limit));
    for (path, ask) in [(CHAT, chat("up/dear")), (EMBEDDINGS, embedding("up/dear"))] {
        let answer = gateway.client().post_json(path, &ask).await;
        assert_eq!((answer.status, code(&answer)), (402, json!("budget_exceeded")), "{}", answer.text());
        assert!(answer.error()["message"].as_str().unwrap().contains("max_request_usd"));
    }
}

#[tokio::test]
async fn agents_that_set_no_limits_can_use_97_percent_of_a_budget() {
    // Long prompts, short answers, no `max_tokens`: what agents send. The model could answer with 16,384 tokens.
    let upstream = Upstream::directed(|received| {
        let words = 40 + received.body.len() % 180;
        Script::words(u32::try_from(words).unwrap())
    })
    .await;
    let price =
        "[prices.\"up/agentic\"]\ninput = \"0.15\"\noutput = \"0.60\"\nmax_output = 16384\nabilities = [\"chat\"]\n";
    let limit = Usd(100_000_000);
    let gateway = Gateway::start(Setup::with(&upstream).raw(price).budgets(&[("total", &limit.to_string())])).await;
    let mut agents = JoinSet::new();
    for agent in 0..4_usize {
        let client = gateway.client();
        agents.spawn(async move {
            for turn in 0.. {
                let prompt = "A word and another. ".repeat(200 + (agent * 97 + turn * 131) % 900);
                let mut ask = if turn % 2 == 0 { chat("up/agentic") } else { streamed("up/agentic") };
                ask["messages"][0]["content"] = json!(prompt);
                let answer = client.post_json(CHAT, &ask).await;
                if answer.status != 200 {
                    return answer;
                }
            }
            unreachable!("the budget ends it")
        });
    }
    let first = agents.join_next().await.unwrap().unwrap();
    let budget = first.error()["budget"].clone();
    let units = |name: &str| Usd::parse_decimal(budget[name].as_str().unwrap()).unwrap().0;
    assert_eq!(first.status, 402, "{}", first.text());
    let used = units("spent_usd") + units("reserved_usd");
    assert!(used * 100 >= limit.0 * 97, "blocked at {used} of {limit}");
    agents.join_all().await;
    gateway.settled().await;
    let total = gateway.stop().await.total();
    assert!(total <= limit && total.0 * 100 >= limit.0 * 97, "{total} of {limit}");
}

#[tokio::test]
async fn a_file_that_is_only_named_is_leased_as_much_as_the_model_can_read() {
    let upstream = Upstream::start().await;
    let reader =
        "[prices.\"up/reader\"]\ninput = \"1\"\noutput = \"0\"\ncontext = 100000\nabilities = [\"chat\", \"vision\"]\n";
    let ask = |part: Value| json!({"model": "up/reader", "messages": [{"role": "user", "content": [part]}]});
    let file = ask(json!({"type": "file", "file": {"file_id": "file-abc"}}));
    let picture = ask(json!({"type": "image_url", "image_url": {"url": "https://example.com/wide.png"}}));
    for (limit, status) in [("0.099", 402), ("0.1", 200)] {
        let gateway = Gateway::start(Setup::with(&upstream).raw(reader).budgets(&[("total", limit)])).await;
        assert_eq!(gateway.client().post_json(CHAT, &file).await.status, status, "{limit}");
        gateway.stop().await;
    }
    for (limit, status) in [("0.004", 402), ("0.005", 200)] {
        let gateway = Gateway::start(Setup::with(&upstream).raw(reader).budgets(&[("total", limit)])).await;
        assert_eq!(gateway.client().post_json(CHAT, &picture).await.status, status, "{limit}");
        gateway.stop().await;
    }
}
