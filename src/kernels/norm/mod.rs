//! Squared Euclidean norms of rows and columns, summed in f64 in one order.

mod portable;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::{CHUNK, PARALLEL_MIN};

multiversion! {
    fn row_in(values: &[f32]) -> f64 = portable::row
}
multiversion! {
    fn add_to_columns(values: &[f32], sums: &mut [f64]) = portable::add_to_columns
}

/// Columns that one task sums: their sums stay in the first-level cache.
const COLUMNS: usize = 1 << 11;

/// The squared norm of every row.
///
/// # Shapes
/// `values` is `[norms.len(), cols]`.
///
/// # Panics
/// When it is not.
pub fn rows_squared(values: &[f32], cols: usize, norms: &mut [f64]) {
    assert_eq!(values.len(), cols * norms.len(), "values of the rows");
    let isa = Isa::current();
    if cols == 0 {
        norms.fill(0.0);
    } else if values.len() < PARALLEL_MIN {
        norms.iter_mut().zip(values.chunks(cols)).for_each(|(norm, row)| *norm = row_in(isa, row));
    } else {
        let rows = norms.par_iter_mut().zip(values.par_chunks(cols));
        rows.with_min_len((CHUNK / cols).max(1)).for_each(|(norm, row)| *norm = row_in(isa, row));
    }
}

/// The squared norm of every column.
///
/// # Shapes
/// `values` is `[rows, norms.len()]`.
///
/// # Panics
/// When it is not a whole number of rows.
pub fn columns_squared(values: &[f32], norms: &mut [f64]) {
    let (isa, cols) = (Isa::current(), norms.len());
    assert!(values.len().is_multiple_of(cols.max(1)), "values of the columns");
    norms.fill(0.0);
    let add = |(block, sums): (usize, &mut [f64])| {
        let first = block * COLUMNS;
        for row in values.chunks(cols) {
            add_to_columns(isa, &row[first..first + sums.len()], sums);
        }
    };
    if cols == 0 {
        return;
    }
    if values.len() < PARALLEL_MIN {
        norms.chunks_mut(COLUMNS).enumerate().for_each(add);
    } else {
        norms.par_chunks_mut(COLUMNS).enumerate().for_each(add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_of_integers_are_exact_in_every_shape() {
        for (rows, cols) in [(0, 5), (5, 0), (1, 1), (3, 17), (40, 33), (7, 5000), (300, 130)] {
            let value = |row: usize, col: usize| ((row * 31 + col * 17) % 23) as f32 - 11.0;
            let values: Vec<f32> = (0..rows * cols).map(|i| value(i / cols, i % cols)).collect();
            let square = |row, col| f64::from(value(row, col)).powi(2);
            let mut norms = vec![-1.0; rows];
            rows_squared(&values, cols, &mut norms);
            for (row, norm) in norms.iter().enumerate() {
                assert_eq!(*norm, (0..cols).map(|col| square(row, col)).sum::<f64>());
            }
            let mut norms = vec![-1.0; cols];
            columns_squared(&values, &mut norms);
            for (col, norm) in norms.iter().enumerate() {
                assert_eq!(*norm, (0..rows).map(|row| square(row, col)).sum::<f64>());
            }
        }
    }

    #[test]
    fn every_level_sums_in_the_same_order() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // magnitudes far apart, so that another order gives another sum
            f32::from_bits((state >> 9) | ((100 + (state >> 27)) << 23))
        };
        for len in (0..70).chain([1000]) {
            let values: Vec<f32> = (0..len).map(|_| next()).collect();
            let row = row_in(Isa::Portable, &values);
            let mut columns = vec![0.5; len];
            add_to_columns(Isa::Portable, &values, &mut columns);
            for isa in Isa::all() {
                assert_eq!(row_in(isa, &values).to_bits(), row.to_bits());
                let mut again = vec![0.5; len];
                add_to_columns(isa, &values, &mut again);
                assert_eq!(again, columns);
            }
        }
    }
}
