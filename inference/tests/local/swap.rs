//! llama.cpp models that do not fit together: the same tokens as without swaps, and KV that comes back.

use crate::ask::{ask, completion, local};
use crate::model::{Folder, write_model};
use std::sync::Arc;
use std::time::Duration;
use tollkeeper_config::{KvCache, Local, LocalModel, Residency, SwapRules};
use tollkeeper_inference::local::{LocalAction, LocalEngines};
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::Sampling;
use tollkeeper_protocol::completion::CompletionRequest;

const MIB: u64 = 1 << 20;

/// Two models, of which the memory holds one.
fn either(folder: &Folder, kv: KvCache) -> Local {
    write_model(&folder.path("other.gguf"), 2, |_| {});
    let half = Residency { memory: Some(8 * MIB), ..Residency::default() };
    // One slot: in a batch with another, a token may differ that was nearly a tie.
    let model = |name| LocalModel { slots: 1, queue: 16, context: 512, residency: half, ..folder.named(name) };
    Local {
        // The engine's own report of what these small models take is below what is said here.
        vram: Some(9 * MIB),
        swap: SwapRules { min_residency: Duration::ZERO, drain: Duration::ZERO, ..SwapRules::default() },
        kv_cache: kv,
        ..local([model("random.gguf"), model("other.gguf")])
    }
}

/// A prompt of some 200 tokens, and an answer of so many that does not end by itself.
fn long(text: &str, max_tokens: u32) -> Request {
    let endless = Sampling { temperature: Some(0.0), logit_bias: vec![(0, -100.0)], ..Sampling::default() };
    Request::Completion(CompletionRequest {
        sampling: endless,
        ..completion(&text.repeat(200 / text.len()), max_tokens)
    })
}

#[tokio::test]
async fn answers_under_swaps_are_the_answers_without() {
    let folder = Folder::new();
    let config = either(&folder, KvCache::default());
    let models = ["random.gguf", "other.gguf"];
    let texts = ["abcde", "fghij", "klmno", "pqrst", "uvwxy", "zABCD", "EFGHI", "JKLMN"];
    let mut expected = Vec::new();
    for name in models {
        let alone =
            Local { vram: None, models: [(name.to_owned(), config.models[name].clone())].into(), ..config.clone() };
        let engines = LocalEngines::start(&alone, None);
        for text in texts {
            expected.push(ask(&engines, name, long(text, 250)).await.unwrap().text().to_owned());
        }
        engines.shutdown().await;
    }
    let engines = Arc::new(LocalEngines::start(&config, None));
    engines.ready().await;
    let asked = models.iter().flat_map(|name| texts.iter().map(move |text| (*name, *text)));
    let answers: Vec<_> = asked
        .map(|(name, text)| {
            let engines = engines.clone();
            tokio::spawn(async move { ask(&engines, name, long(text, 250)).await.unwrap().text().to_owned() })
        })
        .collect();
    let mut got = Vec::new();
    for answer in answers {
        got.push(answer.await.unwrap());
    }
    for (number, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let same = got.bytes().zip(expected.bytes()).take_while(|(a, b)| a == b).count();
        assert!(got == expected, "answer {number} differs from byte {same} of {}", expected.len());
    }
    let unloads = engines
        .swaps()
        .totals
        .iter()
        .map(|(_, phase, total)| if phase.name() == "unload" { total.count } else { 0 })
        .sum::<u64>();
    assert!(unloads >= 3, "they were parked in the middle: {unloads} unloads");
    engines.shutdown().await;
}

#[tokio::test]
async fn a_conversation_goes_on_after_a_swap_and_after_a_restart() {
    let folder = Folder::new();
    let kept = folder.path("kv");
    let config = either(&folder, KvCache { folder: Some(kept.clone()), ..KvCache::default() });
    let engines = LocalEngines::start(&config, None);
    engines.ready().await;
    let first = ask(&engines, "random.gguf", long("abcde", 20)).await.unwrap();
    assert_eq!(first.usage.cached_input, 0);
    ask(&engines, "other.gguf", long("abcde", 1)).await.unwrap();
    assert_eq!(engines.statuses().iter().filter(|model| model.state == "ready").count(), 1);
    let again = ask(&engines, "random.gguf", long("abcde", 20)).await.unwrap();
    assert_eq!((again.usage.cached_input, again.text()), (again.usage.input - 1, first.text()), "after a swap");
    let reading = engines.kept_kv();
    assert!(
        reading.restored >= 1 && reading.restored_tokens >= again.usage.cached_input && reading.refused == 0,
        "{reading:?}"
    );
    engines.shutdown().await;

    let engines = LocalEngines::start(&config, None);
    let later = ask(&engines, "random.gguf", long("abcde", 20)).await.unwrap();
    assert_eq!((later.usage.cached_input, later.text()), (later.usage.input - 1, first.text()), "after a restart");
    engines.shutdown().await;

    for file in std::fs::read_dir(&kept).unwrap().flat_map(|model| std::fs::read_dir(model.unwrap().path()).unwrap()) {
        let path = file.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        std::fs::write(&path, bytes).unwrap();
    }
    let engines = LocalEngines::start(&config, None);
    let later = ask(&engines, "random.gguf", long("abcde", 20)).await.unwrap();
    assert_eq!(
        (later.usage.cached_input, later.text()),
        (0, first.text()),
        "damaged files are refused, and the prompt is read"
    );
    assert!(engines.kept_kv().refused >= 1);
    engines.shutdown().await;
}

#[tokio::test]
async fn a_conversation_that_lost_its_slot_comes_back() {
    let folder = Folder::new();
    let model = LocalModel { slots: 1, context: 512, ..folder.model() };
    let engines = LocalEngines::start(&local([model]), None);
    let first = ask(&engines, "random.gguf", long("abcde", 10)).await.unwrap();
    ask(&engines, "random.gguf", long("vwxyz", 10)).await.unwrap();
    let again = ask(&engines, "random.gguf", long("abcde", 10)).await.unwrap();
    assert_eq!((again.usage.cached_input, again.text()), (again.usage.input - 1, first.text()));
    engines.shutdown().await;
}

#[tokio::test]
async fn what_a_model_takes_is_measured_when_it_is_loaded() {
    let folder = Folder::new();
    let engines = LocalEngines::start(&local([LocalModel { context: 512, ..folder.model() }]), None);
    let told = engines.statuses()[0].bytes;
    engines.ready().await;
    let measured = engines.statuses()[0].bytes;
    assert!(measured != told && measured > 100_000, "told {told}, measured {measured}");
    let memory = engines.memory();
    assert_eq!((memory.budget - memory.free, memory.taken), (measured, 0));
    engines.act("random.gguf", LocalAction::Unload);
    while engines.statuses()[0].state != "absent" {
        tokio::task::yield_now().await;
    }
    assert_eq!(engines.memory().free, memory.budget);
    let answer = ask(&engines, "random.gguf", long("abcde", 3)).await.unwrap();
    assert_eq!(answer.usage.output, 3);
}
