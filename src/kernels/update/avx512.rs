//! A tile of twelve rows of two registers: 24 sums, which hide the latency of what is added to them.

use std::arch::x86_64::{
    _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{PANEL, TILE, Tile};
use crate::kernels::level::Avx512;

pub(super) fn add_product(_: Avx512, a: &[f32], b: &[f32], tile: &mut Tile) {
    #[target_feature(enable = "avx512f")]
    fn body(a: &[f32], b: &[f32], tile: &mut Tile) {
        // named one by one: an array of registers would live in memory
        macro_rules! rows {
            ($($row:literal: $low:ident $high:ident),*) => {
                $(let (mut $low, mut $high) = (_mm512_setzero_ps(), _mm512_setzero_ps());)*
                for (a, b) in a.as_chunks::<TILE>().0.iter().zip(b.as_chunks::<PANEL>().0) {
                    // SAFETY: 32 values lie there.
                    let (left, right) = unsafe { (_mm512_loadu_ps(b.as_ptr()), _mm512_loadu_ps(b.as_ptr().add(16))) };
                    $(
                        let factor = _mm512_set1_ps(a[$row]);
                        $low = _mm512_fmadd_ps(factor, left, $low);
                        $high = _mm512_fmadd_ps(factor, right, $high);
                    )*
                }
                $(
                    let to = &mut tile[$row * PANEL..($row + 1) * PANEL];
                    // SAFETY: 32 values lie there.
                    unsafe {
                        let [left, right] = [to.as_mut_ptr(), to.as_mut_ptr().add(16)];
                        _mm512_storeu_ps(left, _mm512_add_ps(_mm512_loadu_ps(left), $low));
                        _mm512_storeu_ps(right, _mm512_add_ps(_mm512_loadu_ps(right), $high));
                    }
                )*
            };
        }
        rows!(0: a0 b0, 1: a1 b1, 2: a2 b2, 3: a3 b3, 4: a4 b4, 5: a5 b5, 6: a6 b6, 7: a7 b7, 8: a8 b8, 9: a9 b9, 10: a10 b10,
              11: a11 b11);
    }
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(a, b, tile) }
}

/// Written out, because the compiler would rather go along the rows, with gathers and scatters.
pub(super) fn add_outer(_: Avx512, factors: &[f32], x: &[f32; PANEL], rows: &mut [f32]) {
    #[target_feature(enable = "avx512f")]
    fn body(factors: &[f32], x: &[f32; PANEL], rows: &mut [f32]) {
        // SAFETY: 32 values lie there.
        let (left, right) = unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))) };
        for (factor, row) in factors.iter().zip(rows.as_chunks_mut::<PANEL>().0) {
            let factor = _mm512_set1_ps(*factor);
            // SAFETY: 32 values lie there.
            unsafe {
                let [low, high] = [row.as_mut_ptr(), row.as_mut_ptr().add(16)];
                _mm512_storeu_ps(low, _mm512_fmadd_ps(factor, left, _mm512_loadu_ps(low)));
                _mm512_storeu_ps(high, _mm512_fmadd_ps(factor, right, _mm512_loadu_ps(high)));
            }
        }
    }
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(factors, x, rows) }
}

/// Tiles of twelve rows of two registers, as above, but on top of what is there.
pub(super) fn add_outers(proof: Avx512, factors: &[&[f32]], x: &[[f32; PANEL]], rows: &mut [f32]) {
    #[target_feature(enable = "avx512f")]
    fn body(factors: &[&[f32]], x: &[[f32; PANEL]], tiles: &mut [[f32; TILE * PANEL]]) {
        macro_rules! rows {
            ($number:ident, $tile:ident, $($row:literal: $low:ident $high:ident),*) => {
                $(
                    // SAFETY: 32 values lie there.
                    let (mut $low, mut $high) = unsafe {
                        let from = $tile.as_ptr().add($row * PANEL);
                        (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)))
                    };
                )*
                for (factors, x) in factors.iter().zip(x) {
                    let Some(factors) = factors[$number * TILE..].first_chunk::<TILE>() else { return };
                    // SAFETY: 32 values lie there.
                    let (left, right) = unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))) };
                    $(
                        let factor = _mm512_set1_ps(factors[$row]);
                        $low = _mm512_fmadd_ps(factor, left, $low);
                        $high = _mm512_fmadd_ps(factor, right, $high);
                    )*
                }
                $(
                    // SAFETY: 32 values lie there.
                    unsafe {
                        let to = $tile.as_mut_ptr().add($row * PANEL);
                        _mm512_storeu_ps(to, $low);
                        _mm512_storeu_ps(to.add(16), $high);
                    }
                )*
            };
        }
        for (number, tile) in tiles.iter_mut().enumerate() {
            rows!(number, tile, 0: a0 b0, 1: a1 b1, 2: a2 b2, 3: a3 b3, 4: a4 b4, 5: a5 b5, 6: a6 b6, 7: a7 b7, 8: a8 b8, 9: a9 b9,
                  10: a10 b10, 11: a11 b11);
        }
    }
    let (tiles, rest) = rows.as_chunks_mut();
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(factors, x, tiles) }
    for (factors, x) in factors.iter().zip(x) {
        add_outer(proof, &factors[tiles.len() * TILE..], x, rest);
    }
}
