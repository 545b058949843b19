use half::{bf16, f16};

use crate::dtype::{FloatType, Precision};

pub(super) fn widen(float: FloatType, bytes: &[u8], out: &mut [f32]) {
    match float {
        FloatType::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        FloatType::F32 => each(bytes, out, f32::from_le_bytes),
        FloatType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        FloatType::Bf16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        FloatType::F8E4M3 => each(bytes, out, |[b]| f8_e4m3_to_f32(b)),
        FloatType::F8E5M2 => each(bytes, out, |[b]| f8_e5m2_to_f32(b)),
    }
}

#[inline(always)]
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = f(*bytes);
    }
}

pub(super) fn narrow(precision: Precision, values: &[f32], out: &mut [u8]) {
    fn each<const N: usize>(values: &[f32], out: &mut [u8], f: impl Fn(f32) -> [u8; N]) {
        for (bytes, x) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
            *bytes = f(*x);
        }
    }
    match precision {
        Precision::F32 => each(values, out, f32::to_le_bytes),
        Precision::F16 => each(values, out, |x| f16::from_f32(x).to_le_bytes()),
        Precision::Bf16 => each(values, out, |x| bf16::from_f32(x).to_le_bytes()),
    }
}

pub(super) fn count_overflow(precision: Precision, values: &[f32]) -> usize {
    values.iter().filter(|x| x.is_finite() && precision.round(**x).is_infinite()).count()
}

/// `f32` → e4m3: nearest, ties to even, clamped to ±448; NaN stays NaN.
#[inline]
pub(crate) fn f8_e4m3_from_f32(x: f32) -> u8 {
    let sign = ((x.to_bits() >> 24) & 0x80) as u8;
    let a = x.abs();
    if a.is_nan() {
        return sign | 0x7f;
    }
    sign | f8_magnitude::<3>(a, -6).min(0x7e)
}

/// e4m3 → `f32`, exactly.
#[inline]
pub(crate) fn f8_e4m3_to_f32(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        return f32::NAN.copysign(if code & 0x80 == 0 { 1.0 } else { -1.0 });
    }
    f8_value::<3>(code, -6)
}

/// `f32` → e5m2: nearest, ties to even, overflow to infinity as IEEE 754 has it; NaN stays NaN.
#[cfg(test)]
pub(crate) fn f8_e5m2_from_f32(x: f32) -> u8 {
    let sign = ((x.to_bits() >> 24) & 0x80) as u8;
    let a = x.abs();
    if a.is_nan() {
        return sign | 0x7f;
    }
    sign | f8_magnitude::<2>(a, -14).min(0x7c)
}

/// e5m2 → `f32`, exactly.
#[inline]
pub(crate) fn f8_e5m2_to_f32(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    match code & 0x7f {
        0x7c => f32::INFINITY * sign,
        0x7d.. => f32::NAN.copysign(sign),
        _ => f8_value::<2>(code, -14),
    }
}

/// Code of a magnitude, ignoring the format's largest value: `M` mantissa bits, normal numbers from `2^min_exponent`.
#[inline(always)]
fn f8_magnitude<const M: u32>(a: f32, min_exponent: i32) -> u8 {
    // Above 2^17 every format is past its largest value, and the caller clamps.
    let a = a.min(131_072.0);
    let exponent = ((a.to_bits() >> 23) as i32 - 127).max(min_exponent);
    // Units of the last place at this exponent; exact because the scale is a power of two.
    let ulp = f32::from_bits(((exponent - M as i32 + 127) as u32) << 23);
    let units = (a / ulp).round_ties_even() as u32;
    // In the lowest (denormal) binade `units` is the code; each binade above adds 2^M.
    // A carry into the next binade falls out of the same sum.
    (units + (((exponent - min_exponent) as u32) << M)).min(0x7f) as u8
}

#[inline(always)]
fn f8_value<const M: u32>(code: u8, min_exponent: i32) -> f32 {
    let exponent = i32::from((code & 0x7f) >> M);
    let mantissa = i32::from(code & ((1 << M) - 1));
    let (units, binade) = if exponent == 0 { (mantissa, 0) } else { (mantissa + (1 << M), exponent - 1) };
    let ulp = f32::from_bits(((min_exponent + binade - M as i32 + 127) as u32) << 23);
    let value = units as f32 * ulp;
    if code & 0x80 == 0 { value } else { -value }
}
