//! Weights → the tensors of a file.

use std::borrow::Cow;

use super::{has_shape, precision_of, specs, zero_points_are_packed};
use crate::checkpoint::TensorSpec;
use crate::dtype::DType;
use crate::kernels::view::le_bytes;
use crate::kernels::{convert, pack};
use crate::weight::{
    Bits, Coding, CompressedWeight, Form, Layout, LayoutKind, PackedCodes, QuantizedInput, Values,
    WeightError, column_size, stored_code,
};

/// One of the tensors that store a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name in the file.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// Little-endian elements, row-major.
    pub bytes: Vec<u8>,
}

/// The tensors that store a weight in a safetensors file, as tersor writes them: those of `compressed-tensors` where
/// it has a name for the form, else tersor's own.
pub fn stored_tensors(name: &str, weight: &CompressedWeight) -> Vec<StoredTensor> {
    specs(name, weight.form())
        .into_iter()
        .zip(data(weight))
        .map(|(TensorSpec { name, dtype, shape }, bytes)| StoredTensor {
            name,
            dtype,
            shape,
            bytes: bytes.into_owned(),
        })
        .collect()
}

/// A piece of a stored tensor: where it begins, and its bytes.
pub(crate) type Piece<'w> = (u64, Cow<'w, [u8]>);

/// The data of the tensors that [`specs`] names, in the same order: of each the one piece.
pub(crate) fn encode(weight: &CompressedWeight) -> Vec<Piece<'_>> {
    data(weight).into_iter().map(|bytes| (0, bytes)).collect()
}

fn data(weight: &CompressedWeight) -> Vec<Cow<'_, [u8]>> {
    let form = weight.form();
    let mut data = Vec::new();
    if form.layout() != LayoutKind::Empty {
        data.push(values(weight));
    }
    match weight.layout() {
        Layout::Dense | Layout::Empty => {}
        Layout::Bitmask { mask, .. } => data.push(mask.as_bytes().into()),
        Layout::NofM { positions, .. } => data.push(le_bytes(positions.words())),
        Layout::CompressedRows { offsets, columns } => {
            data.push(le_bytes(offsets));
            data.push(if column_size(form.cols()) == 2 {
                Cow::Owned(columns.iter().flat_map(|c| (*c as u16).to_le_bytes()).collect())
            } else {
                le_bytes(columns)
            });
        }
    }
    if let (Some(scales), Some(grid)) = (weight.scales(), form.grid()) {
        let mut bytes = Vec::new();
        convert::narrow(precision_of(form.coding()), scales.scales(), &mut bytes);
        data.push(bytes.into());
        if let (Some(zero_points), Coding::Int { bits, granularity, .. }) =
            (scales.zero_points(), form.coding())
        {
            data.push(if zero_points_are_packed(form, granularity) {
                Cow::Owned(le_bytes(&pack_columns(zero_points, grid.rows, grid.cols, bits)).into_owned())
            } else {
                zero_points.iter().map(|z| *z as u8).collect()
            });
        }
    }
    if let Some(books) = weight.codebooks() {
        let mut bytes = Vec::new();
        convert::narrow(books.precision(), books.values(), &mut bytes);
        data.push(bytes.into());
    }
    if has_shape(form) {
        data.push(shape_bytes(form));
    }
    if let Some(QuantizedInput::Static(input)) = weight.input() {
        let mut bytes = Vec::new();
        convert::narrow(precision_of(form.coding()), &[input.scale()], &mut bytes);
        data.push(bytes.into());
        data.extend(input.zero_point().map(|zero| vec![zero as u8].into()));
    }
    if let Some(factors) = weight.factors() {
        data.extend(self::data(factors.u()));
        data.extend(self::data(factors.v()));
    }
    data
}

fn values(weight: &CompressedWeight) -> Cow<'_, [u8]> {
    let form = weight.form();
    match weight.values() {
        Values::F32(v) => le_bytes(v),
        Values::F16(v) => le_bytes(v),
        Values::Bf16(v) => le_bytes(v),
        Values::F8 { codes, .. } => codes.into(),
        Values::Int { bits, codes, .. } if form.is_bytes() => byte_codes(form, *bits, codes).into(),
        Values::Int { codes, .. } | Values::Codebook { codes, .. } => le_bytes(codes.words()),
    }
}

/// Codes as signed bytes.
fn byte_codes(form: &Form, bits: Bits, codes: &PackedCodes) -> Vec<u8> {
    let cols = form.cols();
    let mut bytes = vec![0u8; form.rows() * cols];
    for (row, bytes) in bytes.chunks_exact_mut(cols.max(1)).enumerate() {
        codes.unpack(row, 0, bytes);
    }
    // the way there is the way back: the offset is half of a byte's range
    for code in &mut bytes {
        *code = stored_code(bits, *code as i8);
    }
    bytes
}

fn shape_bytes(form: &Form) -> Cow<'static, [u8]> {
    form.shape().iter().flat_map(|d| (*d as i64).to_le_bytes()).collect()
}

/// The data of some rows of a weight of form `whole`, beginning at row `first`: for every tensor that [`specs`] names
/// a piece. The rows must be a multiple of [`row_unit`], unless they are the last.
pub(crate) fn encode_rows<'w>(
    rows: &'w CompressedWeight,
    whole: &Form,
    first: usize,
) -> Result<Vec<Piece<'w>>, WeightError> {
    if first == 0 && rows.form() == whole {
        return Ok(encode(rows));
    }
    let form = rows.form();
    let mut shape = form.shape().to_vec();
    if let Some(rows) = shape.first_mut() {
        *rows = first;
    }
    let kept = match form.layout() {
        LayoutKind::NofM(pattern) => first * pattern.kept_per_row(form.cols()),
        _ => first * form.cols(),
    };
    // the data of the rows before ends where that of these begins
    let before = Form::new(&shape, form.layout(), form.coding(), kept)?.with_input(form.input())?;
    let piece = |(spec, bytes): (TensorSpec, Cow<'w, [u8]>)| match spec.name.as_str() {
        // what is there once, however many rows there are, comes with the first
        "_shape" if first == 0 => (0, shape_bytes(whole)),
        ".input_scale" | ".input_zero_point" if first == 0 => (0, bytes),
        "_shape" | ".input_scale" | ".input_zero_point" => (0, Cow::Borrowed(&[][..])),
        _ => (spec.bytes(), bytes),
    };
    Ok(specs("", &before).into_iter().zip(data(rows)).map(piece).collect())
}

/// Packs a matrix of codes along its columns: the words of one column stand in that column.
pub(super) fn pack_columns(codes: &[i8], rows: usize, cols: usize, bits: Bits) -> Vec<u32> {
    let words_per_col = pack::words_for(rows, bits.get());
    let mut out = vec![0u32; words_per_col * cols];
    let mut words = vec![0u32; words_per_col];
    for col in 0..cols {
        let column: Vec<u8> = (0..rows).map(|row| stored_code(bits, codes[row * cols + col])).collect();
        pack::pack(&column, bits.get(), &mut words);
        for (row, word) in words.iter().enumerate() {
            out[row * cols + col] = *word;
        }
    }
    out
}
