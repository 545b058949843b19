//! Rows with 512-bit registers: two passes over what lies in the first-level cache, and divisions only where they are needed.
//!
//! Groups are taken in batches of a few thousand values. The first pass finds the ranges, then all scales of the batch are
//! computed side by side, and the second pass makes the codes, while it asks for the values of the next batch.

#[allow(clippy::wildcard_imports)] // the instructions
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::portable::{Out, parameters};
use super::search::is_awkward;
use super::{Affine, Codes, Encode, F8_E4M3_MAX, Job, Params};
use crate::dtype::Precision;
use crate::kernels::level::Avx512;
use crate::kernels::pack;
use crate::kernels::reduce::INFINITY;

/// Groups whose scales are computed side by side.
const GROUPS: usize = 16;

/// Values of a batch of groups: few enough that two batches fit the first-level cache.
const BATCH: usize = 4096;

/// Codes that are made before they are packed; a multiple of 64, so that they end on a word.
const PIECE: usize = 4096;

/// Codes that one step makes.
const STEP: usize = 64;

const SYMMETRIC: u8 = 0;
const ASYMMETRIC: u8 = 1;
const F8: u8 = 2;

const F32: u8 = 0;
const F16: u8 = 1;
const BF16: u8 = 2;

/// The division as it is defined.
const DIVIDE: u8 = 0;
/// Correctly rounded by way of the reciprocal, see [`super::search`].
const FUSED: u8 = 1;
/// In two steps: the quotient may be another float, but not the code.
const SHORT: u8 = 2;

/// Calls a function with constants for the kind of codes and the precision.
macro_rules! with_constants {
    ($scheme:expr, $f:ident($($arg:expr),*)) => {{
        let kind = match $scheme.codes {
            Codes::Int { symmetric: true, .. } => SYMMETRIC,
            Codes::Int { symmetric: false, .. } => ASYMMETRIC,
            Codes::F8E4M3 => F8,
        };
        // SAFETY: the caller's token is the proof that the processor has these instructions.
        unsafe {
            match (kind, $scheme.precision) {
                (SYMMETRIC, Precision::F32) => $f::<SYMMETRIC, F32>($($arg),*),
                (SYMMETRIC, Precision::F16) => $f::<SYMMETRIC, F16>($($arg),*),
                (SYMMETRIC, Precision::Bf16) => $f::<SYMMETRIC, BF16>($($arg),*),
                (ASYMMETRIC, Precision::F32) => $f::<ASYMMETRIC, F32>($($arg),*),
                (ASYMMETRIC, Precision::F16) => $f::<ASYMMETRIC, F16>($($arg),*),
                (ASYMMETRIC, Precision::Bf16) => $f::<ASYMMETRIC, BF16>($($arg),*),
                (_, Precision::F32) => $f::<F8, F32>($($arg),*),
                (_, Precision::F16) => $f::<F8, F16>($($arg),*),
                (_, Precision::Bf16) => $f::<F8, BF16>($($arg),*),
            }
        }
    }};
}

/// What [`super::portable::quantize_task`] does.
pub(super) fn quantize_task(_: Avx512, job: Job<'_>) -> bool {
    let Job { scheme, values, out, params } = job;
    let shape = (scheme.cols, scheme.group);
    with_constants!(scheme, rows(scheme.codes, values, shape, out, Source::Found(params)))
}

/// What [`super::portable::encode_task`] does.
pub(super) fn encode_task(_: Avx512, job: Encode<'_>) {
    let Encode { scheme, values, out, affines, stride } = job;
    let shape = (scheme.cols, scheme.group);
    with_constants!(scheme, rows(scheme.codes, values, shape, out, Source::Given(affines, stride)));
}

/// Where the parameters of groups come from.
enum Source<'a> {
    /// From their range; and they are stored here.
    Found(Params<'a>),
    /// Known, for each of the rows in turn; with the distance from one row to the next.
    Given(&'a [Affine], usize),
}

/// Parameters of a batch, lane by lane.
struct Batch {
    scale: [f32; GROUPS],
    zero_point: [f32; GROUPS],
    reciprocal: [f32; GROUPS],
    /// What the reciprocal lacks.
    rest: [f32; GROUPS],
    /// How to divide.
    how: [u8; GROUPS],
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn rows<const K: u8, const P: u8>(
    codes: Codes,
    values: &[f32],
    (cols, group): (usize, usize),
    out: Out<'_>,
    mut source: Source<'_>,
) -> bool {
    let groups = cols.div_ceil(group);
    let at_once = (BATCH / group).clamp(1, GROUPS);
    // what the second pass reads ahead
    let ahead = (at_once * group).min(cols);
    let (bits, per_row, out) = match out {
        Out::Bytes(bytes) => (8, cols, bytes),
        Out::Words(bits, words) => {
            let bytes = size_of_val(words);
            // SAFETY: bytes need less alignment, and may be uninitialized.
            let bytes = unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), bytes) };
            (bits, 4 * pack::words_for(cols, bits), bytes)
        }
    };
    let ends = Ends::new(codes);
    let mut piece = [const { MaybeUninit::<u8>::uninit() }; PIECE];
    for (row, (values, mut out)) in values.chunks_exact(cols).zip(out.chunks_exact_mut(per_row)).enumerate() {
        let mut filled = 0;
        let mut first = 0;
        while first < groups {
            let count = at_once.min(groups - first);
            let values = &values[first * group..cols.min((first + count) * group)];
            let Some(batch) =
                batch::<K, P>(codes, values, group, (row * groups + first, count), &mut source, row, first)
            else {
                return false;
            };
            for (i, mut values) in values.chunks(group).enumerate() {
                if bits == 8 {
                    let (now, later) = out.split_at_mut(values.len());
                    encode::<K, P>(&batch, i, &ends, values, now, ahead);
                    out = later;
                    continue;
                }
                while !values.is_empty() {
                    let (now, later) = values.split_at(values.len().min(PIECE - filled));
                    encode::<K, P>(&batch, i, &ends, now, &mut piece[filled..filled + now.len()], ahead);
                    filled += now.len();
                    values = later;
                    if filled == PIECE {
                        let (now, later) = out.split_at_mut(PIECE / 8 * usize::from(bits));
                        packed(&piece, bits, now);
                        (filled, out) = (0, later);
                    }
                }
            }
            first += count;
        }
        if bits == 8 {
            out.fill(MaybeUninit::new(0));
        } else {
            packed(&piece[..filled], bits, out);
        }
    }
    true
}

/// Parameters of the groups of `values`; `None` if a value or scale is not finite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn batch<const K: u8, const P: u8>(
    codes: Codes,
    values: &[f32],
    group: usize,
    (at, count): (usize, usize),
    source: &mut Source<'_>,
    row: usize,
    first: usize,
) -> Option<Batch> {
    let (mut low, mut high, mut largest) = ([0.0; GROUPS], [0.0; GROUPS], [0.0; GROUPS]);
    for (i, values) in values.chunks(group).enumerate() {
        if K == ASYMMETRIC && matches!(source, Source::Found(_)) {
            (low[i], high[i]) = extremes(values)?;
            largest[i] = if high[i] > -low[i] { high[i] } else { -low[i] };
        } else {
            let magnitude = magnitude(values);
            if magnitude >= INFINITY {
                return None;
            }
            (high[i], largest[i]) = (f32::from_bits(magnitude), f32::from_bits(magnitude));
        }
    }
    let mut batch = Batch {
        scale: [1.0; GROUPS],
        zero_point: [0.0; GROUPS],
        reciprocal: [0.0; GROUPS],
        rest: [0.0; GROUPS],
        how: [DIVIDE; GROUPS],
    };
    match source {
        Source::Found(params) => {
            let codes = match codes {
                Codes::Int { bits, .. } if K == ASYMMETRIC => Codes::Int { bits, symmetric: false },
                Codes::Int { bits, .. } => Codes::Int { bits, symmetric: true },
                Codes::F8E4M3 => Codes::F8E4M3,
            };
            let precision = match P {
                F32 => Precision::F32,
                F16 => Precision::F16,
                _ => Precision::Bf16,
            };
            for i in 0..GROUPS {
                (batch.scale[i], batch.zero_point[i]) = parameters(codes, low[i], high[i], precision);
            }
            for i in 0..count {
                if !batch.scale[i].is_finite() {
                    return None;
                }
                params.scales[at + i].write(batch.scale[i]);
            }
            if let Some(zero_points) = &mut params.zero_points {
                for i in 0..count {
                    zero_points[at + i].write(batch.zero_point[i] as i8);
                }
            }
        }
        Source::Given(affines, stride) => {
            for (i, affine) in affines[row * *stride + first..][..count].iter().enumerate() {
                (batch.scale[i], batch.zero_point[i]) = (affine.scale, f32::from(affine.zero_point));
            }
        }
    }
    for (i, largest) in largest.into_iter().enumerate() {
        let scale = batch.scale[i];
        let reciprocal = 1.0 / scale;
        batch.reciprocal[i] = reciprocal;
        batch.rest[i] = (-scale).mul_add(reciprocal, 1.0) * reciprocal;
        // no intermediate result may overflow or lose bits to underflow
        let tame = (1e-18..=1e18).contains(&scale) && largest <= 1e6 * scale;
        let short = !is_awkward(scale);
        batch.how[i] = match (K, P) {
            // the sign of what is rounded to zero is the quotient's, which must not underflow
            (F8, BF16) => DIVIDE,
            (F8, F32) => {
                if tame && short && scale <= 1.0 {
                    SHORT
                } else {
                    DIVIDE
                }
            }
            (ASYMMETRIC, F32) => {
                if tame {
                    FUSED
                } else {
                    DIVIDE
                }
            }
            _ => {
                if tame && short {
                    SHORT
                } else {
                    DIVIDE
                }
            }
        };
    }
    Some(batch)
}

/// Loads up to 16 values; `fill` beyond the end.
#[inline]
#[target_feature(enable = "avx512f")]
fn load_some(values: &[f32], fill: __m512) -> __m512 {
    let mask = ((1u32 << values.len().min(16)) - 1) as __mmask16;
    // SAFETY: the mask ends where the values do.
    unsafe { _mm512_mask_loadu_ps(fill, mask, values.as_ptr()) }
}

/// Largest bit pattern without its sign.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn magnitude(values: &[f32]) -> u32 {
    let mask = _mm512_set1_epi32(0x7fff_ffff);
    let bits = |x: __m512| _mm512_and_si512(_mm512_castps_si512(x), mask);
    let mut largest = [_mm512_setzero_si512(); 4];
    let (blocks, tail) = values.as_chunks::<64>();
    for block in blocks {
        for (i, largest) in largest.iter_mut().enumerate() {
            // SAFETY: 16 of the 64 values.
            let x = unsafe { _mm512_loadu_ps(block.as_ptr().add(16 * i)) };
            *largest = _mm512_max_epi32(*largest, bits(x));
        }
    }
    for part in tail.chunks(16) {
        largest[0] = _mm512_max_epi32(largest[0], bits(load_some(part, _mm512_setzero_ps())));
    }
    let [a, b, c, d] = largest;
    let all = _mm512_max_epi32(_mm512_max_epi32(a, b), _mm512_max_epi32(c, d));
    _mm512_reduce_max_epi32(all) as u32
}

/// Smallest and largest value, of which the sign of zero is not specified; `None` if a value is not finite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn extremes(values: &[f32]) -> Option<(f32, f32)> {
    let zero = _mm512_setzero_ps();
    // zero belongs to every range
    let (mut low, mut high, mut sum) = ([zero; 2], [zero; 2], [zero; 2]);
    let (blocks, tail) = values.as_chunks::<32>();
    for block in blocks {
        for i in 0..2 {
            // SAFETY: 16 of the 32 values.
            let x = unsafe { _mm512_loadu_ps(block.as_ptr().add(16 * i)) };
            (low[i], high[i]) = (_mm512_min_ps(low[i], x), _mm512_max_ps(high[i], x));
            // NaN, once a value is not finite
            sum[i] = _mm512_fmadd_ps(x, zero, sum[i]);
        }
    }
    for part in tail.chunks(16) {
        let x = load_some(part, zero);
        (low[0], high[0]) = (_mm512_min_ps(low[0], x), _mm512_max_ps(high[0], x));
        sum[0] = _mm512_fmadd_ps(x, zero, sum[0]);
    }
    let sum = _mm512_add_ps(sum[0], sum[1]);
    if _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(sum, sum) != 0 {
        return None;
    }
    let (low, high) = (_mm512_min_ps(low[0], low[1]), _mm512_max_ps(high[0], high[1]));
    Some((_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high)))
}

/// The smallest code, the largest, and what is added for storage.
struct Ends {
    low: i8,
    high: i8,
    half: i8,
}

impl Ends {
    fn new(codes: Codes) -> Self {
        match codes {
            Codes::Int { bits, .. } => {
                let half = 1i32 << (bits - 1);
                Self { low: -half as i8, high: (half - 1) as i8, half: half as i8 }
            }
            Codes::F8E4M3 => Self { low: 0, high: 0, half: 0 },
        }
    }
}

/// Codes of values under the scale of lane `group`, as [`super::portable::encode`] makes them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn encode<const K: u8, const P: u8>(
    batch: &Batch,
    group: usize,
    ends: &Ends,
    values: &[f32],
    out: &mut [MaybeUninit<u8>],
    ahead: usize,
) {
    match batch.how[group] {
        FUSED => encode_how::<K, P, FUSED>(batch, group, ends, values, out, ahead),
        SHORT => encode_how::<K, P, SHORT>(batch, group, ends, values, out, ahead),
        _ => encode_how::<K, P, DIVIDE>(batch, group, ends, values, out, ahead),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn encode_how<const K: u8, const P: u8, const HOW: u8>(
    batch: &Batch,
    group: usize,
    ends: &Ends,
    values: &[f32],
    out: &mut [MaybeUninit<u8>],
    ahead: usize,
) {
    let lane = |lanes: &[f32; GROUPS]| _mm512_set1_ps(lanes[group]);
    let (scale, reciprocal) = (lane(&batch.scale), lane(&batch.reciprocal));
    let (rest, zero_point) = (lane(&batch.rest), lane(&batch.zero_point));
    assert!(values.len() <= out.len());
    let scaled = |x: __m512| {
        let q = match HOW {
            DIVIDE => _mm512_div_ps(x, scale),
            SHORT => _mm512_fmadd_ps(x, reciprocal, _mm512_mul_ps(x, rest)),
            _ => {
                let q = _mm512_mul_ps(x, reciprocal);
                let q = _mm512_fmadd_ps(_mm512_fnmadd_ps(q, scale, x), reciprocal, q);
                _mm512_fmadd_ps(_mm512_fnmadd_ps(q, scale, x), reciprocal, q)
            }
        };
        let q = rounded::<P>(q);
        if K == ASYMMETRIC { rounded::<P>(_mm512_add_ps(q, zero_point)) } else { q }
    };
    let (low, high) = (_mm512_set1_epi8(ends.low), _mm512_set1_epi8(ends.high));
    let half = _mm512_set1_epi8(ends.half);
    let step = |x: [__m512; 4]| {
        let q = [scaled(x[0]), scaled(x[1]), scaled(x[2]), scaled(x[3])];
        if K == F8 {
            return e4m3(q);
        }
        // called one by one: the compiler need not carry this function's instructions into `map`
        let whole = |q| {
            // what the conversion takes; packing clamps to 8 bits
            let far = _mm512_set1_ps(65_536.0);
            let q = if HOW == DIVIDE {
                _mm512_max_ps(_mm512_min_ps(q, far), _mm512_sub_ps(_mm512_setzero_ps(), far))
            } else {
                q
            };
            _mm512_cvtps_epi32(q)
        };
        let [a, b, c, d] = [whole(q[0]), whole(q[1]), whole(q[2]), whole(q[3])];
        let codes = in_order(_mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)));
        _mm512_add_epi8(_mm512_min_epi8(_mm512_max_epi8(codes, low), high), half)
    };
    let (blocks, tail) = values.as_chunks::<STEP>();
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<STEP>().0) {
        let next = block.as_ptr().wrapping_add(ahead);
        for i in 0..4 {
            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(16 * i).cast());
        }
        // SAFETY: 64 values are read, and 64 codes written.
        unsafe {
            let x = |i: usize| _mm512_loadu_ps(block.as_ptr().add(16 * i));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), step([x(0), x(1), x(2), x(3)]));
        }
    }
    if tail.is_empty() {
        return;
    }
    let end = values.len();
    _mm_prefetch::<_MM_HINT_T0>(tail.as_ptr().wrapping_add(ahead).cast());
    // Stores under a mask are slow: codes that were written already are written again.
    if end >= STEP {
        let (values, out) = (&values[end - STEP..], &mut out[end - STEP..]);
        // SAFETY: 64 values are read, and 64 codes written.
        unsafe {
            let x = |i: usize| _mm512_loadu_ps(values.as_ptr().add(16 * i));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), step([x(0), x(1), x(2), x(3)]));
        }
    } else if end >= 16 {
        let at = |i: usize| (16 * i).min(end - 16);
        // SAFETY: 16 values each are read from, and 16 codes written to, places up to 16 before the end.
        unsafe {
            let x = |i: usize| _mm512_loadu_ps(values.as_ptr().add(at(i)));
            let codes = step([x(0), x(1), x(2), x(3)]);
            let mut store = |i: usize, codes| _mm_storeu_si128(out.as_mut_ptr().add(at(i)).cast(), codes);
            store(0, _mm512_castsi512_si128(codes));
            store(1, _mm512_extracti32x4_epi32::<1>(codes));
            store(2, _mm512_extracti32x4_epi32::<2>(codes));
            store(3, _mm512_extracti32x4_epi32::<3>(codes));
        }
    } else {
        let zero = _mm512_setzero_ps();
        let codes = _mm512_castsi512_si128(step([load_some(values, zero), zero, zero, zero]));
        let mut bytes = [0u8; 16];
        // SAFETY: 16 bytes.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), codes) };
        for (out, code) in out.iter_mut().zip(bytes) {
            out.write(code);
        }
    }
}

/// Rounded to the precision; finite or infinite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,f16c")]
fn rounded<const P: u8>(x: __m512) -> __m512 {
    match P {
        F32 => x,
        F16 => _mm512_cvtph_ps(_mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)),
        _ => {
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            _mm512_castsi512_ps(_mm512_and_si512(sum, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
        }
    }
}

/// Bytes in order, where packing took them lane by lane of 128 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_order(bytes: __m512i) -> __m512i {
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_permutexvar_epi32(order, bytes)
}

/// e4m3, as [`super::portable::e4m3`] rounds, of what is clamped to ±448 and added to zero first.
///
/// The sum with `2^(20 + e)` of a magnitude in `[2^e, 2^(e+1))` has the magnitude in units of `2^(e−3)` in its lowest bits;
/// `e` is −6 for everything below, where the unit no longer shrinks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2")]
fn e4m3(scaled: [__m512; 4]) -> __m512i {
    const BIAS: i32 = 127 + 20;
    let largest = _mm512_set1_epi32(F8_E4M3_MAX.to_bits() as i32);
    // negative zero becomes zero, as adding a zero point of zero does
    let positive = |x| _mm512_castps_si512(_mm512_add_ps(x, _mm512_setzero_ps()));
    let scaled = [positive(scaled[0]), positive(scaled[1]), positive(scaled[2]), positive(scaled[3])];
    let code = |bits| {
        let magnitude = _mm512_min_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff)), largest);
        let exponent = _mm512_and_si512(magnitude, _mm512_set1_epi32(0x7f80_0000));
        let unit = _mm512_max_epi32(exponent, _mm512_set1_epi32((127 - 6) << 23));
        let unit = _mm512_add_epi32(unit, _mm512_set1_epi32(20 << 23));
        let sum = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(unit));
        let count = _mm512_sub_epi32(_mm512_castps_si512(sum), unit);
        _mm512_add_epi32(count, _mm512_srli_epi32::<20>(unit))
    };
    let [a, b, c, d] = [code(scaled[0]), code(scaled[1]), code(scaled[2]), code(scaled[3])];
    let bias = _mm512_set1_epi16(8 * (BIAS - 6) as i16);
    let pair = |a, b| _mm512_sub_epi16(_mm512_packs_epi32(a, b), bias);
    let codes = _mm512_packs_epi16(pair(a, b), pair(c, d));
    // packing keeps the sign
    let [a, b, c, d] = scaled;
    let signs = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    let signs = _mm512_and_si512(signs, _mm512_set1_epi8(i8::MIN));
    in_order(_mm512_or_si512(codes, signs))
}

/// Packs codes; all of `out` is written. The codes must be initialized.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
fn packed(codes: &[MaybeUninit<u8>], bits: u8, out: &mut [MaybeUninit<u8>]) {
    let (mut codes, mut out) = (codes, out);
    if bits == 4 {
        let (blocks, rest) = codes.as_chunks::<STEP>();
        let (whole, after) = out.split_at_mut(blocks.len() * STEP / 2);
        for (block, out) in blocks.iter().zip(whole.as_chunks_mut::<{ STEP / 2 }>().0) {
            // SAFETY: 64 initialized codes are read, and 32 bytes written.
            unsafe {
                let codes = _mm512_loadu_si512(block.as_ptr().cast());
                let pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x1001));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(pairs));
            }
        }
        (codes, out) = (rest, after);
    }
    // SAFETY: `out` is the rest of a slice of words after whole words of it.
    let words = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len() / 4) };
    pack::portable::pack_uninit(codes, bits, words);
}
