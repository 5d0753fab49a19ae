//! The quantised models of candle-transformers behind one door: which files they compute rightly, and how they must be fed.
//!
//! Each model keeps the KV of one sequence inside itself, at one position, and begins anew when it is fed position 0. What a file
//! asks for beyond what a model does would be left out in silence, so files are checked against what the model reads.

use super::gguf::Gguf;
use super::said;
use crate::local::engine::{LoadError, Token};
use candle_core::{Device, Result, Tensor};
use candle_transformers::models::{quantized_llama, quantized_phi3, quantized_qwen2, quantized_qwen3};

/// Most tokens of a sequence: candle's Llama has position tables for no more, and its attention copies the KV at every token.
pub(super) const MOST_CONTEXT: u32 = quantized_llama::MAX_SEQ_LEN as u32;

/// Tensors of every architecture.
const COMMON: &[&str] = &["token_embd.weight", "output_norm.weight", "output.weight"];
/// Frequencies of Llama 3.1 for contexts beyond 8192 tokens; candle computes without them.
const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// An architecture that candle computes as llama.cpp does.
struct Architecture {
    name: &'static str,
    /// The tensors of a layer that its model reads. A file with others needs what the model does not do.
    layer: &'static [&'static str],
    load: fn(Gguf) -> Result<Weights>,
}

const LLAMA_LAYER: &[&str] = &[
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
];
const QWEN2_LAYER: &[&str] = &[
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
    "attn_q.bias",
    "attn_k.bias",
    "attn_v.bias",
];
const QWEN3_LAYER: &[&str] = &[
    "attn_norm.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
    "attn_q_norm.weight",
    "attn_k_norm.weight",
];
const PHI3_LAYER: &[&str] = &[
    "attn_norm.weight",
    "attn_qkv.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_up.weight",
    "ffn_down.weight",
];

const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "llama",
        layer: LLAMA_LAYER,
        load: |mut file| {
            quantized_llama::ModelWeights::from_gguf(file.content, &mut file.reader, &Device::Cpu).map(Weights::Llama)
        },
    },
    Architecture {
        name: "qwen2",
        layer: QWEN2_LAYER,
        load: |mut file| {
            quantized_qwen2::ModelWeights::from_gguf(file.content, &mut file.reader, &Device::Cpu).map(Weights::Qwen2)
        },
    },
    Architecture {
        name: "qwen3",
        layer: QWEN3_LAYER,
        load: |mut file| {
            quantized_qwen3::ModelWeights::from_gguf(file.content, &mut file.reader, &Device::Cpu).map(Weights::Qwen3)
        },
    },
    Architecture {
        name: "phi3",
        layer: PHI3_LAYER,
        load: |mut file| {
            quantized_phi3::ModelWeights::from_gguf(false, file.content, &mut file.reader, &Device::Cpu)
                .map(Weights::Phi3)
        },
    },
];

/// A model and the KV of its one sequence.
pub(super) enum Weights {
    Llama(quantized_llama::ModelWeights),
    Qwen2(quantized_qwen2::ModelWeights),
    Qwen3(quantized_qwen3::ModelWeights),
    Phi3(quantized_phi3::ModelWeights),
}

/// How the tokens of a sequence may be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feed {
    /// In blocks of powers of two that begin at multiples of their size: the model keeps every attention mask it ever made, and so
    /// there are only so many.
    Aligned,
    /// As they come, but after one token alone only one by one: the model keeps two caches, and a lone token goes into one only.
    OneByOneAfterOne,
}

impl Weights {
    /// Loads a file whose sequences are at most `context` tokens.
    ///
    /// # Errors
    /// The architecture is unknown, the file needs what candle's model does not do, or it contradicts itself.
    pub(super) fn load(mut file: Gguf, context: u32) -> std::result::Result<Self, LoadError> {
        let name = file.metadata().text("general.architecture").unwrap_or_default().to_owned();
        let Some(architecture) = ARCHITECTURES.iter().find(|known| known.name == name) else {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|known| known.name).collect();
            return Err(LoadError(format!(
                "the candle engine does not run the architecture `{name}` (it runs {}); use `engine = \"llama.cpp\"`",
                known.join(", ")
            )));
        };
        check_scaling(&file, &name)?;
        check_tensors(&file, architecture)?;
        // Tables of positions, and Phi's KV, are made for the whole context that the file speaks of.
        file.set(format!("{name}.context_length"), context);
        // Qwen3 computes its positions in this type, F16 if none is named; 0 is F32.
        file.set("general.dtype".into(), 0);
        (architecture.load)(file)
            .map_err(|error| LoadError(format!("candle failed while loading the model: {}", said(&error))))
    }

    /// One for each of `wanted` sequences, sharing the weights; only one where the model cannot be copied.
    pub(super) fn copies(self, wanted: u32) -> Vec<Self> {
        let wanted = wanted.max(1) as usize;
        match self {
            Self::Llama(model) => vec![model; wanted].into_iter().map(Self::Llama).collect(),
            Self::Qwen2(model) => vec![Self::Qwen2(model)],
            Self::Qwen3(model) => vec![model; wanted].into_iter().map(Self::Qwen3).collect(),
            Self::Phi3(model) => vec![model; wanted].into_iter().map(Self::Phi3).collect(),
        }
    }

    /// How it must be fed.
    pub(super) fn feed(&self) -> Feed {
        match self {
            Self::Llama(_) | Self::Qwen2(_) | Self::Phi3(_) => Feed::Aligned,
            Self::Qwen3(_) => Feed::OneByOneAfterOne,
        }
    }

    /// Reads tokens from `position` on and returns the logits after the last.
    pub(super) fn forward(&mut self, tokens: &[Token], position: u32) -> Result<Vec<f32>> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let position = position as usize;
        let logits = match self {
            Self::Llama(model) => model.forward(&input, position),
            Self::Qwen2(model) => model.forward(&input, position),
            Self::Qwen3(model) => {
                if position == 0 {
                    model.clear_kv_cache();
                }
                model.forward(&input, position)
            }
            Self::Phi3(model) => model.forward(&input, position),
        };
        logits?.flatten_all()?.to_vec1()
    }
}

/// Refuses positions that are stretched; candle computes plain ones.
fn check_scaling(file: &Gguf, architecture: &str) -> std::result::Result<(), LoadError> {
    match file.metadata().text(&format!("{architecture}.rope.scaling.type")) {
        None | Some("none") => Ok(()),
        Some(kind) => Err(LoadError(format!(
            "the model scales its positions (`{kind}`), which candle does not; use `engine = \"llama.cpp\"`"
        ))),
    }
}

/// Refuses a file with a tensor that candle's model would leave out in silence.
fn check_tensors(file: &Gguf, architecture: &Architecture) -> std::result::Result<(), LoadError> {
    for name in file.content.tensor_infos.keys() {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(_, part)| part);
        let known = match layer {
            Some(part) => architecture.layer.contains(&part),
            None => COMMON.contains(&name.as_str()),
        };
        if !known && architecture.name == "llama" && name == ROPE_FREQUENCIES {
            tracing::warn!("the model was trained with stretched positions (`{name}`), which candle computes without");
        } else if !known {
            return Err(LoadError(format!(
                "the file has the tensor `{name}`, which candle's `{}` leaves out; use `engine = \"llama.cpp\"`",
                architecture.name
            )));
        }
    }
    Ok(())
}
