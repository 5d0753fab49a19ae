//! Money: budgets that cannot be overspent, refusals that name the numbers, and a ledger that agrees with the provider's own books.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tollkeeper_config::Usd;
use tollkeeper_protocol::usage::Usage;
use tollkeeper_tests::asks::{
    CHAT, COMPLETIONS, EMBEDDINGS, chat, completion, embedding, streamed, streamed_with_usage,
};
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::{Setup, cost, due};
use tollkeeper_tests::upstream::{Content, Counted, End, Script, Served, Upstream, UsageRule};

/// An exact decimal as nano-dollars.
fn usd(text: &Value) -> Usd {
    Usd::parse_decimal(text.as_str().unwrap_or_else(|| panic!("money is a text, not {text}"))).unwrap()
}

fn output(tokens: u64) -> Usage {
    Usage { output: tokens, ..Usage::default() }
}

fn check_denial(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.text());
    let error = answer.error();
    assert_eq!(
        (&error["type"], &error["code"], &error["param"]),
        (&json!("budget_exceeded"), &json!("budget_exceeded"), &Value::Null)
    );
    assert_eq!(answer.header("x-should-retry"), "false");
    error["budget"].clone()
}

#[tokio::test]
async fn the_end_of_a_budget_is_a_402_with_the_numbers() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("day", "0.000005"), ("total", "1.00")])).await;
    let mut spent = Usd(0);
    let refusal = loop {
        let answer = gateway.client().post_json(CHAT, &chat("up/plain")).await;
        if answer.status != 200 {
            break answer;
        }
        let charged = usd(&json!(answer.header("x-tollkeeper-cost-usd")));
        assert_eq!(charged, cost(&upstream.served().last().unwrap().usage));
        spent = Usd(spent.0 + charged.0);
        assert!(spent <= Usd(5_000), "the budget is overspent");
        assert_eq!(
            usd(&json!(answer.header("x-tollkeeper-budget-remaining-usd"))),
            Usd(5_000 - spent.0),
            "of the tightest budget"
        );
    };
    let budget = check_denial(&refusal, 402);
    let fields: Vec<&String> = budget.as_object().unwrap().keys().collect();
    assert_eq!(
        fields,
        ["scope", "id", "window", "limit_usd", "spent_usd", "reserved_usd", "estimate_usd", "resets_at"]
    );
    assert_eq!((&budget["scope"], &budget["id"], &budget["window"]), (&json!("agent"), &json!("scout"), &json!("day")));
    assert_eq!(
        (usd(&budget["limit_usd"]), usd(&budget["spent_usd"]), usd(&budget["reserved_usd"])),
        (Usd(5_000), spent, Usd(0))
    );
    assert!(spent.0 + usd(&budget["estimate_usd"]).0 > 5_000, "what was asked for would not have fitted: {budget}");
    let resets = budget["resets_at"].as_str().unwrap();
    assert!(resets.ends_with("T00:00:00Z"), "a day ends at midnight, not at {resets}");
    let message = refusal.error()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("scout") && message.contains("0.000005"), "{message}");

    let asked = upstream.received().len();
    check_denial(&gateway.client().post_json(CHAT, &streamed("up/plain")).await, 402);
    check_denial(&gateway.client().post_json(CHAT, &streamed_with_usage("up/plain")).await, 402);
    assert_eq!(upstream.received().len(), asked, "a refused request is not sent");
    assert_eq!(gateway.metrics().await.sum("tollkeeper_denied_total", &[("agent", "scout")]), 3.0);
    assert_eq!(gateway.stop().await.total(), spent);
}

#[tokio::test]
async fn a_total_never_resets_and_other_statuses_can_be_configured() {
    for status in [429, 422] {
        let upstream = Upstream::start().await;
        let setup =
            Setup::with(&upstream).server(&format!("budget_status = {status}")).budgets(&[("total", "0.000000001")]);
        let gateway = Gateway::start(setup).await;
        let budget = check_denial(&gateway.client().post_json(CHAT, &chat("up/plain")).await, status);
        assert_eq!((&budget["window"], &budget["resets_at"]), (&json!("total"), &Value::Null));
        assert!(upstream.received().is_empty());
    }
}

#[tokio::test]
async fn many_at_once_cannot_overspend() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let limit = Usd(20_000);
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("hour", "0.00002")])).await;
    let mut asks = tokio::task::JoinSet::new();
    for number in 0..60 {
        let client = gateway.client();
        let mut ask = if number % 2 == 0 { chat("up/plain") } else { streamed("up/plain") };
        ask["max_tokens"] = json!(1 + number % 17);
        asks.spawn(async move { client.post_json(CHAT, &ask).await });
    }
    let answers = asks.join_all().await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!(count(200) + count(402), 60, "{:?}", answers.iter().map(|answer| answer.status).collect::<Vec<_>>());
    assert!(count(200) >= 10 && count(402) >= 1, "{} answers, {} refusals", count(200), count(402));
    let ledger = gateway.stop().await;
    assert!(ledger.total() <= limit, "{} of {limit} spent", ledger.total());
    assert!(ledger.total().0 > limit.0 / 2, "budgets starve: only {} of {limit} could be spent", ledger.total());
}

#[tokio::test]
async fn a_stream_ends_at_the_token_the_budget_pays_for() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let limit = Usd(30_000);
    // A model that does not reason: all that is billed is seen, so nobody needs to limit it beforehand.
    let words = "[prices.\"up/words\"]\ninput = \"0.0375\"\noutput = \"0.1501\"\nabilities = [\"chat\"]\n";
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("total", "0.00003")]).raw(words)).await;
    let answer = gateway.client().post_json(CHAT, &streamed_with_usage("up/words")).await;
    assert_eq!(answer.status, 200);
    // The provider is cut off, or was told the limit.
    upstream.wait_until("the end of the answer", |served| served[0].end != End::Open).await;
    let events = answer.events();
    let words = events.iter().filter(|data| data.contains("\"content\":\"")).count() as u64;
    // The words are one token each. The prompt is padded in the estimate, so not all of the budget can be used.
    let affordable = limit.0 / 151;
    assert!((words as i64) < affordable, "{words} words were delivered, {affordable} could be paid");
    assert!(words as i64 > affordable / 2, "only {words} words were delivered, {affordable} could be paid");
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap_or_default();
    let told = last.get("error").is_some() || answer.text().contains("\"finish_reason\":\"length\"");
    assert!(told, "the client must learn that the answer was cut: {}", events.last().unwrap());
    gateway.settled().await;
    let total = gateway.stop().await.total();
    assert!(total <= limit, "{total} of {limit}");
    assert!(total >= cost(&output(words - 1)), "{total} for {words} words");
}

#[tokio::test]
async fn a_whole_answer_is_limited_to_what_the_budget_affords() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("total", "0.00003")])).await;
    let mut ask = chat("up/plain");
    ask["max_tokens"] = json!(100_000);
    let answer = gateway.client().post_json(CHAT, &ask).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let sent = upstream.only().json();
    let limit = sent["max_tokens"].as_u64().or(sent["max_completion_tokens"].as_u64()).unwrap();
    assert!((50..=199).contains(&limit), "the provider was allowed {limit} tokens");
    assert_eq!(answer.json()["usage"]["completion_tokens"], limit);
    assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
    let ledger = gateway.stop().await;
    assert_eq!(ledger.total(), due(&upstream));
    assert!(ledger.total() <= Usd(30_000));
}

#[tokio::test]
async fn a_budget_that_cannot_pay_a_token_of_each_answer_is_a_402() {
    let upstream = Upstream::start().await;
    // What is left after the input pays some tokens, but not sixteen.
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("total", "0.000002")])).await;
    let mut ask = chat("up/plain");
    ask["n"] = json!(16);
    let answer = gateway.client().post_json(CHAT, &ask).await;
    assert_eq!((answer.status, upstream.received().len()), (402, 0), "{}", answer.text());
    ask["n"] = json!(1);
    let answer = gateway.client().post_json(CHAT, &ask).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test]
async fn a_worst_case_does_not_block_an_agent_who_asks_for_no_limit() {
    // 16,384 tokens of output would cost 0.0024592; the budget is a hundredth of that.
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("day", "0.00002")])).await;
    for ask in [chat("up/plain"), streamed("up/plain")] {
        assert_eq!(gateway.client().post_json(CHAT, &ask).await.status, 200);
    }
}

#[tokio::test]
async fn a_fallback_is_leased_at_its_own_price() {
    let cheap = Upstream::always(Script::status(500)).await;
    let dear = Upstream::start().await;
    let price = "[[providers]]\nname = \"dear\"\nkind = \"custom\"\napi_key = \"k\"\nprice = { input = \"1000\", output = \"1000\" }\n";
    let setup = |budget: &str| {
        let provider = format!("{price}base_url = \"{}\"\n", dear.url());
        Setup::with(&cheap).raw(&provider).alias("both", &["up/a", "dear/b"]).budgets(&[("total", budget)])
    };
    // Enough for thousands of tokens at the first price, for none at the second.
    let gateway = Gateway::start(setup("0.0005")).await;
    let budget = check_denial(&gateway.client().post_json(CHAT, &chat("both")).await, 402);
    assert_eq!(usd(&budget["spent_usd"]), Usd(0));
    assert!(dear.received().is_empty());
    gateway.stop().await;

    let gateway = Gateway::start(setup("1.00")).await;
    let answer = gateway.client().post_json(CHAT, &chat("both")).await;
    assert_eq!((answer.status, answer.header("x-tollkeeper-backend")), (200, "dear/b"));
    let usage = dear.served()[0].usage;
    let ledger = gateway.stop().await;
    assert_eq!(ledger.cost("dear/b"), Usd(i64::try_from((usage.input + usage.output) * 1_000_000).unwrap()));
    assert_eq!(ledger.cost("up/a"), Usd(0));
}

#[tokio::test]
async fn a_free_first_target_is_no_way_around_the_budget() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream).budgets(&[("day", "0.000000001")]);
    let script = setup.path("broken.json");
    std::fs::write(&script, r#"{"load_error": "broken"}"#).unwrap();
    let local = format!("[[local.models]]\nname = \"free\"\npath = {script:?}\nengine = \"scripted\"\n");
    let gateway = Gateway::start(setup.raw(&local).alias("both", &["free", "up/plain"])).await;
    for ask in [chat("both"), streamed("both")] {
        check_denial(&gateway.client().post_json(CHAT, &ask).await, 402);
    }
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn cached_tokens_cost_less_and_every_operation_is_metered() {
    let upstream = Upstream::always(Script::default().with_cached(3)).await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    let asks = [
        (CHAT, chat("up/plain")),
        (CHAT, streamed("up/plain")),
        (COMPLETIONS, completion("up/plain")),
        (EMBEDDINGS, embedding("up/plain")),
    ];
    for (path, ask) in asks {
        assert_eq!(gateway.client().post_json(path, &ask).await.status, 200);
    }
    // A provider counts embeddings without a cache.
    let mut usages: Vec<Usage> = upstream.served().iter().map(|served| served.usage).collect();
    assert!(usages[..3].iter().all(|usage| usage.cached_input == 3));
    usages[3].cached_input = 0;
    let ledger = gateway.stop().await;
    assert_eq!(ledger.total(), Usd(usages.iter().map(|usage| cost(usage).0).sum()));
    let metered: u64 = ledger.rows.iter().map(|row| row.cached_input).sum();
    assert_eq!(metered, 9);
}

#[tokio::test]
async fn tokens_that_nobody_saw_are_charged_as_the_provider_counted_them() {
    let frames = [
        r#"{"choices":[{"index":0,"delta":{"content":"yes"},"finish_reason":"stop"}]}"#.to_owned(),
        r#"{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":9000,"completion_tokens_details":{"reasoning_tokens":8999}}}"#
            .to_owned(),
    ];
    let counted = Counted { input: 4, output: 9000 };
    let upstream = Upstream::always(Script::says(Content::Verbatim(frames.to_vec(), counted))).await;
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("day", "1.00")])).await;
    assert_eq!(gateway.client().post_json(CHAT, &streamed("up/plain")).await.status, 200);
    gateway.settled().await;
    let metrics = gateway.metrics().await;
    let overrun = metrics.sum("tollkeeper_lease_overruns_total", &[]);
    assert_eq!(overrun, 1.0, "a bill above the lease is no secret");
    let ledger = gateway.stop().await;
    assert_eq!(ledger.total(), cost(&upstream.served()[0].usage));
    assert!(ledger.report.overrun > Usd(0));
}

#[tokio::test]
async fn the_cost_of_a_stream_stands_in_its_usage_chunk() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    let answer = gateway.client().post_json(CHAT, &streamed_with_usage("up/plain")).await;
    let events = answer.events();
    let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(usd(&usage["usage"]["cost_usd"]), due(&upstream));
    assert_eq!(usage["tollkeeper"]["backend"], "up/plain");
}

#[tokio::test]
async fn agents_pay_for_themselves() {
    let upstream = Upstream::start().await;
    let setup =
        Setup::with(&upstream).agent("poor", "tk-poor", &[("total", "0.000000001")]).agent("rich", "tk-rich", &[]);
    let gateway = Gateway::start(setup).await;
    let ask = async |key: &str| Client::new(gateway.addr()).key(key).post_json(CHAT, &chat("up/plain")).await;
    let (poor, rich) = (ask("tk-poor").await, ask("tk-rich").await);
    assert_eq!((poor.status, rich.status), (402, 200));
    assert_eq!(rich.header("x-tollkeeper-budget-remaining-usd"), "", "there is no budget to tell of");
    let ledger = gateway.stop().await;
    let agents: Vec<&str> = ledger.rows.iter().map(|row| row.group[0].as_deref().unwrap()).collect();
    assert_eq!(agents, ["rich"]);
}

/// What each kind of traffic is, and whether its true cost is told to the gateway.
const KINDS: [&str; 8] = ["plain", "long", "cached", "no-usage", "zero-usage", "dies", "broken", "deepseek"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_random_requests_agree_with_the_providers_books_to_the_nano_dollar() {
    let upstream = Upstream::by_model_name().await;
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("day", "1.00"), ("total", "2.00")])).await;
    let mut chance = StdRng::seed_from_u64(20_251_119);
    let mut asks = tokio::task::JoinSet::new();
    // What a provider may bill of whole answers that broke off: all that they were allowed.
    let mut unseen: BTreeMap<String, i64> = BTreeMap::new();
    for _ in 0..200 {
        let kind = KINDS[chance.random_range(0..KINDS.len())];
        // Some clients leave after a few pieces; their model is another one, so that their charges are told apart.
        let patience = if chance.random_bool(0.15) { Some(chance.random_range(0..4)) } else { None };
        let model = format!("up/{}{kind}", if patience.is_some() { "left/" } else { "" });
        let mut ask = match chance.random_range(0..4) {
            0 => streamed_with_usage(&model),
            1 => streamed(&model),
            _ => chat(&model),
        };
        ask["messages"][0]["content"] = json!("word ".repeat(chance.random_range(1..200)));
        if chance.random_bool(0.5) {
            ask["max_tokens"] = json!(chance.random_range(1..100));
        }
        if chance.random_bool(0.2) {
            ask["n"] = json!(chance.random_range(1..4));
        }
        if ask["stream"] != json!(true) && kind == "dies" {
            ask["max_tokens"] = json!(100);
            let limit = 100 * ask["n"].as_u64().unwrap_or(1);
            *unseen.entry(model["up/".len()..].to_owned()).or_default() += cost(&output(limit)).0;
        }
        let client = gateway.client();
        asks.spawn(async move {
            let mut open = client.stream(CHAT, &ask).await;
            for _ in 0..patience.unwrap_or(usize::MAX) {
                if !matches!(open.chunk().await, Ok(Some(_))) {
                    return;
                }
            }
        });
    }
    asks.join_all().await;
    gateway.settled().await;
    let metrics = gateway.metrics().await;
    let ledger = gateway.stop().await;
    let served = upstream.stop().await;

    let mut by_model: BTreeMap<&str, Vec<&Served>> = BTreeMap::new();
    for one in &served {
        by_model.entry(&one.model).or_default().push(one);
    }
    for (model, served) in by_model {
        let charged = ledger.cost(&format!("up/{model}"));
        // Told in full to a client that stayed: then the bill is the provider's.
        let told = |one: &&Served| one.reported || model == "zero-usage" || one.status >= 400;
        let all_told = !model.starts_with("left/") && served.iter().all(|one| one.end == End::Complete && told(one));
        let due = |usage: fn(&Served) -> Usage| Usd(served.iter().map(|one| cost(&usage(one)).0).sum());
        let reported = due(|one| match (one.reported, one.end, one.model.starts_with("left/")) {
            (true, End::Complete, false) => one.usage,
            _ => Usage::default(),
        });
        if all_told {
            assert_eq!(charged, reported, "{model}");
            continue;
        }
        // For the others at least what was told is charged, and not more than if everything written had been estimated generously.
        let generous = due(|one| Usage {
            input: 2 * one.usage.input + 50,
            output: 3 * one.usage.output.max(one.tokens_sent) + 10,
            ..Usage::default()
        });
        let unseen = Usd(unseen.get(model).copied().unwrap_or_default());
        let (least, most) = (reported.max(unseen), Usd(generous.0 + unseen.0));
        assert!(least <= charged && charged <= most, "{model}: {charged} is not between {least} and {most}");
    }
    assert_eq!(ledger.report.open, 0);
    let shown = metrics.sum("tollkeeper_cost_usd_total", &[("agent", "scout")]);
    assert!(
        (shown * 1e9 - ledger.total().0 as f64).abs() < 1.0,
        "metrics show {shown}, the ledger holds {}",
        ledger.total()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spend_agrees_with_the_provider_when_every_answer_is_whole() {
    let upstream = Upstream::directed(|request| {
        let words = request.body.len() as u32 % 50 + 1;
        Script::words(words).with_cached(u64::from(words % 3)).with_usage(UsageRule::Vendor)
    })
    .await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    let mut asks = tokio::task::JoinSet::new();
    for number in 0..100 {
        let mut ask = if number % 2 == 0 { chat("up/plain") } else { streamed("up/plain") };
        ask["messages"][0]["content"] = json!("word ".repeat(number));
        let client = gateway.client();
        asks.spawn(async move { client.post_json(CHAT, &ask).await.status });
    }
    assert_eq!(asks.join_all().await, vec![200; 100]);
    let ledger = gateway.stop().await;
    assert_eq!(ledger.total(), Usd(upstream.served().iter().map(|one| cost(&one.usage).0).sum()));
    let billed = upstream.billed();
    let row = &ledger.rows[0];
    assert_eq!(
        (row.attempts, row.input, row.cached_input, row.output),
        (100, billed.input, billed.cached_input, billed.output)
    );
}
