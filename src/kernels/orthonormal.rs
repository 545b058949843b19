//! Vectors made orthonormal by Cholesky factors of their products.

use rayon::prelude::*;

use super::gram::gram_of_rows;
use super::level::{Isa, multiversion};

/// Columns that are worked on together.
const LANES: usize = 32;

/// The square of what a vector of length 1 may have left beside the vectors before it, if it is to count as another direction:
/// well above the rounding errors of `f32`.
const LEAST: f64 = 1e-12;

/// Replaces vectors by orthonormal ones that span the same, each by what the ones before it have not, and those that add nothing
/// by zeros.
///
/// Fukaya et al., "`CholeskyQR2`" (2014): twice, with products in `f64`.
///
/// # Shapes
/// `vectors` is `[count, len]`, and finite.
pub(crate) fn orthonormalize(vectors: &mut [f32], count: usize) {
    let len = vectors.len().checked_div(count).unwrap_or(0);
    if len == 0 {
        return;
    }
    for _ in 0..2 {
        let mut factor = gram_of_rows(vectors, count);
        let lengths: Vec<f64> = (0..count).map(|i| factor[i * (count + 1)].sqrt()).collect();
        // of vectors of length 1
        for (row, of_row) in factor.chunks_exact_mut(count).zip(&lengths) {
            row.iter_mut().zip(&lengths).for_each(|(x, length)| {
                let both = of_row * length;
                *x = if both > 0.0 { *x / both } else { 0.0 };
            });
        }
        cholesky(&mut factor, count);
        for (row, length) in factor.chunks_exact_mut(count).zip(&lengths) {
            for x in row {
                *x *= length;
            }
        }
        let strips: Vec<usize> = (0..len).step_by(LANES).collect();
        let of_strip = |first: &usize| {
            let width = LANES.min(len - first);
            let mut x = vec![0f64; count * LANES];
            for (x, vector) in x.chunks_exact_mut(LANES).zip(vectors.chunks_exact(len)) {
                x.iter_mut().zip(&vector[*first..first + width]).for_each(|(to, x)| *to = f64::from(*x));
            }
            solve(Isa::current(), &factor, &mut x);
            x
        };
        let strips: Vec<Vec<f64>> = strips.par_iter().map(of_strip).collect();
        vectors.par_chunks_exact_mut(len).enumerate().for_each(|(number, vector)| {
            for (to, strip) in vector.chunks_mut(LANES).zip(&strips) {
                let from = &strip[number * LANES..][..LANES];
                to.iter_mut().zip(from).for_each(|(to, x)| *to = *x as f32);
            }
        });
    }
}

/// Overwrites the lower half of a matrix with its Cholesky factor, the rows and columns left out that are nothing beside those
/// before: their diagonal element is 0.
fn cholesky(matrix: &mut [f64], size: usize) {
    for i in 0..size {
        let (before, row) = matrix.split_at_mut(i * size);
        for j in 0..i {
            let other = &before[j * size..][..=j];
            let inner: f64 = row[..j].iter().zip(other).map(|(a, b)| a * b).sum();
            row[j] = if other[j] > 0.0 { (row[j] - inner) / other[j] } else { 0.0 };
        }
        let left = row[i] - row[..i].iter().map(|x| x * x).sum::<f64>();
        row[i] = if left > LEAST { left.sqrt() } else { 0.0 };
    }
}

multiversion! {
    fn solve(factor: &[f64], x: &mut [f64]) = solve_any
}

/// `L⁻¹·X` of 32 columns, `[size][32]`.
#[inline(always)]
fn solve_any(factor: &[f64], x: &mut [f64]) {
    let rows = x.as_chunks_mut::<LANES>().0;
    for (i, row) in factor.chunks_exact(rows.len()).enumerate() {
        let (before, x) = rows.split_at_mut(i);
        let mut sums = x[0];
        for (l, other) in row.iter().zip(&*before) {
            sums.iter_mut().zip(other).for_each(|(sum, x)| *sum -= l * x);
        }
        let pivot = row[i];
        x[0] = if pivot > 0.0 { sums.map(|x| x / pivot) } else { [0.0; LANES] };
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn vectors_are_orthonormal_and_span_what_they_did() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        for (count, len) in [(1, 1), (3, 3), (7, 40), (40, 100)] {
            let mut vectors: Vec<f32> = (0..count * len).map(|_| random.random_range(-1.0..1.0)).collect();
            // nearly the same as the one before, and a thousandth of it
            if count > 2 {
                let (before, after) = vectors.split_at_mut(2 * len);
                after[..len].iter_mut().zip(&before[len..]).for_each(|(x, y)| *x = 1e-3 * (1e-3 * *x + y));
            }
            let first = vectors[..len].to_vec();
            orthonormalize(&mut vectors, count);
            for (at, product) in gram_of_rows(&vectors, count).into_iter().enumerate() {
                let expected = if at % (count + 1) == 0 { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 1e-6, "{count} × {len}: {product} at {at}");
            }
            let length = first.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            for (x, y) in first.iter().zip(&vectors) {
                assert!((f64::from(*x) / length - f64::from(*y)).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn what_adds_nothing_is_zero() {
        let mut vectors = [3.0, 4.0, 0.0, 0.0, -6.0, -8.0, 1.0, 0.0];
        orthonormalize(&mut vectors, 4);
        assert!((vectors[0] - 0.6).abs() < 1e-6 && (vectors[1] - 0.8).abs() < 1e-6, "{vectors:?}");
        assert_eq!(vectors[2..6], [0.0; 4]);
        assert!((vectors[6] - 0.8).abs() < 1e-6 && (vectors[7] + 0.6).abs() < 1e-6, "{vectors:?}");
    }
}
