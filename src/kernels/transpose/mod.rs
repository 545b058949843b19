//! Rows of a matrix side by side, 32 lanes of every column, and back.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
pub(super) use avx512::sixteen;

use super::level::{Isa, multiversion};
use super::update::PANEL;

multiversion! {
    fn to_lanes_any(rows: &[f32], stride: usize, columns: Range<usize>, lanes: &mut [f32]) = portable::to_lanes
}

multiversion! {
    fn from_lanes_any(lanes: &[f32], rows: &mut [f32], stride: usize, first: usize) = portable::from_lanes
}

/// Some columns of up to 32 rows as `[columns][32]`, where lanes beyond the last row stay as they are.
///
/// # Shapes
/// `rows` is `[up to 32, stride]`, `lanes` is `[columns][32]`.
pub(crate) fn to_lanes(isa: Isa, rows: &[f32], stride: usize, columns: Range<usize>, lanes: &mut [f32]) {
    check(rows, stride, columns.end, lanes.len() == columns.len() * PANEL);
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => avx512::to_lanes(proof, rows, stride, columns, lanes),
        _ => to_lanes_any(isa, rows, stride, columns, lanes),
    }
}

/// The opposite of [`to_lanes`]: columns from `first` on of up to 32 rows.
///
/// # Shapes
/// `lanes` is `[columns][32]`, `rows` is `[up to 32, stride]`.
pub(crate) fn from_lanes(isa: Isa, lanes: &[f32], rows: &mut [f32], stride: usize, first: usize) {
    check(rows, stride, first + lanes.len() / PANEL, lanes.len().is_multiple_of(PANEL));
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(proof) => avx512::from_lanes(proof, lanes, rows, stride, first),
        _ => from_lanes_any(isa, lanes, rows, stride, first),
    }
}

fn check(rows: &[f32], stride: usize, end: usize, lanes: bool) {
    let fits = rows.len().is_multiple_of(stride.max(1)) && rows.len() <= PANEL * stride && end <= stride;
    assert!(fits && lanes, "up to 32 rows, and lanes of some of their columns");
}

/// [`to_lanes`] of all columns, with zeros beyond the last row.
pub(crate) fn transposed(isa: Isa, rows: &[f32], cols: usize) -> Vec<f32> {
    let mut lanes = vec![0f32; cols * PANEL];
    to_lanes(isa, rows, cols, 0..cols, &mut lanes);
    lanes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn lanes_are_columns_and_come_back(rows in 0..=PANEL, stride in 1..70usize, from in 0..70usize, to in 0..70usize) {
            let columns = from.min(to).min(stride)..from.max(to).min(stride);
            let value = |row: usize, column: usize| (row * stride + column + 1) as f32;
            let matrix: Vec<f32> = (0..rows * stride).map(|at| value(at / stride, at % stride)).collect();
            for isa in Isa::all() {
                let mut lanes = vec![-1.0; columns.len() * PANEL];
                to_lanes(isa, &matrix, stride, columns.clone(), &mut lanes);
                for (at, found) in lanes.iter().enumerate() {
                    let (column, row) = (columns.start + at / PANEL, at % PANEL);
                    prop_assert_eq!(*found, if row < rows { value(row, column) } else { -1.0 });
                }
                let mut back = vec![0.0; rows * stride];
                from_lanes(isa, &lanes, &mut back, stride, columns.start);
                for (at, found) in back.iter().enumerate() {
                    prop_assert_eq!(*found, if columns.contains(&(at % stride)) { matrix[at] } else { 0.0 });
                }
            }
        }
    }
}
