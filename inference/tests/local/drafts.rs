//! llama.cpp with a draft: the same answers, and a draft that is no use does no harm.

use crate::ask::{Answer, ask, begin, call, completion, echo, engines, greedy, local};
use crate::loading::why_unavailable;
use crate::model::{Folder, write_model};
use futures_util::future::join_all;
use std::time::Duration;
use tollkeeper_config::{Local, LocalModel, Residency, Speculate, SwapRules};
use tollkeeper_inference::GuessCount;
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_models::gguf::Value;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::Sampling;
use tollkeeper_protocol::completion::CompletionRequest;

const PROMPTS: [&str; 4] = ["The quick brown fox", "12 + 30 =", "Zażółć gęślą jaźń", "a"];

/// The folder's model with one of its files as a draft.
fn drafted(folder: &Folder, name: &str, draft: &str, slots: u32) -> LocalModel {
    let speculate = Speculate::Draft(folder.path(draft));
    LocalModel { name: name.into(), speculate, slots, context: 512, ..folder.model() }
}

/// An answer that does not end by itself.
fn long(prompt: &str, tokens: u32, sampling: Sampling) -> Request {
    let sampling = Sampling { logit_bias: vec![(0, -100.0), (2, -100.0)], ..sampling };
    Request::Completion(CompletionRequest { sampling, logprobs: Some(0), ..completion(prompt, tokens) })
}

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: Some(0.7), seed: Some(seed), ..Sampling::default() }
}

fn count(engines: &LocalEngines, name: &str) -> GuessCount {
    engines.statuses().into_iter().find(|model| &*model.name == name).unwrap().guesses.unwrap()
}

/// Up to where two texts are the same, and whether they part at a token that was nearly a tie: a batch of several rows is computed with
/// other kernels than a single one.
fn agree(ours: &Answer, theirs: &Answer) -> bool {
    let same = ours.logprobs.iter().zip(&theirs.logprobs).take_while(|(a, b)| a.bytes == b.bytes).count();
    let nearly = |at: usize| {
        let (a, b) = (&ours.logprobs[at], &theirs.logprobs[at]);
        (a.logprob.unwrap() - b.logprob.unwrap()).abs() < 1e-2
    };
    same == theirs.logprobs.len() || nearly(same)
}

#[tokio::test]
async fn answers_are_the_same_with_any_draft_and_without_chance_a_twin_is_always_right() {
    let folder = Folder::new();
    write_model(&folder.path("other.gguf"), 2, |_| {});
    let models = [
        LocalModel { slots: 1, context: 512, ..folder.model() },
        drafted(&folder, "twin", "random.gguf", 1),
        drafted(&folder, "stranger", "other.gguf", 1),
    ];
    let engines = engines(models).await;
    for prompt in PROMPTS {
        let [alone, twin, stranger] = ["random.gguf", "twin", "stranger"]
            .map(async |name| ask(&engines, name, long(prompt, 120, greedy())).await.unwrap());
        let (alone, twin, stranger) = (alone.await, twin.await, stranger.await);
        assert_eq!(alone.usage.output, 120);
        assert!(agree(&twin, &alone) && agree(&stranger, &alone), "{prompt:?}");
    }
    let (twin, stranger) = (count(&engines, "twin"), count(&engines, "stranger"));
    assert_eq!((twin.source, stranger.source), ("draft", "draft"));
    // A tie may fall otherwise.
    assert!(twin.guessed > 20 && twin.accepted * 10 >= twin.guessed * 9, "{twin:?}");
    assert!(stranger.guessed > 0 && stranger.accepted * 2 < stranger.guessed, "{stranger:?}");
    assert!(stranger.guessed < 4 * 120 / 3, "it is left alone: {stranger:?}");

    for seed in 0..4 {
        let [alone, twin] = ["random.gguf", "twin"]
            .map(async |name| ask(&engines, name, long("chance", 100, sampled(seed))).await.unwrap());
        let (alone, twin) = (alone.await, twin.await);
        assert!(agree(&twin, &alone), "seed {seed}");
    }
}

#[tokio::test]
async fn several_answers_at_once_share_a_draft_and_one_that_leaves_stops() {
    let folder = Folder::new();
    let engines = engines([drafted(&folder, "twin", "random.gguf", 3), folder.model()]).await;
    let left = begin(&engines, "twin", call(long("gone", 400, greedy()))).await.unwrap();
    let asked = PROMPTS.map(|prompt| ask(&engines, "twin", long(prompt, 100, greedy())));
    let answers = join_all(asked);
    drop(left);
    for (prompt, answer) in PROMPTS.iter().zip(answers.await) {
        let alone = ask(&engines, "random.gguf", long(prompt, 100, greedy())).await.unwrap();
        assert!(agree(&answer.unwrap(), &alone), "{prompt:?}");
    }
    let twin = count(&engines, "twin");
    assert!(twin.accepted > 10, "{twin:?}");
    while engines.state("twin").in_flight > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn answers_go_on_with_their_draft_after_a_swap() {
    let folder = Folder::new();
    write_model(&folder.path("other.gguf"), 2, |_| {});
    let half = Residency { memory: Some(16 << 20), ..Residency::default() };
    let models = [
        LocalModel { queue: 16, residency: half, ..drafted(&folder, "twin", "random.gguf", 1) },
        LocalModel { queue: 16, residency: half, ..drafted(&folder, "other", "random.gguf", 1) },
    ];
    let config = Local {
        vram: Some(17 << 20),
        swap: SwapRules { min_residency: Duration::ZERO, drain: Duration::ZERO, ..SwapRules::default() },
        ..local(models)
    };
    let alone = engines([LocalModel { slots: 1, context: 512, ..folder.model() }]).await;
    let swapping = LocalEngines::start(&config, None);
    swapping.ready().await;
    let asked = PROMPTS.iter().flat_map(|prompt| ["twin", "other"].map(|name| (name, *prompt)));
    let asked: Vec<_> = asked.collect();
    let answers = join_all(asked.iter().map(|(name, prompt)| ask(&swapping, name, long(prompt, 250, greedy())))).await;
    for ((name, prompt), answer) in asked.iter().zip(answers) {
        let expected = ask(&alone, "random.gguf", long(prompt, 250, greedy())).await.unwrap();
        assert!(agree(&answer.unwrap(), &expected), "{name} on {prompt:?}");
    }
    assert!(count(&swapping, "twin").accepted > 10);
    assert!(swapping.swaps().totals.iter().any(|(_, phase, total)| phase.name() == "unload" && total.count > 0));
    swapping.shutdown().await;
}

#[tokio::test]
async fn what_both_take_is_measured() {
    let folder = Folder::new();
    let bytes = async |model: LocalModel| engines([model]).await.statuses()[0].bytes;
    let alone = bytes(LocalModel { slots: 2, context: 512, ..folder.model() }).await;
    let both = bytes(drafted(&folder, "twin", "random.gguf", 2)).await;
    assert_eq!(both, 2 * alone);
}

#[tokio::test]
async fn a_draft_of_another_vocabulary_says_so() {
    let folder = Folder::new();
    let tokens = |change: fn(&mut Vec<String>)| {
        move |entries: &mut Vec<(String, Value)>| {
            for (key, value) in entries {
                if let (true, Value::Texts(tokens)) = (key == "tokenizer.ggml.tokens", value) {
                    change(tokens);
                }
            }
        }
    };
    write_model(&folder.path("swapped.gguf"), 2, tokens(|tokens| tokens.swap(20, 21)));
    std::fs::write(folder.path("text.gguf"), "no model").unwrap();
    let table = [
        ("swapped.gguf", "its vocabulary is not the model's: token 20 is"),
        ("text.gguf", "not a GGUF model"),
        ("missing.gguf", "does not exist"),
    ];
    let engines = engines(table.map(|(file, _)| drafted(&folder, file, file, 2)).into_iter().chain([echo("e")])).await;
    for (file, words) in table {
        let reason = why_unavailable(&engines, file);
        assert!(reason.contains("its draft") && reason.contains(file) && reason.contains(words), "{reason}");
    }
}
