//! f16 and bf16 with 256-bit registers. The compiler finds neither `vcvtps2ph` nor stores that bypass the caches.

#[allow(clippy::wildcard_imports)] // the instructions
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::portable;
use crate::kernels::level::Avx2;

/// 16 values to f16.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn to_f16(low: __m256, high: __m256) -> __m256i {
    let low = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(low);
    let high = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(high);
    _mm256_set_m128i(high, low)
}

/// 16 values to bf16.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn to_bf16(low: __m256, high: __m256) -> __m256i {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    fn half(x: __m256) -> __m256i {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
    }
    // each 128-bit half packs for itself
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(half(low), half(high)))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn from_f16(h: __m128i) -> __m256 {
    _mm256_cvtph_ps(h)
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn from_bf16(h: __m128i) -> __m256 {
    let bits = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(h));
    let x = _mm256_castsi256_ps(bits);
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    let quiet = _mm256_and_si256(nan, _mm256_set1_epi32(0x0040_0000));
    _mm256_castsi256_ps(_mm256_or_si256(bits, quiet))
}

macro_rules! narrow {
    ($name:ident, $convert:ident) => {
        /// Narrows as the portable function of this name does; `stream` stores past the caches.
        pub(super) fn $name(_: Avx2, values: &[f32], out: &mut [MaybeUninit<[u8; 2]>], stream: bool) -> u32 {
            #[target_feature(enable = "avx2,f16c,fma,bmi1,bmi2,lzcnt,popcnt")]
            fn run(values: &[f32], out: &mut [MaybeUninit<[u8; 2]>], stream: bool) -> u32 {
                let len = values.len().min(out.len());
                let (values, out) = (&values[..len], &mut out[..len]);
                let aligned = out.as_ptr().align_offset(32);
                let stream = stream && aligned < len;
                let head = if stream { aligned } else { 0 };
                let mut largest = portable::$name(&values[..head], &mut out[..head]);
                let (blocks, tail) = values[head..].as_chunks::<16>();
                let (out, out_tail) = out[head..].as_chunks_mut::<16>();
                let magnitude = _mm256_set1_epi32(0x7fff_ffff);
                let mut max = [_mm256_setzero_si256(); 2];
                for (block, out) in blocks.iter().zip(out) {
                    // SAFETY: a block is 16 values, in any alignment.
                    let (low, high) =
                        unsafe { (_mm256_loadu_ps(block.as_ptr()), _mm256_loadu_ps(block.as_ptr().add(8))) };
                    max[0] = _mm256_max_epu32(max[0], _mm256_and_si256(_mm256_castps_si256(low), magnitude));
                    max[1] = _mm256_max_epu32(max[1], _mm256_and_si256(_mm256_castps_si256(high), magnitude));
                    let codes = $convert(low, high);
                    #[allow(clippy::cast_ptr_alignment)] // stores to any alignment, or to one that is checked
                    let out = out.as_mut_ptr().cast::<__m256i>();
                    if stream {
                        // SAFETY: a block takes 32 bytes, and `head` made the first a multiple of 32.
                        unsafe { _mm256_stream_si256(out, codes) };
                    } else {
                        // SAFETY: a block takes 32 bytes.
                        unsafe { _mm256_storeu_si256(out, codes) };
                    }
                }
                if stream {
                    _mm_sfence();
                }
                let mut lanes = [0u32; 8];
                // SAFETY: eight lanes of 32 bits.
                unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_max_epu32(max[0], max[1])) };
                largest = lanes.into_iter().fold(largest, u32::max);
                largest.max(portable::$name(tail, out_tail))
            }
            // SAFETY: the token is the proof that the processor has these instructions.
            unsafe { run(values, out, stream) }
        }
    };
}

narrow!(narrow_f16, to_f16);
narrow!(narrow_bf16, to_bf16);

macro_rules! widen {
    ($name:ident, $convert:ident) => {
        /// Widens as the portable function of this name does; `stream` stores past the caches.
        pub(super) fn $name(_: Avx2, input: &[[u8; 2]], out: &mut [MaybeUninit<f32>], stream: bool) {
            #[target_feature(enable = "avx2,f16c,fma,bmi1,bmi2,lzcnt,popcnt")]
            fn run(input: &[[u8; 2]], out: &mut [MaybeUninit<f32>], stream: bool) {
                let len = input.len().min(out.len());
                let (input, out) = (&input[..len], &mut out[..len]);
                let aligned = out.as_ptr().align_offset(32);
                let stream = stream && aligned < len;
                let head = if stream { aligned } else { 0 };
                portable::$name(&input[..head], &mut out[..head]);
                let (blocks, tail) = input[head..].as_chunks::<8>();
                let (out, out_tail) = out[head..].as_chunks_mut::<8>();
                for (block, out) in blocks.iter().zip(out) {
                    // SAFETY: a block is 16 bytes, in any alignment.
                    let x = $convert(unsafe { _mm_loadu_si128(block.as_ptr().cast()) });
                    let out = out.as_mut_ptr().cast::<f32>();
                    if stream {
                        // SAFETY: a block takes 8 values, and `head` made the first a multiple of 32 bytes.
                        unsafe { _mm256_stream_ps(out, x) };
                    } else {
                        // SAFETY: a block takes 8 values.
                        unsafe { _mm256_storeu_ps(out, x) };
                    }
                }
                if stream {
                    _mm_sfence();
                }
                portable::$name(tail, out_tail);
            }
            // SAFETY: the token is the proof that the processor has these instructions.
            unsafe { run(input, out, stream) }
        }
    };
}

widen!(widen_f16, from_f16);
widen!(widen_bf16, from_bf16);
