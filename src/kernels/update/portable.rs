use super::{PANEL, TILE, Tile};

/// Rows and columns of a tile whose sums are kept in registers at a time.
const ROWS: usize = 4;
const COLS: usize = 16;

/// Adds `A·B`: products of every element in the order of the columns of `A`, fused, from 0 on.
#[inline(always)]
pub(super) fn add_product(a: &[f32], b: &[f32], tile: &mut Tile) {
    for first_row in (0..TILE).step_by(ROWS) {
        for first_col in (0..PANEL).step_by(COLS) {
            let mut sums = [[0f32; COLS]; ROWS];
            for (a, b) in a.as_chunks::<TILE>().0.iter().zip(b.as_chunks::<PANEL>().0) {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let a = a[first_row + row];
                    for (col, sum) in sums.iter_mut().enumerate() {
                        *sum = a.mul_add(b[first_col + col], *sum);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let to = &mut tile[(first_row + row) * PANEL + first_col..][..COLS];
                to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
            }
        }
    }
}

/// Adds `factors[i] · x` to the `i`-th of some rows.
#[inline(always)]
pub(super) fn add_outer(factors: &[f32], x: &[f32; PANEL], rows: &mut [f32]) {
    for (factor, row) in factors.iter().zip(rows.as_chunks_mut::<PANEL>().0) {
        row.iter_mut().zip(x).for_each(|(to, x)| *to = factor.mul_add(*x, *to));
    }
}

/// Adds all products to a row in the order of the factors.
#[inline(always)]
pub(super) fn add_outers(factors: &[&[f32]], x: &[[f32; PANEL]], rows: &mut [f32]) {
    for (factors, x) in factors.iter().zip(x) {
        add_outer(factors, x, rows);
    }
}
