//! Conversions between `f32` and the narrower float types: round to nearest, ties to even.
//!
//! A NaN stays a NaN of the same sign. To and from f16 and bf16 it also keeps the upper bits of its payload and becomes
//! quiet; in f8 it is the code `0x7f`.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::mem::MaybeUninit;

use half::{bf16, f16};
use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::memory::prefer_large_pages;
use super::{CHUNK, PARALLEL_MIN, STREAM_MIN};
use crate::dtype::{FloatType, Precision};

#[cfg(not(test))]
pub(crate) use portable::f8_e4m3_from_f32;
pub(crate) use portable::f8_e4m3_to_f32;
#[cfg(test)]
pub(crate) use portable::{f8_e4m3_from_f32, f8_e5m2_from_f32, f8_e5m2_to_f32};

multiversion! {
    fn widen_f64(input: &[[u8; 8]], out: &mut [MaybeUninit<f32>]) = portable::widen_f64
}
multiversion! {
    fn widen_e4m3(input: &[u8], out: &mut [MaybeUninit<f32>]) = portable::widen_e4m3
}
multiversion! {
    fn widen_e5m2(input: &[u8], out: &mut [MaybeUninit<f32>]) = portable::widen_e5m2
}
multiversion! {
    fn narrow_f32(values: &[f32], out: &mut [MaybeUninit<[u8; 4]>]) -> u32 = portable::narrow_f32
}
multiversion! {
    fn copy_f32(values: &[f32], out: &mut [MaybeUninit<f32>]) -> u32 = portable::copy_f32
}
multiversion! {
    fn narrow_e4m3(values: &[f32], out: &mut [MaybeUninit<u8>]) = portable::narrow_e4m3
}
multiversion! {
    fn narrow_e5m2(values: &[f32], out: &mut [MaybeUninit<u8>]) = portable::narrow_e5m2
}
multiversion! {
    fn largest_magnitude_in(values: &[f32]) -> u32 = portable::largest_magnitude
}

macro_rules! halves {
    ($narrow:ident, $widen:ident) => {
        #[inline]
        fn $narrow(isa: Isa, values: &[f32], out: &mut [MaybeUninit<[u8; 2]>], stream: bool) -> u32 {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(token) => avx512::$narrow(token, values, out, stream),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(token) => avx2::$narrow(token, values, out, stream),
                Isa::Portable => {
                    let _ = stream;
                    portable::$narrow(values, out)
                }
            }
        }

        #[inline]
        fn $widen(isa: Isa, input: &[[u8; 2]], out: &mut [MaybeUninit<f32>], stream: bool) {
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(token) => avx512::$widen(token, input, out, stream),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(token) => avx2::$widen(token, input, out, stream),
                Isa::Portable => {
                    let _ = stream;
                    portable::$widen(input, out);
                }
            }
        }
    };
}

halves!(narrow_f16, widen_f16);
halves!(narrow_bf16, widen_bf16);

/// Splits input and output alike into pieces, for several threads if that pays.
fn in_pieces<A: Sync, B: Send, R: Copy + Send + Sync>(
    input: &[A],
    out: &mut [MaybeUninit<B>],
    identity: R,
    f: impl Fn(&[A], &mut [MaybeUninit<B>]) -> R + Sync,
    join: impl Fn(R, R) -> R + Sync + Send,
) -> R {
    debug_assert_eq!(input.len(), out.len());
    if input.len() < PARALLEL_MIN {
        return f(input, out);
    }
    let pieces = out.par_chunks_mut(CHUNK).zip(input.par_chunks(CHUNK));
    pieces.map(|(out, input)| f(input, out)).reduce(|| identity, join)
}

/// Whether an output of so many bytes is stored past the caches, where it would not stay anyhow.
fn streams<T>(out: &[T]) -> bool {
    size_of_val(out) >= STREAM_MIN
}

fn uninit<T>(out: &mut [T]) -> &mut [MaybeUninit<T>] {
    // SAFETY: the same layout; the functions of this module only ever write values into what they get.
    unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<T>]) }
}

/// Sees elements as bytes, little-endian where the machine is.
fn as_codes<T: Copy>(values: &[T]) -> &[[u8; 2]] {
    const { assert!(size_of::<T>() == 2) };
    // SAFETY: used for `f16` and `bf16` only, which are `repr(transparent)` over `u16`; bytes have no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// As [`as_codes`], to be written.
fn as_codes_mut<T: Copy>(out: &mut [MaybeUninit<T>]) -> &mut [MaybeUninit<[u8; 2]>] {
    const { assert!(size_of::<T>() == 2) };
    // SAFETY: as above, and every pattern of two bytes is a value of `f16` and `bf16`.
    unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len()) }
}

/// Appends `len` elements of `N` bytes, which `fill` writes, without zeroing them first.
fn append<const N: usize, R>(
    out: &mut Vec<u8>,
    len: usize,
    fill: impl FnOnce(&mut [MaybeUninit<[u8; N]>]) -> R,
) -> R {
    out.reserve(len * N);
    let spare = &mut out.spare_capacity_mut()[..len * N];
    prefer_large_pages(spare);
    // SAFETY: as many elements as fit the spare capacity; bytes have no alignment.
    let result = fill(unsafe { std::slice::from_raw_parts_mut(spare.as_mut_ptr().cast(), len) });
    // SAFETY: every `fill` of this module writes each element it is given.
    unsafe { out.set_len(out.len() + len * N) };
    result
}

/// A vector of `len` elements, which `fill` writes, without zeroing them first.
fn collect<T, R>(len: usize, fill: impl FnOnce(&mut [MaybeUninit<T>]) -> R) -> (Vec<T>, R) {
    let mut out = Vec::with_capacity(len);
    let room = &mut out.spare_capacity_mut()[..len];
    prefer_large_pages(room);
    let result = fill(room);
    // SAFETY: every `fill` of this module writes each element it is given.
    unsafe { out.set_len(len) };
    (out, result)
}

fn widen_with(isa: Isa, float: FloatType, bytes: &[u8], out: &mut [MaybeUninit<f32>]) {
    assert_eq!(bytes.len(), out.len() * float.size(), "bytes of the elements to widen");
    let stream = streams(out);
    let join = |(), ()| ();
    match float {
        FloatType::F64 => in_pieces(bytes.as_chunks().0, out, (), |i, o| widen_f64(isa, i, o), join),
        FloatType::F32 => in_pieces(bytes.as_chunks().0, out, (), portable::widen_f32, join),
        FloatType::F16 => in_pieces(bytes.as_chunks().0, out, (), |i, o| widen_f16(isa, i, o, stream), join),
        FloatType::Bf16 => {
            in_pieces(bytes.as_chunks().0, out, (), |i, o| widen_bf16(isa, i, o, stream), join);
        }
        FloatType::F8E4M3 => in_pieces(bytes, out, (), |i, o| widen_e4m3(isa, i, o), join),
        FloatType::F8E5M2 => in_pieces(bytes, out, (), |i, o| widen_e5m2(isa, i, o), join),
    }
}

/// Widens little-endian elements of type `float` to `f32`. Every type but f64 widens exactly.
///
/// ```
/// use tersor::{FloatType, kernels::convert};
///
/// let mut wide = [0.0; 2];
/// convert::widen(FloatType::F8E4M3, &[0x38, 0xfe], &mut wide);
/// assert_eq!(wide, [1.0, -448.0]);
/// ```
///
/// # Shapes
/// `bytes` holds `out.len()` elements, in any alignment.
///
/// # Panics
/// When it holds another number of bytes.
pub fn widen(float: FloatType, bytes: &[u8], out: &mut [f32]) {
    widen_with(Isa::current(), float, bytes, uninit(out));
}

/// As [`widen`], into a new vector that is not zeroed first.
///
/// # Panics
/// When `bytes` is not a whole number of elements.
pub fn widen_to_vec(float: FloatType, bytes: &[u8]) -> Vec<f32> {
    collect(bytes.len() / float.size(), |out| widen_with(Isa::current(), float, bytes, out)).0
}

/// Appends `values`, rounded to `precision`, to `out` as little-endian bytes.
///
/// ```
/// use tersor::{Precision, kernels::convert};
///
/// let mut bytes = Vec::new();
/// convert::narrow(Precision::Bf16, &[1.0, -2.0], &mut bytes);
/// assert_eq!(bytes, [0x80, 0x3f, 0x00, 0xc0]);
/// ```
pub fn narrow(precision: Precision, values: &[f32], out: &mut Vec<u8>) {
    narrow_with(Isa::current(), precision, values, out);
}

fn narrow_with(isa: Isa, precision: Precision, values: &[f32], out: &mut Vec<u8>) {
    let narrow = match precision {
        Precision::F32 => {
            append(out, values.len(), |out| {
                in_pieces(values, out, 0, |v, o| narrow_f32(isa, v, o), u32::max)
            });
            return;
        }
        Precision::F16 => narrow_f16,
        Precision::Bf16 => narrow_bf16,
    };
    append(out, values.len(), |out| {
        let stream = streams(out);
        in_pieces(values, out, 0, |v, o| narrow(isa, v, o, stream), u32::max)
    });
}

macro_rules! typed {
    ($type:ident, $to:ident, $from:ident, $narrow:ident, $widen:ident, $name:literal) => {
        #[doc = concat!("Rounds to ", $name, ", to nearest, ties to even; what is too large becomes infinite.")]
        ///
        /// # Shapes
        /// `out` is as long as `values`.
        ///
        /// # Panics
        /// When the lengths differ.
        pub fn $to(values: &[f32], out: &mut [$type]) {
            assert_eq!(values.len(), out.len(), "values to convert, and room for them");
            if cfg!(target_endian = "big") {
                return out.iter_mut().zip(values).for_each(|(out, x)| *out = $type::from_f32(*x));
            }
            let (isa, stream) = (Isa::current(), streams(out));
            let codes = as_codes_mut(uninit(out));
            in_pieces(values, codes, 0, |v, o| $narrow(isa, v, o, stream), u32::max);
        }

        #[doc = concat!("Widens ", $name, " to `f32`, exactly.")]
        ///
        /// # Shapes
        /// `out` is as long as `values`.
        ///
        /// # Panics
        /// When the lengths differ.
        pub fn $from(values: &[$type], out: &mut [f32]) {
            assert_eq!(values.len(), out.len(), "values to convert, and room for them");
            if cfg!(target_endian = "big") {
                return out.iter_mut().zip(values).for_each(|(out, x)| *out = x.to_f32());
            }
            let (isa, stream) = (Isa::current(), streams(out));
            in_pieces(as_codes(values), uninit(out), (), |v, o| $widen(isa, v, o, stream), |(), ()| ());
        }
    };
}

typed!(f16, f32_to_f16, f16_to_f32, narrow_f16, widen_f16, "IEEE 754 binary16");
typed!(bf16, f32_to_bf16, bf16_to_f32, narrow_bf16, widen_bf16, "bfloat16");

macro_rules! to_f8 {
    ($name:ident, $narrow:ident, $format:literal, $overflow:literal) => {
        #[doc = concat!("Rounds to ", $format, " codes, to nearest, ties to even; what is too large becomes ", $overflow, ".")]
        ///
        /// [`widen`] is the way back.
        ///
        /// # Shapes
        /// `out` is as long as `values`.
        ///
        /// # Panics
        /// When the lengths differ.
        pub fn $name(values: &[f32], out: &mut [u8]) {
            assert_eq!(values.len(), out.len(), "values to convert, and room for them");
            let isa = Isa::current();
            in_pieces(values, uninit(out), (), |v, o| $narrow(isa, v, o), |(), ()| ());
        }
    };
}

/// What a cast met on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Met {
    /// Finite values that the target turns into infinities.
    pub(crate) overflow: usize,
    /// Whether there was a NaN or an infinity.
    pub(crate) non_finite: bool,
}

impl Met {
    fn and(self, other: Self) -> Self {
        Self { overflow: self.overflow + other.overflow, non_finite: self.non_finite | other.non_finite }
    }

    /// Of values whose largest magnitude is known; they are looked at again only if it is too large.
    fn of(values: &[f32], largest: u32, limit: u32) -> Self {
        if largest < limit {
            return Self::default();
        }
        let overflows = |x: &&f32| (limit..portable::INFINITY).contains(&portable::magnitude(**x));
        Self { overflow: values.iter().filter(overflows).count(), non_finite: largest >= portable::INFINITY }
    }
}

/// Bits of the smallest magnitude that rounds to infinity.
fn overflow_from(precision: Precision) -> u32 {
    match precision {
        Precision::F32 => portable::INFINITY,
        // halfway to the exponent that is not there, and the largest finite code is odd
        Precision::F16 => 65520f32.to_bits(),
        Precision::Bf16 => 0x7f7f_8000,
    }
}

/// A copy, and what was met: one pass.
pub(crate) fn cast_f32(values: &[f32]) -> (Vec<f32>, Met) {
    let isa = Isa::current();
    collect(values.len(), |out: &mut [MaybeUninit<f32>]| {
        let copy = |values: &[f32], out: &mut [MaybeUninit<f32>]| {
            Met::of(values, copy_f32(isa, values, out), portable::INFINITY)
        };
        in_pieces(values, out, Met::default(), copy, Met::and)
    })
}

macro_rules! cast {
    ($name:ident, $fill:ident, $type:ident, $precision:expr, $narrow:ident) => {
        /// Rounds every value, on the calling thread.
        pub(crate) fn $fill(values: &[f32], out: &mut [MaybeUninit<$type>]) {
            assert_eq!(values.len(), out.len(), "values to convert, and room for them");
            if cfg!(target_endian = "big") {
                for (out, x) in out.iter_mut().zip(values) {
                    out.write($type::from_f32(*x));
                }
            } else {
                $narrow(Isa::current(), values, as_codes_mut(out), false);
            }
        }

        /// Rounds every value, and tells what was met; with `clamp`, finite values stay finite: one pass.
        pub(crate) fn $name(isa: Isa, values: &[f32], clamp: bool) -> (Vec<$type>, Met) {
            let limit = overflow_from($precision);
            collect(values.len(), |out: &mut [MaybeUninit<$type>]| {
                let stream = streams(out);
                let cast = |values: &[f32], out: &mut [MaybeUninit<$type>]| {
                    let largest = $narrow(isa, values, as_codes_mut(out), stream);
                    let met = Met::of(values, largest, limit);
                    if cfg!(target_endian = "big") || (clamp && met.overflow > 0) {
                        let max = if clamp { $precision.max() } else { f32::INFINITY };
                        for (out, x) in out.iter_mut().zip(values) {
                            out.write($type::from_f32(if x.is_finite() { x.clamp(-max, max) } else { *x }));
                        }
                    }
                    met
                };
                in_pieces(values, out, Met::default(), cast, Met::and)
            })
        }
    };
}

cast!(cast_f16, fill_f16, f16, Precision::F16, narrow_f16);
cast!(cast_bf16, fill_bf16, bf16, Precision::Bf16, narrow_bf16);

/// What a cast to `precision` would meet.
pub(crate) fn would_meet(precision: Precision, values: &[f32]) -> Met {
    let (isa, limit) = (Isa::current(), overflow_from(precision));
    let meet = |values: &[f32]| Met::of(values, largest_magnitude_in(isa, values), limit);
    values.par_chunks(CHUNK).map(meet).reduce(Met::default, Met::and)
}

to_f8!(f32_to_f8_e4m3, narrow_e4m3, "OCP e4m3", "±448");
to_f8!(f32_to_f8_e5m2, narrow_e5m2, "OCP e5m2", "infinite");

#[cfg(test)]
mod tests;
