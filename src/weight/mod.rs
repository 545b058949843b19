//! Compressed weights: a *layout* (where values stand) × a *coding* (how one value is written).
//!
//! Pruning chooses the layout, quantizing chooses the coding, so that any two compose. Every weight is seen as a
//! matrix `[rows, cols]` = `[out_features, in_features]`; a convolution `[out, in, kh, kw]` is
//! `[out, in·kh·kw]`.
//!
//! A product of two such matrices, [`LowRank`], can stand for a weight, or be added to one.

mod codebook;
mod error;
mod form;
mod granularity;
mod input;
mod layout;
mod low_rank;
mod mask;
mod packed;
mod prepacked;
mod values;

use std::mem::MaybeUninit;
use std::ops::Range;

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

pub use codebook::{CodebookBits, Codebooks};
pub use error::WeightError;
pub use form::{Bits, Coding, Form, LayoutKind, NofM, WeightBytes};
pub use granularity::{Granularity, ScaleGrid};
pub use input::{InputForm, InputScales, QuantizedInput};
pub use low_rank::{LowRank, LowRankForm};
pub use mask::Mask;
pub use prepacked::{Activations, PackedWeight};
pub(crate) use prepacked::{Together, matmul_together};
pub use values::Scales;

pub(crate) use form::{column_size, matrix_shape};
pub(crate) use layout::Layout;
pub(crate) use packed::PackedCodes;
pub(crate) use values::Values;

use crate::dtype::Precision;
use crate::kernels::mask::{as_unsigned, copy, expand, pick};
use crate::kernels::matmul::matmul_transposed;
use crate::kernels::memory::zeros;
use values::Scratch;

/// Rows that one task of a product decodes at a time.
const TILE_ROWS: usize = 64;

/// Values for every position of a matrix, from which a layout picks those that it keeps.
#[derive(Debug, Clone, Copy)]
pub enum DenseValues<'a> {
    /// Floats, stored in this precision (rounded to nearest even if they are not of it).
    Float(Precision, &'a [f32]),
    /// e4m3 codes and their scales.
    F8E4M3(&'a [u8], &'a Scales),
    /// Signed integer codes and their scales.
    Int(Bits, &'a [i8], &'a Scales),
    /// Codes that name values of codebooks.
    Codebook(&'a [u8], &'a Codebooks),
}

/// A weight as it is stored: shape, layout and coded values.
///
/// ```
/// use tersor::{Bits, CompressedWeight, DenseValues, Granularity, LayoutKind, Precision, Scales};
///
/// // Two rows of int4 codes, one scale a row.
/// let scales = Scales::new(Granularity::Channel, Precision::F32, vec![0.5, 2.0], None)?;
/// let codes = [1i8, -8, 7, 0, 3, -1];
/// let values = DenseValues::Int(Bits::new(4).unwrap(), &codes, &scales);
/// let weight = CompressedWeight::encode(&[2, 3], LayoutKind::Dense, None, values)?;
/// assert_eq!(weight.dequantize().as_slice(), Some(&[0.5, -4.0, 3.5, 0.0, 6.0, -2.0][..]));
/// assert_eq!(weight.form().bytes().total(), 2 * 4 + 2 * 4); // one word and one scale a row
///
/// let y = weight.matmul(ndarray::array![[1.0f32, 0.0, 1.0]].view())?;
/// assert_eq!(y, ndarray::array![[4.0, -2.0]]);
/// # Ok::<(), tersor::WeightError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct CompressedWeight {
    form: Form,
    layout: Layout,
    values: Values,
    input: Option<QuantizedInput>,
    low_rank: Option<LowRank>,
}

impl CompressedWeight {
    /// Stores, of `values`, what `mask` keeps (everything without a mask), in the layout asked for.
    ///
    /// # Shapes
    /// `shape` is the tensor's; values and mask are `[rows, cols]`. A dense layout stores every value as it is, so
    /// that pruned positions must hold zero.
    ///
    /// # Errors
    /// When lengths do not fit the shape, an N:M layout is asked for and the mask is not N:M, or a code or zero point is
    /// one that the coding does not have.
    pub fn encode(
        shape: &[usize],
        layout: LayoutKind,
        mask: Option<&Mask>,
        values: DenseValues<'_>,
    ) -> Result<Self, WeightError> {
        let [rows, cols] = matrix_shape(shape)?;
        if let Some(mask) = mask {
            mask.check(rows, cols)?;
        }
        let count = match values {
            DenseValues::Float(_, v) => v.len(),
            DenseValues::F8E4M3(v, _) | DenseValues::Codebook(v, _) => v.len(),
            DenseValues::Int(_, v, _) => v.len(),
        };
        WeightError::check_len("values", rows * cols, count)?;
        match values {
            DenseValues::Float(..) => {}
            DenseValues::F8E4M3(codes, _) => {
                if let Some(index) = codes.par_iter().position_first(|c| c & 0x7f == 0x7f) {
                    return Err(WeightError::NanCode { index });
                }
            }
            DenseValues::Int(bits, codes, _) => bits.check("code", codes)?,
            DenseValues::Codebook(codes, books) => books.bits.check(codes)?,
        }
        let all;
        let mask = match mask {
            Some(mask) => mask,
            None if layout == LayoutKind::Dense => {
                return Self::from_parts(shape, Layout::Dense, dense(rows, cols, values));
            }
            None => {
                all = Mask::keep_all(rows, cols);
                &all
            }
        };
        if layout == LayoutKind::Dense {
            return Self::from_parts(shape, Layout::Dense, dense(rows, cols, values));
        }
        let laid_out = Layout::from_mask(layout, mask)?;
        let bits = mask.as_bytes();
        let values = match values {
            DenseValues::Float(precision, v) => Values::picked(precision, v, cols, bits),
            DenseValues::F8E4M3(v, scales) => {
                Values::F8 { codes: pick(v, cols, bits, copy), scales: scales.clone() }
            }
            DenseValues::Int(bits_of_code, v, scales) => {
                let store = |codes: &[u8], out: &mut [MaybeUninit<u8>]| {
                    for (out, code) in out.iter_mut().zip(codes) {
                        out.write(stored_code(bits_of_code, *code as i8));
                    }
                };
                let codes = pick(as_unsigned(v), cols, bits, store);
                Values::Int {
                    bits: bits_of_code,
                    codes: PackedCodes::from_codes(bits_of_code.get(), &codes),
                    scales: scales.clone(),
                }
            }
            DenseValues::Codebook(v, books) => Values::Codebook {
                codes: PackedCodes::from_codes(books.bits.get(), &pick(v, cols, bits, copy)),
                books: books.clone(),
            },
        };
        Self::from_parts(shape, laid_out, values)
    }

    /// A dense weight of plain floats.
    ///
    /// # Shapes
    /// `values` has as many elements as `shape`.
    ///
    /// # Errors
    /// When it has not.
    pub fn from_f32(shape: &[usize], precision: Precision, values: &[f32]) -> Result<Self, WeightError> {
        Self::encode(shape, LayoutKind::Dense, None, DenseValues::Float(precision, values))
    }

    /// A weight that is the product of two factors.
    ///
    /// # Shapes
    /// The product has the rows and columns of the matrix that `shape` is compressed as.
    ///
    /// # Errors
    /// When it has not.
    pub fn low_rank(shape: &[usize], factors: LowRank) -> Result<Self, WeightError> {
        factors.check(shape)?;
        let form = Form::of_factors(shape, factors.form())?;
        let values = Values::F32(Vec::new());
        Ok(Self { form, layout: Layout::Empty, values, input: None, low_rank: Some(factors) })
    }

    /// The same weight, to which the product of two factors is added, such as one that makes good what quantization lost.
    ///
    /// # Errors
    /// When the product is of another shape, or the weight is already a product of factors.
    pub fn with_correction(self, factors: LowRank) -> Result<Self, WeightError> {
        factors.check(self.shape())?;
        let form = self.form.with_correction(Some(factors.form()))?;
        Ok(Self { form, low_rank: Some(factors), ..self })
    }

    /// The factors whose product is the weight, or is added to it.
    pub fn factors(&self) -> Option<&LowRank> {
        self.low_rank.as_ref()
    }

    /// Puts together parts whose layout has been checked; the lengths of values and scales are checked here.
    pub(crate) fn from_parts(shape: &[usize], layout: Layout, values: Values) -> Result<Self, WeightError> {
        let [rows, cols] = matrix_shape(shape)?;
        let kept = layout.kept(rows, cols);
        let form = Form::new(shape, layout.kind(), values.coding(), kept)?;
        match &values {
            Values::F32(v) => WeightError::check_len("values", kept, v.len())?,
            Values::F16(v) => WeightError::check_len("values", kept, v.len())?,
            Values::Bf16(v) => WeightError::check_len("values", kept, v.len())?,
            Values::F8 { codes, scales } => {
                WeightError::check_len("values", kept, codes.len())?;
                scales.check(rows, cols)?;
            }
            Values::Int { bits, codes, scales } => {
                // zero points are stored like codes
                bits.check("zero point", scales.zero_points().unwrap_or_default())?;
                let expected = form.bytes().values as usize / 4;
                WeightError::check_len("words of codes", expected, codes.words().len())?;
                scales.check(rows, cols)?;
            }
            Values::Codebook { codes, books } => {
                let expected = form.bytes().values as usize / 4;
                WeightError::check_len("words of codes", expected, codes.words().len())?;
                books.check(rows, cols)?;
            }
        }
        Ok(Self { form, layout, values, input: None, low_rank: None })
    }

    /// Says how the layer's input is quantized; a static scale is rounded to the precision of the weight's scales, in which
    /// it is stored.
    ///
    /// # Errors
    /// When the weight is not of integers, or the scale vanishes or overflows in that precision.
    pub fn with_input(self, input: QuantizedInput) -> Result<Self, WeightError> {
        let form = self.form.with_input(Some(input.form()))?;
        let input = match form.coding() {
            Coding::Int { scales, .. } => input.rounded(scales)?,
            _ => input,
        };
        Ok(Self { form, input: Some(input), ..self })
    }

    /// How the layer's input is quantized; `None`: it is not.
    pub fn input(&self) -> Option<QuantizedInput> {
        self.input
    }

    /// What the weight looks like: shape, layout, coding, exact bytes.
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Shape of the tensor.
    pub fn shape(&self) -> &[usize] {
        self.form.shape()
    }

    /// Rows of the matrix: output features.
    pub fn rows(&self) -> usize {
        self.form.rows()
    }

    /// Columns of the matrix: input features.
    pub fn cols(&self) -> usize {
        self.form.cols()
    }

    /// The scales and zero points, `None` for plain floats.
    pub fn scales(&self) -> Option<&Scales> {
        match &self.values {
            Values::F8 { scales, .. } | Values::Int { scales, .. } => Some(scales),
            _ => None,
        }
    }

    /// The same codes under other scales, such as learned ones, which are rounded to the precision of those that they replace.
    ///
    /// # Errors
    /// When the weight has no scales, or not so many, or one is NaN, negative, or infinite in that precision.
    pub fn with_scales(mut self, scales: Vec<f32>) -> Result<Self, WeightError> {
        let (Values::F8 { scales: of_weight, .. } | Values::Int { scales: of_weight, .. }) = &mut self.values
        else {
            let (form, what) = (self.form.to_string(), format!("{} scales", scales.len()));
            return Err(WeightError::Replacement { form, what });
        };
        WeightError::check_len("scales", of_weight.scales.len(), scales.len())?;
        let Scales { granularity, precision, zero_points, .. } = of_weight;
        *of_weight = Scales::new(*granularity, *precision, scales, zero_points.take())?;
        Ok(self)
    }

    /// The codebooks, `None` for every other coding.
    pub fn codebooks(&self) -> Option<&Codebooks> {
        match &self.values {
            Values::Codebook { books, .. } => Some(books),
            _ => None,
        }
    }

    /// The same codes under other codebooks, such as fine-tuned ones.
    ///
    /// # Errors
    /// When the weight has no codebooks, or those have other bits or another granularity.
    pub fn with_codebooks(self, books: Codebooks) -> Result<Self, WeightError> {
        match self.values {
            Values::Codebook { codes, books: old }
                if (old.bits, old.granularity) == (books.bits, books.granularity) =>
            {
                let values = Values::Codebook { codes, books };
                let weight = Self::from_parts(self.form.shape(), self.layout, values)?;
                match self.low_rank {
                    Some(factors) => weight.with_correction(factors),
                    None => Ok(weight),
                }
            }
            _ => Err(WeightError::Replacement {
                form: self.form.to_string(),
                what: format!("codebooks of {} bits, {}", books.bits.get(), books.granularity),
            }),
        }
    }

    /// The code of every position, `None` unless the coding is a codebook.
    ///
    /// # Shapes
    /// `[rows, cols]`; pruned positions of a sparse layout hold 0, and [`mask`](Self::mask) tells them apart.
    pub fn codebook_codes(&self) -> Option<Vec<u8>> {
        let Values::Codebook { codes, .. } = &self.values else { return None };
        let (rows, cols) = (self.rows(), self.cols());
        let mut all = vec![0u8; rows * cols];
        let (mut columns, mut kept) = (Vec::new(), Vec::new());
        for (row, out) in all.chunks_exact_mut(cols.max(1)).enumerate() {
            if matches!(self.layout, Layout::Dense) {
                codes.unpack(row, 0, out);
            } else {
                let start = self.layout.columns_of(row, cols, &mut columns);
                kept.resize(columns.len(), 0);
                codes.unpack(0, start, &mut kept);
                for (col, code) in columns.iter().zip(&kept) {
                    out[*col as usize] = *code;
                }
            }
        }
        Some(all)
    }

    /// The code of every position, `[rows, cols]`; `None` unless they are integers in a dense layout.
    pub(crate) fn dense_int_codes(&self) -> Option<Vec<i8>> {
        let (Layout::Dense, Values::Int { bits, codes, .. }) = (&self.layout, &self.values) else {
            return None;
        };
        let mut all = vec![0u8; self.rows() * self.cols()];
        for (row, out) in all.chunks_exact_mut(self.cols().max(1)).enumerate() {
            codes.unpack(row, 0, out);
        }
        let first = bits.range().0;
        Some(all.into_iter().map(|stored| (i32::from(stored) + first) as i8).collect())
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    /// Which positions have a stored value; `None` for a dense layout and a product of factors.
    pub fn mask(&self) -> Option<Mask> {
        match &self.layout {
            Layout::Dense | Layout::Empty => None,
            Layout::Bitmask { mask, .. } => Some(mask.clone()),
            layout => {
                let (rows, cols) = (self.rows(), self.cols());
                let stride = cols.div_ceil(8);
                let mut bytes = vec![0u8; rows * stride];
                let mut columns = Vec::new();
                for row in 0..if cols == 0 { 0 } else { rows } {
                    layout.columns_of(row, cols, &mut columns);
                    for col in columns.iter().map(|c| *c as usize) {
                        bytes[row * stride + col / 8] |= 1 << (col % 8);
                    }
                }
                Mask::from_bytes(rows, cols, bytes).ok()
            }
        }
    }

    /// The dense values.
    ///
    /// # Shapes
    /// `[rows, cols]`; pruned positions are 0, unless factors are added.
    pub fn dequantize(&self) -> Array2<f32> {
        let (rows, cols) = (self.rows(), self.cols());
        let mut out = zeros(rows * cols);
        self.dequantize_rows(0..rows, &mut out);
        Array2::from_shape_vec((rows, cols), out).unwrap_or_default()
    }

    /// Values of some rows, `[rows, cols]`.
    pub(crate) fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let cols = self.cols();
        debug_assert_eq!(out.len(), rows.len() * cols);
        if cols > 0 {
            let factors = self.low_rank.as_ref().map(LowRank::prepared);
            out.par_chunks_mut(TILE_ROWS * cols).enumerate().for_each(|(tile, out)| {
                let (first, rows) = (rows.start + tile * TILE_ROWS, out.len() / cols);
                self.decode_kept(first..first + rows, out);
                if let Some(factors) = &factors {
                    factors.add_rows(first, rows, out);
                }
            });
        }
    }

    /// The product `y = x · Wᵀ` in f32.
    ///
    /// The order of summation depends on neither the number of threads nor their timing.
    ///
    /// # Shapes
    /// `x` is `[batch, cols]`; the result is `[batch, rows]`.
    ///
    /// # Errors
    /// When `x` has another number of columns.
    pub fn matmul(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, WeightError> {
        let (rows, cols) = (self.rows(), self.cols());
        let (batch, features) = x.dim();
        if features != cols {
            return Err(WeightError::Activations { activations: [batch, features], cols });
        }
        let of_factors = match &self.low_rank {
            Some(factors) => Some(factors.u().matmul(factors.v().matmul(x)?.view())?),
            None => None,
        };
        let of_factors = match (&self.layout, of_factors) {
            (Layout::Empty, Some(y)) => return Ok(y),
            (_, of_factors) => of_factors,
        };
        let x = x.as_standard_layout();
        let x: &[f32] = x.as_slice().unwrap_or_default();
        let mut y = vec![0.0f32; rows * batch];
        if batch > 0 {
            y.par_chunks_mut(TILE_ROWS * batch).enumerate().for_each_init(Vec::new, |decoded, (tile, y)| {
                let first = tile * TILE_ROWS;
                let tile_rows = y.len() / batch;
                let w = if let (Layout::Dense, Values::F32(w)) = (&self.layout, &self.values) {
                    &w[first * cols..(first + tile_rows) * cols]
                } else {
                    decoded.resize(tile_rows * cols, 0.0);
                    self.decode_kept(first..first + tile_rows, decoded);
                    decoded.as_slice()
                };
                matmul_transposed(x, w, batch, tile_rows, cols, y);
            });
        }
        // y was written as [rows, batch]
        let y = Array2::from_shape_vec((rows, batch), y).unwrap_or_default();
        let y = y.reversed_axes().as_standard_layout().into_owned();
        Ok(match of_factors {
            Some(of_factors) => y + of_factors,
            None => y,
        })
    }

    /// Decodes some rows on the calling thread.
    ///
    /// # Shapes
    /// `out` is `[range.len(), cols]`.
    pub(crate) fn decode_rows(&self, range: Range<usize>, out: &mut [f32]) {
        self.decode_kept(range.clone(), out);
        if let Some(factors) = &self.low_rank
            && !out.is_empty()
        {
            factors.prepared().add_rows(range.start, range.len(), out);
        }
    }

    /// Decodes what some rows are without factors.
    pub(crate) fn decode_kept(&self, range: Range<usize>, out: &mut [f32]) {
        let cols = self.cols();
        if cols == 0 {
            return;
        }
        let grid = self.form.grid();
        let mut scratch = Scratch::default();
        let mut wide = Vec::new();
        for (row, out) in range.zip(out.chunks_exact_mut(cols)) {
            if matches!(self.layout, Layout::Empty) {
                out.fill(0.0);
            } else if matches!(self.layout, Layout::Dense) {
                self.values.decode_dense_row(row, grid, &mut scratch, out);
            } else if let Layout::Bitmask { mask, starts } = &self.layout
                && let Some(values) = self.values.floats(starts[row], mask.kept_count_in_row(row), &mut wide)
            {
                expand(values, mask.row_bytes(row), out);
            } else {
                let start = self.layout.columns_of(row, cols, &mut scratch.columns);
                self.values.decode_sparse_row(row, start, grid, &mut scratch, out);
            }
        }
    }
}

fn dense(rows: usize, cols: usize, values: DenseValues<'_>) -> Values {
    match values {
        DenseValues::Float(precision, v) => Values::float(precision, v.iter().copied()),
        DenseValues::F8E4M3(v, scales) => Values::F8 { codes: v.to_vec(), scales: scales.clone() },
        DenseValues::Int(bits, v, scales) => {
            let codes = PackedCodes::from_rows(bits.get(), rows, cols, |row, out| {
                for (out, code) in out.iter_mut().zip(&v[row * cols..]) {
                    *out = stored_code(bits, *code);
                }
            });
            Values::Int { bits, codes, scales: scales.clone() }
        }
        DenseValues::Codebook(v, books) => {
            let codes = PackedCodes::from_rows(books.bits.get(), rows, cols, |row, out| {
                out.copy_from_slice(&v[row * cols..][..out.len()]);
            });
            Values::Codebook { codes, books: books.clone() }
        }
    }
}

/// From a code to the stored `code + 2^(bits−1)`, which is not negative.
pub(crate) fn stored_code(bits: Bits, code: i8) -> u8 {
    let mask = (0xffu16 >> (8 - bits.get())) as u8;
    (code as u8).wrapping_add(1 << (bits.get() - 1)) & mask
}
