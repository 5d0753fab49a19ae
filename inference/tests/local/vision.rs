//! Pictures, by llama.cpp's own code: tiny random projectors before tiny random models.

use crate::ask::{Answer, ask, chat, engines, local};
use crate::loading::why_unavailable;
use crate::model::{Architecture, Folder, IM_END, write_as, write_model};
use base64::Engine as _;
use futures_util::future::join_all;
use std::io::Cursor;
use tollkeeper_config::{KvCache, Local, LocalModel};
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_models::projector::{Kind, Projector};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, Part, Sampling};
use tollkeeper_protocol::fault::{FaultKind, ProviderFault};

const WIDTH: usize = 32;
/// Each kind with the tokens that it makes of [`picture`].
const KINDS: [(Kind, u64); 2] =
    [(Kind::Llava, 16), (Kind::Qwen2Vl, ("<|vision_start|><|vision_end|>".len() + 15) as u64)];

/// A model and its projector. One slot: in a batch with others, a token may differ that was nearly a tie.
fn seeing(folder: &Folder, kind: Kind) -> LocalModel {
    let (name, eyes) = (format!("{kind:?}.gguf"), folder.path(&format!("{kind:?}-eyes.gguf")));
    match kind {
        Kind::Llava => write_model(&folder.path(&name), 1, |_| {}),
        Kind::Qwen2Vl => write_as(Architecture::Qwen2Vl, &folder.path(&name), 1, |_| {}),
    }
    Projector::small(kind, WIDTH).write(&eyes).unwrap();
    LocalModel { mmproj: Some(eyes), slots: 1, context: 1024, ..folder.named(&name) }
}

/// 40 by 24 pixels of stripes.
fn picture(shade: u8) -> String {
    let pixels = image::RgbImage::from_fn(40, 24, |x, y| image::Rgb([shade, (x * 6) as u8, (y * shade as u32) as u8]));
    let mut png = Cursor::new(Vec::new());
    pixels.write_to(&mut png, image::ImageFormat::Png).unwrap();
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png.into_inner()))
}

fn about(text: &str, pictures: &[String]) -> ChatRequest {
    let mut request = ChatRequest {
        max_tokens: Some(20),
        top_logprobs: Some(0),
        sampling: Sampling {
            temperature: Some(0.0),
            logit_bias: vec![(0, -100.0), (IM_END, -100.0)],
            ..Sampling::default()
        },
        ..chat(text)
    };
    request.messages[0].content.extend(pictures.iter().cloned().map(Part::Image));
    request
}

async fn see(engines: &LocalEngines, model: &LocalModel, request: ChatRequest) -> Result<Answer, ProviderFault> {
    ask(engines, &model.name, Request::Chat(request)).await
}

/// What was said, byte by byte, with how sure the model was.
fn said(answer: &Answer) -> Vec<(Vec<u8>, f32)> {
    assert!(answer.fault.is_none(), "{answer:?}");
    answer.logprobs.iter().map(|token| (token.bytes.clone(), token.logprob.unwrap())).collect()
}

/// Whether two answers are the same, but for the order in which numbers were added up.
fn alike(one: &Answer, two: &Answer) -> bool {
    let (one, two) = (said(one), said(two));
    one.len() == two.len() && one.iter().zip(&two).all(|((a, sure), (b, too))| a == b && (sure - too).abs() < 1e-2)
}

#[tokio::test]
async fn a_picture_is_seen_once_and_another_one_is_seen_anew() {
    let folder = Folder::new();
    for (kind, length) in KINDS {
        let model = seeing(&folder, kind);
        let engines = engines([model.clone()]).await;
        let bare = see(&engines, &model, about("What is this? ", &[])).await.unwrap();
        let first = see(&engines, &model, about("What is this? ", &[picture(40)])).await.unwrap();
        assert_eq!(first.usage.input, bare.usage.input + length, "{kind:?}");
        let again = see(&engines, &model, about("What is this? ", &[picture(40)])).await.unwrap();
        assert_eq!(again.usage.cached_input, first.usage.input - 1, "{kind:?}");
        assert!(alike(&first, &again), "{kind:?}: {:?} {:?}", said(&first), said(&again));
        let other = see(&engines, &model, about("What is this? ", &[picture(200)])).await.unwrap();
        assert!(!alike(&first, &other) && !alike(&first, &bare), "{kind:?}");
        // What stands before the picture, and nothing of it: the frame of the turn, and 14 letters.
        let before = 1 + "user\nWhat is this? ".len() as u64;
        assert_eq!(other.usage.cached_input, before, "{kind:?}");
        let twice = see(&engines, &model, about("What is this? ", &[picture(200), picture(40)])).await.unwrap();
        assert_eq!(twice.usage.input, bare.usage.input + 2 * length, "{kind:?}");
        assert_eq!(twice.usage.cached_input, before + length, "{kind:?}");
        engines.shutdown().await;
    }
}

/// A second question after the first and its answer.
fn go_on(request: &ChatRequest) -> ChatRequest {
    let mut longer = request.clone();
    longer.messages.extend(chat("And why? ").messages);
    longer.messages[1].content.push(Part::Image(picture(99)));
    longer.messages.extend(chat("Tell me.").messages);
    longer
}

#[tokio::test]
async fn a_conversation_about_pictures_goes_on_as_if_it_was_read_at_once() {
    let folder = Folder::new();
    for (kind, _) in KINDS {
        let model = seeing(&folder, kind);
        let first = about("What is this? ", &[picture(40)]);
        let fresh = engines([model.clone()]).await;
        let expected = see(&fresh, &model, go_on(&first)).await.unwrap();
        fresh.shutdown().await;
        let engines = engines([model.clone()]).await;
        see(&engines, &model, first.clone()).await.unwrap();
        let got = see(&engines, &model, go_on(&first)).await.unwrap();
        assert!(got.usage.cached_input > 30 && got.usage.input == expected.usage.input, "{kind:?} {:?}", got.usage);
        assert!(alike(&expected, &got), "{kind:?}: {:?} {:?}", said(&expected), said(&got));
        engines.shutdown().await;
    }
}

#[tokio::test]
async fn what_was_seen_is_kept_over_a_restart() {
    let folder = Folder::new();
    for (kind, _) in KINDS {
        let model = seeing(&folder, kind);
        let kv_cache = KvCache { folder: Some(folder.path("kv")), ..KvCache::default() };
        let config = Local { kv_cache, ..local([model.clone()]) };
        let long = "What is this? ".repeat(12);
        let mut answers = Vec::new();
        for (shade, cached) in [(40, 0), (40, 180), (200, 170)] {
            let engines = LocalEngines::start(&config, None);
            engines.ready().await;
            let answer = see(&engines, &model, about(&long, &[picture(shade)])).await.unwrap();
            let got = answer.usage.cached_input;
            let at_most = if shade == 200 { long.len() as u64 + 6 } else { answer.usage.input - 1 };
            assert!((cached..=at_most).contains(&got), "{kind:?}, {shade}: {:?}", answer.usage);
            answers.push(answer);
            engines.shutdown().await;
        }
        assert!(alike(&answers[0], &answers[1]) && !alike(&answers[0], &answers[2]), "{kind:?}");
    }
}

#[tokio::test]
async fn text_is_answered_as_without_a_projector_and_beside_pictures() {
    let folder = Folder::new();
    for (kind, _) in KINDS {
        let model = LocalModel { slots: 4, queue: 16, ..seeing(&folder, kind) };
        let blind = LocalModel { mmproj: None, ..model.clone() };
        let alone = engines([blind.clone()]).await;
        let expected = see(&alone, &blind, about("What is this? ", &[])).await.unwrap();
        let refused = see(&alone, &blind, about("What is this? ", &[picture(40)])).await.unwrap_err();
        assert!(refused.kind == FaultKind::BadRequest && refused.message.contains("cannot see"), "{refused:?}");
        alone.shutdown().await;
        let engines = engines([model.clone()]).await;
        let requests = (0..8).map(|at| about("What is this? ", &if at % 2 == 1 { vec![picture(at)] } else { vec![] }));
        let answers = join_all(requests.map(|request| see(&engines, &model, request))).await;
        for (at, answer) in answers.into_iter().enumerate() {
            let answer = answer.unwrap();
            assert_eq!(alike(&expected, &answer), at % 2 == 0, "{kind:?}, {at}");
        }
        engines.shutdown().await;
    }
}

#[tokio::test]
async fn what_cannot_be_seen_is_the_requests_fault() {
    let folder = Folder::new();
    let model = LocalModel { context: 64, ..seeing(&folder, Kind::Llava) };
    let engines = engines([model.clone()]).await;
    let many: Vec<String> = (0..4).map(picture).collect();
    let table = [
        (about("x", &["https://example.org/x.png".into()]), FaultKind::BadRequest, "fetches nothing"),
        (about("x", &["data:image/png;base64,AAAA".into()]), FaultKind::BadRequest, "picture 1 of the request"),
        (about("x", &[picture(1), "data:,".into()]), FaultKind::BadRequest, "picture 2 of the request"),
        (about("\u{FDD1}", &[picture(1)]), FaultKind::BadRequest, "U+FDD1"),
        (about("x", &many), FaultKind::ContextLength, "64 of them for 4 pictures"),
        (about("x", &vec![picture(1); 17]), FaultKind::BadRequest, "at most 16"),
    ];
    for (request, kind, reason) in table {
        let fault = see(&engines, &model, request).await.unwrap_err();
        assert!(fault.kind == kind && fault.message.contains(reason), "{fault:?}");
    }
    // Without pictures the characters are text like any other.
    see(&engines, &model, about("\u{FDD1}", &[])).await.unwrap();
}

#[tokio::test]
async fn a_projector_that_does_not_belong_to_the_model_fails_its_load() {
    let folder = Folder::new();
    let model = seeing(&folder, Kind::Llava);
    Projector::small(Kind::Llava, 64).write(&folder.path("wide.gguf")).unwrap();
    std::fs::write(folder.path("text.gguf"), "hello").unwrap();
    let table = [
        ("nowhere.gguf", "does not exist"),
        ("text.gguf", "not a GGUF"),
        ("random.gguf", "cannot be used"),
        ("wide.gguf", "n_embd = 32"),
    ];
    for (file, reason) in table {
        let model = LocalModel { mmproj: Some(folder.path(file)), ..model.clone() };
        let engines = engines([model.clone()]).await;
        let why = why_unavailable(&engines, &model.name);
        assert!(why.contains("its projector") && why.contains(reason), "{file}: {why}");
    }
}
