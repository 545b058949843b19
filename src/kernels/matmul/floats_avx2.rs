//! Tiles of float activations in AVX2: sixteen outputs at a time, in two registers per row. Weights are not fetched ahead, which was
//! slower than what the processor does by itself.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_and_si128, _mm_cvtepu8_epi16, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_or_si128, _mm_set1_epi16, _mm_slli_epi16, _mm256_and_si256, _mm256_broadcast_ss, _mm256_castsi256_ps,
    _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_mul_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_ps, _mm256_sub_epi32,
};
use std::mem::MaybeUninit;

use super::activations::TILE;
use super::panels::kind::{BF16, BYTE, F8, F16, F32, NIBBLE};
use super::panels::{BLOCK, PANEL, Storage};
use super::portable::{F8_UNIT, chains, finish_rows};
use super::tile::{FloatTile, Zeros};
use crate::kernels::level::Avx2;

/// Values in a register.
const LANES: usize = 8;

/// Most rows whose sums leave registers for weights.
const ROWS: usize = 6;

/// Blocks whose values, 16 KiB, stay in the first cache while all rows and outputs meet.
const CHUNK: usize = 16;

/// Evaluates an expression in which `$kind` is a constant: how codes are stored.
macro_rules! by_storage {
    ($storage:expr, $kind:ident, $body:expr) => {
        by_storage!(@each $storage, $kind, $body, F32 F32, F16 F16, Bf16 BF16, F8 F8, Byte BYTE, Nibble NIBBLE)
    };
    (@each $storage:expr, $kind:ident, $body:expr, $($variant:ident $value:ident),*) => {
        match $storage {
            $(Storage::$variant => {
                const $kind: u8 = $value;
                $body
            })*
        }
    };
}

pub(super) fn float_tile(_: Avx2, tile: &mut FloatTile<'_, '_>) {
    // SAFETY: the token proves that the instructions exist; `FloatTile::run` checked the lengths of all slices.
    unsafe { float_groups(tile) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn float_groups(tile: &mut FloatTile<'_, '_>) {
    let (rows, bytes) = (tile.rows, tile.storage.block_bytes());
    let unit = if tile.storage == Storage::F8 { F8_UNIT } else { 1.0 };
    let group_bytes = tile.codes.len() / tile.groups;
    let values = group_bytes / bytes * BLOCK * rows;
    for group in 0..tile.groups {
        let codes = tile.codes[group * group_bytes..][..group_bytes].chunks(CHUNK * bytes);
        let activations = tile.activations[group * values..][..values].chunks(CHUNK * BLOCK * rows);
        let zeros = tile.zeros.of_group(group);
        // `[chain][row][32 outputs]`
        let mut sums = [0f32; TILE * PANEL];
        for (codes, activations) in codes.zip(activations) {
            let run = Run { codes, zeros, activations, stride: rows };
            // SAFETY: the run holds as many columns of codes as of activations, for all the rows of the tile.
            unsafe {
                if rows <= ROWS {
                    by_storage!(tile.storage, KIND, few::<KIND>(&run, &mut sums));
                } else if tile.storage == Storage::F32 {
                    many(&run, &mut sums);
                } else {
                    by_storage!(tile.storage, KIND, many_decoded::<KIND>(&run, &mut sums));
                }
            }
        }
        let (first, others) = sums.split_at_mut(rows * PANEL);
        for chain in others.chunks_exact(rows * PANEL).take(chains(rows) - 1) {
            first.iter_mut().zip(chain).for_each(|(sum, more)| *sum += *more);
        }
        finish_rows(&mut tile.finish, group, tile.groups, unit, first);
    }
}

/// At most [`CHUNK`] blocks of a group.
struct Run<'a> {
    codes: &'a [u8],
    zeros: Zeros<'a>,
    /// `[column][stride]`
    activations: &'a [f32],
    stride: usize,
}

/// As many rows as registers have sums for.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few<const KIND: u8>(run: &Run<'_>, sums: &mut [f32; TILE * PANEL]) {
    for output in (0..PANEL).step_by(2 * LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            match run.stride {
                1 => dot::<1, { chains(1) }, KIND>(run, 0, output, sums),
                2 => dot::<2, { chains(2) }, KIND>(run, 0, output, sums),
                3 => dot::<3, { chains(3) }, KIND>(run, 0, output, sums),
                4 => dot::<4, { chains(4) }, KIND>(run, 0, output, sums),
                5 => dot::<5, { chains(5) }, KIND>(run, 0, output, sums),
                _ => dot::<ROWS, { chains(ROWS) }, KIND>(run, 0, output, sums),
            }
        }
    }
}

/// Seven to twelve rows, in two parts that meet the same weights soon after each other.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn many(run: &Run<'_>, sums: &mut [f32; TILE * PANEL]) {
    let half = run.stride.div_ceil(2);
    for output in (0..PANEL).step_by(2 * LANES) {
        for (first, rows) in [(0, half), (half, run.stride - half)] {
            // SAFETY: the caller's promise; the parts, of at most six rows, make up all rows.
            unsafe {
                match rows {
                    3 => dot::<3, 1, F32>(run, first, output, sums),
                    4 => dot::<4, 1, F32>(run, first, output, sums),
                    5 => dot::<5, 1, F32>(run, first, output, sums),
                    _ => dot::<ROWS, 1, F32>(run, first, output, sums),
                }
            }
        }
    }
}

/// [`many`], with the values of the codes. Not inlined, because only these want so much of the stack.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
unsafe fn many_decoded<const KIND: u8>(run: &Run<'_>, sums: &mut [f32; TILE * PANEL]) {
    let mut values = [const { MaybeUninit::<f32>::uninit() }; CHUNK * BLOCK * PANEL];
    // SAFETY: the caller's promise; `values` has room for the blocks of a run.
    unsafe {
        decode_blocks::<KIND>(run.codes, run.zeros, None, values.as_mut_ptr().cast());
        let len = run.codes.len() / block_bytes(KIND) * Storage::F32.block_bytes();
        let codes = std::slice::from_raw_parts(values.as_ptr().cast(), len);
        many(&Run { codes, ..*run }, sums);
    }
}

/// Adds the products of all blocks to the sums of `N` rows from `first` on and sixteen outputs from `output` on, before scaling,
/// as [`super::portable::float_tile`] orders them.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot<const N: usize, const CHAINS: usize, const KIND: u8>(
    run: &Run<'_>,
    first: usize,
    output: usize,
    sums: &mut [f32; TILE * PANEL],
) {
    // SAFETY: the caller's promise: activations hold `stride` values for each column of the blocks, and `first + N` is at
    // most `stride`; loads of codes lie in a block. Few rows have several chains, but no more than there are sums.
    unsafe {
        let sums = sums.as_mut_ptr().add(first * PANEL + output);
        let mut chains = [[[_mm256_setzero_ps(); 2]; N]; CHAINS];
        for (i, sum) in chains.as_flattened_mut().iter_mut().enumerate() {
            let from = sums.add(i * PANEL);
            *sum = [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(LANES))];
        }
        let zeros = [load_zeros(run.zeros, output), load_zeros(run.zeros, output + LANES)];
        let mut x = run.activations.as_ptr().add(first);
        for block in run.codes.chunks_exact(block_bytes(KIND)) {
            for column in 0..BLOCK {
                let weights = [
                    column_of::<KIND>(block.as_ptr(), column, output, zeros[0]),
                    column_of::<KIND>(block.as_ptr(), column, output + LANES, zeros[1]),
                ];
                for (row, sums) in chains[column % CHAINS].iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*x.add(row));
                    sums[0] = _mm256_fmadd_ps(weights[0], x, sums[0]);
                    sums[1] = _mm256_fmadd_ps(weights[1], x, sums[1]);
                }
                x = x.add(run.stride);
            }
        }
        for (i, sum) in chains.as_flattened().iter().enumerate() {
            let to = sums.add(i * PANEL);
            _mm256_storeu_ps(to, sum[0]);
            _mm256_storeu_ps(to.add(LANES), sum[1]);
        }
    }
}

const fn block_bytes(kind: u8) -> usize {
    match kind {
        F32 => Storage::F32,
        F16 => Storage::F16,
        BF16 => Storage::Bf16,
        F8 => Storage::F8,
        BYTE => Storage::Byte,
        _ => Storage::Nibble,
    }
    .block_bytes()
}

/// Writes whole blocks of codes as scaled values, `[column][32 outputs]`.
pub(super) fn decode(
    _: Avx2,
    storage: Storage,
    codes: &[u8],
    zeros: Zeros<'_>,
    scales: &[f32],
    out: &mut [f32],
) {
    assert!(out.len() >= codes.len() / storage.block_bytes() * BLOCK * PANEL);
    zeros.check(1);
    let unit = if storage == Storage::F8 { F8_UNIT } else { 1.0 };
    let mut factors = [unit; PANEL];
    if !scales.is_empty() {
        factors.iter_mut().zip(&scales[..PANEL]).for_each(|(factor, scale)| *factor *= scale);
    }
    // SAFETY: the token proves that the instructions exist, and the lengths were checked.
    unsafe {
        by_storage!(storage, KIND, decode_blocks::<KIND>(codes, zeros, Some(&factors), out.as_mut_ptr()));
    }
}

#[target_feature(enable = "avx2,f16c")]
unsafe fn decode_blocks<const KIND: u8>(
    codes: &[u8],
    zeros: Zeros<'_>,
    factors: Option<&[f32; PANEL]>,
    out: *mut f32,
) {
    for output in (0..PANEL).step_by(LANES) {
        // SAFETY: the caller's promise: `out` holds 32 values for each column of the blocks.
        unsafe {
            let zeros = load_zeros(zeros, output);
            let factor =
                factors.map_or(_mm256_set1_ps(1.0), |factors| _mm256_loadu_ps(factors.as_ptr().add(output)));
            let mut to = out.add(output);
            for block in codes.chunks_exact(block_bytes(KIND)) {
                for column in 0..BLOCK {
                    let value = column_of::<KIND>(block.as_ptr(), column, output, zeros);
                    _mm256_storeu_ps(to, _mm256_mul_ps(value, factor));
                    to = to.add(PANEL);
                }
            }
        }
    }
}

/// Zero points of eight outputs.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_zeros(zeros: Zeros<'_>, output: usize) -> __m256i {
    match zeros {
        Zeros::All(zero) => _mm256_set1_epi32(zero),
        // SAFETY: the caller's promise that there are 32.
        Zeros::Each(zeros) => unsafe { _mm256_loadu_si256(zeros.as_ptr().add(output).cast()) },
    }
}

/// Eight outputs of one column of a block; e4m3 in units of [`F8_UNIT`].
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn column_of<const KIND: u8>(
    block: *const u8,
    column: usize,
    output: usize,
    zeros: __m256i,
) -> __m256 {
    let element = column * PANEL + output;
    // SAFETY: the caller's promise that `block` points to a whole block.
    unsafe {
        match KIND {
            F32 => _mm256_loadu_ps(block.add(element * 4).cast()),
            F16 => _mm256_cvtph_ps(load_128(block.add(element * 2))),
            BF16 => {
                let wide = _mm256_cvtepu16_epi32(load_128(block.add(element * 2)));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
            F8 => {
                let wide = _mm_cvtepu8_epi16(_mm_loadl_epi64(block.add(element).cast()));
                let sign = _mm_and_si128(_mm_slli_epi16::<8>(wide), _mm_set1_epi16(i16::MIN));
                let magnitude = _mm_slli_epi16::<7>(_mm_and_si128(wide, _mm_set1_epi16(0x7f)));
                _mm256_cvtph_ps(_mm_or_si128(sign, magnitude))
            }
            BYTE => {
                let at = column / 4 * PANEL * 4 + output * 4;
                let lanes = _mm256_loadu_si256(block.add(at).cast());
                let code = match column % 4 {
                    0 => lanes,
                    1 => _mm256_srli_epi32::<8>(lanes),
                    2 => _mm256_srli_epi32::<16>(lanes),
                    _ => _mm256_srli_epi32::<24>(lanes),
                };
                let code = _mm256_and_si256(code, _mm256_set1_epi32(0xff));
                _mm256_cvtepi32_ps(_mm256_sub_epi32(code, zeros))
            }
            _ => {
                let lanes = _mm256_loadu_si256(block.add(output * 4).cast());
                let code = match column {
                    0 => lanes,
                    1 => _mm256_srli_epi32::<8>(lanes),
                    2 => _mm256_srli_epi32::<16>(lanes),
                    3 => _mm256_srli_epi32::<24>(lanes),
                    4 => _mm256_srli_epi32::<4>(lanes),
                    5 => _mm256_srli_epi32::<12>(lanes),
                    6 => _mm256_srli_epi32::<20>(lanes),
                    _ => _mm256_srli_epi32::<28>(lanes),
                };
                let code = _mm256_and_si256(code, _mm256_set1_epi32(15));
                _mm256_cvtepi32_ps(_mm256_sub_epi32(code, zeros))
            }
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_128(from: *const u8) -> __m128i {
    // SAFETY: the caller's promise that 16 bytes can be read.
    unsafe { _mm_loadu_si128(from.cast()) }
}
