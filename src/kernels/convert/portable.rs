//! The conversions, one value at a time, without branches so that the compiler vectorizes the loops over them.
//!
//! What happens to NaN is part of the specification, because it is stored: to and from f16 and bf16 a NaN keeps its
//! sign and the upper bits of its payload and becomes quiet, which is what the processors' own instructions do; to and
//! from f8 it becomes the format's NaN `0x7f` and `f32::NAN`, with its sign.

use std::mem::MaybeUninit;

/// A key that orders like the magnitude of `x`: the bit pattern without its sign.
#[inline(always)]
pub(super) fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Bits of infinity; the magnitudes above are NaN.
pub(super) const INFINITY: u32 = 0x7f80_0000;

/// `f32` → f16: nearest, ties to even, overflow to infinity.
#[inline(always)]
pub(crate) fn f16_from_f32(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) & 0x8000;
    let a = magnitude(x);
    // a carry out of the mantissa is the next exponent, up to infinity
    let normal = ((a + 0x0fff + ((a >> 13) & 1)).wrapping_sub(112 << 23) >> 13).min(0x7c00);
    // one unit in the last place of 0.5 is 2^-24, the unit of a denormal f16: the addition rounds
    let denormal = (f32::from_bits(a) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let nan = 0x7e00 | ((a >> 13) & 0x3ff);
    let finite = if a < 113 << 23 { denormal } else { normal };
    (sign | if a > INFINITY { nan } else { finite }) as u16
}

/// f16 → `f32`, exactly.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let m = u32::from(h & 0x7fff);
    let shifted = m << 13;
    let normal = shifted + (112 << 23);
    let denormal = (f32::from_bits(shifted + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let special = (shifted + (224 << 23)) | if m > 0x7c00 { 0x0040_0000 } else { 0 };
    let finite = if m < 0x0400 { denormal } else { normal };
    f32::from_bits(sign | if m < 0x7c00 { finite } else { special })
}

/// `f32` → bf16: nearest, ties to even, overflow to infinity.
#[inline(always)]
pub(crate) fn bf16_from_f32(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let nan = bits | 0x0040_0000;
    ((if magnitude(x) > INFINITY { nan } else { rounded }) >> 16) as u16
}

/// bf16 → `f32`, exactly.
#[inline(always)]
pub(crate) fn bf16_to_f32(h: u16) -> f32 {
    let quiet = if h & 0x7fff > 0x7f80 { 0x0040 } else { 0 };
    f32::from_bits(u32::from(h | quiet) << 16)
}

/// `f32` → e4m3: nearest, ties to even, clamped to ±448; NaN stays NaN.
#[inline(always)]
pub(crate) fn f8_e4m3_from_f32(x: f32) -> u8 {
    f8_from_f32::<3, 7, 0x7e>(x)
}

/// e4m3 → `f32`, exactly.
#[inline(always)]
pub(crate) fn f8_e4m3_to_f32(code: u8) -> f32 {
    let m = u32::from(code & 0x7f);
    let special = if m == 0x7f { f32::NAN.to_bits() } else { 0 };
    f8_to_f32::<3, 7>(code, special)
}

/// `f32` → e5m2: nearest, ties to even, overflow to infinity as IEEE 754 has it; NaN stays NaN.
#[inline(always)]
pub(crate) fn f8_e5m2_from_f32(x: f32) -> u8 {
    f8_from_f32::<2, 15, 0x7c>(x)
}

/// e5m2 → `f32`, exactly.
#[inline(always)]
pub(crate) fn f8_e5m2_to_f32(code: u8) -> f32 {
    let m = u32::from(code & 0x7f);
    let special = if m > 0x7c { f32::NAN.to_bits() } else { INFINITY };
    f8_to_f32::<2, 15>(code, if m >= 0x7c { special } else { 0 })
}

/// `M` mantissa bits, exponents biased by `BIAS`, magnitudes clamped to the code `MAX`.
#[inline(always)]
fn f8_from_f32<const M: u32, const BIAS: u32, const MAX: u32>(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) & 0x80;
    let a = magnitude(x);
    let drop = 23 - M;
    let normal = (a + ((1 << (drop - 1)) - 1) + ((a >> drop) & 1)).wrapping_sub((127 - BIAS) << 23) >> drop;
    // a power of two whose unit in the last place is that of a denormal code: the addition rounds
    let magic = f32::from_bits((127 + 23 + 1 - BIAS - M) << 23);
    let denormal = (f32::from_bits(a) + magic).to_bits().wrapping_sub(magic.to_bits());
    let finite = if a < (128 - BIAS) << 23 { denormal } else { normal.min(MAX) };
    (sign | if a > INFINITY { 0x7f } else { finite }) as u8
}

/// The value of a code; `special`, unless zero, is what the format's largest exponent means.
#[inline(always)]
fn f8_to_f32<const M: u32, const BIAS: u32>(code: u8, special: u32) -> f32 {
    let sign = u32::from(code & 0x80) << 24;
    let m = u32::from(code & 0x7f);
    let normal = (m << (23 - M)) + ((127 - BIAS) << 23);
    let unit = f32::from_bits((127 + 1 - BIAS - M) << 23);
    let denormal = (m as f32 * unit).to_bits();
    let finite = if m < 1 << M { denormal } else { normal };
    f32::from_bits(sign | if special == 0 { finite } else { special })
}

/// Converts every element. Input and output have the same length.
#[inline(always)]
fn each<const N: usize>(input: &[[u8; N]], out: &mut [MaybeUninit<f32>], f: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(input) {
        out.write(f(*bytes));
    }
}

#[inline(always)]
pub(super) fn widen_f64(input: &[[u8; 8]], out: &mut [MaybeUninit<f32>]) {
    each(input, out, |b| f64::from_le_bytes(b) as f32);
}

#[inline(always)]
pub(super) fn widen_f32(input: &[[u8; 4]], out: &mut [MaybeUninit<f32>]) {
    each(input, out, f32::from_le_bytes);
}

#[inline(always)]
pub(super) fn widen_f16(input: &[[u8; 2]], out: &mut [MaybeUninit<f32>]) {
    each(input, out, |b| f16_to_f32(u16::from_le_bytes(b)));
}

#[inline(always)]
pub(super) fn widen_bf16(input: &[[u8; 2]], out: &mut [MaybeUninit<f32>]) {
    each(input, out, |b| bf16_to_f32(u16::from_le_bytes(b)));
}

#[inline(always)]
pub(super) fn widen_e4m3(input: &[u8], out: &mut [MaybeUninit<f32>]) {
    for (out, code) in out.iter_mut().zip(input) {
        out.write(f8_e4m3_to_f32(*code));
    }
}

#[inline(always)]
pub(super) fn widen_e5m2(input: &[u8], out: &mut [MaybeUninit<f32>]) {
    for (out, code) in out.iter_mut().zip(input) {
        out.write(f8_e5m2_to_f32(*code));
    }
}

/// Narrows every value, and gives the largest magnitude's bits (a NaN is above infinity).
#[inline(always)]
fn each_narrow<T>(values: &[f32], out: &mut [MaybeUninit<T>], f: impl Fn(f32) -> T) -> u32 {
    let mut largest = 0;
    for (out, x) in out.iter_mut().zip(values) {
        out.write(f(*x));
        largest = largest.max(magnitude(*x));
    }
    largest
}

#[inline(always)]
pub(super) fn narrow_f32(values: &[f32], out: &mut [MaybeUninit<[u8; 4]>]) -> u32 {
    each_narrow(values, out, f32::to_le_bytes)
}

#[inline(always)]
pub(super) fn copy_f32(values: &[f32], out: &mut [MaybeUninit<f32>]) -> u32 {
    each_narrow(values, out, |x| x)
}

#[inline(always)]
pub(super) fn narrow_f16(values: &[f32], out: &mut [MaybeUninit<[u8; 2]>]) -> u32 {
    each_narrow(values, out, |x| f16_from_f32(x).to_le_bytes())
}

#[inline(always)]
pub(super) fn narrow_bf16(values: &[f32], out: &mut [MaybeUninit<[u8; 2]>]) -> u32 {
    each_narrow(values, out, |x| bf16_from_f32(x).to_le_bytes())
}

#[inline(always)]
pub(super) fn narrow_e4m3(values: &[f32], out: &mut [MaybeUninit<u8>]) {
    each_narrow(values, out, f8_e4m3_from_f32);
}

#[inline(always)]
pub(super) fn narrow_e5m2(values: &[f32], out: &mut [MaybeUninit<u8>]) {
    each_narrow(values, out, f8_e5m2_from_f32);
}

#[inline(always)]
pub(super) fn largest_magnitude(values: &[f32]) -> u32 {
    values.iter().fold(0, |largest, x| largest.max(magnitude(*x)))
}
