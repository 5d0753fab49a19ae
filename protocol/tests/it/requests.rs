//! Requests as clients send them, and the errors they get.

use serde_json::{Value, json};
use tollkeeper_protocol::chat::{ChatRequest, Dry, Part, ResponseFormat, Role, Sampling, ToolCall, ToolChoice, Xtc};
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::embedding::{EmbeddingRequest, Encoding};
use tollkeeper_protocol::openai::decode_request;
use tollkeeper_protocol::{DecodeError, Operation, Request};

fn chat(body: &Value) -> Result<ChatRequest, DecodeError> {
    match decode_request(Operation::Chat, body.to_string().as_bytes())? {
        Request::Chat(request) => Ok(request),
        other => panic!("{other:?}"),
    }
}

/// A minimal chat request with these fields over it.
fn with(fields: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn completion(fields: Value) -> Result<CompletionRequest, DecodeError> {
    match decode_request(Operation::TextCompletion, fields.to_string().as_bytes())? {
        Request::Completion(request) => Ok(request),
        other => panic!("{other:?}"),
    }
}

fn embedding(fields: Value) -> Result<EmbeddingRequest, DecodeError> {
    match decode_request(Operation::Embeddings, fields.to_string().as_bytes())? {
        Request::Embedding(request) => Ok(request),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_full_chat_request() {
    let request = chat(&json!({
        "model": "local/fast",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "ann", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]},
            {"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "a cat"}],
        "tools": [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}, "strict": true}}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": false,
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
        "temperature": 0.5, "top_p": 1, "top_k": 40, "min_p": 0.05, "seed": -2, "frequency_penalty": -2, "presence_penalty": 2,
        "repeat_penalty": 1.1, "logit_bias": {"7": -100, "9": 1.5},
        "max_tokens": 5, "max_completion_tokens": 6, "stop": "END", "n": 2, "stream": true, "stream_options": {"include_usage": true},
        "logprobs": true, "top_logprobs": 3, "user": "u", "metadata": {"a": "b"}, "service_tier": null
    }))
    .unwrap();
    let roles: Vec<Role> = request.messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::Developer, Role::User, Role::Assistant, Role::Tool]);
    assert_eq!(request.messages[1].name.as_deref(), Some("ann"));
    assert_eq!(
        request.messages[1].content[..2],
        [Part::Text("What is this?".into()), Part::Image("data:image/png;base64,AA==".into())]
    );
    assert!(matches!(&request.messages[1].content[2], Part::Other(part) if part["type"] == "input_audio"));
    let call = ToolCall { id: "c1".into(), name: "look".into(), arguments: "{}".into() };
    assert_eq!((&request.messages[2].tool_calls, request.messages[2].reasoning.as_deref()), (&vec![call], Some("hm")));
    assert!(request.messages[2].content.is_empty());
    assert_eq!(request.messages[3].tool_call_id.as_deref(), Some("c1"));
    assert_eq!((request.tools[0].name.as_str(), request.tools[0].strict), ("look", Some(true)));
    assert_eq!(request.tool_choice, ToolChoice::Named("look".into()));
    assert_eq!(request.parallel_tool_calls, Some(false));
    assert_eq!(request.response_format, ResponseFormat::JsonSchema(json!({"name": "s", "schema": {}})));
    let sampling = &request.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p),
        (Some(0.5), Some(1.0), Some(40), Some(0.05))
    );
    assert_eq!((sampling.seed, sampling.repeat_penalty), (Some(u64::MAX - 1), Some(1.1)));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (Some(-2.0), Some(2.0)));
    assert_eq!(sampling.logit_bias, [(7, -100.0), (9, 1.5)]);
    assert_eq!((request.max_tokens, request.stop, request.n), (Some(6), vec!["END".to_owned()], 2));
    assert_eq!((request.stream, request.include_usage, request.top_logprobs), (true, true, Some(3)));
    assert_eq!(Value::Object(request.extra), json!({"user": "u", "metadata": {"a": "b"}, "service_tier": null}));
}

#[test]
fn defaults_and_other_forms() {
    let least = chat(&with(json!({}))).unwrap();
    assert_eq!((least.n, least.stream, least.include_usage, least.top_logprobs), (1, false, false, None));
    assert_eq!(
        (least.tool_choice, least.response_format, least.max_tokens),
        (ToolChoice::Auto, ResponseFormat::Text, None)
    );
    assert!(least.extra.is_empty());

    // Null is the same as not there, and 5.0 is a whole number.
    let nulls = json!({"stop": null, "tools": null, "tool_choice": null, "n": null, "max_tokens": 5.0, "logit_bias": null,
        "stream_options": null, "response_format": null, "logprobs": null, "top_logprobs": null, "temperature": null});
    let nulls = chat(&with(nulls)).unwrap();
    assert_eq!((nulls.max_tokens, nulls.n, nulls.stop.len()), (Some(5), 1, 0));

    let tools = json!([{"type": "function", "function": {"name": "f"}}, {"type": "web_search", "x": 1}]);
    let choices = [
        (json!("none"), ToolChoice::None),
        (json!("required"), ToolChoice::Required),
        (json!("any"), ToolChoice::Required),
        (json!({"type": "function", "function": {"name": "f"}}), ToolChoice::Named("f".into())),
        (json!({"type": "allowed_tools", "allowed_tools": {}}), ToolChoice::Auto),
    ];
    for (choice, expected) in choices {
        let request = chat(&with(json!({"tools": tools, "tool_choice": choice}))).unwrap();
        assert_eq!((request.tools.len(), request.tool_choice), (1, expected));
        assert_eq!(request.extra["tools"], json!([{"type": "web_search", "x": 1}]));
    }

    let older = chat(&json!({"model": "m", "functions": [{"name": "f"}], "function_call": {"name": "f"}, "messages": [
        {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"}]}))
    .unwrap();
    assert_eq!((older.tools.len(), older.tool_choice), (1, ToolChoice::Named("f".into())));
    assert_eq!((older.messages[0].tool_calls.len(), older.messages[1].role), (1, Role::Tool));

    assert_eq!(chat(&with(json!({"stop": ["a", "", "b"]}))).unwrap().stop, ["a", "b"]);
    assert_eq!(chat(&with(json!({"top_k": -1}))).unwrap().sampling.top_k, None);
    assert_eq!(chat(&with(json!({"repetition_penalty": 1.5}))).unwrap().sampling.repeat_penalty, Some(1.5));
    assert_eq!(chat(&with(json!({"logprobs": true}))).unwrap().top_logprobs, Some(0));
    assert_eq!(chat(&with(json!({"logprobs": 4}))).unwrap().top_logprobs, Some(4));
    let schema = json!({"response_format": {"type": "json_object", "schema": {"type": "object"}}});
    let schema = chat(&with(schema)).unwrap().response_format;
    assert_eq!(schema, ResponseFormat::JsonSchema(json!({"schema": {"type": "object"}})));

    let sampling = |fields| chat(&with(fields)).unwrap().sampling;
    let off =
        json!({"typical_p": 0.9, "xtc_threshold": 0.2, "dry_base": 2.0, "dry_multiplier": 0, "xtc_probability": 0});
    assert_eq!(sampling(off), Sampling { typical_p: Some(0.9), ..Sampling::default() });
    assert_eq!(sampling(json!({"dry_multiplier": 1, "dry_penalty_last_n": 0})).dry, None);
    let on = sampling(json!({"xtc_probability": 0.5, "dry_multiplier": 0.8}));
    assert_eq!(on.xtc, Some(Xtc { probability: 0.5, threshold: 0.1 }));
    let breakers = ["\n", ":", "\"", "*"].map(str::to_owned).to_vec();
    assert_eq!(on.dry, Some(Dry { multiplier: 0.8, base: 1.75, allowed_length: 2, last_n: None, breakers }.into()));
    let dry = json!({"dry_multiplier": 1, "dry_base": 1.2, "dry_allowed_length": 4, "dry_penalty_last_n": 64, "dry_sequence_breakers": ["", "."]});
    let expected =
        Dry { multiplier: 1.0, base: 1.2, allowed_length: 4, last_n: Some(64), breakers: vec![".".to_owned()] };
    assert_eq!(sampling(dry).dry, Some(expected.into()));

    // Of a key given twice, the last one holds.
    let twice = br#"{"model":"a","model":"b","messages":[{"role":"user","content":""}]}"#;
    let twice = decode_request(Operation::Chat, twice).unwrap();
    assert_eq!(twice.model(), "b");
}

#[test]
fn completions_and_embeddings() {
    let prompts = [
        (json!("a"), vec![Prompt::Text("a".into())]),
        (json!(["a", "b"]), vec![Prompt::Text("a".into()), Prompt::Text("b".into())]),
        (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
        (json!([[1], [2, 3]]), vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
    ];
    for (given, expected) in prompts {
        assert_eq!(completion(json!({"model": "m", "prompt": given})).unwrap().prompts, expected);
        assert_eq!(embedding(json!({"model": "m", "input": given})).unwrap().inputs, expected);
    }
    let request =
        completion(json!({"model": "m", "prompt": "p", "suffix": "s", "echo": true, "logprobs": 2, "max_tokens": 0,
        "best_of": 3}))
        .unwrap();
    assert_eq!(
        (request.suffix.as_deref(), request.echo, request.logprobs, request.max_tokens),
        (Some("s"), true, Some(2), Some(0))
    );
    assert_eq!(request.best_of, Some(3));
    let request = Request::Completion(request);
    assert_eq!((request.answers(), request.written_answers()), (1, 3), "all that is written is billed");
    let request =
        embedding(json!({"model": "m", "input": "p", "encoding_format": "base64", "dimensions": 64})).unwrap();
    assert_eq!((request.encoding, request.dimensions), (Encoding::Base64, Some(64)));

    let many =
        Request::Completion(CompletionRequest { prompts: vec![Prompt::Tokens(vec![]); 3], n: 2, ..Default::default() });
    assert_eq!(many.answers(), 6);
}

#[test]
fn errors_name_the_field_and_say_what_it_must_be() {
    let call = |call: Value| json!([{"role": "assistant", "tool_calls": [call]}]);
    let cases = [
        (json!({"model": null}), "model", "`model` is missing: it must be the name of a model"),
        (json!({"model": 5}), "model", "`model` must be a string, got 5"),
        (json!({"messages": null}), "messages", "`messages` is missing"),
        (json!({"messages": "hi"}), "messages", "`messages` must be an array, got a string"),
        (json!({"messages": []}), "messages", "at least one message"),
        (json!({"messages": ["hi"]}), "messages[0]", "`messages[0]` must be an object, got a string"),
        (json!({"messages": [{"content": "a"}]}), "messages[0].role", "`messages[0].role` is missing"),
        (
            json!({"messages": [{"role": "bot", "content": "a"}]}),
            "messages[0].role",
            "must be system, developer, user, assistant or tool, got `bot`",
        ),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content", "`messages[0].content` is missing"),
        (
            json!({"messages": [{"role": "user", "content": 1}]}),
            "messages[0].content",
            "must be a string or an array of parts, got 1",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
            "is missing",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            "messages[0].content[0].image_url.url",
            "is missing",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"text": "a"}]}]}),
            "messages[0].content[0].type",
            "is missing",
        ),
        (json!({"messages": call(json!({"id": "a"}))}), "messages[0].tool_calls[0].function", "is missing"),
        (
            json!({"messages": call(json!({"function": {"name": "f", "arguments": 1}}))}),
            "messages[0].tool_calls[0].function.arguments",
            "must be a string of JSON, got 1",
        ),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function", "is missing"),
        (json!({"tools": [{"function": {"name": 1}}]}), "tools[0].function.name", "must be a string, got 1"),
        (
            json!({"tools": [{"function": {"name": "f", "parameters": "x"}}]}),
            "tools[0].function.parameters",
            "must be a JSON schema, got a string",
        ),
        (json!({"tool_choice": "required"}), "tool_choice", "there are no `tools`"),
        (json!({"tool_choice": "maybe"}), "tool_choice", "got `maybe`"),
        (
            json!({"tools": [{"function": {"name": "f"}}], "tool_choice": {"function": {"name": "g"}}}),
            "tool_choice.function.name",
            "got `g`",
        ),
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
            "must be text, json_object or json_schema, got `xml`",
        ),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema", "is missing"),
        (json!({"temperature": "hot"}), "temperature", "must be a number from 0 to 2, got a string"),
        (json!({"temperature": 2.5}), "temperature", "must be a number from 0 to 2, got 2.5"),
        (json!({"temperature": 1e300}), "temperature", "must be a number from 0 to 2"),
        (json!({"top_p": -0.1}), "top_p", "must be a number from 0 to 1"),
        (json!({"max_tokens": 0}), "max_tokens", "must be a whole number from 1 to 4294967295, got 0"),
        (
            json!({"max_completion_tokens": 1.5}),
            "max_completion_tokens",
            "must be a whole number from 1 to 4294967295, got 1.5",
        ),
        (json!({"n": 17}), "n", "must be a whole number from 1 to 16, got 17"),
        (json!({"stop": [1]}), "stop[0]", "must be a string, got 1"),
        (json!({"stop": vec!["x"; 17]}), "stop", "at most 16 texts, got 17"),
        (json!({"stream": "yes"}), "stream", "must be true or false, got a string"),
        (json!({"stream_options": true}), "stream_options", "must be an object, got a boolean"),
        (
            json!({"stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
            "must be true or false, got 1",
        ),
        (json!({"top_logprobs": 2}), "top_logprobs", "needs `logprobs` to be true"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "must be a whole number from 0 to 20, got 21"),
        (json!({"logit_bias": {"the": 1}}), "logit_bias.the", "must be token ids, got `the`"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias.5", "must be a number from -100 to 100, got 101"),
        (json!({"typical_p": 1.5}), "typical_p", "must be a number from 0 to 1"),
        (json!({"xtc_probability": -1}), "xtc_probability", "must be a number from 0 to 1"),
        (json!({"dry_base": 0.5}), "dry_base", "must be a number from 1 to 100"),
        (json!({"dry_penalty_last_n": -2}), "dry_penalty_last_n", "must be a whole number from -1"),
        (json!({"dry_sequence_breakers": "."}), "dry_sequence_breakers", "must be an array of strings, got a string"),
        (json!({"dry_sequence_breakers": [1]}), "dry_sequence_breakers[0]", "must be a string, got 1"),
        (json!({"dry_sequence_breakers": vec!["x"; 65]}), "dry_sequence_breakers", "at most 64 texts, got 65"),
        (
            json!({"dry_sequence_breakers": ["x".repeat(257)]}),
            "dry_sequence_breakers",
            "at most 256 bytes, got one of 257",
        ),
    ];
    for (fields, param, message) in cases {
        let error = chat(&with(fields.clone())).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{fields}: {error}");
        assert!(error.message.contains(message), "{fields}: {error}");
    }
    let cases = [
        (json!({"model": "m"}), "input", "`input` is missing"),
        (json!({"model": "m", "input": []}), "input", "must not be empty"),
        (json!({"model": "m", "input": [[]]}), "input[0]", "must not be empty"),
        (json!({"model": "m", "input": ["a", 1]}), "input[1]", "must be a string, got 1"),
        (json!({"model": "m", "input": [1, "a"]}), "input[1]", "must be a token id"),
        (json!({"model": "m", "input": [-1]}), "input[0]", "must be a token id"),
        (json!({"model": "m", "input": vec!["a"; 2049]}), "input", "at most 2048 entries, got 2049"),
        (
            json!({"model": "m", "input": "a", "encoding_format": "hex"}),
            "encoding_format",
            "must be float or base64, got `hex`",
        ),
        (json!({"model": "m", "input": "a", "dimensions": 0}), "dimensions", "must be a whole number from 1"),
    ];
    for (body, param, message) in cases {
        let error = embedding(body.clone()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{body}: {error}");
        assert!(error.message.contains(message), "{body}: {error}");
    }
}

#[test]
fn what_is_no_object_is_refused() {
    for (body, message) in [
        ("", "the request body is empty"),
        ("  ", "the request body is empty"),
        ("{\"model\":", "the request body is not valid JSON: EOF"),
        ("[1]", "the request body must be an object, got an array"),
        ("null", "the request body must be an object, got null"),
        (
            &format!(r#"{{"model":"m","x":[{}]}}"#, "[[[]]],".repeat(300_000)),
            "the request body has more than 1000000 values",
        ),
    ] {
        let error = decode_request(Operation::Chat, body.as_bytes()).unwrap_err();
        assert!(error.message.starts_with(message) && error.param.is_none(), "{body}: {error}");
    }
}

#[test]
fn documents_to_rerank_are_texts_or_objects() {
    let rerank = |fields: Value| {
        let mut body = json!({"model": "m", "query": "q", "documents": ["a", {"text": "b", "title": "t"}]});
        fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        match decode_request(Operation::Rerank, body.to_string().as_bytes())? {
            Request::Rerank(request) => Ok(request),
            other => panic!("{other:?}"),
        }
    };
    let least = rerank(json!({})).unwrap();
    assert_eq!((least.query.as_str(), &least.documents[..]), ("q", &["a".to_owned(), "b".to_owned()][..]));
    assert_eq!((least.top_n, least.return_documents), (None, false));
    let most = rerank(json!({"top_n": 1, "return_documents": true, "truncate": "END"})).unwrap();
    assert_eq!((most.top_n, most.return_documents), (Some(1), true));
    let cases = [
        (json!({"query": null}), "query", "`query` is missing"),
        (json!({"query": ""}), "query", "must not be empty"),
        (json!({"query": "x".repeat(8193), "documents": vec!["a"; 2048]}), "query", "8193 bytes"),
        (json!({"documents": null}), "documents", "is missing"),
        (json!({"documents": []}), "documents", "must not be empty"),
        (json!({"documents": vec!["a"; 2049]}), "documents", "at most 2048 entries, got 2049"),
        (json!({"documents": ["a", 1]}), "documents[1]", "must be a string or an object with `text`, got 1"),
        (json!({"documents": [{"image": "u"}]}), "documents[0].text", "`documents[0].text` is missing"),
        (json!({"top_n": 0}), "top_n", "must be a whole number from 1"),
    ];
    for (fields, param, message) in cases {
        let error: DecodeError = rerank(fields.clone()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some(param), "{fields}: {error}");
        assert!(error.message.contains(message), "{fields}: {error}");
    }
}
