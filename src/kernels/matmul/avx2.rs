//! Tiles in AVX2. The instruction that multiplies bytes saturates, so codes are widened to 16 bits first.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_set1_epi32, _mm256_add_epi32, _mm256_and_si256, _mm256_castsi256_si128,
    _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16, _mm256_extracti128_si256, _mm256_hadd_epi32,
    _mm256_loadu_si256, _mm256_madd_epi16, _mm256_permute4x64_epi64, _mm256_set1_epi8, _mm256_setzero_si256,
    _mm256_srli_epi16, _mm256_storeu_si256,
};

use super::panels::{PANEL, Storage};
use super::portable;
use super::tile::{FloatTile, IntTile};
use crate::kernels::level::Avx2;

/// Outputs whose sums fit one register per row after pairs are added.
const OUTPUTS: usize = 8;

/// Rows whose sums, two registers each, leave room for weights.
const ROWS: usize = 5;

pub(super) fn int_tile(_: Avx2, tile: &mut IntTile<'_, '_>) {
    portable::int_groups(tile, |tile, codes, activations| {
        for first in (0..tile.rows).step_by(ROWS) {
            // SAFETY: the token proves that the instructions exist; `IntTile::run` checked the lengths of all slices,
            // and `first` and the number of rows stay within the tile.
            unsafe {
                match (tile.rows - first).min(ROWS) {
                    1 => dot::<1>(tile, codes, activations, first),
                    2 => dot::<2>(tile, codes, activations, first),
                    3 => dot::<3>(tile, codes, activations, first),
                    4 => dot::<4>(tile, codes, activations, first),
                    _ => dot::<ROWS>(tile, codes, activations, first),
                }
            }
        }
    });
}

/// Adds the products of all blocks to `partial`, for `N` rows from `first` on.
#[target_feature(enable = "avx2")]
unsafe fn dot<const N: usize>(tile: &mut IntTile<'_, '_>, codes: &[u8], activations: &[i32], first: usize) {
    let nibble = tile.storage == Storage::Nibble;
    let bytes = tile.storage.block_bytes();
    let low = _mm256_set1_epi8(15);
    for output in (0..PANEL).step_by(OUTPUTS) {
        // sums of pairs of columns: four outputs in each register
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for (block, codes) in codes.chunks_exact(bytes).enumerate() {
            for half in 0..2 {
                // SAFETY: a block holds 32 bytes from `output · 4` on, in each half if it holds bytes; a tile has two
                // words of activations for every row and block.
                unsafe {
                    let at = output * 4 + if nibble { 0 } else { half * PANEL * 4 };
                    let mut codes: __m256i = _mm256_loadu_si256(codes.as_ptr().add(at).cast());
                    if nibble {
                        let shifted = if half == 0 { codes } else { _mm256_srli_epi16::<4>(codes) };
                        codes = _mm256_and_si256(shifted, low);
                    }
                    let weights = [
                        _mm256_cvtepu8_epi16(_mm256_castsi256_si128(codes)),
                        _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(codes)),
                    ];
                    let x = activations.as_ptr().add((block * tile.rows + first) * 2 + half);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let four: __m128i = _mm_set1_epi32(*x.add(row * 2));
                        let x = _mm256_cvtepi8_epi16(four);
                        for (sum, weights) in sums.iter_mut().zip(weights) {
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(weights, x));
                        }
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            // outputs 0 1 4 5 2 3 6 7
            let pairs = _mm256_hadd_epi32(sums[0], sums[1]);
            let sums = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
            // SAFETY: `partial` holds 32 sums for every row.
            unsafe {
                let to = tile.partial.as_mut_ptr().add((first + row) * PANEL + output);
                _mm256_storeu_si256(to.cast(), _mm256_add_epi32(_mm256_loadu_si256(to.cast()), sums));
            }
        }
    }
}

pub(super) fn float_tile(_: Avx2, tile: &mut FloatTile<'_, '_>) {
    #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    fn body(tile: &mut FloatTile<'_, '_>) {
        portable::float_body(tile);
    }
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(tile) }
}
