//! What the client did wrong: every error has OpenAI's shape, the right status, and a text that says what to do.

use serde_json::{Value, json};
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{CHAT, COMPLETIONS, EMBEDDINGS, chat, streamed};
use tollkeeper_tests::client::{Answer, Client};
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::{Script, Upstream};

/// The parts of an error in OpenAI's shape, all four of them present.
fn parts(answer: &Answer) -> (u16, String, Value, Value, String) {
    let error = answer.error();
    let fields: Vec<&String> = error.as_object().unwrap().keys().collect();
    for field in ["message", "type", "param", "code"] {
        assert!(fields.iter().any(|known| *known == field), "no {field} in {error}");
    }
    assert_eq!(answer.header("content-type"), "application/json");
    assert!(!answer.header("x-tollkeeper-request-id").is_empty());
    let text = |name: &str| error[name].as_str().unwrap().to_owned();
    (answer.status, text("type"), error["code"].clone(), error["param"].clone(), text("message"))
}

#[tokio::test]
async fn wrong_bodies_are_refused_with_the_field_that_is_wrong() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    let message = r#"{"role":"user","content":"x"}"#;
    let with = |field: &str| format!(r#"{{"model":"up/plain","messages":[{message}],{field}}}"#);
    let cases: Vec<(&str, String, &str)> = vec![
        (CHAT, String::new(), ""),
        (CHAT, "{".into(), ""),
        (CHAT, "[]".into(), ""),
        (CHAT, "null".into(), ""),
        (CHAT, "\"text\"".into(), ""),
        (
            CHAT,
            "{\"model\":\"up/plain\",\"messages\":[{\"role\":\"user\",\"content\":\"\u{fffd}\"}]}garbage".into(),
            "",
        ),
        (CHAT, "[".repeat(100_000), ""),
        (CHAT, format!("{{\"model\":\"up/plain\",\"messages\":{}1{}}}", "[".repeat(5_000), "]".repeat(5_000)), ""),
        (CHAT, format!(r#"{{"messages":[{message}]}}"#), "model"),
        (CHAT, format!(r#"{{"model":7,"messages":[{message}]}}"#), "model"),
        (CHAT, format!(r#"{{"model":"","messages":[{message}]}}"#), "model"),
        (CHAT, r#"{"model":"up/plain"}"#.into(), "messages"),
        (CHAT, r#"{"model":"up/plain","messages":"hi"}"#.into(), "messages"),
        (CHAT, r#"{"model":"up/plain","messages":[]}"#.into(), "messages"),
        (CHAT, r#"{"model":"up/plain","messages":[{"role":"wizard","content":"x"}]}"#.into(), "messages"),
        (CHAT, r#"{"model":"up/plain","messages":[{"content":"x"}]}"#.into(), "messages"),
        (CHAT, with(r#""max_tokens":-1"#), "max_tokens"),
        (CHAT, with(r#""max_tokens":"many""#), "max_tokens"),
        (CHAT, with(r#""max_tokens":1.5"#), "max_tokens"),
        (CHAT, with(r#""temperature":"hot""#), "temperature"),
        (CHAT, with(r#""n":0"#), "n"),
        (CHAT, with(r#""n":1000000"#), "n"),
        (CHAT, with(r#""stream":"yes""#), "stream"),
        (CHAT, with(r#""stop":{}"#), "stop"),
        (CHAT, with(r#""tools":{}"#), "tools"),
        (CHAT, with(r#""response_format":"json""#), "response_format"),
        (COMPLETIONS, r#"{"model":"up/plain"}"#.into(), "prompt"),
        (COMPLETIONS, r#"{"model":"up/plain","prompt":{}}"#.into(), "prompt"),
        (EMBEDDINGS, r#"{"model":"up/plain"}"#.into(), "input"),
        (EMBEDDINGS, r#"{"model":"up/plain","input":[]}"#.into(), "input"),
        (EMBEDDINGS, r#"{"model":"up/plain","input":"x","encoding_format":"hex"}"#.into(), "encoding_format"),
    ];
    for (path, body, field) in cases {
        let answer = gateway.client().post(path, body.clone()).await;
        let shown: String = body.chars().take(200).collect();
        let (status, kind, _, param, message) = parts(&answer);
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"), "{shown}");
        assert!(message.contains(field), "{shown}: {message}");
        if !field.is_empty() {
            assert!(param.as_str().is_some_and(|param| param.starts_with(field)), "{shown}: param is {param}");
        }
    }
    assert!(upstream.received().is_empty());
    let ledger = gateway.stop().await;
    assert_eq!((ledger.total(), ledger.report.intents), (Usd(0), 0), "a request that cannot be sent leases nothing");
}

#[tokio::test]
async fn bytes_that_are_not_text_are_refused() {
    let gateway = Gateway::start(Setup::with(&Upstream::start().await)).await;
    let mut body = br#"{"model":"up/plain","messages":[{"role":"user","content":""#.to_vec();
    body.extend([0xff, 0xfe, 0x00]);
    body.extend(br#""}]}"#);
    assert_eq!(parts(&gateway.client().post(CHAT, body).await).0, 400);
}

#[tokio::test]
async fn keys_are_asked_for() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    let anybody = Client::new(gateway.addr());
    let long = "x".repeat(4_000);
    let wrong = [
        anybody.clone(),
        anybody.clone().key("tk-nobody"),
        anybody.clone().key(""),
        anybody.clone().key(&long),
        anybody.clone().header("authorization", "tk-scout-key"),
        anybody.clone().header("authorization", "Basic dGstc2NvdXQta2V5"),
    ];
    for client in wrong {
        for answer in [client.post_json(CHAT, &chat("up/plain")).await, client.get("/v1/models").await] {
            let (status, kind, code, _, message) = parts(&answer);
            assert_eq!((status, kind.as_str(), &code), (401, "invalid_request_error", &json!("invalid_api_key")));
            assert!(!message.contains("tk-nobody"), "the key is repeated: {message}");
        }
    }
    assert!(upstream.received().is_empty());
    let scheme = anybody.header("authorization", "bearer tk-scout-key");
    assert_eq!(scheme.get("/v1/models").await.status, 200, "the scheme's case does not matter");
}

#[tokio::test]
async fn models_that_are_not_there_or_not_allowed() {
    let upstream = Upstream::start().await;
    let setup = Setup::with(&upstream).alias("team/fast", &["up/plain"]);
    let setup = setup.raw("[[agents]]\nname = \"narrow\"\nkey = \"tk-narrow\"\nmodels = [\"team/*\"]\n");
    let gateway = Gateway::start(setup).await;

    for model in ["team/fasst", "nobody/knows", "plain", "a/b/c/d", "team/", "💥"] {
        let (status, kind, code, _, message) = parts(&gateway.client().post_json(CHAT, &chat(model)).await);
        assert_eq!(
            (status, kind.as_str(), &code),
            (404, "invalid_request_error", &json!("model_not_found")),
            "{model}: {message}"
        );
    }
    let (.., message) = parts(&gateway.client().post_json(CHAT, &chat("team/fasst")).await);
    assert!(message.contains("team/fast"), "{message}");

    let narrow = Client::new(gateway.addr()).key("tk-narrow");
    assert_eq!(narrow.post_json(CHAT, &chat("team/fast")).await.status, 200);
    let (status, _, _, _, message) = parts(&narrow.post_json(CHAT, &chat("up/plain")).await);
    assert_eq!(status, 403);
    assert!(message.contains("up/plain") && message.contains("narrow"), "{message}");
    assert_eq!(upstream.received().len(), 1);
}

#[tokio::test]
async fn a_model_without_a_price_is_not_sent_anywhere() {
    let upstream = Upstream::start().await;
    let openai = format!(
        "[[providers]]\nname = \"openai\"\nkind = \"openai\"\napi_key = \"k\"\nbase_url = \"{}\"\n",
        upstream.url()
    );
    let gateway = Gateway::start(Setup::new().raw(&openai)).await;
    let (status, _, code, _, message) = parts(&gateway.client().post_json(CHAT, &chat("openai/made-up-model")).await);
    assert_eq!((status, &code), (404, &json!("model_not_found")));
    assert!(message.contains("price"), "it says what is missing: {message}");
    assert!(upstream.received().is_empty());
    // One that the catalogue knows is sent.
    assert_eq!(gateway.client().post_json(CHAT, &chat("openai/gpt-4o-mini")).await.status, 200);
}

#[tokio::test]
async fn everything_else_is_not_found_or_not_allowed() {
    let gateway = Gateway::start(Setup::new()).await;
    let get = async |method: &str, path: &str| {
        let method = http::Method::from_bytes(method.as_bytes()).unwrap();
        gateway.client().open(method, path, "").await.rest().await
    };
    for path in [
        "/",
        "/v1",
        "/v1/chat",
        "/v2/chat/completions",
        "/v1/chat/completions/x",
        "/v1/images/generations",
        "/../etc/passwd",
        "/%00",
    ] {
        let (status, ..) = parts(&get("GET", path).await);
        assert_eq!(status, 404, "{path}");
    }
    for (method, path, allowed) in [
        ("GET", CHAT, "POST"),
        ("PUT", CHAT, "POST"),
        ("GET", EMBEDDINGS, "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/x", "GET"),
        ("POST", "/health/live", "GET"),
        ("POST", "/metrics", "GET"),
    ] {
        let answer = get(method, path).await;
        assert_eq!(parts(&answer).0, 405, "{method} {path}");
        assert!(answer.header("allow").contains(allowed), "{method} {path}: allow is {:?}", answer.header("allow"));
    }
    assert_eq!(get("GET", "/health/live?x=1").await.status, 200, "a query does not change the route");
}

#[tokio::test]
async fn a_provider_without_a_key_says_so_and_is_passed_over() {
    let upstream = Upstream::start().await;
    let keyless = "[[providers]]\nname = \"openai\"\nkind = \"openai\"\napi_key = \"env:TOLLKEEPER_TEST_UNSET\"\n";
    let setup = Setup::with(&upstream).raw(keyless).alias("both", &["openai/gpt-4o-mini", "up/plain"]);
    let gateway = Gateway::start(setup).await;
    assert_eq!(gateway.client().post_json(CHAT, &chat("both")).await.header("x-tollkeeper-backend"), "up/plain");
    let (status, _, _, _, message) = parts(&gateway.client().post_json(CHAT, &chat("openai/gpt-4o-mini")).await);
    assert_eq!(status, 503);
    assert!(message.contains("TOLLKEEPER_TEST_UNSET"), "{message}");
}

#[tokio::test]
async fn request_ids_come_back() {
    let upstream = Upstream::start().await;
    let gateway = Gateway::start(Setup::with(&upstream)).await;
    let named = gateway.client().header("x-request-id", "my-id-1").post_json(CHAT, &streamed("up/plain")).await;
    assert_eq!(named.header("x-request-id"), "my-id-1");
    assert_ne!(named.header("x-tollkeeper-request-id"), "my-id-1", "the ledger's id is the gateway's own");
    let [one, two] = [gateway.client().get("/health/live").await, gateway.client().get("/health/live").await];
    assert_ne!(one.header("x-request-id"), two.header("x-request-id"));
    // An id that could break a log line or a header is replaced.
    let long = "x".repeat(3_000);
    let replaced = gateway.client().header("x-request-id", &long).get("/health/live").await;
    assert_ne!(replaced.header("x-request-id"), long);
}

#[tokio::test]
async fn errors_say_who_was_asked_and_what_is_left() {
    let upstream = Upstream::always(Script::status(500)).await;
    let gateway = Gateway::start(Setup::with(&upstream).budgets(&[("day", "1.5")])).await;
    let shown = |answer: &Answer| {
        ["backend", "why", "cost-usd", "budget-remaining-usd"]
            .map(|name| answer.header(&format!("x-tollkeeper-{name}")).to_owned())
    };
    let failed = gateway.client().post_json(CHAT, &chat("up/plain")).await;
    assert_eq!((failed.status, shown(&failed)), (502, ["up/plain", "internal", "0", "1.5"].map(str::to_owned)));
    let unknown = gateway.client().post_json(CHAT, &chat("up-plain")).await;
    assert_eq!((unknown.status, shown(&unknown)), (404, ["", "model_not_found", "0", "1.5"].map(str::to_owned)));
}
