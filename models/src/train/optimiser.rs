//! The optimiser: Muon for the matrices inside the blocks, AdamW for the embedding and the norms.

use super::kernels::{View, matmul};
use super::layout::{Layout, Tensor};

const MOMENTUM: f32 = 0.95;
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.98;
const WEIGHT_DECAY: f32 = 0.05;

/// Optimiser state, in the places of [`Layout`].
pub struct Optimiser {
    first: Vec<f32>,
    second: Vec<f32>,
    step: i32,
}

impl Optimiser {
    /// Empty state for `layout`.
    pub fn new(layout: &Layout) -> Self {
        Self { first: vec![0.0; layout.len()], second: vec![0.0; layout.len()], step: 0 }
    }

    /// One step against `grads` with learning rate `rate`; `workers` threads share the matrices. The result does not depend on `workers`.
    pub fn step(&mut self, layout: &Layout, params: &mut [f32], grads: &[f32], rate: f32, workers: usize) {
        self.step += 1;
        let step = self.step;
        let mut jobs: Vec<Vec<Job<'_>>> = (0..workers.max(1)).map(|_| Vec::new()).collect();
        let mut rest = (params, grads, self.first.as_mut_slice(), self.second.as_mut_slice());
        for (i, tensor) in layout.tensors.iter().enumerate() {
            let n = tensor.range().len();
            let (params, tail0) = rest.0.split_at_mut(n);
            let (grads, tail1) = rest.1.split_at(n);
            let (first, tail2) = rest.2.split_at_mut(n);
            let (second, tail3) = rest.3.split_at_mut(n);
            rest = (tail0, tail1, tail2, tail3);
            let slot = i % jobs.len();
            jobs[slot].push(Job { tensor, params, grads, first, second });
        }
        std::thread::scope(|scope| {
            for jobs in &mut jobs {
                scope.spawn(move || jobs.iter_mut().for_each(|job| job.run(rate, step)));
            }
        });
    }
}

struct Job<'a> {
    tensor: &'a Tensor,
    params: &'a mut [f32],
    grads: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Job<'_> {
    fn run(&mut self, rate: f32, step: i32) {
        if self.tensor.rows == 1 || self.tensor.name.starts_with("token_embd") {
            self.adam(rate, step);
        } else {
            self.muon(rate);
        }
    }

    fn adam(&mut self, rate: f32, step: i32) {
        let (fix1, fix2) = (1.0 - BETA1.powi(step), 1.0 - BETA2.powi(step));
        for (((p, &g), m), v) in self.params.iter_mut().zip(self.grads).zip(&mut *self.first).zip(&mut *self.second) {
            *m = BETA1 * *m + (1.0 - BETA1) * g;
            *v = BETA2 * *v + (1.0 - BETA2) * g * g;
            *p -= rate * (*m / fix1) / ((*v / fix2).sqrt() + 1e-8);
        }
    }

    /// The momentum's direction with all singular values made about 1, sized like an Adam step so that both share one rate.
    fn muon(&mut self, rate: f32) {
        let mut direction = Vec::with_capacity(self.grads.len());
        for (m, &g) in self.first.iter_mut().zip(self.grads) {
            *m = MOMENTUM * *m + g;
            direction.push(g + MOMENTUM * *m);
        }
        let (rows, cols) = (self.tensor.rows, self.tensor.cols);
        orthogonalise(&mut direction, rows, cols);
        let size = 0.2 * (rows.max(cols) as f32).sqrt();
        for (p, d) in self.params.iter_mut().zip(direction) {
            *p -= rate * (size * d + WEIGHT_DECAY * *p);
        }
    }
}

/// Five Newton-Schulz steps towards the nearest matrix with orthogonal rows or columns.
fn orthogonalise(x: &mut [f32], rows: usize, cols: usize) {
    let norm = x.iter().map(|v| v * v).sum::<f32>().sqrt() + 1e-7;
    x.iter_mut().for_each(|v| *v /= norm);
    // The small Gram matrix is on the shorter side.
    let wide = rows <= cols;
    let n = rows.min(cols);
    let (mut gram, mut poly) = (vec![0.0; n * n], vec![0.0; n * n]);
    let (a, b, c) = (3.4445, -4.775, 2.0315);
    for _ in 0..5 {
        let view = View::new(x, cols);
        if wide {
            matmul(&mut gram, n, false, 1.0, view, view.t());
        } else {
            matmul(&mut gram, n, false, 1.0, view.t(), view);
        }
        poly.copy_from_slice(&gram);
        poly.iter_mut().for_each(|v| *v *= b);
        matmul(&mut poly, n, true, c, View::new(&gram, n), View::new(&gram, n));
        for i in 0..n {
            poly[i * n + i] += a;
        }
        let before = x.to_vec();
        let (view, poly) = (View::new(&before, cols), View::new(&poly, n));
        if wide {
            matmul(x, cols, false, 1.0, poly, view);
        } else {
            matmul(x, cols, false, 1.0, view, poly);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn orthogonalised_rows_have_length_near_one_and_do_not_overlap() {
        let mut rng = Rng::new(5);
        for (rows, cols) in [(6, 20), (20, 6)] {
            let mut x: Vec<f32> = (0..rows * cols).map(|_| rng.normal()).collect();
            orthogonalise(&mut x, rows, cols);
            let at = |i: usize, j: usize, k: usize| {
                if rows < cols { x[i * cols + k] * x[j * cols + k] } else { x[k * cols + i] * x[k * cols + j] }
            };
            for i in 0..6 {
                for j in 0..6 {
                    let product: f32 = (0..20).map(|k| at(i, j, k)).sum();
                    let near = if i == j { 0.55..1.5 } else { -0.35..0.35 };
                    assert!(near.contains(&product), "{rows}x{cols} {i},{j}: {product}");
                }
            }
        }
    }
}
