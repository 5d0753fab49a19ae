//! One model file in several ways: with LoRA adapters, and with other ways from tokens to an embedding.

use crate::ask::{ask, completion, embed, embedding, engines};
use crate::loading::why_unavailable;
use crate::model::{Folder, write_adapter};
use tollkeeper_config::{LocalModel, LoraAdapter, Pooling};
use tollkeeper_models::random::Recipe;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::embedding::EmbeddingRequest;
use tollkeeper_protocol::fault::FaultKind;

/// The folder's model under another name, with an adapter.
fn with_adapter(folder: &Folder, name: &str, file: &str, scale: f32) -> LocalModel {
    let lora = vec![LoraAdapter { path: folder.path(file), scale }];
    LocalModel { name: name.into(), lora, ..folder.model() }
}

#[tokio::test]
async fn an_adapter_changes_its_own_model_only_and_as_much_as_its_scale_says() {
    let folder = Folder::new();
    write_adapter(&folder.path("adapter.gguf"), "llama", 32);
    let scales = [("off", 0.0), ("on", 1.0), ("twice", 2.0)];
    let models = scales.map(|(name, scale)| with_adapter(&folder, name, "adapter.gguf", scale));
    let engines = engines(models.into_iter().chain([folder.model()])).await;
    let mut said = Vec::new();
    for name in ["random.gguf", "off", "on", "twice"] {
        let request = CompletionRequest { logprobs: Some(0), ..completion("The quick brown fox", 30) };
        let answer = ask(&engines, name, Request::Completion(request)).await.unwrap();
        let bytes: Vec<Vec<u8>> = answer.logprobs.iter().map(|token| token.bytes.clone()).collect();
        said.push((bytes, answer.logprobs[0].logprob));
    }
    assert_eq!(said[0], said[1], "scale 0 is the model itself");
    assert_ne!(said[0].0, said[2].0, "the adapter is felt in the tokens");
    assert_ne!(said[2].1, said[3].1, "and so is its scale");
    let vector = async |name| embed(&engines, name, embedding(&["text"])).await.unwrap().vectors.remove(0);
    assert_eq!(vector("random.gguf").await, vector("off").await);
}

#[tokio::test]
async fn an_adapter_that_does_not_fit_says_so() {
    let folder = Folder::new();
    write_adapter(&folder.path("alien.gguf"), "qwen2", 32);
    write_adapter(&folder.path("wide.gguf"), "llama", 64);
    std::fs::write(folder.path("text.gguf"), "no adapter").unwrap();
    let table = [
        ("missing.gguf", "does not exist"),
        ("text.gguf", "not a GGUF"),
        ("random.gguf", "adapter"),
        ("alien.gguf", "arch"),
        ("wide.gguf", "shape"),
    ];
    let engines = engines(table.map(|(file, _)| with_adapter(&folder, file, file, 1.0))).await;
    for (file, words) in table {
        let reason = why_unavailable(&engines, file);
        assert!(reason.contains("LoRA adapter") && reason.contains(words), "{reason}");
        assert!(reason.contains(folder.path(file).to_str().unwrap()), "{reason}");
    }
}

#[tokio::test]
async fn pooling_decides_which_tokens_an_embedding_is_made_of() {
    let folder = Folder::new();
    Recipe { embedding: true, ..Recipe::default() }.write(&folder.path("vectors.gguf")).unwrap();
    let pooled = |name: &str, file: &str, pooling| LocalModel { name: name.into(), pooling, ..folder.named(file) };
    let engines = engines([
        pooled("own", "vectors.gguf", None),
        pooled("mean", "vectors.gguf", Some(Pooling::Mean)),
        pooled("last", "vectors.gguf", Some(Pooling::Last)),
        pooled("cls", "vectors.gguf", Some(Pooling::Cls)),
        pooled("none", "random.gguf", Some(Pooling::None)),
    ])
    .await;
    let vectors = async |name: &str| {
        let inputs = [[10u32, 20, 30], [10, 20, 31], [11, 20, 30]].map(|tokens| Prompt::Tokens(tokens.into()));
        let request = EmbeddingRequest { inputs: inputs.into(), ..embedding(&[]) };
        embed(&engines, name, request).await.unwrap().vectors
    };
    let near = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() > 0.9999;
    let (own, mean, last, cls) =
        (vectors("own").await, vectors("mean").await, vectors("last").await, vectors("cls").await);
    assert!(near(&own[0], &mean[0]), "the file says mean");
    assert!(!near(&mean[0], &last[0]) && !near(&mean[0], &cls[0]) && !near(&last[0], &cls[0]));
    // This model reads from left to right: its first token knows nothing of the others.
    assert!(near(&cls[0], &cls[1]) && !near(&cls[0], &cls[2]));
    assert!(!near(&last[0], &last[1]));
    let fault = embed_fault(&engines, "none").await;
    assert_eq!(fault.kind, FaultKind::BadRequest);
    assert!(fault.message.contains("does not compute embeddings"), "{fault}");
    let written = ask(&engines, "none", Request::Completion(completion("it writes", 2))).await.unwrap();
    assert!(written.usage.output > 0);
}

async fn embed_fault(
    engines: &tollkeeper_inference::local::LocalEngines,
    name: &str,
) -> tollkeeper_protocol::fault::ProviderFault {
    engines.send(name, crate::ask::call(Request::Embedding(embedding(&["x"])))).await.unwrap_err()
}
