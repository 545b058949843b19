//! Tiles in AVX-512: 16 outputs in a register, two registers per row of activations.

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, __mmask16, _CMP_LT_OQ, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch,
    _mm256_and_si256, _mm256_cvtepu8_epi16, _mm256_loadu_si256, _mm256_or_si256, _mm256_set1_epi16,
    _mm256_slli_epi16, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castsi512_ps,
    _mm512_cmp_ps_mask, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_dpbusd_epi32,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_mov_ps, _mm512_mask_storeu_ps,
    _mm512_mul_ps, _mm512_mullo_epi32, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_ps,
    _mm512_storeu_si512, _mm512_sub_epi32,
};

use super::panels::kind::{BF16, BYTE, F8, F16, F32, NIBBLE};
use super::panels::{BLOCK, PANEL, Storage};
use super::portable::{F8_UNIT, chains};
use super::tile::{FloatTile, IntTile, Last, Start, Zeros};
use crate::kernels::level::Avx512;

/// Calls `$function::<ROWS, CHAINS>` for the tile's number of rows.
macro_rules! by_rows {
    ($rows:expr, $function:ident, $arguments:tt) => {
        match $rows {
            1 => $function::<1, { chains(1) }> $arguments,
            2 => $function::<2, { chains(2) }> $arguments,
            3 => $function::<3, { chains(3) }> $arguments,
            4 => $function::<4, { chains(4) }> $arguments,
            5 => $function::<5, { chains(5) }> $arguments,
            6 => $function::<6, { chains(6) }> $arguments,
            7 => $function::<7, { chains(7) }> $arguments,
            8 => $function::<8, { chains(8) }> $arguments,
            9 => $function::<9, { chains(9) }> $arguments,
            10 => $function::<10, { chains(10) }> $arguments,
            11 => $function::<11, { chains(11) }> $arguments,
            12 => $function::<12, { chains(12) }> $arguments,
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}

/// Repeats a body for every row. A loop that the compiler does not unroll would index sums, and so push them out of the
/// registers.
macro_rules! for_rows {
    ($row:ident, $body:expr) => {
        for_rows!(@each $row, $body, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@each $row:ident, $body:expr, $($number:literal)*) => {{
        $(
            if $number < ROWS {
                let $row = $number;
                $body
            }
        )*
    }};
}

/// What the sums of a group begin with. A macro, like all that works on sums: only so are they certain to stay in registers.
macro_rules! start {
    ($tile:expr, $group:expr) => {{
        let mut all = [[_mm512_setzero_si512(); 2]; ROWS];
        match $tile.start {
            Start::Continue => {
                for_rows!(row, {
                    let from = $tile.partial.as_ptr().add(row * PANEL);
                    all[row] = [_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(16).cast())];
                });
            }
            Start::Shared(starts) => {
                for_rows!(row, {
                    all[row] = [_mm512_set1_epi32(*starts.get_unchecked($group * ROWS + row)); 2];
                });
            }
            Start::Each { zeros, starts, code_sums, activation_zeros } => {
                let zeros = [load_zeros(zeros, $group, 0), load_zeros(zeros, $group, 1)];
                for_rows!(row, {
                    let start = _mm512_set1_epi32(*starts.get_unchecked($group * ROWS + row));
                    all[row] = [_mm512_mullo_epi32(zeros[0], start), _mm512_mullo_epi32(zeros[1], start)];
                });
                if !code_sums.is_empty() {
                    let codes = code_sums.as_ptr().add($group * PANEL);
                    let codes = [_mm512_loadu_si512(codes.cast()), _mm512_loadu_si512(codes.add(16).cast())];
                    for_rows!(row, {
                        let zero = _mm512_set1_epi32(*activation_zeros.get_unchecked(row));
                        all[row][0] = _mm512_sub_epi32(all[row][0], _mm512_mullo_epi32(codes[0], zero));
                        all[row][1] = _mm512_sub_epi32(all[row][1], _mm512_mullo_epi32(codes[1], zero));
                    });
                }
            }
        }
        all
    }};
}

/// Adds the scaled sums of a group to the total, and completes it after the last group: operation by operation as
/// [`super::portable::finish_rows`] does.
macro_rules! finish_group {
    ($last:expr, $add:expr, $total:expr, $scaled:ident) => {
        match ($last, $add) {
            (None, false) => for_rows!(row, {
                let total = $total.add(row * PANEL);
                _mm512_storeu_ps(total, $scaled!(row, 0));
                _mm512_storeu_ps(total.add(16), $scaled!(row, 1));
            }),
            (None, true) => for_rows!(row, {
                let total = $total.add(row * PANEL);
                _mm512_storeu_ps(total, _mm512_add_ps(_mm512_loadu_ps(total), $scaled!(row, 0)));
                let total = total.add(16);
                _mm512_storeu_ps(total, _mm512_add_ps(_mm512_loadu_ps(total), $scaled!(row, 1)));
            }),
            (Some(last), _) => {
                let masks = masks(last);
                let zero = _mm512_setzero_ps();
                let bias = if last.bias.is_empty() {
                    None
                } else {
                    Some([load(last.bias, 0, 0), load(last.bias, 0, 1)])
                };
                for_rows!(row, {
                    let mut total = [$scaled!(row, 0), $scaled!(row, 1)];
                    if $add {
                        let before = $total.add(row * PANEL);
                        total[0] = _mm512_add_ps(_mm512_loadu_ps(before), total[0]);
                        total[1] = _mm512_add_ps(_mm512_loadu_ps(before.add(16)), total[1]);
                    }
                    if !last.row_scales.is_empty() {
                        let scale = _mm512_set1_ps(*last.row_scales.get_unchecked(row));
                        total = [_mm512_mul_ps(total[0], scale), _mm512_mul_ps(total[1], scale)];
                    }
                    if let Some(bias) = bias {
                        total = [_mm512_add_ps(total[0], bias[0]), _mm512_add_ps(total[1], bias[1])];
                    }
                    if last.relu {
                        let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(total[0], zero);
                        total[0] = _mm512_mask_mov_ps(total[0], negative, zero);
                        let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(total[1], zero);
                        total[1] = _mm512_mask_mov_ps(total[1], negative, zero);
                    }
                    let y = last.y.pointer(row);
                    _mm512_mask_storeu_ps(y, masks[0], total[0]);
                    _mm512_mask_storeu_ps(y.wrapping_add(16), masks[1], total[1]);
                });
            }
        }
    };
}

/// Which of a panel's outputs exist.
fn masks(last: &Last<'_, '_>) -> [__mmask16; 2] {
    [0, 16].map(|first| ((1u32 << last.y.width().saturating_sub(first).min(16)) - 1) as __mmask16)
}

/// The sums of a tile; 16 outputs each.
type Sums<T, const ROWS: usize> = [[T; 2]; ROWS];

pub(super) fn int_tile(_: Avx512, tile: &mut IntTile<'_, '_>) {
    // SAFETY: the token proves that the instructions exist; `IntTile::run` checked the lengths of all slices.
    unsafe { by_rows!(tile.rows, int_rows, (tile)) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn int_rows<const ROWS: usize, const CHAINS: usize>(tile: &mut IntTile<'_, '_>) {
    let bytes = tile.codes.len() / tile.groups;
    let words = bytes / tile.storage.block_bytes() * ROWS * 2;
    // SAFETY: the caller's promise: slices are as long as `IntTile::run` checks.
    unsafe {
        for group in 0..tile.groups {
            let mut sums: Sums<__m512i, ROWS> = start!(tile, group);
            let codes = tile.codes.get_unchecked(group * bytes..(group + 1) * bytes);
            let x = tile.activations.as_ptr().add(group * words);
            if tile.storage == Storage::Nibble {
                dot::<ROWS, CHAINS, true>(codes, tile.ahead, x, &mut sums);
            } else {
                dot::<ROWS, CHAINS, false>(codes, tile.ahead, x, &mut sums);
            }
            let Some(finish) = &mut tile.finish else {
                for_rows!(row, {
                    let to = tile.partial.as_mut_ptr().add(row * PANEL);
                    _mm512_storeu_si512(to.cast(), sums[row][0]);
                    _mm512_storeu_si512(to.add(16).cast(), sums[row][1]);
                });
                continue;
            };
            let add = finish.add || group > 0;
            let scales = [load(finish.scales, group, 0), load(finish.scales, group, 1)];
            let last = if group + 1 == tile.groups { finish.last.as_ref() } else { None };
            let total = finish.total.as_mut_ptr();
            macro_rules! scaled {
                ($row:expr, $half:expr) => {
                    _mm512_mul_ps(_mm512_cvtepi32_ps(sums[$row][$half]), scales[$half])
                };
            }
            finish_group!(last, add, total, scaled);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn load_zeros(zeros: Zeros<'_>, group: usize, half: usize) -> __m512i {
    match zeros {
        Zeros::All(zero) => _mm512_set1_epi32(zero),
        // SAFETY: the caller's promise: one zero point per output.
        Zeros::Each(zeros) => unsafe {
            _mm512_loadu_si512(zeros.as_ptr().add(group * PANEL + half * 16).cast())
        },
    }
}

/// Adds the products of all blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn dot<const ROWS: usize, const CHAINS: usize, const NIBBLE: bool>(
    codes: &[u8],
    ahead: usize,
    mut x: *const i32,
    sums: &mut Sums<__m512i, ROWS>,
) {
    let low = _mm512_set1_epi8(15);
    let block_bytes = if NIBBLE { PANEL * 4 } else { PANEL * 8 };
    // Chains have names rather than numbers, and the steps are macros rather than functions or closures, into which the
    // compiler need not carry this function's instructions: only so are sums certain to stay in registers.
    let mut a = *sums;
    let mut b = [[_mm512_setzero_si512(); 2]; ROWS];
    let (mut c, mut d) = (b, b);
    let mut at = codes.as_ptr();
    /// The weights of the block at hand: of columns 0 to 3, and of columns 4 to 7.
    macro_rules! weights {
        () => {{
            for line in (0..block_bytes).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ahead + line).cast());
            }
            let first = [_mm512_loadu_si512(at.cast()), _mm512_loadu_si512(at.add(64).cast())];
            if NIBBLE {
                let high = [_mm512_srli_epi32::<4>(first[0]), _mm512_srli_epi32::<4>(first[1])];
                (
                    [_mm512_and_si512(first[0], low), _mm512_and_si512(first[1], low)],
                    [_mm512_and_si512(high[0], low), _mm512_and_si512(high[1], low)],
                )
            } else {
                (first, [_mm512_loadu_si512(at.add(128).cast()), _mm512_loadu_si512(at.add(192).cast())])
            }
        }};
    }
    macro_rules! multiply {
        ($sums:ident, $weights:expr, $half:literal) => {
            for_rows!(row, {
                let x = _mm512_set1_epi32(*x.add(row * 2 + $half));
                $sums[row][0] = _mm512_dpbusd_epi32($sums[row][0], $weights[0], x);
                $sums[row][1] = _mm512_dpbusd_epi32($sums[row][1], $weights[1], x);
            });
        };
    }
    macro_rules! advance {
        () => {
            x = x.add(ROWS * 2);
            at = at.add(block_bytes);
        };
    }
    let mut blocks = codes.len() / block_bytes;
    // SAFETY: the caller's promise: `x` points to two words per row and block; every load of codes lies in a block.
    unsafe {
        if CHAINS == 4 {
            while blocks >= 2 {
                let (low, high) = weights!();
                multiply!(a, low, 0);
                multiply!(b, high, 1);
                advance!();
                let (low, high) = weights!();
                multiply!(c, low, 0);
                multiply!(d, high, 1);
                advance!();
                blocks -= 2;
            }
        }
        if CHAINS >= 2 {
            while blocks > 0 {
                let (low, high) = weights!();
                multiply!(a, low, 0);
                multiply!(b, high, 1);
                advance!();
                blocks -= 1;
            }
        }
        while blocks > 0 {
            let (low, high) = weights!();
            multiply!(a, low, 0);
            multiply!(a, high, 1);
            advance!();
            blocks -= 1;
        }
    }
    for_rows!(row, {
        if CHAINS >= 2 {
            a[row] = [_mm512_add_epi32(a[row][0], b[row][0]), _mm512_add_epi32(a[row][1], b[row][1])];
        }
        if CHAINS == 4 {
            let more = [_mm512_add_epi32(c[row][0], d[row][0]), _mm512_add_epi32(c[row][1], d[row][1])];
            a[row] = [_mm512_add_epi32(a[row][0], more[0]), _mm512_add_epi32(a[row][1], more[1])];
        }
    });
    *sums = a;
}

/// Half of a group's 32 values.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn load(values: &[f32], group: usize, half: usize) -> __m512 {
    // SAFETY: the caller's promise that they exist.
    unsafe { _mm512_loadu_ps(values.as_ptr().add(group * PANEL + half * 16)) }
}

pub(super) fn float_tile(_: Avx512, tile: &mut FloatTile<'_, '_>) {
    // SAFETY: the token proves that the instructions exist; `FloatTile::run` checked the lengths of all slices.
    unsafe { by_rows!(tile.rows, float_rows, (tile)) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn float_rows<const ROWS: usize, const CHAINS: usize>(tile: &mut FloatTile<'_, '_>) {
    // SAFETY: the caller's promise: slices are as long as `FloatTile::run` checks.
    unsafe {
        for group in 0..tile.groups {
            let sums = match tile.storage {
                Storage::F32 => float_dot::<ROWS, CHAINS, F32>(tile, group),
                Storage::F16 => float_dot::<ROWS, CHAINS, F16>(tile, group),
                Storage::Bf16 => float_dot::<ROWS, CHAINS, BF16>(tile, group),
                Storage::F8 => float_dot::<ROWS, CHAINS, F8>(tile, group),
                Storage::Byte => float_dot::<ROWS, CHAINS, BYTE>(tile, group),
                Storage::Nibble => float_dot::<ROWS, CHAINS, NIBBLE>(tile, group),
            };
            let finish = &mut tile.finish;
            let mut scales = [_mm512_set1_ps(if tile.storage == Storage::F8 { F8_UNIT } else { 1.0 }); 2];
            if !finish.scales.is_empty() {
                scales = [
                    _mm512_mul_ps(load(finish.scales, group, 0), scales[0]),
                    _mm512_mul_ps(load(finish.scales, group, 1), scales[1]),
                ];
            }
            let add = finish.add || group > 0;
            let last = if group + 1 == tile.groups { finish.last.as_ref() } else { None };
            let total = finish.total.as_mut_ptr();
            macro_rules! scaled {
                ($row:expr, $half:expr) => {
                    _mm512_mul_ps(sums[$row][$half], scales[$half])
                };
            }
            finish_group!(last, add, total, scaled);
        }
    }
}

/// The sums of all blocks, before scaling, as [`super::portable::float_tile`] orders them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
#[inline]
unsafe fn float_dot<const ROWS: usize, const CHAINS: usize, const KIND: u8>(
    tile: &FloatTile<'_, '_>,
    group: usize,
) -> Sums<__m512, ROWS> {
    let block_bytes = tile.storage.block_bytes();
    let bytes = tile.codes.len() / tile.groups;
    let mut chains = [[[_mm512_setzero_ps(); 2]; ROWS]; CHAINS];
    // SAFETY: the caller's promise: `activations` holds eight values per row and block; loads of codes lie in a block.
    unsafe {
        let zeros = [load_zeros(tile.zeros, group, 0), load_zeros(tile.zeros, group, 1)];
        let codes = tile.codes.get_unchecked(group * bytes..(group + 1) * bytes);
        let mut x = tile.activations.as_ptr().add(group * (bytes / block_bytes) * BLOCK * ROWS);
        for block in codes.chunks_exact(block_bytes) {
            for line in (0..block_bytes).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(tile.ahead + line).cast());
            }
            for column in 0..BLOCK {
                let weights = [
                    column_of::<KIND>(block.as_ptr(), column, 0, zeros[0]),
                    column_of::<KIND>(block.as_ptr(), column, 1, zeros[1]),
                ];
                let chain = column % CHAINS;
                for_rows!(row, {
                    let x = _mm512_set1_ps(*x.add(row));
                    chains[chain][row][0] = _mm512_fmadd_ps(weights[0], x, chains[chain][row][0]);
                    chains[chain][row][1] = _mm512_fmadd_ps(weights[1], x, chains[chain][row][1]);
                });
                x = x.add(ROWS);
            }
        }
    }
    let (first, others) = chains.split_at(1);
    let mut sums = first[0];
    for chain in others {
        for (sums, more) in sums.iter_mut().zip(chain) {
            *sums = [_mm512_add_ps(sums[0], more[0]), _mm512_add_ps(sums[1], more[1])];
        }
    }
    sums
}

/// Sixteen outputs of one column of a block; e4m3 in units of [`F8_UNIT`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
#[inline]
unsafe fn column_of<const KIND: u8>(block: *const u8, column: usize, half: usize, zeros: __m512i) -> __m512 {
    let element = column * PANEL + half * 16;
    // SAFETY: the caller's promise that `block` points to a whole block.
    unsafe {
        match KIND {
            F32 => _mm512_loadu_ps(block.add(element * 4).cast()),
            F16 => _mm512_cvtph_ps(load_256(block.add(element * 2))),
            BF16 => {
                let wide = _mm512_cvtepu16_epi32(load_256(block.add(element * 2)));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
            F8 => {
                let wide = _mm256_cvtepu8_epi16(load_128(block.add(element)));
                let sign = _mm256_and_si256(_mm256_slli_epi16::<8>(wide), _mm256_set1_epi16(i16::MIN));
                let magnitude = _mm256_slli_epi16::<7>(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)));
                _mm512_cvtph_ps(_mm256_or_si256(sign, magnitude))
            }
            BYTE => {
                let lanes = _mm512_loadu_si512(block.add(column / 4 * PANEL * 4 + half * 64).cast());
                let code = match column % 4 {
                    0 => lanes,
                    1 => _mm512_srli_epi32::<8>(lanes),
                    2 => _mm512_srli_epi32::<16>(lanes),
                    _ => _mm512_srli_epi32::<24>(lanes),
                };
                let code = _mm512_and_si512(code, _mm512_set1_epi32(0xff));
                _mm512_cvtepi32_ps(_mm512_sub_epi32(code, zeros))
            }
            _ => {
                let lanes = _mm512_loadu_si512(block.add(half * 64).cast());
                let code = match column {
                    0 => lanes,
                    1 => _mm512_srli_epi32::<8>(lanes),
                    2 => _mm512_srli_epi32::<16>(lanes),
                    3 => _mm512_srli_epi32::<24>(lanes),
                    4 => _mm512_srli_epi32::<4>(lanes),
                    5 => _mm512_srli_epi32::<12>(lanes),
                    6 => _mm512_srli_epi32::<20>(lanes),
                    _ => _mm512_srli_epi32::<28>(lanes),
                };
                let code = _mm512_and_si512(code, _mm512_set1_epi32(15));
                _mm512_cvtepi32_ps(_mm512_sub_epi32(code, zeros))
            }
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_256(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise that 32 bytes can be read.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
unsafe fn load_128(from: *const u8) -> __m128i {
    // SAFETY: the caller's promise that 16 bytes can be read.
    unsafe { _mm_loadu_si128(from.cast()) }
}

/// Writes whole blocks of codes as scaled values, `[column][32 outputs]`.
pub(super) fn decode(
    _: Avx512,
    storage: Storage,
    codes: &[u8],
    zeros: Zeros<'_>,
    scales: &[f32],
    out: &mut [f32],
) {
    assert!(out.len() >= codes.len() / storage.block_bytes() * BLOCK * PANEL);
    assert!(scales.is_empty() || scales.len() >= PANEL);
    zeros.check(1);
    // SAFETY: the token proves that the instructions exist, and the lengths were checked.
    unsafe {
        match storage {
            Storage::F32 => decode_blocks::<F32>(storage, codes, zeros, scales, out),
            Storage::F16 => decode_blocks::<F16>(storage, codes, zeros, scales, out),
            Storage::Bf16 => decode_blocks::<BF16>(storage, codes, zeros, scales, out),
            Storage::F8 => decode_blocks::<F8>(storage, codes, zeros, scales, out),
            Storage::Byte => decode_blocks::<BYTE>(storage, codes, zeros, scales, out),
            Storage::Nibble => decode_blocks::<NIBBLE>(storage, codes, zeros, scales, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c")]
unsafe fn decode_blocks<const KIND: u8>(
    storage: Storage,
    codes: &[u8],
    zeros: Zeros<'_>,
    scales: &[f32],
    out: &mut [f32],
) {
    let unit = _mm512_set1_ps(if KIND == F8 { F8_UNIT } else { 1.0 });
    // SAFETY: the caller's promise: `out` holds 32 values for each column of the blocks.
    unsafe {
        for half in 0..2 {
            let zeros = load_zeros(zeros, 0, half);
            let scales = if scales.is_empty() { unit } else { _mm512_mul_ps(load(scales, 0, half), unit) };
            for (block, out) in
                codes.chunks_exact(storage.block_bytes()).zip(out.chunks_exact_mut(BLOCK * PANEL))
            {
                for column in 0..BLOCK {
                    let value = column_of::<KIND>(block.as_ptr(), column, half, zeros);
                    let to = out.as_mut_ptr().add(column * PANEL + half * 16);
                    _mm512_storeu_ps(to, _mm512_mul_ps(value, scales));
                }
            }
        }
    }
}

/// Writes blocks of nibbles as blocks of bytes.
pub(super) fn widen_nibbles(_: Avx512, codes: &[u8], out: &mut [u8]) {
    assert!(out.len() >= codes.len() * 2);
    // SAFETY: the token proves that the instructions exist.
    unsafe { widen_blocks(codes, out) }
}

#[target_feature(enable = "avx512f")]
fn widen_blocks(codes: &[u8], out: &mut [u8]) {
    let low = _mm512_set1_epi8(15);
    for (codes, out) in codes.chunks_exact(PANEL * 4).zip(out.chunks_exact_mut(PANEL * 8)) {
        for half in 0..2 {
            // SAFETY: `codes` is two registers long, `out` four.
            unsafe {
                let v = _mm512_loadu_si512(codes.as_ptr().add(half * 64).cast());
                let out = out.as_mut_ptr().add(half * 64);
                _mm512_storeu_si512(out.cast(), _mm512_and_si512(v, low));
                let high = _mm512_and_si512(_mm512_srli_epi32::<4>(v), low);
                _mm512_storeu_si512(out.add(PANEL * 4).cast(), high);
            }
        }
    }
}
