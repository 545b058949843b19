//! Softmax of a row of logits in `f64`, and what the losses of it are made of.

mod portable;

use super::level::{Isa, multiversion};

/// Probabilities of one row, as [`softmax`] gives them: shifted logits, probabilities, and the logarithm of the sum.
pub(crate) type Row<'a> = (&'a [f64], &'a [f64], f64);

multiversion! {
    fn softmax_in(
        logits: &[f32], inverse: f64, left_out: Option<usize>, shifted: &mut [f64], probs: &mut [f64],
    ) -> f64 = portable::softmax
}

/// Softmax of `logits · inverse`, without the class `left_out`: fills `shifted` with `(x − max x) · inverse` and `probs` with the
/// probabilities, and returns the logarithm of the sum of `e^shifted`.
pub(crate) fn softmax(
    logits: &[f32],
    inverse: f64,
    left_out: Option<usize>,
    shifted: &mut [f64],
    probs: &mut [f64],
) -> f64 {
    softmax_in(Isa::current(), logits, inverse, left_out, shifted, probs)
}

multiversion! {
    fn is_finite_in(values: &[f32]) -> bool = portable::is_finite
}

/// Whether all values are finite.
pub(crate) fn is_finite(values: &[f32]) -> bool {
    is_finite_in(Isa::current(), values)
}

multiversion! {
    fn forward_kl_in(q: Row<'_>, p: Row<'_>, factor: f64, grad: &mut [f64]) -> f64 = portable::forward_kl
}

/// `Σ p ln(p/q)`; overwrites `grad` with `factor · (q − p)`.
pub(crate) fn forward_kl(q: Row<'_>, p: Row<'_>, factor: f64, grad: &mut [f64]) -> f64 {
    forward_kl_in(Isa::current(), q, p, factor, grad)
}

multiversion! {
    fn add_scaled_in(factor: f64, values: &[f64], sums: &mut [f64]) = portable::add_scaled
}

/// `sums ← sums + factor · values`.
pub(crate) fn add_scaled(factor: f64, values: &[f64], sums: &mut [f64]) {
    add_scaled_in(Isa::current(), factor, values, sums);
}

multiversion! {
    fn narrow_in(values: &[f64], out: &mut [f32]) = portable::narrow
}

/// Rounds to `f32`, saturating at its largest finite numbers.
pub(crate) fn narrow(values: &[f64], out: &mut [f32]) {
    narrow_in(Isa::current(), values, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_that_of_the_standard_library_to_rounding() {
        let mut worst = 0.0_f64;
        for step in 0..=7_080_000 {
            let x = -f64::from(step) * 1e-4;
            worst = worst.max((portable::exp(x) / x.exp() - 1.0).abs());
        }
        assert!(worst < 4.5e-16, "{worst:e}"); // two units in the last place
        assert_eq!(portable::exp(0.0), 1.0);
        for x in [-708.1, -1e4, -1e80, f64::MIN] {
            assert_eq!(portable::exp(x), 0.0);
        }
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        for len in [1, 7, 8, 9, 64, 1003] {
            let logits = |seed: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * 7919 + seed) % 1013) as f32 / 37.0 - 12.0).collect()
            };
            let run = |isa| {
                let row = |seed: usize| {
                    let (mut shifted, mut probs) = (vec![0.0; len], vec![0.0; len]);
                    let left_out = (seed == 3 && len > 1).then_some(len / 2);
                    let log_sum = softmax_in(isa, &logits(seed), 0.25, left_out, &mut shifted, &mut probs);
                    (shifted, probs, log_sum)
                };
                let (q, p) = (row(3), row(517));
                let mut grad = vec![0.0; len];
                let value = forward_kl_in(isa, (&q.0, &q.1, q.2), (&p.0, &p.1, p.2), 0.5, &mut grad);
                add_scaled_in(isa, -0.3, &p.1, &mut grad);
                let mut narrow = vec![0.0; len];
                narrow_in(isa, &grad, &mut narrow);
                assert!(is_finite_in(isa, &narrow));
                (q, p, value.to_bits(), grad, narrow)
            };
            for isa in Isa::all() {
                assert_eq!(run(isa), run(Isa::Portable), "{isa:?}, {len}");
            }
        }
    }
}
