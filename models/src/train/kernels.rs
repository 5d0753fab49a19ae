//! The arithmetic of one layer, forward and backward, on plain row-major slices of `f32`.

use gemm::Parallelism;

/// A read-only matrix inside a slice, with the step between rows and between columns in elements.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_step: usize,
    col_step: usize,
}

impl<'a> View<'a> {
    /// A dense row-major matrix with `cols` columns that fills `data`.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        Self::strided(data, data.len() / cols, cols, cols)
    }

    /// `rows` rows of `cols` elements, each row `row_step` after the one before.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_step: usize) -> Self {
        Self { data, rows, cols, row_step, col_step: 1 }
    }

    /// The same elements with rows and columns swapped.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_step: self.col_step, col_step: self.row_step, ..self }
    }

    fn last(&self) -> usize {
        (self.rows - 1) * self.row_step + (self.cols - 1) * self.col_step
    }
}

/// `dst = keep * dst + scale * a b`, where `dst` has rows `dst_step` apart; `keep` is 0 or 1. Runs on the calling thread.
///
/// # Panics
/// When the shapes do not fit together or reach outside a slice.
#[expect(unsafe_code, reason = "the matrix kernel takes raw pointers; every reach is checked first")]
pub fn matmul(dst: &mut [f32], dst_step: usize, keep: bool, scale: f32, a: View<'_>, b: View<'_>) {
    assert_eq!(a.cols, b.rows, "inner sizes differ");
    if a.rows == 0 || b.cols == 0 || a.cols == 0 {
        return;
    }
    assert!(a.last() < a.data.len() && b.last() < b.data.len(), "operand outside its slice");
    assert!((a.rows - 1) * dst_step + b.cols <= dst.len(), "result outside its slice");
    // SAFETY: the three asserts above bound every element the kernel reads or writes.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            dst.as_mut_ptr(),
            1,
            dst_step as isize,
            keep,
            a.data.as_ptr(),
            a.col_step as isize,
            a.row_step as isize,
            b.data.as_ptr(),
            b.col_step as isize,
            b.row_step as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// e^x to about 2e-7 relative, written so that the compiler vectorises loops over it (the library call does not).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 87.0);
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (0.166_666_66 + r * (0.041_665_8 + r * (0.008_333_65 + r * 0.001_398_2)))));
    p * f32::from_bits((((n as i32) + 127) << 23) as u32)
}

const EPS: f32 = 1e-5;

/// Root-mean-square norm of each row; `inv` keeps the factor of each row for the way back.
pub fn rms_norm(out: &mut [f32], inv: &mut [f32], x: &[f32], weight: &[f32]) {
    let dim = weight.len();
    for ((o, r), x) in out.chunks_exact_mut(dim).zip(inv).zip(x.chunks_exact(dim)) {
        *r = 1.0 / (dot(x, x) / dim as f32 + EPS).sqrt();
        for ((o, x), w) in o.iter_mut().zip(x).zip(weight) {
            *o = x * *r * w;
        }
    }
}

/// Adds the gradient of [`rms_norm`] to `dx` and `dweight`.
pub fn rms_norm_back(dx: &mut [f32], dweight: &mut [f32], dy: &[f32], x: &[f32], inv: &[f32], weight: &[f32]) {
    let dim = weight.len();
    let rows = dx.chunks_exact_mut(dim).zip(dy.chunks_exact(dim)).zip(x.chunks_exact(dim)).zip(inv);
    let mut scaled = vec![0.0; dim];
    for (((dx, dy), x), &r) in rows {
        for i in 0..dim {
            scaled[i] = dy[i] * weight[i];
            dweight[i] += dy[i] * x[i] * r;
        }
        let pull = dot(&scaled, x) * r * r / dim as f32;
        for i in 0..dim {
            dx[i] += r * (scaled[i] - x[i] * pull);
        }
    }
}

/// `silu(gate) * up` for rows of `[gate, up]`.
pub fn swiglu(out: &mut [f32], gate_up: &[f32], ff: usize) {
    for (o, gu) in out.chunks_exact_mut(ff).zip(gate_up.chunks_exact(2 * ff)) {
        let (gate, up) = gu.split_at(ff);
        for ((o, &g), &u) in o.iter_mut().zip(gate).zip(up) {
            *o = g / (1.0 + exp(-g)) * u;
        }
    }
}

/// Turns `gate_up` into its own gradient, given the gradient of [`swiglu`]'s result.
pub fn swiglu_back(gate_up: &mut [f32], dout: &[f32], ff: usize) {
    for (d, gu) in dout.chunks_exact(ff).zip(gate_up.chunks_exact_mut(2 * ff)) {
        let (gate, up) = gu.split_at_mut(ff);
        for ((&d, g), u) in d.iter().zip(gate).zip(up) {
            let sig = 1.0 / (1.0 + exp(-*g));
            let silu = *g * sig;
            let dg = d * *u * (sig + silu * (1.0 - sig));
            *u = d * silu;
            *g = dg;
        }
    }
}

/// The cosines and sines of the rotary embedding, `[positions, head_dim / 2]` each.
pub struct Rope {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rope {
    /// Tables for `positions` positions with the given base frequency.
    pub fn new(positions: usize, head_dim: usize, base: f32) -> Self {
        let half = head_dim / 2;
        let angle = |i: usize| (i / half) as f32 * base.powf(-((i % half) as f32) / half as f32);
        let table = |f: fn(f32) -> f32| (0..positions * half).map(|i| f(angle(i))).collect();
        Self { cos: table(f32::cos), sin: table(f32::sin), half }
    }

    /// Rotates neighbouring pairs (the Llama convention) of the first `width` elements of a row at `position`; `back` turns the other way.
    pub fn rotate(&self, row: &mut [f32], position: usize, back: bool) {
        let span = position * self.half..(position + 1) * self.half;
        let (cos, sin) = (&self.cos[span.clone()], &self.sin[span]);
        let sign = if back { -1.0 } else { 1.0 };
        for head in row.chunks_exact_mut(2 * self.half) {
            for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                let (a, b, s) = (pair[0], pair[1], s * sign);
                pair[0] = a * c - b * s;
                pair[1] = a * s + b * c;
            }
        }
    }
}

/// Causal softmax in place over the square matrix `scores` with `len` columns; entries right of the diagonal become 0.
pub fn causal_softmax(scores: &mut [f32], len: usize) {
    for (i, row) in scores.chunks_exact_mut(len).enumerate() {
        let (seen, future) = row.split_at_mut(i + 1);
        softmax(seen);
        future.fill(0.0);
    }
}

/// Softmax in place over one row.
pub fn softmax(row: &mut [f32]) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in row.iter_mut() {
        *x = exp(*x - top);
    }
    let scale = 1.0 / sum(row);
    for x in row.iter_mut() {
        *x *= scale;
    }
}

/// Turns `dprobs` into the gradient of the scores, given the probabilities.
pub fn softmax_back(dprobs: &mut [f32], probs: &[f32], len: usize) {
    for (d, p) in dprobs.chunks_exact_mut(len).zip(probs.chunks_exact(len)) {
        let mean = dot(d, p);
        for (d, p) in d.iter_mut().zip(p) {
            *d = p * (*d - mean);
        }
    }
}

/// Sum of products, in sixteen lanes so that it vectorises.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (ac, bc) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = ac.remainder().iter().zip(bc.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in ac.zip(bc) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i];
        }
    }
    rest + lanes.iter().sum::<f32>()
}

fn sum(a: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let chunks = a.chunks_exact(16);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += chunk[i];
        }
    }
    rest + lanes.iter().sum::<f32>()
}

/// `a += b`.
pub fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}
