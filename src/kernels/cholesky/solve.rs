use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::level::Isa;
use crate::kernels::transpose::{from_lanes, transposed};
use crate::kernels::update::{InTurn, Lanes, PANEL, sweep};

/// Columns whose sums over all earlier columns are made together.
const BLOCK: usize = 128;

/// Replaces every row `b` by the `x` for which `x · U·Uᵀ = b`, given the upper triangular `U` that
/// [`factor_upper`](super::factor_upper) finds. What lies below its diagonal is not read.
///
/// The result depends on neither the number of threads nor the instruction level.
///
/// # Shapes
/// `factor` is `[size, size]`, `rows` is `[any number, size]`.
pub(crate) fn solve_rows(isa: Isa, factor: &[f32], size: usize, rows: &mut [f32]) {
    assert!(factor.len() == size * size && rows.len().is_multiple_of(size.max(1)), "a factor and its rows");
    if size == 0 {
        return;
    }
    // first y · Uᵀ = b, from the last column on: with all columns in the opposite order the factor is upper triangular again
    let mut opposite = vec![0f32; size * size];
    opposite.par_chunks_exact_mut(size).enumerate().for_each(|(i, row)| {
        for (j, to) in row.iter_mut().enumerate().skip(i) {
            *to = factor[(size - 1 - j) * size + size - 1 - i];
        }
    });
    rows.par_chunks_exact_mut(size).for_each(<[f32]>::reverse);
    substitute(isa, &opposite, size, rows);
    drop(opposite);
    rows.par_chunks_exact_mut(size).for_each(<[f32]>::reverse);
    substitute(isa, factor, size, rows);
}

/// Replaces every row `b` by the `x` for which `x · T = b`, from the first column to the last.
fn substitute(isa: Isa, triangle: &[f32], size: usize, rows: &mut [f32]) {
    let mut all: Vec<Rows<'_>> = rows
        .par_chunks(PANEL * size)
        .map(|rows| Rows { triangle, size, columns: transposed(isa, rows, size) })
        .collect();
    sweep(isa, triangle, size, BLOCK, &mut all);
    let rows = rows.par_chunks_mut(PANEL * size).zip(&all);
    rows.for_each(|(rows, solved)| from_lanes(isa, &solved.columns, rows, size, 0));
}

/// Up to 32 rows: columns that have been passed are solved, the others are what they are to become.
struct Rows<'a> {
    triangle: &'a [f32],
    size: usize,
    columns: Vec<f32>,
}

impl Lanes for Rows<'_> {
    fn columns(&self) -> &[f32] {
        &self.columns
    }

    fn block(&mut self, isa: Isa, columns: Range<usize>, sums: &mut [f32]) {
        let mut in_turn = InTurn::new(isa, columns.len(), sums);
        for j in columns {
            let row = &self.triangle[j * (self.size + 1)..];
            let x = &mut self.columns.as_chunks_mut::<PANEL>().0[j];
            x.iter_mut().zip(in_turn.sums()).for_each(|(x, sum)| *x = (*x - *sum) / row[0]);
            in_turn.finish(&row[1..], x);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::kernels::cholesky::factor_upper;

    /// A positive definite matrix, and some rows.
    fn problem(size: usize, rows: usize) -> (Vec<f32>, Vec<f32>) {
        let mut random = ChaCha8Rng::seed_from_u64(size as u64);
        let mut h: Vec<f32> = (0..size * size).map(|_| random.random_range(-0.5..0.5)).collect();
        for i in 0..size {
            for j in 0..i {
                h[i * size + j] = h[j * size + i];
            }
            h[i * size + i] += size as f32;
        }
        (h, (0..rows * size).map(|_| random.random_range(-1.0..1.0)).collect())
    }

    #[test]
    fn the_solution_times_the_matrix_is_what_was_given() {
        for (size, rows) in [(0, 0), (1, 3), (2, 1), (33, 40), (128, 5), (129, 33), (300, 70)] {
            let (h, b) = problem(size, rows);
            let mut factor = h.clone();
            factor_upper(Isa::current(), &mut factor, size).unwrap();
            let mut x = b.clone();
            solve_rows(Isa::current(), &factor, size, &mut x);
            for (x, b) in x.chunks_exact(size.max(1)).zip(b.chunks_exact(size.max(1))) {
                for j in 0..size {
                    let product: f64 = (0..size).map(|i| f64::from(x[i]) * f64::from(h[i * size + j])).sum();
                    assert!((product - f64::from(b[j])).abs() < 1e-5, "{size}: {product} {}", b[j]);
                }
            }
        }
    }

    #[test]
    fn every_level_and_number_of_threads_gives_the_same_bits() {
        let (size, rows) = (275, 70);
        let (h, b) = problem(size, rows);
        let of = |isa| {
            let (mut factor, mut x) = (h.clone(), b.clone());
            factor_upper(isa, &mut factor, size).unwrap();
            solve_rows(isa, &factor, size, &mut x);
            x.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let expected = of(Isa::Portable);
        for isa in Isa::all() {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert!(pool.install(|| of(isa)) == expected, "{isa:?} with {threads} threads");
            }
        }
    }
}
