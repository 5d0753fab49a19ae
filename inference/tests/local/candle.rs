//! candle by itself: it serves several requests, says what it cannot do, and why it cannot load a file.

use crate::ask::{ask, call, chat, completion, embedding, engines, model};
use crate::loading::why_unavailable;
use crate::model::{Architecture, Folder, TRAINED, write_as, write_model};
use futures_util::future::join_all;
use std::path::Path;
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_inference::BackendHealth;
use tollkeeper_models::gguf::{TensorData, Value, write};
use tollkeeper_models::quant::Quant;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, FinishReason, ResponseFormat};
use tollkeeper_protocol::completion::CompletionRequest;
use tollkeeper_protocol::fault::FaultKind;

fn by_candle(name: &str, path: impl AsRef<Path>) -> LocalModel {
    model(name, EngineKind::Candle, path)
}

#[tokio::test]
async fn answers_are_the_same_alone_and_together() {
    let folder = Folder::new();
    for architecture in [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3, Architecture::Phi3] {
        let name = architecture.name();
        let path = folder.path(&format!("{name}.gguf"));
        write_as(architecture, &path, 3, |_| {});
        let engines = engines([by_candle(name, &path)]).await;
        let request =
            |prompt: &str| Request::Completion(CompletionRequest { logprobs: Some(0), ..completion(prompt, 30) });
        // Longer than a batch; and with more of them than slots, sequences are used again.
        let long = "one two three ".repeat(12);
        let prompts = [long.as_str(), "a", "Zażółć gęślą jaźń", "12 + 30 =", "The quick brown fox", "b"];
        let mut alone = Vec::new();
        for prompt in prompts {
            alone.push(ask(&engines, name, request(prompt)).await.unwrap());
        }
        let together = join_all(prompts.map(|prompt| ask(&engines, name, request(prompt)))).await;
        for ((prompt, alone), together) in prompts.iter().zip(alone).zip(together) {
            let together = together.unwrap();
            assert_eq!(alone.usage.input, prompt.len() as u64);
            assert!(alone.usage.output > 0);
            assert_eq!(alone.texts, together.texts, "{name}: {prompt}");
        }
    }
}

#[tokio::test]
async fn the_shipped_model_speaks_its_own_template() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/toll-tiny.gguf");
    let engines = engines([LocalModel { context: 100_000, ..by_candle("tiny", path) }]).await;
    let answer = ask(&engines, "tiny", Request::Chat(chat("What is the capital of France?"))).await.unwrap();
    assert!(answer.text().contains("Paris"), "{}", answer.text());
    assert_eq!(answer.finishes[0], Some(FinishReason::Stop));
    let fault = engines.send("tiny", call(Request::Chat(chat(&"word ".repeat(4500))))).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::ContextLength);
    assert!(fault.message.contains("4096"), "the context is cut to what candle can do: {fault}");
}

#[tokio::test]
async fn its_answers_can_be_bound_to_a_form() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/toll-tiny.gguf");
    let engines = engines([by_candle("tiny", path)]).await;
    let object = ChatRequest { response_format: ResponseFormat::JsonObject, max_tokens: Some(60), ..chat("x") };
    let answer = ask(&engines, "tiny", Request::Chat(object)).await.unwrap();
    assert!(answer.text().trim_start().starts_with('{'), "{}", answer.text());
}

#[tokio::test]
async fn what_it_cannot_do_is_refused_with_advice() {
    let folder = Folder::new();
    let engines = engines([by_candle("m", folder.path("random.gguf"))]).await;
    let fault = engines.send("m", call(Request::Embedding(embedding(&["x"])))).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::BadRequest);
    assert!(fault.message.contains("does not compute embeddings"), "{fault}");
    assert_eq!(engines.state("m").health, BackendHealth::Ready, "it goes on");
}

#[tokio::test]
async fn files_that_it_cannot_run_say_why() {
    let folder = Folder::new();
    let whole = std::fs::read(folder.path("random.gguf")).unwrap();
    std::fs::write(folder.path("empty.gguf"), b"").unwrap();
    std::fs::write(folder.path("text.gguf"), b"once upon a time there was a model").unwrap();
    std::fs::write(folder.path("cut.gguf"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(folder.path("head.gguf"), &whole[..100]).unwrap();
    let set = |key: &'static str, value: Value| {
        move |entries: &mut Vec<(String, Value)>| {
            entries.retain(|(name, _)| name != key);
            entries.push((key.into(), value));
        }
    };
    let text = |text: &str| Value::Text(text.into());
    write_model(&folder.path("alien.gguf"), 1, set("general.architecture", text("martian")));
    write_model(&folder.path("stretched.gguf"), 1, set("llama.rope.scaling.type", text("yarn")));
    write_model(&folder.path("cuts.gguf"), 1, set("tokenizer.ggml.pre", text("martian")));
    write_model(&folder.path("words.gguf"), 1, set("tokenizer.ggml.model", text("rwkv")));
    write_model(&folder.path("heads.gguf"), 1, set("llama.attention.head_count", Value::U32(7)));
    write_model(&folder.path("layers.gguf"), 1, set("llama.block_count", Value::U32(3)));
    write_model(&folder.path("mute.gguf"), 1, |entries| entries.retain(|(key, _)| !key.starts_with("tokenizer")));
    write_more(&folder.path("random.gguf"), &folder.path("more.gguf"));
    std::fs::create_dir(folder.path("folder.gguf")).unwrap();
    let table = [
        ("missing.gguf", "does not exist"),
        ("empty.gguf", "is empty"),
        ("text.gguf", "not a GGUF"),
        ("cut.gguf", "the file is cut"),
        ("head.gguf", "header (it may be cut"),
        ("alien.gguf", "`martian` (it runs llama, qwen2, qwen3, phi3); use `engine = \"llama.cpp\"`"),
        ("stretched.gguf", "scales its positions (`yarn`)"),
        ("cuts.gguf", "the rule `martian`"),
        ("words.gguf", "tokenizers of the kind `rwkv`"),
        ("heads.gguf", "candle cannot compute with this file"),
        ("layers.gguf", "blk.2."),
        ("mute.gguf", "no tokenizer"),
        ("more.gguf", "`blk.0.attn_q.bias`, which candle's `llama` leaves out"),
        ("folder.gguf", "no `config.json`"),
    ];
    let models = table.iter().map(|(name, _)| by_candle(name, folder.path(name)));
    let engines = engines(models.chain([by_candle("good", folder.path("random.gguf"))])).await;
    for (name, words) in table {
        let reason = why_unavailable(&engines, name);
        println!("{reason}");
        assert!(reason.contains(words) && !reason.contains('\n'), "{reason}");
        assert!(reason.contains(folder.path(name).to_str().unwrap()), "{reason}");
    }
    assert!(ask(&engines, "good", Request::Completion(completion("x", 2))).await.is_ok());
}

/// A Llama with a tensor that no Llama has, and none else: it is looked at before the others are missed.
fn write_more(model: &Path, path: &Path) {
    let header = tollkeeper_models::gguf::read_header(&mut std::fs::File::open(model).unwrap()).unwrap();
    let bias = TensorData::new("blk.0.attn_q.bias", None, 32, Quant::F32, &[0.0; 32]);
    write(&mut std::fs::File::create(path).unwrap(), &header.metadata, &[bias]).unwrap();
}

#[tokio::test]
async fn a_model_of_any_allowed_size_of_context_serves() {
    let folder = Folder::new();
    let engines = engines([
        LocalModel { context: 16, ..by_candle("small", folder.path("random.gguf")) },
        LocalModel { context: TRAINED + 1, ..by_candle("large", folder.path("random.gguf")) },
    ])
    .await;
    let small = ask(&engines, "small", Request::Completion(completion("0123456789", 100))).await.unwrap();
    assert!(small.usage.output <= 6, "{:?}", small.usage);
    let long = "x".repeat(TRAINED as usize - 4);
    let large = ask(&engines, "large", Request::Completion(completion(&long, 100))).await.unwrap();
    assert!(large.usage.output <= 4, "{:?}", large.usage);
}
