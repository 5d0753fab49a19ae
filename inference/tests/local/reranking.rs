//! Ranking documents with a BERT of random weights that has a classifier head.

use crate::ask::{ask, completion, embedding, engines, model, rerank, reranking};
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_models::random::Recipe;
use tollkeeper_models::reranker::Reranker;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::fault::FaultKind;

const NAME: &str = "ranks";

async fn reranker(folder: &tempfile::TempDir) -> LocalEngines {
    let (path, talker) = (folder.path().join("ranks.gguf"), folder.path().join("talks.gguf"));
    Reranker::default().write(&path).unwrap();
    Recipe::default().write(&talker).unwrap();
    let ranks = LocalModel { context: 512, ..model(NAME, EngineKind::LlamaCpp, path) };
    engines([ranks, model("talks", EngineKind::LlamaCpp, talker)]).await
}

#[tokio::test]
async fn relevances_are_the_same_alone_and_together() {
    let folder = tempfile::tempdir().unwrap();
    let engines = reranker(&folder).await;
    // More than one call embeds, and more than one batch holds.
    let documents: Vec<String> = (0..40).map(|number| format!("{number} {}", "words ".repeat(number))).collect();
    let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
    let together = rerank(&engines, NAME, reranking("a query", &documents)).await.unwrap();
    let frame = "a query".len() + 4;
    assert_eq!(together.usage.input as usize, documents.iter().map(|document| frame + document.len()).sum::<usize>());
    assert_eq!((together.scores.len(), together.usage.output), (40, 0));
    assert!(together.scores.iter().all(|score| (0.0..=1.0).contains(score)), "{:?}", together.scores);
    for at in [0, 7, 39] {
        let alone = rerank(&engines, NAME, reranking("a query", &documents[at..=at])).await.unwrap();
        assert!((alone.scores[0] - together.scores[at]).abs() < 1e-3, "{at}");
    }
    let spread = together.ranked(None);
    assert!(spread[0].1 - spread[39].1 > 0.05, "documents differ: {spread:?}");
    let other = rerank(&engines, NAME, reranking("something else", &documents[..1])).await.unwrap();
    assert!((other.scores[0] - together.scores[0]).abs() > 1e-3, "the query counts");
}

#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let engines = reranker(&folder).await;
    let fault = rerank(&engines, "talks", reranking("q", &["d"])).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::BadRequest);
    assert!(fault.message.contains("no classifier head"), "{fault}");
    let long = "x".repeat(600);
    let fault = rerank(&engines, NAME, reranking("q", &["d", &long])).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::ContextLength);
    assert!(fault.message.contains("605 tokens"), "{fault}");
    for request in [Request::Embedding(embedding(&["x"])), Request::Completion(completion("x", 1))] {
        let fault = engines.send(NAME, crate::ask::call(request)).await.unwrap_err();
        assert_eq!(fault.kind, FaultKind::BadRequest);
        assert!(fault.message.contains("/v1/rerank"), "{fault}");
    }
    assert!(ask(&engines, "talks", Request::Completion(completion("x", 1))).await.is_ok());
}
