//! Softmax of one row at a temperature, in the form that stays exact for large logits.

use std::borrow::Cow;

use ndarray::ArrayView1;

use super::DistillError;
use super::rows::check_finite_row;
use crate::kernels::softmax;

/// Log-probabilities and probabilities of one row of logits `x` at temperature T:
/// `log p_i = shifted_i − log_sum` with `shifted_i = (x_i − max x) / T` and `log_sum = ln Σ exp(shifted)`.
///
/// The largest shifted logit is 0, so nothing overflows, and a class whose probability underflows to 0 keeps
/// a finite log-probability: products of the two are never 0 · ∞. The buffers are reused from row to row.
pub(crate) struct Softmax {
    pub(crate) shifted: Vec<f64>,
    pub(crate) probs: Vec<f64>,
    pub(crate) log_sum: f64,
}

impl Softmax {
    /// Room for rows of `classes` logits.
    pub(crate) fn new(classes: usize) -> Self {
        Self { shifted: vec![0.0; classes], probs: vec![0.0; classes], log_sum: 0.0 }
    }

    /// Fills the buffers from one row of logits; `input` and `row` name it in errors.
    pub(crate) fn fill(
        &mut self,
        (input, row): (&'static str, usize),
        logits: ArrayView1<f32>,
        temperature: f64,
    ) -> Result<(), DistillError> {
        self.fill_without((input, row), logits, temperature, None)
    }

    /// As `fill`, but the probabilities are those among all classes other than `left_out`. That class has
    /// probability 0, and `log_prob` of it is its log-odds against all the others together.
    pub(crate) fn fill_without(
        &mut self,
        (input, row): (&'static str, usize),
        logits: ArrayView1<f32>,
        temperature: f64,
        left_out: Option<usize>,
    ) -> Result<(), DistillError> {
        check_finite_row(input, row, logits)?;
        let logits = logits.to_slice().map_or_else(|| Cow::Owned(logits.to_vec()), Cow::Borrowed);
        let inverse = 1.0 / temperature;
        self.log_sum = softmax::softmax(&logits, inverse, left_out, &mut self.shifted, &mut self.probs);
        Ok(())
    }

    /// As the kernels take it.
    pub(super) fn row(&self) -> softmax::Row<'_> {
        (&self.shifted, &self.probs, self.log_sum)
    }

    /// The log-probability of one class.
    pub(crate) fn log_prob(&self, class: usize) -> f64 {
        self.shifted[class] - self.log_sum
    }

    /// `(p_i, log p_i)` of every class.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (f64, f64)> {
        self.probs.iter().zip(&self.shifted).map(|(&prob, &shifted)| (prob, shifted - self.log_sum))
    }
}

/// `ln(1 + eˣ)` without overflow.
pub(super) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `ln(eᵃ + eᵇ)` without overflow.
pub(super) fn log_add_exp(a: f64, b: f64) -> f64 {
    a.max(b) + (-(a - b).abs()).exp().ln_1p()
}
