//! The backward pass of attention, with the weights computed again.

use rayon::prelude::*;

use super::Visible;
use crate::kernels::level::{Isa, multiversion};
use crate::kernels::normalize::softmax_in;
use crate::kernels::product::ColumnTiles;

/// What goes into attention: the tokens of one sequence, from its first on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attention<'a> {
    /// `[tokens, heads · group · head_dim]`, where `group` heads of queries share one of keys and values
    pub(crate) queries: &'a [f32],
    /// `[tokens, heads · head_dim]`
    pub(crate) keys: &'a [f32],
    /// As the keys.
    pub(crate) values: &'a [f32],
    pub(crate) heads: usize,
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
    pub(crate) visible: Visible,
}

/// Gradients with respect to queries, keys and values, in their shapes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AttentionGradients {
    pub(crate) queries: Vec<f32>,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl Attention<'_> {
    /// Gradients of what has the gradient `of_output` with respect to [`attend`](super::attend)'s output.
    ///
    /// With `P = softmax(scale · Q·Kᵀ)` and `dP = dO·Vᵀ`: `dV = Pᵀ·dO`, `dS = scale · P∘(dP − rowsum(P∘dP))`, `dQ = dS·K`,
    /// `dK = dSᵀ·Q`.
    ///
    /// # Shapes
    /// `of_output` is as the queries.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub(crate) fn gradients(&self, of_output: &[f32]) -> AttentionGradients {
        let Self { queries, keys, values, heads, group, head_dim, .. } = *self;
        let (width, shared) = (heads * group * head_dim, heads * head_dim);
        let tokens = queries.len().checked_div(width).unwrap_or(0);
        assert!(queries.len() == tokens * width && of_output.len() == queries.len(), "queries");
        assert!(keys.len() == tokens * shared && values.len() == keys.len(), "keys and values");
        let of_heads: Vec<AttentionGradients> =
            (0..heads * group).into_par_iter().map(|head| self.of_head(head, tokens, of_output)).collect();
        let mut all = AttentionGradients {
            queries: vec![0.0; queries.len()],
            keys: vec![0.0; keys.len()],
            values: vec![0.0; values.len()],
        };
        for (head, of_head) in of_heads.iter().enumerate() {
            add_columns(&mut all.queries, width, head * head_dim, &of_head.queries, head_dim);
            add_columns(&mut all.keys, shared, head / group * head_dim, &of_head.keys, head_dim);
            add_columns(&mut all.values, shared, head / group * head_dim, &of_head.values, head_dim);
        }
        all
    }

    /// Gradients with respect to one head's queries, and what it adds to those of its keys and values; all `[tokens, head_dim]`.
    fn of_head(&self, head: usize, tokens: usize, of_output: &[f32]) -> AttentionGradients {
        let (isa, dim) = (Isa::current(), self.head_dim);
        let (width, shared) = (self.heads * self.group * dim, self.heads * dim);
        let queries = columns(self.queries, width, head * dim, dim);
        let keys = columns(self.keys, shared, head / self.group * dim, dim);
        let values = columns(self.values, shared, head / self.group * dim, dim);
        let of_output = columns(of_output, width, head * dim, dim);

        // packed before there are weights: a thread that waits for its part may begin with another head
        let across = |matrix: &[f32]| ColumnTiles::transposed(matrix, dim, tokens);
        let along = |matrix: &[f32]| ColumnTiles::new(tokens, dim, |row| &matrix[row * dim..][..dim]);
        let (across_keys, across_values) = (across(&keys), across(&values));
        let (along_keys, along_queries, along_output) = (along(&keys), along(&queries), along(&of_output));

        let mut weights = vec![0.0; tokens * tokens];
        across_keys.product_into(isa, &queries, &mut weights);
        let mut slopes = vec![0.0; tokens * tokens];
        across_values.product_into(isa, &of_output, &mut slopes);
        let rows = weights.chunks_exact_mut(tokens.max(1)).zip(slopes.chunks_exact_mut(tokens.max(1)));
        for (query, (weights, slopes)) in rows.enumerate() {
            let sees = self.visible.of(query, tokens);
            for row in [&mut *weights, &mut *slopes] {
                row[..sees.start].fill(0.0);
                row[sees.end..].fill(0.0);
            }
            let (weights, slopes) = (&mut weights[sees.clone()], &mut slopes[sees]);
            for score in weights.iter_mut() {
                *score *= self.scale;
            }
            softmax_in(isa, weights);
            through_softmax(isa, weights, self.scale, slopes);
        }
        let mut gradients = AttentionGradients {
            queries: vec![0.0; queries.len()],
            keys: vec![0.0; keys.len()],
            values: vec![0.0; values.len()],
        };
        along_output.transposed_product_into(isa, &weights, tokens, &mut gradients.values);
        along_keys.product_into(isa, &slopes, &mut gradients.queries);
        along_queries.transposed_product_into(isa, &slopes, tokens, &mut gradients.keys);
        gradients
    }
}

multiversion! {
    /// From gradients with respect to the weights to those with respect to the scores before they were scaled.
    fn through_softmax(weights: &[f32], scale: f32, slopes: &mut [f32]) = through_softmax_body
}

#[inline(always)]
fn through_softmax_body(weights: &[f32], scale: f32, slopes: &mut [f32]) {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    for (weights, slopes) in weights.chunks(LANES).zip(slopes.chunks(LANES)) {
        for ((lane, weight), slope) in lanes.iter_mut().zip(weights).zip(slopes) {
            *lane += weight * slope;
        }
    }
    let mean: f32 = lanes.iter().sum();
    for (slope, weight) in slopes.iter_mut().zip(weights) {
        *slope = scale * weight * (*slope - mean);
    }
}

/// `count` columns of a matrix with `stride` ones, from `first` on.
fn columns(matrix: &[f32], stride: usize, first: usize, count: usize) -> Vec<f32> {
    matrix.chunks_exact(stride.max(1)).flat_map(|row| &row[first..first + count]).copied().collect()
}

/// Adds a matrix to some columns of another.
fn add_columns(to: &mut [f32], stride: usize, first: usize, from: &[f32], count: usize) {
    for (to, from) in to.chunks_exact_mut(stride.max(1)).zip(from.chunks_exact(count.max(1))) {
        to[first..first + count].iter_mut().zip(from).for_each(|(to, x)| *to += x);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{naive, random};
    use super::*;

    /// By differences of the definition in `f64`.
    #[test]
    fn gradients_are_slopes() {
        for (tokens, [heads, group, head_dim]) in [(1, [1, 1, 2]), (5, [1, 1, 3]), (37, [2, 3, 4])] {
            for visible in [Visible::Causal { first: 0 }, Visible::Window { first: 0, window: 3 }] {
                let width = heads * group * head_dim;
                let (queries, of_output) = (random(tokens * width, 1), random(tokens * width, 2));
                let (keys, values) =
                    (random(tokens * heads * head_dim, 3), random(tokens * heads * head_dim, 4));
                let scale = 0.7;
                let (queries, keys, values) = (&queries[..], &keys[..], &values[..]);
                let attention = Attention { queries, keys, values, heads, group, head_dim, scale, visible };
                let found = attention.gradients(&of_output);
                let loss = |parts: [&[f32]; 3]| -> f64 {
                    let [q, k, v] = parts;
                    let out = naive(q, k, v, [heads, group, head_dim], scale, visible);
                    out.iter().zip(&of_output).map(|(o, g)| o * f64::from(*g)).sum()
                };
                let parts = [queries, keys, values];
                for (which, of_part) in [&found.queries, &found.keys, &found.values].into_iter().enumerate() {
                    for at in (0..of_part.len()).step_by(1 + of_part.len() / 23) {
                        let moved = |by: f32| {
                            let mut part = parts[which].to_vec();
                            part[at] += by;
                            let mut all = parts;
                            all[which] = &part;
                            (loss(all), f64::from(part[at]))
                        };
                        let ((high, right), (low, left)) = (moved(2e-3), moved(-2e-3));
                        let slope = (high - low) / (right - left);
                        let difference = (f64::from(of_part[at]) - slope).abs();
                        assert!(difference < 1e-5, "{visible:?} {which} {at}: {} {slope}", of_part[at]);
                    }
                }
            }
        }
    }
}
