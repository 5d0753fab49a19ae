//! Error answers of providers, and our own.

use serde_json::json;
use std::time::Duration;
use tollkeeper_protocol::fault::FaultKind::{self, *};
use tollkeeper_protocol::openai::{ErrorBody, decode_error};

#[test]
fn kinds_follow_from_status_and_words() {
    let cases: [(u16, &str, FaultKind, &str); 37] = [
        // OpenAI
        (
            400,
            r#"{"error":{"message":"This model's maximum context length is 128000 tokens. However, you requested 130000.","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}"#,
            ContextLength,
            "This model's maximum context length is 128000 tokens. However, you requested 130000.",
        ),
        (
            400,
            r#"{"error":{"message":"Unknown parameter: 'x'.","type":"invalid_request_error","param":"x","code":"unknown_parameter"}}"#,
            BadRequest,
            "Unknown parameter: 'x'.",
        ),
        (
            401,
            r#"{"error":{"message":"Incorrect API key provided: sk-abcd********************wxyz. You can find your API key at https://platform.openai.com/account/api-keys.","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#,
            Auth,
            "Incorrect API key provided: [redacted] You can find your API key at https://platform.openai.com/account/api-keys.",
        ),
        (
            403,
            r#"{"error":{"code":"unsupported_country_region_territory","message":"Country, region, or territory not supported","param":null,"type":"request_forbidden"}}"#,
            Auth,
            "Country, region, or territory not supported",
        ),
        (
            404,
            r#"{"error":{"message":"The model `gpt-9` does not exist or you do not have access to it.","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#,
            NotFound,
            "The model `gpt-9` does not exist or you do not have access to it.",
        ),
        (
            429,
            r#"{"error":{"message":"Rate limit reached for gpt-4o","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#,
            RateLimited,
            "Rate limit reached for gpt-4o",
        ),
        (
            429,
            r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
            Unavailable,
            "You exceeded your current quota, please check your plan and billing details.",
        ),
        (
            500,
            r#"{"error":{"message":"The server had an error","type":"server_error","param":null,"code":null}}"#,
            Internal,
            "The server had an error",
        ),
        (
            503,
            r#"{"error":{"message":"The engine is currently overloaded, please try again later","type":"server_error","param":null,"code":null}}"#,
            Overloaded,
            "The engine is currently overloaded, please try again later",
        ),
        // Groq
        (
            413,
            r#"{"error":{"message":"Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 9000","type":"tokens","code":"rate_limit_exceeded"}}"#,
            RateLimited,
            "Request too large for model `x` on tokens per minute (TPM): Limit 6000, Requested 9000",
        ),
        (
            498,
            r#"{"error":{"message":"Flex tier capacity exceeded","type":"capacity_exceeded"}}"#,
            Overloaded,
            "Flex tier capacity exceeded",
        ),
        (
            400,
            r#"{"error":{"message":"The model `mixtral` has been decommissioned","type":"invalid_request_error","code":"model_decommissioned"}}"#,
            NotFound,
            "The model `mixtral` has been decommissioned",
        ),
        // Azure
        (
            404,
            r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
            NotFound,
            "The API deployment for this resource does not exist.",
        ),
        (
            401,
            r#"{"statusCode": 401, "message": "Unauthorized. Access token is missing, invalid, audience is incorrect, or have expired."}"#,
            Auth,
            "Unauthorized. Access token is missing, invalid, audience is incorrect, or have expired.",
        ),
        (
            400,
            r#"{"error":{"message":"The response was filtered","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
            BadRequest,
            "The response was filtered",
        ),
        // Gemini's OpenAI endpoint
        (
            400,
            r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}]"#,
            Auth,
            "API key not valid. Please pass a valid API key.",
        ),
        (
            400,
            r#"[{"error":{"code":400,"message":"The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).","status":"INVALID_ARGUMENT"}}]"#,
            ContextLength,
            "The input token count (2000000) exceeds the maximum number of tokens allowed (1048576).",
        ),
        (
            429,
            r#"[{"error":{"code":429,"message":"Resource has been exhausted","status":"RESOURCE_EXHAUSTED"}}]"#,
            RateLimited,
            "Resource has been exhausted",
        ),
        (
            200,
            r#"[{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}]"#,
            Overloaded,
            "The model is overloaded.",
        ),
        // vLLM, llama-server, Ollama, LM Studio
        (
            400,
            r#"{"object":"error","message":"This model's maximum context length is 4096 tokens.","type":"BadRequestError","param":null,"code":400}"#,
            ContextLength,
            "This model's maximum context length is 4096 tokens.",
        ),
        (
            200,
            r#"{"object":"error","message":"bad","type":"BadRequestError","param":null,"code":400}"#,
            BadRequest,
            "bad",
        ),
        (
            400,
            r#"{"error":{"code":400,"message":"request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":9000,"n_ctx":4096}}"#,
            ContextLength,
            "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it",
        ),
        (
            503,
            r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
            Overloaded,
            "Loading model",
        ),
        (404, r#"{"error":"model 'x' not found"}"#, NotFound, "model 'x' not found"),
        // Mistral, DeepSeek, OpenRouter, Anthropic
        (
            422,
            r#"{"object":"error","message":{"detail":[{"type":"missing","loc":["body","messages"],"msg":"Field required"}]},"type":"invalid_request_error","code":null}"#,
            BadRequest,
            "Field required",
        ),
        (422, r#"{"detail":[{"loc":["body"],"msg":"first"},{"msg":"second"}]}"#, BadRequest, "first; second"),
        (
            402,
            r#"{"error":{"message":"Insufficient Balance","type":"unknown_error","param":null,"code":"invalid_request_error"}}"#,
            Unavailable,
            "Insufficient Balance",
        ),
        (402, r#"{"error":{"code":402,"message":"Insufficient credits"}}"#, Unavailable, "Insufficient credits"),
        (
            529,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}"#,
            Overloaded,
            "Overloaded",
        ),
        // Things that are no JSON
        (
            502,
            "<html>\r\n<head><title>502 Bad Gateway</title></head><body>nginx</body></html>",
            Internal,
            "502 Bad Gateway",
        ),
        (504, "<!DOCTYPE html><p>no title</p>", Internal, "the provider answered with status 504 and no explanation"),
        (503, "upstream connect error\n  or disconnect", Overloaded, "upstream connect error or disconnect"),
        (408, "", Timeout, "the provider answered with status 408 and no explanation"),
        // Inside a stream
        (200, r#"{"error":{"message":"x","type":"rate_limit_error"}}"#, RateLimited, "x"),
        (200, r#"{"error":{"message":"x","type":"invalid_request_error"}}"#, BadRequest, "x"),
        (200, r#"{"error":{"code":"429","message":"x"}}"#, RateLimited, "x"),
        (200, r#"{"error":{}}"#, Internal, "the provider reported an error without an explanation"),
    ];
    for (status, body, kind, message) in cases {
        let fault = decode_error(status, None, body.as_bytes());
        assert_eq!((fault.kind, fault.message.as_str()), (kind, message), "{status} {body}");
    }
}

#[test]
fn carries_the_providers_words_and_wait() {
    let body = br#"{"error":{"message":"m","type":"t","code":"c","param":"p"}}"#;
    let fault = decode_error(429, Some(Duration::from_secs(3)), body);
    let detail = fault.detail.unwrap();
    assert_eq!(
        (detail.r#type.as_deref(), detail.code.as_deref(), detail.param.as_deref()),
        (Some("t"), Some("c"), Some("p"))
    );
    assert_eq!((fault.status, fault.retry_after), (Some(429), Some(Duration::from_secs(3))));

    let google = json!([{"error": {"code": 429, "message": "m", "details": [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure"},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17.5s"}]}}]);
    assert_eq!(decode_error(429, None, google.to_string().as_bytes()).retry_after, Some(Duration::from_millis(17_500)));
    assert!(decode_error(500, None, b"boom").detail.is_none());
}

#[test]
fn messages_are_short_and_hold_no_keys() {
    let long = decode_error(500, None, "word ".repeat(10_000).as_bytes());
    assert!(long.message.len() < 1100 && long.message.ends_with(" …"), "{}", long.message.len());
    assert!(decode_error(500, None, "x".repeat(100_000).as_bytes()).message.len() <= 1000);
    for key in [
        "sk-proj-0123456789abcdef",
        "\"gsk_0123456789abcdef\"",
        "AIzaSy0123456789abcdef",
        "(xai-0123456789abcdef)",
        "abc***xyz",
    ] {
        let fault = decode_error(401, None, format!("the key {key} is wrong").as_bytes());
        assert_eq!(fault.message, "the key [redacted] is wrong");
    }
}

#[test]
fn our_errors_have_openais_shape() {
    let body = ErrorBody {
        message: "say \"please\"".into(),
        r#type: "invalid_request_error".into(),
        code: None,
        param: Some("model".into()),
        budget: None,
    };
    assert_eq!(
        body.to_json(),
        r#"{"error":{"message":"say \"please\"","type":"invalid_request_error","param":"model","code":null}}"#
    );
    let budget = ErrorBody { budget: Some(json!({"scope": "agent"})), ..body };
    let written: serde_json::Value = serde_json::from_slice(&budget.to_json()).unwrap();
    assert_eq!(written["error"]["budget"]["scope"], "agent");
}
