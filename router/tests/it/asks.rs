//! What requests need, read from bodies as clients send them.

use tollkeeper_protocol::{Operation, openai::decode_request};
use tollkeeper_router::ask::{FEWEST_IMAGE_TOKENS, MEDIA_TOKENS, MESSAGE_TOKENS, TOOL_TOKENS};
use tollkeeper_router::{Ask, ask};

fn asked(operation: Operation, body: &str) -> Ask {
    ask(&decode_request(operation, body.as_bytes()).unwrap())
}

fn chat(fields: &str) -> Ask {
    asked(Operation::Chat, &format!(r#"{{"model":"m",{fields}}}"#))
}

#[test]
fn text_is_counted_by_bytes_and_messages() {
    let cases = [
        (r#""messages":[{"role":"user","content":""}]"#, MESSAGE_TOKENS),
        (r#""messages":[{"role":"user","content":"a"}]"#, MESSAGE_TOKENS + 1),
        (r#""messages":[{"role":"user","content":"abcd"}]"#, MESSAGE_TOKENS + 2),
        (r#""messages":[{"role":"user","content":"日本"}]"#, MESSAGE_TOKENS + 2),
        (
            r#""messages":[{"role":"user","content":[{"type":"text","text":"abc"},{"type":"text","text":"d"}]}]"#,
            MESSAGE_TOKENS + 2,
        ),
        (
            r#""messages":[{"role":"system","content":"abc"},{"role":"user","name":"ann","content":"abc"}]"#,
            2 * MESSAGE_TOKENS + 3,
        ),
        (
            r#""messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"abc","function":{"name":"f","arguments":"abc"}}]}]"#,
            MESSAGE_TOKENS + 2 + 1,
        ),
        // {"type":"function","function":{"name":"f","parameters":{"type":"object"}}}: 1 + 17 bytes.
        (
            r#""messages":[{"role":"user","content":""}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]"#,
            MESSAGE_TOKENS + TOOL_TOKENS + 6,
        ),
        // {"name":"s","schema":{}}: 24 bytes.
        (
            r#""messages":[{"role":"user","content":""}],"response_format":{"type":"json_schema","json_schema":{"name":"s","schema":{}}}"#,
            MESSAGE_TOKENS + 8,
        ),
    ];
    for (fields, tokens) in cases {
        let ask = chat(fields);
        assert_eq!((ask.input_tokens, ask.longest_input), (tokens, tokens), "{fields}");
    }
    let sound = format!(
        r#""messages":[{{"role":"user","content":[{{"type":"input_audio","data":"{}"}}]}}]"#,
        "A".repeat(1 << 20)
    );
    assert_eq!(chat(&sound).input_tokens, MESSAGE_TOKENS + MEDIA_TOKENS);
}

#[test]
fn needs_are_seen() {
    let user = r#""messages":[{"role":"user","content":"a"}]"#;
    let plain = chat(user);
    assert_eq!((plain.tools, plain.vision, plain.json_schema, plain.stream), (false, false, false, false));
    assert_eq!((plain.max_output, plain.answers, plain.operation), (None, 1, Operation::Chat));

    assert!(chat(&format!(r#"{user},"tools":[{{"function":{{"name":"f"}}}}]"#)).tools);
    assert!(chat(&format!(r#"{user},"tools":[{{"type":"web_search"}}]"#)).tools);
    assert!(!chat(&format!(r#"{user},"tools":[]"#)).tools);
    assert!(chat(&format!(r#"{user},"response_format":{{"type":"json_schema","json_schema":{{}}}}"#)).json_schema);
    assert!(!chat(&format!(r#"{user},"response_format":{{"type":"json_object"}}"#)).json_schema);
    assert!(chat(&format!(r#"{user},"stream":true"#)).stream);
    assert!(chat(r#""messages":[{"role":"user","content":[{"type":"image_url","image_url":"http://x/y"}]}]"#).vision);

    let pictures = r#""messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAAAAAAAAAAAAAA"}},{"type":"image_url","image_url":"b"}]}]"#;
    let pictures = chat(pictures);
    assert_eq!(pictures.input_tokens, MESSAGE_TOKENS + 2 * MEDIA_TOKENS, "what they may cost");
    assert_eq!(pictures.longest_input, MESSAGE_TOKENS + 2 * FEWEST_IMAGE_TOKENS, "what surely does not fit");

    let several = chat(&format!(r#"{user},"max_tokens":100,"n":3"#));
    assert_eq!((several.max_output, several.max_output_each(), several.answers), (Some(300), Some(100), 3));
}

#[test]
fn prompts_of_tokens_are_exact() {
    let ask = asked(Operation::TextCompletion, r#"{"model":"m","prompt":[[1,2,3,4,5],[6]],"n":2,"max_tokens":7}"#);
    assert_eq!((ask.input_tokens, ask.longest_input), (6, 5));
    assert_eq!((ask.answers, ask.max_output, ask.max_output_each()), (4, Some(28), Some(7)));

    let ask = asked(Operation::TextCompletion, r#"{"model":"m","prompt":["abcdef","a"],"suffix":"abc"}"#);
    assert_eq!((ask.input_tokens, ask.longest_input), (2 + 1 + 2, 2 + 1));

    let ask = asked(Operation::Embeddings, r#"{"model":"m","input":["","abc",""]}"#);
    assert_eq!((ask.input_tokens, ask.longest_input), (3, 1));
    assert_eq!((ask.answers, ask.max_output, ask.max_output_each()), (0, Some(0), Some(0)));

    let ask = asked(Operation::Rerank, r#"{"model":"m","query":"abc","documents":["abcdef",{"text":""}]}"#);
    assert_eq!((ask.input_tokens, ask.longest_input), (1 + 4 + 2 + 1 + 4, 1 + 4 + 2));
    assert_eq!((ask.answers, ask.max_output), (0, Some(0)));
}
