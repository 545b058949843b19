use rayon::prelude::*;

use super::portable;
use crate::kernels::PARALLEL_MIN;
use crate::kernels::level::{Isa, multiversion};

/// Rows whose products are summed apart from those of others.
const ROWS: usize = 64;

multiversion! {
    fn update_rows(
        rows: &mut [f64], stride: usize, of_rows: [&[f64]; 3], v: &[f64], w: &[f64], sums: &mut [f64],
    ) = portable::update_rows
}

/// A symmetric matrix `Q·T·Qᵀ`, where `T` is tridiagonal and `Q` a product of reflections `I − 2·v·vᵀ`, the first first.
pub(super) struct Tridiagonal {
    pub(super) diagonal: Vec<f64>,
    /// Beside the diagonal.
    pub(super) off: Vec<f64>,
    /// `[size, size]`: row `k` holds `v` behind its diagonal element, in columns `k + 1` and on.
    pub(super) reflectors: Vec<f64>,
}

/// Householder's reduction. A reflection is subtracted from the rows when the next one is multiplied with them, in one pass.
pub(super) fn reduce(isa: Isa, mut matrix: Vec<f64>, size: usize) -> Tridiagonal {
    assert_eq!(matrix.len(), size * size, "a square matrix");
    let (mut diagonal, mut off) = (vec![0.0; size], vec![0.0; size.saturating_sub(1)]);
    let (mut v, mut w) = (vec![0.0; size], vec![0.0; size]);
    // what is smaller is nothing beside the rounding errors, and its square might underflow
    let least = 1e-20 * matrix.iter().fold(0f64, |norm, x| norm.max(x.abs()));
    for k in 0..size {
        let (rows, rest) = matrix.split_at_mut((k + 1) * size);
        let row = &mut rows[k * size + k..];
        update_rows(
            isa,
            row,
            size - k,
            [&v[k..=k], &w[k..=k], &[0.0]],
            &v[k..],
            &w[k..],
            &mut vec![0.0; size - k],
        );
        let [element, row @ ..] = row else { break };
        diagonal[k] = *element;
        let Some(first) = row.first().copied() else { break };
        let tail: f64 = row[1..].iter().map(|x| x * x).sum();
        if tail > least * least {
            // the first element becomes that of opposite sign, so that nothing is cancelled
            let length = (first * first + tail).sqrt();
            off[k] = -length.copysign(first);
            row[0] -= off[k];
            let scale = 1.0 / (row[0] * row[0] + tail).sqrt();
            for x in &mut *row {
                *x *= scale;
            }
        } else {
            off[k] = first;
            row.fill(0.0);
        }
        // what is left of the matrix times twice the reflector
        let left = row.len();
        let next: &[f64] = row;
        let strip = |(number, rows): (usize, &mut [f64])| {
            let all = k + 1 + number * ROWS..(k + 1 + number * ROWS + ROWS).min(size);
            let mut sums = vec![0.0; left];
            let of_rows = [&v[all.clone()], &w[all.clone()], &next[all.start - k - 1..all.end - k - 1]];
            update_rows(isa, rows, size, of_rows, &v[k + 1..], &w[k + 1..], &mut sums);
            sums
        };
        let strips: Vec<Vec<f64>> = if left * left > PARALLEL_MIN {
            rest.par_chunks_mut(ROWS * size).enumerate().map(strip).collect()
        } else {
            rest.chunks_mut(ROWS * size).enumerate().map(strip).collect()
        };
        let mut product = vec![0.0; left];
        for sums in strips {
            product.iter_mut().zip(sums).for_each(|(to, sum)| *to += 2.0 * sum);
        }
        let inner: f64 = product.iter().zip(next).map(|(p, v)| p * v).sum();
        v[k + 1..].copy_from_slice(next);
        for ((w, p), v) in w[k + 1..].iter_mut().zip(product).zip(next) {
            *w = p - inner * v;
        }
    }
    Tridiagonal { diagonal, off, reflectors: matrix }
}
