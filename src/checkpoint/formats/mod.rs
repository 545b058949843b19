//! How compressed weights are stored: forms ↔ tensors of a file, as `docs/formats.md` describes them.
//!
//! What every weight looks like is written to the file's metadata ([`tersor`]) and, where `compressed-tensors` has a name
//! for it, to `config.json` ([`compressed_tensors`]).

pub(crate) mod coded;
pub(crate) mod compressed_tensors;
pub(crate) mod tersor;

pub use coded::coded_tensor;

use std::borrow::Cow;
use std::collections::BTreeMap;

use half::{bf16, f16};

use self::compressed_tensors::QuantizationConfig;
use self::tersor::Storage;
use super::{Checkpoint, CheckpointError, Entry, TensorRef, TensorSpec};
use crate::dtype::{DType, FloatType, Precision};
use crate::kernels::view::le_bytes;
use crate::kernels::{convert, pack};
use crate::weight::{
    Bits, CodebookBits, Codebooks, Coding, CompressedWeight, Form, Granularity, InputForm, InputScales,
    Layout, LayoutKind, Mask, PackedCodes, QuantizedInput, Scales, Values, WeightError, column_size,
    matrix_shape, stored_code,
};

/// A compressed weight that was found in a file.
pub(super) struct Found {
    pub(super) form: Form,
    /// Names of its tensors.
    pub(super) tensors: Vec<String>,
}

/// Finds the compressed weights of a checkpoint: from tersor's metadata, else from `config.json`, else from the names.
pub(super) fn find_forms(
    checkpoint: &Checkpoint,
    names: &[String],
    config: Option<&QuantizationConfig>,
) -> Result<BTreeMap<String, Found>, CheckpointError> {
    let mut found = BTreeMap::new();
    for (file, path) in checkpoint.files().enumerate() {
        let Some(metadata) = checkpoint.metadata(file) else { continue };
        for (name, form, storage) in tersor::read_metadata(path, metadata)? {
            let tensors: Vec<String> = match storage {
                Storage::Parts => specs(&name, &form).into_iter().map(|s| s.name).collect(),
                Storage::Coded => vec![format!("{name}{}", coded::SUFFIX)],
            };
            if let Some(missing) = tensors.iter().find(|t| !checkpoint.has_tensor(t)) {
                let reason = format!("its form `{form}` asks for the tensor `{missing}`, which is not there");
                return Err(CheckpointError::tensor(path, &name, reason));
            }
            let shape_name = format!("{name}_shape");
            if tensors.contains(&shape_name) {
                let shape = stored_shape(&checkpoint.tensor(&shape_name)?, &shape_name)?;
                if shape != form.shape() {
                    let reason = format!("says {shape:?} where the form of `{name}` says {:?}", form.shape());
                    return Err(CheckpointError::tensor(path, &shape_name, reason));
                }
            }
            found.insert(name, Found { form, tensors });
        }
    }
    for tensor in names {
        let Some(name) = tensor.strip_suffix("_scale") else { continue };
        if !found.contains_key(name)
            && let Some(weight) = compressed_tensors::find_form(checkpoint, name, config)?
        {
            found.insert(name.to_owned(), weight);
        }
    }
    for (name, weight) in &found {
        if is_coded(name, &weight.tensors) {
            check_coded(checkpoint, name, &weight.form)?;
        } else {
            check_shapes(checkpoint, name, &weight.form)?;
        }
    }
    Ok(found)
}

/// Whether these tensors of a compressed weight are the one that holds all of it.
pub(super) fn is_coded(name: &str, tensors: &[String]) -> bool {
    matches!(tensors, [tensor] if tensor.strip_suffix(coded::SUFFIX) == Some(name))
}

/// The tensor of a coded weight must be one of bytes, and not too few of them.
fn check_coded(checkpoint: &Checkpoint, name: &str, form: &Form) -> Result<(), CheckpointError> {
    let tensor_name = format!("{name}{}", coded::SUFFIX);
    let tensor = checkpoint.tensor(&tensor_name)?;
    if tensor.dtype != DType::U8 {
        let reason = format!("holds {:?} where an entropy-coded weight is U8", tensor.dtype);
        return Err(CheckpointError::tensor(tensor.path, &tensor_name, reason));
    }
    coded::check_hollow(form, tensor.bytes.len()).map_err(CheckpointError::weight(tensor.path, &tensor_name))
}

/// The parts must have the shapes that the form asks for, up to dimensions of 1. Parts of another dtype than tersor
/// writes (I8 codes and zero points) are left to [`decode`].
fn check_shapes(checkpoint: &Checkpoint, name: &str, form: &Form) -> Result<(), CheckpointError> {
    let long = |shape: &[usize]| shape.iter().copied().filter(|d| *d != 1).collect::<Vec<_>>();
    for spec in specs(name, form) {
        if let Ok(part) = checkpoint.tensor(&spec.name)
            && part.dtype == spec.dtype
            && long(part.shape) != long(&spec.shape)
        {
            let reason = format!(
                "has shape {:?} where {form} of shape {:?} needs {:?}",
                part.shape,
                form.shape(),
                spec.shape
            );
            return Err(CheckpointError::tensor(part.path, &spec.name, reason));
        }
    }
    Ok(())
}

/// The precision of a coding's values once they are dequantized.
pub(crate) fn precision_of(coding: Coding) -> Precision {
    match coding {
        Coding::Float(precision) => precision,
        Coding::F8E4M3 { scales, .. } | Coding::Int { scales, .. } => scales,
        Coding::Codebook { values, .. } => values,
    }
}

/// The tensors that store a weight of this form, in order.
pub(crate) fn specs(name: &str, form: &Form) -> Vec<TensorSpec> {
    let (rows, cols) = (form.rows(), form.cols());
    let mut specs = Vec::new();
    let mut add = |suffix: &str, dtype: DType, shape: Vec<usize>| {
        specs.push(TensorSpec { name: format!("{name}{suffix}"), dtype, shape });
    };
    let dense = form.layout() == LayoutKind::Dense;
    match (form.coding(), dense) {
        (Coding::Float(precision), true) => add("", precision.dtype(), form.shape().to_vec()),
        (Coding::Float(precision), false) => add("_values", precision.dtype(), vec![form.kept()]),
        (Coding::F8E4M3 { .. }, true) => add("", DType::F8_E4M3, form.shape().to_vec()),
        (Coding::F8E4M3 { .. }, false) => add("_values", DType::F8_E4M3, vec![form.kept()]),
        (Coding::Int { .. }, true) if form.is_bytes() => add("", DType::I8, form.shape().to_vec()),
        (Coding::Int { .. } | Coding::Codebook { .. }, true) => {
            add("_packed", DType::I32, vec![rows, pack::words_for(cols, code_bits(form))]);
        }
        (Coding::Int { .. } | Coding::Codebook { .. }, false) => {
            add("_values", DType::I32, vec![pack::words_for(form.kept(), code_bits(form))]);
        }
    }
    match form.layout() {
        LayoutKind::Dense => {}
        LayoutKind::Bitmask => add("_bitmask", DType::U8, vec![rows, cols.div_ceil(8)]),
        LayoutKind::NofM(pattern) => {
            let words = pack::words_for(form.kept(), pattern.position_bits());
            add("_positions", DType::I32, vec![words]);
        }
        LayoutKind::CompressedRows => {
            add("_row_offsets", DType::I64, vec![rows + 1]);
            let dtype = if column_size(cols) == 2 { DType::U16 } else { DType::U32 };
            add("_columns", dtype, vec![form.kept()]);
        }
    }
    if let (Coding::Codebook { bits, values, .. }, Some(grid)) = (form.coding(), form.grid()) {
        add("_codebook", values.dtype(), vec![grid.rows, grid.cols, bits.entries()]);
    } else if let (Some(grid), Some(granularity)) = (form.grid(), form.coding().granularity()) {
        let shape = if granularity == Granularity::Tensor { vec![1] } else { vec![grid.rows, grid.cols] };
        add("_scale", precision_of(form.coding()).dtype(), shape.clone());
        if let Coding::Int { bits, symmetric: false, .. } = form.coding() {
            if zero_points_are_packed(form, granularity) {
                add("_zero_point", DType::I32, vec![pack::words_for(rows, bits.get()), grid.cols]);
            } else {
                add("_zero_point", DType::I8, shape);
            }
        }
    }
    if has_shape(form) {
        add("_shape", DType::I64, vec![form.shape().len()]);
    }
    if let Some(InputForm::Static { symmetric }) = form.input() {
        let mut add = |part: &str, dtype| {
            specs.push(TensorSpec { name: input_part(name, part), dtype, shape: vec![1] });
        };
        add("scale", precision_of(form.coding()).dtype());
        if !symmetric {
            add("zero_point", DType::I8);
        }
    }
    specs
}

/// Bits of a packed code; 0 of values that are not packed.
pub(super) fn code_bits(form: &Form) -> u8 {
    match form.coding() {
        Coding::Int { bits, .. } => bits.get(),
        Coding::Codebook { bits, .. } => bits.get(),
        Coding::Float(_) | Coding::F8E4M3 { .. } => 0,
    }
}

/// The name of what is stored about the input of the layer that a weight belongs to.
fn input_part(weight: &str, part: &str) -> String {
    format!("{}.input_{part}", weight.strip_suffix(".weight").unwrap_or(weight))
}

fn zero_points_are_packed(form: &Form, granularity: Granularity) -> bool {
    !form.is_bytes() && matches!(granularity, Granularity::Channel | Granularity::Group(_))
}

/// Whether the shape is stored, because no tensor has it.
fn has_shape(form: &Form) -> bool {
    form.layout() != LayoutKind::Dense || (code_bits(form) > 0 && !form.is_bytes())
}

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
    let mut data = vec![match weight.values() {
        Values::F32(v) => le_bytes(v),
        Values::F16(v) => le_bytes(v),
        Values::Bf16(v) => le_bytes(v),
        Values::F8 { codes, .. } => codes.into(),
        Values::Int { bits, codes, .. } if form.is_bytes() => byte_codes(form, *bits, codes).into(),
        Values::Int { codes, .. } | Values::Codebook { codes, .. } => le_bytes(codes.words()),
    }];
    match weight.layout() {
        Layout::Dense => {}
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
    data
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

/// Rows that some of a weight's rows must be a multiple of, so that the data of every tensor is that of the rows alone;
/// `None` when the rows' data depends on the rows before.
pub(crate) fn row_unit(form: &Form) -> Option<usize> {
    // so many of whatever is packed into words fill whole words
    const WORD: usize = 32;
    let unit = match form.layout() {
        LayoutKind::Dense => match form.coding() {
            Coding::Int { symmetric: false, granularity, .. }
                if zero_points_are_packed(form, granularity) =>
            {
                WORD
            }
            _ => 1,
        },
        LayoutKind::NofM(_) => WORD,
        LayoutKind::Bitmask | LayoutKind::CompressedRows => return None,
    };
    match form.coding().granularity() {
        None | Some(Granularity::Channel | Granularity::Group(_)) => Some(unit),
        Some(Granularity::Block(rows, _)) => Some(lcm(unit, rows.get())),
        Some(Granularity::Tensor) => None,
    }
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

/// The least common multiple; the largest number there is when it would be larger.
pub(crate) fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1)).saturating_mul(b)
}

/// Packs a matrix of codes along its columns: the words of one column stand in that column.
fn pack_columns(codes: &[i8], rows: usize, cols: usize, bits: Bits) -> Vec<u32> {
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

fn unpack_columns(packed: &[u32], rows: usize, cols: usize, bits: Bits) -> Vec<i8> {
    if rows * cols == 0 {
        return Vec::new();
    }
    let offset = 1u8 << (bits.get() - 1);
    let mut codes = vec![0i8; rows * cols];
    let mut column = vec![0u8; rows];
    for col in 0..cols {
        let words: Vec<u32> = packed.iter().skip(col).step_by(cols).copied().collect();
        pack::unpack(&words, bits.get(), 0, &mut column);
        for (row, code) in column.iter().enumerate() {
            codes[row * cols + col] = code.wrapping_sub(offset) as i8;
        }
    }
    codes
}

/// Reads the tensors of a weight whose form is known. Everything in them is checked.
pub(super) fn decode(
    checkpoint: &Checkpoint,
    name: &str,
    form: &Form,
) -> Result<CompressedWeight, CheckpointError> {
    let parts = Parts { checkpoint, name, form };
    let [rows, cols] = [form.rows(), form.cols()];
    let dense = form.layout() == LayoutKind::Dense;
    let path = parts.path()?;
    if checkpoint.entry(name).is_ok_and(Entry::is_entropy_coded) {
        let tensor = format!("{name}{}", coded::SUFFIX);
        return coded::decode_weight(form, checkpoint.tensor(&tensor)?.bytes)
            .map_err(|reason| CheckpointError::tensor(path, &tensor, reason));
    }
    // whoever decodes it would fail where no error can be given
    if !dense && Vec::<f32>::new().try_reserve_exact(rows * cols).is_err() {
        let reason = format!(
            "shape {:?} takes {} bytes when decoded, more than there is memory",
            form.shape(),
            4 * rows * cols
        );
        return Err(CheckpointError::tensor(path, name, reason));
    }
    let layout = match form.layout() {
        LayoutKind::Dense => Ok(Layout::Dense),
        LayoutKind::Bitmask => {
            let bytes = parts.get("_bitmask", &[DType::U8])?.bytes.to_vec();
            Mask::from_bytes(rows, cols, bytes).map(Layout::bitmask)
        }
        LayoutKind::NofM(pattern) => Layout::n_of_m(pattern, rows, cols, parts.words("_positions")?),
        LayoutKind::CompressedRows => {
            let (offsets, _) = parts.get("_row_offsets", &[DType::I64])?.bytes.as_chunks::<8>();
            let offsets = offsets.iter().map(|b| u64::from_le_bytes(*b)).collect();
            let columns = parts.get("_columns", &[DType::U16, DType::U32])?;
            let columns = match columns.dtype {
                DType::U16 => {
                    let (columns, _) = columns.bytes.as_chunks::<2>();
                    columns.iter().map(|b| u32::from(u16::from_le_bytes(*b))).collect()
                }
                _ => parts.words("_columns")?,
            };
            Layout::compressed_rows(rows, cols, offsets, columns)
        }
    };
    let layout = layout.map_err(CheckpointError::weight(path, name))?;
    WeightError::check_len("kept values", form.kept(), layout.kept(rows, cols))
        .map_err(CheckpointError::weight(path, name))?;
    let suffix = if dense { "" } else { "_values" };
    let values = match form.coding() {
        Coding::Float(precision) => {
            let bytes = parts.get(suffix, &[precision.dtype()])?.bytes;
            match precision {
                Precision::F32 => {
                    let mut values = vec![0.0; bytes.len() / 4];
                    convert::widen(FloatType::F32, bytes, &mut values);
                    Values::F32(values)
                }
                Precision::F16 => {
                    Values::F16(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect())
                }
                Precision::Bf16 => {
                    Values::Bf16(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
                }
            }
        }
        Coding::F8E4M3 { .. } => {
            let codes = parts.get(suffix, &[DType::F8_E4M3])?.bytes.to_vec();
            if let Some(index) = codes.iter().position(|c| c & 0x7f == 0x7f) {
                let reason = format!("holds NaN at index {index}");
                return Err(CheckpointError::tensor(path, name, reason));
            }
            Values::F8 { codes, scales: parts.scales()? }
        }
        Coding::Int { bits, .. } => {
            let codes = if dense && !checkpoint.has_tensor(&format!("{name}_packed")) {
                // int-quantized: one I8 per code
                let bytes = parts.get("", &[DType::I8])?.bytes;
                parts.check_range("", bits, bytes)?;
                let codes = PackedCodes::from_rows(bits.get(), rows, cols, |row, out| {
                    for (out, byte) in out.iter_mut().zip(&bytes[row * cols..]) {
                        *out = stored_code(bits, *byte as i8);
                    }
                });
                Ok(codes)
            } else {
                let words = parts.words(if dense { "_packed" } else { "_values" })?;
                let [packed_rows, row_len] = if dense { [rows, cols] } else { [1, form.kept()] };
                PackedCodes::from_words("words of codes", bits.get(), packed_rows, row_len, words)
            };
            let codes = codes.map_err(CheckpointError::weight(path, name))?;
            Values::Int { bits, codes, scales: parts.scales()? }
        }
        Coding::Codebook { bits, .. } => {
            let words = parts.words(if dense { "_packed" } else { "_values" })?;
            let [packed_rows, row_len] = if dense { [rows, cols] } else { [1, form.kept()] };
            let codes = PackedCodes::from_words("words of codes", bits.get(), packed_rows, row_len, words);
            let codes = codes.map_err(CheckpointError::weight(path, name))?;
            Values::Codebook { codes, books: parts.codebooks(bits)? }
        }
    };
    let weight = CompressedWeight::from_parts(form.shape(), layout, values);
    let input = form.input().map(|input| parts.input(input)).transpose()?;
    weight
        .and_then(|weight| match input {
            Some(input) => weight.with_input(input),
            None => Ok(weight),
        })
        .map_err(CheckpointError::weight(path, name))
}

/// The tensors of one weight.
struct Parts<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    form: &'a Form,
}

impl<'a> Parts<'a> {
    fn get(&self, suffix: &str, dtypes: &[DType]) -> Result<TensorRef<'a>, CheckpointError> {
        let name = format!("{}{suffix}", self.name);
        let tensor = self.checkpoint.tensor(&name)?;
        if dtypes.contains(&tensor.dtype) {
            return Ok(tensor);
        }
        let reason = format!("holds {:?} where {} needs {dtypes:?}", tensor.dtype, self.form);
        Err(CheckpointError::tensor(tensor.path, &name, reason))
    }

    fn path(&self) -> Result<&'a std::path::Path, CheckpointError> {
        let file = self.checkpoint.entry_file(self.name);
        file.ok_or_else(|| CheckpointError::Missing {
            path: self.checkpoint.path().to_path_buf(),
            tensor: self.name.to_owned(),
        })
    }

    /// Codes in bytes must be codes of these bits.
    fn check_range(&self, suffix: &str, bits: Bits, codes: &[u8]) -> Result<(), CheckpointError> {
        let (low, high) = bits.range();
        let outside = |code: &u8| !(low..=high).contains(&i32::from(*code as i8));
        let Some(index) = codes.iter().position(outside) else { return Ok(()) };
        let reason = format!(
            "{} at index {index} is no code of {} bits, {low} to {high}",
            codes[index] as i8,
            bits.get()
        );
        Err(CheckpointError::tensor(self.path()?, &format!("{}{suffix}", self.name), reason))
    }

    fn words(&self, suffix: &str) -> Result<Vec<u32>, CheckpointError> {
        let (words, _) = self.get(suffix, &[DType::I32, DType::U32])?.bytes.as_chunks::<4>();
        Ok(words.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }

    fn input(&self, form: InputForm) -> Result<QuantizedInput, CheckpointError> {
        let symmetric = match form {
            InputForm::Dynamic { symmetric } => return Ok(QuantizedInput::Dynamic { symmetric }),
            InputForm::Static { symmetric } => symmetric,
        };
        let one = |part: &str, fits: &dyn Fn(DType) -> bool| {
            let name = input_part(self.name, part);
            let tensor = self.checkpoint.tensor(&name)?;
            if fits(tensor.dtype) && tensor.shape.iter().product::<usize>() == 1 {
                return Ok((tensor, name));
            }
            let reason =
                format!("holds {:?} of shape {:?}, where {form} has one number", tensor.dtype, tensor.shape);
            Err(CheckpointError::tensor(tensor.path, &name, reason))
        };
        let (scale, name) = one("scale", &|dtype| FloatType::of(dtype).is_some())?;
        let mut value = [0.0];
        convert::widen(FloatType::of(scale.dtype).unwrap_or(FloatType::F32), scale.bytes, &mut value);
        let zero_point = if symmetric {
            None
        } else {
            one("zero_point", &|dtype| dtype == DType::I8)?.0.bytes.first().map(|zero| *zero as i8)
        };
        let scales = InputScales::new(value[0], zero_point);
        scales.map(QuantizedInput::Static).map_err(CheckpointError::weight(scale.path, &name))
    }

    /// The floats of a part.
    fn floats(&self, suffix: &str, precision: Precision) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.get(suffix, &[precision.dtype()])?;
        let float = FloatType::of(tensor.dtype).unwrap_or(FloatType::F32);
        let mut values = vec![0.0; tensor.bytes.len() / float.size()];
        convert::widen(float, tensor.bytes, &mut values);
        Ok(values)
    }

    fn codebooks(&self, bits: CodebookBits) -> Result<Codebooks, CheckpointError> {
        let (coding, path) = (self.form.coding(), self.path()?);
        let precision = precision_of(coding);
        let values = self.floats("_codebook", precision)?;
        let granularity = coding.granularity().unwrap_or(Granularity::Tensor);
        Codebooks::new(bits, granularity, precision, values)
            .map_err(CheckpointError::weight(path, &format!("{}_codebook", self.name)))
    }

    fn scales(&self) -> Result<Scales, CheckpointError> {
        let coding = self.form.coding();
        let path = self.path()?;
        let error = || CheckpointError::weight(path, self.name);
        let (Some(granularity), Some(grid)) = (coding.granularity(), self.form.grid()) else {
            return Err(CheckpointError::tensor(path, self.name, "its coding has no scales"));
        };
        let precision = precision_of(coding);
        let scales = self.floats("_scale", precision)?;
        let zero_points = match coding {
            Coding::Int { bits, symmetric: false, .. } => {
                let stored = self.get("_zero_point", &[DType::I32, DType::I8])?;
                Some(if stored.dtype == DType::I8 {
                    self.check_range("_zero_point", bits, stored.bytes)?;
                    stored.bytes.iter().map(|b| *b as i8).collect()
                } else {
                    let packed = self.words("_zero_point")?;
                    let expected = pack::words_for(grid.rows, bits.get()) * grid.cols;
                    WeightError::check_len("words of zero points", expected, packed.len()).map_err(error())?;
                    unpack_columns(&packed, grid.rows, grid.cols, bits)
                })
            }
            _ => None,
        };
        Scales::new(granularity, precision, scales, zero_points).map_err(error())
    }
}

/// Reads an I64 `…_shape` tensor.
pub(super) fn stored_shape(tensor: &TensorRef<'_>, name: &str) -> Result<Vec<usize>, CheckpointError> {
    let bad = |reason: String| CheckpointError::tensor(tensor.path, name, reason);
    if tensor.dtype != DType::I64 {
        return Err(bad(format!("a shape is I64, not {:?}", tensor.dtype)));
    }
    let (dims, _) = tensor.bytes.as_chunks::<8>();
    let shape: Vec<usize> = dims
        .iter()
        .map(|b| i64::from_le_bytes(*b))
        .map(|d| usize::try_from(d).map_err(|_| bad(format!("a dimension cannot be {d}"))))
        .collect::<Result<_, _>>()?;
    matrix_shape(&shape).map_err(CheckpointError::weight(tensor.path, name))?;
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_points_pack_along_columns_and_back() {
        let bits = Bits::new(3).unwrap();
        let codes: Vec<i8> = (0..34).map(|i| (i * 5 % 8) as i8 - 4).collect();
        let packed = pack_columns(&codes, 17, 2, bits);
        assert_eq!(packed.len(), 2 * 2); // 51 bits a column
        assert_eq!(unpack_columns(&packed, 17, 2, bits), codes);
        // the first code of column 1 is codes[1] = 5 % 8 − 4 = 1, stored as 5
        assert_eq!(packed[1] & 7, 5);
    }
}
