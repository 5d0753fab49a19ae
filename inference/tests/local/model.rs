//! Tiny models with random weights: two layers of one or the other architecture, whose tokens are bytes, written by the project's own
//! GGUF writer.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use tollkeeper_models::chat_model::{Sizes, Vocabulary, metadata};
use tollkeeper_models::gguf::{TensorData, Value, write};
use tollkeeper_models::quant::Quant;
use tollkeeper_models::rng::Rng;

const DIM: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const FF: usize = 64;
const HEAD: usize = DIM / HEADS;
const KV: usize = HEAD * KV_HEADS;
/// What the model says it was trained for.
pub(crate) const TRAINED: u32 = 1024;
/// The first three are control tokens, the others are bytes.
pub(crate) const VOCABULARY: usize = 3 + 256;
/// The token that ends an answer.
#[cfg(feature = "llama-cpp")]
pub(crate) const IM_END: u32 = 2;

/// The token of a byte.
#[cfg(feature = "llama-cpp")]
pub(crate) fn token(byte: u8) -> u32 {
    3 + u32::from(byte)
}

/// What Qwen2 adds to queries, keys and values.
const BIASES: [(&str, usize, f32); 3] = [("attn_q.bias", DIM, 0.0), ("attn_k.bias", KV, 0.0), ("attn_v.bias", KV, 0.0)];

/// The architectures that tests write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Phi3,
    /// The text half of Qwen2-VL.
    #[cfg(feature = "vision")]
    Qwen2Vl,
}

impl Architecture {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Phi3 => "phi3",
            #[cfg(feature = "vision")]
            Self::Qwen2Vl => "qwen2vl",
        }
    }

    /// The matrices of a layer: name, rows, columns.
    fn matrices(self) -> Vec<(&'static str, usize, usize)> {
        let apart = [
            ("attn_q", DIM, DIM),
            ("attn_k", KV, DIM),
            ("attn_v", KV, DIM),
            ("ffn_gate", FF, DIM),
            ("ffn_up", FF, DIM),
        ];
        let joined = [("attn_qkv", DIM + 2 * KV, DIM), ("ffn_up", 2 * FF, DIM)];
        let both = [("attn_output", DIM, DIM), ("ffn_down", DIM, FF)];
        let first = if self == Self::Phi3 { joined.to_vec() } else { apart.to_vec() };
        first.into_iter().chain(both).collect()
    }

    /// The vectors of a layer: name, length, and about what they are.
    fn vectors(self) -> Vec<(&'static str, usize, f32)> {
        let norms = [("attn_norm.weight", DIM, 1.0), ("ffn_norm.weight", DIM, 1.0)];
        let more: &[(&str, usize, f32)] = match self {
            Self::Llama | Self::Phi3 => &[],
            Self::Qwen2 => &BIASES,
            #[cfg(feature = "vision")]
            Self::Qwen2Vl => &BIASES,
            Self::Qwen3 => &[("attn_q_norm.weight", HEAD, 1.0), ("attn_k_norm.weight", HEAD, 1.0)],
        };
        norms.iter().chain(more).copied().collect()
    }
}

/// A chat model's metadata, but without a template.
fn entries(architecture: Architecture) -> Vec<(String, Value)> {
    let context = TRAINED as usize;
    let sizes =
        Sizes { context, dim: DIM, layers: LAYERS, heads: HEADS, kv_heads: KV_HEADS, ff: FF, rope_base: 10_000.0 };
    let mut entries = metadata("random", &sizes, &Vocabulary::bytes(), Quant::F32);
    entries.retain(|(key, _)| key != "tokenizer.chat_template");
    let name = architecture.name();
    for (key, value) in &mut entries {
        match key.as_str() {
            "general.architecture" => *value = Value::Text(name.into()),
            _ => *key = key.replace("llama.", &format!("{name}.")),
        }
    }
    for part in ["key", "value"] {
        entries.push((format!("{name}.attention.{part}_length"), Value::U32(HEAD as u32)));
    }
    if name == "qwen2vl" {
        // Of each head's four pairs: one for time, two for rows, one for columns.
        entries.push(("qwen2vl.rope.dimension_sections".into(), Value::I32s(vec![1, 2, 1, 0])));
    }
    entries
}

fn tensors(architecture: Architecture, vocabulary: usize, seed: u64) -> Vec<TensorData> {
    let mut random = Rng::new(seed);
    let mut tensor = |name: String, rows: Option<usize>, cols: usize, middle: f32, scale: f32| {
        let values: Vec<f32> = (0..rows.unwrap_or(1) * cols).map(|_| middle + random.normal() * scale).collect();
        TensorData::new(name, rows, cols, Quant::F32, &values)
    };
    let inner = 1.0 / (DIM as f32).sqrt();
    let mut tensors = vec![
        tensor("token_embd.weight".into(), Some(vocabulary), DIM, 0.0, 1.0),
        tensor("output.weight".into(), Some(vocabulary), DIM, 0.0, 0.5),
        tensor("output_norm.weight".into(), None, DIM, 1.0, 0.0),
    ];
    for layer in 0..LAYERS {
        for (name, rows, cols) in architecture.matrices() {
            tensors.push(tensor(format!("blk.{layer}.{name}.weight"), Some(rows), cols, 0.0, inner));
        }
        for (name, length, middle) in architecture.vectors() {
            tensors.push(tensor(format!("blk.{layer}.{name}"), None, length, middle, 0.1));
        }
    }
    tensors
}

/// Writes a Llama; `change` may edit its metadata first.
pub(crate) fn write_model(path: &Path, seed: u64, change: impl FnOnce(&mut Vec<(String, Value)>)) {
    write_as(Architecture::Llama, path, seed, change);
}

/// Writes a model of an architecture; `change` may edit its metadata first.
pub(crate) fn write_as(
    architecture: Architecture,
    path: &Path,
    seed: u64,
    change: impl FnOnce(&mut Vec<(String, Value)>),
) {
    let mut entries = entries(architecture);
    change(&mut entries);
    let vocabulary = entries.iter().find_map(|(key, value)| match value {
        Value::Texts(tokens) if key == "tokenizer.ggml.tokens" => Some(tokens.len()),
        _ => None,
    });
    let tensors = tensors(architecture, vocabulary.unwrap_or(VOCABULARY), seed);
    write(&mut BufWriter::new(File::create(path).unwrap()), &entries, &tensors).unwrap();
}

/// Writes a LoRA adapter of rank 2 for the output matrix of such a model, if that has this architecture and width.
pub(crate) fn write_adapter(path: &Path, architecture: &str, width: usize) {
    let text = |text: &str| Value::Text(text.to_owned());
    let entries = [
        ("general.architecture", text(architecture)),
        ("general.type", text("adapter")),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(2.0)),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let mut random = Rng::new(5);
    let mut matrix = |name: &str, rows: usize, cols: usize| {
        let values: Vec<f32> = (0..rows * cols).map(|_| random.normal()).collect();
        TensorData::new(format!("output.weight.{name}"), Some(rows), cols, Quant::F32, &values)
    };
    let tensors = [matrix("lora_a", 2, width), matrix("lora_b", VOCABULARY, 2)];
    write(&mut BufWriter::new(File::create(path).unwrap()), &entries, &tensors).unwrap();
}

/// A folder with one model.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Self { folder: tempfile::tempdir().unwrap() };
        write_model(&folder.path("random.gguf"), 1, |_| {});
        folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

#[cfg(feature = "llama-cpp")]
impl Folder {
    /// The configuration of its model, for llama.cpp.
    pub(crate) fn model(&self) -> tollkeeper_config::LocalModel {
        self.named("random.gguf")
    }

    /// The configuration of another file in the folder, under its file name.
    pub(crate) fn named(&self, name: &str) -> tollkeeper_config::LocalModel {
        crate::ask::model(name, tollkeeper_config::EngineKind::LlamaCpp, self.path(name))
    }
}
