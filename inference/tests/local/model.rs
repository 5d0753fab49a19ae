//! Tiny models with random weights: a Llama of two layers whose tokens are bytes, written by the project's own GGUF writer.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use tollkeeper_config::{EngineKind, LocalModel};
use tollkeeper_models::gguf::{TensorData, Value, write};
use tollkeeper_models::quant::Quant;

const DIM: usize = 32;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const FF: usize = 64;
/// What the model says it was trained for.
pub(crate) const TRAINED: u32 = 1024;
/// The first three are control tokens, the others are bytes.
pub(crate) const VOCABULARY: usize = 3 + 256;
/// The token of a byte.
pub(crate) fn token(byte: u8) -> u32 {
    3 + u32::from(byte)
}

/// How byte-level vocabularies write a byte: itself where it is a visible Latin-1 letter, else a letter from U+0100 on.
fn letter(byte: u8) -> String {
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code =
        if visible(byte) { u32::from(byte) } else { 0x100 + (0..byte).filter(|byte| !visible(*byte)).count() as u32 };
    char::from_u32(code).unwrap().to_string()
}

struct Random(u64);

impl Random {
    /// About normal, with deviation 1.
    fn next(&mut self) -> f32 {
        let uniform = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*state >> 40) as f32 / (1u64 << 24) as f32
        };
        (0..12).map(|_| uniform(&mut self.0)).sum::<f32>() - 6.0
    }
}

fn metadata() -> Vec<(String, Value)> {
    let control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
    let tokens = control.into_iter().chain((0..=255).map(letter)).collect();
    let number = |number: usize| Value::U32(number as u32);
    let entries: Vec<(&str, Value)> = vec![
        ("general.architecture", Value::Text("llama".into())),
        ("general.name", Value::Text("random".into())),
        ("llama.context_length", Value::U32(TRAINED)),
        ("llama.embedding_length", number(DIM)),
        ("llama.block_count", number(LAYERS)),
        ("llama.feed_forward_length", number(FF)),
        ("llama.attention.head_count", number(HEADS)),
        ("llama.attention.head_count_kv", number(KV_HEADS)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.rope.dimension_count", number(DIM / HEADS)),
        ("tokenizer.ggml.model", Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Value::Text("qwen2".into())),
        ("tokenizer.ggml.tokens", Value::Texts(tokens)),
        ("tokenizer.ggml.token_type", Value::I32s((0..VOCABULARY).map(|id| if id < 3 { 3 } else { 1 }).collect())),
        ("tokenizer.ggml.merges", Value::Texts(Vec::new())),
        ("tokenizer.ggml.bos_token_id", Value::U32(0)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn tensors(seed: u64) -> Vec<TensorData> {
    let mut random = Random(seed);
    let mut matrix = |name: String, rows: usize, cols: usize, scale: f32| {
        let values: Vec<f32> = (0..rows * cols).map(|_| random.next() * scale).collect();
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
    let mut entries = metadata();
    change(&mut entries);
    write(&mut BufWriter::new(File::create(path).unwrap()), &entries, &tensors(seed)).unwrap();
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
