//! What goes out: addresses, headers, and the client's own bytes.

use super::super::providers::{Endpoint, ROWS, find};
use super::upstream::{Upstream, answer, chunked, whole};
use super::*;
use tollkeeper_config::kinds::PROVIDER_KINDS;

#[test]
fn the_table_knows_every_configurable_kind() {
    let mut ours: Vec<_> = ROWS.iter().map(|row| (row.kind, row.base_url.is_none())).collect();
    let mut theirs: Vec<_> = PROVIDER_KINDS.iter().map(|kind| (kind.name, kind.needs_base_url)).collect();
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs);
}

#[test]
fn every_kind_has_its_addresses() {
    let expected = "\
openai       openai          https://api.openai.com/v1/chat/completions | completions | embeddings
azure        azure.ai.openai https://example.com/root/openai/deployments/my%2Fmodel/chat/completions?api-version=2024-10-21 | completions?api-version=2024-10-21 | embeddings?api-version=2024-10-21
gemini       gcp.gemini      https://generativelanguage.googleapis.com/v1beta/openai/chat/completions | completions | embeddings
groq         groq            https://api.groq.com/openai/v1/chat/completions | completions | embeddings
cerebras     cerebras        https://api.cerebras.ai/v1/chat/completions | completions | embeddings
openrouter   openrouter      https://openrouter.ai/api/v1/chat/completions | completions | embeddings
together     together        https://api.together.xyz/v1/chat/completions | completions | embeddings
fireworks    fireworks       https://api.fireworks.ai/inference/v1/chat/completions | completions | embeddings
deepseek     deepseek        https://api.deepseek.com/v1/chat/completions | completions | embeddings
mistral      mistral_ai      https://api.mistral.ai/v1/chat/completions | completions | embeddings
xai          x_ai            https://api.x.ai/v1/chat/completions | completions | embeddings
perplexity   perplexity      https://api.perplexity.ai/chat/completions | completions | embeddings
ollama       ollama          http://127.0.0.1:11434/v1/chat/completions | completions | embeddings
vllm         vllm            http://127.0.0.1:8000/v1/chat/completions | completions | embeddings
sglang       sglang          http://127.0.0.1:30000/v1/chat/completions | completions | embeddings
llama-server llama-server    http://127.0.0.1:8080/v1/chat/completions | completions | embeddings
lmstudio     lmstudio        http://127.0.0.1:1234/v1/chat/completions | completions | embeddings
custom       custom          https://example.com/root/chat/completions | completions | embeddings
";
    let mut seen = String::new();
    for row in ROWS {
        let mut provider = provider("https://example.com/root/");
        if row.base_url.is_some() {
            provider.base_url = None;
        }
        let endpoint = Endpoint::new(row, &provider).unwrap();
        let uri = |operation| endpoint.uri(operation, "my/model").unwrap().to_string();
        let chat = uri(Operation::Chat);
        let stem = chat.split("chat/completions").next().unwrap();
        let rest = |operation| uri(operation).strip_prefix(stem).unwrap().to_owned();
        let (completion, embeddings) = (rest(Operation::TextCompletion), rest(Operation::Embeddings));
        seen += &format!("{:<12} {:<15} {chat} | {completion} | {embeddings}\n", row.kind, row.gen_ai_name);
    }
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_passes_unchanged_both_ways() {
    let body = " {\"messages\" : [{\"content\":\"h\\u00e9\",\"role\":\"user\"}],\r\n \"model\":\"a/b\", \"x_unknown\":{\"z\":1.0,\"a\":[ ]}, \"user\":\"u\"} ";
    let answer = ANSWER.replace("{\"id\"", "{ \"x_new\": 1e3,\n\"id\"");
    let upstream = Upstream::once(whole("200 OK", "x-request-id: up-1\r\n", &answer)).await;
    let remote = remote(provider(&upstream.url));
    let reply = send(&remote, call(body)).await.unwrap();
    assert_eq!((reply.model.as_str(), reply.upstream_request_id.as_deref()), ("m", Some("up-1")));
    let ReplyBody::Bytes { bytes, peek } = reply.body else { panic!("not whole") };
    assert_eq!(bytes, answer);
    assert_eq!((peek.usage.unwrap().input, peek.usage.unwrap().output, peek.text_bytes), (3, 1, 2));

    let (head, sent) = upstream.seen().requests[0].clone();
    assert_eq!(sent, body.replace("\"a/b\"", "\"m\""));
    let mut lines: Vec<_> = head.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.remove(0), "POST /v1/chat/completions HTTP/1.1");
    lines.sort_unstable();
    let host = upstream.url.trim_start_matches("http://").trim_end_matches("/v1");
    let expected = [
        "accept-encoding: identity".to_owned(),
        "accept: application/json".to_owned(),
        "authorization: Bearer provider-key".to_owned(),
        format!("content-length: {}", sent.len()),
        "content-type: application/json".to_owned(),
        format!("host: {host}"),
        format!("user-agent: tollkeeper/{}", env!("CARGO_PKG_VERSION")),
    ];
    assert_eq!(lines, expected);
}

#[tokio::test(start_paused = true)]
async fn keys_and_extra_headers_are_sent_as_the_kind_wants() {
    type Case = (&'static str, Option<&'static str>, &'static str, &'static str);
    let cases: [Case; 4] = [
        ("custom", Some("k"), "POST /v1/embeddings HTTP/1.1", "authorization: Bearer k"),
        ("custom", None, "POST /v1/embeddings HTTP/1.1", ""),
        ("ollama", None, "POST /v1/embeddings HTTP/1.1", ""),
        (
            "azure",
            Some("k"),
            "POST /v1/openai/deployments/m/embeddings?api-version=2025-01-01-preview HTTP/1.1",
            "api-key: k",
        ),
    ];
    for (kind, key, request_line, auth) in cases {
        let answer = r#"{"object":"list","data":[],"usage":{"prompt_tokens":1,"total_tokens":1}}"#;
        let upstream = Upstream::once(whole("200 OK", "", answer)).await;
        let remote = remote(Provider {
            kind: kind.to_owned(),
            api_key: key.map(Secret::new),
            api_version: Some("2025-01-01-preview".to_owned()),
            headers: vec![("X-Title".to_owned(), Secret::new("tolls")), ("user-agent".to_owned(), Secret::new("mine"))],
            ..provider(&upstream.url)
        });
        let reply = send(&remote, call_for(Operation::Embeddings, r#"{"model":"e","input":"x"}"#)).await.unwrap();
        assert!(matches!(reply.body, ReplyBody::Bytes { .. }));
        let (head, body) = upstream.seen().requests[0].clone();
        assert_eq!(body, r#"{"model":"m","input":"x"}"#);
        assert_eq!(head.lines().next().unwrap(), request_line);
        let is_auth = |line: &&str| line.starts_with("authorization") || line.starts_with("api-key");
        assert_eq!(head.lines().find(is_auth).unwrap_or_default(), auth, "{kind}");
        assert!(head.contains("x-title: tolls\r\n") && head.contains("user-agent: mine\r\n"), "{head}");
    }
}

/// What a provider of a kind is sent for a client's body; `{}` stands for the rest of a valid request.
async fn sent(kind: &str, operation: Operation, limit: Option<u64>, fields: &str) -> Result<String, ProviderFault> {
    let rest = if operation == Operation::Chat {
        r#""messages":[{"role":"user","content":"hi"}]"#
    } else {
        r#""prompt":["a","b"]"#
    };
    let stream = fields.contains("\"stream\":true");
    let answer = if stream { chunked(answer().as_bytes(), &[]) } else { whole("200 OK", "", ANSWER) };
    let upstream = Upstream::once(answer).await;
    let remote = remote(Provider { kind: kind.to_owned(), ..provider(&upstream.url) });
    let call = Call { output_limit: limit, ..call_for(operation, &format!(r#"{{{rest},"model":"x"{fields}}}"#)) };
    send(&remote, call).await?;
    let body = upstream.seen().requests[0].1.clone();
    let prefix = format!(r#"{{{rest},"model":"m""#);
    Ok(body.strip_prefix(&prefix).expect("only what follows the model changes").trim_end_matches('}').to_owned() + "}")
}

#[tokio::test(start_paused = true)]
async fn usage_of_streams_is_asked_for_where_the_provider_needs_it() {
    let cases = [
        ("openai", r#","stream":true"#, r#","stream":true,"stream_options":{"include_usage":true}"#),
        (
            "openai",
            r#","stream":true,"stream_options":{"include_obfuscation": false}"#,
            r#","stream":true,"stream_options":{"include_obfuscation": false,"include_usage":true}"#,
        ),
        (
            "openai",
            r#","stream_options":{"include_usage":false},"stream":true"#,
            r#","stream_options":{"include_usage":true},"stream":true"#,
        ),
        (
            "openai",
            r#","stream":true,"stream_options":null"#,
            r#","stream":true,"stream_options":{"include_usage":true}"#,
        ),
        (
            "openai",
            r#","stream":true,"stream_options": {"include_usage": true}"#,
            r#","stream":true,"stream_options": {"include_usage": true}"#,
        ),
        ("openai", r#","stream":false"#, r#","stream":false"#),
        ("mistral", r#","stream":true"#, r#","stream":true"#),
        (
            "mistral",
            r#","stream":true,"stream_options":{"include_usage":true}"#,
            r#","stream":true,"stream_options":null"#,
        ),
        ("perplexity", r#","stream":true"#, r#","stream":true"#),
    ];
    for (kind, from, to) in cases {
        let clean = |text: &str| text.trim_end_matches('}').to_owned();
        for operation in [Operation::Chat, Operation::TextCompletion] {
            assert_eq!(clean(&sent(kind, operation, None, from).await.unwrap()), clean(to), "{kind}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_an_answer_is_named_as_the_provider_knows_it() {
    let cases = [
        ("openai", None, r#","max_completion_tokens": 7}"#, r#","max_completion_tokens": 7}"#),
        ("openai", None, r#","max_tokens":7}"#, r#","max_tokens":7}"#),
        ("deepseek", None, r#","max_completion_tokens": 7}"#, r#","max_tokens": 7}"#),
        ("mistral", None, r#","max_completion_tokens":7,"n":1}"#, r#","max_tokens":7,"n":1}"#),
        ("ollama", None, r#","max_tokens":7}"#, r#","max_tokens":7}"#),
        (
            "ollama",
            None,
            r#","max_completion_tokens":4,"max_tokens":9}"#,
            r#","max_completion_tokens":4,"max_tokens":4}"#,
        ),
        (
            "openai",
            None,
            r#","max_completion_tokens":1,"max_tokens":9}"#,
            r#","max_completion_tokens":1,"max_tokens":1}"#,
        ),
        // Written so that a look at the bytes does not find it.
        ("deepseek", None, r#","max_completion_token\u0073":7}"#, r#","max_completion_token\u0073":7,"max_tokens":7}"#),
        (
            "deepseek",
            None,
            r#","max_completion_tokens":7,"max_tokens":null}"#,
            r#","max_completion_tokens":7,"max_tokens":7}"#,
        ),
        (
            "deepseek",
            Some(5),
            r#","max_completion_tokens":7,"max_tokens":null}"#,
            r#","max_completion_tokens":5,"max_tokens":5}"#,
        ),
        ("deepseek", Some(5), r#","max_completion_tokens": 7}"#, r#","max_tokens": 5}"#),
    ];
    for (kind, limit, from, to) in cases {
        assert_eq!(sent(kind, Operation::Chat, limit, from.trim_end_matches('}')).await.unwrap(), to, "{kind} {from}");
    }
}

#[tokio::test(start_paused = true)]
async fn answers_are_kept_within_the_limit() {
    use Operation::{Chat, TextCompletion};
    let cases = [
        ("openai", Chat, "", r#","max_completion_tokens":10}"#),
        ("azure", Chat, "", r#","max_completion_tokens":10}"#),
        ("mistral", Chat, "", r#","max_tokens":10}"#),
        ("openai", Chat, r#","max_tokens":50"#, r#","max_tokens":10}"#),
        ("openai", Chat, r#","max_tokens":5"#, r#","max_tokens":5}"#),
        ("openai", Chat, r#","max_tokens":5.0"#, r#","max_tokens":5}"#),
        ("openai", Chat, r#","max_tokens":4e3"#, r#","max_tokens":10}"#),
        ("openai", Chat, r#","max_tokens":null"#, r#","max_tokens":null,"max_completion_tokens":10}"#),
        (
            "custom",
            Chat,
            r#","max_completion_tokens":4,"max_tokens":99"#,
            r#","max_completion_tokens":4,"max_tokens":4}"#,
        ),
        ("openai", Chat, r#","n":3"#, r#","n":3,"max_completion_tokens":3}"#),
        ("openai", TextCompletion, "", r#","max_tokens":5}"#),
        ("openai", TextCompletion, r#","n":2,"max_tokens":16"#, r#","n":2,"max_tokens":2}"#),
        ("openai", TextCompletion, r#","best_of":5,"max_tokens":16"#, r#","best_of":5,"max_tokens":1}"#),
    ];
    for (kind, operation, from, to) in cases {
        assert_eq!(sent(kind, operation, Some(10), from).await.unwrap(), to, "{kind} {from}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_is_not_let_choose_another_model_than_was_leased() {
    let models = r#","models":["dear/one"]"#;
    for operation in [Operation::Chat, Operation::TextCompletion] {
        let fault = sent("openrouter", operation, None, models).await.unwrap_err();
        assert_eq!(fault.kind, FaultKind::BadRequest);
        assert!(fault.message.contains("`models`") && fault.message.contains("alias"), "{fault}");
        assert!(sent("openrouter", operation, None, r#","models":null"#).await.is_ok());
        assert!(sent("openai", operation, None, models).await.is_ok());
    }
}

#[tokio::test]
async fn what_cannot_be_used_is_said() {
    let good = || provider("https://example.com/v1");
    let cases = [
        (Provider { kind: "opnai".to_owned(), ..good() }, "there is no kind `opnai`"),
        (Provider { base_url: None, ..good() }, "`kind = \"custom\"` needs a `base_url`"),
        (provider("example.com/v1"), "is not a URL"),
        (provider("example.com"), "must begin with http"),
        (provider("ftp://example.com"), "must begin with http"),
        (provider("https://exa mple.com"), "is not a URL"),
        (provider("https://example.com/v1?x=1"), "query"),
        (provider("https://me:secret@example.com"), "must not hold a user and password"),
        (Provider { api_key: Some(Secret::new("line\nbreak")), ..good() }, "api_key holds characters"),
        (Provider { headers: vec![("a b".to_owned(), Secret::new("c"))], ..good() }, "header `a b`"),
    ];
    for (provider, expected) in cases {
        let problem = crate::remote::problem(&provider).unwrap();
        assert!(problem.contains(expected), "{problem}");
        assert!(!problem.contains("secret") && !problem.contains("line"), "a secret is told: {problem}");
        let state = remote(provider).model_state("m");
        assert!(matches!(&state.health, crate::BackendHealth::Unavailable(text) if text.contains(expected)));
    }
    assert_eq!(crate::remote::problem(&good()), None);
    assert_eq!(find("openai").unwrap().gen_ai_name, "openai");
}

#[tokio::test(start_paused = true)]
async fn a_disabled_provider_says_why() {
    let remote = remote(Provider { disabled: Some("set X_KEY".to_owned()), ..provider("http://127.0.0.1:1/v1") });
    let fault = fault_of(&remote, UNARY).await;
    assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::Unavailable, "set X_KEY"));
    assert_eq!(remote.counts().tries, 0);
}

#[tokio::test]
async fn secrets_are_not_printed() {
    let shown = format!("{:?}", remote(provider("https://example.com")));
    assert!(!shown.contains("provider-key"), "{shown}");
}
