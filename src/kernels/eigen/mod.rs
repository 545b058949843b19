//! Eigenvalues and eigenvectors of a symmetric matrix, in `f64`.
//!
//! Golub & Van Loan, "Matrix Computations", 8.3: Householder reflections make the matrix tridiagonal, and implicit QR steps with
//! Wilkinson's shift make that diagonal. Sums run over rows in one order and everything else is done element by element, so that all
//! instruction levels and numbers of threads give the same bits.

mod portable;
mod tridiagonal;

use rayon::prelude::*;

use self::portable::Rotation;
use self::tridiagonal::Tridiagonal;
use super::level::{Isa, multiversion};

/// Rows of the matrix of eigenvectors that are worked on together.
const LANES: usize = 32;

multiversion! {
    fn reflect(v: &[f64], x: &mut [f64]) = portable::reflect
}

multiversion! {
    fn rotate(rotations: &[Rotation], x: &mut [f64]) = portable::rotate
}

/// The eigenvalues of a symmetric matrix, largest first.
///
/// # Shapes
/// `matrix` is `[size, size]`, and finite.
pub(crate) fn eigenvalues(matrix: Vec<f64>, size: usize) -> Vec<f64> {
    let Tridiagonal { mut diagonal, mut off, .. } = tridiagonal::reduce(Isa::current(), matrix, size);
    portable::diagonalize(&mut diagonal, &mut off, |_| ());
    diagonal.sort_by(|a, b| b.total_cmp(a));
    diagonal
}

/// The `count` largest eigenvalues of a symmetric matrix, largest first, and their eigenvectors.
///
/// # Shapes
/// `matrix` is `[size, size]`, and finite; the vectors are `[count, size]`.
pub(crate) fn largest(matrix: Vec<f64>, size: usize, count: usize) -> (Vec<f64>, Vec<f64>) {
    largest_in(Isa::current(), matrix, size, count)
}

fn largest_in(isa: Isa, matrix: Vec<f64>, size: usize, count: usize) -> (Vec<f64>, Vec<f64>) {
    assert!(count <= size, "{count} of {size} eigenvectors");
    let Tridiagonal { mut diagonal, mut off, reflectors } = tridiagonal::reduce(isa, matrix, size);
    let mut rotations = Vec::new();
    portable::diagonalize(&mut diagonal, &mut off, |rotation| rotations.push(rotation));
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
    order.truncate(count);
    let strips: Vec<usize> = (0..size).step_by(LANES).collect();
    let of_strip = |first: usize| {
        // rows of the unit matrix, as lanes
        let mut x = vec![0f64; size * LANES];
        for lane in 0..LANES.min(size - first) {
            x[(first + lane) * LANES + lane] = 1.0;
        }
        for (k, v) in reflectors.chunks_exact(size).enumerate().take(size.saturating_sub(2)) {
            reflect(isa, &v[k + 1..], &mut x[(k + 1) * LANES..]);
        }
        rotate(isa, &rotations, &mut x);
        order.iter().flat_map(|at| x[at * LANES..][..LANES].iter().copied()).collect::<Vec<f64>>()
    };
    let strips: Vec<Vec<f64>> = strips.into_par_iter().map(of_strip).collect();
    let mut vectors = Vec::with_capacity(count * size);
    for vector in 0..count {
        let end = vectors.len() + size;
        for strip in &strips {
            let lanes = &strip[vector * LANES..][..LANES];
            vectors.extend_from_slice(&lanes[..LANES.min(end - vectors.len())]);
        }
    }
    (order.iter().map(|at| diagonal[*at]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn symmetric(seed: u64, size: usize) -> Vec<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let x: Vec<f64> = (0..size * size).map(|_| random.random_range(-1.0..1.0)).collect();
        (0..size * size).map(|at| x[at] + x[at % size * size + at / size]).collect()
    }

    /// `‖M·v − λ·v‖` is nothing, vectors are orthonormal, and the values descend and have the sum of the diagonal.
    fn check(matrix: &[f64], size: usize) {
        let (values, vectors) = largest(matrix.to_vec(), size, size);
        assert!(values.is_sorted_by(|a, b| a >= b), "{values:?}");
        let norm = matrix.iter().fold(0f64, |norm, x| norm.max(x.abs())).max(1e-300) * size as f64;
        for (value, v) in values.iter().zip(vectors.chunks_exact(size)) {
            for (row, v_i) in matrix.chunks_exact(size).zip(v) {
                let product: f64 = row.iter().zip(v).map(|(a, b)| a * b).sum();
                assert!((product - value * v_i).abs() <= 1e-13 * norm, "{size}: {product} {value} {v_i}");
            }
            for w in vectors.chunks_exact(size) {
                let inner: f64 = v.iter().zip(w).map(|(a, b)| a * b).sum();
                let expected = if std::ptr::eq(v, w) { 1.0 } else { 0.0 };
                assert!((inner - expected).abs() < 1e-12, "{size}: {inner}");
            }
        }
        let trace: f64 = matrix.iter().step_by(size + 1).sum();
        assert!((values.iter().sum::<f64>() - trace).abs() <= 1e-13 * norm);
        let alone = eigenvalues(matrix.to_vec(), size);
        assert_eq!(alone, values);
    }

    #[test]
    fn vectors_are_what_the_definition_says() {
        for size in [1, 2, 3, 5, 32, 33, 90] {
            check(&symmetric(size as u64, size), size);
            check(&vec![0.0; size * size], size);
            check(&vec![1e30; size * size], size);
            // a diagonal with equal, tiny and negative values
            let diagonal =
                |at: usize| if at.is_multiple_of(size + 1) { [3.0, -1e-200, 3.0][at % 3] } else { 0.0 };
            check(&(0..size * size).map(diagonal).collect::<Vec<_>>(), size);
        }
        assert_eq!(largest(Vec::new(), 0, 0), (Vec::new(), Vec::new()));
    }

    #[test]
    fn known_values() {
        // 2 on the diagonal and −1 beside it: 2 − 2·cos(kπ / (n + 1))
        let n = 50;
        let element = |at: usize| match (at / n).abs_diff(at % n) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        };
        let values = eigenvalues((0..n * n).map(element).collect(), n);
        for (k, value) in values.iter().rev().enumerate() {
            let expected = 2.0 - 2.0 * ((k + 1) as f64 * std::f64::consts::PI / (n + 1) as f64).cos();
            assert!((value - expected).abs() < 1e-14, "{value} {expected}");
        }
    }

    #[test]
    fn every_level_and_number_of_threads_gives_the_same_bits() {
        let size = 300;
        let matrix = symmetric(3, size);
        let expected = largest_in(Isa::Portable, matrix.clone(), size, 7);
        for isa in Isa::all() {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let found = pool.install(|| largest_in(isa, matrix.clone(), size, 7));
                assert!(found == expected, "{isa:?} with {threads} threads");
            }
        }
    }
}
