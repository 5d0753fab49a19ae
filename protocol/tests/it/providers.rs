//! Streams in the form of each provider, peeked and decoded.

use crate::frames;
use bytes::Bytes;
use tollkeeper_protocol::chat::FinishReason::{self, Length, Stop, ToolCalls};
use tollkeeper_protocol::chat::{Choice, ToolCall};
use tollkeeper_protocol::event::fold;
use tollkeeper_protocol::fault::FaultKind;
use tollkeeper_protocol::openai::StreamDecoder;
use tollkeeper_protocol::passthrough::{ChunkPeek, is_done, peek_body, peek_chunk};
use tollkeeper_protocol::sse::SseDecoder;
use tollkeeper_protocol::usage::Usage;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/{name}.sse", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// All chunks of a stream.
fn chunks(stream: &[u8]) -> Vec<Bytes> {
    let data = frames(stream).into_iter().map(|frame| frame.data);
    data.filter(|data| !data.is_empty() && !is_done(data)).collect()
}

fn peeks(stream: &[u8]) -> Vec<ChunkPeek> {
    chunks(stream).iter().map(|data| peek_chunk(data).unwrap()).collect()
}

fn usage(input: u64, cached_input: u64, output: u64, reasoning: u64) -> Usage {
    Usage { input, cached_input, output, reasoning, ..Usage::default() }
}

fn call(id: &str, name: &str, arguments: &str) -> ToolCall {
    ToolCall { id: id.into(), name: name.into(), arguments: arguments.into() }
}

/// What a stream says in the end.
struct Expected {
    name: &'static str,
    text: &'static str,
    reasoning: &'static str,
    calls: Vec<ToolCall>,
    finish: FinishReason,
    usage: Option<Usage>,
}

fn said(name: &'static str, text: &'static str, finish: FinishReason, usage: Option<Usage>) -> Expected {
    Expected { name, text, reasoning: "", calls: Vec::new(), finish, usage }
}

fn expected() -> Vec<Expected> {
    let openai_calls = vec![
        call("call_DdmO9pD3xa9XTPNJ32zg2hcA", "get_weather", r#"{"city":"Bern"}"#),
        call("call_aHxF1sE2qTzB7yWcRk5nVd8U", "get_time", "{}"),
    ];
    let gemini_calls = vec![
        call("jm4owj31", "get_weather", r#"{"city":"Bern"}"#),
        call("q8xk2m0p", "get_weather", r#"{"city":"Basel"}"#),
    ];
    vec![
        said("openai", "Grüß dich!", Stop, Some(usage(1120, 1024, 5, 0))),
        Expected { calls: openai_calls, ..said("openai-tools", "", ToolCalls, Some(usage(80, 0, 231, 192))) },
        said("groq", "Paris.", Stop, Some(usage(23, 0, 3, 0))),
        // 75 tokens of thinking are only in the total.
        Expected { calls: gemini_calls, ..said("gemini", "I look it up.", ToolCalls, Some(usage(40, 0, 113, 0))) },
        Expected { reasoning: "Easy.", ..said("vllm", "4", Stop, Some(usage(17, 0, 5, 0))) },
        said("llama-server", "Once upon", Length, Some(usage(31, 24, 2, 0))),
        said("ollama", "Hello", Stop, None),
        said("azure", "Yes.", Stop, Some(usage(12, 0, 2, 0))),
        Expected {
            reasoning: "Hm, ",
            ..said("openrouter", "42", Stop, Some(Usage { cache_write: 3, ..usage(19, 8, 7, 4) }))
        },
        said("deepseek", "Ja", Stop, Some(usage(160, 128, 1, 0))),
        // 9 tokens of text and 94 of reasoning.
        said("xai", "Two", Stop, Some(usage(32, 6, 103, 94))),
        said("perplexity", "A fact[1].", Stop, Some(usage(11, 0, 5, 0))),
        Expected { reasoning: "Sum.", ..said("mistral", "12", Stop, Some(usage(9, 0, 6, 0))) },
        said("completion", " there was", Length, Some(usage(4, 0, 2, 0))),
        said("zero-usage", "free", Stop, Some(Usage::default())),
    ]
}

#[test]
fn streams_decode_to_what_they_say() {
    for expected in expected() {
        let mut decoder = StreamDecoder::default();
        let mut events = Vec::new();
        for data in chunks(&fixture(expected.name)) {
            decoder.decode(&data, &mut events).unwrap();
        }
        let answer = fold(events);
        let choice = Choice {
            text: expected.text.into(),
            reasoning: expected.reasoning.into(),
            tool_calls: expected.calls,
            finish: Some(expected.finish),
            logprobs: Vec::new(),
        };
        assert_eq!(answer.choices, [choice], "{}", expected.name);
        assert_eq!(answer.usage, expected.usage, "{}", expected.name);
    }
}

#[test]
fn peeks_see_text_end_and_usage() {
    for expected in expected() {
        let name = expected.name;
        let peeks = peeks(&fixture(name));
        let calls: usize = expected.calls.iter().map(|call| call.name.len() + call.arguments.len()).sum();
        let bytes: usize = peeks.iter().map(|peek| peek.text_bytes).sum();
        assert_eq!(bytes, expected.text.len() + expected.reasoning.len() + calls, "{name}");
        assert_eq!(peeks.iter().filter_map(|peek| peek.usage).next_back(), expected.usage, "{name}");
        assert_eq!(peeks.iter().filter(|peek| peek.finished).count(), 1, "{name}");
        assert!(peeks.iter().all(|peek| peek.error.is_none()), "{name}");
    }
}

#[test]
fn only_a_chunk_of_usage_has_usage_and_no_choices() {
    let of_usage = |name: &str| -> Vec<bool> {
        peeks(&fixture(name)).iter().map(|peek| peek.no_choices && peek.usage.is_some()).collect()
    };
    assert_eq!(of_usage("openai"), [false, false, false, false, true]);
    assert_eq!(of_usage("groq"), [false; 4], "usage comes beside the last choice");
    assert_eq!(of_usage("azure"), [false, false, false, false, false, true], "the filter's note is no usage");
    assert!(peeks(&fixture("azure"))[0].no_choices);
}

#[test]
fn streams_are_the_same_however_they_are_cut() {
    for Expected { name, .. } in expected() {
        let stream = fixture(name);
        let whole = frames(&stream);
        assert_eq!(whole.iter().flat_map(|frame| frame.raw.to_vec()).collect::<Vec<u8>>(), stream, "{name}");
        for cut in 0..stream.len() {
            let mut decoder = SseDecoder::new(1 << 20);
            let mut cut_frames = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                decoder.push(&Bytes::copy_from_slice(part)).unwrap();
                cut_frames.extend(std::iter::from_fn(|| decoder.next_frame()));
            }
            cut_frames.extend(decoder.finish());
            assert_eq!(cut_frames, whole, "{name} cut at {cut}");
        }
    }
}

#[test]
fn errors_with_status_200_are_seen() {
    let cases = [
        (
            "error-first",
            0,
            FaultKind::Internal,
            "The server had an error while processing your request. Sorry about that!",
        ),
        ("error-openrouter", 1, FaultKind::Internal, "Provider disconnected unexpectedly"),
        ("error-groq", 1, FaultKind::Overloaded, "over_capacity"),
    ];
    for (name, place, kind, message) in cases {
        let chunks = chunks(&fixture(name));
        let peeks: Vec<ChunkPeek> = chunks.iter().map(|data| peek_chunk(data).unwrap()).collect();
        let error = peeks[place].error.as_ref().unwrap();
        assert_eq!((error.kind, error.message.as_str()), (kind, message), "{name}");
        assert!(peeks[..place].iter().all(|peek| peek.error.is_none()), "{name}");
        let decoded = StreamDecoder::default().decode(&chunks[place], &mut Vec::new());
        assert_eq!(decoded.unwrap_err().message, message, "{name}");
    }
    let gemini = peek_chunk(br#"[{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}]"#);
    let error = gemini.unwrap().error.unwrap();
    assert_eq!((error.kind, error.status), (FaultKind::Overloaded, Some(503)));
}

#[test]
fn tool_calls_are_told_apart_whatever_their_index() {
    let deltas: [(&str, &[&str]); 6] = [
        (
            "no index",
            &[
                r#"{"id":"a","function":{"name":"f","arguments":"{"}}"#,
                r#"{"function":{"arguments":"}"}}"#,
                r#"{"id":"b","function":{"name":"g","arguments":"[]"}}"#,
            ],
        ),
        (
            "index -1",
            &[
                r#"{"index":-1,"id":"a","function":{"name":"f","arguments":"{}"}}"#,
                r#"{"index":-1,"id":"b","function":{"name":"g","arguments":"[]"}}"#,
            ],
        ),
        (
            "one index for all",
            &[
                r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{}"}}"#,
                r#"{"index":0,"id":"b","function":{"name":"g","arguments":"["}}"#,
                r#"{"index":0,"function":{"arguments":"]"}}"#,
            ],
        ),
        (
            "id and name repeated",
            &[
                r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{"}}"#,
                r#"{"index":1,"id":"b","function":{"name":"g","arguments":"["}}"#,
                r#"{"index":0,"id":"a","function":{"name":"f","arguments":"}"}}"#,
                r#"{"index":1,"id":"b","function":{"name":"g","arguments":"]"}}"#,
            ],
        ),
        (
            "arguments at the end only, starting at index 1",
            &[
                r#"{"index":1,"id":"a","type":"function","function":{"name":"f"}}"#,
                r#"{"index":2,"id":"b","type":"function","function":{"name":"g","arguments":null}}"#,
                r#"{"index":2,"function":{"arguments":"[]"}}"#,
                r#"{"index":1,"function":{"arguments":"{}"}}"#,
            ],
        ),
        (
            "arguments that are no text, and an empty part",
            &[
                r#"{"extra_content":{}}"#,
                r#"{"id":"a","function":{"name":"f","arguments":{}}}"#,
                r#"{"id":"b","function":{"name":"g","arguments":"[]"}}"#,
            ],
        ),
    ];
    for (case, parts) in deltas {
        let mut decoder = StreamDecoder::default();
        let mut events = Vec::new();
        for part in parts {
            let chunk = format!(r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":[{part}]}}}}]}}"#);
            decoder.decode(chunk.as_bytes(), &mut events).unwrap();
        }
        let answer = fold(events);
        assert_eq!(answer.choices[0].tool_calls, [call("a", "f", "{}"), call("b", "g", "[]")], "{case}");
    }
    let mut events = Vec::new();
    let no_id = br#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"1"}}]}}]}"#;
    StreamDecoder::default().decode(no_id, &mut events).unwrap();
    assert_eq!(fold(events).choices[0].tool_calls, [call("call_0_0", "f", "1")]);
}

#[test]
fn whole_answers_are_peeked() {
    let chat = br#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"h\u00e9","refusal":null,
        "tool_calls":[{"id":"a","type":"function","function":{"name":"ff","arguments":"{}"}}]},"finish_reason":"tool_calls"},
        {"index":1,"message":{"content":"ab","reasoning":"c"},"finish_reason":"length"}],
        "usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}"#;
    let peek = peek_body(chat).unwrap();
    assert_eq!((peek.text_bytes, peek.finish, peek.usage), (3 + 4 + 3, Some(ToolCalls), Some(usage(7, 0, 5, 0))));

    let text = br#"{"object":"text_completion","choices":[{"text":" a","index":0,"finish_reason":"stop"}]}"#;
    let peek = peek_body(text).unwrap();
    assert_eq!((peek.text_bytes, peek.finish, peek.usage), (2, Some(Stop), None));

    let embeddings = br#"{"object":"list","data":[{"embedding":[0.1,-0.2e-3],"index":0}],"model":"m",
        "usage":{"prompt_tokens":8,"total_tokens":8}}"#;
    let peek = peek_body(embeddings).unwrap();
    assert_eq!((peek.text_bytes, peek.finish, peek.usage), (0, None, Some(usage(8, 0, 0, 0))));
    assert!(peek_body(b"<html>").is_err());
    assert!(peek_body(br#"{"error":"boom"}"#).unwrap().error.is_some());
}

#[test]
fn usage_is_read_in_every_spelling() {
    let cases = [
        ("null", None),
        ("{}", None),
        (r#"{"cost":0.1}"#, None),
        ("[]", None),
        (r#"{"prompt_tokens":0,"completion_tokens":0}"#, Some(Usage::default())),
        (r#"{"prompt_tokens":null,"total_tokens":9}"#, Some(usage(9, 0, 0, 0))),
        (r#"{"prompt_tokens":4.0,"completion_tokens":-1}"#, Some(usage(4, 0, 0, 0))),
        (r#"{"completion_tokens":3,"total_tokens":9}"#, Some(usage(6, 0, 3, 0))),
        (r#"{"input_tokens":5,"output_tokens":6,"input_tokens_details":{"cached_tokens":2}}"#, Some(usage(5, 2, 6, 0))),
        (r#"{"prompt_tokens":5,"completion_tokens":1,"cached_tokens":3}"#, Some(usage(5, 3, 1, 0))),
        (
            r#"{"prompt_tokens":5,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":50}}"#,
            Some(usage(5, 5, 1, 0)),
        ),
        (r#"{"prompt_tokens":5,"completion_tokens":2,"reasoning_tokens":7}"#, Some(usage(5, 0, 9, 7))),
        (
            r#"{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":0},"prompt_cache_hit_tokens":4}"#,
            Some(usage(9, 4, 1, 0)),
        ),
        (
            r#"{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2},"usage":{"prompt_tokens":7}"#,
            Some(usage(7, 0, 0, 0)),
        ),
        (
            r#"{"prompt_tokens":18446744073709551615,"completion_tokens":1e300,"total_tokens":3}"#,
            Some(usage(u64::MAX, 0, u64::MAX, 0)),
        ),
    ];
    for (given, expected) in cases {
        let chunk = format!(r#"{{"choices":[],"usage":{given}}}"#);
        let peek = peek_chunk(chunk.as_bytes()).unwrap();
        assert_eq!(peek.usage, expected, "{given}");
        assert!(peek.no_choices);
    }
    let moonshot = br#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop","usage":{"prompt_tokens":2,"completion_tokens":3}}]}"#;
    assert_eq!(peek_chunk(moonshot).unwrap().usage, Some(usage(2, 0, 3, 0)));
}
