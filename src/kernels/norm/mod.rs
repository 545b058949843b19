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
