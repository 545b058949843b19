//! Rounding to codes under scales, and back.
//!
//! [`quantize_int_rows`] and [`quantize_f8_rows`] read their values once: range, scale, codes and packing of a group are
//! done while it lies in the first-level cache. The `encode` functions use scales that are known already.

mod portable;

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::{PARALLEL_MIN, pack, reduce};
use crate::dtype::Precision;
use crate::error::NonFinite;

use portable::Out;
pub(crate) use portable::quantize_one;

/// Largest number of bits of an integer code.
const MAX_BITS: u8 = 8;

/// Values that one task quantizes at a time.
const TASK: usize = 1 << 16;

/// What values are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codes {
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
