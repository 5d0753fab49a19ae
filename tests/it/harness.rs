//! The harness tests itself: the scripted upstream speaks the wire format it claims, keeps true books and notices who leaves.

use serde_json::{Value, json};
use tollkeeper_protocol::usage::Usage;
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::upstream::{
    ARGUMENTS, Content, End, Fault, Framing, Gate, Hold, Script, ToolForm, Upstream, UsageRule, Vendor, word,
};

fn ask(stream: bool) -> Value {
    json!({"model": "plain", "messages": [{"role": "user", "content": "12345678"}], "stream": stream,
        "stream_options": {"include_usage": true}})
}

async fn chat(script: Script, stream: bool) -> (Answer, Upstream) {
    let upstream = Upstream::always(script).await;
    let answer = Client::new(upstream.addr()).post_json("/v1/chat/completions", &ask(stream)).await;
    (answer, upstream)
}

/// The words of all chunks.
fn text(events: &[String]) -> String {
    let chunks = events.iter().filter_map(|data| serde_json::from_str::<Value>(data).ok());
    chunks.filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned())).collect()
}

fn five_words() -> String {
    (0..5).map(word).collect()
}

#[tokio::test]
async fn a_plain_answer_counts_its_tokens() {
    let (answer, upstream) = chat(Script::default(), false).await;
    assert_eq!(answer.json()["choices"][0]["message"]["content"], five_words());
    assert_eq!(answer.json()["usage"]["prompt_tokens"], 2);
    assert_eq!(upstream.billed(), Usage { input: 2, output: 5, ..Usage::default() });
    assert_eq!(upstream.only().json(), ask(false));
    assert_eq!(upstream.served()[0].end, End::Complete);
}

#[tokio::test]
async fn every_framing_says_the_same() {
    for framing in [
        Framing::Plain,
        Framing::CrLf,
        Framing::Comments,
        Framing::Fields,
        Framing::MultiLine,
        Framing::CutEvery(1),
        Framing::CutEvery(7),
        Framing::OneWrite,
    ] {
        let (answer, upstream) = chat(Script::default().with_framing(framing), true).await;
        let events = answer.events();
        assert_eq!(text(&events), five_words(), "{framing:?}");
        assert_eq!(events.last().unwrap(), "[DONE]", "{framing:?}");
        let usage: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
        assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(5)), "{framing:?}");
        assert_eq!(upstream.served()[0].tokens_sent, 5, "{framing:?}");
    }
}

#[tokio::test]
async fn vendors_report_usage_in_their_own_places() {
    for (vendor, place) in
        [(Vendor::DeepSeek, "/usage/completion_tokens"), (Vendor::Groq, "/x_groq/usage/completion_tokens")]
    {
        let upstream = Upstream::always(Script::default().with_vendor(vendor)).await;
        let ask = json!({"model": "m", "messages": [], "stream": true});
        let answer = Client::new(upstream.addr()).post_json("/v1/chat/completions", &ask).await;
        let events = answer.events();
        let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], "stop");
        assert_eq!(last.pointer(place), Some(&json!(5)), "{vendor:?}");
        assert!(upstream.served()[0].reported);
    }
    let (answer, _upstream) = chat(Script::default().with_vendor(Vendor::Azure), true).await;
    assert!(answer.events()[0].contains("prompt_filter_results"));
}

#[tokio::test]
async fn usage_can_be_missing_or_zero() {
    let (answer, upstream) = chat(Script::default().with_usage(UsageRule::Missing), true).await;
    assert!(!answer.text().contains("prompt_tokens"));
    assert!(!upstream.served()[0].reported);
    let (answer, _upstream) = chat(Script::default().with_usage(UsageRule::Zero), true).await;
    assert!(answer.text().contains("\"completion_tokens\":0"));
}

#[tokio::test]
async fn tool_calls_come_in_every_broken_form() {
    let gather = |events: &[String], index: i64| -> String {
        let chunks = events.iter().filter_map(|data| serde_json::from_str::<Value>(data).ok());
        let calls =
            chunks.flat_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array().cloned().unwrap_or_default());
        let mine = calls.filter(|call| call.get("index").is_none_or(|own| own == index));
        mine.map(|call| call["function"]["arguments"].as_str().unwrap().to_owned()).collect()
    };
    let forms = [
        ToolForm::One,
        ToolForm::NoId,
        ToolForm::NoIndex,
        ToolForm::NoName,
        ToolForm::ArgumentsAtEnd,
        ToolForm::Interleaved,
    ];
    for form in forms {
        let (answer, _upstream) = chat(Script::says(Content::Tools(form)), true).await;
        assert_eq!(gather(&answer.events(), 0), ARGUMENTS[0], "{form:?}");
        let id = answer.text().contains("call_0");
        assert_eq!(id, form != ToolForm::NoId, "{form:?}");
    }
    let (answer, _upstream) = chat(Script::says(Content::Tools(ToolForm::Interleaved)), true).await;
    assert_eq!(gather(&answer.events(), 1), ARGUMENTS[1]);
    let (answer, _upstream) = chat(Script::says(Content::Tools(ToolForm::NegativeIndex)), true).await;
    assert_eq!(gather(&answer.events(), -1), ARGUMENTS[0]);
}

#[tokio::test]
async fn faults_happen_where_they_are_told_to() {
    let (answer, upstream) = chat(Script::fault(Fault::DieAfter(3)), true).await;
    assert_eq!(text(&answer.events()), word(0) + &word(1));
    assert_eq!(upstream.served()[0].end, End::Broken);

    let (answer, _upstream) = chat(Script::fault(Fault::ErrorFirst), true).await;
    assert_eq!(answer.status, 200);
    assert!(answer.events()[0].starts_with("{  \"error\""), "{}", answer.text());
    assert!(!answer.text().contains("[DONE]"));

    let (answer, _upstream) = chat(Script::fault(Fault::BadLineAfter(2)), true).await;
    assert_eq!(
        answer.events().iter().filter(|data| serde_json::from_str::<Value>(data).is_err()).count(),
        2,
        "the bad line and [DONE]"
    );

    for fault in [Fault::CloseBeforeHead, Fault::CloseBeforeFirstFrame] {
        let upstream = Upstream::always(Script::fault(fault.clone())).await;
        let opened = Client::new(upstream.addr())
            .try_open(http::Method::POST, "/v1/chat/completions", ask(true).to_string())
            .await;
        match opened {
            Ok(open) => assert!(fault == Fault::CloseBeforeFirstFrame && open.rest().await.body.is_empty()),
            Err(_) => assert_eq!(fault, Fault::CloseBeforeHead),
        }
    }
    assert!(Client::new(Upstream::refusing().await).try_open(http::Method::GET, "/", "").await.is_err());
}

#[tokio::test]
async fn the_upstream_notices_a_client_that_leaves() {
    let upstream = Upstream::always(Script::fault(Fault::StallAfter(3))).await;
    let mut open = Client::new(upstream.addr()).stream("/v1/chat/completions", &ask(true)).await;
    for _ in 0..3 {
        open.next_event().await.unwrap().unwrap();
    }
    assert_eq!(upstream.served()[0].end, End::Open);
    drop(open);
    upstream.wait_for_disconnect().await;
    assert_eq!(upstream.served()[0].tokens_sent, 2);
}

#[tokio::test]
async fn a_gate_lets_frames_through_one_by_one() {
    let gate = Gate::default();
    let upstream = Upstream::always(Script::default().with_hold(Hold::Frames(gate.clone()))).await;
    let mut open = Client::new(upstream.addr()).stream("/v1/chat/completions", &ask(true)).await;
    gate.open(2);
    open.next_event().await.unwrap().unwrap();
    open.next_event().await.unwrap().unwrap();
    assert_eq!(upstream.served()[0].tokens_sent, 1);
    gate.open_wide();
    assert_eq!(open.rest().await.events().last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn limits_are_kept_as_a_provider_keeps_them() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let mut ask = ask(true);
    ask["max_completion_tokens"] = json!(7);
    ask["n"] = json!(2);
    let answer = Client::new(upstream.addr()).post_json("/v1/chat/completions", &ask).await;
    assert!(answer.text().contains("\"finish_reason\":\"length\""));
    assert_eq!(upstream.billed(), Usage { input: 2, output: 14, ..Usage::default() });
}

#[tokio::test]
async fn embeddings_come_as_numbers_and_as_base64() {
    let upstream = Upstream::start().await;
    let client = Client::new(upstream.addr());
    let answer = client
        .post_json("/v1/embeddings", &json!({"model": "e", "input": ["abcd", "efgh"], "dimensions": 2}))
        .await
        .json();
    assert_eq!(answer["data"][1]["embedding"], json!([0.25, 0.375]));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 2, "total_tokens": 2}));
    let answer = client
        .post_json("/v1/embeddings", &json!({"model": "e", "input": "a", "encoding_format": "base64"}))
        .await
        .json();
    assert_eq!(answer["data"][0]["embedding"].as_str().unwrap().len(), 44);
}

#[tokio::test]
async fn named_scripts_play_by_the_model_name() {
    let upstream = Upstream::by_model_name().await;
    let client = Client::new(upstream.addr());
    let mut ask = ask(false);
    for (name, status) in [("plain", 200), ("up/expired-key", 401), ("rate-limited", 429), ("anything", 200)] {
        ask["model"] = json!(name);
        assert_eq!(client.post_json("/v1/chat/completions", &ask).await.status, status, "{name}");
    }
    assert_eq!(client.get("/_count").await.json()["requests"][2]["status"], 429);
    assert_eq!(client.get("/nowhere").await.status, 404);
}
