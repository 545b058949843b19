use crate::dtype::Precision;
use crate::kernels::convert::{f8_e4m3_from_f32, f8_e4m3_to_f32};

/// 1.5 · 2^23: added to a value below 2^22 it leaves no bits for a fraction, so that the sum is rounded half to even, and
/// its lowest bits are the integer in two's complement. Unlike a call to round, this needs no instruction beyond the
/// baseline and vectorizes.
const ROUND: f32 = 12_582_912.0;

/// Code of one value: `clamp(x / scale + zero_point)`, rounded half to even; each step in `precision`.
#[inline(always)]
pub(crate) fn quantize_one(
    x: f32,
    scale: f32,
    zero_point: f32,
    low: f32,
    high: f32,
    precision: Precision,
) -> i8 {
    let scaled = precision.round(precision.round(x / scale) + zero_point);
    (scaled.clamp(low, high) + ROUND).to_bits() as i8
}

/// Codes of values under one scale, in `[−2^(bits−1), 2^(bits−1) − 1]`.
pub(crate) fn quantize_int(
    values: &[f32],
    scale: f32,
    zero_point: i8,
    bits: u8,
    precision: Precision,
    codes: &mut [i8],
) {
    let half = (1i32 << (bits - 1)) as f32;
    let (low, high, zero_point) = (-half, half - 1.0, f32::from(zero_point));
    // The match stands outside the loop so that the f32 loop is free of conversions and vectorizes.
    match precision {
        Precision::F32 => {
            for (code, x) in codes.iter_mut().zip(values) {
                *code = quantize_one(*x, scale, zero_point, low, high, Precision::F32);
            }
        }
        narrow => {
            for (code, x) in codes.iter_mut().zip(values) {
                *code = quantize_one(*x, scale, zero_point, low, high, narrow);
            }
        }
    }
}

/// `(code − zero_point) · scale`, rounded to `precision`.
pub(crate) fn dequantize_int(
    codes: &[i8],
    scale: f32,
    zero_point: i8,
    precision: Precision,
    out: &mut [f32],
) {
    let zero_point = i32::from(zero_point);
    for (out, code) in out.iter_mut().zip(codes) {
        *out = precision.round((i32::from(*code) - zero_point) as f32 * scale);
    }
}

/// e4m3 codes of `values / scale`, clamped to ±448. Negative zero becomes zero, as adding a zero point of zero does.
pub(crate) fn quantize_f8(values: &[f32], scale: f32, precision: Precision, codes: &mut [u8]) {
    for (code, x) in codes.iter_mut().zip(values) {
        *code = f8_e4m3_from_f32((precision.round(x / scale) + 0.0).clamp(-448.0, 448.0));
    }
}

/// `code · scale`, rounded to `precision`.
pub(crate) fn dequantize_f8(codes: &[u8], scale: f32, precision: Precision, out: &mut [f32]) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out = precision.round(f8_e4m3_to_f32(*code) * scale);
    }
}
