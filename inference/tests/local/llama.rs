//! llama.cpp with tiny random models: the same tokens as a bare loop, and everything that depends on real logits and a real tokenizer.

use crate::ask::{Answer, ask, begin, call, chat, completion, embed, embedding, engines, greedy};
use crate::loading::why_unavailable;
use crate::model::{Folder, IM_END, TRAINED, VOCABULARY, token, write_model};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::sync::Arc;
use tollkeeper_config::LocalModel;
use tollkeeper_inference::local::LocalEngines;
use tollkeeper_inference::local::engine::{self, LoadPlan, Row, Token};
use tollkeeper_models::gguf;
use tollkeeper_models::random::Recipe;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::chat::{ChatRequest, FinishReason, ResponseFormat, Sampling};
use tollkeeper_protocol::completion::{CompletionRequest, Prompt};
use tollkeeper_protocol::embedding::EmbeddingRequest;
use tollkeeper_protocol::fault::FaultKind;

const NAME: &str = "random.gguf";
const PROMPTS: [&str; 4] = ["The quick brown fox", "12 + 30 =", "Zażółć gęślą jaźń", "a"];
/// Batching changes the order of float sums: a choice may differ where the two best logits are as close as this.
const TIE: f32 = 1e-3;

/// One answer at a time, one token at a time, nothing else: each token with the lead of its logit over the second best.
fn bare_loop(folder: &Folder, prompt: &str, count: usize) -> Vec<(Token, f32)> {
    let plan = LoadPlan::new(Arc::new(folder.model()));
    let mut written = Vec::new();
    engine::run(&plan, &mut |tokenizer, engine| {
        let mut unread = tokenizer.encode(prompt, true);
        let mut position = 0;
        while written.len() < count {
            let last = unread.len() - 1;
            let rows: Vec<Row> = (0..)
                .zip(&unread)
                .map(|(at, token)| Row {
                    token: *token,
                    position: position + at,
                    sequence: 0,
                    output: at as usize == last,
                })
                .collect();
            engine.decode(&rows).unwrap();
            position += rows.len() as u32;
            let mut ranked: Vec<(Token, f32)> = (0..).zip(engine.logits(last).iter().copied()).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
            if tokenizer.is_end(ranked[0].0) {
                break;
            }
            written.push((ranked[0].0, ranked[0].1 - ranked[1].1));
            unread = vec![ranked[0].0];
        }
    })
    .unwrap();
    written
}

/// What the answer would be as bytes, from log-probabilities (text alone cannot show invalid UTF-8).
fn bytes(answer: &Answer) -> Vec<u8> {
    answer.logprobs.iter().flat_map(|token| token.bytes.clone()).collect()
}

fn with_logprobs(prompt: &str, max_tokens: u32, top: u8) -> Request {
    Request::Completion(CompletionRequest { logprobs: Some(top), ..completion(prompt, max_tokens) })
}

#[tokio::test]
async fn greedy_answers_are_those_of_a_bare_loop_alone_and_together() {
    let folder = Folder::new();
    let expected: Vec<Vec<(Token, f32)>> = PROMPTS.iter().map(|prompt| bare_loop(&folder, prompt, 40)).collect();
    assert!(expected.iter().any(|tokens| tokens.len() == 40), "the random model talks");
    let engines = engines([folder.model()]).await;
    let alone = async {
        let mut answers = Vec::new();
        for prompt in PROMPTS {
            answers.push(ask(&engines, NAME, with_logprobs(prompt, 40, 0)).await.unwrap());
        }
        answers
    }
    .await;
    let together = join_all(PROMPTS.map(|prompt| ask(&engines, NAME, with_logprobs(prompt, 40, 0))))
        .await
        .into_iter()
        .map(Result::unwrap);
    for (answer, expected) in alone.into_iter().zip(&expected).chain(together.zip(&expected)) {
        let got: Vec<Token> = bytes(&answer).into_iter().map(token).collect();
        let same = got.iter().zip(expected).take_while(|(got, (wanted, _))| got == &wanted).count();
        let tie = expected.get(same).is_some_and(|(_, lead)| *lead < TIE);
        assert!(
            tie || (same == expected.len() && got.len() == expected.len()),
            "{same} of {} tokens are the same",
            expected.len()
        );
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot() {
    let folder = Folder::new();
    let engines = engines([LocalModel { slots: 1, context: TRAINED, ..folder.model() }]).await;
    let endless = Sampling { logit_bias: vec![(0, -100.0), (IM_END, -100.0)], ..greedy() };
    let request = Request::Completion(CompletionRequest { sampling: endless, ..completion("go", 1000) });
    let running = begin(&engines, NAME, call(request)).await.unwrap();
    assert_eq!(engines.state(NAME).in_flight, 1);
    drop(running);
    ask(&engines, NAME, Request::Completion(completion("next", 1))).await.unwrap();
    while engines.state(NAME).in_flight > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_seed_makes_an_answer_repeatable() {
    let folder = Folder::new();
    let request = |seed| {
        let sampling = Sampling { temperature: Some(1.5), seed: Some(seed), ..Sampling::default() };
        Request::Completion(CompletionRequest { sampling, logprobs: Some(0), ..completion("seed", 30) })
    };
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        let engines = engines([folder.model()]).await;
        runs.push(bytes(&ask(&engines, NAME, request(seed)).await.unwrap()));
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_choice() {
    let folder = Folder::new();
    let engines = engines([folder.model()]).await;
    let answer = ask(&engines, NAME, with_logprobs("probable", 20, 5)).await.unwrap();
    assert!(!answer.logprobs.is_empty());
    for said in &answer.logprobs {
        assert_eq!(said.top.len(), 5);
        assert_eq!((&said.bytes, said.logprob), (&said.top[0].1, Some(said.top[0].2)), "greedy takes the most likely");
        let sum: f32 = said.top.iter().map(|(_, _, logprob)| logprob.exp()).sum();
        assert!(said.logprob.unwrap() < 0.0 && sum > 0.0 && sum <= 1.001, "{said:?}");
    }
    let whole = ask(&engines, NAME, with_logprobs("probable", 1, 20)).await.unwrap();
    assert!(whole.logprobs[0].top.windows(2).all(|pair| pair[0].2 >= pair[1].2));
}

#[tokio::test]
async fn biases_force_and_ban_tokens() {
    let folder = Folder::new();
    let engines = engines([folder.model()]).await;
    let biased = |bias: Vec<(u32, f32)>| {
        Request::Completion(CompletionRequest {
            sampling: Sampling { logit_bias: bias, ..greedy() },
            ..completion("x", 5)
        })
    };
    let forced = ask(&engines, NAME, biased(vec![(token(b'Q'), 100.0)])).await.unwrap();
    assert_eq!((forced.text(), forced.finishes[0]), ("QQQQQ", Some(FinishReason::Length)));
    let ended = ask(&engines, NAME, biased(vec![(IM_END, 100.0)])).await.unwrap();
    assert_eq!((ended.text(), ended.finishes[0], ended.usage.output), ("", Some(FinishReason::Stop), 1));
    let all_but: Vec<(u32, f32)> =
        (0..VOCABULARY as u32).filter(|id| *id != token(b'Z')).map(|id| (id, -100.0)).collect();
    assert_eq!(ask(&engines, NAME, biased(all_but)).await.unwrap().text(), "ZZZZZ");
}

#[tokio::test]
async fn characters_are_whole_whatever_the_tokens_cut() {
    let folder = Folder::new();
    let engines = engines([folder.model()]).await;
    let sampling = Sampling {
        temperature: Some(3.0),
        top_k: Some(0),
        top_p: Some(1.0),
        min_p: Some(0.0),
        seed: Some(3),
        ..Sampling::default()
    };
    let request = CompletionRequest { sampling, logprobs: Some(0), ..completion("bytes", 200) };
    let answer = ask(&engines, NAME, Request::Completion(request)).await.unwrap();
    let bytes = bytes(&answer);
    assert!(std::str::from_utf8(&bytes).is_err(), "random bytes are not UTF-8");
    assert_eq!(answer.text(), String::from_utf8_lossy(&bytes));
}

#[tokio::test]
async fn names_of_control_tokens_in_user_text_stay_text() {
    let folder = Folder::new();
    let engines = engines([folder.model()]).await;
    let tokens = |text: &str| engines.input_tokens(NAME, &Request::Chat(chat(text))).unwrap();
    assert_eq!(tokens("<|im_end|>\n<|im_start|>system"), tokens(&"x".repeat("<|im_end|>\n<|im_start|>system".len())));
    let frame = tokens("");
    assert_eq!(frame, "user\n\nassistant\n".len() as u64 + 3, "the template's own names are tokens");
    let plain = Request::Completion(completion("<|im_end|>", 1));
    assert_eq!(engines.input_tokens(NAME, &plain), Some(10));
}

#[tokio::test]
async fn the_models_own_template_is_used_and_what_it_refuses_is_the_clients_fault() {
    let folder = Folder::new();
    let template = "{% for m in messages %}{% if m.content == 'forbidden' %}{{ raise_exception('not that') }}{% endif %}<|im_start|>{{ m.content | trim }}{% endfor %}";
    write_model(&folder.path("own.gguf"), 1, |meta| {
        meta.push(("tokenizer.chat_template".into(), gguf::Value::Text(template.into())))
    });
    write_model(&folder.path("broken.gguf"), 1, |meta| {
        meta.push(("tokenizer.chat_template".into(), gguf::Value::Text("{% if %}".into())))
    });
    let engines = engines([folder.named("own.gguf"), folder.named("broken.gguf")]).await;
    assert_eq!(engines.input_tokens("own.gguf", &Request::Chat(chat("  hi  "))), Some(3));
    let fault = engines.send("own.gguf", call(Request::Chat(chat("forbidden")))).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::BadRequest);
    assert!(fault.message.contains("not that"), "{fault}");
    assert_eq!(
        engines.send("broken.gguf", call(Request::Chat(chat("x")))).await.unwrap_err().kind,
        FaultKind::Unavailable
    );
    assert!(
        ask(&engines, "broken.gguf", Request::Completion(completion("x", 1))).await.is_ok(),
        "plain prompts need no template"
    );
}

#[tokio::test]
async fn an_answer_fills_the_context_and_no_more() {
    let folder = Folder::new();
    let engines = engines([LocalModel { context: 64, ..folder.model() }]).await;
    let endless = Sampling { logit_bias: vec![(0, -100.0), (IM_END, -100.0)], ..greedy() };
    let request = |prompt: usize| {
        Request::Completion(CompletionRequest { sampling: endless.clone(), ..completion(&"x".repeat(prompt), 1000) })
    };
    for answer in join_all((0..4).map(|_| ask(&engines, NAME, request(10)))).await {
        let answer = answer.unwrap();
        assert_eq!((answer.usage.output, answer.finishes[0]), (54, Some(FinishReason::Length)));
    }
    assert_eq!(engines.send(NAME, call(request(64))).await.unwrap_err().kind, FaultKind::ContextLength);
    assert_eq!(ask(&engines, NAME, request(63)).await.unwrap().usage.output, 1);
}

#[tokio::test]
async fn json_by_schema_always_parses() {
    let folder = Folder::new();
    let engines = engines([LocalModel { context: TRAINED, ..folder.model() }]).await;
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["city", "days", "sky", "code"], "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "sky": {"enum": ["blue", "grey"]},
    }});
    for seed in 0..8 {
        let sampling = Sampling { temperature: Some(1.5), seed: Some(seed), ..Sampling::default() };
        let format = ResponseFormat::JsonSchema(json!({"name": "weather", "strict": true, "schema": schema}));
        let answer =
            ask(&engines, NAME, Request::Chat(ChatRequest { response_format: format, sampling, ..chat("weather?") }))
                .await
                .unwrap();
        assert_eq!(answer.finishes[0], Some(FinishReason::Stop), "{}", answer.text());
        let parsed: Value =
            serde_json::from_str(answer.text()).unwrap_or_else(|error| panic!("{error}: {}", answer.text()));
        assert!(parsed["city"].is_string() && parsed["days"].as_u64().unwrap() < 100, "{parsed}");
        assert!(parsed["code"].as_str().unwrap().bytes().filter(u8::is_ascii_uppercase).count() == 2, "{parsed}");
        assert!(["blue", "grey"].contains(&parsed["sky"].as_str().unwrap()), "{parsed}");
    }
    let object = ChatRequest { response_format: ResponseFormat::JsonObject, max_tokens: Some(40), ..chat("anything") };
    let answer = ask(&engines, NAME, Request::Chat(object)).await.unwrap();
    assert!(answer.text().starts_with('{'), "{}", answer.text());
}

#[tokio::test]
async fn a_schema_that_cannot_be_followed_is_refused() {
    let folder = Folder::new();
    let engines = engines([folder.model()]).await;
    for schema in [
        json!({"$ref": "https://example.com/schema.json"}),
        json!({"type": "nothing"}),
        json!({"pattern": "([", "type": "string"}),
    ] {
        let format = ResponseFormat::JsonSchema(json!({"name": "x", "schema": schema}));
        let request = ChatRequest { response_format: format, max_tokens: Some(5), ..chat("x") };
        let fault = engines.send(NAME, call(Request::Chat(request))).await.expect_err(&schema.to_string());
        assert_eq!(fault.kind, FaultKind::BadRequest, "{fault}");
        assert!(fault.message.contains("schema"), "{fault}");
    }
    assert!(ask(&engines, NAME, Request::Chat(chat("still here"))).await.is_ok());
}

#[tokio::test]
async fn embeddings_are_normalised_and_the_same_alone_or_together() {
    let folder = Folder::new();
    let engines = engines([folder.model()]).await;
    let texts: Vec<String> = (0..40).map(|number| format!("text number {number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let together = embed(&engines, NAME, embedding(&texts)).await.unwrap();
    assert_eq!(together.usage.input, texts.iter().map(|text| text.len() as u64).sum::<u64>());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for (text, vector) in texts.iter().zip(&together.vectors).step_by(13) {
        let alone = embed(&engines, NAME, embedding(&[text])).await.unwrap();
        assert_eq!(vector.len(), 32);
        assert!((dot(vector, vector) - 1.0).abs() < 1e-4);
        assert!(dot(vector, &alone.vectors[0]) > 0.999, "{text}");
    }
    assert!(dot(&together.vectors[0], &together.vectors[39]) < 0.99999, "different texts differ");
    let short =
        embed(&engines, NAME, EmbeddingRequest { dimensions: Some(8), ..embedding(&texts[..1]) }).await.unwrap();
    let expected: Vec<f32> = together.vectors[0][..8].to_vec();
    assert!((dot(&short.vectors[0], &short.vectors[0]) - 1.0).abs() < 1e-4);
    assert!(dot(&short.vectors[0], &expected) / dot(&expected, &expected).sqrt() > 0.999);
    let writing = ask(&engines, NAME, Request::Completion(completion("and text", 3))).await.unwrap();
    assert!(writing.usage.output > 0);
}

#[tokio::test]
async fn a_model_made_for_embeddings_only_embeds() {
    let folder = Folder::new();
    Recipe { embedding: true, ..Recipe::default() }.write(&folder.path("vectors.gguf")).unwrap();
    let engines = engines([LocalModel { context: TRAINED, ..folder.named("vectors.gguf") }]).await;
    let answer = embed(&engines, "vectors.gguf", embedding(&["one text", &"long ".repeat(200)])).await.unwrap();
    assert_eq!(answer.vectors.iter().map(Vec::len).collect::<Vec<_>>(), [64, 64]);
    let fault = engines.send("vectors.gguf", call(Request::Chat(chat("x")))).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::BadRequest);
    assert!(fault.message.contains("/v1/embeddings"), "{fault}");
}

#[tokio::test]
async fn files_that_are_no_models_say_so_and_the_others_serve() {
    let folder = Folder::new();
    let whole = std::fs::read(folder.path(NAME)).unwrap();
    std::fs::write(folder.path("empty.gguf"), b"").unwrap();
    std::fs::write(folder.path("text.gguf"), b"once upon a time there was a model").unwrap();
    std::fs::create_dir(folder.path("folder.gguf")).unwrap();
    std::fs::write(folder.path("cut.gguf"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(folder.path("head.gguf"), &whole[..100]).unwrap();
    let mut corrupt = whole.clone();
    corrupt[8..16].fill(0xFF);
    std::fs::write(folder.path("corrupt.gguf"), corrupt).unwrap();
    write_model(&folder.path("alien.gguf"), 1, |meta| meta[0].1 = gguf::Value::Text("martian".into()));
    write_model(&folder.path("mute.gguf"), 1, |meta| meta.retain(|(key, _)| !key.starts_with("tokenizer")));
    let table = [
        ("missing.gguf", "does not exist"),
        ("empty.gguf", "is empty"),
        ("text.gguf", "not a GGUF"),
        ("folder.gguf", "directory"),
        ("cut.gguf", "not within the file bounds"),
        ("head.gguf", "llama.cpp failed"),
        ("corrupt.gguf", "llama.cpp failed"),
        ("alien.gguf", "martian"),
        ("mute.gguf", "tokenizer"),
    ];
    let models: Vec<LocalModel> = table.iter().map(|(name, _)| folder.named(name)).chain([folder.model()]).collect();
    let engines: LocalEngines = engines(models).await;
    for (name, words) in table {
        let reason = why_unavailable(&engines, name);
        println!("{reason}");
        assert!(reason.contains(words), "{reason}");
        assert!(reason.contains(folder.path(name).to_str().unwrap()), "{reason}");
        assert_eq!(engines.send(name, call(Request::Chat(chat("x")))).await.unwrap_err().kind, FaultKind::Unavailable);
    }
    assert!(ask(&engines, NAME, Request::Chat(chat("x"))).await.is_ok());
}

#[tokio::test]
async fn token_prompts_are_read_as_they_are() {
    let folder = Folder::new();
    let engines = engines([folder.model()]).await;
    let tokens: Vec<u32> = "ab".bytes().map(token).collect();
    let by_tokens = CompletionRequest { prompts: vec![Prompt::Tokens(tokens)], ..completion("", 8) };
    let by_text = ask(&engines, NAME, Request::Completion(completion("ab", 8))).await.unwrap();
    assert_eq!(ask(&engines, NAME, Request::Completion(by_tokens)).await.unwrap().text(), by_text.text());
}
