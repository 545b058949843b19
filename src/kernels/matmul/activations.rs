//! Activations, rearranged for one product: rows in tiles, columns in the blocks and groups of the weight's panels.

use rayon::prelude::*;

use super::panels::{BLOCK, Columns};
use crate::kernels::PARALLEL_MIN;
use crate::kernels::level::{Isa, multiversion};
use crate::kernels::spare::Spare;

/// Most rows in a tile: with two registers of outputs each, their sums fill 24 of the 32 AVX-512 registers.
pub(in crate::kernels) const TILE: usize = 12;

/// Rows of activations that a kernel works on together.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct Tile {
    /// First row.
    pub(in crate::kernels) row: usize,
    /// Number of rows, 1 to [`TILE`].
    pub(in crate::kernels) rows: usize,
}

/// Cuts `batch` rows into as few tiles as possible: full ones, because the processor foresees what comes as it came before, and
/// at the end two of nearly equal size, because one of few rows would be slow.
pub(in crate::kernels) fn tiles(batch: usize) -> impl ExactSizeIterator<Item = Tile> + Clone {
    let count = batch.div_ceil(TILE);
    let full = if batch.is_multiple_of(TILE) { count } else { count.saturating_sub(2) };
    let (begin, last) = (full * TILE, count - full);
    (0..count).map(move |i| {
        if i < full {
            return Tile { row: i * TILE, rows: TILE };
        }
        let edge = |i: usize| begin + (i - full) * (batch - begin) / last;
        Tile { row: edge(i), rows: edge(i + 1) - edge(i) }
    })
}

/// How `f32` activations become 8-bit codes on the way into a product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActivationCodes {
    /// Every row has its own scale, its largest magnitude / 127, and no zero point.
    PerToken,
    /// Every row has its own scale, `(max − min) / 255`, and a zero point.
    PerTokenAsymmetric,
    /// One scale and zero point for all, from calibration: `value = (code − zero_point) · scale`. What lies outside the
    /// codes' range is clamped.
    Static {
        /// Step between neighbouring codes; positive.
        scale: f32,
        /// The code of 0.
        zero_point: i8,
    },
}

impl ActivationCodes {
    /// Whether zero points can differ from 0.
    pub(crate) fn has_zero_points(self) -> bool {
        match self {
            Self::PerToken => false,
            Self::PerTokenAsymmetric => true,
            Self::Static { zero_point, .. } => zero_point != 0,
        }
    }
}

/// Quantized activations.
pub(super) struct IntTiles {
    blocks: usize,
    groups: usize,
    /// `[tile][block][row][8 columns]` signed codes.
    codes: Spare,
    /// `−zero · Σ (code − zero_point)`, `[tile][group][row]`.
    starts: Vec<i32>,
    /// One per row.
    pub(super) scales: Vec<f32>,
    /// One per row; empty if all are zero.
    pub(super) zero_points: Vec<i32>,
}

impl IntTiles {
    /// Quantizes the rows of `x`. A row with a NaN or infinity gets a scale of NaN, and so a product of NaN.
    ///
    /// `zero` is the zero point that all codes of the weight share; 1 if they do not share one.
    ///
    /// # Shapes
    /// `x` is `[batch, columns.cols()]`.
    pub(super) fn new(
        isa: Isa,
        x: &[f32],
        batch: usize,
        columns: Columns,
        zero: i32,
        how: ActivationCodes,
    ) -> Self {
        let (cols, blocks, groups) = (columns.cols(), columns.blocks(), columns.groups());
        let mut codes = Spare::of::<i8>(batch * blocks * BLOCK);
        if columns.has_padding() {
            codes.bytes_mut().fill(0);
        }
        let mut starts = vec![0i32; batch * groups];
        let mut scales = vec![0f32; batch];
        let mut zero_points = vec![0i32; batch];
        let mut parts = Vec::with_capacity(batch.div_ceil(TILE));
        {
            let (mut codes, mut starts) = (codes.words_mut::<i64>(), starts.as_mut_slice());
            let (mut scales, mut zero_points) = (scales.as_mut_slice(), zero_points.as_mut_slice());
            for tile in tiles(batch) {
                let part;
                (part, codes) = codes.split_at_mut(tile.rows * blocks);
                let of_starts;
                (of_starts, starts) = starts.split_at_mut(tile.rows * groups);
                let of_scales;
                (of_scales, scales) = scales.split_at_mut(tile.rows);
                let of_zeros;
                (of_zeros, zero_points) = zero_points.split_at_mut(tile.rows);
                parts.push((tile, part, of_starts, of_scales, of_zeros));
            }
        }
        let fill = |row: &mut Vec<i8>, (tile, codes, starts, scales, zeros): Part<'_>| {
            row.resize(cols, 0);
            for r in 0..tile.rows {
                let x = &x[(tile.row + r) * cols..][..cols];
                let (scale, zero_point) = quantize(isa, x, how, row);
                (scales[r], zeros[r]) = (scale, zero_point);
                for (g, group) in columns.iter().enumerate() {
                    let codes_of_group = &row[group.column..group.column + group.len];
                    let sum = sum_codes(isa, codes_of_group) - group.len as i32 * zero_point;
                    starts[g * tile.rows + r] = -zero * sum;
                    let words = &mut codes[group.block * tile.rows..];
                    place_row(codes_of_group, r, tile.rows, words);
                }
            }
        };
        if batch * cols < PARALLEL_MIN || parts.len() < 2 {
            let mut row = Vec::new();
            for part in parts {
                fill(&mut row, part);
            }
        } else {
            parts.into_par_iter().for_each_init(Vec::new, fill);
        }
        if !how.has_zero_points() {
            zero_points.clear();
        }
        Self { blocks, groups, codes, starts, scales, zero_points }
    }

    /// Codes of some blocks of a tile, four in a word.
    pub(super) fn codes(&self, tile: Tile, block: usize, blocks: usize) -> &[i32] {
        let start = (tile.row * self.blocks + block * tile.rows) * 2;
        &self.codes.words()[start..start + blocks * tile.rows * 2]
    }

    /// `−zero · Σ (code − zero_point)` from a group on, `[group][row]`.
    pub(super) fn starts(&self, tile: Tile, group: usize) -> &[i32] {
        let end = (tile.row + tile.rows) * self.groups;
        &self.starts[tile.row * self.groups + group * tile.rows..end]
    }
}

type Part<'a> = (Tile, &'a mut [i64], &'a mut [i32], &'a mut [f32], &'a mut [i32]);

/// Quantizes a row; gives its scale and zero point.
pub(super) fn quantize(isa: Isa, x: &[f32], how: ActivationCodes, codes: &mut [i8]) -> (f32, i32) {
    if let ActivationCodes::Static { scale, zero_point } = how {
        let mark = quantize_marked(isa, x, 1.0 / scale, i32::from(zero_point), codes);
        return (if mark.is_nan() { f32::NAN } else { scale }, i32::from(zero_point));
    }
    let (scale, zero_point) = parameters(isa, x, how == ActivationCodes::PerToken);
    quantize_row(isa, x, 1.0 / scale, zero_point, codes);
    (scale, zero_point)
}

/// Scale and zero point of a row.
fn parameters(isa: Isa, x: &[f32], symmetric: bool) -> (f32, i32) {
    let (min, max, mark) = range(isa, x);
    if mark.is_nan() {
        return (f32::NAN, 0);
    }
    let (min, max) = (min.min(0.0), max.max(0.0));
    // halved, because the difference of two finite values can be infinite
    let scale = if symmetric { max.max(-min) / 127.0 } else { (max / 2.0 - min / 2.0) / 127.5 };
    // all zero, or so small that the scale vanishes: then every code is 0
    if scale == 0.0 {
        return (1.0, 0);
    }
    let zero_point = if symmetric { 0 } else { (-128.0 - min / scale).round_ties_even() as i32 };
    (scale, zero_point.clamp(-128, 127))
}

multiversion! {
    /// Smallest and largest value, and NaN if one is not finite (0 otherwise).
    fn range(x: &[f32]) -> (f32, f32, f32) = range_body
}

multiversion! {
    fn quantize_row(x: &[f32], inverse: f32, zero_point: i32, codes: &mut [i8]) = quantize_row_body
}

multiversion! {
    /// Gives NaN if a value is not finite, 0 otherwise.
    fn quantize_marked(x: &[f32], inverse: f32, zero_point: i32, codes: &mut [i8]) -> f32 = quantize_marked_body
}

multiversion! {
    fn sum_codes(codes: &[i8]) -> i32 = sum_codes_body
}

const LANES: usize = 32;

#[inline(always)]
fn range_body(x: &[f32]) -> (f32, f32, f32) {
    let (mut low, mut high, mut mark) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], [0f32; LANES]);
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let x = chunk[lane];
            low[lane] = if x < low[lane] { x } else { low[lane] };
            high[lane] = if x > high[lane] { x } else { high[lane] };
            // 0 · x is NaN exactly for NaN and infinity
            mark[lane] += 0.0 * x;
        }
    }
    let low = low.iter().chain(tail).fold(f32::INFINITY, |a, x| a.min(*x));
    let high = high.iter().chain(tail).fold(f32::NEG_INFINITY, |a, x| a.max(*x));
    let mark = mark.iter().sum::<f32>() + tail.iter().map(|x| 0.0 * x).sum::<f32>();
    (low, high, mark)
}

#[inline(always)]
fn quantize_row_body(x: &[f32], inverse: f32, zero_point: i32, codes: &mut [i8]) {
    let zero_point = zero_point as f32;
    for (code, x) in codes.iter_mut().zip(x) {
        *code = code_of(*x, inverse, zero_point);
    }
}

#[inline(always)]
fn code_of(x: f32, inverse: f32, zero_point: f32) -> i8 {
    // 1.5 · 2^23 leaves no bits for a fraction: the sum is rounded half to even, its lowest bits are the integer
    const ROUND: f32 = 12_582_912.0;
    ((x * inverse + zero_point).clamp(-128.0, 127.0) + ROUND).to_bits() as i8
}

#[inline(always)]
fn quantize_marked_body(x: &[f32], inverse: f32, zero_point: i32, codes: &mut [i8]) -> f32 {
    let zero_point = zero_point as f32;
    let mut mark = [0f32; LANES];
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (codes, codes_tail) = codes.as_chunks_mut::<LANES>();
    for (codes, x) in codes.iter_mut().zip(x) {
        for lane in 0..LANES {
            codes[lane] = code_of(x[lane], inverse, zero_point);
            // 0 · x is NaN exactly for NaN and infinity
            mark[lane] += 0.0 * x[lane];
        }
    }
    for ((code, x), mark) in codes_tail.iter_mut().zip(x_tail).zip(&mut mark) {
        *code = code_of(*x, inverse, zero_point);
        *mark += 0.0 * x;
    }
    mark.iter().sum()
}

#[inline(always)]
fn sum_codes_body(codes: &[i8]) -> i32 {
    codes.iter().map(|c| i32::from(*c)).sum()
}

/// Writes one row's codes of a group, eight to a word, where a tile of `rows` rows has them.
fn place_row(codes: &[i8], row: usize, rows: usize, words: &mut [i64]) {
    let word = |codes: [i8; BLOCK]| i64::from_le_bytes(codes.map(|code| code as u8));
    let (whole, rest) = codes.as_chunks::<BLOCK>();
    let mut places = words[row..].iter_mut().step_by(rows);
    for (codes, place) in whole.iter().zip(&mut places) {
        *place = word(*codes);
    }
    if let (false, Some(place)) = (rest.is_empty(), places.next()) {
        let mut last = [0; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        *place = word(last);
    }
}

/// Float activations.
pub(super) struct FloatTiles {
    blocks: usize,
    /// `[tile][block][8 columns][row]`.
    values: Spare,
}

impl FloatTiles {
    /// # Shapes
    /// `x` is `[batch, columns.cols()]`.
    pub(super) fn new(x: &[f32], batch: usize, columns: Columns) -> Self {
        let (cols, blocks) = (columns.cols(), columns.blocks());
        let mut values = Spare::of::<f32>(batch * blocks * BLOCK);
        if columns.has_padding() {
            values.words_mut::<f32>().fill(0.0);
        }
        let mut parts = Vec::with_capacity(batch.div_ceil(TILE));
        let mut rest = values.words_mut::<f32>();
        for tile in tiles(batch) {
            let part;
            (part, rest) = rest.split_at_mut(tile.rows * blocks * BLOCK);
            parts.push((tile, part));
        }
        let fill = |(tile, values): (Tile, &mut [f32])| {
            for group in columns.iter() {
                let values = &mut values[group.block * BLOCK * tile.rows..];
                for r in 0..tile.rows {
                    let x = &x[(tile.row + r) * cols + group.column..][..group.len];
                    if tile.rows == 1 {
                        values[..group.len].copy_from_slice(x);
                    } else {
                        for (to, x) in values[r..].iter_mut().step_by(tile.rows).zip(x) {
                            *to = *x;
                        }
                    }
                }
            }
        };
        if batch * cols < PARALLEL_MIN || parts.len() < 2 {
            for part in parts {
                fill(part);
            }
        } else {
            parts.into_par_iter().for_each(fill);
        }
        Self { blocks, values }
    }

    /// Values of some blocks of a tile, `[column][row]`.
    pub(super) fn values(&self, tile: Tile, block: usize, blocks: usize) -> &[f32] {
        let start = (tile.row * self.blocks + block * tile.rows) * BLOCK;
        &self.values.words()[start..start + blocks * tile.rows * BLOCK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once() {
        for batch in 0..200 {
            let mut next = 0;
            assert_eq!(tiles(batch).len(), batch.div_ceil(TILE));
            for tile in tiles(batch) {
                assert_eq!(tile.row, next);
                let least = if batch < TILE { batch } else { TILE / 2 };
                assert!((least..=TILE).contains(&tile.rows));
                next += tile.rows;
            }
            assert_eq!(next, batch);
        }
    }
}
