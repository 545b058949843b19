//! Rows brought to one scale: layer normalization, root-mean-square normalization, softmax.

mod portable;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::{CHUNK, PARALLEL_MIN};

multiversion! {
    fn rms_in(x: &mut [f32], weight: &[f32], epsilon: f32) = portable::rms
}
multiversion! {
    fn rms_gradient_in(gradient: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) = portable::rms_gradient
}
multiversion! {
    fn layer_in(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) = portable::layer
}
multiversion! {
    /// Of one row.
    pub(crate) fn softmax_in(x: &mut [f32]) = portable::softmax
}

/// `x ← x / √(mean(x²) + ε) · w` for every row (Zhang and Sennrich, 2019).
///
/// # Shapes
/// `values` is `[rows, weight.len()]`.
///
/// # Panics
/// When it is not a whole number of rows.
pub fn rms_norm(values: &mut [f32], weight: &[f32], epsilon: f32) {
    let isa = Isa::current();
    rows(values, weight.len(), |row| rms_in(isa, row, weight, epsilon));
}

/// The backward pass of [`rms_norm`]: `gradient`, with respect to its result, becomes that with respect to `values`, which went in.
///
/// # Shapes
/// Both are `[rows, weight.len()]`.
///
/// # Panics
/// When they are not.
pub(crate) fn rms_norm_gradient(gradient: &mut [f32], values: &[f32], weight: &[f32], epsilon: f32) {
    let (isa, cols) = (Isa::current(), weight.len());
    assert!(
        gradient.len() == values.len() && values.len().is_multiple_of(cols.max(1)),
        "values of whole rows"
    );
    if cols == 0 {
        return;
    }
    let rows = gradient.par_chunks_exact_mut(cols).zip(values.par_chunks_exact(cols));
    rows.with_min_len((CHUNK / cols).max(1))
        .for_each(|(gradient, x)| rms_gradient_in(isa, gradient, x, weight, epsilon));
}

/// `x ← (x − mean(x)) / √(var(x) + ε) · w + b` for every row (Ba, Kiros and Hinton, 2016).
///
/// # Shapes
/// `values` is `[rows, weight.len()]`; the bias has as many values as the weight.
///
/// # Panics
/// When they are not.
pub fn layer_norm(values: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    assert_eq!(weight.len(), bias.len(), "biases");
    let isa = Isa::current();
    rows(values, weight.len(), |row| layer_in(isa, row, weight, bias, epsilon));
}

/// `x ← e^x / Σ e^x` for every row. A row with NaN becomes NaN.
///
/// # Shapes
/// `values` is `[rows, cols]`.
///
/// # Panics
/// When it is not a whole number of rows.
pub fn softmax(values: &mut [f32], cols: usize) {
    let isa = Isa::current();
    rows(values, cols, |row| softmax_in(isa, row));
}

fn rows(values: &mut [f32], cols: usize, each: impl Fn(&mut [f32]) + Send + Sync) {
    assert!(values.len().is_multiple_of(cols.max(1)), "values of whole rows");
    if cols == 0 {
        return;
    }
    if values.len() < PARALLEL_MIN {
        values.chunks_exact_mut(cols).for_each(each);
    } else {
        values.par_chunks_exact_mut(cols).with_min_len((CHUNK / cols).max(1)).for_each(each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: &[f32], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((f64::from(*a) - e).abs() < 1e-6 * (1.0 + e.abs()), "{actual:?} {expected:?}");
        }
    }

    #[test]
    fn equal_their_definitions_in_f64() {
        for cols in [1, 2, 15, 16, 17, 100, 3000] {
            let x: Vec<f32> = (0..2 * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) / 20.0).collect();
            let w: Vec<f32> = (0..cols).map(|i| 0.5 + (i % 7) as f32 / 4.0).collect();
            let b: Vec<f32> = (0..cols).map(|i| (i % 5) as f32 / 2.0 - 1.0).collect();
            let (mut rms, mut layer, mut soft) = (x.clone(), x.clone(), x.clone());
            rms_norm(&mut rms, &w, 1e-3);
            layer_norm(&mut layer, &w, &b, 1e-3);
            softmax(&mut soft, cols);
            for row in 0..2 {
                let span = row * cols..(row + 1) * cols;
                let x: Vec<f64> = x[span.clone()].iter().map(|x| f64::from(*x)).collect();
                let mean = |of: &dyn Fn(f64) -> f64| x.iter().map(|x| of(*x)).sum::<f64>() / cols as f64;
                let by = |of: &dyn Fn(usize) -> f64| (0..cols).map(of).collect::<Vec<_>>();
                let scale = (mean(&|x| x * x) + 1e-3).sqrt();
                close(&rms[span.clone()], &by(&|i| x[i] / scale * f64::from(w[i])));
                let m = mean(&|x| x);
                let scale = (mean(&|x| (x - m).powi(2)) + 1e-3).sqrt();
                close(&layer[span.clone()], &by(&|i| (x[i] - m) / scale * f64::from(w[i]) + f64::from(b[i])));
                let sum = mean(&f64::exp) * cols as f64;
                close(&soft[span], &by(&|i| x[i].exp() / sum));
            }
        }
    }

    /// By differences of the definition in `f64`.
    #[test]
    fn the_gradient_of_rms_norm_is_its_slope() {
        for cols in [1, 3, 16, 37] {
            let at = |i: usize, k: usize| ((i * k % 11) as f32 - 5.0) / 3.0 + 0.1;
            let x: Vec<f32> = (0..cols).map(|i| at(i, 7)).collect();
            let w: Vec<f32> = (0..cols).map(|i| at(i, 3)).collect();
            let of_norm: Vec<f32> = (0..cols).map(|i| at(i, 5)).collect();
            let loss = |x: &[f64]| -> f64 {
                let mean = x.iter().map(|x| x * x).sum::<f64>() / cols as f64;
                let scale = 1.0 / (mean + 1e-3).sqrt();
                (0..cols).map(|i| x[i] * scale * f64::from(w[i]) * f64::from(of_norm[i])).sum()
            };
            let mut gradient = of_norm.clone();
            rms_norm_gradient(&mut gradient, &x, &w, 1e-3);
            let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let slope = |i: usize| {
                let moved = |by: f64| {
                    let mut x = wide.clone();
                    x[i] += by;
                    loss(&x)
                };
                (moved(1e-5) - moved(-1e-5)) / 2e-5
            };
            close(&gradient, &(0..cols).map(slope).collect::<Vec<_>>());
        }
    }

    #[test]
    fn softmax_of_large_and_broken_values() {
        let mut x = [1000.0, 1000.0, -1000.0];
        softmax(&mut x, 3);
        assert_eq!((x[0], x[1]), (0.5, 0.5));
        assert!(x[2] < 1e-37);
        let mut x = [1.0, f32::NAN, 2.0];
        softmax(&mut x, 3);
        assert!(x.iter().all(|x| x.is_nan()), "{x:?}");
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let x: Vec<f32> = (0..77).map(|i| ((i * 29 % 71) as f32 - 30.0) / 7.0).collect();
        for isa in Isa::all() {
            let (mut a, mut b) = (x.clone(), x.clone());
            rms_in(Isa::Portable, &mut a, &x, 1e-5);
            rms_in(isa, &mut b, &x, 1e-5);
            layer_in(Isa::Portable, &mut a, &x, &x, 1e-5);
            layer_in(isa, &mut b, &x, &x, 1e-5);
            rms_gradient_in(Isa::Portable, &mut a, &x, &x, 1e-5);
            rms_gradient_in(isa, &mut b, &x, &x, 1e-5);
            softmax_in(Isa::Portable, &mut a);
            softmax_in(isa, &mut b);
            assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}
