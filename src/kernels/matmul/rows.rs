//! Products with a plain matrix where it lies, row after row: nothing is arranged beforehand and nothing is copied.
//!
//! Few rows of activations meet every row of weights as dot products, which read the matrix once. For more, pieces of the
//! matrix are turned into panels on the way, and all activations pass by.

use std::ops::Range;

use rayon::prelude::*;

use super::activations::FloatTiles;
use super::output::Output;
use super::panels::{BLOCK, Columns, PANEL};
use super::product::{Epilogue, FLOAT_DEPTH, Pass, without_columns};
#[cfg(target_arch = "x86_64")]
use super::rows_avx512;
use super::schedule::{At, Job, Schedule, Scratch, parallel_min_work, run};
use crate::dtype::FloatType;
use crate::kernels::convert;
use crate::kernels::level::{Isa, multiversion};
use crate::kernels::view;

/// A matrix whose rows a product reads where they lie.
pub(crate) trait Matrix: Copy + Sync {
    /// Rows and columns.
    fn dim(&self) -> [usize; 2];

    /// Some columns of a row: where they lie, if that is possible, else through `scratch`.
    fn view<'s>(
        &'s self,
        isa: Isa,
        row: usize,
        column: usize,
        len: usize,
        scratch: &'s mut [f32],
    ) -> &'s [f32];

    /// Some columns of up to 32 rows as a piece of a panel, `[column][32 rows]`; `false` if there is no kernel for it.
    fn fill_panel_in_place(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        panel: &mut [f32],
    ) -> bool;

    /// Products of the [`DOT_ROWS`] rows from `first` on, `sums[row of x][row]`; `false` if there is no kernel for it.
    fn dots_in_place(
        &self,
        isa: Isa,
        first: usize,
        x: &[f32],
        sums: &mut [[f32; DOT_ROWS]; DOT_BATCH],
    ) -> bool;
}

/// A plain matrix `[rows, cols]`, row-major, in little-endian floats of one type.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowMatrix<'a> {
    float: FloatType,
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
}

/// Rows of activations up to which dot products are faster than panels.
pub(super) const DOT_BATCH: usize = 4;

/// Rows of weights whose dot products are made together.
pub(super) const DOT_ROWS: usize = 4;

/// Columns that are widened at a time: they stay in the first-level cache.
const DOT_COLUMNS: usize = 1 << 10;

impl<'a> RowMatrix<'a> {
    /// # Panics
    /// When there are not as many bytes as elements of that type.
    pub(crate) fn new(float: FloatType, bytes: &'a [u8], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(bytes.len()), rows.checked_mul(cols * float.size()), "bytes of a matrix");
        Self { float, bytes, rows, cols }
    }

    /// Some columns of a row, in `f32`.
    pub(crate) fn read(&self, row: usize, column: usize, values: &mut [f32]) {
        let size = self.float.size();
        let start = (row * self.cols + column) * size;
        let bytes = &self.bytes[start..start + values.len() * size];
        convert::widen(self.float, bytes, values);
    }
}

impl Matrix for RowMatrix<'_> {
    fn dim(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    fn view<'s>(
        &'s self,
        _: Isa,
        row: usize,
        column: usize,
        len: usize,
        scratch: &'s mut [f32],
    ) -> &'s [f32] {
        if self.float == FloatType::F32 {
            let start = (row * self.cols + column) * 4;
            if let Some(values) = view::floats(&self.bytes[start..start + len * 4]) {
                return values;
            }
        }
        self.read(row, column, &mut scratch[..len]);
        &scratch[..len]
    }

    fn fill_panel_in_place(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        panel: &mut [f32],
    ) -> bool {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(proof) => {
                let bytes = self.cols * self.float.size();
                let of_rows = &self.bytes[rows.start * bytes..rows.end * bytes];
                rows_avx512::fill_panel(proof, self.float, of_rows, self.cols, columns, panel)
            }
            _ => false,
        }
    }

    fn dots_in_place(
        &self,
        isa: Isa,
        first: usize,
        x: &[f32],
        sums: &mut [[f32; DOT_ROWS]; DOT_BATCH],
    ) -> bool {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(proof) => {
                let bytes = self.cols * self.float.size();
                let rows = &self.bytes[first * bytes..(first + DOT_ROWS) * bytes];
                rows_avx512::dots(proof, self.float, rows, x, self.cols, sums)
            }
            _ => false,
        }
    }
}

/// Some columns of up to 32 rows as a piece of a panel, `[column][32 rows]`.
fn fill_panel<M: Matrix>(
    isa: Isa,
    matrix: &M,
    first: usize,
    columns: Range<usize>,
    scratch: &mut [f32],
    panel: &mut [f32],
) {
    let rows = first..(first + PANEL).min(matrix.dim()[0]);
    if matrix.fill_panel_in_place(isa, rows.clone(), columns.clone(), panel) {
        return;
    }
    for (output, row) in rows.enumerate() {
        let values = matrix.view(isa, row, columns.start, columns.len(), scratch);
        transpose(isa, values, output, panel);
    }
}

/// Products of some rows, a piece of their columns at a time: the specification.
fn dots_of_pieces<M: Matrix>(
    isa: Isa,
    matrix: &M,
    rows: Range<usize>,
    x: &[f32],
    scratch: &mut Vec<f32>,
    sums: &mut [[f32; DOT_ROWS]; DOT_BATCH],
) {
    let cols = matrix.dim()[1];
    scratch.resize(DOT_ROWS * DOT_COLUMNS, 0.0);
    let mut lanes = [[[0.0f32; LANES]; DOT_ROWS]; DOT_BATCH];
    for column in (0..cols).step_by(DOT_COLUMNS) {
        let len = DOT_COLUMNS.min(cols - column);
        let mut of_row = scratch.chunks_exact_mut(DOT_COLUMNS);
        // rows beyond the last are the last again
        let weights: [&[f32]; DOT_ROWS] = std::array::from_fn(|i| {
            let scratch = of_row.next().unwrap_or_default();
            matrix.view(isa, rows.start + i.min(rows.len() - 1), column, len, scratch)
        });
        for (x, lanes) in x.chunks_exact(cols).zip(&mut lanes) {
            dots(isa, weights, &x[column..column + len], lanes);
        }
    }
    for (sums, lanes) in sums.iter_mut().zip(&lanes) {
        *sums = lanes.map(sum_lanes);
    }
}

/// `y = x · Wᵀ`.
///
/// # Shapes
/// `x` is `[batch, cols]`, `y` is `[batch, rows]`.
pub(crate) fn rows_product<M: Matrix>(
    isa: Isa,
    matrix: M,
    x: &[f32],
    batch: usize,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    let [rows, cols] = matrix.dim();
    assert_eq!((x.len(), y.len()), (batch * cols, batch * rows), "activations and outputs");
    if batch == 0 || cols == 0 || rows == 0 {
        without_columns(rows, epilogue, y);
    } else if batch <= DOT_BATCH {
        dot_products(isa, matrix, x, batch, epilogue, y);
    } else {
        through_panels(isa, matrix, x, batch, epilogue, y);
    }
}

fn through_panels<M: Matrix>(
    isa: Isa,
    matrix: M,
    x: &[f32],
    batch: usize,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    let [rows, cols] = matrix.dim();
    let columns = Columns::new(cols, cols);
    let x = FloatTiles::new(x, batch, columns);
    let pass = Pass { isa, x: &x, epilogue, ahead: 0, blocks: columns.blocks() };
    let work = |scratch: &mut Scratch, at: &At<'_>| {
        let count = at.blocks.len() * BLOCK * PANEL;
        scratch.wide.reserve::<f32>(count + DOT_COLUMNS);
        let (panel, row) = scratch.wide.words_mut::<f32>().split_at_mut(count);
        // a matrix can have more columns than one group, but not more than one scale: its blocks follow one another
        let column = at.blocks.start * BLOCK;
        let len = (at.blocks.len() * BLOCK).min(cols - column);
        // columns that fill the last block: activations hold zero against them, which NaN would not become
        panel[len * PANEL..].fill(0.0);
        fill_panel(isa, &matrix, at.panel * PANEL, column..column + len, row, panel);
        pass.run(&scratch.wide.bytes()[..count * 4], scratch.total.words_mut(), at);
    };
    run(&mut [Job { schedule: Schedule::new(rows, columns, batch, true, FLOAT_DEPTH), y, work }]);
}

multiversion! {
    /// Writes a row's columns where a panel `[column][32 outputs]` has them.
    fn transpose(row: &[f32], output: usize, panel: &mut [f32]) = transpose_body
}

#[inline(always)]
fn transpose_body(row: &[f32], output: usize, panel: &mut [f32]) {
    for (x, column) in row.iter().zip(panel.chunks_exact_mut(PANEL)) {
        column[output] = *x;
    }
}

fn dot_products<M: Matrix>(
    isa: Isa,
    matrix: M,
    x: &[f32],
    batch: usize,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    let [rows, cols] = matrix.dim();
    let output = Output::new(y, batch, rows);
    let blocks = rows.div_ceil(DOT_ROWS);
    let work = |scratch: &mut Vec<f32>, block: usize| {
        let first = block * DOT_ROWS;
        let count = DOT_ROWS.min(rows - first);
        let mut sums = [[0.0f32; DOT_ROWS]; DOT_BATCH];
        if count < DOT_ROWS || !matrix.dots_in_place(isa, first, x, &mut sums) {
            dots_of_pieces(isa, &matrix, first..first + count, x, scratch, &mut sums);
        }
        // SAFETY: every block of rows belongs to one task.
        let mut y = unsafe { output.columns(0..batch, first..first + count) };
        for (row, sums) in sums.iter().enumerate().take(batch) {
            for (i, (y, sum)) in y.row_mut(row).iter_mut().zip(sums).enumerate() {
                *y = epilogue.apply(*sum, first + i);
            }
        }
    };
    if batch * rows * cols < parallel_min_work() || rayon::current_num_threads() == 1 {
        let mut scratch = Vec::new();
        (0..blocks).for_each(|block| work(&mut scratch, block));
    } else {
        let least = blocks.div_ceil(rayon::current_num_threads() * 4);
        (0..blocks).into_par_iter().with_min_len(least).for_each_init(Vec::new, work);
    }
}

multiversion! {
    /// Adds the products of some rows with `x` to the lanes of each.
    fn dots(rows: [&[f32]; DOT_ROWS], x: &[f32], lanes: &mut [[f32; LANES]; DOT_ROWS]) = dots_body
}

/// Sums that run beside each other: column `c` belongs to lane `c mod 16`.
pub(in crate::kernels::matmul) const LANES: usize = 16;
const _: () = assert!(DOT_COLUMNS.is_multiple_of(LANES));

/// Fused multiply-adds in order of the columns. What fills the last lanes is zero.
#[inline(always)]
fn dots_body(rows: [&[f32]; DOT_ROWS], x: &[f32], lanes: &mut [[f32; LANES]; DOT_ROWS]) {
    let whole = x.len() / LANES * LANES;
    let last = |values: &[f32]| {
        let mut last = [0.0; LANES];
        last[..x.len() - whole].copy_from_slice(&values[whole..x.len()]);
        last
    };
    let last_x = last(x);
    let x = x.as_chunks::<LANES>().0;
    for (row, lanes) in rows.into_iter().zip(lanes) {
        let mut sums = *lanes;
        for (x, w) in x.iter().zip(row.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                sums[lane] = w[lane].mul_add(x[lane], sums[lane]);
            }
        }
        if whole < row.len() {
            let w = last(row);
            for lane in 0..LANES {
                sums[lane] = w[lane].mul_add(last_x[lane], sums[lane]);
            }
        }
        *lanes = sums;
    }
}

/// The sum of all lanes: the upper half is added to the lower until one is left.
#[inline(always)]
pub(in crate::kernels::matmul) fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut count = LANES;
    while count > 1 {
        count /= 2;
        for lane in 0..count {
            lanes[lane] += lanes[lane + count];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::view::le_bytes;

    /// Small integers: every order of summation gives the same `f32`.
    #[test]
    fn equals_the_definition_for_every_shape_type_and_level() {
        for (batch, rows, cols) in [
            (0, 3, 4),
            (2, 0, 4),
            (2, 3, 0),
            (1, 1, 1),
            (1, 7, 100),
            (4, 33, 1030),
            (5, 7, 17),
            (13, 65, 200),
            (30, 40, 8),
            (5, 3, 33_000),
        ] {
            let x: Vec<f32> = (0..batch * cols).map(|i| ((i * 7) % 13) as f32 - 6.0).collect();
            let w: Vec<f32> = (0..rows * cols).map(|i| ((i * 5) % 11) as f32 - 5.0).collect();
            let bias: Vec<f32> = (0..rows).map(|i| i as f32).collect();
            let halves: Vec<half::f16> = w.iter().map(|x| half::f16::from_f32(*x)).collect();
            let brains: Vec<half::bf16> = w.iter().map(|x| half::bf16::from_f32(*x)).collect();
            let mut shifted = vec![0u8];
            shifted.extend_from_slice(&le_bytes(&w));
            for isa in Isa::all() {
                let wide = le_bytes(&w);
                let half = le_bytes(&halves);
                let brain = le_bytes(&brains);
                for (float, bytes) in [
                    (FloatType::F32, &*wide),
                    (FloatType::F16, &*half),
                    (FloatType::Bf16, &*brain),
                    (FloatType::F32, &shifted[1..]),
                ] {
                    let mut y = vec![f32::NAN; batch * rows];
                    let matrix = RowMatrix::new(float, bytes, rows, cols);
                    rows_product(isa, matrix, &x, batch, Epilogue { bias: Some(&bias), relu: true }, &mut y);
                    for (b, y) in y.chunks(rows.max(1)).enumerate() {
                        for (r, y) in y.iter().enumerate() {
                            let products = (0..cols).map(|c| x[b * cols + c] * w[r * cols + c]);
                            let sum = (products.sum::<f32>() + bias[r]).max(0.0);
                            assert_eq!(*y, sum, "{batch} × {rows} × {cols}, {float:?}: [{b}, {r}]");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_fills_the_last_block_is_no_part_of_a_sum() {
        let w: Vec<f32> = (0..2 * 200).map(|i| if i < 200 { f32::NAN } else { 1.0 }).collect();
        let mut y = vec![0.0; 20];
        let bytes = le_bytes(&w);
        let matrix = RowMatrix::new(FloatType::F32, &bytes, 2, 200);
        rows_product(Isa::Portable, matrix, &[1.0; 2000], 10, Epilogue::default(), &mut y);
        assert!(y.chunks(2).all(|y| y[0].is_nan() && y[1] == 200.0));
    }
}
