//! Where each named tensor lies in the one flat parameter vector (gradients and optimiser state use the same places).

use std::ops::Range;

use crate::rng::Rng;

/// The sizes of a Llama-architecture model with tied embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Query heads; `dim / heads` is the width of one head.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of the feed-forward layer.
    pub ff: usize,
}

impl Shape {
    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    /// Width of the joined query, key and value projection.
    pub fn qkv_dim(&self) -> usize {
        self.dim + 2 * self.kv_heads * self.head_dim()
    }
}

/// One named tensor, row-major `[rows, cols]`; a norm has one row.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name in the GGUF file.
    pub name: String,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
    /// Its first element in the flat vector.
    pub start: usize,
}

impl Tensor {
    /// The elements of this tensor in the flat vector.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.rows * self.cols
    }
}

/// The ranges of one transformer block. Query, key and value are neighbours, and so are gate and up, so that each group
/// is one matrix product.
#[derive(Clone, Debug)]
pub struct Block {
    /// Weights of the norm before attention.
    pub attn_norm: Range<usize>,
    /// `[dim + 2 * kv, dim]`.
    pub qkv: Range<usize>,
    /// `[dim, dim]`.
    pub attn_out: Range<usize>,
    /// Weights of the norm before the feed-forward layer.
    pub ffn_norm: Range<usize>,
    /// `[2 * ff, dim]`: gate rows, then up rows.
    pub gate_up: Range<usize>,
    /// `[dim, ff]`.
    pub down: Range<usize>,
}

/// The whole parameter vector's map.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The sizes it was made for.
    pub shape: Shape,
    /// All tensors, in order and without gaps.
    pub tensors: Vec<Tensor>,
    /// Token embedding, also the output head: `[vocab, dim]`.
    pub embed: Range<usize>,
    /// The blocks, first to last.
    pub blocks: Vec<Block>,
    /// Weights of the last norm.
    pub out_norm: Range<usize>,
}

impl Layout {
    /// Lays the tensors of `shape` one behind the other.
    pub fn new(shape: Shape) -> Self {
        let mut tensors: Vec<Tensor> = Vec::new();
        let mut push = |name: String, rows: usize, cols: usize| {
            let start = tensors.last().map_or(0, |t: &Tensor| t.range().end);
            tensors.push(Tensor { name, rows, cols, start });
            start..start + rows * cols
        };
        let (d, kv) = (shape.dim, shape.kv_heads * shape.head_dim());
        let embed = push("token_embd.weight".into(), shape.vocab, d);
        let blocks = (0..shape.layers)
            .map(|i| {
                let mut part = |name: &str, rows, cols| push(format!("blk.{i}.{name}.weight"), rows, cols);
                let attn_norm = part("attn_norm", 1, d);
                let (q, _k, v) = (part("attn_q", d, d), part("attn_k", kv, d), part("attn_v", kv, d));
                let attn_out = part("attn_output", d, d);
                let ffn_norm = part("ffn_norm", 1, d);
                let (gate, up) = (part("ffn_gate", shape.ff, d), part("ffn_up", shape.ff, d));
                let down = part("ffn_down", d, shape.ff);
                Block { attn_norm, qkv: q.start..v.end, attn_out, ffn_norm, gate_up: gate.start..up.end, down }
            })
            .collect();
        let out_norm = push("output_norm.weight".into(), 1, d);
        Self { shape, tensors, embed, blocks, out_norm }
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.out_norm.end
    }

    /// Never: a layout has at least the embedding.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fresh parameters: norms 1, matrices normal with variance 1/cols, those that write into the residual stream smaller.
    pub fn init(&self, rng: &mut Rng) -> Vec<f32> {
        let depth = (2.0 * self.shape.layers as f32).sqrt();
        let mut params = Vec::with_capacity(self.len());
        for tensor in &self.tensors {
            let scale = match tensor.name.as_str() {
                "token_embd.weight" => 0.04,
                name if name.contains("attn_output") || name.contains("ffn_down") => {
                    1.0 / ((tensor.cols as f32).sqrt() * depth)
                }
                _ => 1.0 / (tensor.cols as f32).sqrt(),
            };
            let norm = tensor.rows == 1;
            params.extend((0..tensor.rows * tensor.cols).map(|_| if norm { 1.0 } else { scale * rng.normal() }));
        }
        params
    }
}
