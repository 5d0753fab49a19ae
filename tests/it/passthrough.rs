//! Same dialect on both sides: bytes go through untouched, in both directions, but for what must change.

use bytes::Bytes;
use serde_json::{Value, json};
use tollkeeper_config::Usd;
use tollkeeper_tests::asks::{
    CHAT, COMPLETIONS, EMBEDDINGS, chat, completion, embedding, streamed, streamed_with_usage,
};
use tollkeeper_tests::client::Client;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::setup::Setup;
use tollkeeper_tests::upstream::{
    Content, Counted, Fault, Framing, Gate, Hold, Script, ToolForm, Upstream, UsageRule, Vendor,
};

async fn gateway(upstream: &Upstream) -> Gateway {
    Gateway::start(Setup::with(upstream).alias("team/fast", &["up/plain"])).await
}

/// The text without what the gateway adds to a usage object and to the object around it.
fn without_extension(text: &str) -> String {
    let cut = |text: &str, from: &str, to: &str| match text.find(from) {
        None => text.to_owned(),
        Some(start) => {
            let end = start + from.len() + text[start + from.len()..].find(to).unwrap() + to.len();
            text[..start].to_owned() + &text[end..]
        }
    };
    cut(&cut(text, ",\"cost_usd\":\"", "\""), ",\"tollkeeper\":{", "}")
}

#[tokio::test]
async fn requests_reach_the_provider_byte_for_byte_but_for_the_model() {
    let upstream = Upstream::start().await;
    let gateway = gateway(&upstream).await;
    let bodies = [
        (CHAT, r#"{"model":"team/fast","messages":[{"role":"user","content":"hi"}]}"#),
        (
            CHAT,
            "{ \"messages\" : [ { \"content\":\"hi\" , \"role\":\"user\" } ] ,\n\t\"model\" :  \"team/fast\"\r\n}\n",
        ),
        (
            CHAT,
            r#"{"zebra":1,"model":"team/fast","alpha":{"model":"not this one"},"messages":[{"role":"user","content":"model: \"team/fast\""}]}"#,
        ),
        (CHAT, r#"{"messages":[{"role":"user","content":"\u00e9\/ é \ud83d\ude00 😀"}],"model":"team\/fast"}"#),
        (
            CHAT,
            r#"{"model":"team/fast","messages":[{"role":"user","content":"hi"}],"seed":9223372036854775807,"x":[1.0,1e2,-0,100000000000000000001,0.10]}"#,
        ),
        (
            CHAT,
            r#"{"model":"team/fast","messages":[{"role":"user","content":[{"type":"text","text":"what"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA","detail":"low"}}]}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"b":{},"a":{}}}}}],"response_format":{"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{}}}}"#,
        ),
        (COMPLETIONS, r#"{"prompt":["a", "b"],"model":"team/fast","max_tokens":3,"logit_bias":{"50256":-100}}"#),
        (EMBEDDINGS, r#"{"input":["a","b"],"model":"team/fast","encoding_format":"base64","user":"u"}"#),
    ];
    for (number, (path, body)) in bodies.into_iter().enumerate() {
        let answer = gateway.client().post(path, body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        let received = &upstream.received()[number];
        let expected = body.replacen(r#""team/fast""#, r#""plain""#, 1).replacen(r#""team\/fast""#, r#""plain""#, 1);
        assert_eq!(String::from_utf8_lossy(&received.body), expected);
        assert_eq!(received.path, path);
    }
}

#[tokio::test]
async fn the_provider_gets_its_own_key_and_none_of_the_clients_secrets() {
    let upstream = Upstream::start().await;
    let gateway = gateway(&upstream).await;
    let client = gateway.client().header("cookie", "secret=1").header("openai-organization", "org-of-the-client");
    assert_eq!(client.post_json(CHAT, &chat("team/fast")).await.status, 200);
    let request = upstream.only();
    assert_eq!(request.header("authorization"), "Bearer sk-up");
    assert_eq!(request.header("content-type"), "application/json");
    assert_eq!(request.header("host"), upstream.addr().to_string());
    assert_eq!((request.header("cookie"), request.header("openai-organization")), ("", ""));
}

#[tokio::test]
async fn a_stream_without_usage_is_asked_for_usage_and_nothing_else_changes() {
    let upstream = Upstream::start().await;
    let gateway = gateway(&upstream).await;
    let body = r#"{ "model":"team/fast", "stream":true, "messages":[{"role":"user","content":"hi"}] }"#;
    gateway.client().post(CHAT, body).await;
    let sent = String::from_utf8(upstream.only().body.to_vec()).unwrap();
    assert_eq!(sent.replace(r#","stream_options":{"include_usage":true}"#, ""), body.replace("team/fast", "plain"));
    assert_ne!(sent.len(), body.len() - 4, "usage was asked for");

    for (number, options) in
        [json!({}), json!({"include_usage": false}), json!(null), json!({"include_obfuscation": false})]
            .iter()
            .enumerate()
    {
        let mut ask = streamed("team/fast");
        ask["stream_options"] = options.clone();
        let answer = gateway.client().post_json(CHAT, &ask).await;
        assert!(!answer.text().contains("prompt_tokens"), "usage that was not asked for stays here: {}", answer.text());
        let mut sent = upstream.received()[number + 1].json();
        assert_eq!(sent["stream_options"]["include_usage"], true);
        sent["stream_options"].as_object_mut().unwrap().remove("include_usage");
        let mut wanted = options.as_object().cloned().unwrap_or_default();
        wanted.remove("include_usage");
        assert_eq!(sent["stream_options"], Value::from(wanted), "other options are kept");
    }

    let ask = streamed_with_usage("up/plain");
    gateway.client().post_json(CHAT, &ask).await;
    let sent = upstream.received().pop().unwrap().body;
    assert_eq!(
        sent,
        Bytes::from(ask.to_string().replace("up/plain", "plain")),
        "who asked for usage is passed on as it is"
    );
}

#[tokio::test]
async fn whole_answers_come_back_byte_for_byte() {
    let scripts = [
        Script::default(),
        Script::says(Content::Tools(ToolForm::Interleaved)),
        Script::says(Content::Refusal(2)),
        Script::says(Content::Reasoning(3, 2)),
        Script::says(Content::Filtered(2)),
        Script::default().with_vendor(Vendor::DeepSeek).with_cached(1),
        Script::default().with_vendor(Vendor::Groq),
        Script::default().with_usage(UsageRule::Missing),
        Script::default().with_usage(UsageRule::Zero),
    ];
    for script in scripts {
        let upstream = Upstream::always(script.clone()).await;
        let gateway = gateway(&upstream).await;
        for (path, ask) in
            [(CHAT, chat("up/plain")), (COMPLETIONS, completion("up/plain")), (EMBEDDINGS, embedding("up/plain"))]
        {
            let direct: Value = serde_json::from_str(&ask.to_string().replace("up/plain", "plain")).unwrap();
            let direct = Client::new(upstream.addr()).post_json(path, &direct).await;
            let through = gateway.client().post_json(path, &ask).await;
            assert_eq!(through.status, 200, "{}", through.text());
            assert_eq!(through.body, direct.body, "{path} {script:?}");
            assert!(!through.header("x-tollkeeper-cost-usd").is_empty());
            assert_eq!(through.header("content-type"), direct.header("content-type"));
        }
    }
}

#[tokio::test]
async fn streams_come_back_byte_for_byte_but_for_the_cost() {
    let framings = [
        Framing::Plain,
        Framing::CrLf,
        Framing::Comments,
        Framing::Fields,
        Framing::MultiLine,
        Framing::CutEvery(1),
        Framing::CutEvery(5),
        Framing::OneWrite,
    ];
    let tools = [
        ToolForm::One,
        ToolForm::Interleaved,
        ToolForm::NoId,
        ToolForm::NoName,
        ToolForm::NoIndex,
        ToolForm::NegativeIndex,
        ToolForm::ArgumentsAtEnd,
    ];
    let scripts = framings
        .map(|framing| Script::default().with_framing(framing))
        .into_iter()
        .chain(tools.map(|form| Script::says(Content::Tools(form))))
        .chain([
            Script::says(Content::Reasoning(3, 2)),
            Script::says(Content::Refusal(2)),
            Script::says(Content::Filtered(2)),
            Script::default().with_vendor(Vendor::Azure),
            Script::default().with_vendor(Vendor::Groq),
            Script::default().with_vendor(Vendor::DeepSeek).with_cached(1),
            Script::default().with_usage(UsageRule::Zero),
            Script::default().without_done(),
            Script::fault(Fault::BadLineAfter(2)),
        ]);
    for script in scripts {
        let upstream = Upstream::always(script.clone()).await;
        let gateway = gateway(&upstream).await;
        for (path, mut ask) in [(CHAT, streamed_with_usage("plain")), (COMPLETIONS, completion("plain"))] {
            ask["stream"] = json!(true);
            ask["stream_options"] = json!({"include_usage": true});
            let direct = Client::new(upstream.addr()).post_json(path, &ask).await;
            ask["model"] = json!("up/plain");
            let through = gateway.client().post_json(path, &ask).await;
            let plain = |text: &str| {
                let text = text.replace("\r\n", "\n").replace("event: message\nid: 7\n", "");
                text.replace("data:{", "data: {").replace("\ndata: \"object\"", "\"object\"")
            };
            // Clients wait for the end marker, so a forgotten one is made up for.
            let done = if script.no_done { "data: [DONE]\n\n" } else { "" };
            let (direct, through) = (direct.text() + done, through.text());
            if script.usage == UsageRule::Missing {
                // Who asked for usage gets it, estimated; all else is as it came.
                let (added, rest): (Vec<&str>, Vec<&str>) =
                    through.split_inclusive("\n\n").partition(|event| event.contains("cost_usd"));
                assert_eq!((added.len(), rest.concat()), (1, direct), "{path} {script:?}");
            } else if through.contains("cost_usd") {
                // The usage chunk is written anew; its data says the same.
                assert_eq!(without_extension(&plain(&through)), plain(&direct), "{path} {script:?}");
            } else {
                assert_eq!(through, direct, "{path} {script:?}");
            }
        }
    }
}

#[tokio::test]
async fn usage_that_was_asked_for_and_not_given_is_made_up_for() {
    let upstream = Upstream::always(Script::default().with_usage(UsageRule::Missing)).await;
    let gateway = gateway(&upstream).await;
    let direct = Client::new(upstream.addr()).post_json(CHAT, &streamed_with_usage("plain")).await.text();
    let through = gateway.client().post_json(CHAT, &streamed_with_usage("up/plain")).await;
    let before = direct.strip_suffix("data: [DONE]\n\n").unwrap();
    assert!(through.text().starts_with(before), "what the provider sent is not touched: {}", through.text());
    let events = through.events();
    assert_eq!((events.len(), events.last().unwrap().as_str()), (direct.matches("data: ").count() + 1, "[DONE]"));
    let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
    assert_eq!(last["choices"], json!([]));
    let told = Usd::parse_decimal(last["usage"]["cost_usd"].as_str().unwrap()).unwrap();
    assert!(told > Usd(0));
    assert_eq!(gateway.stop().await.total(), told, "an estimate is charged as it was told");
}

#[tokio::test]
async fn frames_that_nobody_here_understands_survive() {
    let frames = [
        r#"{"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.10,"bytes":[97],"top_logprobs":[]}],"refusal":null}}]}"#,
        r#"{"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"reasoning_details":[{"type":"reasoning.encrypted","data":"x=="}]}}]}"#,
        r#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]},{"type":"text","text":"b"}]}}]}"#,
        r#"{"type":"response.output_text.delta","sequence_number":7,"delta":"c"}"#,
        r#"{"object":"chat.completion.chunk","choices":null}"#,
        r#"{"choices":[{"index":0,"delta":{"audio":{"id":"a","data":"AAAA"}},"finish_reason":null}],"citations":["https://example.org"]}"#,
        r#"{}"#,
        "12",
        r#"{ "choices" : [ { "delta" : { "content" : "\u00e9\ud83d\ude00" } , "finish_reason" : "function_call" } ] }"#,
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop","native_finish_reason":"end_turn"}]}"#,
    ];
    let script = Script::says(Content::Verbatim(frames.map(str::to_owned).to_vec(), Counted::default()));
    let upstream = Upstream::always(script).await;
    let gateway = gateway(&upstream).await;
    let direct = Client::new(upstream.addr()).post_json(CHAT, &streamed("plain")).await;
    let through = gateway.client().post_json(CHAT, &streamed("up/plain")).await;
    assert_eq!(through.text(), direct.text());
    assert_eq!(through.events().len(), frames.len() + 1);
    assert!(gateway.stop().await.total() > Usd(0), "text that was delivered is metered");
}

#[tokio::test]
async fn streams_with_n_answers_go_through() {
    let upstream = Upstream::start().await;
    let gateway = gateway(&upstream).await;
    let mut ask = streamed_with_usage("up/plain");
    ask["n"] = json!(3);
    let answer = gateway.client().post_json(CHAT, &ask).await;
    let chunks: Vec<Value> = answer.events().iter().filter_map(|data| serde_json::from_str(data).ok()).collect();
    for index in 0..3 {
        let mine = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index);
        let text: String = mine.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, "000 001 002 003 004 ", "choice {index}");
    }
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 15);
}

#[tokio::test]
async fn each_piece_is_passed_on_before_the_next_one_is_made() {
    let gate = Gate::default();
    let upstream = Upstream::always(Script::default().with_hold(Hold::Frames(gate.clone()))).await;
    let gateway = gateway(&upstream).await;
    // The first frame must be there before the head of the answer is sent.
    gate.open(1);
    let mut open = gateway.client().stream(CHAT, &streamed("up/plain")).await;
    assert!(open.next_event().await.unwrap().unwrap().contains("\"role\""));
    for number in 0..5 {
        gate.open(1);
        let event = open.next_event().await.unwrap().unwrap();
        assert!(event.contains(&format!("{number:03} ")), "{event}");
    }
    gate.open_wide();
    assert!(open.rest().await.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn connections_to_the_provider_are_used_again() {
    let upstream = Upstream::start().await;
    let gateway = gateway(&upstream).await;
    for number in 0..20 {
        let ask = if number % 2 == 0 { chat("up/plain") } else { streamed("up/plain") };
        assert_eq!(gateway.client().post_json(CHAT, &ask).await.status, 200);
    }
    let connections = upstream.received().iter().map(|request| request.connection).max().unwrap() + 1;
    // A stream's connection may come back a moment after its last byte.
    assert!(connections <= 2, "{connections} connections for 20 requests one after another");
}

#[tokio::test]
async fn a_slow_reader_slows_the_provider_down_instead_of_filling_memory() {
    let upstream = Upstream::always(Script::says(Content::Endless)).await;
    let gateway = gateway(&upstream).await;
    let mut open = gateway.client().stream(CHAT, &streamed("up/plain")).await;
    open.next_event().await.unwrap().unwrap();
    // Nobody reads on: the sockets' buffers fill up, and then the provider must stand still.
    let mut last = (0, 0);
    tollkeeper_tests::wait::eventually("the provider's standstill", async || {
        let sent = upstream.served()[0].bytes_sent;
        last = if sent == last.0 { (sent, last.1 + 1) } else { (sent, 0) };
        (last.1 >= 100).then_some(())
    })
    .await;
    assert!(last.0 < 64 << 20, "{} bytes were taken from the provider for a client that reads nothing", last.0);
    drop(open);
    upstream.wait_for_disconnect().await;
}
