//! Projectors of random weights, the part of a vision model that turns a picture into what its text model reads, for tests.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::gguf::{TensorInfo, Value, write_streamed};
use crate::quant::Quant;
use crate::random::Error;
use crate::rng::Rng;

/// How a projector places a picture among the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// LLaVA's: every picture has the same size, and a position for each patch.
    Llava,
    /// Qwen2-VL's: a picture keeps its shape, four patches become one token, and all of them together take as many positions as the longer
    /// side has tokens.
    Qwen2Vl,
}

/// What kind of file to make.
#[derive(Clone, Debug)]
pub struct Projector {
    /// What it is.
    pub kind: Kind,
    /// Width of the text model.
    pub text: usize,
    /// Transformer blocks; LLaVA's leaves the last one out.
    pub layers: usize,
    /// Width of the residual stream; a multiple of four times `heads`.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward layer.
    pub ff: usize,
    /// Pixels of a picture's side.
    pub image: usize,
    /// Pixels of a patch's side; `image` is an even multiple of it.
    pub patch: usize,
    /// Decides every weight.
    pub seed: u64,
}

impl Projector {
    /// A small one for a text model of this width: LLaVA's makes 16 tokens of every picture.
    pub fn small(kind: Kind, text: usize) -> Self {
        Self { kind, text, layers: 2, dim: 32, heads: 2, ff: 64, image: 16, patch: 4, seed: 1 }
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Sizes`] where the sizes contradict each other, [`Error::Io`] where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let Self { text, layers, dim, heads, ff, image, patch, .. } = *self;
        let fits = ![text, layers, dim, heads, ff, image, patch].contains(&0)
            && dim.is_multiple_of(4 * heads)
            && image.is_multiple_of(2 * patch);
        if !fits {
            return Err(Error::Sizes(format!(
                "every size must be at least 1, the width {dim} four numbers or a multiple for each of the {heads} heads, and the \
                 side {image} an even number of patches of {patch}"
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
        let size = |value: usize| Value::U32(value as u32);
        let kind = match self.kind {
            Kind::Llava => "mlp",
            Kind::Qwen2Vl => "qwen2vl_merger",
        };
        let entries = [
            ("general.architecture", Value::Text("clip".into())),
            ("general.name", Value::Text("random projector".into())),
            ("clip.has_vision_encoder", Value::Bool(true)),
            ("clip.projector_type", Value::Text(kind.into())),
            ("clip.use_gelu", Value::Bool(true)),
            ("clip.vision.image_size", size(self.image)),
            ("clip.vision.patch_size", size(self.patch)),
            ("clip.vision.embedding_length", size(self.dim)),
            ("clip.vision.feed_forward_length", size(self.ff)),
            ("clip.vision.projection_dim", size(self.text)),
            ("clip.vision.block_count", size(self.layers)),
            ("clip.vision.attention.head_count", size(self.heads)),
            ("clip.vision.attention.layer_norm_epsilon", Value::F32(1e-5)),
            ("clip.vision.image_mean", Value::F32s(vec![0.5; 3])),
            ("clip.vision.image_std", Value::F32s(vec![0.25; 3])),
        ];
        entries.map(|(key, value)| (key.to_owned(), value)).into()
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let Self { text, dim, ff, image, patch, .. } = *self;
        let matrix = |name: String, rows, cols| TensorInfo::new(name + ".weight", Some(rows), cols, Quant::F32);
        let bias = |name: String, length| TensorInfo::new(name + ".bias", None, length, Quant::F32);
        let norm = |name: String| [TensorInfo::new(format!("{name}.weight"), None, dim, Quant::F32), bias(name, dim)];
        // A filter of three colours for each number of the width.
        let filter =
            |name: &str| TensorInfo::new(name, Some(dim), 3 * patch * patch, Quant::F32).sized(&[patch, patch, 3, dim]);
        let mut tensors = vec![filter("v.patch_embd.weight")];
        let read = match self.kind {
            Kind::Llava => {
                tensors.push(matrix("v.position_embd".into(), (image / patch).pow(2), dim));
                dim
            }
            Kind::Qwen2Vl => {
                tensors.push(filter("v.patch_embd.weight.1"));
                4 * dim
            }
        };
        for layer in 0..self.layers {
            let parts = ["attn_q", "attn_k", "attn_v", "attn_out"].map(|part| (part, dim, dim));
            for (part, rows, cols) in parts.into_iter().chain([("ffn_up", ff, dim), ("ffn_down", dim, ff)]) {
                tensors.push(matrix(format!("v.blk.{layer}.{part}"), rows, cols));
                tensors.push(bias(format!("v.blk.{layer}.{part}"), rows));
            }
            tensors.extend(["ln1", "ln2"].into_iter().flat_map(|part| norm(format!("v.blk.{layer}.{part}"))));
        }
        tensors.extend(norm("v.post_ln".into()));
        for (part, rows, cols) in [("mm.0", text, read), ("mm.2", text, text)] {
            tensors.push(matrix(part.into(), rows, cols));
            tensors.push(bias(part.into(), rows));
        }
        tensors
    }
}

/// Norms change nothing and nothing is added, the rest has variance 1/width; the last matrix has more, so that pictures differ well.
fn weights(tensor: &TensorInfo, rng: &mut Rng) -> Vec<f32> {
    let spread = match (tensor.rows, tensor.name.as_str()) {
        (None, name) => return vec![if name.ends_with(".bias") { 0.0 } else { 1.0 }; tensor.cols],
        (Some(_), "mm.2.weight") => 12.0f32.sqrt(),
        (Some(_), _) => (12.0 / tensor.cols as f32).sqrt(),
    };
    (0..tensor.len()).map(|_| spread * (rng.unit() - 0.5)).collect()
}
