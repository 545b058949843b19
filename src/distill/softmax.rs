//! Softmax of one row at a temperature, in the form that stays exact for large logits.

use std::borrow::Cow;

use ndarray::ArrayView1;

use super::DistillError;
use super::rows::check_finite_row;

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
        let top = match left_out {
            None => max(&logits),
            Some(class) => max(&logits[..class]).max(max(&logits[class + 1..])),
        };
        let (top, inverse) = (f64::from(top), 1.0 / temperature);
        for ((shifted, prob), &logit) in self.shifted.iter_mut().zip(&mut self.probs).zip(&*logits) {
            *shifted = (f64::from(logit) - top) * inverse;
            *prob = exp(*shifted);
        }
        if let Some(class) = left_out {
            self.probs[class] = 0.0;
        }
        let sum = sum(&self.probs);
        self.log_sum = sum.ln();
        let normalize = 1.0 / sum;
        self.probs.iter_mut().for_each(|prob| *prob *= normalize);
        Ok(())
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

/// Partial results of a sum or maximum that the processor works on side by side.
const LANES: usize = 8;

/// The largest of some finite numbers; −∞ of none.
fn max(values: &[f32]) -> f32 {
    let (chunks, tail) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        lanes
            .iter_mut()
            .zip(chunk)
            .for_each(|(lane, &value)| *lane = if value > *lane { value } else { *lane });
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |largest, &value| largest.max(value))
}

/// The sum, always taken in the same order.
fn sum(values: &[f64]) -> f64 {
    let (chunks, tail) = values.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &value)| *lane += value);
    }
    lanes.iter().chain(tail).sum()
}

/// `eˣ` for x ≤ 0, to about 2·10⁻¹⁶ of itself; 0 where the result would be below the normal numbers. For x >
/// 0 the result means nothing.
///
/// Without branches or calls, so that a loop over it becomes vector code, which one over the standard
/// library's does not. x = n ln 2 + r with |r| ≤ (ln 2)/2, and eˣ = 2ⁿ times the Taylor polynomial of eʳ,
/// whose remainder after r¹³ is below 5·10⁻¹⁸.
fn exp(x: f64) -> f64 {
    /// Adding this rounds to an integer, and leaves that integer in the low bits.
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 · 2⁵²
    /// ln 2 in two parts: the first has so few digits that its product with n is exact.
    const LN_2: [f64; 2] = [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10];
    /// 1/k! from k = 13 down.
    const TAYLOR: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let rounded = x * std::f64::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let polynomial = TAYLOR.iter().fold(0.0, |sum, coefficient| sum * r + coefficient);
    let power = f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52);
    if x < -708.0 { 0.0 } else { polynomial * power }
}

/// `ln(1 + eˣ)` without overflow.
pub(super) fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// `ln(eᵃ + eᵇ)` without overflow.
pub(super) fn log_add_exp(a: f64, b: f64) -> f64 {
    a.max(b) + (-(a - b).abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::exp;

    #[test]
    fn exp_is_that_of_the_standard_library_to_rounding() {
        let mut worst = 0.0_f64;
        for step in 0..=7_080_000 {
            let x = -f64::from(step) * 1e-4;
            worst = worst.max((exp(x) / x.exp() - 1.0).abs());
        }
        assert!(worst < 4.5e-16, "{worst:e}"); // two units in the last place
        assert_eq!(exp(0.0), 1.0);
        for x in [-708.1, -1e4, -1e80, f64::MIN] {
            assert_eq!(exp(x), 0.0);
        }
    }
}
