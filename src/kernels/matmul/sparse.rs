//! Products with sparse weights: a row is a bitmask and its kept values, and a block of activations meets a block of values
//! that was spread out in registers. What is not kept is never read.

use rayon::prelude::*;

use super::activations::{ActivationCodes, quantize};
use super::output::Output;
use super::product::{Epilogue, PARALLEL_MIN_WORK};
use crate::kernels::level::Isa;

#[cfg(target_arch = "x86_64")]
use super::sparse_avx512;

/// Columns of a block: the bits of a word of the bitmask.
pub(crate) const BLOCK: usize = 64;

/// Most rows of activations that pass a row of weights together.
pub(super) const ROWS: usize = 8;

/// Values that can be read beyond the last, so that a register can always be filled.
const SLACK: usize = 64;

/// The kept values, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SparseValues {
    F32(Vec<f32>),
    /// Bits of f16.
    F16(Vec<u16>),
    /// Bits of bf16.
    Bf16(Vec<u16>),
    /// Codes without zero points; scales `[row][group]`, groups of so many columns, whole blocks unless there is one.
    Int {
        codes: Vec<i8>,
        scales: Vec<f32>,
        group: usize,
    },
}

/// A sparse weight.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SparseRows {
    outputs: usize,
    pub(super) cols: usize,
    /// `[row][block]`: bit `i` is column `64 · block + i`.
    pub(super) masks: Vec<u64>,
    /// Index of each row's first value.
    pub(super) starts: Vec<usize>,
    /// Padded by [`SLACK`].
    pub(super) values: SparseValues,
    /// Sum of the codes, `[row][group]`, for integers.
    pub(super) code_sums: Vec<i32>,
}

impl SparseRows {
    /// `columns_of(row, columns)` gives a row's kept columns, ascending.
    pub(crate) fn new<R>(
        rows: usize,
        cols: usize,
        columns_of: impl Fn(usize, &mut Vec<u32>) -> R,
        mut values: SparseValues,
    ) -> Self {
        let blocks = cols.div_ceil(BLOCK);
        let mut masks = vec![0u64; rows * blocks];
        let mut starts = Vec::with_capacity(if cols == 0 { 0 } else { rows });
        let mut code_sums = Vec::new();
        let (mut next, mut columns) = (0, Vec::new());
        for row in 0..if cols == 0 { 0 } else { rows } {
            columns_of(row, &mut columns);
            starts.push(next);
            for col in columns.iter().map(|col| *col as usize) {
                masks[row * blocks + col / BLOCK] |= 1 << (col % BLOCK);
            }
            if let SparseValues::Int { codes, group, .. } = &values {
                let first = code_sums.len();
                code_sums.resize(first + cols.div_ceil(*group), 0);
                for (col, code) in columns.iter().zip(&codes[next..]) {
                    code_sums[first + *col as usize / group] += i32::from(*code);
                }
            }
            next += columns.len();
        }
        match &mut values {
            SparseValues::F32(v) => v.resize(next + SLACK, 0.0),
            SparseValues::F16(v) | SparseValues::Bf16(v) => v.resize(next + SLACK, 0),
            SparseValues::Int { codes, .. } => codes.resize(next + SLACK, 0),
        }
        Self { outputs: rows, cols, masks, starts, values, code_sums }
    }

    pub(super) fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }

    pub(super) fn row_masks(&self, row: usize) -> &[u64] {
        &self.masks[row * self.blocks()..(row + 1) * self.blocks()]
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let values = match &self.values {
            SparseValues::F32(v) => v.len() * 4,
            SparseValues::F16(v) | SparseValues::Bf16(v) => v.len() * 2,
            SparseValues::Int { codes, scales, .. } => codes.len() + scales.len() * 4,
        };
        self.masks.len() * 8 + self.starts.len() * 8 + self.code_sums.len() * 4 + values
    }
}

/// Rows of activations in whole blocks.
pub(super) struct Rows<'a, T> {
    /// `[row][block · 64]`, zero beyond the last column.
    pub(super) x: &'a [T],
    pub(super) count: usize,
    pub(super) width: usize,
}

/// `y = x · Wᵀ` with `x` as it is.
///
/// # Shapes
/// `x` is `[batch, cols]`, `y` is `[batch, rows]`.
pub(crate) fn float_product(
    isa: Isa,
    weight: &SparseRows,
    x: &[f32],
    batch: usize,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    let width = weight.blocks() * BLOCK;
    let padded = if width == weight.cols { None } else { Some(pad(x, batch, weight.cols, width)) };
    let x = padded.as_deref().unwrap_or(x);
    for_each_row(weight, batch, epilogue, y, |row, first, sums| {
        let x = Rows { x: &x[first * width..(first + sums.len()) * width], count: sums.len(), width };
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(proof) => sparse_avx512::float_row(proof, weight, row, &x, sums),
            _ => float_row(weight, row, &x, sums),
        }
    });
}

/// `y = x · Wᵀ` with `x` quantized on the way; the same bits at every level.
///
/// # Shapes
/// `x` is `[batch, cols]`, `y` is `[batch, rows]`; the values are integers.
pub(crate) fn int_product(
    isa: Isa,
    weight: &SparseRows,
    x: &[f32],
    batch: usize,
    how: ActivationCodes,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    let (cols, width) = (weight.cols, weight.blocks() * BLOCK);
    let SparseValues::Int { scales, group, .. } = &weight.values else {
        unreachable!("a weight for integer activations holds integers");
    };
    let groups = cols.div_ceil(*group);
    // codes + 128, so that they are not negative
    let mut codes = vec![128u8; batch * width];
    let mut rows = vec![(0f32, 0i32); batch];
    let quantize_row = |(row, (codes, parameters)): (usize, (&mut [u8], &mut (f32, i32)))| {
        let mut signed = vec![0i8; cols];
        *parameters = quantize(isa, &x[row * cols..(row + 1) * cols], how, &mut signed);
        for (to, code) in codes.iter_mut().zip(signed) {
            *to = code as u8 ^ 0x80;
        }
    };
    if cols > 0 && batch * cols > crate::kernels::PARALLEL_MIN {
        codes.par_chunks_mut(width).zip(&mut rows).enumerate().for_each(quantize_row);
    } else if cols > 0 {
        codes.chunks_mut(width).zip(&mut rows).enumerate().for_each(quantize_row);
    }
    for_each_row(weight, batch, epilogue, y, |row, first, sums| {
        let x = Rows { x: &codes[first * width..(first + sums.len()) * width], count: sums.len(), width };
        let mut exact = [0i32; ROWS];
        sums.fill(0.0);
        let mut value = weight.starts[row];
        for index in 0..groups {
            let blocks = index * group / BLOCK..((index + 1) * group).min(cols).div_ceil(BLOCK);
            let exact = &mut exact[..sums.len()];
            value = match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(proof) => sparse_avx512::int_blocks(proof, weight, row, blocks, value, &x, exact),
                _ => int_blocks(weight, row, blocks, value, &x, exact),
            };
            let code_sum = weight.code_sums[row * groups + index];
            for ((sum, exact), (_, zero)) in sums.iter_mut().zip(exact).zip(&rows[first..]) {
                let exact = exact.wrapping_sub(code_sum.wrapping_mul(128 + zero));
                *sum += exact as f32 * scales[row * groups + index];
            }
        }
        for (sum, (scale, _)) in sums.iter_mut().zip(&rows[first..]) {
            *sum *= scale;
        }
    });
}

/// Calls `work(row, first, sums)` for every row of the weight and up to [`ROWS`] rows of activations from `first` on.
fn for_each_row(
    weight: &SparseRows,
    batch: usize,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
    work: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let output = Output::new(y, batch, weight.outputs);
    let task = |row: usize| {
        for first in (0..batch).step_by(ROWS) {
            let mut sums = [0f32; ROWS];
            let sums = &mut sums[..ROWS.min(batch - first)];
            if weight.cols > 0 {
                work(row, first, sums);
            }
            // SAFETY: this task alone works on this column.
            let mut column = unsafe { output.columns(first..first + sums.len(), row..row + 1) };
            for (i, sum) in sums.iter().enumerate() {
                let value = epilogue.bias.map_or(*sum, |bias| sum + bias[row]);
                // a comparison, because `max` would turn NaN into 0
                column.row_mut(i)[0] = if epilogue.relu && value < 0.0 { 0.0 } else { value };
            }
        }
    };
    if batch * weight.outputs * weight.cols < PARALLEL_MIN_WORK || rayon::current_num_threads() == 1 {
        (0..weight.outputs).for_each(task);
    } else {
        // a run of rows of one cache line of outputs
        (0..weight.outputs).into_par_iter().with_min_len(16).for_each(task);
    }
}

fn pad(x: &[f32], batch: usize, cols: usize, width: usize) -> Vec<f32> {
    let mut padded = vec![0.0; batch * width];
    if cols > 0 {
        for (to, from) in padded.chunks_exact_mut(width).zip(x.chunks_exact(cols)) {
            to[..cols].copy_from_slice(from);
        }
    }
    padded
}

/// The specification of a row of floats: sums in order of the columns.
fn float_row(weight: &SparseRows, row: usize, x: &Rows<'_, f32>, sums: &mut [f32]) {
    let mut next = weight.starts[row];
    for (block, mask) in weight.row_masks(row).iter().enumerate() {
        let mut left = *mask;
        while left != 0 {
            let col = block * BLOCK + left.trailing_zeros() as usize;
            let value = match &weight.values {
                SparseValues::F32(v) => v[next],
                SparseValues::F16(v) => half::f16::from_bits(v[next]).to_f32(),
                SparseValues::Bf16(v) => half::bf16::from_bits(v[next]).to_f32(),
                SparseValues::Int { codes, scales, group } => {
                    let groups = weight.cols.div_ceil(*group);
                    f32::from(codes[next]) * scales[row * groups + col / group]
                }
            };
            for (sum, x) in sums.iter_mut().zip(x.x.chunks_exact(x.width)) {
                *sum += x[col] * value;
            }
            left &= left - 1;
            next += 1;
        }
    }
}

/// The specification of some blocks of a row of codes; gives the index of the value after them.
fn int_blocks(
    weight: &SparseRows,
    row: usize,
    blocks: std::ops::Range<usize>,
    mut next: usize,
    x: &Rows<'_, u8>,
    sums: &mut [i32],
) -> usize {
    let SparseValues::Int { codes, .. } = &weight.values else { return next };
    sums.fill(0);
    for block in blocks {
        let mut left = weight.row_masks(row)[block];
        while left != 0 {
            let col = block * BLOCK + left.trailing_zeros() as usize;
            for (sum, x) in sums.iter_mut().zip(x.x.chunks_exact(x.width)) {
                *sum = sum.wrapping_add(i32::from(x[col]) * i32::from(codes[next]));
            }
            left &= left - 1;
            next += 1;
        }
    }
    next
}
