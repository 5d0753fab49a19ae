//! The model: forward pass, loss and gradients of a packed batch, written by hand (no autograd, no padding).

use std::ops::Range;

use super::kernels::{
    Rope, View, add, causal_softmax, matmul, rms_norm, rms_norm_back, softmax, softmax_back, swiglu, swiglu_back,
};
use super::layout::{Block, Layout};

/// Base frequency of the rotary embedding; the exported file says the same.
pub const ROPE_BASE: f32 = 10_000.0;

/// Samples laid one behind the other. Attention stays inside a segment and positions start again in each, so no token is padding.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Each sample's range in `tokens`.
    pub segments: Vec<Range<usize>>,
    /// Rows whose next token counts for the loss.
    pub rows: Vec<usize>,
    /// That next token, one per element of `rows`.
    pub targets: Vec<u32>,
}

impl Batch {
    /// Appends one sample; `counts[i]` says whether predicting `tokens[i]` is part of the loss.
    pub fn push(&mut self, tokens: &[u32], counts: &[bool]) {
        let start = self.tokens.len();
        // The last token predicts nothing, so it is not fed.
        let len = tokens.len().saturating_sub(1);
        self.tokens.extend(&tokens[..len]);
        self.segments.push(start..start + len);
        for i in (1..tokens.len()).filter(|&i| counts[i]) {
            self.rows.push(start + i - 1);
            self.targets.push(tokens[i]);
        }
    }
}

/// What the forward pass of one block keeps for the way back.
#[derive(Default)]
struct Saved {
    x: Vec<f32>,
    inv1: Vec<f32>,
    h1: Vec<f32>,
    qkv: Vec<f32>,
    probs: Vec<f32>,
    attended: Vec<f32>,
    x2: Vec<f32>,
    inv2: Vec<f32>,
    h2: Vec<f32>,
    gate_up: Vec<f32>,
    act: Vec<f32>,
}

/// The buffers of one worker thread, kept between steps so that memory is not asked for again.
#[derive(Default)]
pub struct Workspace {
    saved: Vec<Saved>,
    x: Vec<f32>,
    dx: Vec<f32>,
    wide: Vec<f32>,
    narrow: Vec<f32>,
    scores: Vec<f32>,
    logits: Vec<f32>,
}

/// What a pass over a batch found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Sum of the loss over the counted tokens, in nats.
    pub loss: f64,
    /// Counted tokens whose most likely prediction was right.
    pub hits: usize,
}

/// Parameter places, rotary tables: all that is constant during training.
pub struct Model {
    /// Where the parameters lie.
    pub layout: Layout,
    rope: Rope,
}

impl Model {
    /// A model for samples of at most `positions` tokens.
    pub fn new(layout: Layout, positions: usize) -> Self {
        let rope = Rope::new(positions, layout.shape.head_dim(), ROPE_BASE);
        Self { layout, rope }
    }

    /// Forward and backward over `batch`: adds the gradient of `scale * (summed loss)` to `grads`.
    pub fn learn(&self, p: &[f32], grads: &mut [f32], batch: &Batch, scale: f32, ws: &mut Workspace) -> Outcome {
        let dim = self.layout.shape.dim;
        self.forward(p, batch, ws);

        // The head, only for the rows that count.
        let count = batch.rows.len();
        let embed = View::new(&p[self.layout.embed.clone()], dim);
        let norm_weight = &p[self.layout.out_norm.clone()];
        let gathered = gather(&ws.x, &batch.rows, dim);
        let (mut inv, mut h) = (vec![0.0; count], vec![0.0; count * dim]);
        rms_norm(&mut h, &mut inv, &gathered, norm_weight);
        let vocab = self.layout.shape.vocab;
        fit(&mut ws.logits, count * vocab);
        matmul(&mut ws.logits, vocab, false, 1.0, View::new(&h, dim), embed.t());
        let outcome = cross_entropy(&mut ws.logits, &batch.targets, vocab, scale);

        let dlogits = View::new(&ws.logits, vocab);
        matmul(&mut grads[self.layout.embed.clone()], dim, true, 1.0, dlogits.t(), View::new(&h, dim));
        let mut dh = vec![0.0; count * dim];
        matmul(&mut dh, dim, false, 1.0, dlogits, embed);
        let mut dgathered = vec![0.0; count * dim];
        rms_norm_back(&mut dgathered, &mut grads[self.layout.out_norm.clone()], &dh, &gathered, &inv, norm_weight);
        fit(&mut ws.dx, ws.x.len());
        ws.dx.fill(0.0);
        for (row, d) in batch.rows.iter().zip(dgathered.chunks_exact(dim)) {
            add(&mut ws.dx[row * dim..(row + 1) * dim], d);
        }

        let mut saved = std::mem::take(&mut ws.saved);
        for (block, saved) in self.layout.blocks.iter().zip(&mut saved).rev() {
            self.block_back(block, p, grads, batch, saved, ws);
        }
        ws.saved = saved;
        let dembed = &mut grads[self.layout.embed.clone()];
        for (&token, d) in batch.tokens.iter().zip(ws.dx.chunks_exact(dim)) {
            add(&mut dembed[token as usize * dim..(token as usize + 1) * dim], d);
        }
        outcome
    }

    /// Fills `ws.x` with the last residual stream and `ws.saved` with what the way back needs.
    fn forward(&self, p: &[f32], batch: &Batch, ws: &mut Workspace) {
        let dim = self.layout.shape.dim;
        let embed = &p[self.layout.embed.clone()];
        ws.x.clear();
        for &token in &batch.tokens {
            ws.x.extend_from_slice(&embed[token as usize * dim..(token as usize + 1) * dim]);
        }
        let mut saved = std::mem::take(&mut ws.saved);
        saved.resize_with(self.layout.blocks.len(), Saved::default);
        for (block, saved) in self.layout.blocks.iter().zip(&mut saved) {
            self.block(block, p, batch, saved, ws);
        }
        ws.saved = saved;
    }

    fn block(&self, block: &Block, p: &[f32], batch: &Batch, s: &mut Saved, ws: &mut Workspace) {
        let shape = &self.layout.shape;
        let (dim, ff, n) = (shape.dim, shape.ff, batch.tokens.len());
        s.x.clone_from(&ws.x);
        fit(&mut s.inv1, n);
        fit(&mut s.h1, n * dim);
        rms_norm(&mut s.h1, &mut s.inv1, &s.x, &p[block.attn_norm.clone()]);
        fit(&mut s.qkv, n * shape.qkv_dim());
        matmul(
            &mut s.qkv,
            shape.qkv_dim(),
            false,
            1.0,
            View::new(&s.h1, dim),
            View::new(&p[block.qkv.clone()], dim).t(),
        );
        self.rotate(&mut s.qkv, batch, false);
        fit(&mut s.attended, n * dim);
        self.attend(s, batch);
        s.x2.clone_from(&s.x);
        let w_out = View::new(&p[block.attn_out.clone()], dim);
        matmul(&mut s.x2, dim, true, 1.0, View::new(&s.attended, dim), w_out.t());

        fit(&mut s.inv2, n);
        fit(&mut s.h2, n * dim);
        rms_norm(&mut s.h2, &mut s.inv2, &s.x2, &p[block.ffn_norm.clone()]);
        fit(&mut s.gate_up, n * 2 * ff);
        let w_gate_up = View::new(&p[block.gate_up.clone()], dim);
        matmul(&mut s.gate_up, 2 * ff, false, 1.0, View::new(&s.h2, dim), w_gate_up.t());
        fit(&mut s.act, n * ff);
        swiglu(&mut s.act, &s.gate_up, ff);
        ws.x.clone_from(&s.x2);
        let w_down = View::new(&p[block.down.clone()], ff);
        matmul(&mut ws.x, dim, true, 1.0, View::new(&s.act, ff), w_down.t());
    }

    /// Turns `ws.dx` from the gradient of the block's result into that of its input.
    fn block_back(&self, b: &Block, p: &[f32], g: &mut [f32], batch: &Batch, s: &mut Saved, ws: &mut Workspace) {
        let shape = &self.layout.shape;
        let (dim, ff, n, qkv_dim) = (shape.dim, shape.ff, batch.tokens.len(), shape.qkv_dim());
        let dx = View::new(&ws.dx, dim);
        fit(&mut ws.wide, n * ff);
        matmul(&mut g[b.down.clone()], ff, true, 1.0, dx.t(), View::new(&s.act, ff));
        matmul(&mut ws.wide, ff, false, 1.0, dx, View::new(&p[b.down.clone()], ff));
        swiglu_back(&mut s.gate_up, &ws.wide, ff);
        let dgate_up = View::new(&s.gate_up, 2 * ff);
        matmul(&mut g[b.gate_up.clone()], dim, true, 1.0, dgate_up.t(), View::new(&s.h2, dim));
        fit(&mut ws.narrow, n * dim);
        matmul(&mut ws.narrow, dim, false, 1.0, dgate_up, View::new(&p[b.gate_up.clone()], dim));
        let weight = &p[b.ffn_norm.clone()];
        rms_norm_back(&mut ws.dx, &mut g[b.ffn_norm.clone()], &ws.narrow, &s.x2, &s.inv2, weight);

        let dx = View::new(&ws.dx, dim);
        matmul(&mut g[b.attn_out.clone()], dim, true, 1.0, dx.t(), View::new(&s.attended, dim));
        matmul(&mut ws.narrow, dim, false, 1.0, dx, View::new(&p[b.attn_out.clone()], dim));
        fit(&mut ws.wide, n * qkv_dim);
        self.attend_back(s, batch, &ws.narrow, &mut ws.wide, &mut ws.scores);
        self.rotate(&mut ws.wide, batch, true);
        let dqkv = View::new(&ws.wide, qkv_dim);
        matmul(&mut g[b.qkv.clone()], dim, true, 1.0, dqkv.t(), View::new(&s.h1, dim));
        matmul(&mut ws.narrow, dim, false, 1.0, dqkv, View::new(&p[b.qkv.clone()], dim));
        let weight = &p[b.attn_norm.clone()];
        rms_norm_back(&mut ws.dx, &mut g[b.attn_norm.clone()], &ws.narrow, &s.x, &s.inv1, weight);
    }

    fn rotate(&self, qkv: &mut [f32], batch: &Batch, back: bool) {
        let shape = &self.layout.shape;
        let (width, rotated) = (shape.qkv_dim(), shape.dim + shape.kv_heads * shape.head_dim());
        for segment in &batch.segments {
            for (position, row) in segment.clone().enumerate() {
                self.rope.rotate(&mut qkv[row * width..row * width + rotated], position, back);
            }
        }
    }

    /// The places of one head's query, key and value inside a row of `qkv`.
    fn head(&self, head: usize) -> (usize, usize, usize) {
        let shape = &self.layout.shape;
        let (hd, kv) = (shape.head_dim(), head * shape.kv_heads / shape.heads);
        (head * hd, shape.dim + kv * hd, shape.dim + (shape.kv_heads + kv) * hd)
    }

    fn attend(&self, s: &mut Saved, batch: &Batch) {
        let shape = &self.layout.shape;
        let (hd, dim, width) = (shape.head_dim(), shape.dim, shape.qkv_dim());
        let scale = 1.0 / (hd as f32).sqrt();
        fit(&mut s.probs, batch.segments.iter().map(|g| g.len() * g.len() * shape.heads).sum());
        let mut at = 0;
        for segment in &batch.segments {
            let (len, rows) = (segment.len(), &s.qkv[segment.start * width..segment.end * width]);
            for head in 0..shape.heads {
                let (q, k, v) = self.head(head);
                let part = |place: usize| View::strided(&rows[place..], len, hd, width);
                let probs = &mut s.probs[at..at + len * len];
                at += len * len;
                matmul(probs, len, false, scale, part(q), part(k).t());
                causal_softmax(probs, len);
                let out = &mut s.attended[segment.start * dim + head * hd..segment.end * dim];
                matmul(out, dim, false, 1.0, View::new(probs, len), part(v));
            }
        }
    }

    fn attend_back(&self, s: &Saved, batch: &Batch, dout: &[f32], dqkv: &mut [f32], scores: &mut Vec<f32>) {
        let shape = &self.layout.shape;
        let (hd, dim, width) = (shape.head_dim(), shape.dim, shape.qkv_dim());
        let scale = 1.0 / (hd as f32).sqrt();
        dqkv.fill(0.0);
        let mut at = 0;
        for segment in &batch.segments {
            let (len, rows) = (segment.len(), &s.qkv[segment.start * width..segment.end * width]);
            let drows = &mut dqkv[segment.start * width..segment.end * width];
            fit(scores, len * len);
            for head in 0..shape.heads {
                let (q, k, v) = self.head(head);
                let part = |place: usize| View::strided(&rows[place..], len, hd, width);
                let probs = &s.probs[at..at + len * len];
                at += len * len;
                let dout = View::strided(&dout[segment.start * dim + head * hd..segment.end * dim], len, hd, dim);
                matmul(&mut drows[v..], width, true, 1.0, View::new(probs, len).t(), dout);
                matmul(scores, len, false, 1.0, dout, part(v).t());
                softmax_back(scores, probs, len);
                let dscores = View::new(scores, len);
                matmul(&mut drows[q..], width, true, scale, dscores, part(k));
                matmul(&mut drows[k..], width, true, scale, dscores.t(), part(q));
            }
        }
    }
}

/// Makes `buffer` exactly `len` long; what it holds is about to be overwritten.
fn fit(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
}

fn gather(x: &[f32], rows: &[usize], dim: usize) -> Vec<f32> {
    rows.iter().flat_map(|row| &x[row * dim..(row + 1) * dim]).copied().collect()
}

/// Turns logits into the gradient of `scale * loss` and sums the loss up.
fn cross_entropy(logits: &mut [f32], targets: &[u32], vocab: usize, scale: f32) -> Outcome {
    let mut outcome = Outcome::default();
    for (row, &target) in logits.chunks_exact_mut(vocab).zip(targets) {
        let target = target as usize;
        let wanted = row[target];
        outcome.hits += usize::from(row.iter().all(|&x| x <= wanted));
        softmax(row);
        outcome.loss -= f64::from(row[target].max(1e-30).ln());
        row[target] -= 1.0;
        row.iter_mut().for_each(|d| *d *= scale);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::train::layout::Shape;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let shape = Shape { vocab: 11, dim: 8, layers: 2, heads: 4, kv_heads: 2, ff: 12 };
        let model = Model::new(Layout::new(shape), 16);
        let mut rng = Rng::new(3);
        let mut params: Vec<f32> = (0..model.layout.len()).map(|_| 0.4 * rng.normal()).collect();
        let mut batch = Batch::default();
        batch.push(&[1, 2, 3, 4, 5, 1], &[false, true, true, false, true, true]);
        batch.push(&[7, 8, 7, 10], &[false, false, true, true]);
        let mut ws = Workspace::default();
        let mut grads = vec![0.0; params.len()];
        model.learn(&params, &mut grads, &batch, 1.0, &mut ws);
        let mut scratch = vec![0.0; params.len()];
        for tensor in &model.layout.tensors {
            for i in [tensor.start, tensor.range().end - 1, tensor.start + tensor.range().len() / 2] {
                let (before, step) = (params[i], 1e-2);
                let mut loss = |x: f32| {
                    params[i] = x;
                    model.learn(&params, &mut scratch, &batch, 1.0, &mut ws).loss
                };
                let slope = (loss(before + step) - loss(before - step)) / (2.0 * f64::from(step));
                params[i] = before;
                let error = (slope - f64::from(grads[i])).abs();
                assert!(error < 0.02 + 0.03 * slope.abs(), "{}[{i}]: {slope} and {}", tensor.name, grads[i]);
            }
        }
    }
}
