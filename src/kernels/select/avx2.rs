//! Comparisons into bits through `vmovmskps`, which the compiler does not find.

#[allow(clippy::wildcard_imports)] // the instructions
use std::arch::x86_64::*;

use super::portable;
use crate::kernels::level::Avx2;

/// As [`portable::mask_from`].
pub(super) fn mask_from(_: Avx2, values: &[f32], threshold: u32, bits: &mut [u8]) -> u64 {
    #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    fn run(values: &[f32], threshold: u32, bits: &mut [u8]) -> u64 {
        let (blocks, tail) = values.as_chunks::<8>();
        let (out, out_tail) = bits.split_at_mut(blocks.len());
        let magnitude = _mm256_set1_epi32(0x7fff_ffff);
        // magnitudes are not negative as signed numbers either
        let thresholds = _mm256_set1_epi32(threshold as i32);
        let mut ties = 0;
        for (block, out) in blocks.iter().zip(out) {
            // SAFETY: a block is 8 values, in any alignment.
            let bits = _mm256_castps_si256(unsafe { _mm256_loadu_ps(block.as_ptr()) });
            let key = _mm256_and_si256(bits, magnitude);
            let equal = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(key, thresholds)));
            let above = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(key, thresholds)));
            *out = (above | equal) as u8;
            ties += u64::from(equal.count_ones());
        }
        ties + portable::mask_from(tail, threshold, out_tail)
    }
    // SAFETY: the token is the proof that the processor has these instructions.
    unsafe { run(values, threshold, bits) }
}

/// As [`portable::mask_n_of_m`] with `m` = 4.
pub(super) fn mask_n_of_4(_: Avx2, values: &[f32], n: usize, bits: &mut [u8]) {
    #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    fn run(values: &[f32], n: usize, bits: &mut [u8]) {
        let (blocks, tail) = values.as_chunks::<8>();
        let (out, out_tail) = bits.split_at_mut(blocks.len());
        let magnitude = _mm256_set1_epi32(0x7fff_ffff);
        let limit = _mm256_set1_epi32(n as i32);
        // lanes whose neighbour in a rotation by 1, 2 and 3 stands before them
        let earlier = [
            _mm256_setr_epi32(0, 0, 0, -1, 0, 0, 0, -1),
            _mm256_setr_epi32(0, 0, -1, -1, 0, 0, -1, -1),
            _mm256_setr_epi32(0, -1, -1, -1, 0, -1, -1, -1),
        ];
        for (block, out) in blocks.iter().zip(out) {
            // SAFETY: a block is 8 values, in any alignment.
            let bits = _mm256_castps_si256(unsafe { _mm256_loadu_ps(block.as_ptr()) });
            let key = _mm256_and_si256(bits, magnitude);
            let others = [
                _mm256_shuffle_epi32::<0b00_11_10_01>(key),
                _mm256_shuffle_epi32::<0b01_00_11_10>(key),
                _mm256_shuffle_epi32::<0b10_01_00_11>(key),
            ];
            let mut ahead = _mm256_setzero_si256();
            for (other, earlier) in others.into_iter().zip(earlier) {
                let equal = _mm256_and_si256(_mm256_cmpeq_epi32(other, key), earlier);
                ahead = _mm256_sub_epi32(ahead, _mm256_or_si256(_mm256_cmpgt_epi32(other, key), equal));
            }
            *out = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, ahead))) as u8;
        }
        portable::mask_n_of_m(tail, n, 4, out_tail);
    }
    // SAFETY: the token is the proof that the processor has these instructions.
    unsafe { run(values, n, bits) }
}
