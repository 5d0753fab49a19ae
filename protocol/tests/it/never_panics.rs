//! The fuzz bodies on arbitrary bytes, and on bytes that look more like the real thing.

use crate::bodies;
use proptest::prelude::*;

/// Pieces that make up streams, requests and answers.
const PIECES: &[&str] = &[
    "data: ",
    "data:",
    "event: error",
    "\n",
    "\n\n",
    "\r",
    "\r\n",
    "\r\n\r\n",
    ": note",
    "[DONE]",
    "\u{FEFF}",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\"model\":\"m\",",
    "\"messages\":[",
    "{\"role\":\"user\",\"content\":",
    "\"hi\"",
    "null",
    "true",
    "1e999",
    "-1",
    "0",
    "1.5",
    "\"\\ud800\"",
    "\"choices\":[",
    "{\"delta\":{\"content\":\"a\"}}",
    "\"usage\":{",
    "\"prompt_tokens\":",
    "\"error\":",
    "\"index\":",
    "\"tool_calls\":[",
    "{\"function\":{\"name\":\"f\",\"arguments\":\"",
    "\"finish_reason\":\"stop\"",
    "\"stop\":",
    "\"prompt\":",
    "\"input\":",
    "\"n\":",
    "\"logit_bias\":{\"5\":",
    "\"tools\":[",
    "\"tool_choice\":",
    "\"response_format\":{\"type\":\"json_schema\"",
    "\"x_groq\":{",
    "\"object\":\"error\"",
    "\"message\":",
    "\"text\":",
    "\"logprobs\":{\"content\":[{\"token\":\"a\"}]}",
    "é",
    "\u{10348}",
];

fn text() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(PIECES), 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

/// A valid body with some bytes changed, taken out or put in.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let bodies: &[&str] = &[
        r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"u"}}]},{"role":"assistant","content":null,"tool_calls":[{"id":"i","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"i","content":"r"}],"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"tool_choice":{"type":"function","function":{"name":"f"}},"stop":["a","b"],"n":2,"logit_bias":{"7":-100},"seed":-1,"stream":true,"stream_options":{"include_usage":true},"logprobs":true,"top_logprobs":5}"#,
        r#"{"model":"m","prompt":[[1,2],[3]],"max_tokens":5,"echo":true,"suffix":"s","logprobs":3}"#,
        r#"{"model":"m","input":["a","b"],"encoding_format":"base64","dimensions":8}"#,
        r#"{"model":"m","query":"q","documents":["a",{"text":"b"}],"top_n":1,"return_documents":true}"#,
        r#"{"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":"a","reasoning":"b","refusal":null,"tool_calls":[{"index":0,"id":"i","function":{"name":"f","arguments":"{}"}}]},"logprobs":{"content":[{"token":"a","logprob":-0.5,"bytes":[97],"top_logprobs":[]}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":1}},"x_groq":{"usage":{"prompt_tokens":1}}}"#,
        r#"[{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED","details":[{"retryDelay":"3.5s"}]}}]"#,
        "\u{FEFF}event: a\r\ndata: {\"a\":1}\r\ndata: b\r\n\r\n: c\r\rdata: d\n\ndata: [DONE]\n",
    ];
    let edit = (any::<prop::sample::Index>(), 0usize..4, prop::collection::vec(any::<u8>(), 0..3));
    (prop::sample::select(bodies), prop::collection::vec(edit, 0..4)).prop_map(|(body, edits)| {
        let mut body = body.as_bytes().to_vec();
        for (place, length, bytes) in edits {
            let start = place.index(body.len() + 1);
            let end = (start + length).min(body.len());
            body.splice(start..end, bytes);
        }
        body
    })
}

fn any_body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![prop::collection::vec(any::<u8>(), 0..200), text(), damaged()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn streams(body in any_body()) {
        bodies::sse(&body);
    }

    #[test]
    fn requests(body in any_body()) {
        bodies::request(&body);
    }

    #[test]
    fn answers(body in any_body()) {
        bodies::passthrough(&body);
    }
}

#[test]
fn deep_nesting_is_an_error() {
    for open in [
        "[",
        "{\"a\":",
        "{\"model\":\"m\",\"messages\":[{\"content\":[",
        "{\"error\":{\"message\":[",
        "{\"choices\":[{\"delta\":{\"content\":[",
    ] {
        bodies::request(open.repeat(100_000).as_bytes());
        bodies::passthrough(open.repeat(100_000).as_bytes());
    }
    let closed = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    bodies::request(closed.as_bytes());
    bodies::passthrough(closed.as_bytes());
}
