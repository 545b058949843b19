//! Tiles of integer activations in AVX2. The instruction that multiplies unsigned with signed bytes adds pairs of products in
//! 16 bits, where those of nibbles have room and those of bytes do not: they are widened first.

use std::arch::x86_64::{
    __m256i, _MM_HINT_T1, _mm_cvtepi8_epi16, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch,
    _mm_storeu_si128, _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256,
    _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_hadd_epi32, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_mullo_epi32, _mm256_permute4x64_epi64,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_setzero_si256,
    _mm256_srli_epi16, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi32,
};
use std::mem::MaybeUninit;

use super::panels::{BLOCK, PANEL, Storage};
use super::portable::complete;
use super::tile::{IntTile, Start, Zeros};
use crate::kernels::level::Avx2;

/// Most rows whose sums, two registers each, leave room for two registers of weights, one of activations and one of products; nibbles
/// want another one for their mask. A sum without a register of its own would wait for memory in every step.
const ROWS: usize = 6;
const NIBBLE_ROWS: usize = 5;

/// Blocks whose codes (8 KiB of bytes) and activations stay in the first cache while all rows and outputs meet.
const CHUNK: usize = 32;

/// Most activations of a chunk.
const WIDE: usize = CHUNK * BLOCK * ROWS;

/// Blocks of nibbles whose sums fit 16 bits: each adds two products of 15 · 128 twice, and 15 · 128 · 2 · 2 · 4 < 2^15.
const SHORT: usize = 4;

/// Outputs in a register of sums.
const LANES: usize = 8;

/// Sums of `N` rows, `W` registers each.
type Sums<const N: usize, const W: usize> = [[__m256i; W]; N];

/// Blocks of one group that some rows meet together.
#[derive(Clone, Copy)]
struct Chunk {
    group: usize,
    /// Whether these are the first and the last blocks of the group that the tile meets.
    is_first: bool,
    is_last: bool,
}

pub(super) fn int_tile(_: Avx2, tile: &mut IntTile<'_, '_>) {
    // SAFETY: the token proves that the instructions exist; `IntTile::run` checked the lengths of all slices.
    unsafe { all_rows(tile) }
}

/// As many rows go together as have room in the registers. The fewer they are, the more registers of weights each meets, so that
/// sums do not wait for each other.
#[target_feature(enable = "avx2,fma")]
unsafe fn all_rows(tile: &mut IntTile<'_, '_>) {
    let most = if tile.storage == Storage::Nibble { NIBBLE_ROWS } else { ROWS };
    let rows = tile.rows.div_ceil(tile.rows.div_ceil(most));
    for first in (0..tile.rows).step_by(rows) {
        let rows = rows.min(tile.rows - first);
        // SAFETY: the caller's promise; the parts, none of more rows than that, make up those of the tile.
        unsafe {
            match (tile.storage, rows) {
                (Storage::Nibble, 1) => all_groups::<1, 4, true>(tile, first),
                (Storage::Nibble, 2) => all_groups::<2, 4, true>(tile, first),
                (Storage::Nibble, 3) => all_groups::<3, 2, true>(tile, first),
                (Storage::Nibble, 4) => all_groups::<4, 2, true>(tile, first),
                (Storage::Nibble, _) => all_groups::<NIBBLE_ROWS, 2, true>(tile, first),
                (_, 1) => all_groups::<1, 4, false>(tile, first),
                (_, 2) => all_groups::<2, 2, false>(tile, first),
                (_, 3) => all_groups::<3, 2, false>(tile, first),
                (_, 4) => all_groups::<4, 1, false>(tile, first),
                (_, 5) => all_groups::<5, 1, false>(tile, first),
                (_, _) => all_groups::<ROWS, 1, false>(tile, first),
            }
        }
    }
    if let Some(finish) = &mut tile.finish {
        complete(finish, tile.rows);
    }
}

/// `N` rows from `first` on meet all groups, `W` registers of outputs at a time.
#[target_feature(enable = "avx2,fma")]
unsafe fn all_groups<const N: usize, const W: usize, const NIBBLE: bool>(
    tile: &mut IntTile<'_, '_>,
    first: usize,
) {
    let mut wide = [const { MaybeUninit::uninit() }; WIDE];
    let of_block = if NIBBLE { Storage::Nibble } else { Storage::Byte }.block_bytes();
    let blocks = tile.codes.len() / of_block / tile.groups;
    // into the second cache, because the first is full of what is used now; once is enough
    let ahead = if first == 0 { tile.ahead } else { 0 };
    for group in 0..tile.groups {
        for begins in (0..blocks).step_by(CHUNK) {
            let ends = (begins + CHUNK).min(blocks);
            let block = group * blocks + begins;
            // SAFETY: the caller's promise: there are so many blocks, rows and outputs.
            unsafe {
                let codes = tile.codes.get_unchecked(block * of_block..(block + ends - begins) * of_block);
                let chunk = Chunk { group, is_first: begins == 0, is_last: ends == blocks };
                let narrow = tile.activations.as_ptr().add((block * tile.rows + first) * 2);
                if !NIBBLE {
                    widen::<N>(narrow, tile.rows, ends - begins, &mut wide);
                }
                for output in (0..PANEL).step_by(LANES * W) {
                    let mut sums = begin::<N, W>(tile, chunk, first, output);
                    if NIBBLE {
                        nibbles(codes, narrow, tile.rows, output, &mut sums);
                    } else {
                        bytes(codes, ahead, wide.as_ptr().cast(), output, &mut sums);
                    }
                    end(tile, chunk, first, output, &sums);
                }
            }
        }
    }
}

/// Activations of `N` rows of a tile in 16 bits, `[block][row][8]`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn widen<const N: usize>(
    narrow: *const i32,
    rows: usize,
    blocks: usize,
    to: &mut [MaybeUninit<i16>; WIDE],
) {
    let all = to.as_chunks_mut::<BLOCK>().0.chunks_exact_mut(N).take(blocks);
    for (block, to) in all.enumerate() {
        for (row, to) in to.iter_mut().enumerate() {
            // SAFETY: the caller's promise: a tile has eight activations for every row and block.
            unsafe {
                let eight = _mm_loadl_epi64(narrow.add((block * rows + row) * 2).cast());
                _mm_storeu_si128(to.as_mut_ptr().cast(), _mm_cvtepi8_epi16(eight));
            }
        }
    }
}

/// What sums are before a chunk.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn begin<const N: usize, const W: usize>(
    tile: &IntTile<'_, '_>,
    chunk: Chunk,
    first: usize,
    output: usize,
) -> Sums<N, W> {
    let mut sums = [[_mm256_setzero_si256(); W]; N];
    let start = if chunk.is_first { tile.start } else { Start::Continue };
    let (row, of_group) = (chunk.group * tile.rows + first, chunk.group * PANEL + output);
    // SAFETY: the caller's promise.
    unsafe {
        match start {
            Start::Continue => {
                let from = tile.partial.as_ptr().add(first * PANEL + output);
                for (row, sums) in sums.iter_mut().enumerate() {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum = load(from.add(row * PANEL + i * LANES));
                    }
                }
            }
            Start::Shared(starts) => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    *sums = [_mm256_set1_epi32(*starts.get_unchecked(row + i)); W];
                }
            }
            Start::Each { zeros, starts, code_sums, activation_zeros } => {
                for i in 0..W {
                    let at = of_group + i * LANES;
                    let zeros = match zeros {
                        Zeros::All(zero) => _mm256_set1_epi32(zero),
                        Zeros::Each(zeros) => load(zeros.as_ptr().add(at)),
                    };
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let start = _mm256_set1_epi32(*starts.get_unchecked(row + r));
                        // the sum is small again in the end, whatever it is in between
                        sums[i] = _mm256_mullo_epi32(zeros, start);
                        if !code_sums.is_empty() {
                            let zero = _mm256_set1_epi32(*activation_zeros.get_unchecked(first + r));
                            let both = _mm256_mullo_epi32(load(code_sums.as_ptr().add(at)), zero);
                            sums[i] = _mm256_sub_epi32(sums[i], both);
                        }
                    }
                }
            }
        }
    }
    sums
}

/// What becomes of sums after a chunk: those of a complete group are scaled and added to the totals, the others wait.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn end<const N: usize, const W: usize>(
    tile: &mut IntTile<'_, '_>,
    chunk: Chunk,
    first: usize,
    output: usize,
    sums: &Sums<N, W>,
) {
    let at = first * PANEL + output;
    // SAFETY: the caller's promise.
    unsafe {
        let Some(finish) = tile.finish.as_mut().filter(|_| chunk.is_last) else {
            let to = tile.partial.as_mut_ptr().add(at);
            for (row, sums) in sums.iter().enumerate() {
                for (i, sum) in sums.iter().enumerate() {
                    _mm256_storeu_si256(to.add(row * PANEL + i * LANES).cast(), *sum);
                }
            }
            return;
        };
        let add = finish.add || chunk.group > 0;
        let scales = finish.scales.as_ptr().add(chunk.group * PANEL + output);
        let to = finish.total.as_mut_ptr().add(at);
        for i in 0..W {
            let scales = _mm256_loadu_ps(scales.add(i * LANES));
            for (row, sums) in sums.iter().enumerate() {
                let to = to.add(row * PANEL + i * LANES);
                let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i]), scales);
                _mm256_storeu_ps(to, if add { _mm256_add_ps(_mm256_loadu_ps(to), scaled) } else { scaled });
            }
        }
    }
}

/// Eight values.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load(from: *const i32) -> __m256i {
    // SAFETY: the caller's promise that they exist.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

/// Adds the products of all blocks of bytes, of which those `ahead` are fetched meanwhile; four outputs, and pairs of columns, in a
/// register on the way.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn bytes<const N: usize, const W: usize>(
    codes: &[u8],
    ahead: usize,
    mut x: *const i16,
    output: usize,
    sums: &mut Sums<N, W>,
) {
    let mut pairs = [[[_mm256_setzero_si256(); 2]; W]; N];
    for block in codes.chunks_exact(Storage::Byte.block_bytes()) {
        for half in 0..2 {
            let mut weights = [[_mm256_setzero_si256(); 2]; W];
            // SAFETY: each half of a block holds four bytes for every output; there are eight activations for every row and
            // block.
            unsafe {
                let at = block.as_ptr().add((half * PANEL + output) * 4);
                _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(ahead).cast());
                for (i, weights) in weights.as_flattened_mut().iter_mut().enumerate() {
                    *weights = _mm256_cvtepu8_epi16(_mm_loadu_si128(at.add(i * 16).cast()));
                }
                for (row, pairs) in pairs.iter_mut().enumerate() {
                    let x = _mm256_set1_epi64x(x.add((row * 2 + half) * 4).cast::<i64>().read_unaligned());
                    for (pair, weights) in pairs.as_flattened_mut().iter_mut().zip(weights.as_flattened()) {
                        *pair = _mm256_add_epi32(*pair, _mm256_madd_epi16(*weights, x));
                    }
                }
            }
        }
        x = x.wrapping_add(N * BLOCK);
    }
    for (sum, [low, high]) in sums.as_flattened_mut().iter_mut().zip(pairs.as_flattened()) {
        // outputs 0 1 4 5 2 3 6 7
        let pairs = _mm256_hadd_epi32(*low, *high);
        *sum = _mm256_add_epi32(*sum, _mm256_permute4x64_epi64::<0b11_01_10_00>(pairs));
    }
}

/// Adds the products of all blocks of nibbles; pairs of columns are summed in 16 bits on the way.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn nibbles<const N: usize, const W: usize>(
    codes: &[u8],
    mut x: *const i32,
    rows: usize,
    output: usize,
    sums: &mut Sums<N, W>,
) {
    let low = _mm256_set1_epi8(15);
    let bytes = Storage::Nibble.block_bytes();
    for blocks in codes.chunks(SHORT * bytes) {
        let mut pairs = [[_mm256_setzero_si256(); W]; N];
        for block in blocks.chunks_exact(bytes) {
            for half in 0..2 {
                let mut weights = [_mm256_setzero_si256(); W];
                // SAFETY: a block holds four bytes for every output; a tile has two words of activations for every row and
                // block.
                unsafe {
                    let at = block.as_ptr().add(output * 4);
                    for (i, weights) in weights.iter_mut().enumerate() {
                        let both: __m256i = _mm256_loadu_si256(at.add(i * 32).cast());
                        let half = if half == 0 { both } else { _mm256_srli_epi16::<4>(both) };
                        *weights = _mm256_and_si256(half, low);
                    }
                    for (row, pairs) in pairs.iter_mut().enumerate() {
                        let x = _mm256_set1_epi32(*x.add(row * 2 + half));
                        for (pair, weights) in pairs.iter_mut().zip(weights) {
                            *pair = _mm256_add_epi16(*pair, _mm256_maddubs_epi16(weights, x));
                        }
                    }
                }
            }
            x = x.wrapping_add(rows * 2);
        }
        for (sum, pair) in sums.as_flattened_mut().iter_mut().zip(pairs.as_flattened()) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*pair, _mm256_set1_epi16(1)));
        }
    }
}
