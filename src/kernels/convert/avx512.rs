//! f16 and bf16 with 512-bit registers. The compiler finds neither `vcvtps2ph` nor stores that bypass the caches.

#[allow(clippy::wildcard_imports)] // the instructions
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::portable;
use crate::kernels::level::Avx512;

/// 32 values to f16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn to_f16(low: __m512, high: __m512) -> __m512i {
    let low = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(low);
    let high = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(high);
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
}

/// 32 values to bf16. The instruction for it takes denormals for zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn to_bf16(low: __m512, high: __m512) -> __m512i {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
    fn half(x: __m512) -> __m256i {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let all = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(all))
    }
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(half(low)), half(high))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn from_f16(h: __m256i) -> __m512 {
    _mm512_cvtph_ps(h)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn from_bf16(h: __m256i) -> __m512 {
    let bits = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(h));
    let x = _mm512_castsi512_ps(bits);
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_castsi512_ps(_mm512_mask_or_epi32(bits, nan, bits, _mm512_set1_epi32(0x0040_0000)))
}

macro_rules! narrow {
    ($name:ident, $convert:ident) => {
        /// Narrows as the portable function of this name does; `stream` stores past the caches.
        pub(super) fn $name(
            _: Avx512,
            values: &[f32],
            out: &mut [MaybeUninit<[u8; 2]>],
            stream: bool,
        ) -> u32 {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")]
            fn run(values: &[f32], out: &mut [MaybeUninit<[u8; 2]>], stream: bool) -> u32 {
                let len = values.len().min(out.len());
                let (values, out) = (&values[..len], &mut out[..len]);
                // an address that no number of elements brings to a line of the cache gives the whole length
                let aligned = out.as_ptr().align_offset(64);
                let stream = stream && aligned < len;
                let head = if stream { aligned } else { 0 };
                let mut largest = portable::$name(&values[..head], &mut out[..head]);
                let (blocks, tail) = values[head..].as_chunks::<32>();
                let (out, out_tail) = out[head..].as_chunks_mut::<32>();
                let magnitude = _mm512_set1_epi32(0x7fff_ffff);
                let mut max = [_mm512_setzero_si512(); 2];
                for (block, out) in blocks.iter().zip(out) {
                    // SAFETY: a block is 32 values, in any alignment.
                    let (low, high) =
                        unsafe { (_mm512_loadu_ps(block.as_ptr()), _mm512_loadu_ps(block.as_ptr().add(16))) };
                    max[0] = _mm512_max_epu32(max[0], _mm512_and_si512(_mm512_castps_si512(low), magnitude));
                    max[1] = _mm512_max_epu32(max[1], _mm512_and_si512(_mm512_castps_si512(high), magnitude));
                    // the outputs' lines take turns with the inputs', which the processor does not foresee
                    _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(1024).cast());
                    _mm_prefetch::<_MM_HINT_T0>(block.as_ptr().wrapping_add(1040).cast());
                    let codes = $convert(low, high);
                    #[allow(clippy::cast_ptr_alignment)] // stores to any alignment, or to one that is checked
                    let out = out.as_mut_ptr().cast::<__m512i>();
                    if stream {
                        // SAFETY: a block takes 64 bytes, and `head` made the first a multiple of 64.
                        unsafe { _mm512_stream_si512(out, codes) };
                    } else {
                        // SAFETY: a block takes 64 bytes.
                        unsafe { _mm512_storeu_si512(out, codes) };
                    }
                }
                if stream {
                    _mm_sfence();
                }
                largest = largest.max(_mm512_reduce_max_epu32(_mm512_max_epu32(max[0], max[1])));
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
        pub(super) fn $name(_: Avx512, input: &[[u8; 2]], out: &mut [MaybeUninit<f32>], stream: bool) {
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")]
            fn run(input: &[[u8; 2]], out: &mut [MaybeUninit<f32>], stream: bool) {
                let len = input.len().min(out.len());
                let (input, out) = (&input[..len], &mut out[..len]);
                let aligned = out.as_ptr().align_offset(64);
                let stream = stream && aligned < len;
                let head = if stream { aligned } else { 0 };
                portable::$name(&input[..head], &mut out[..head]);
                let (blocks, tail) = input[head..].as_chunks::<16>();
                let (out, out_tail) = out[head..].as_chunks_mut::<16>();
                for (block, out) in blocks.iter().zip(out) {
                    // SAFETY: a block is 32 bytes, in any alignment.
                    let x = $convert(unsafe { _mm256_loadu_si256(block.as_ptr().cast()) });
                    let out = out.as_mut_ptr().cast::<f32>();
                    if stream {
                        // SAFETY: a block takes 16 values, and `head` made the first a multiple of 64 bytes.
                        unsafe { _mm512_stream_ps(out, x) };
                    } else {
                        // SAFETY: a block takes 16 values.
                        unsafe { _mm512_storeu_ps(out, x) };
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
