//! A tile in four parts of six rows of two registers: twelve sums, which hide the latency of what is added to them.

use std::arch::x86_64::{
    _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::{PANEL, TILE, Tile};
use crate::kernels::level::Avx2;

/// Rows of a part.
const ROWS: usize = TILE / 2;

/// Columns of a part.
const COLUMNS: usize = PANEL / 2;

pub(super) fn add_product(_: Avx2, a: &[f32], b: &[f32], tile: &mut Tile) {
    #[target_feature(enable = "avx2,fma")]
    fn body(a: &[f32], b: &[f32], tile: &mut Tile) {
        for column in [0, COLUMNS] {
            for first in [0, ROWS] {
                let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
                for (a, b) in a.as_chunks::<TILE>().0.iter().zip(b.as_chunks::<PANEL>().0) {
                    // SAFETY: sixteen values lie there.
                    let [left, right] = unsafe {
                        let from = b.as_ptr().add(column);
                        [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]
                    };
                    for row in 0..ROWS {
                        let factor = _mm256_set1_ps(a[first + row]);
                        sums[row] = [
                            _mm256_fmadd_ps(factor, left, sums[row][0]),
                            _mm256_fmadd_ps(factor, right, sums[row][1]),
                        ];
                    }
                }
                for (row, sums) in sums.iter().enumerate() {
                    // SAFETY: sixteen values lie there.
                    unsafe {
                        let left = tile.as_mut_ptr().add((first + row) * PANEL + column);
                        let right = left.add(8);
                        _mm256_storeu_ps(left, _mm256_add_ps(_mm256_loadu_ps(left), sums[0]));
                        _mm256_storeu_ps(right, _mm256_add_ps(_mm256_loadu_ps(right), sums[1]));
                    }
                }
            }
        }
    }
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(a, b, tile) }
}

/// Written out, because the compiler would rather go along the rows, with gathers and scatters.
pub(super) fn add_outer(_: Avx2, factors: &[f32], x: &[f32; PANEL], rows: &mut [f32]) {
    #[target_feature(enable = "avx2,fma")]
    fn body(factors: &[f32], x: &[f32; PANEL], rows: &mut [f32]) {
        // SAFETY: 32 values lie there.
        let x = unsafe { [0, 8, 16, 24].map(|at| _mm256_loadu_ps(x.as_ptr().add(at))) };
        for (factor, row) in factors.iter().zip(rows.as_chunks_mut::<PANEL>().0) {
            let factor = _mm256_set1_ps(*factor);
            for (eight, x) in row.as_chunks_mut::<8>().0.iter_mut().zip(x) {
                // SAFETY: eight values lie there.
                unsafe {
                    let to = eight.as_mut_ptr();
                    _mm256_storeu_ps(to, _mm256_fmadd_ps(factor, x, _mm256_loadu_ps(to)));
                }
            }
        }
    }
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(factors, x, rows) }
}

/// Tiles of six rows of two registers, as above, but on top of what is there.
pub(super) fn add_outers(proof: Avx2, factors: &[&[f32]], x: &[[f32; PANEL]], rows: &mut [f32]) {
    #[target_feature(enable = "avx2,fma")]
    fn body(factors: &[&[f32]], x: &[[f32; PANEL]], tiles: &mut [[f32; ROWS * PANEL]]) {
        for (number, tile) in tiles.iter_mut().enumerate() {
            for column in [0, COLUMNS] {
                // SAFETY: sixteen values lie there.
                let mut sums: [_; ROWS] = std::array::from_fn(|row| unsafe {
                    let from = tile.as_ptr().add(row * PANEL + column);
                    [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]
                });
                for (factors, x) in factors.iter().zip(x) {
                    let Some(factors) = factors[number * ROWS..].first_chunk::<ROWS>() else { return };
                    // SAFETY: sixteen values lie there.
                    let [left, right] = unsafe {
                        let from = x.as_ptr().add(column);
                        [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]
                    };
                    for row in 0..ROWS {
                        let factor = _mm256_set1_ps(factors[row]);
                        sums[row] = [
                            _mm256_fmadd_ps(factor, left, sums[row][0]),
                            _mm256_fmadd_ps(factor, right, sums[row][1]),
                        ];
                    }
                }
                for (row, sums) in sums.iter().enumerate() {
                    // SAFETY: sixteen values lie there.
                    unsafe {
                        let to = tile.as_mut_ptr().add(row * PANEL + column);
                        _mm256_storeu_ps(to, sums[0]);
                        _mm256_storeu_ps(to.add(8), sums[1]);
                    }
                }
            }
        }
    }
    let (tiles, rest) = rows.as_chunks_mut();
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(factors, x, tiles) }
    for (factors, x) in factors.iter().zip(x) {
        add_outer(proof, &factors[tiles.len() * ROWS..], x, rest);
    }
}
