//! Requests, answers and refusals, with the scripted engine.

use crate::ask::{ask, begin, call, chat, completion, echo, embed, embedding, engines, message, model, read};
use futures_util::StreamExt;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_inference::{BackendHealth, Call};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, FinishReason, Part, ResponseFormat, Role, Tool, ToolChoice};
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::embedding::EmbeddingRequest;
use tollkeeper_protocol::event::ChatEvent;
use tollkeeper_protocol::fault::FaultKind;

/// A model that follows a script; the folder lives as long as the model must be loadable.
pub(crate) fn scripted(name: &str, script: &serde_json::Value) -> (LocalModel, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script.json");
    std::fs::write(&path, script.to_string()).unwrap();
    (model(name, EngineKind::Scripted, path), folder)
}

/// A model that never stops by itself, and the question that makes it so.
fn endless(name: &str) -> (LocalModel, tempfile::TempDir) {
    let (model, folder) = scripted(name, &json!({"answers": {"go": null}}));
    (LocalModel { context: 1_000_000, slots: 1, queue: 2, ..model }, folder)
}

fn tool() -> Tool {
    Tool { name: "weather".into(), description: None, parameters: None, strict: None }
}

#[tokio::test]
async fn a_chat_is_answered_and_counted() {
    let engines = engines([echo("m")]).await;
    let answer = ask(&engines, "m", Request::Chat(chat("héllo"))).await.unwrap();
    assert_eq!((answer.text(), answer.finishes[0]), ("héllo", Some(FinishReason::Stop)));
    assert_eq!(answer.usage.output, 7, "six bytes and the end");
    assert_eq!(engines.input_tokens("m", &Request::Chat(chat("héllo"))), Some(answer.usage.input));
    let again = ask(&engines, "m", Request::Chat(chat("héllo"))).await.unwrap();
    assert_eq!(again.usage.cached_input, again.usage.input - 1);
    assert!(engines.state("m").ttft.is_some());
}

#[tokio::test]
async fn answers_to_all_operations_count_what_was_promised() {
    let engines = engines([echo("m")]).await;
    let two = CompletionRequest {
        prompts: vec![Prompt::Text("ab".into()), Prompt::Tokens(vec![1, 2, 3])],
        ..completion("", 4)
    };
    let answer = ask(&engines, "m", Request::Completion(two.clone())).await.unwrap();
    assert_eq!(answer.texts, ["cdef", "defg"]);
    assert_eq!(answer.usage.input, 5);
    assert_eq!(engines.input_tokens("m", &Request::Completion(two)), Some(5));
    let request = embedding(&["abc", "d"]);
    assert_eq!(engines.input_tokens("m", &Request::Embedding(request.clone())), Some(4));
    let answer = embed(&engines, "m", request).await.unwrap();
    assert_eq!((answer.vectors.len(), answer.usage.input), (2, 4));
    for vector in &answer.vectors {
        let length: f32 = vector.iter().map(|number| number * number).sum();
        assert!((length - 1.0).abs() < 1e-5);
    }
}

#[tokio::test]
async fn echo_and_the_default_length_of_a_completion() {
    let engines = engines([echo("m")]).await;
    let request = CompletionRequest { echo: true, max_tokens: None, ..completion("ab", 0) };
    let answer = ask(&engines, "m", Request::Completion(request)).await.unwrap();
    assert_eq!(answer.text(), "abcdefghijklmnopqr");
    assert_eq!((answer.usage.output, answer.finishes[0]), (16, Some(FinishReason::Length)));
    let nothing =
        ask(&engines, "m", Request::Completion(CompletionRequest { echo: true, ..completion("ab", 0) })).await.unwrap();
    assert_eq!((nothing.text(), nothing.usage.input, nothing.usage.output), ("ab", 2, 0));
}

#[tokio::test]
async fn an_echo_with_log_probabilities_scores_the_prompt() {
    let engines = engines([echo("m")]).await;
    // After n tokens the engine expects the n-th letter (from 0) of the alphabet: "a" cannot be told, "b" is right, "x" is wrong. The
    // prompt is longer than what is scored at once.
    let prompt = format!("abx{}", &"defghijklmnopqrstuvwxyz".repeat(3));
    let request = |limit, n| CompletionRequest { echo: true, logprobs: Some(1), n, ..completion(&prompt, limit) };
    for (limit, n, said) in [(0, 1, ""), (2, 1, "uv"), (2, 3, "uv")] {
        let answer = ask(&engines, "m", Request::Completion(request(limit, n))).await.unwrap();
        for text in &answer.texts {
            assert_eq!(*text, format!("{prompt}{said}"));
        }
        assert_eq!((answer.texts.len(), answer.finishes[0]), (n as usize, Some(FinishReason::Length)));
        assert_eq!((answer.usage.input, answer.usage.cached_input), (72, 0));
        assert_eq!(answer.usage.output, u64::from(limit * n));
        let scored = &answer.logprobs;
        assert_eq!(scored.len(), n as usize * (72 + said.len()));
        if n == 1 {
            let text: String = scored.iter().map(|token| token.token.as_str()).collect();
            assert_eq!(text, answer.text());
            assert_eq!((scored[0].logprob, scored[0].top.len()), (None, 0));
            assert!(scored[1].logprob.unwrap() > -0.01 && scored[2].logprob.unwrap() < -20.0, "{scored:?}");
            assert_eq!(scored[2].top[0].0, "c");
        }
    }
}

#[tokio::test]
async fn limits_end_an_answer() {
    let (model, _folder) = scripted("m", &json!({"answers": {"go": null}}));
    let engines = engines([LocalModel { max_output: Some(20), ..model }]).await;
    let length = async |max_tokens, output_limit| {
        let request = Request::Chat(ChatRequest { max_tokens, ..chat("go") });
        let answer = read(begin(&engines, "m", Call { output_limit, ..call(request) }).await.unwrap()).await;
        assert_eq!(answer.finishes[0], Some(FinishReason::Length));
        answer.usage.output
    };
    assert_eq!(length(None, None).await, 20, "the model's own limit");
    assert_eq!(length(Some(50), None).await, 50, "the client may ask for more");
    assert_eq!(length(Some(50), Some(7)).await, 7, "the caller's limit is the last word");
    let prompt = engines.input_tokens("m", &Request::Chat(chat("go"))).unwrap();
    assert_eq!(length(Some(5000), None).await, 256 - prompt, "the context");
}

#[tokio::test]
async fn stop_texts_and_several_answers() {
    let engines = engines([echo("m")]).await;
    let request = ChatRequest { stop: vec!["lo w".into()], n: 3, ..chat("hello world") };
    let answer = ask(&engines, "m", Request::Chat(request)).await.unwrap();
    assert_eq!(answer.texts, ["hel"; 3]);
    assert_eq!(answer.finishes, [Some(FinishReason::Stop); 3]);
    assert_eq!(answer.usage.output, 21);
}

#[tokio::test]
async fn tool_calls_are_events_only_when_tools_were_offered() {
    let text = "Let me see.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>";
    let (model, _folder) = scripted("m", &json!({"otherwise": text}));
    let engines = engines([LocalModel { context: 1024, ..model }]).await;
    let offered = ChatRequest { tools: vec![tool()], ..chat("?") };
    let answer = ask(&engines, "m", Request::Chat(offered.clone())).await.unwrap();
    assert_eq!((answer.text(), answer.finishes[0]), ("Let me see.", Some(FinishReason::ToolCalls)));
    assert_eq!(answer.calls, [("weather".to_owned(), "{\"city\": \"Oslo\"}".to_owned())]);
    for request in [chat("?"), ChatRequest { tool_choice: ToolChoice::None, ..offered }] {
        let answer = ask(&engines, "m", Request::Chat(request)).await.unwrap();
        assert_eq!((answer.text(), answer.finishes[0]), (text, Some(FinishReason::Stop)));
    }
}

#[tokio::test]
async fn what_the_answer_must_be_is_stronger_than_what_the_model_says() {
    let (model, _folder) = scripted(
        "m",
        &json!({"otherwise": "{\"sky\": \"blue\"}", "answers": {"call": "<tool_call>{\"name\": \"weather\", \"arguments\": {}}</tool_call>"}}),
    );
    let engines = engines([LocalModel { context: 2048, ..model }]).await;
    let free = ChatRequest { response_format: ResponseFormat::JsonObject, ..chat("?") };
    let answer = ask(&engines, "m", Request::Chat(free.clone())).await.unwrap();
    assert_eq!(answer.text(), "{\"sky\": \"blue\"}");
    let choice = json!({"guided_choice": ["{\"sky\": \"red\"}"]}).as_object().unwrap().clone();
    let answer = ask(&engines, "m", Request::Chat(ChatRequest { extra: choice, ..chat("?") })).await.unwrap();
    assert_eq!(answer.text(), "{\"sky\": \"red\"}", "the model goes along as far as it may");
    let tools = ChatRequest { tools: vec![tool()], tool_choice: ToolChoice::Required, ..chat("call") };
    let answer = ask(&engines, "m", Request::Chat(tools.clone())).await.unwrap();
    assert_eq!((answer.calls.len(), answer.finishes[0]), (1, Some(FinishReason::ToolCalls)));
    let both = ChatRequest { tool_choice: ToolChoice::Auto, ..tools };
    for question in ["call", "?"] {
        let request = ChatRequest { response_format: ResponseFormat::JsonObject, ..both.clone() };
        let request = ChatRequest { messages: chat(question).messages, ..request };
        let answer = ask(&engines, "m", Request::Chat(request)).await.unwrap();
        assert_eq!(
            (answer.calls.len(), answer.text().is_empty()),
            if question == "call" { (1, true) } else { (0, false) }
        );
    }
}

#[tokio::test]
async fn what_the_engine_cannot_do_is_refused_in_clear_words() {
    let engines = engines([LocalModel { context: 2048, ..echo("m") }]).await;
    let tools = ChatRequest { tools: vec![tool()], ..chat("x") };
    let image = ChatRequest {
        messages: vec![tollkeeper_protocol::chat::Message {
            content: vec![Part::Image("data:".into())],
            ..message(Role::User, "")
        }],
        ..chat("")
    };
    let bias = tollkeeper_protocol::chat::Sampling { logit_bias: vec![(99_999, 1.0)], ..Default::default() };
    let table: Vec<(Request, FaultKind, &str)> = vec![
        (
            Request::Chat(ChatRequest { tool_choice: ToolChoice::Named("news".into()), ..tools }),
            FaultKind::BadRequest,
            "`news`, which is not among the `tools`",
        ),
        (Request::Chat(image), FaultKind::BadRequest, "cannot see"),
        (Request::Chat(ChatRequest { sampling: bias, ..chat("x") }), FaultKind::BadRequest, "logit_bias"),
        (Request::Chat(ChatRequest { n: 13, ..chat("x") }), FaultKind::BadRequest, "13 answers"),
        (Request::Chat(chat(&"x".repeat(5000))), FaultKind::ContextLength, "5019 tokens"),
        (
            Request::Completion(CompletionRequest { suffix: Some("x".into()), ..completion("x", 1) }),
            FaultKind::BadRequest,
            "suffix",
        ),
        (Request::Completion(completion("", 1)), FaultKind::BadRequest, "empty"),
        (
            Request::Completion(CompletionRequest { prompts: vec![Prompt::Tokens(vec![258])], ..completion("", 1) }),
            FaultKind::BadRequest,
            "258 tokens",
        ),
        (Request::Embedding(embedding(&[""])), FaultKind::BadRequest, "empty"),
        (Request::Embedding(embedding(&[&"x".repeat(5000)])), FaultKind::ContextLength, "5000 tokens"),
        (
            Request::Embedding(EmbeddingRequest { dimensions: Some(9), ..embedding(&["x"]) }),
            FaultKind::BadRequest,
            "from 1 to 8",
        ),
    ];
    for (request, kind, words) in table {
        let fault = engines.send("m", call(request.clone())).await.expect_err(words);
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(fault.message.contains(words), "{fault}");
    }
    assert_eq!(ask(&engines, "m", Request::Chat(chat("still here"))).await.unwrap().text(), "still here");
    assert_eq!((engines.state("m").in_flight, engines.state("m").waiting), (0, 0));
}

#[tokio::test]
async fn how_sure_the_model_was_is_told_of_so_many_first_tokens() {
    let engines = engines([echo("m")]).await;
    for (measured, told) in [(0, 0), (3, 3), (99, 6)] {
        let call = Call { measured, ..call(Request::Chat(chat("hello"))) };
        let events: Vec<_> = begin(&engines, "m", call).await.unwrap().map(Result::unwrap).collect().await;
        let sure =
            |event: &ChatEvent| matches!(event, ChatEvent::Certainty { choice: 0, logprob, .. } if *logprob > -1e-6);
        assert_eq!(events.iter().filter(|event| sure(event)).count(), told, "{measured}: the end is a token too");
        assert!(told == 0 || sure(&events[0]), "each stands in front of its token: {events:?}");
    }
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_time_to_wait_and_has_room_again_when_clients_leave() {
    let (model, _folder) = endless("m");
    let engines = engines([model]).await;
    let first = begin(&engines, "m", call(Request::Chat(chat("go")))).await.unwrap();
    let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(engines.send("m", call(Request::Chat(chat("go")))))).collect();
    for wait in &mut waiting {
        assert!(futures_util::poll!(wait.as_mut()).is_pending());
    }
    let fault = engines.send("m", call(Request::Chat(chat("x")))).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Overloaded);
    assert!(fault.retry_after.unwrap() >= Duration::from_secs(1));
    assert_eq!(engines.state("m").waiting + engines.state("m").in_flight, 3);
    waiting.clear();
    drop(first);
    while engines.state("m").waiting + engines.state("m").in_flight > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(ask(&engines, "m", Request::Chat(chat("x"))).await.unwrap().text(), "x");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_nobody_up() {
    let (model, _folder) = endless("m");
    let engines = engines([LocalModel { slots: 2, ..model }]).await;
    let mut asleep = begin(&engines, "m", call(Request::Chat(chat("go")))).await.unwrap();
    for number in 0..20 {
        let text = format!("message {number}");
        assert_eq!(ask(&engines, "m", Request::Chat(chat(&text))).await.unwrap().text(), text);
    }
    let mut read = String::new();
    while read.len() < 2000 {
        if let Some(Ok(tollkeeper_protocol::event::ChatEvent::Text { text, .. })) = asleep.next().await {
            read.push_str(&text);
        }
    }
    let expected: String = ('a'..='z').cycle().take(2000).collect();
    assert_eq!(read[..2000], expected, "nothing is lost by the pause");
}

#[tokio::test]
async fn a_deadline_in_the_past_is_a_timeout() {
    let engines = engines([echo("m")]).await;
    let late = Call { deadline: Instant::now(), ..call(Request::Chat(chat("x"))) };
    assert_eq!(engines.send("m", late).await.unwrap_err().kind, FaultKind::Timeout);
}

#[tokio::test]
async fn a_running_answer_ends_at_its_deadline() {
    let (model, _folder) = endless("m");
    let engines = engines([model]).await;
    let soon = Call { deadline: Instant::now() + Duration::from_millis(50), ..call(Request::Chat(chat("go"))) };
    let answer = read(begin(&engines, "m", soon).await.unwrap()).await;
    assert_eq!(answer.fault.unwrap().kind, FaultKind::Timeout);
}

#[tokio::test]
async fn a_crash_costs_the_running_answer_and_the_engine_comes_back() {
    for how in ["break_at", "panic_at"] {
        let (model, _folder) = scripted("m", &json!({how: 5}));
        let engines = engines([LocalModel { slots: 1, ..model }]).await;
        let running = begin(&engines, "m", call(Request::Chat(chat("a long message")))).await.unwrap();
        let short = ask(&engines, "m", Request::Chat(chat("ok"))).await.unwrap();
        assert_eq!(short.text(), "ok", "{how}: it waited through the crash");
        let fault = read(running).await.fault.unwrap();
        assert_eq!(fault.kind, FaultKind::Internal);
        assert!(fault.message.contains("the script says so"), "{how}: {fault}");
        assert_eq!(engines.state("m").health, BackendHealth::Ready);
    }
}

#[tokio::test]
async fn an_engine_that_crashes_again_and_again_is_given_up() {
    let (model, _folder) = scripted("m", &json!({"break_at": 1}));
    let engines = engines([model]).await;
    for _ in 0..3 {
        let fault = engines.send("m", call(Request::Chat(chat("x")))).await.unwrap_err();
        assert_eq!(fault.kind, FaultKind::Internal);
    }
    let fault = engines.send("m", call(Request::Chat(chat("x")))).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unavailable);
    assert!(fault.message.contains("its engine crashed"), "{fault}");
    assert!(matches!(engines.state("m").health, BackendHealth::Unavailable(_)));
}

#[tokio::test]
async fn a_shutdown_breaks_off_answers_and_ends_the_threads() {
    let (model, _folder) = endless("m");
    let engines = engines([model]).await;
    let running = begin(&engines, "m", call(Request::Chat(chat("go")))).await.unwrap();
    engines.shutdown().await;
    assert!(read(running).await.fault.is_some());
    assert!(engines.send("m", call(Request::Chat(chat("x")))).await.is_err());
    assert!(engines.names().is_empty());
}

#[tokio::test]
async fn dropping_the_engines_ends_their_threads_too() {
    let (model, _folder) = endless("m");
    let engines: LocalEngines = engines([model]).await;
    let running = begin(&engines, "m", call(Request::Chat(chat("go")))).await.unwrap();
    drop(engines);
    assert!(read(running).await.fault.is_some());
}
