//! Steps of slices in AVX-512: activations are picked by byte.

use std::arch::x86_64::{_MM_HINT_T0, _mm_cvtsi32_si128, _mm_prefetch};
use std::arch::x86_64::{
    _mm512_add_epi32, _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_mask_blend_epi8,
    _mm512_movepi8_mask, _mm512_or_si512, _mm512_permutex2var_epi8, _mm512_permutexvar_epi8,
    _mm512_set1_epi32, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_srl_epi32,
    _mm512_storeu_si512,
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

/// Calls `$function::<N, REGISTERS>` for the number of rows of activations and of registers of a window.
macro_rules! by_window {
    ($sums:expr, $registers:expr, $arguments:tt) => {
        match ($sums, $registers) {
            ([a], 4) => windows_rows::<1, 4>([a], $arguments),
            ([a, b], 4) => windows_rows::<2, 4>([a, b], $arguments),
            ([a, b, c], 4) => windows_rows::<3, 4>([a, b, c], $arguments),
            ([a, b, c, d], 4) => windows_rows::<4, 4>([a, b, c, d], $arguments),
            ([a], 2) => windows_rows::<1, 2>([a], $arguments),
            ([a, b], 2) => windows_rows::<2, 2>([a, b], $arguments),
            ([a, b, c], 2) => windows_rows::<3, 2>([a, b, c], $arguments),
            ([a, b, c, d], 2) => windows_rows::<4, 2>([a, b, c, d], $arguments),
            ([a], 1) => windows_rows::<1, 1>([a], $arguments),
            ([a, b], 1) => windows_rows::<2, 1>([a, b], $arguments),
            ([a, b, c], 1) => windows_rows::<3, 1>([a, b, c], $arguments),
            ([a, b, c, d], 1) => windows_rows::<4, 1>([a, b, c, d], $arguments),
            _ => unreachable!("one to four rows of activations, windows of 64, 128 or 256 columns"),
        }
    };
}

/// Adds the steps of neighbouring windows to the sums; window `i` has the steps from `steps[i]` to `steps[i + 1]`.
pub(super) fn windows(
    proof: Avx512,
    steps: &[u32],
    data: &[u8],
    x: &[u8],
    columns: usize,
    width: usize,
    sums: &mut [[i32; LANES]],
) {
    let windows = steps.len() - 1;
    assert!(can_pick(proof) && steps.is_sorted() && data.len() >= steps[windows] as usize * 2 * STEP);
    assert!(x.len() >= (sums.len() - 1) * width + windows * columns);
    // SAFETY: the processor has the instructions, `data` holds the steps, and `x` the windows of every row.
    unsafe { by_window!(sums, columns / 64, (steps, data.as_ptr(), x.as_ptr(), width)) }
}

/// # Safety
/// `data` must hold all steps, 64 numbers and 64 codes each, and `x` as many windows of so many registers for every row.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")]
#[allow(clippy::needless_range_loop)] // see below
unsafe fn windows_rows<const N: usize, const REGISTERS: usize>(
    sums: [&mut [i32; LANES]; N],
    (steps, data, x, width): (&[u32], *const u8, *const u8, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut chains = [_mm512_setzero_si512(); N];
        let mut at = data.add(steps[0] as usize * 2 * STEP);
        for window in 0..steps.len() - 1 {
            // by number, here and below: only then everything stays in registers
            let mut tables = [[_mm512_setzero_si512(); REGISTERS]; N];
            for row in 0..N {
                for i in 0..REGISTERS {
                    let from = x.add(row * width + (window * REGISTERS + i) * 64);
                    tables[row][i] = _mm512_loadu_si512(from.cast());
                }
            }
            for _ in steps[window]..steps[window + 1] {
                let numbers = _mm512_loadu_si512(at.cast());
                let codes = _mm512_loadu_si512(at.add(STEP).cast());
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + 64).cast());
                at = at.add(2 * STEP);
                let upper = _mm512_movepi8_mask(numbers);
                for row in 0..N {
                    let table = &tables[row];
                    let picked = match REGISTERS {
                        1 => _mm512_permutexvar_epi8(numbers, table[0]),
                        2 => _mm512_permutex2var_epi8(table[0], numbers, table[1 % REGISTERS]),
                        _ => {
                            let [a, b] = [table[0], table[1 % REGISTERS]];
                            let [c, d] = [table[2 % REGISTERS], table[3 % REGISTERS]];
                            let low = _mm512_permutex2var_epi8(a, numbers, b);
                            let high = _mm512_permutex2var_epi8(c, numbers, d);
                            _mm512_mask_blend_epi8(upper, low, high)
                        }
                    };
                    chains[row] = _mm512_dpbusd_epi32(chains[row], picked, codes);
                }
            }
        }
        for (sums, all) in sums.into_iter().zip(chains) {
            let before = _mm512_loadu_si512(sums.as_ptr().cast());
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), _mm512_add_epi32(before, all));
        }
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
