//! Products of 8-bit activations with sparse integer weights.
//!
//! Rows come in slices of 16, one to each 32-bit lane, and each lane takes four kept codes a step. What a step needs of the
//! activations is picked from registers by byte, so that the work is proportional to what is kept.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::level::Isa;
use crate::kernels::matmul::activations::{ActivationCodes, quantize};
use crate::kernels::matmul::output::Output;
use crate::kernels::matmul::panels::{Aligned, exact_group};
use crate::kernels::matmul::product::Epilogue;
use crate::kernels::matmul::schedule::parallel_min_work;

#[cfg(target_arch = "x86_64")]
use super::slices_avx512;

/// Rows of a slice.
pub(super) const LANES: usize = 16;

/// Codes of a step: four for every row.
pub(super) const STEP: usize = LANES * 4;

/// Columns whose number within their window fits a byte.
const WINDOW: usize = 256;

/// Columns of two groups of a 2:4 row, of which a step takes all that is kept; four steps share a word of positions.
const PAIR: usize = 8;

/// Most rows of activations that pass a slice together.
pub(super) const ROWS: usize = 4;

/// Slices in a task.
const RUN: usize = 4;

/// Most rows of activations for which leaving zeros out is faster, by the share of weights that are kept; 0 if it never is.
///
/// One row reads the weight once: a kept code takes two bytes and, since the 16 rows of a slice go on together, 1.4 places at
/// 10 % and 1.2 at 30 %, where a dense one takes one byte; of 2:4 codes, five take the bytes of eight. Of many rows each takes a
/// step for every four kept codes of a row, which takes three times as long as a step of dense ones, for 2:4 half as long again. Few
/// columns do not make up for what is done once for a slice.
pub(crate) fn sparse_batch(two_of_four: bool, kept: f64, cols: usize) -> usize {
    match kept {
        _ if cols < 1024 => usize::from(two_of_four || kept <= 0.3),
        _ if two_of_four => 4,
        _ if kept <= 0.12 => usize::MAX,
        _ if kept <= 0.3 => 4,
        _ => 0,
    }
}

/// How columns are named.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Columns {
    /// Any: a step is 64 numbers within a window of so many columns, and 64 codes. `steps[slice · windows + window]` is
    /// the first step of a window, and the last element the number of all.
    Window { columns: usize, steps: Vec<u32> },
    /// 2:4: four steps are 16 words of positions (bits `2t` of byte `i`: position of code `i` of step `t`), and then the
    /// 64 codes of each.
    TwoOfFour,
}

/// A sparse weight of integer codes without zero points.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Slices {
    outputs: usize,
    cols: usize,
    /// Columns under one scale: whole windows, or all columns.
    group: usize,
    columns: Columns,
    /// Steps of all slices.
    data: Aligned,
    /// `[slice][group][16]`.
    scales: Vec<f32>,
    /// Sums of codes, `[slice][group][16]`.
    code_sums: Vec<i32>,
}

/// A row's kept columns, ascending, and their codes.
pub(crate) type RowOfCodes<'a> = &'a dyn Fn(usize, &mut Vec<(u32, i8)>);

impl Slices {
    /// Groups are a multiple of this many columns, or there is one.
    pub(crate) const GROUP: usize = 64;

    /// `scale(row, column)` gives the scales. `two_of_four` says that no four neighbours from a multiple of four on keep more
    /// than two.
    pub(crate) fn new(
        outputs: usize,
        cols: usize,
        group: usize,
        two_of_four: bool,
        row: RowOfCodes<'_>,
        scale: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let group = exact_group(group, cols, Self::GROUP);
        let groups = cols.div_ceil(group);
        let slices = outputs.div_ceil(LANES);
        let mut scales = vec![0f32; slices * groups * LANES];
        let mut code_sums = vec![0i32; slices * groups * LANES];
        let window =
            [WINDOW, 128, 64].into_iter().find(|w| groups <= 1 || group.is_multiple_of(*w)).unwrap_or(64);
        let mut data = Vec::new();
        let mut steps = vec![0u32];
        let mut rows: [Vec<(u32, i8)>; LANES] = Default::default();
        for slice in 0..if cols == 0 { 0 } else { slices } {
            for (lane, kept) in rows.iter_mut().enumerate() {
                kept.clear();
                let output = slice * LANES + lane;
                if output < outputs {
                    row(output, kept);
                    for index in 0..groups {
                        scales[(slice * groups + index) * LANES + lane] = scale(output, index * group);
                    }
                }
                for (col, code) in kept.iter() {
                    let index = *col as usize / group;
                    code_sums[(slice * groups + index) * LANES + lane] += i32::from(*code);
                }
            }
            if two_of_four {
                two_of_four_slice(&rows, cols, &mut data);
            } else {
                for first in (0..cols).step_by(window) {
                    window_slice(&rows, first..first + window, &mut data);
                    steps.push((data.len() / (2 * STEP)) as u32);
                }
            }
        }
        let mut aligned = Aligned::kept(data.len());
        aligned.bytes_mut().copy_from_slice(&data);
        let columns =
            if two_of_four { Columns::TwoOfFour } else { Columns::Window { columns: window, steps } };
        Self { outputs, cols, group, columns, data: aligned, scales, code_sums }
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let steps = match &self.columns {
            Columns::Window { steps, .. } => steps.len() * 4,
            Columns::TwoOfFour => 0,
        };
        self.data.bytes().len() + steps + 4 * (self.scales.len() + self.code_sums.len())
    }

    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.outputs, self.cols]
    }

    /// Columns under one scale.
    pub(crate) fn group(&self) -> usize {
        self.group
    }

    /// The scale of a row's group.
    pub(crate) fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales[(row / LANES * self.cols.div_ceil(self.group) + group) * LANES + row % LANES]
    }

    /// Calls `of(column, code)` for every code of a row that is not zero.
    pub(crate) fn each(&self, row: usize, mut of: impl FnMut(usize, i8)) {
        let (slice, lane) = (row / LANES, row % LANES * 4);
        let data = self.data.bytes();
        match &self.columns {
            Columns::Window { columns, steps } => {
                let windows = self.cols.div_ceil(*columns);
                for window in 0..windows {
                    let ends = &steps[slice * windows + window..];
                    let steps = &data[ends[0] as usize * 2 * STEP..ends[1] as usize * 2 * STEP];
                    for step in steps.chunks_exact(2 * STEP) {
                        for i in lane..lane + 4 {
                            // what fills a step is a code of zero
                            if step[STEP + i] != 0 {
                                of(window * columns + usize::from(step[i]), step[STEP + i] as i8);
                            }
                        }
                    }
                }
            }
            Columns::TwoOfFour => {
                let quads = self.cols.div_ceil(4 * PAIR);
                let of_slice = data.chunks_exact(5 * STEP).skip(slice * quads).take(quads);
                for (quad, data) in of_slice.enumerate() {
                    let (positions, codes) = data.split_at(STEP);
                    for (step, codes) in codes.chunks_exact(STEP).enumerate() {
                        for i in (lane..lane + 4).filter(|i| codes[*i] != 0) {
                            let position = usize::from(positions[i] >> (2 * step) & 3) + i % 4 / 2 * 4;
                            of(quad * 4 * PAIR + step * PAIR + position, codes[i] as i8);
                        }
                    }
                }
            }
        }
    }

    /// Columns to which activations are padded: whole windows.
    fn width(&self) -> usize {
        match &self.columns {
            Columns::Window { columns, .. } => self.cols.div_ceil(*columns) * columns,
            Columns::TwoOfFour => self.cols.div_ceil(4 * PAIR) * 4 * PAIR,
        }
    }
}

/// The codes that 16 rows keep in a window, four a step, and their numbers in it.
fn window_slice(rows: &[Vec<(u32, i8)>; LANES], window: Range<usize>, data: &mut Vec<u8>) {
    let of_window = |row: &[(u32, i8)]| {
        let from = row.partition_point(|(col, _)| (*col as usize) < window.start);
        let to = row.partition_point(|(col, _)| (*col as usize) < window.end);
        from..to
    };
    let steps = rows.iter().map(|row| of_window(row).len().div_ceil(4)).max().unwrap_or(0);
    let start = data.len();
    data.resize(start + steps * 2 * STEP, 0);
    for (lane, row) in rows.iter().enumerate() {
        for (i, (col, code)) in row[of_window(row)].iter().enumerate() {
            let at = start + i / 4 * 2 * STEP + lane * 4 + i % 4;
            data[at] = (*col as usize - window.start) as u8;
            data[at + STEP] = *code as u8;
        }
    }
}

/// The codes that 16 rows keep of two in four columns.
fn two_of_four_slice(rows: &[Vec<(u32, i8)>; LANES], cols: usize, data: &mut Vec<u8>) {
    const QUAD: usize = STEP + 4 * STEP;
    let start = data.len();
    data.resize(start + cols.div_ceil(4 * PAIR) * QUAD, 0);
    for (lane, row) in rows.iter().enumerate() {
        let (mut four, mut place) = (usize::MAX, 0);
        for (col, code) in row {
            let col = *col as usize;
            place = if col / 4 == four { place + 1 } else { 0 };
            four = col / 4;
            debug_assert!(place < 2);
            // of the step's four codes, two belong to each four columns
            let (quad, step, i) = (col / (4 * PAIR), col / PAIR % 4, four % 2 * 2 + place);
            let at = start + quad * QUAD + lane * 4 + i;
            data[at] |= ((col % 4) as u8) << (2 * step);
            data[at + STEP + step * STEP] = *code as u8;
        }
    }
}

/// `y = x · Wᵀ` with `x` quantized on the way; the same bits at every level.
///
/// # Shapes
/// `x` is `[batch, cols]`, `y` is `[batch, rows]`.
pub(crate) fn product(
    isa: Isa,
    weight: &Slices,
    x: &[f32],
    batch: usize,
    how: ActivationCodes,
    epilogue: Epilogue<'_>,
    y: &mut [f32],
) {
    let (cols, width) = (weight.cols, weight.width());
    let groups = cols.div_ceil(weight.group);
    // codes + 128, so that they are not negative; nothing is kept beyond the last column
    let mut codes = Aligned::zeroed(batch * width);
    let mut parameters = vec![(0f32, 0i32); batch];
    let quantize_row = |(row, (codes, found)): (usize, (&mut [u8], &mut (f32, i32)))| {
        let mut signed = vec![0i8; cols];
        *found = quantize(isa, &x[row * cols..(row + 1) * cols], how, &mut signed);
        for (to, code) in codes.iter_mut().zip(signed) {
            *to = code as u8 ^ 0x80;
        }
    };
    if cols > 0 {
        codes
            .bytes_mut()
            .par_chunks_mut(width)
            .zip(&mut parameters)
            .enumerate()
            .with_min_len(8)
            .for_each(quantize_row);
    }
    let codes = codes.bytes();
    let output = Output::new(y, batch, weight.outputs);
    let task = |run: usize| {
        for first in (0..batch).step_by(ROWS) {
            let count = ROWS.min(batch - first);
            let x = &codes[first * width..(first + count) * width];
            for slice in run * RUN..((run + 1) * RUN).min(weight.outputs.div_ceil(LANES)) {
                let mut sums = [[0f32; LANES]; ROWS];
                for group in 0..groups {
                    let columns = group * weight.group..((group + 1) * weight.group).min(cols);
                    let mut exact = [[0i32; LANES]; ROWS];
                    let exact = &mut exact[..count];
                    weight.run(isa, slice, columns, x, width, exact);
                    let at = (slice * groups + group) * LANES;
                    let (scales, code_sums) =
                        (&weight.scales[at..at + LANES], &weight.code_sums[at..at + LANES]);
                    for ((sums, exact), (_, zero)) in sums.iter_mut().zip(exact).zip(&parameters[first..]) {
                        for lane in 0..LANES {
                            let exact = exact[lane].wrapping_sub(code_sums[lane].wrapping_mul(128 + zero));
                            sums[lane] += exact as f32 * scales[lane];
                        }
                    }
                }
                let outputs = slice * LANES..((slice + 1) * LANES).min(weight.outputs);
                // SAFETY: this task alone works on these columns.
                let mut place = unsafe { output.columns(first..first + count, outputs.clone()) };
                for (i, (sums, (scale, _))) in sums.iter().zip(&parameters[first..first + count]).enumerate()
                {
                    for ((y, sum), output) in place.row_mut(i).iter_mut().zip(sums).zip(outputs.clone()) {
                        *y = epilogue.apply(if cols == 0 { 0.0 } else { sum * scale }, output);
                    }
                }
            }
        }
    };
    let runs = weight.outputs.div_ceil(LANES * RUN);
    if batch.saturating_mul(weight.outputs).saturating_mul(cols) < parallel_min_work()
        || rayon::current_num_threads() == 1
    {
        (0..runs).for_each(task);
    } else {
        (0..runs).into_par_iter().for_each(task);
    }
}

impl Slices {
    /// Exact sums of a slice over a group's columns, for each row of activations.
    fn run(
        &self,
        isa: Isa,
        slice: usize,
        group: Range<usize>,
        x: &[u8],
        width: usize,
        sums: &mut [[i32; LANES]],
    ) {
        match &self.columns {
            Columns::Window { columns, steps } => {
                let windows = self.cols.div_ceil(*columns);
                let range = group.start / columns..group.end.div_ceil(*columns);
                let steps = &steps[slice * windows + range.start..=slice * windows + range.end];
                let x = &x[range.start * columns..];
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(proof) if slices_avx512::can_pick(proof) => {
                        slices_avx512::windows(proof, steps, self.data.bytes(), x, *columns, width, sums);
                    }
                    _ => {
                        for (window, ends) in steps.windows(2).enumerate() {
                            let (from, to) = (ends[0] as usize * 2 * STEP, ends[1] as usize * 2 * STEP);
                            window_steps(&self.data.bytes()[from..to], &x[window * columns..], width, sums);
                        }
                    }
                }
            }
            Columns::TwoOfFour => {
                let (quad, bytes) = (4 * PAIR, 5 * STEP);
                let quads = self.cols.div_ceil(quad);
                let range = group.start / quad..group.end.div_ceil(quad);
                let data = &self.data.bytes()
                    [(slice * quads + range.start) * bytes..(slice * quads + range.end) * bytes];
                let x = &x[range.start * quad..];
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512(proof) => slices_avx512::two_of_four(proof, data, x, width, sums),
                    _ => two_of_four_steps(data, x, width, sums),
                }
            }
        }
    }
}

/// The specification of a window's steps.
fn window_steps(data: &[u8], x: &[u8], width: usize, sums: &mut [[i32; LANES]]) {
    for step in data.chunks_exact(2 * STEP) {
        let (numbers, codes) = step.split_at(STEP);
        for (row, sums) in sums.iter_mut().enumerate() {
            for (i, (number, code)) in numbers.iter().zip(codes).enumerate() {
                sums[i / 4] += i32::from(x[row * width + usize::from(*number)]) * i32::from(*code as i8);
            }
        }
    }
}

/// The specification of 2:4 steps.
fn two_of_four_steps(data: &[u8], x: &[u8], width: usize, sums: &mut [[i32; LANES]]) {
    for (quad, data) in data.chunks_exact(5 * STEP).enumerate() {
        let (positions, codes) = data.split_at(STEP);
        for (step, codes) in codes.chunks_exact(STEP).enumerate() {
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = &x[row * width + quad * 4 * PAIR + step * PAIR..][..PAIR];
                for (i, (position, code)) in positions.iter().zip(codes).enumerate() {
                    let col = usize::from(position >> (2 * step) & 3) + i % 4 / 2 * 4;
                    sums[i / 4] += i32::from(x[col]) * i32::from(*code as i8);
                }
            }
        }
    }
}
