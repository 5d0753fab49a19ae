//! Pictures for local models, in OpenAI's request shape through the whole gateway: the scripted engine reads the red of each row's first pixel
//! as a letter, and a full stop.

use base64::Engine as _;
use serde_json::{Value, json};
use std::io::Cursor;
use tollkeeper_tests::asks::CHAT;
use tollkeeper_tests::client::Client;
use tollkeeper_tests::gateway::Gateway;
use tollkeeper_tests::process::Process;
use tollkeeper_tests::setup::{KEY, Setup};

/// A PNG that the scripted engine reads as this word.
fn png(word: &str) -> String {
    let red = |row: u32| word.as_bytes()[row as usize];
    let pixels =
        image::RgbImage::from_fn(3 + word.len() as u32 / 40, word.len() as u32, |_, row| image::Rgb([red(row), 1, 2]));
    let mut bytes = Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes.into_inner()))
}

/// A question about pictures.
fn about(model: &str, parts: &[&str]) -> Value {
    let part = |part: &&str| match part.contains(':') {
        true => json!({"type": "image_url", "image_url": {"url": part, "detail": "low"}}),
        false => json!({"type": "text", "text": part}),
    };
    json!({"model": model, "messages": [{"role": "user", "content": parts.iter().map(part).collect::<Vec<_>>()}]})
}

/// Two models that repeat what they read; `eyes` can see.
fn setup(host: &str) -> Setup {
    let setup = Setup::new();
    let script = setup.path("script.json");
    std::fs::write(&script, "{}").unwrap();
    [("eyes", "mmproj = \"any.gguf\""), ("blind", "")].into_iter().fold(setup, |setup, (name, line)| {
        setup.raw(&format!(
            "[[local.models]]\nname = \"{name}\"\npath = {script:?}\nengine = \"scripted\"\nhost = \"{host}\"\ncontext = 512\n\
             price = {{ input = \"1000\", output = \"0\" }}\n{line}\n"
        ))
    })
}

async fn answers(client: &Client) {
    let whole = client.post_json(CHAT, &about("eyes", &["a ", &png("kitten"), " and ", &png("rabbit")])).await;
    assert_eq!(whole.status, 200, "{}", whole.text());
    let body = whole.json();
    assert_eq!(body["choices"][0]["message"]["content"], "a kitten. and rabbit.");
    let usage = body["usage"].clone();
    // The frame of the turn takes the rest: `<|im_start|>user\n`, `<|im_end|>\n`, `<|im_start|>assistant\n`.
    assert_eq!(usage["prompt_tokens"], "a kitten. and rabbit.".len() + 6 + 2 + 11, "{usage}");
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);

    let again = client.post_json(CHAT, &about("eyes", &["a ", &png("kitten"), " and ", &png("badger")])).await.json();
    assert_eq!(again["choices"][0]["message"]["content"], "a kitten. and badger.");
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached, 6 + "a kitten. and ".len() as u64, "the first picture, and nothing of the second");

    let mut streamed = about("eyes", &[&png("kitten"), "!"]);
    streamed["stream"] = json!(true);
    let stream = client.post_json(CHAT, &streamed).await;
    let said: String = stream
        .events()
        .iter()
        .filter_map(|data| serde_json::from_str::<Value>(data).ok())
        .filter_map(|chunk| Some(chunk["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect();
    assert_eq!(said, "kitten.!");
}

#[tokio::test]
async fn pictures_are_read_where_they_stand_and_counted() {
    let gateway = Gateway::start(setup("thread")).await;
    answers(&gateway.client()).await;
    assert!(gateway.stop().await.total().0 > 0);
}

#[tokio::test]
async fn an_engine_process_sees_too() {
    let setup = setup("process");
    let process = Process::start(&setup).await;
    answers(&Client::new(process.addr()).key(KEY)).await;
}

#[tokio::test]
async fn a_picture_that_cannot_be_used_is_a_clear_400_and_costs_nothing() {
    let gateway = Gateway::start(setup("thread")).await;
    let long = png(&"x".repeat(600));
    let wide = {
        let mut bytes = Cursor::new(Vec::new());
        image::RgbImage::new(13, 1).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes.into_inner()))
    };
    let broken = png("kitten").replacen("AAAA", "AAAB", 1);
    let table = [
        ("https://example.org/kitten.png", "fetches nothing", json!(null)),
        (&broken, "cannot be decoded", json!(null)),
        (&wide, "does not like", json!(null)),
        (&long, "601 of them for 1 pictures", json!("context_length_exceeded")),
    ];
    for (url, reason, code) in table {
        let answer = gateway.client().post_json(CHAT, &about("eyes", &["see", url])).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        let error = answer.error();
        assert!(error["message"].as_str().unwrap().contains(reason), "{error}");
        assert_eq!((&error["code"], &error["param"]), (&code, &json!("messages")), "{error}");
    }
    let blind = gateway.client().post_json(CHAT, &about("blind", &["see", &png("kitten")])).await;
    assert_eq!(blind.status, 400, "{}", blind.text());
    assert_eq!(gateway.stop().await.total().0, 0);
}
