use half::{bf16, f16};

use super::form::{Bits, Coding};
use super::granularity::{Granularity, ScaleGrid};
use super::packed::PackedCodes;
use super::{Codebooks, WeightError};
use crate::dtype::Precision;
use crate::kernels::{convert, mask, quantize};

/// The stored values of a weight, in layout order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    F8 { codes: Vec<u8>, scales: Scales },
    Int { bits: Bits, codes: PackedCodes, scales: Scales },
    Codebook { codes: PackedCodes, books: Codebooks },
}

/// Scales and zero points, row-major over the granularity's tiles.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::struct_field_names)] // the scales' scales: the term of the field
pub struct Scales {
    pub(crate) granularity: Granularity,
    pub(crate) precision: Precision,
    pub(crate) scales: Vec<f32>,
    /// `None`: all zero.
    pub(crate) zero_points: Option<Vec<i8>>,
}

impl Scales {
    /// Scales, and zero points unless all are zero, one per tile of the granularity, row-major. Scales are rounded to
    /// `precision`, in which they are stored.
    ///
    /// # Errors
    /// When a scale is NaN, negative, or infinite in this precision.
    pub fn new(
        granularity: Granularity,
        precision: Precision,
        mut scales: Vec<f32>,
        zero_points: Option<Vec<i8>>,
    ) -> Result<Self, WeightError> {
        for scale in &mut scales {
            *scale = precision.round(*scale);
        }
        if let Some(index) = scales.iter().position(|s| !s.is_finite() || *s < 0.0) {
            return Err(WeightError::Scale { index, value: scales[index] });
        }
        if let Some(zero_points) = &zero_points {
            WeightError::check_len("zero points", scales.len(), zero_points.len())?;
        }
        Ok(Self { granularity, precision, scales, zero_points })
    }

    pub(crate) fn check(&self, rows: usize, cols: usize) -> Result<ScaleGrid, WeightError> {
        let grid = self.granularity.grid(rows, cols);
        WeightError::check_len("scales", grid.len(), self.scales.len())?;
        Ok(grid)
    }

    /// The scales, one per tile, row-major.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The zero points, one per tile, row-major; `None` when all are zero.
    pub fn zero_points(&self) -> Option<&[i8]> {
        self.zero_points.as_deref()
    }

    /// Which weights share a scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    #[inline]
    fn at(&self, tile: usize) -> (f32, i8) {
        (self.scales[tile], self.zero_points.as_ref().map_or(0, |z| z[tile]))
    }
}

/// Scratch space of a thread that decodes rows.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) columns: Vec<u32>,
    codes: Vec<u8>,
    signed: Vec<i8>,
}

impl Values {
    pub(crate) fn coding(&self) -> Coding {
        match self {
            Self::F32(_) => Coding::Float(Precision::F32),
            Self::F16(_) => Coding::Float(Precision::F16),
            Self::Bf16(_) => Coding::Float(Precision::Bf16),
            Self::F8 { scales, .. } => {
                Coding::F8E4M3 { granularity: scales.granularity, scales: scales.precision }
            }
            Self::Int { bits, scales, .. } => Coding::Int {
                bits: *bits,
                symmetric: scales.zero_points.is_none(),
                granularity: scales.granularity,
                scales: scales.precision,
            },
            Self::Codebook { books, .. } => {
                Coding::Codebook { bits: books.bits, granularity: books.granularity, values: books.precision }
            }
        }
    }

    /// Float values of this precision.
    pub(crate) fn float(precision: Precision, values: impl Iterator<Item = f32>) -> Self {
        match precision {
            Precision::F32 => Self::F32(values.collect()),
            Precision::F16 => Self::F16(values.map(f16::from_f32).collect()),
            Precision::Bf16 => Self::Bf16(values.map(bf16::from_f32).collect()),
        }
    }

    /// Of `[rows, cols]` float values, those whose bit is set, in this precision.
    pub(crate) fn picked(precision: Precision, values: &[f32], cols: usize, bits: &[u8]) -> Self {
        match precision {
            Precision::F32 => Self::F32(mask::pick(values, cols, bits, mask::copy)),
            Precision::F16 => Self::F16(mask::pick(values, cols, bits, convert::fill_f16)),
            Precision::Bf16 => Self::Bf16(mask::pick(values, cols, bits, convert::fill_bf16)),
        }
    }

    /// Some of the values as `f32`, widened into `wide` if need be; `None` for codes.
    pub(crate) fn floats<'a>(
        &'a self,
        start: usize,
        len: usize,
        wide: &'a mut Vec<f32>,
    ) -> Option<&'a [f32]> {
        match self {
            Self::F32(values) => return Some(&values[start..start + len]),
            Self::F16(values) => {
                wide.resize(len, 0.0);
                convert::f16_to_f32(&values[start..start + len], wide);
            }
            Self::Bf16(values) => {
                wide.resize(len, 0.0);
                convert::bf16_to_f32(&values[start..start + len], wide);
            }
            _ => return None,
        }
        Some(wide)
    }

    /// Decodes a whole row of a dense layout.
    pub(crate) fn decode_dense_row(
        &self,
        row: usize,
        grid: Option<ScaleGrid>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let cols = out.len();
        let span = row * cols..(row + 1) * cols;
        match (self, grid) {
            (Self::F32(values), _) => out.copy_from_slice(&values[span]),
            (Self::F16(values), _) => widen_each(&values[span], out, half::f16::to_f32),
            (Self::Bf16(values), _) => widen_each(&values[span], out, half::bf16::to_f32),
            (Self::F8 { codes, scales }, Some(grid)) => {
                let codes = &codes[span];
                for_each_run(grid, row, cols, |tile, run| {
                    quantize::dequantize_f8(
                        &codes[run.clone()],
                        scales.scales[tile],
                        scales.precision,
                        &mut out[run],
                    );
                });
            }
            (Self::Int { bits, codes, scales }, Some(grid)) => {
                scratch.codes.resize(cols, 0);
                codes.unpack(row, 0, &mut scratch.codes);
                to_signed(*bits, &scratch.codes, &mut scratch.signed);
                for_each_run(grid, row, cols, |tile, run| {
                    let (scale, zero_point) = scales.at(tile);
                    quantize::dequantize_int(
                        &scratch.signed[run.clone()],
                        scale,
                        zero_point,
                        scales.precision,
                        &mut out[run],
                    );
                });
            }
            (Self::Codebook { codes, books }, Some(grid)) => {
                scratch.codes.resize(cols, 0);
                codes.unpack(row, 0, &mut scratch.codes);
                for_each_run(grid, row, cols, |tile, run| {
                    let book = books.of_tile(tile);
                    for (out, code) in out[run.clone()].iter_mut().zip(&scratch.codes[run]) {
                        *out = book[usize::from(*code)];
                    }
                });
            }
            (_, None) => unreachable!("a scaled coding always has a grid"),
        }
    }

    /// Decodes the values from index `start` on, which stand in `scratch.columns` of the row; the rest becomes zero.
    pub(crate) fn decode_sparse_row(
        &self,
        row: usize,
        start: usize,
        grid: Option<ScaleGrid>,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        out.fill(0.0);
        let columns = &scratch.columns;
        let span = start..start + columns.len();
        match (self, grid) {
            (Self::F32(values), _) => scatter(columns, &values[span], out, |_, x| *x),
            (Self::F16(values), _) => scatter(columns, &values[span], out, |_, x| x.to_f32()),
            (Self::Bf16(values), _) => scatter(columns, &values[span], out, |_, x| x.to_f32()),
            (Self::F8 { codes, scales }, Some(grid)) => scatter(columns, &codes[span], out, |col, code| {
                let scale = scales.scales[grid.index(row, col)];
                scales.precision.round(convert::f8_e4m3_to_f32(*code) * scale)
            }),
            (Self::Int { bits, codes, scales }, Some(grid)) => {
                scratch.codes.resize(columns.len(), 0);
                codes.unpack(0, start, &mut scratch.codes);
                to_signed(*bits, &scratch.codes, &mut scratch.signed);
                scatter(columns, &scratch.signed, out, |col, code| {
                    let (scale, zero_point) = scales.at(grid.index(row, col));
                    scales.precision.round((i32::from(*code) - i32::from(zero_point)) as f32 * scale)
                });
            }
            (Self::Codebook { codes, books }, Some(grid)) => {
                scratch.codes.resize(columns.len(), 0);
                codes.unpack(0, start, &mut scratch.codes);
                scatter(columns, &scratch.codes, out, |col, code| {
                    books.of_tile(grid.index(row, col))[usize::from(*code)]
                });
            }
            (_, None) => unreachable!("a scaled coding always has a grid"),
        }
    }
}

fn widen_each<T: Copy>(values: &[T], out: &mut [f32], f: impl Fn(T) -> f32) {
    for (out, x) in out.iter_mut().zip(values) {
        *out = f(*x);
    }
}

fn scatter<T>(columns: &[u32], values: &[T], out: &mut [f32], f: impl Fn(usize, &T) -> f32) {
    for (col, x) in columns.iter().zip(values) {
        out[*col as usize] = f(*col as usize, x);
    }
}

fn for_each_run(grid: ScaleGrid, row: usize, cols: usize, mut f: impl FnMut(usize, std::ops::Range<usize>)) {
    let first = grid.index(row, 0);
    for (tile, start) in (0..cols).step_by(grid.block_cols).enumerate() {
        f(first + tile, start..(start + grid.block_cols).min(cols));
    }
}

/// From the stored `code + 2^(bits−1)` to the code.
fn to_signed(bits: Bits, stored: &[u8], signed: &mut Vec<i8>) {
    let offset = 1u8 << (bits.get() - 1);
    signed.clear();
    signed.extend(stored.iter().map(|c| c.wrapping_sub(offset) as i8));
}
