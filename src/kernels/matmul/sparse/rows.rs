//! Products of float activations with sparse weights: a row is a bitmask and its kept values, and a block of activations
//! meets a block of values that was spread out in registers. What is not kept is never read.

use rayon::prelude::*;

use crate::kernels::level::{Isa, multiversion};
use crate::kernels::matmul::output::Output;
use crate::kernels::matmul::panels::Aligned;
use crate::kernels::matmul::portable::chains;
use crate::kernels::matmul::product::Epilogue;
use crate::kernels::matmul::rows::{LANES, sum_lanes};
use crate::kernels::matmul::schedule::parallel_min_work;

#[cfg(target_arch = "x86_64")]
use super::rows_avx512;

/// Columns of a block: the bits of a word of the bitmask.
pub(crate) const BLOCK: usize = 64;

/// Share of the dense bytes up to which leaving zeros out is faster for a row of activations. Spreading values out takes as long as
/// reading about so many dense floats; what is gained are the bytes that are not read. Codes of 8 bits and fewer are read so
/// fast that dense ones always win.
pub(crate) const MOST_BYTES: f64 = 0.6;

/// Most rows of activations that pass a row of weights together.
pub(super) const ROWS: usize = 8;

/// Rows of weights in a task.
const RUN: usize = 64;

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
        let (mut next, mut columns) = (0, Vec::new());
        for row in 0..if cols == 0 { 0 } else { rows } {
            columns_of(row, &mut columns);
            starts.push(next);
            for col in columns.iter().map(|col| *col as usize) {
                masks[row * blocks + col / BLOCK] |= 1 << (col % BLOCK);
            }
            next += columns.len();
        }
        match &mut values {
            SparseValues::F32(v) => v.resize(next + SLACK, 0.0),
            SparseValues::F16(v) | SparseValues::Bf16(v) => v.resize(next + SLACK, 0),
            SparseValues::Int { codes, .. } => codes.resize(next + SLACK, 0),
        }
        Self { outputs: rows, cols, masks, starts, values }
    }

    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.outputs, self.cols]
    }

    /// The kept values, and more behind them.
    pub(crate) fn values(&self) -> &SparseValues {
        &self.values
    }

    /// Calls `of(column, index)` for every kept value of a row.
    pub(crate) fn each(&self, row: usize, mut of: impl FnMut(usize, usize)) {
        let mut next = self.starts.get(row).copied().unwrap_or(0);
        for (block, mask) in self.row_masks(row).iter().enumerate() {
            let mut left = *mask;
            while left != 0 {
                of(block * BLOCK + left.trailing_zeros() as usize, next);
                next += 1;
                left &= left - 1;
            }
        }
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
        self.masks.len() * 8 + self.starts.len() * 8 + values
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
pub(crate) fn product(
    isa: Isa,
    weight: &SparseRows,
    x: &[f32],
    batch: usize,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    let width = weight.blocks() * BLOCK;
    let padded = pad(x, batch, weight.cols, width);
    let x = padded.words::<f32>();
    for_each_row(weight, batch, epilogue, y, |row, first, sums| {
        let count = sums.len();
        let x = Rows { x: &x[first * width..(first + count) * width], count, width };
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(proof) => rows_avx512::float_row(proof, weight, row, &x, sums),
            _ => float_row(isa, weight, row, &x, sums),
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
    let task = |run: usize| {
        let rows = run * RUN..((run + 1) * RUN).min(weight.outputs);
        for first in (0..batch).step_by(ROWS) {
            for row in rows.clone() {
                let mut sums = [0f32; ROWS];
                let sums = &mut sums[..ROWS.min(batch - first)];
                if weight.cols > 0 {
                    work(row, first, sums);
                }
                // SAFETY: this task alone works on this column.
                let mut column = unsafe { output.columns(first..first + sums.len(), row..row + 1) };
                for (i, sum) in sums.iter().enumerate() {
                    column.row_mut(i)[0] = epilogue.apply(*sum, row);
                }
            }
        }
    };
    let runs = weight.outputs.div_ceil(RUN);
    if batch.saturating_mul(weight.outputs).saturating_mul(weight.cols) < parallel_min_work()
        || rayon::current_num_threads() == 1
    {
        (0..runs).for_each(task);
    } else {
        (0..runs).into_par_iter().for_each(task);
    }
}

/// Rows in whole blocks, each on cache lines of its own.
fn pad(x: &[f32], batch: usize, cols: usize, width: usize) -> Aligned {
    let mut padded = Aligned::zeroed(batch * width * size_of::<f32>());
    if cols > 0 {
        for (to, from) in padded.words_mut::<f32>().chunks_exact_mut(width).zip(x.chunks_exact(cols)) {
            to[..cols].copy_from_slice(from);
        }
    }
    padded
}

multiversion! {
    fn float_row(weight: &SparseRows, row: usize, x: &Rows<'_, f32>, sums: &mut [f32]) = float_row_body
}

/// The specification of a row of floats: lanes and chains of fused multiply-adds. Column `c` belongs to lane `c mod 16`, and
/// its sixteen columns belong to a chain; what is not kept counts as zero. Each group is scaled lane by lane, summed, and added.
#[inline(always)]
fn float_row_body(weight: &SparseRows, row: usize, x: &Rows<'_, f32>, sums: &mut [f32]) {
    match chains(x.count) {
        // numbers that the compiler knows
        4 => float_row_chains::<4>(weight, row, x, sums),
        2 => float_row_chains::<2>(weight, row, x, sums),
        _ => float_row_chains::<1>(weight, row, x, sums),
    }
}

#[inline(always)]
fn float_row_chains<const CHAINS: usize>(
    weight: &SparseRows,
    row: usize,
    x: &Rows<'_, f32>,
    sums: &mut [f32],
) {
    let mut next = weight.starts[row];
    let masks = weight.row_masks(row);
    let (group, scales) = match &weight.values {
        SparseValues::Int { scales, group, .. } => (*group, scales.as_slice()),
        _ => (weight.cols, &[][..]),
    };
    let groups = weight.cols.div_ceil(group);
    sums.fill(0.0);
    for index in 0..groups {
        let blocks = index * group / BLOCK..((index + 1) * group).min(weight.cols).div_ceil(BLOCK);
        let mut lanes = [[[0.0f32; LANES]; CHAINS]; ROWS];
        for block in blocks {
            for quarter in 0..BLOCK / LANES {
                let mut values = [0.0f32; LANES];
                for (lane, value) in values.iter_mut().enumerate() {
                    if masks[block] >> (quarter * LANES + lane) & 1 == 1 {
                        *value = weight.values.get(next);
                        next += 1;
                    }
                }
                let column = block * BLOCK + quarter * LANES;
                for (lanes, x) in lanes.iter_mut().zip(x.x.chunks_exact(x.width)).take(x.count) {
                    let lanes = &mut lanes[quarter % CHAINS];
                    for ((sum, x), value) in lanes.iter_mut().zip(&x[column..column + LANES]).zip(&values) {
                        *sum = x.mul_add(*value, *sum);
                    }
                }
            }
        }
        let scale = scales.get(row * groups + index).copied().unwrap_or(1.0);
        for (sum, chains) in sums.iter_mut().zip(&lanes) {
            let mut all = [0.0f32; LANES];
            for chain in chains {
                all.iter_mut().zip(chain).for_each(|(all, lane)| *all += lane);
            }
            *sum += sum_lanes(all.map(|lane| lane * scale));
        }
    }
}

impl SparseValues {
    /// A kept value, before scaling.
    #[inline(always)]
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(v) => v[index],
            Self::F16(v) => half::f16::from_bits(v[index]).to_f32(),
            Self::Bf16(v) => half::bf16::from_bits(v[index]).to_f32(),
            Self::Int { codes, .. } => f32::from(codes[index]),
        }
    }
}
