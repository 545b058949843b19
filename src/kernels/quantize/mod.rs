//! Rounding to codes under scales, and back.
//!
//! [`quantize_int_rows`] and [`quantize_f8_rows`] read their values from memory once: range, scale, codes and packing of
//! some groups are done while these lie in the first-level cache.

#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod feedback;
mod portable;
#[cfg(target_arch = "x86_64")]
mod rows_avx512;
pub(crate) mod search;

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::convert::{f8_e4m3_from_f32, f8_e4m3_to_f32};
use super::level::{Isa, multiversion};
use super::memory::room;
use super::{PARALLEL_MIN, pack, reduce};
use crate::dtype::Precision;
use crate::error::NonFinite;

use portable::Out;
pub(crate) use portable::affine;

/// Largest number of bits of an integer code.
const MAX_BITS: u8 = 8;

/// Largest e4m3 value.
const F8_E4M3_MAX: f32 = 448.0;

/// 1.5 · 2^23: added to a value below 2^22 it leaves no bits for a fraction, so that the sum is rounded half to even, and
/// its lowest bits are the integer in two's complement. Unlike a call to round, this needs no instruction beyond the
/// baseline and vectorizes.
const ROUND: f32 = 12_582_912.0;

/// Values that one task quantizes at a time.
const TASK: usize = 1 << 16;

/// What values are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Codes {
    /// Integers from `−2^(bits−1)` to `2^(bits−1) − 1`, stored as `code + 2^(bits−1)`.
    Int {
        /// Bits of a code, 2 to 8.
        bits: u8,
        /// Whether the zero point is fixed at 0.
        symmetric: bool,
    },
    /// e4m3 floats.
    F8E4M3,
}

/// Scale and zero point of one tile: `value = (code − zero_point) · scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine {
    /// Step between neighbouring codes; positive.
    pub scale: f32,
    /// The code of 0.
    pub zero_point: i8,
}

impl Affine {
    /// A value after quantizing and dequantizing.
    #[inline]
    pub(crate) fn fake_quantize_as(self, x: f32, codes: Codes, precision: Precision) -> f32 {
        let scaled = precision.round(x / self.scale);
        match codes {
            Codes::F8E4M3 => {
                let code = f8_e4m3_from_f32(portable::clamp(scaled, -F8_E4M3_MAX, F8_E4M3_MAX));
                precision.round(f8_e4m3_to_f32(code) * self.scale)
            }
            Codes::Int { bits, .. } => {
                let half = (1i32 << (bits - 1)) as f32;
                let zero_point = f32::from(self.zero_point);
                let code = portable::clamp(precision.round(scaled + zero_point), -half, half - 1.0);
                precision.round(((code + ROUND) - ROUND - zero_point) * self.scale)
            }
        }
    }
}

/// Why values cannot be quantized.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// A value is NaN or infinite: the first of all.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    /// The range of a group is so wide that its scale overflows the precision: the first of all such groups.
    #[error("the scale of the range {min} to {max} overflows the precision")]
    Range {
        /// Smallest value.
        min: f32,
        /// Largest value.
        max: f32,
    },
}

/// Where [`quantize_int_rows`] writes.
#[derive(Debug)]
pub struct IntRows<'a> {
    /// Codes plus `2^(bits−1)` in a dense stream ([`pack`]); every row starts on a word.
    pub words: &'a mut [u32],
    /// One scale per group, row-major.
    pub scales: &'a mut [f32],
    /// One zero point per group; `None` for symmetric codes, whose zero points are 0.
    pub zero_points: Option<&'a mut [i8]>,
}

/// Quantizes rows to integers in one pass: scale (and zero point) from the smallest to the largest value of every group of
/// `group` neighbours of a row, rounded half to even, packed.
///
/// Every operation is rounded to `precision`, as `compressed-tensors` does; see [`Affine::from_range`]. The result is
/// the same at every instruction level and number of threads.
///
/// ```
/// use tersor::Precision;
/// use tersor::kernels::{pack::words_for, quantize::{IntRows, quantize_int_rows}};
///
/// let values = [0.5, -1.0, 7.5, 2.0, 0.0, 15.0];
/// let (mut words, mut scales) = (vec![0; 2 * words_for(3, 4)], vec![0.0; 2]);
/// let out = IntRows { words: &mut words, scales: &mut scales, zero_points: None };
/// quantize_int_rows(&values, 3, 3, 4, Precision::F32, out)?;
/// assert_eq!(scales, [1.0, 2.0]);
/// // codes 0, −1, 7 and 1, 0, 7, plus 8 each
/// assert_eq!(words, [0xf78, 0xf89]);
/// # Ok::<(), tersor::kernels::quantize::QuantizeError>(())
/// ```
///
/// # Shapes
/// `values` is `[rows, cols]`; `words` `[rows, words_for(cols, bits)]`; scales and zero points
/// `[rows, cols.div_ceil(group)]`, where the last group of a row may be smaller.
///
/// # Errors
/// When a value is not finite or a scale overflows; then what was written is unspecified.
///
/// # Panics
/// When `bits` is not 2 to 8, `cols` or `group` is 0, or a length does not fit.
pub fn quantize_int_rows(
    values: &[f32],
    cols: usize,
    group: usize,
    bits: u8,
    precision: Precision,
    out: IntRows<'_>,
) -> Result<(), QuantizeError> {
    let codes = Codes::Int { bits, symmetric: out.zero_points.is_none() };
    let zero_points = out.zero_points.map(as_uninit);
    let params = Params { scales: as_uninit(out.scales), zero_points };
    quantize(Scheme { codes, precision, cols, group }, values, Out::Words(bits, as_uninit(out.words)), params)
}

/// Quantizes rows to e4m3 in one pass: like [`quantize_int_rows`], with scales that spread ±448 over the largest
/// magnitude.
///
/// # Shapes
/// `values` and `codes` are `[rows, cols]`; scales `[rows, cols.div_ceil(group)]`.
///
/// # Errors
/// When a value is not finite or a scale overflows; then what was written is unspecified.
///
/// # Panics
/// When `cols` or `group` is 0, or a length does not fit.
pub fn quantize_f8_rows(
    values: &[f32],
    cols: usize,
    group: usize,
    precision: Precision,
    codes: &mut [u8],
    scales: &mut [f32],
) -> Result<(), QuantizeError> {
    let scheme = Scheme { codes: Codes::F8E4M3, precision, cols, group };
    let params = Params { scales: as_uninit(scales), zero_points: None };
    quantize(scheme, values, Out::Bytes(as_uninit(codes)), params)
}

/// How rows are quantized.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scheme {
    pub(crate) codes: Codes,
    pub(crate) precision: Precision,
    pub(crate) cols: usize,
    /// Neighbours of a row under one scale.
    pub(crate) group: usize,
}

impl Scheme {
    fn groups_per_row(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Elements of the output per row.
    fn out_per_row(&self) -> usize {
        match self.codes {
            Codes::Int { bits, .. } => pack::words_for(self.cols, bits),
            Codes::F8E4M3 => self.cols,
        }
    }
}

/// Where scales and zero points go.
struct Params<'a> {
    scales: &'a mut [MaybeUninit<f32>],
    zero_points: Option<&'a mut [MaybeUninit<i8>]>,
}

/// Some rows to quantize.
struct Job<'a> {
    scheme: Scheme,
    values: &'a [f32],
    out: Out<'a>,
    params: Params<'a>,
}

/// Some rows to encode under known parameters.
struct Encode<'a> {
    scheme: Scheme,
    values: &'a [f32],
    out: Out<'a>,
    /// Parameters of the groups of each of these rows, in turn.
    affines: &'a [Affine],
    /// Parameters from one row to the next; 0 where all rows share theirs.
    stride: usize,
}

multiversion! {
    fn quantize_any(job: Job<'_>) -> bool = portable::quantize_task
}

multiversion! {
    fn encode_any(job: Encode<'_>) = portable::encode_task
}

fn quantize_task(isa: Isa, job: Job<'_>) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => rows_avx512::quantize_task(token, job),
        _ => quantize_any(isa, job),
    }
}

fn encode_task(isa: Isa, job: Encode<'_>) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(token) => rows_avx512::encode_task(token, job),
        _ => encode_any(isa, job),
    }
}

/// Rows, and so tasks, that are worth a thread of their own; all rows where that is not worth it.
fn rows_per_task(rows: usize, cols: usize) -> usize {
    if rows * cols < PARALLEL_MIN { rows } else { (TASK / cols).max(1) }.max(1)
}

fn quantize(scheme: Scheme, values: &[f32], out: Out<'_>, params: Params<'_>) -> Result<(), QuantizeError> {
    let Scheme { codes, precision, cols, group } = scheme;
    assert!(cols > 0 && group > 0, "{cols} columns in groups of {group}");
    assert!(!matches!(codes, Codes::Int { bits, .. } if !(2..=MAX_BITS).contains(&bits)), "{codes:?}");
    let (rows, groups) = (values.len() / cols, scheme.groups_per_row());
    assert_eq!(rows * cols, values.len(), "values of rows of {cols}");
    assert_eq!(params.scales.len(), rows * groups, "scales");
    assert!(params.zero_points.as_ref().is_none_or(|z| z.len() == rows * groups), "zero points");
    assert_eq!(out.len(), rows * scheme.out_per_row(), "codes");
    if rows == 0 {
        return Ok(());
    }
    let isa = Isa::current();
    let step = rows_per_task(rows, cols);
    let all_finite = if step >= rows {
        quantize_task(isa, Job { scheme, values, out, params })
    } else {
        let zero_points: Vec<_> = match params.zero_points {
            Some(z) => z.chunks_mut(step * groups).map(Some).collect(),
            None => (0..rows.div_ceil(step)).map(|_| None).collect(),
        };
        values
            .par_chunks(step * cols)
            .zip(out.chunks(step * scheme.out_per_row()))
            .zip(params.scales.par_chunks_mut(step * groups))
            .zip(zero_points)
            .try_for_each(|(((values, out), scales), zero_points)| {
                let job = Job { scheme, values, out, params: Params { scales, zero_points } };
                quantize_task(isa, job).then_some(())
            })
            .is_some()
    };
    if all_finite {
        return Ok(());
    }
    if let Some(found) = reduce::first_non_finite(values) {
        return Err(found.into());
    }
    for group in values.chunks_exact(cols).flat_map(|row| row.chunks(group)) {
        let (min, max) = reduce::min_max(group)?;
        if portable::affine(codes, min, max, precision).is_none() {
            return Err(QuantizeError::Range { min, max });
        }
    }
    unreachable!("a group was refused that has finite values and a finite scale")
}

/// Codes as a weight stores them.
#[derive(Debug)]
pub(crate) enum Stored {
    /// Integers in words, every row from a new word on.
    Words(Vec<u32>),
    /// e4m3 codes.
    Bytes(Vec<u8>),
}

/// Rows after [`quantize_to_vecs`]: codes, scales, zero points.
pub(crate) type Quantized = (Stored, Vec<f32>, Option<Vec<i8>>);

/// [`quantize_int_rows`] or [`quantize_f8_rows`] into new vectors. `values` is `[rows, cols]`, and not empty.
pub(crate) fn quantize_to_vecs(scheme: Scheme, values: &[f32]) -> Result<Quantized, QuantizeError> {
    let rows = values.len() / scheme.cols;
    let groups = rows * scheme.groups_per_row();
    let mut zero_points = match scheme.codes {
        Codes::Int { symmetric: false, .. } => Some(Vec::with_capacity(groups)),
        _ => None,
    };
    let mut scales = Vec::with_capacity(groups);
    let stored = Stored::new(scheme, rows, |out| {
        let params = Params {
            scales: &mut scales.spare_capacity_mut()[..groups],
            zero_points: zero_points.as_mut().map(|z: &mut Vec<i8>| &mut z.spare_capacity_mut()[..groups]),
        };
        quantize(scheme, values, out, params)
    })?;
    // SAFETY: `quantize` wrote every scale and zero point of `values`' rows, or failed.
    unsafe {
        scales.set_len(groups);
        if let Some(zero_points) = &mut zero_points {
            zero_points.set_len(groups);
        }
    }
    Ok((stored, scales, zero_points))
}

/// Codes of `[rows, cols]` values under known parameters, where `block_rows` rows share theirs: `affines` is
/// `[rows.div_ceil(block_rows), cols.div_ceil(group)]`. The values must be finite.
pub(crate) fn encode_to_vec(scheme: Scheme, values: &[f32], block_rows: usize, affines: &[Affine]) -> Stored {
    let Scheme { cols, group, .. } = scheme;
    let (rows, groups) = (values.len() / cols, scheme.groups_per_row());
    assert!(cols > 0 && group > 0 && block_rows > 0 && rows * cols == values.len());
    assert_eq!(affines.len(), rows.div_ceil(block_rows) * groups);
    let isa = Isa::current();
    let step = rows_per_task(rows, cols);
    // no task crosses from one block of rows into the next, unless each has its own parameters
    let step = if block_rows == 1 { step } else { step.min(block_rows) };
    let stored = Stored::new(scheme, rows, |out| {
        let tasks = |block: usize, values: &[f32], out: Out<'_>| {
            let (affines, stride) = if block_rows == 1 {
                (&affines[block * groups..], groups)
            } else {
                (&affines[block * groups..(block + 1) * groups], 0)
            };
            encode_task(isa, Encode { scheme, values, out, affines, stride });
        };
        let per_row = scheme.out_per_row();
        if block_rows == 1 || block_rows >= rows {
            let first = |task: usize| if block_rows == 1 { task * step } else { 0 };
            if step >= rows {
                tasks(0, values, out);
            } else {
                let parts = values.par_chunks(step * cols).zip(out.chunks(step * per_row)).enumerate();
                parts.for_each(|(task, (values, out))| tasks(first(task), values, out));
            }
        } else {
            let blocks =
                values.par_chunks(block_rows * cols).zip(out.chunks(block_rows * per_row)).enumerate();
            blocks.for_each(|(block, (values, out))| tasks(block, values, out));
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let Ok(stored) = stored;
    stored
}

impl Stored {
    /// Room for the codes of `rows` rows, which `fill` writes completely or fails.
    fn new<E>(scheme: Scheme, rows: usize, fill: impl FnOnce(Out<'_>) -> Result<(), E>) -> Result<Self, E> {
        let len = rows * scheme.out_per_row();
        match scheme.codes {
            Codes::Int { bits, .. } => {
                let mut words = room(len);
                fill(Out::Words(bits, &mut words.spare_capacity_mut()[..len]))?;
                // SAFETY: all `len` words were written.
                unsafe { words.set_len(len) };
                Ok(Self::Words(words))
            }
            Codes::F8E4M3 => {
                let mut bytes = room(len);
                fill(Out::Bytes(&mut bytes.spare_capacity_mut()[..len]))?;
                // SAFETY: all `len` bytes were written.
                unsafe { bytes.set_len(len) };
                Ok(Self::Bytes(bytes))
            }
        }
    }
}

impl<'a> Out<'a> {
    fn len(&self) -> usize {
        match self {
            Self::Words(_, words) => words.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// Parts of `step` elements.
    fn chunks(self, step: usize) -> Vec<Out<'a>> {
        match self {
            Self::Words(bits, words) => words.chunks_mut(step).map(|words| Out::Words(bits, words)).collect(),
            Self::Bytes(bytes) => bytes.chunks_mut(step).map(Out::Bytes).collect(),
        }
    }
}

/// Memory that is only written through.
fn as_uninit<T: Copy>(slice: &mut [T]) -> &mut [MaybeUninit<T>] {
    let len = slice.len();
    // SAFETY: both types have the same layout; this module never writes uninitialized values through the result.
    unsafe { std::slice::from_raw_parts_mut(slice.as_mut_ptr().cast(), len) }
}

multiversion! {
    fn encode_run(codes: Codes, affine: Affine, precision: Precision, values: &[f32], out: &mut [MaybeUninit<u8>]) =
        portable::encode_each
}

/// Signed integer codes of values under one scale, in `[−2^(bits−1), 2^(bits−1) − 1]`.
pub(crate) fn quantize_int(values: &[f32], affine: Affine, bits: u8, precision: Precision, codes: &mut [i8]) {
    let len = codes.len();
    // SAFETY: `u8` and `i8` have the same layout, and `encode_run` writes initialized bytes.
    let out: &mut [u8] = unsafe { std::slice::from_raw_parts_mut(codes.as_mut_ptr().cast(), len) };
    let int = Codes::Int { bits, symmetric: false };
    encode_run(Isa::current(), int, affine, precision, values, as_uninit(out));
    for code in codes {
        *code = code.wrapping_sub((1u8 << (bits - 1)) as i8);
    }
}

/// e4m3 codes of `values / scale`, clamped to ±448.
pub(crate) fn quantize_f8(values: &[f32], scale: f32, precision: Precision, codes: &mut [u8]) {
    let affine = Affine { scale, zero_point: 0 };
    encode_run(Isa::current(), Codes::F8E4M3, affine, precision, values, as_uninit(codes));
}

multiversion! {
    fn dequantize_int_run(codes: &[i8], affine: Affine, precision: Precision, out: &mut [f32]) =
        portable::dequantize_int
}

multiversion! {
    fn dequantize_f8_run(codes: &[u8], scale: f32, precision: Precision, out: &mut [f32]) =
        portable::dequantize_f8
}

/// `(code − zero_point) · scale`, rounded to `precision`.
pub(crate) fn dequantize_int(
    codes: &[i8],
    scale: f32,
    zero_point: i8,
    precision: Precision,
    out: &mut [f32],
) {
    dequantize_int_run(Isa::current(), codes, Affine { scale, zero_point }, precision, out);
}

/// `code · scale`, rounded to `precision`.
pub(crate) fn dequantize_f8(codes: &[u8], scale: f32, precision: Precision, out: &mut [f32]) {
    dequantize_f8_run(Isa::current(), codes, scale, precision, out);
}

#[cfg(test)]
mod tests;
