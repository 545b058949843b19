//! Tiles of integer activations in AVX2. The instruction that multiplies unsigned with signed bytes adds pairs of products in
//! 16 bits, where those of nibbles have room and those of bytes do not: they are widened first.

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepu8_epi16,
    _mm256_hadd_epi32, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_permute4x64_epi64,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_setzero_si256,
    _mm256_srli_epi16, _mm256_storeu_si256,
};
use std::mem::MaybeUninit;

use super::activations::TILE;
use super::panels::{BLOCK, PANEL, Storage};
use super::portable;
use super::tile::IntTile;
use crate::kernels::level::Avx2;

/// Most rows whose sums, two registers each, leave room for weights.
const ROWS: usize = 6;

/// Blocks whose codes (8 KiB of bytes) and activations stay in the first cache while all rows and outputs meet.
const CHUNK: usize = 32;

/// Most activations of a chunk.
const WIDE: usize = CHUNK * BLOCK * TILE;

/// Blocks of nibbles whose sums fit 16 bits: each adds two products of 15 · 128 twice, and 15 · 128 · 2 · 2 · 4 < 2^15.
const SHORT: usize = 4;

/// Calls `$function::<N, REGISTERS>` for a number of rows: the fewer, the more registers of weights, so that sums do not wait for
/// each other.
macro_rules! by_rows {
    ($rows:expr, $function:ident, $outputs:literal, $arguments:tt) => {
        match $rows {
            1 => $function::<1, { PANEL / $outputs }> $arguments,
            2 => $function::<2, 4> $arguments,
            3 => $function::<3, 4> $arguments,
            4 => $function::<4, 2> $arguments,
            5 => $function::<5, 2> $arguments,
            _ => $function::<ROWS, 2> $arguments,
        }
    };
}

pub(super) fn int_tile(_: Avx2, tile: &mut IntTile<'_, '_>) {
    #[target_feature(enable = "avx2,fma")]
    fn body(tile: &mut IntTile<'_, '_>) {
        let mut wide = [const { MaybeUninit::uninit() }; WIDE];
        portable::int_groups(tile, |tile, codes, activations| {
            let chunks = codes.chunks(CHUNK * tile.storage.block_bytes());
            for (codes, activations) in chunks.zip(activations.chunks(CHUNK * tile.rows * 2)) {
                let parts = if tile.rows <= ROWS { 1 } else { 2 };
                let rows = tile.rows.div_ceil(parts);
                // SAFETY: the instructions exist; `IntTile::run` checked the lengths of all slices; the parts, of at most
                // six rows each, make up the rows of the tile.
                unsafe {
                    if tile.storage == Storage::Nibble {
                        for first in (0..tile.rows).step_by(rows) {
                            by_rows!(
                                rows.min(tile.rows - first),
                                nibbles,
                                8,
                                (tile, codes, activations, first)
                            );
                        }
                    } else {
                        let wide = widen(activations, &mut wide);
                        for first in (0..tile.rows).step_by(rows) {
                            by_rows!(rows.min(tile.rows - first), bytes, 4, (tile, codes, wide, first));
                        }
                    }
                }
            }
        });
    }
    // SAFETY: the token proves that the instructions exist.
    unsafe { body(tile) }
}

/// Activations of a chunk in 16 bits.
#[target_feature(enable = "avx2")]
fn widen<'a>(activations: &[i32], to: &'a mut [MaybeUninit<i16>; WIDE]) -> &'a [i16] {
    let len = activations.len() * 4;
    let to = &mut to[..len];
    // SAFETY: an `i32` is four `i8` without padding, and these want less alignment.
    let bytes = unsafe { std::slice::from_raw_parts(activations.as_ptr().cast::<i8>(), len) };
    for (to, byte) in to.iter_mut().zip(bytes) {
        to.write(i16::from(*byte));
    }
    // SAFETY: all of them were written.
    unsafe { std::slice::from_raw_parts(to.as_ptr().cast(), len) }
}

/// Adds the products of all blocks of bytes to `partial`, for `N` rows from `first` on; four outputs in a register.
#[target_feature(enable = "avx2")]
unsafe fn bytes<const N: usize, const REGISTERS: usize>(
    tile: &mut IntTile<'_, '_>,
    codes: &[u8],
    activations: &[i16],
    first: usize,
) {
    for output in (0..PANEL).step_by(4 * REGISTERS) {
        // sums of pairs of columns
        let mut sums = [[_mm256_setzero_si256(); REGISTERS]; N];
        let mut x = activations[first * BLOCK..].as_ptr();
        for block in codes.chunks_exact(Storage::Byte.block_bytes()) {
            for half in 0..2 {
                let mut weights = [_mm256_setzero_si256(); REGISTERS];
                // SAFETY: each half of a block holds four bytes for every output; a tile has eight activations for every row
                // and block.
                unsafe {
                    let at = block.as_ptr().add((half * PANEL + output) * 4);
                    for (i, weights) in weights.iter_mut().enumerate() {
                        *weights = _mm256_cvtepu8_epi16(_mm_loadu_si128(at.add(i * 16).cast()));
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let x =
                            _mm256_set1_epi64x(x.add((row * 2 + half) * 4).cast::<i64>().read_unaligned());
                        for (sum, weights) in sums.iter_mut().zip(weights) {
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(weights, x));
                        }
                    }
                }
            }
            x = x.wrapping_add(tile.rows * BLOCK);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (i, pair) in sums.as_chunks::<2>().0.iter().enumerate() {
                // outputs 0 1 4 5 2 3 6 7
                let pairs = _mm256_hadd_epi32(pair[0], pair[1]);
                let sums = _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs);
                // SAFETY: `partial` holds 32 sums for every row.
                unsafe { add(tile.partial, (first + row) * PANEL + output + i * 8, sums) };
            }
        }
    }
}

/// Adds the products of all blocks of nibbles to `partial`, for `N` rows from `first` on; eight outputs in a register.
#[target_feature(enable = "avx2")]
unsafe fn nibbles<const N: usize, const REGISTERS: usize>(
    tile: &mut IntTile<'_, '_>,
    codes: &[u8],
    activations: &[i32],
    first: usize,
) {
    let low = _mm256_set1_epi8(15);
    let bytes = Storage::Nibble.block_bytes();
    for output in (0..PANEL).step_by(8 * REGISTERS) {
        let mut x = activations[first * 2..].as_ptr();
        for blocks in codes.chunks(SHORT * bytes) {
            // sums of pairs of columns, in 16 bits
            let mut sums = [[_mm256_setzero_si256(); REGISTERS]; N];
            for block in blocks.chunks_exact(bytes) {
                for half in 0..2 {
                    let mut weights = [_mm256_setzero_si256(); REGISTERS];
                    // SAFETY: a block holds four bytes for every output; a tile has two words of activations for every row
                    // and block.
                    unsafe {
                        let at = block.as_ptr().add(output * 4);
                        for (i, weights) in weights.iter_mut().enumerate() {
                            let both: __m256i = _mm256_loadu_si256(at.add(i * 32).cast());
                            let half = if half == 0 { both } else { _mm256_srli_epi16::<4>(both) };
                            *weights = _mm256_and_si256(half, low);
                        }
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let x = _mm256_set1_epi32(*x.add(row * 2 + half));
                            for (sum, weights) in sums.iter_mut().zip(weights) {
                                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(weights, x));
                            }
                        }
                    }
                }
                x = x.wrapping_add(tile.rows * 2);
            }
            for (row, sums) in sums.iter().enumerate() {
                for (i, sum) in sums.iter().enumerate() {
                    let wide = _mm256_madd_epi16(*sum, _mm256_set1_epi16(1));
                    // SAFETY: `partial` holds 32 sums for every row.
                    unsafe { add(tile.partial, (first + row) * PANEL + output + i * 8, wide) };
                }
            }
        }
    }
}

/// Adds to eight of the sums.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn add(partial: &mut [i32], at: usize, sums: __m256i) {
    // SAFETY: the caller's promise that they exist.
    unsafe {
        let to: *mut __m256i = partial.as_mut_ptr().add(at).cast();
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), sums));
    }
}
