//! Sums over the rows of a matrix of activations that calibration keeps: `XᵀX`, and what is weighted by it.

use rayon::prelude::*;

/// Adds `XᵀX` to a symmetric matrix, of which the whole square is kept.
///
/// The result depends on neither the number of threads nor the instruction level.
///
/// # Shapes
/// `x` is `[tokens, size]`, `gram` is `[size, size]`.
///
/// # Panics
/// When a slice is of another length.
pub fn add_gram(x: &[f32], size: usize, gram: &mut [f64]) {
    assert!(
        gram.len() == size * size && x.len().is_multiple_of(size.max(1)),
        "activations and their products"
    );
    gram.par_chunks_mut(size.max(1)).enumerate().for_each(|(i, row)| {
        for x in x.chunks_exact(size) {
            let factor = f64::from(x[i]);
            for (sum, x) in row.iter_mut().zip(x) {
                *sum += factor * f64::from(*x);
            }
        }
    });
}

/// `Σ_r δ_r · H · δ_rᵀ` over the rows of a difference: the squared error that it makes in a layer's output.
///
/// # Shapes
/// `difference` is `[rows, size]`, `hessian` is `[size, size]` and symmetric.
///
/// # Panics
/// When a slice is of another length.
pub fn quadratic_form(difference: &[f32], size: usize, hessian: &[f32]) -> f64 {
    assert!(
        hessian.len() == size * size && difference.len().is_multiple_of(size.max(1)),
        "a matrix and its weights"
    );
    let of_rows: Vec<f64> = difference
        .par_chunks_exact(size.max(1))
        .map(|row| {
            let products = row.iter().zip(hessian.chunks_exact(size)).map(|(d, weights)| {
                let inner: f64 = weights.iter().zip(row).map(|(h, d)| f64::from(*h) * f64::from(*d)).sum();
                f64::from(*d) * inner
            });
            products.sum()
        })
        .collect();
    of_rows.into_iter().sum()
}
