//! Comparisons straight into mask registers, and candidates taken out by `vpcompressd`: the compiler finds neither.

#[allow(clippy::wildcard_imports)] // the instructions
use std::arch::x86_64::*;

use super::portable::{self, BitWriter, Counts};
use crate::kernels::level::Avx512;

/// As [`portable::bracket`].
pub(super) fn bracket(_: Avx512, values: &[f32], low: u32, high: u32, inside: &mut Vec<u32>) -> Counts {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn run(values: &[f32], low: u32, high: u32, inside: &mut Vec<u32>) -> Counts {
        let (blocks, tail) = values.as_chunks::<16>();
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let (lows, highs) = (_mm512_set1_epi32(low as i32), _mm512_set1_epi32(high as i32));
        let one = _mm512_set1_epi32(1);
        let mut counts = Counts::default();
        let mut largest = _mm512_setzero_si512();
        let before = inside.len();
        // few enough that neither a lane's count overflows nor much room is asked for
        for blocks in blocks.chunks(1 << 10) {
            let (mut below, mut at_low, mut at_high) =
                (_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512());
            inside.reserve(blocks.len() * 16);
            let start = inside.as_mut_ptr();
            let mut len = inside.len();
            for block in blocks {
                // SAFETY: a block is 16 values, in any alignment.
                let bits = _mm512_castps_si512(unsafe { _mm512_loadu_ps(block.as_ptr()) });
                let key = _mm512_and_si512(bits, magnitude);
                largest = _mm512_max_epu32(largest, key);
                below = _mm512_mask_add_epi32(below, _mm512_cmplt_epu32_mask(key, lows), below, one);
                at_low = _mm512_mask_add_epi32(at_low, _mm512_cmpeq_epi32_mask(key, lows), at_low, one);
                at_high = _mm512_mask_add_epi32(at_high, _mm512_cmpeq_epi32_mask(key, highs), at_high, one);
                let is_inside = _mm512_mask_cmplt_epu32_mask(_mm512_cmpgt_epu32_mask(key, lows), key, highs);
                let taken = _mm512_maskz_compress_epi32(is_inside, key);
                // SAFETY: `len` grew by at most 16 for each block before this one, for which room was reserved.
                unsafe { _mm512_storeu_si512(start.add(len).cast(), taken) };
                len += is_inside.count_ones() as usize;
            }
            // SAFETY: that many were written.
            unsafe { inside.set_len(len) };
            counts.below += _mm512_reduce_add_epi32(below) as u64;
            counts.at_low += _mm512_reduce_add_epi32(at_low) as u64;
            counts.at_high += _mm512_reduce_add_epi32(at_high) as u64;
        }
        if low == high {
            counts.at_high = 0;
        }
        let blocks_len = (values.len() - tail.len()) as u64;
        counts.above =
            blocks_len - counts.below - counts.at_low - counts.at_high - (inside.len() - before) as u64;
        let rest = portable::bracket(tail, low, high, inside);
        Counts {
            below: counts.below + rest.below,
            at_low: counts.at_low + rest.at_low,
            at_high: counts.at_high + rest.at_high,
            above: counts.above + rest.above,
            largest: _mm512_reduce_max_epu32(largest).max(rest.largest),
        }
    }
    // SAFETY: the token is the proof that the processor has these instructions.
    unsafe { run(values, low, high, inside) }
}

/// As [`portable::mask_from`].
pub(super) fn mask_from(_: Avx512, values: &[f32], threshold: u32, bits: &mut [u8]) -> u64 {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn run(values: &[f32], threshold: u32, bits: &mut [u8]) -> u64 {
        let (blocks, tail) = values.as_chunks::<16>();
        let (out, out_tail) = bits.split_at_mut(blocks.len() * 2);
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let thresholds = _mm512_set1_epi32(threshold as i32);
        let mut ties = 0;
        for (block, out) in blocks.iter().zip(out.as_chunks_mut::<2>().0) {
            // SAFETY: a block is 16 values, in any alignment.
            let bits = _mm512_castps_si512(unsafe { _mm512_loadu_ps(block.as_ptr()) });
            let key = _mm512_and_si512(bits, magnitude);
            *out = _mm512_cmpge_epu32_mask(key, thresholds).to_le_bytes();
            ties += u64::from(_mm512_cmpeq_epi32_mask(key, thresholds).count_ones());
        }
        ties + portable::mask_from(tail, threshold, out_tail)
    }
    // SAFETY: the token is the proof that the processor has these instructions.
    unsafe { run(values, threshold, bits) }
}

/// As [`portable::mask_n_of_m`].
pub(super) fn mask_n_of_m(_: Avx512, values: &[f32], n: usize, m: usize, bits: &mut [u8]) {
    /// `M` is `m`, or 0 where the compiler need not know it.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn run<const M: usize>(values: &[f32], n: usize, m: usize, bits: &mut [u8]) {
        let m = if M == 0 { m } else { M };
        // as many whole groups as a register holds; every lane is compared with the m − 1 others of its group
        let used = 16 / m * m;
        let lanes = (0xffffu32 >> (16 - used)) as u16;
        let mut rotations = [(_mm512_setzero_si512(), _mm512_setzero_si512()); 15];
        for (k, (from, earlier)) in rotations[..m - 1].iter_mut().enumerate() {
            let (mut index, mut before) = ([0i32; 16], [0i32; 16]);
            for lane in 0..used {
                let (group, place) = (lane / m * m, lane % m);
                let other = (place + k + 1) % m;
                index[lane] = (group + other) as i32;
                before[lane] = i32::from(other < place);
            }
            // SAFETY: both arrays are 64 bytes.
            unsafe {
                *from = _mm512_loadu_si512(index.as_ptr().cast());
                *earlier = _mm512_loadu_si512(before.as_ptr().cast());
            }
        }
        let magnitude = _mm512_set1_epi32(0x7fff_ffff);
        let (limit, one) = (_mm512_set1_epi32(n as i32), _mm512_set1_epi32(1));
        let keep = |x: __m512| {
            let key = _mm512_and_si512(_mm512_castps_si512(x), magnitude);
            let mut ahead = _mm512_setzero_si512();
            for (from, earlier) in &rotations[..m - 1] {
                // one more than the other key is above this one also when they are equal
                let other = _mm512_add_epi32(_mm512_permutexvar_epi32(*from, key), *earlier);
                ahead = _mm512_mask_add_epi32(ahead, _mm512_cmpgt_epu32_mask(other, key), ahead, one);
            }
            _mm512_mask_cmplt_epi32_mask(lanes, ahead, limit)
        };
        if used == 16 {
            let (blocks, tail) = values.as_chunks::<16>();
            let (out, out_tail) = bits.split_at_mut(blocks.len() * 2);
            for (block, out) in blocks.iter().zip(out.as_chunks_mut::<2>().0) {
                // SAFETY: a block is 16 values, in any alignment.
                *out = keep(unsafe { _mm512_loadu_ps(block.as_ptr()) }).to_le_bytes();
            }
            return portable::mask_n_of_m(tail, n, m, out_tail);
        }
        let mut writer = BitWriter::new(bits);
        let blocks = values.chunks_exact(used);
        let tail = blocks.remainder();
        for block in blocks {
            // SAFETY: a block is as many values as there are lanes in the mask.
            writer.push(keep(unsafe { _mm512_maskz_loadu_ps(lanes, block.as_ptr()) }), used);
        }
        for group in tail.chunks(m) {
            writer.push(portable::keep_n_of_group(group, n), group.len());
        }
        writer.finish();
    }
    // SAFETY: the token is the proof that the processor has these instructions.
    unsafe {
        match m {
            4 => run::<4>(values, n, m, bits),
            _ => run::<0>(values, n, m, bits),
        }
    }
}
