//! Local answers that are held back until they are known to be fit, and what becomes of those that are not.

use http::HeaderMap;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use tollkeeper_config::Usd;
use tollkeeper_policies::Clock;
use tollkeeper_tests::asks::CHAT;
use tollkeeper_tests::client::Answer;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::{Setup, due};
use tollkeeper_tests::upstream::{Content, Gate, Hold, Script, Upstream, word};
use tollkeeper_tests::wait::eventually;

/// A thousandth of a dollar a generated token.
const TOKEN: i64 = 1_000_000;
const LONG: &str = "a long answer that does not end within the first tokens of it";

/// What the local model says to whom, and of what it is not sure.
fn script() -> Value {
    json!({
        "answers": {
            "easy": LONG,
            "hard": "no idea really, perhaps this or that",
            "refused": "I'm sorry, but I cannot do that.",
            "nothing": "",
            "endless": null,
        },
        "unsure": ["hard"],
    })
}

/// `smart`: a local model that costs a little, then `up/model`.
fn setup(upstream: &Upstream, cascade: &str) -> Setup {
    setup_with(upstream, &script(), cascade, "")
}

/// The same with another script, and with more lines of the local model.
fn setup_with(upstream: &Upstream, script: &Value, cascade: &str, lines: &str) -> Setup {
    let setup = Setup::with(upstream);
    let path = setup.path("local.json");
    std::fs::write(&path, script.to_string()).unwrap();
    setup
        .raw(&format!(
            "[[local.models]]\nname = \"home\"\npath = {path:?}\nengine = \"scripted\"\ncontext = 1024\n\
             price = {{ input = \"0\", output = \"1000\" }}\n{lines}"
        ))
        .raw(&format!(
            "[[aliases]]\nname = \"smart\"\nstrategy = \"pyramid\"\ntargets = [\"home\", \"up/model\"]\ncascade = {{ {cascade} }}\n"
        ))
}

fn ask(text: &str, stream: bool) -> Value {
    json!({"model": "smart", "temperature": 0, "stream": stream, "messages": [{"role": "user", "content": text}]})
}

/// The text of a streamed or a whole answer.
fn said(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    if !answer.header("content-type").starts_with("text/event-stream") {
        return answer.json()["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned();
    }
    let chunks = answer.events();
    assert_eq!(chunks.last().map(String::as_str), Some("[DONE]"), "{}", answer.text());
    let chunks = chunks.iter().filter_map(|data| serde_json::from_str::<Value>(data).ok());
    chunks.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
}

fn why(answer: &Answer) -> &str {
    answer.header("x-tollkeeper-why")
}

fn words(count: u64) -> String {
    (0..count).map(word).collect()
}

#[tokio::test]
async fn an_answer_that_its_model_is_sure_of_is_shown_and_nobody_else_is_asked() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(setup(&upstream, "hold_tokens = 8")).await;
    for stream in [false, true] {
        let answer = gateway.client().post_json(CHAT, &ask("easy", stream)).await;
        assert_eq!(said(&answer), LONG, "stream {stream}");
        assert_eq!(answer.header("x-tollkeeper-backend"), "home");
        assert!(why(&answer).starts_with("pyramid;rank=1;tier=0;"), "{}", why(&answer));
        assert!(why(&answer).contains(";cascade=fit;confidence=1.000"), "{}", why(&answer));
    }
    assert!(upstream.received().is_empty());
    let metrics = gateway.metrics().await;
    let alias = ("alias", "smart");
    assert_eq!(metrics.sum("tollkeeper_cascade_answers_total", &[alias, ("verdict", "fit")]), 2.0);
    let saved = metrics.sum("tollkeeper_cascade_saved_usd_total", &[alias]);
    // The test provider is far cheaper than this local model, so that nothing was saved; see below for one that is not.
    assert_eq!((saved, metrics.sum("tollkeeper_cascade_wasted_usd_total", &[alias])), (0.0, 0.0));
    let ledger = gateway.stop().await;
    assert_eq!(ledger.total(), Usd(2 * (LONG.len() as i64 + 1) * TOKEN), "each token once, the one that ends included");
}

#[tokio::test]
async fn what_a_fit_answer_saves_is_what_the_target_above_would_have_charged() {
    let upstream = Upstream::start().await;
    let dear = "[prices.\"up/dear\"]\ninput = \"0\"\noutput = \"5000\"\nabilities = [\"chat\"]\n\
        [[aliases]]\nname = \"rich\"\ntargets = [\"home\", \"up/dear\"]\ncascade = {}\n";
    let gateway = Gateway::start(setup(&upstream, "").raw(dear)).await;
    let mut ask = ask("easy", true);
    ask["model"] = json!("rich");
    assert_eq!(said(&gateway.client().post_json(CHAT, &ask).await), LONG);
    let saved = gateway.metrics().await.sum("tollkeeper_cascade_saved_usd_total", &[("alias", "rich")]);
    let tokens = LONG.len() as f64 + 1.0;
    assert!((saved - tokens * (0.005 - 0.001)).abs() < 1e-9, "{saved}");
}

#[tokio::test]
async fn an_answer_that_its_model_is_not_sure_of_is_given_by_the_target_above() {
    for stream in [false, true] {
        let upstream = Upstream::always(Script::words(3)).await;
        let gateway = Gateway::start(setup(&upstream, "hold_tokens = 8")).await;
        let answer = gateway.client().post_json(CHAT, &ask("hard", stream)).await;
        assert_eq!(said(&answer), words(3), "stream {stream}: nothing of the local answer is seen");
        assert_eq!(answer.header("x-tollkeeper-backend"), "up/model");
        assert!(why(&answer).starts_with("pyramid;rank=2;tier=1;"), "{}", why(&answer));
        assert!(why(&answer).contains(";cascade=unsure;confidence=0.0"), "{}", why(&answer));
        let metrics = gateway.metrics().await;
        let alias = ("alias", "smart");
        assert_eq!(metrics.sum("tollkeeper_cascade_answers_total", &[alias, ("verdict", "unsure")]), 1.0);
        assert!(metrics.sum("tollkeeper_cascade_wasted_seconds_total", &[alias]) > 0.0);
        let wasted = metrics.sum("tollkeeper_cascade_wasted_usd_total", &[alias]);
        assert!((wasted - 0.008).abs() < 1e-9, "eight tokens were looked at: {wasted}");
        if !stream {
            let told: f64 = answer.header("x-tollkeeper-cost-usd").parse().unwrap();
            assert!(told > 0.008, "{told}: both attempts are paid for");
        }
        let ledger = gateway.stop().await;
        assert_eq!((ledger.attempts("home"), ledger.attempts("up/model")), (1, 1));
        assert_eq!(ledger.cost("home"), Usd(8 * TOKEN));
        if !stream {
            assert_eq!(ledger.cost("up/model"), due(&upstream));
        }
    }
}

#[tokio::test]
async fn what_anybody_can_see_to_be_wrong_is_not_shown() {
    let upstream = Upstream::always(Script::words(2)).await;
    let gateway = Gateway::start(setup(&upstream, "min_confidence = 0")).await;
    for (text, flaw) in [("refused", "refusal"), ("nothing", "empty")] {
        for stream in [false, true] {
            let answer = gateway.client().post_json(CHAT, &ask(text, stream)).await;
            assert_eq!(said(&answer), words(2), "{flaw}, stream {stream}");
            assert!(why(&answer).contains(&format!(";cascade={flaw}")), "{flaw}: {}", why(&answer));
        }
    }
}

#[tokio::test]
async fn json_that_the_local_model_cannot_finish_is_finished_above() {
    let upstream = Upstream::always(Script::words(2)).await;
    let short = "max_output = 5\n";
    let gateway = Gateway::start(setup_with(&upstream, &script(), "min_confidence = 0", short)).await;
    let mut body = ask("easy", true);
    body["response_format"] = json!({"type": "json_object"});
    let answer = gateway.client().post_json(CHAT, &body).await;
    assert_eq!(said(&answer), words(2));
    assert!(why(&answer).contains(";cascade=form"), "{}", why(&answer));
}

#[tokio::test]
async fn a_streamed_call_is_held_until_it_can_be_checked() {
    let upstream = Upstream::always(Script::words(2)).await;
    // The name of the tool is there long after the tokens that are held of other answers; what follows is cut at the model's own limit.
    let call = "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}</tool_call>";
    let script = json!({"answers": {"call": call, "talk": "It rains."}});
    let limits = "hold_tokens = 4, min_confidence = 0";
    let gateway = Gateway::start(setup_with(&upstream, &script, limits, "max_output = 50\n")).await;
    let city = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let weather = json!({"type": "function", "function": {"name": "weather", "parameters": city}});
    let tools = async |text: &str| {
        let mut body = ask(text, true);
        body["tools"] = json!([weather]);
        gateway.client().post_json(CHAT, &body).await
    };
    let answer = tools("call").await;
    assert!(why(&answer).contains(";cascade=calls"), "{}", why(&answer));
    assert_eq!(said(&answer), words(2));
    let answer = tools("talk").await;
    assert!(why(&answer).contains(";cascade=fit"), "{}", why(&answer));
    assert_eq!(said(&answer), "It rains.");
}

#[tokio::test]
async fn a_doubtful_answer_is_better_than_none() {
    for stream in [false, true] {
        let upstream = Upstream::always(Script::status(503)).await;
        let gateway = Gateway::start(setup(&upstream, "hold_tokens = 4")).await;
        let answer = gateway.client().post_json(CHAT, &ask("hard", stream)).await;
        assert_eq!(said(&answer), "no idea really, perhaps this or that", "stream {stream}");
        assert_eq!(answer.header("x-tollkeeper-backend"), "home");
        assert!(why(&answer).contains(";cascade=unsure;confidence=0.0"), "{}", why(&answer));
        assert!(why(&answer).ends_with(";above=overloaded"), "{}", why(&answer));
        let metrics = gateway.metrics().await;
        let looked = |verdict| metrics.sum("tollkeeper_cascade_answers_total", &[("verdict", verdict)]);
        assert_eq!((looked("unsure"), looked("nobody_above")), (1.0, 1.0));
        assert_eq!(metrics.sum("tollkeeper_cascade_saved_usd_total", &[]), 0.0);
        let ledger = gateway.stop().await;
        let tokens = "no idea really, perhaps this or that".len() as i64 + 1;
        assert_eq!(ledger.total(), Usd(tokens * TOKEN), "stream {stream}: every token once");
    }
}

#[tokio::test]
async fn a_budget_that_cannot_pay_for_better_pays_for_the_doubtful_one() {
    let upstream = Upstream::start().await;
    let dear = "[prices.\"up/dear\"]\ninput = \"90000\"\noutput = \"90000\"\nabilities = [\"chat\"]\n\
        [[aliases]]\nname = \"rich\"\ntargets = [\"home\", \"up/dear\"]\ncascade = {}\n";
    let gateway = Gateway::start(setup(&upstream, "").raw(dear).budgets(&[("total", "0.1")])).await;
    let mut ask = ask("hard", false);
    ask["model"] = json!("rich");
    let answer = gateway.client().post_json(CHAT, &ask).await;
    assert_eq!(said(&answer), "no idea really, perhaps this or that");
    assert_eq!(answer.header("x-tollkeeper-degraded"), "budget");
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn an_answer_that_a_budget_cuts_is_shown_and_says_nothing_of_its_model() {
    let upstream = Upstream::start().await;
    let learning = "[learning]\non = true\nexplore = 0\nexplore_most = 0\n";
    let setup = setup(&upstream, "hold_tokens = 8").raw(learning).budgets(&[("total", "0.006")]);
    let gateway = Gateway::start(setup).await;
    let answer = gateway.client().post_json(CHAT, &ask("easy", false)).await;
    assert_eq!(said(&answer), LONG[..6], "{}", answer.text());
    assert!(why(&answer).contains(";cascade=unjudged"), "{}", why(&answer));
    let metrics = gateway.metrics().await;
    let looked = |verdict| metrics.sum("tollkeeper_cascade_answers_total", &[("verdict", verdict)]);
    assert_eq!((looked("fit"), looked("unjudged")), (0.0, 1.0));
    assert_eq!(metrics.sum("tollkeeper_learning_outcomes_total", &[]), 0.0);
    assert_eq!(gateway.stop().await.cost("home"), Usd(6 * TOKEN));
}

#[tokio::test]
async fn what_is_wasted_is_every_answer_that_is_given_up_and_all_of_the_wait_for_it() {
    for (above, shown) in [(Script::words(2), "up/model"), (Script::status(503), "larger")] {
        let upstream = Upstream::always(above).await;
        let mut slow = script();
        slow["step_millis"] = json!(20);
        let setup = setup_with(&upstream, &slow, "", "");
        let path = setup.path("local.json");
        let gateway = Gateway::start(setup.raw(&format!(
            "[[local.models]]\nname = \"larger\"\npath = {path:?}\nengine = \"scripted\"\nprice = {{ input = \"0\", output = \"2000\" }}\n\
             [[aliases]]\nname = \"three\"\nstrategy = \"pyramid\"\ntargets = [\"home\", \"larger\", \"up/model\"]\n\
             cascade = {{ hold_tokens = 1 }}\n"
        )))
        .await;
        eventually("the local models", async || {
            let metrics = gateway.metrics().await;
            let state = |name| metrics.sum("tollkeeper_backend_state", &[("backend", name)]);
            (state("home") + state("larger") == 0.0).then_some(())
        })
        .await;
        let mut body = ask("hard", true);
        body["model"] = json!("three");
        let answer = gateway.client().post_json(CHAT, &body).await;
        assert_eq!(answer.header("x-tollkeeper-backend"), shown, "{}", answer.text());
        let metrics = gateway.metrics().await;
        let wasted = |unit| metrics.sum(&format!("tollkeeper_cascade_wasted_{unit}_total"), &[("alias", "three")]);
        let (given_up, dollars) = if shown == "larger" { (1.0, 0.001) } else { (2.0, 0.003) };
        assert!((wasted("usd") - dollars).abs() < 1e-9, "{shown}: {}", wasted("usd"));
        // Its first token, which is all that was looked at, takes a step.
        assert!(wasted("seconds") >= given_up * 0.02, "{shown}: {}", wasted("seconds"));
    }
}

#[tokio::test]
async fn rate_limits_reckon_with_the_better_answer_while_it_runs() {
    let gate = Gate::default();
    let upstream = Upstream::always(Script::words(3).with_hold(Hold::Frames(gate.clone()))).await;
    let hasty = "[[agents]]\nname = \"hasty\"\nkey = \"tk-hasty\"\ntokens_per_minute = 6000\n";
    let clock = Clock::fixed(Arc::new(AtomicI64::new(1_772_625_600_000)));
    let gateway = Gateway::start_by(setup(&upstream, "hold_tokens = 4").raw(hasty), clock).await;
    let mut body = ask("hard", true);
    body["max_tokens"] = json!(400);
    gate.open(1);
    let open = gateway.client().key("tk-hasty").stream(CHAT, &body).await;
    let left =
        |headers: &HeaderMap| -> u64 { headers["x-ratelimit-remaining-tokens"].to_str().unwrap().parse().unwrap() };
    let running = left(&open.headers);
    assert!((5_000..=5_600).contains(&running), "{running}: the estimate holds");
    gate.open_wide();
    open.rest().await;
    gateway.settled().await;
    let bad = gateway.client().key("tk-hasty").post(CHAT, "{").await;
    let after: u64 = bad.header("x-ratelimit-remaining-tokens").parse().unwrap();
    assert!((5_700..6_000).contains(&after), "{after}: both answers as they were");
}

#[tokio::test]
async fn nothing_is_held_back_where_nobody_else_could_answer() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(setup(&upstream, "")).await;
    let local = gateway.client().header("x-tollkeeper-local-only", "true");
    let answer = local.post_json(CHAT, &ask("hard", true)).await;
    assert_eq!(said(&answer), "no idea really, perhaps this or that");
    assert!(!why(&answer).contains("cascade"), "{}", why(&answer));
    let mut several = ask("hard", true);
    several["n"] = json!(2);
    let answer = gateway.client().post_json(CHAT, &several).await;
    assert!(!why(&answer).contains("cascade"), "several answers at once are not compared: {}", why(&answer));
    assert!(upstream.received().is_empty());
}

#[tokio::test]
async fn an_engine_that_breaks_while_its_answer_is_held_back_is_a_fault_like_any_other() {
    let upstream = Upstream::always(Script::words(2)).await;
    let script = json!({"answers": {"easy": LONG}, "break_at": 6});
    let gateway = Gateway::start(setup_with(&upstream, &script, "hold_tokens = 100", "")).await;
    let answer = gateway.client().post_json(CHAT, &ask("easy", true)).await;
    assert_eq!(said(&answer), words(2));
    assert!(!why(&answer).contains("cascade"), "{}", why(&answer));
    let ledger = gateway.stop().await;
    assert_eq!(ledger.cost("home"), Usd(5 * TOKEN), "what it wrote before that costs the same as if it had been shown");
}

#[tokio::test]
async fn a_client_that_leaves_while_a_better_answer_is_awaited_pays_for_what_was_made_and_holds_nothing() {
    let gate = Gate::default();
    let held = Script { hold: Some(Hold::Head(gate.clone())), ..Script::says(Content::Words(3)) };
    let upstream = Upstream::always(held).await;
    let gateway = Gateway::start(setup(&upstream, "hold_tokens = 8")).await;
    let leaving = gateway.client();
    let waiting = tokio::spawn(async move { leaving.post_json(CHAT, &ask("hard", true)).await.status });
    upstream.wait_for_requests(1).await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    gateway.settled().await;
    gate.open_wide();
    eventually("a free slot", async || {
        let busy = gateway.metrics().await.sum("tollkeeper_local_slots_busy", &[("model", "home")]);
        (busy == 0.0).then_some(())
    })
    .await;
    let ledger = gateway.stop().await;
    assert_eq!(ledger.cost("home"), Usd(8 * TOKEN));
    assert_eq!(ledger.report.open, 0);
}

#[tokio::test]
async fn what_is_found_of_local_answers_teaches_the_pyramid() {
    let upstream = Upstream::always(Script::words(2)).await;
    // The local answers come from the lowest tier, and nothing is tried out.
    let learning = "[learning]\non = true\nexplore = 0\nexplore_most = 0\n";
    let gateway = Gateway::start(setup(&upstream, "hold_tokens = 4").raw(learning)).await;
    assert!(why(&gateway.client().post_json(CHAT, &ask("easy", false)).await).contains("cascade=fit"));
    let mut asked = 0;
    loop {
        asked += 1;
        assert!(asked < 60, "sixty answers that were given up move nothing");
        let answer = gateway.client().post_json(CHAT, &ask("hard", false)).await;
        assert_eq!(answer.header("x-tollkeeper-backend"), "up/model");
        if !why(&answer).contains("cascade=unsure") {
            assert!(why(&answer).contains(";learned"), "{}", why(&answer));
            break;
        }
    }
    let metrics = gateway.metrics().await;
    let counted = |source| metrics.sum("tollkeeper_learning_outcomes_total", &[("source", source)]);
    assert_eq!((counted("accepted"), counted("escalated")), (1.0, f64::from(asked - 1)));
}
