//! Bits straight into mask registers: the compiler does not find `vpcompress` and `vpexpand`.

#[allow(clippy::wildcard_imports)] // the instructions
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::portable;
use crate::kernels::level::{Avx512, Vbmi2};

/// As [`portable::apply`].
pub(super) fn apply(_: Avx512, values: &mut [f32], bits: &[u8]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn run(values: &mut [f32], bits: &[u8]) {
        let (blocks, tail) = values.as_chunks_mut::<16>();
        let (bits, last) = bits.split_at(blocks.len() * 2);
        for (block, bits) in blocks.iter_mut().zip(bits.as_chunks::<2>().0) {
            let kept = u16::from_le_bytes(*bits);
            // SAFETY: a block is 16 values, in any alignment.
            unsafe {
                let x = _mm512_maskz_loadu_ps(kept, block.as_ptr());
                _mm512_storeu_ps(block.as_mut_ptr(), x);
            }
        }
        portable::apply(tail, last);
    }
    // SAFETY: the token is the proof that the processor has these instructions.
    unsafe { run(values, bits) }
}

/// As [`portable::compress`] of `f32`.
pub(super) fn compress_f32(_: Avx512, values: &[f32], bits: &[u8], out: &mut [MaybeUninit<f32>]) -> usize {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn run(values: &[f32], bits: &[u8], out: &mut [MaybeUninit<f32>]) -> usize {
        let (blocks, tail) = values.as_chunks::<16>();
        let (bits, last) = bits.split_at(blocks.len() * 2);
        let mut next = 0;
        for (block, bits) in blocks.iter().zip(bits.as_chunks::<2>().0) {
            let kept = u16::from_le_bytes(*bits);
            // SAFETY: a block is 16 values, in any alignment.
            let x = _mm512_maskz_compress_ps(kept, unsafe { _mm512_loadu_ps(block.as_ptr()) });
            let count = kept.count_ones() as usize;
            let room = &mut out[next..];
            if room.len() >= 16 {
                // SAFETY: there is room for 16; what is behind the last is written over by the next block.
                unsafe { _mm512_storeu_ps(room.as_mut_ptr().cast(), x) };
            } else {
                let room = &mut room[..count];
                let first = ((1u32 << count) - 1) as u16;
                // SAFETY: only the first `count` lanes are written.
                unsafe { _mm512_mask_storeu_ps(room.as_mut_ptr().cast(), first, x) };
            }
            next += count;
        }
        next + portable::compress(tail, last, &mut out[next..])
    }
    // SAFETY: the token is the proof that the processor has these instructions.
    unsafe { run(values, bits, out) }
}

/// As [`portable::expand`] of `f32`.
pub(super) fn expand_f32(_: Avx512, values: &[f32], bits: &[u8], out: &mut [f32]) -> usize {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn run(values: &[f32], bits: &[u8], out: &mut [f32]) -> usize {
        let (blocks, tail) = out.as_chunks_mut::<16>();
        let (bits, last) = bits.split_at(blocks.len() * 2);
        let mut next = 0;
        for (block, bits) in blocks.iter_mut().zip(bits.as_chunks::<2>().0) {
            let kept = u16::from_le_bytes(*bits);
            let count = kept.count_ones() as usize;
            let from = &values[next..];
            let x = if from.len() >= 16 {
                // SAFETY: there are 16 values.
                unsafe { _mm512_loadu_ps(from.as_ptr()) }
            } else {
                let from = &from[..count];
                let first = ((1u32 << count) - 1) as u16;
                // SAFETY: only the first `count` lanes are read.
                unsafe { _mm512_maskz_loadu_ps(first, from.as_ptr()) }
            };
            // SAFETY: a block takes 16 values.
            unsafe { _mm512_storeu_ps(block.as_mut_ptr(), _mm512_maskz_expand_ps(kept, x)) };
            next += count;
        }
        next + portable::expand(&values[next..], last, tail)
    }
    // SAFETY: the token is the proof that the processor has these instructions.
    unsafe { run(values, bits, out) }
}

/// As [`portable::compress`] of bytes.
pub(super) fn compress_u8(_: Vbmi2, values: &[u8], bits: &[u8], out: &mut [MaybeUninit<u8>]) -> usize {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn run(values: &[u8], bits: &[u8], out: &mut [MaybeUninit<u8>]) -> usize {
        let (blocks, tail) = values.as_chunks::<64>();
        let (bits, last) = bits.split_at(blocks.len() * 8);
        let mut next = 0;
        for (block, bits) in blocks.iter().zip(bits.as_chunks::<8>().0) {
            let kept = u64::from_le_bytes(*bits);
            // SAFETY: a block is 64 bytes.
            let x = _mm512_maskz_compress_epi8(kept, unsafe { _mm512_loadu_si512(block.as_ptr().cast()) });
            let count = kept.count_ones() as usize;
            let room = &mut out[next..];
            if room.len() >= 64 {
                // SAFETY: there is room for 64; what is behind the last is written over by the next block.
                unsafe { _mm512_storeu_si512(room.as_mut_ptr().cast(), x) };
            } else {
                let room = &mut room[..count];
                let first = ((1u128 << count) - 1) as u64;
                // SAFETY: only the first `count` lanes are written.
                unsafe { _mm512_mask_storeu_epi8(room.as_mut_ptr().cast(), first, x) };
            }
            next += count;
        }
        next + portable::compress(tail, last, &mut out[next..])
    }
    // SAFETY: the token is the proof that the processor has these instructions.
    unsafe { run(values, bits, out) }
}
