//! Steps of slices in AVX-512: activations are picked by byte.

use std::arch::x86_64::{_MM_HINT_T0, _mm_cvtsi32_si128, _mm_prefetch};
use std::arch::x86_64::{
    _mm512_add_epi32, _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mask_blend_epi8,
    _mm512_movepi8_mask, _mm512_or_si512, _mm512_permutex2var_epi8, _mm512_set1_epi32, _mm512_set1_epi64,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_srl_epi32, _mm512_storeu_si512,
};
use std::sync::LazyLock;

use super::slices::{LANES, STEP};
use crate::kernels::level::Avx512;

/// Bytes by which steps are fetched ahead of their use.
const AHEAD: usize = 2048;

/// Whether bytes can be picked from two registers, which is not part of the level.
pub(super) fn can_pick(_: Avx512) -> bool {
    static CAN: LazyLock<bool> = LazyLock::new(|| is_x86_feature_detected!("avx512vbmi"));
    *CAN
}

/// Adds a window's steps to the sums.
pub(super) fn window(
    proof: Avx512,
    data: &[u8],
    x: &[u8],
    columns: usize,
    width: usize,
    sums: &mut [[i32; LANES]],
) {
    assert!(can_pick(proof) && columns.is_multiple_of(64) && columns <= 256);
    assert!(x.len() >= (sums.len() - 1) * width + columns);
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the processor has the instructions, and `x` holds the window of every row.
        unsafe { window_row(data, x[row * width..].as_ptr(), columns / 64, sums) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn window_row(data: &[u8], x: *const u8, registers: usize, sums: &mut [i32; LANES]) {
    // SAFETY: the caller's promise: `x` points to so many registers; a step is 64 numbers and 64 codes.
    unsafe {
        // a narrower window has no numbers for the rest
        let mut table = [_mm512_setzero_si512(); 4];
        for (i, register) in table.iter_mut().enumerate().take(registers) {
            *register = _mm512_loadu_si512(x.add(i * 64).cast());
        }
        let mut chains = [_mm512_loadu_si512(sums.as_ptr().cast()), _mm512_setzero_si512()];
        for (i, step) in data.chunks_exact(2 * STEP).enumerate() {
            let numbers = _mm512_loadu_si512(step.as_ptr().cast());
            let codes = _mm512_loadu_si512(step.as_ptr().add(STEP).cast());
            _mm_prefetch::<_MM_HINT_T0>(step.as_ptr().wrapping_add(AHEAD).cast());
            _mm_prefetch::<_MM_HINT_T0>(step.as_ptr().wrapping_add(AHEAD + 64).cast());
            let low = _mm512_permutex2var_epi8(table[0], numbers, table[1]);
            let high = _mm512_permutex2var_epi8(table[2], numbers, table[3]);
            let picked = _mm512_mask_blend_epi8(_mm512_movepi8_mask(numbers), low, high);
            chains[i % 2] = _mm512_dpbusd_epi32(chains[i % 2], picked, codes);
        }
        _mm512_storeu_si512(sums.as_mut_ptr().cast(), _mm512_add_epi32(chains[0], chains[1]));
    }
}

/// Adds 2:4 steps to the sums.
pub(super) fn two_of_four(_: Avx512, data: &[u8], x: &[u8], width: usize, sums: &mut [[i32; LANES]]) {
    assert!(x.len() >= (sums.len() - 1) * width + data.len() / (5 * STEP) * 32);
    // SAFETY: the token proves that the instructions exist, and `x` holds 32 columns for every four steps of every row.
    unsafe {
        match sums {
            [a] => two_of_four_rows([a], data, x.as_ptr(), width),
            [a, b] => two_of_four_rows([a, b], data, x.as_ptr(), width),
            [a, b, c] => two_of_four_rows([a, b, c], data, x.as_ptr(), width),
            [a, b, c, d] => two_of_four_rows([a, b, c, d], data, x.as_ptr(), width),
            _ => unreachable!("one to four rows of activations"),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn two_of_four_rows<const N: usize>(
    sums: [&mut [i32; LANES]; N],
    data: &[u8],
    x: *const u8,
    width: usize,
) {
    let two_bits = _mm512_set1_epi32(0x0303_0303);
    // codes 2 and 3 of a step belong to the second four columns
    let second = _mm512_set1_epi32(0x0404_0000);
    // SAFETY: the caller's promise: 32 columns of activations for every four steps; every load of data lies in them.
    unsafe {
        let mut chains = [[_mm512_setzero_si512(); 2]; N];
        for (quad, data) in data.chunks_exact(5 * STEP).enumerate() {
            let positions = _mm512_loadu_si512(data.as_ptr().cast());
            for step in 0..4 {
                _mm_prefetch::<_MM_HINT_T0>(data.as_ptr().wrapping_add(AHEAD + step * 64).cast());
                let shift = _mm_cvtsi32_si128(2 * step as i32);
                let position = _mm512_and_si512(_mm512_srl_epi32(positions, shift), two_bits);
                let numbers = _mm512_or_si512(position, second);
                let codes = _mm512_loadu_si512(data.as_ptr().add(STEP + step * STEP).cast());
                for (row, chains) in chains.iter_mut().enumerate() {
                    let eight = x.add(row * width + quad * 32 + step * 8).cast::<i64>().read_unaligned();
                    let picked = _mm512_shuffle_epi8(_mm512_set1_epi64(eight), numbers);
                    chains[step % 2] = _mm512_dpbusd_epi32(chains[step % 2], picked, codes);
                }
            }
            _mm_prefetch::<_MM_HINT_T0>(data.as_ptr().wrapping_add(AHEAD + 4 * 64).cast());
        }
        for (sums, chains) in sums.into_iter().zip(chains) {
            let before = _mm512_loadu_si512(sums.as_ptr().cast());
            let all = _mm512_add_epi32(before, _mm512_add_epi32(chains[0], chains[1]));
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), all);
        }
    }
}
