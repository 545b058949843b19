//! Factorization of a symmetric positive definite matrix, and what it solves.

mod portable;
mod solve;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::transpose::{from_lanes, to_lanes};
use super::update::{PANEL, Panels, add_outer, symmetric_product};

pub(crate) use solve::solve_rows;

/// Columns that are factorized before those beside them are updated; a multiple of [`PANEL`].
const BLOCK: usize = 128;

/// Columns that are finished before the rest of the matrix is updated, so that it is fetched from memory less often.
pub(crate) const STEP: usize = 4 * BLOCK;

/// A diagonal element that is not positive once the columns after it are taken out: the matrix is not positive definite, or
/// so nearly singular that nothing but rounding errors is left of it.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("pivot {index} is {value}")]
pub(crate) struct Pivot {
    pub(crate) index: usize,
    pub(crate) value: f32,
}

multiversion! {
    fn subtract(from: &mut [f32], sums: &[f32]) = portable::subtract
}

multiversion! {
    fn factor_block(block: &mut [f32], size: usize, least: &[f32]) -> Result<(), Pivot> = portable::factor_block
}

/// Overwrites the upper half of a matrix `H` with the upper triangular `U` for which `H = U·Uᵀ`: the Cholesky factor of the
/// matrix with its rows and columns in the opposite order (Golub & Van Loan, "Matrix Computations", 4.2), from the last block of
/// columns to the first. What lies below the diagonal is neither read nor specified afterwards.
///
/// The result depends on neither the number of threads nor the instruction level.
///
/// # Shapes
/// `matrix` is `[size, size]`.
///
/// # Errors
/// When a pivot is not finite, or no larger than the rounding error of the diagonal element that it comes from.
pub(crate) fn factor_upper(isa: Isa, matrix: &mut [f32], size: usize) -> Result<(), Pivot> {
    assert_eq!(matrix.len(), size * size, "a square matrix");
    let least: Vec<f32> = (0..size).map(|i| f32::EPSILON * matrix[i * size + i]).collect();
    let (mut block, mut opposite, mut panels) = (Vec::new(), Vec::new(), Vec::new());
    for step in (0..size).step_by(STEP).rev() {
        let depth = STEP.min(size - step);
        // of every finished column the rows above it
        panels.resize(size.min(step + depth).div_ceil(PANEL) * depth * PANEL, 0.0);
        for first in (step..step + depth).step_by(BLOCK).rev() {
            let width = BLOCK.min(step + depth - first);
            block.clear();
            for row in matrix[first * size..].chunks_exact(size).take(width) {
                block.extend_from_slice(&row[first..first + width]);
            }
            factor_block(isa, &mut block, width, &least[first..])
                .map_err(|pivot| Pivot { index: first + pivot.index, ..pivot })?;
            for (row, factor) in matrix[first * size..].chunks_exact_mut(size).zip(block.chunks_exact(width))
            {
                row[first..first + width].copy_from_slice(factor);
            }
            if first == 0 {
                return Ok(());
            }
            // row j holds −U_ij for i < j
            opposite.clear();
            opposite.extend((0..width * width).map(|at| -block[at % width * width + at / width]));
            // above the block: X · U_blockᵀ = H, 32 rows at a time
            let finished = first - step..first - step + width;
            let rows = matrix[..first * size].par_chunks_exact_mut(PANEL * size);
            rows.zip(panels.par_chunks_exact_mut(PANEL * depth)).for_each(|(rows, panel)| {
                let x = &mut panel[finished.start * PANEL..finished.end * PANEL];
                to_lanes(isa, rows, size, first..first + width, x);
                solve_block(isa, &block, &opposite, x);
                from_lanes(isa, x, rows, size, first);
            });
            let values = Panels { values: &panels, depth };
            let subtract = |to: &mut [f32], sums: &[f32]| subtract(isa, to, sums);
            symmetric_product(isa, values, finished, step..first, (matrix, size), subtract);
        }
        let panels = Panels { values: &panels, depth };
        let subtract = |to: &mut [f32], sums: &[f32]| subtract(isa, to, sums);
        symmetric_product(isa, panels, 0..depth, 0..step, (matrix, size), subtract);
    }
    Ok(())
}

/// Replaces 32 rows `h` by the `x` for which `x · Uᵀ = h`.
///
/// # Shapes
/// `block` is `U`, `[width, width]`, `opposite` is `−Uᵀ`, `lanes` is `[width][32]`.
fn solve_block(isa: Isa, block: &[f32], opposite: &[f32], lanes: &mut [f32]) {
    let width = lanes.len() / PANEL;
    for j in (0..width).rev() {
        let (before, x) = lanes.split_at_mut(j * PANEL);
        let Some(x) = x.first_chunk_mut::<PANEL>() else { return };
        let pivot = block[j * width + j];
        for x in x.iter_mut() {
            *x /= pivot;
        }
        add_outer(isa, &opposite[j * width..][..j], x, before);
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// `XᵀX / tokens + damping · I`.
    fn matrix(size: usize, tokens: usize, damping: f32) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(size as u64);
        let x: Vec<f32> = (0..tokens * size).map(|_| random.random_range(-1.0..1.0)).collect();
        let element = |at: usize| {
            let (i, j) = (at / size, at % size);
            let sum: f64 = x.chunks_exact(size).map(|x| f64::from(x[i]) * f64::from(x[j])).sum();
            (sum / tokens as f64) as f32 + if i == j { damping } else { 0.0 }
        };
        (0..size * size).map(element).collect()
    }

    #[test]
    fn the_factor_times_its_transpose_is_the_matrix() {
        for size in [0, 1, 2, 31, 127, 128, 129, 300, 513, 700] {
            let h = matrix(size, 2 * size + 1, 0.01);
            let mut u = h.clone();
            factor_upper(Isa::current(), &mut u, size).unwrap();
            for i in 0..size {
                assert!(u[i * size + i] > 0.0);
                for j in i..size {
                    let product: f64 =
                        (j..size).map(|k| f64::from(u[i * size + k]) * f64::from(u[j * size + k])).sum();
                    let error = (product - f64::from(h[i * size + j])).abs();
                    assert!(error < 1e-6, "{size}: {error} at {i}, {j}");
                }
            }
        }
    }

    #[test]
    fn every_level_and_number_of_threads_gives_the_same_bits() {
        let size = 675;
        let h = matrix(size, 900, 0.0);
        let of = |isa| {
            let mut u = h.clone();
            factor_upper(isa, &mut u, size).unwrap();
            (0..size)
                .flat_map(|i| u[i * size + i..(i + 1) * size].to_vec())
                .map(f32::to_bits)
                .collect::<Vec<_>>()
        };
        let expected = of(Isa::Portable);
        for isa in Isa::all() {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert!(pool.install(|| of(isa)) == expected, "{isa:?} with {threads} threads");
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_refused_at_its_pivot() {
        // the last columns first: 2 − 2²/1 is negative, and belongs to row 0
        let error = factor_upper(Isa::current(), &mut [2.0, 2.0, 0.0, 1.0], 2).unwrap_err();
        assert_eq!(error, Pivot { index: 0, value: -2.0 });
        let mut h = vec![0.0; 200 * 200];
        (0..200).for_each(|i| h[i * 201] = if i == 150 { 0.0 } else { 1.0 });
        assert_eq!(factor_upper(Isa::current(), &mut h, 200).unwrap_err(), Pivot { index: 150, value: 0.0 });
        // ten samples of twenty channels
        assert!(factor_upper(Isa::current(), &mut matrix(20, 10, 0.0), 20).is_err());
        assert!(factor_upper(Isa::current(), &mut [f32::NAN], 1).is_err());
    }
}
