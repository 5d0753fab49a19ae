//! Tiny models with random weights: a Llama of two layers whose tokens are bytes, written by the project's own GGUF writer.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_models::chat_model::{Sizes, Vocabulary, metadata};
use tollkeeper_models::gguf::{TensorData, Value, write};
use tollkeeper_models::quant::Quant;
use tollkeeper_models::rng::Rng;

const DIM: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const FF: usize = 64;
/// What the model says it was trained for.
pub(crate) const TRAINED: u32 = 1024;
/// The first three are control tokens, the others are bytes.
pub(crate) const VOCABULARY: usize = 3 + 256;
/// The token that ends an answer.
pub(crate) const IM_END: u32 = 2;

/// The token of a byte.
pub(crate) fn token(byte: u8) -> u32 {
    3 + u32::from(byte)
}

/// A chat model's metadata, but without a template.
fn entries() -> Vec<(String, Value)> {
    let context = TRAINED as usize;
    let sizes =
        Sizes { context, dim: DIM, layers: LAYERS, heads: HEADS, kv_heads: KV_HEADS, ff: FF, rope_base: 10_000.0 };
    let mut entries = metadata("random", &sizes, &Vocabulary::bytes(), Quant::F32);
    entries.retain(|(key, _)| key != "tokenizer.chat_template");
    entries
}

fn tensors(seed: u64) -> Vec<TensorData> {
    let mut random = Rng::new(seed);
    let mut matrix = |name: String, rows: usize, cols: usize, scale: f32| {
        let values: Vec<f32> = (0..rows * cols).map(|_| random.normal() * scale).collect();
        TensorData::new(name, Some(rows), cols, Quant::F32, &values)
    };
    let kv = DIM / HEADS * KV_HEADS;
    let inner = 1.0 / (DIM as f32).sqrt();
    let mut tensors = vec![
        matrix("token_embd.weight".into(), VOCABULARY, DIM, 1.0),
        matrix("output.weight".into(), VOCABULARY, DIM, 0.5),
    ];
    for layer in 0..LAYERS {
        let shapes = [
            ("attn_q", DIM, DIM),
            ("attn_k", kv, DIM),
            ("attn_v", kv, DIM),
            ("attn_output", DIM, DIM),
            ("ffn_gate", FF, DIM),
            ("ffn_up", FF, DIM),
            ("ffn_down", DIM, FF),
        ];
        tensors
            .extend(shapes.map(|(name, rows, cols)| matrix(format!("blk.{layer}.{name}.weight"), rows, cols, inner)));
        tensors.extend(["attn_norm", "ffn_norm"].map(|name| norm(format!("blk.{layer}.{name}.weight"))));
    }
    tensors.push(norm("output_norm.weight".into()));
    tensors
}

fn norm(name: String) -> TensorData {
    TensorData::new(name, None, DIM, Quant::F32, &[1.0; DIM])
}

/// Writes a model; `change` may edit its metadata first.
pub(crate) fn write_model(path: &Path, seed: u64, change: impl FnOnce(&mut Vec<(String, Value)>)) {
    let mut entries = entries();
    change(&mut entries);
    write(&mut BufWriter::new(File::create(path).unwrap()), &entries, &tensors(seed)).unwrap();
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

    /// The model's configuration.
    pub(crate) fn model(&self) -> LocalModel {
        self.named("random.gguf")
    }

    /// The configuration of another file in the folder, under its file name.
    pub(crate) fn named(&self, name: &str) -> LocalModel {
        crate::ask::model(name, EngineKind::LlamaCpp, self.path(name))
    }
}
