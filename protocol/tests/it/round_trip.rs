//! What we write, we read back: streams and whole answers.

use crate::frames;
use base64::Engine as _;
use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};
use tollkeeper_protocol::Operation;
use tollkeeper_protocol::chat::{ChatResponse, Choice, FinishReason, ToolCall};
use tollkeeper_protocol::embedding::{EmbeddingResponse, Encoding};
use tollkeeper_protocol::event::{ChatEvent, TokenLogprob, fold};
use tollkeeper_protocol::openai::{
    AnswerMeta, ErrorBody, Extension, StreamDecoder, StreamEncoder, decode_answer, encode_chat, encode_completion,
    encode_embeddings,
};
use tollkeeper_protocol::passthrough::{is_done, peek_body, peek_chunk};
use tollkeeper_protocol::usage::Usage;

fn meta() -> AnswerMeta {
    AnswerMeta { id: "chatcmpl-\"1\"".into(), created: 1_760_000_000, model: "local/fäst".into() }
}

fn extension() -> Extension {
    Extension { backend: "toll-tiny".into(), cost_usd: "0.000000001".into(), stopped: None }
}

/// The JSON of each chunk of a stream that must end in `[DONE]`.
fn written(op: Operation, events: &[ChatEvent], include_usage: bool, extension: Option<&Extension>) -> Vec<Value> {
    let mut encoder = StreamEncoder::new(op, meta(), include_usage);
    let mut out = BytesMut::new();
    events.iter().for_each(|event| encoder.encode(event, &mut out));
    encoder.finish(extension, &mut out);
    let frames = frames(&out);
    let (last, chunks) = frames.split_last().unwrap();
    assert!(is_done(&last.data));
    chunks.iter().map(|frame| serde_json::from_slice(&frame.data).unwrap()).collect()
}

fn text(choice: u32, text: &str) -> ChatEvent {
    ChatEvent::Text { choice, text: text.into(), tokens: 1, logprobs: Vec::new() }
}

#[test]
fn a_chat_stream_is_written_as_openai_does() {
    let usage = Usage { input: 9, cached_input: 4, output: 3, reasoning: 1, ..Usage::default() };
    let events = [
        ChatEvent::Reasoning { choice: 0, text: "hm".into(), tokens: 1 },
        text(0, ""),
        text(0, "a\n\u{1}"),
        ChatEvent::Finish { choice: 0, reason: FinishReason::Stop },
        ChatEvent::Usage(usage),
    ];
    let chunk = |choices: Value| json!({"id": "chatcmpl-\"1\"", "object": "chat.completion.chunk", "created": 1_760_000_000, "model": "local/fäst", "choices": choices});
    let choice = |delta: Value, finish: Value| {
        chunk(json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]))
    };
    let expected = [
        choice(json!({"role": "assistant", "content": ""}), Value::Null),
        choice(json!({"reasoning_content": "hm"}), Value::Null),
        choice(json!({"content": "a\n\u{1}"}), Value::Null),
        choice(json!({}), json!("stop")),
    ];
    assert_eq!(written(Operation::Chat, &events, false, Some(&extension())), expected);

    let mut with_usage = expected.to_vec();
    with_usage.iter_mut().for_each(|chunk| chunk["usage"] = Value::Null);
    let mut last = chunk(json!([]));
    last["usage"] = json!({"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 1}, "cost_usd": "0.000000001"});
    last["tollkeeper"] = json!({"backend": "toll-tiny", "cost_usd": "0.000000001"});
    with_usage.push(last);
    assert_eq!(written(Operation::Chat, &events, true, Some(&extension())), with_usage);
}

#[test]
fn calls_and_several_choices_begin_with_their_role() {
    let part = |id: Option<&str>, arguments: &str| ChatEvent::ToolCall {
        choice: 1,
        index: 0,
        id: id.map(Into::into),
        name: id.map(|_| "f".into()),
        arguments: arguments.into(),
        tokens: 1,
    };
    let chunks = written(Operation::Chat, &[part(Some("c"), ""), text(0, "x"), part(None, "{}")], false, None);
    let deltas: Vec<(u64, &Value)> = chunks
        .iter()
        .map(|chunk| (chunk["choices"][0]["index"].as_u64().unwrap(), &chunk["choices"][0]["delta"]))
        .collect();
    assert_eq!(
        deltas,
        [
            (1, &json!({"role": "assistant", "content": null})),
            (
                1,
                &json!({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]})
            ),
            (0, &json!({"role": "assistant", "content": ""})),
            (0, &json!({"content": "x"})),
            (1, &json!({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})),
        ]
    );
}

fn logprob(token: &str, logprob: f32) -> TokenLogprob {
    let top =
        vec![(token.to_owned(), token.as_bytes().to_vec(), logprob), ("no".into(), b"no".to_vec(), f32::NEG_INFINITY)];
    TokenLogprob { token: token.into(), bytes: token.as_bytes().to_vec(), logprob: Some(logprob), top }
}

#[test]
fn logprobs_have_the_form_of_their_operation() {
    let event = |token: &str| ChatEvent::Text {
        choice: 0,
        text: token.into(),
        tokens: 1,
        logprobs: vec![logprob(token, -0.5)],
    };
    let chat = written(Operation::Chat, &[event("é")], false, None);
    assert_eq!(
        chat[1]["choices"][0]["logprobs"],
        json!({"content": [{"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
        {"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "no", "logprob": -9999.0, "bytes": [110, 111]}]}], "refusal": null})
    );
    let text = written(Operation::TextCompletion, &[event("é"), event("b")], false, None);
    assert_eq!(
        text[1]["choices"][0]["logprobs"],
        json!({"tokens": ["b"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -0.5, "no": -9999.0}],
        "text_offset": [1]})
    );
    // The first token of an echoed prompt follows nothing.
    let first = TokenLogprob { logprob: None, top: Vec::new(), ..logprob("a", 0.0) };
    let echo = [first, logprob("b", -0.5)];
    let event = ChatEvent::Text { choice: 0, text: "ab".into(), tokens: 0, logprobs: echo.into() };
    assert_eq!(
        written(Operation::TextCompletion, &[event], false, None)[0]["choices"][0]["logprobs"],
        json!({"tokens": ["a", "b"], "token_logprobs": [null, -0.5], "top_logprobs": [null, {"b": -0.5, "no": -9999.0}],
        "text_offset": [0, 1]})
    );
    assert_eq!(text[0]["object"], "text_completion");
    assert_eq!(
        text[0]["choices"][0],
        json!({"text": "é", "index": 0, "logprobs": text[0]["choices"][0]["logprobs"], "finish_reason": null})
    );
}

#[test]
fn an_error_ends_a_stream_without_done() {
    let body = ErrorBody { message: "m".into(), r#type: "server_error".into(), code: None, param: None, budget: None };
    let mut encoder = StreamEncoder::new(Operation::Chat, meta(), true);
    let mut out = BytesMut::new();
    encoder.error(&body, &mut out);
    assert_eq!(out, "data: {\"error\":{\"message\":\"m\",\"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n");
    assert!(peek_chunk(&frames(&out)[0].data).unwrap().error.is_some());
}

#[test]
fn whole_answers_have_openais_shape() {
    let call = ToolCall { id: "c".into(), name: "f".into(), arguments: "{}".into() };
    let choices = vec![
        Choice { tool_calls: vec![call], finish: Some(FinishReason::ToolCalls), ..Choice::default() },
        Choice { text: "t".into(), reasoning: "r".into(), ..Choice::default() },
    ];
    let answer = ChatResponse { choices, usage: Some(Usage { input: 1, cache_write: 1, ..Usage::default() }) };
    let body: Value = serde_json::from_slice(&encode_chat(&meta(), &answer, Some(&extension()))).unwrap();
    assert_eq!(
        body,
        json!({"id": "chatcmpl-\"1\"", "object": "chat.completion", "created": 1_760_000_000, "model": "local/fäst", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}, "logprobs": null, "finish_reason": "tool_calls"},
        {"index": 1, "message": {"role": "assistant", "content": "t", "refusal": null, "reasoning_content": "r"}, "logprobs": null, "finish_reason": null}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 0}, "cost_usd": "0.000000001"},
        "tollkeeper": {"backend": "toll-tiny", "cost_usd": "0.000000001"}})
    );

    let body: Value = serde_json::from_slice(&encode_completion(&meta(), &answer, None)).unwrap();
    assert_eq!(body["choices"][1], json!({"text": "t", "index": 1, "logprobs": null, "finish_reason": null}));
    assert_eq!((&body["object"], body.get("tollkeeper")), (&json!("text_completion"), None));
}

#[test]
fn embeddings_are_numbers_or_base64() {
    let vectors = vec![vec![0.1, -2.0, f32::MIN_POSITIVE], vec![]];
    let answer = EmbeddingResponse { vectors: vectors.clone(), usage: Usage { input: 5, ..Usage::default() } };
    let float: Value =
        serde_json::from_slice(&encode_embeddings(&meta(), &answer, Encoding::Float, Some(&extension()))).unwrap();
    assert_eq!(float["usage"], json!({"prompt_tokens": 5, "total_tokens": 5, "cost_usd": "0.000000001"}));
    assert_eq!(
        (&float["object"], &float["data"][1]["index"], &float["model"]),
        (&json!("list"), &json!(1), &json!("local/fäst"))
    );
    let numbers =
        float["data"][0]["embedding"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32);
    assert_eq!(numbers.collect::<Vec<f32>>(), vectors[0]);

    let base64: Value = serde_json::from_slice(&encode_embeddings(&meta(), &answer, Encoding::Base64, None)).unwrap();
    let bytes =
        base64::engine::general_purpose::STANDARD.decode(base64["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let numbers = bytes.chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    assert_eq!(numbers.collect::<Vec<f32>>(), vectors[0]);
    assert_eq!(base64["data"][1]["embedding"], "");
}

fn event() -> impl Strategy<Value = ChatEvent> {
    let choice = || 0u32..3;
    let logprobs =
        prop::collection::vec(("\\PC{1,3}", -50f32..0.0).prop_map(|(token, value)| logprob(&token, value)), 0..2);
    prop_oneof![
        4 => (choice(), any::<String>(), logprobs)
            .prop_map(|(choice, text, logprobs)| ChatEvent::Text { choice, text, tokens: 1, logprobs }),
        2 => (choice(), any::<String>()).prop_map(|(choice, text)| ChatEvent::Reasoning { choice, text, tokens: 1 }),
        3 => (choice(), 0u32..3, "[a-z]{1,4}", any::<String>()).prop_map(|(choice, index, name, arguments)| {
            let id = Some(format!("call-{choice}-{index}"));
            ChatEvent::ToolCall { choice, index, id, name: Some(name), arguments, tokens: 1 }
        }),
    ]
}

/// A complete stream: each call's id and name come with its first part, its index counts from 0, each choice has its end.
fn stream() -> impl Strategy<Value = Vec<ChatEvent>> {
    (prop::collection::vec(event(), 0..24), 0u64..1000, 0u64..1000).prop_map(|(mut events, input, output)| {
        let mut seen: Vec<Vec<u32>> = vec![Vec::new(); 3];
        for event in &mut events {
            if let ChatEvent::ToolCall { choice, index, id, name, .. } = event {
                let seen = &mut seen[*choice as usize];
                match seen.iter().position(|known| known == index) {
                    Some(place) => (*index, *id, *name) = (place as u32, None, None),
                    None => {
                        seen.push(*index);
                        *index = seen.len() as u32 - 1;
                    }
                }
            }
        }
        let reason =
            |choice: u32| if seen[choice as usize].is_empty() { FinishReason::Length } else { FinishReason::ToolCalls };
        events.extend((0..3).map(|choice| ChatEvent::Finish { choice, reason: reason(choice) }));
        let reasoning = output.min(7);
        events.push(ChatEvent::Usage(Usage {
            input,
            cached_input: input / 2,
            cache_write: input / 4,
            output,
            reasoning,
            ..Usage::default()
        }));
        events
    })
}

proptest! {
    #[test]
    fn an_encoded_stream_folds_to_the_same_answer(events in stream()) {
        let mut encoder = StreamEncoder::new(Operation::Chat, meta(), true);
        let mut out = BytesMut::new();
        events.iter().for_each(|event| encoder.encode(event, &mut out));
        encoder.finish(Some(&extension()), &mut out);
        let mut decoder = StreamDecoder::default();
        let mut decoded = Vec::new();
        let mut text_bytes = 0;
        for frame in frames(&out).iter().filter(|frame| !is_done(&frame.data)) {
            text_bytes += peek_chunk(&frame.data).unwrap().text_bytes;
            decoder.decode(&frame.data, &mut decoded).unwrap();
        }
        let said: usize = events.iter().map(|event| match event {
            ChatEvent::Text { text, .. } | ChatEvent::Reasoning { text, .. } => text.len(),
            ChatEvent::ToolCall { name, arguments, .. } => name.as_ref().map_or(0, String::len) + arguments.len(),
            _ => 0,
        }).sum();
        prop_assert_eq!(text_bytes, said);
        prop_assert_eq!(fold(decoded), finite(fold(events)));
    }

    #[test]
    fn an_encoded_answer_decodes_to_itself(events in stream()) {
        let answer = fold(events);
        let body = encode_chat(&meta(), &answer, Some(&extension()));
        prop_assert_eq!(peek_body(&body).unwrap().usage, answer.usage);
        prop_assert_eq!(decode_answer(&body).unwrap(), finite(answer));
    }
}

/// JSON has no infinities: what cannot be is written as -9999.
fn finite(mut answer: ChatResponse) -> ChatResponse {
    let logprobs = answer.choices.iter_mut().flat_map(|choice| &mut choice.logprobs);
    logprobs.flat_map(|token| &mut token.top).for_each(|top| top.2 = top.2.max(-9999.0));
    answer
}
