//! A reranker of random weights: a BERT that reads a query and a document together and ends in a classifier head, for tests.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::chat_model::{Sizes, Vocabulary, metadata};
use crate::gguf::{TensorInfo, Value, write_streamed};
use crate::quant::Quant;
use crate::random::Error;
use crate::rng::Rng;

/// What kind of file to make. Its tokens are bytes, framed as `<|endoftext|>query<|im_end|><|im_start|>document<|im_end|>`.
#[derive(Clone, Debug)]
pub struct Reranker {
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream; a multiple of `heads`.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward layer.
    pub ff: usize,
    /// Longest query and document together, in tokens.
    pub context: usize,
    /// Decides every weight.
    pub seed: u64,
}

impl Default for Reranker {
    fn default() -> Self {
        Self { layers: 2, dim: 64, heads: 4, ff: 128, context: 512, seed: 1 }
    }
}

impl Reranker {
    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Sizes`] where the sizes contradict each other, [`Error::Io`] where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let Self { layers, dim, heads, ff, context, .. } = *self;
        if [layers, dim, heads, ff, context].contains(&0) || !dim.is_multiple_of(heads) {
            return Err(Error::Sizes(format!(
                "every size must be at least 1, and {heads} heads must share the width {dim}"
            )));
        }
        let part = path.with_extension("part");
        let mut out = BufWriter::new(File::create(&part)?);
        let mut rng = Rng::new(self.seed);
        write_streamed(&mut out, &self.metadata(), &self.tensors(), |tensor, out| {
            out.write_all(&tensor.quant.encode(&weights(tensor, &mut rng)))
        })?;
        out.flush()?;
        fs::rename(part, path)?;
        Ok(())
    }

    fn metadata(&self) -> Vec<(String, Value)> {
        let Self { layers, dim, heads, ff, context, .. } = *self;
        let sizes = Sizes { context, dim, layers, heads, kv_heads: heads, ff, rope_base: 10_000.0 };
        let mut all = metadata("random reranker", &sizes, &Vocabulary::bytes(), Quant::F32);
        all.retain(|(key, _)| !key.starts_with("llama.rope") && key != "tokenizer.chat_template");
        for (key, value) in &mut all {
            match key.as_str() {
                "general.architecture" => *value = Value::Text("bert".to_owned()),
                "tokenizer.ggml.add_bos_token" => *value = Value::Bool(true),
                _ => *key = key.replace("llama.", "bert."),
            }
        }
        let more = [
            ("bert.attention.layer_norm_epsilon", Value::F32(1e-5)),
            ("bert.attention.causal", Value::Bool(false)),
            // 4 is a classifier head.
            ("bert.pooling_type", Value::U32(4)),
            ("tokenizer.ggml.token_type_count", Value::U32(2)),
            ("tokenizer.ggml.seperator_token_id", Value::U32(1)),
            ("tokenizer.ggml.add_eos_token", Value::Bool(true)),
            ("tokenizer.ggml.add_sep_token", Value::Bool(true)),
        ];
        all.extend(more.map(|(key, value)| (key.to_owned(), value)));
        all
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let (dim, ff) = (self.dim, self.ff);
        let matrix = |name: String, rows, cols| TensorInfo::new(name + ".weight", Some(rows), cols, Quant::F32);
        let vector = |name: String| TensorInfo::new(name, None, dim, Quant::F32);
        let norm = |name: String| [vector(format!("{name}.weight")), vector(format!("{name}.bias"))];
        let mut tensors = vec![
            matrix("token_embd".to_owned(), Vocabulary::bytes().tokens.len(), dim),
            matrix("position_embd".to_owned(), self.context, dim),
            matrix("cls".to_owned(), dim, dim),
            TensorInfo::new("cls.output.weight", Some(1), dim, Quant::F32),
        ];
        tensors.extend(norm("token_embd_norm".to_owned()));
        for layer in 0..self.layers {
            let parts = ["attn_q", "attn_k", "attn_v", "attn_output"].map(|part| (part, dim, dim));
            let parts = parts.into_iter().chain([("ffn_up", ff, dim), ("ffn_down", dim, ff)]);
            tensors.extend(parts.map(|(part, rows, cols)| matrix(format!("blk.{layer}.{part}"), rows, cols)));
            for part in ["attn_output_norm", "layer_output_norm"] {
                tensors.extend(norm(format!("blk.{layer}.{part}")));
            }
        }
        tensors
    }
}

/// Norms change nothing, the rest has variance 1/width; the last matrix has variance 1, so that scores differ well.
fn weights(tensor: &TensorInfo, rng: &mut Rng) -> Vec<f32> {
    let spread = match (tensor.rows, tensor.name.as_str()) {
        (None, name) => return vec![if name.ends_with(".bias") { 0.0 } else { 1.0 }; tensor.cols],
        (Some(_), "cls.output.weight") => 12.0f32.sqrt(),
        (Some(_), _) => (12.0 / tensor.cols as f32).sqrt(),
    };
    (0..tensor.len()).map(|_| spread * (rng.unit() - 0.5)).collect()
}
