//! BERT embeddings by candle, from a folder that the test writes, beside the same sums done slowly and plainly.

use crate::ask::{call, chat, embed, embedding, engines, model};
use crate::loading::why_unavailable;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tollkeeper_config::EngineKind;
use tollkeeper_inference::local::engine::{self, LoadPlan, Token};
use tollkeeper_models::rng::Rng;
use tollkeeper_protocol::Request;
use tollkeeper_protocol::fault::FaultKind;

const WIDTH: usize = 16;
const HEADS: usize = 2;
const INNER: usize = 24;
const LAYERS: usize = 2;
const POSITIONS: usize = 64;
const WORDS: [&str; 12] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "toll", "##keeper", "the", "bridge", "is", "open", "!", "closed"];
const EPSILON: f64 = 1e-12;

/// A model's tensors by name: shape and numbers.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors() -> Tensors {
    let mut random = Rng::new(5);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize], middle: f32, scale: f32| {
        let numbers = (0..shape.iter().product()).map(|_| middle + random.normal() * scale).collect();
        tensors.insert(name, (shape.to_vec(), numbers));
    };
    for (name, rows) in [("word", WORDS.len()), ("position", POSITIONS), ("token_type", 2)] {
        add(format!("embeddings.{name}_embeddings.weight"), &[rows, WIDTH], 0.0, 1.0);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..LAYERS {
        let layer = format!("encoder.layer.{layer}");
        let linear = [
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", INNER, WIDTH),
            ("output.dense", WIDTH, INNER),
        ];
        for (name, out, into) in linear {
            add(format!("{layer}.{name}.weight"), &[out, into], 0.0, 0.4);
            add(format!("{layer}.{name}.bias"), &[out], 0.0, 0.2);
        }
        norms.extend(["attention.output.LayerNorm", "output.LayerNorm"].map(|name| format!("{layer}.{name}")));
    }
    for name in norms {
        add(format!("{name}.weight"), &[WIDTH], 1.0, 0.1);
        add(format!("{name}.bias"), &[WIDTH], 0.0, 0.1);
    }
    tensors
}

fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (shape, numbers)) in tensors {
        let begin = data.len();
        data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]});
        header.insert(format!("bert.{name}"), entry);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

fn config() -> Value {
    json!({
        "model_type": "bert", "vocab_size": WORDS.len(), "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": INNER, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": EPSILON,
        "pad_token_id": 0
    })
}

fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).into(), json!(id))).collect();
    let added = (0..4).map(|id| {
        json!({"id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    });
    let special = |id: usize| json!({"id": WORDS[id], "ids": [id], "tokens": [WORDS[id]]});
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": special(2), "[SEP]": special(3)}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary}
    })
}

fn write(folder: &Path, config: &Value) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer().to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), safetensors(&tensors())).unwrap();
}

fn write_pooling(folder: &Path, mode: &str) {
    std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
    let fields = json!({"word_embedding_dimension": WIDTH, "pooling_mode_lasttoken": false, mode: true});
    std::fs::write(folder.join("1_Pooling/config.json"), fields.to_string()).unwrap();
}

/// BERT as its paper has it, one number at a time. The last states of all tokens.
fn slowly(tensors: &Tensors, tokens: &[Token]) -> Vec<Vec<f64>> {
    let get = |name: &str| tensors[name].1.iter().map(|number| f64::from(*number)).collect::<Vec<_>>();
    let row = |name: &str, at: usize| get(name)[at * WIDTH..(at + 1) * WIDTH].to_vec();
    let norm = |name: &str, state: Vec<f64>| {
        let mean = state.iter().sum::<f64>() / WIDTH as f64;
        let spread = state.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / WIDTH as f64;
        let (weight, bias) = (get(&format!("{name}.weight")), get(&format!("{name}.bias")));
        (0..WIDTH).map(|at| (state[at] - mean) / (spread + EPSILON).sqrt() * weight[at] + bias[at]).collect::<Vec<_>>()
    };
    let linear = |name: &str, state: &[f64]| {
        let (weight, bias) = (get(&format!("{name}.weight")), get(&format!("{name}.bias")));
        let dot = |out: usize| (0..state.len()).map(|at| weight[out * state.len() + at] * state[at]).sum::<f64>();
        (0..bias.len()).map(|out| bias[out] + dot(out)).collect::<Vec<_>>()
    };
    let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
    let mut states: Vec<Vec<f64>> = tokens
        .iter()
        .enumerate()
        .map(|(at, token)| {
            let word = row("embeddings.word_embeddings.weight", *token as usize);
            let place = row("embeddings.position_embeddings.weight", at);
            let sum = add(&add(&word, &place), &row("embeddings.token_type_embeddings.weight", 0));
            norm("embeddings.LayerNorm", sum)
        })
        .collect();
    let size = WIDTH / HEADS;
    for layer in 0..LAYERS {
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let all = |part: &str| states.iter().map(|state| linear(&name(part), state)).collect::<Vec<_>>();
        let (queries, keys, values) =
            (all("attention.self.query"), all("attention.self.key"), all("attention.self.value"));
        let attended: Vec<Vec<f64>> = (0..states.len())
            .map(|at| {
                let mut seen = vec![0.0; WIDTH];
                for head in 0..HEADS {
                    let part = head * size..(head + 1) * size;
                    let score = |key: &Vec<f64>| {
                        let dot: f64 = part.clone().map(|place| queries[at][place] * key[place]).sum();
                        (dot / (size as f64).sqrt()).exp()
                    };
                    let scores: Vec<f64> = keys.iter().map(score).collect();
                    let total: f64 = scores.iter().sum();
                    for (score, value) in scores.iter().zip(&values) {
                        part.clone().for_each(|place| seen[place] += score / total * value[place]);
                    }
                }
                seen
            })
            .collect();
        for (state, seen) in states.iter_mut().zip(attended) {
            let between = add(&linear(&name("attention.output.dense"), &seen), state);
            let between = norm(&name("attention.output.LayerNorm"), between);
            let wide = linear(&name("intermediate.dense"), &between);
            let wide: Vec<f64> = wide.into_iter().map(gelu).collect();
            *state = norm(&name("output.LayerNorm"), add(&linear(&name("output.dense"), &wide), &between));
        }
    }
    states
}

/// x Φ(x), with the error function summed as a series (it converges for the small numbers there are here).
fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    x * 0.5 * (1.0 + sum * std::f64::consts::FRAC_2_SQRT_PI)
}

/// The vectors as the engine gives them, and the tokens of two texts.
fn through_the_engine(folder: &Path, inputs: &[&[Token]]) -> (Vec<Vec<f32>>, [Vec<Token>; 2]) {
    let plan = LoadPlan::new(Arc::new(model("bert", EngineKind::Candle, folder)));
    let mut seen = None;
    engine::run(&plan, &mut |tokenizer, engine| {
        let texts = [tokenizer.encode("The TOLLKEEPER is open!", true), tokenizer.encode("[CLS] toll", false)];
        seen = Some((engine.embed(inputs).unwrap(), texts));
    })
    .unwrap();
    seen.unwrap()
}

#[test]
fn vectors_are_those_of_the_plain_sums() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config());
    let inputs: [&[Token]; 5] = [&[2, 4, 5, 3], &[2, 3], &[2, 6, 7, 3], &[2], &[2, 6, 7, 8, 9, 10, 3]];
    for (mode, first) in
        [(None, false), (Some("pooling_mode_mean_tokens"), false), (Some("pooling_mode_cls_token"), true)]
    {
        if let Some(mode) = mode {
            write_pooling(folder.path(), mode);
        }
        let (vectors, texts) = through_the_engine(folder.path(), &inputs);
        for (input, vector) in inputs.iter().zip(&vectors) {
            let states = slowly(&tensors(), input);
            let mean = |at: usize| states.iter().map(|state| state[at]).sum::<f64>() / states.len() as f64;
            for (at, number) in vector.iter().enumerate() {
                let expected = if first { states[0][at] } else { mean(at) };
                assert!((f64::from(*number) - expected).abs() < 1e-4, "{input:?} at {at}: {number} and {expected}");
            }
            assert_eq!(vector.len(), WIDTH);
        }
        assert_eq!(texts[0], [2, 6, 4, 5, 8, 9, 10, 3], "neither cut nor padded");
        assert!(!texts[1].contains(&2), "names of special tokens are text: {:?}", texts[1]);
    }
}

#[tokio::test]
async fn embeddings_are_served_alone_and_together() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config());
    let engines = engines([model("bert", EngineKind::Candle, folder.path())]).await;
    let texts = ["the bridge is open", "toll", "the bridge is closed", "!", "the tollkeeper", "toll toll toll"];
    let together = embed(&engines, "bert", embedding(&texts)).await.unwrap();
    for (text, vector) in texts.iter().zip(&together.vectors) {
        let alone = embed(&engines, "bert", embedding(&[text])).await.unwrap();
        let apart = vector.iter().zip(&alone.vectors[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-5, "{text}: {apart}");
        let length: f32 = vector.iter().map(|number| number * number).sum();
        assert!((length - 1.0).abs() < 1e-4);
    }
    let fault = engines.send("bert", call(Request::Chat(chat("x")))).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::BadRequest);
    let long = "toll ".repeat(100);
    let fault = engines.send("bert", call(Request::Embedding(embedding(&[&long])))).await.unwrap_err();
    assert_eq!(fault.kind, FaultKind::ContextLength);
    assert!(fault.message.contains("64"), "{fault}");
}

/// The name of a folder, what is done to it, and what is then said.
type Change = (&'static str, fn(&Path), &'static str);

#[tokio::test]
async fn folders_that_it_cannot_run_say_why() {
    let root = tempfile::tempdir().unwrap();
    let changes: [Change; 9] = [
        ("bare", |folder| std::fs::remove_file(folder.join("model.safetensors")).unwrap(), "no `model.safetensors`"),
        ("wordless", |folder| std::fs::remove_file(folder.join("tokenizer.json")).unwrap(), "no `tokenizer.json`"),
        (
            "cut",
            |folder| {
                let whole = std::fs::read(folder.join("model.safetensors")).unwrap();
                std::fs::write(folder.join("model.safetensors"), &whole[..whole.len() / 2]).unwrap();
            },
            "while loading `model.safetensors`",
        ),
        (
            "garbled",
            |folder| std::fs::write(folder.join("config.json"), "{").unwrap(),
            "`config.json` is not as it should be",
        ),
        (
            "other",
            |folder| {
                let mut config = config();
                config["model_type"] = json!("t5");
                std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
            },
            "this is `t5`",
        ),
        (
            "deep",
            |folder| {
                let mut config = config();
                config["num_hidden_layers"] = json!(3);
                std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
            },
            "encoder.layer.2",
        ),
        (
            "foreign",
            |folder| {
                let mut config = config();
                config["vocab_size"] = json!(5);
                std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
            },
            "do not belong together",
        ),
        ("pooled", |folder| write_pooling(folder, "pooling_mode_max_tokens"), "pooling_mode_max_tokens"),
        (
            "dense",
            |folder| {
                let modules = json!([{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Dense"}]);
                std::fs::write(folder.join("modules.json"), modules.to_string()).unwrap();
            },
            "models.Dense",
        ),
    ];
    for (name, change, words) in changes {
        let folder = root.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        write(&folder, &config());
        change(&folder);
        let engines = engines([model(name, EngineKind::Candle, &folder)]).await;
        let reason = why_unavailable(&engines, name);
        println!("{reason}");
        assert!(!reason.contains('\n'), "{reason}");
        assert!(reason.contains(words) && reason.contains(folder.to_str().unwrap()), "{reason}");
    }
}
