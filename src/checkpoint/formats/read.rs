//! The tensors of a file → weights.

use std::path::Path;

use half::{bf16, f16};

use super::{FACTORS, coded, input_part, precision_of};
use crate::checkpoint::{Checkpoint, CheckpointError, Entry, TensorRef};
use crate::dtype::{DType, FloatType, Precision};
use crate::kernels::{convert, pack};
use crate::weight::{
    Bits, CodebookBits, Codebooks, Coding, CompressedWeight, Form, Granularity, InputForm, InputScales,
    Layout, LayoutKind, LowRank, Mask, PackedCodes, QuantizedInput, Scales, Values, WeightError,
    matrix_shape, stored_code,
};

/// Reads the tensors of a weight whose form is known. Everything in them is checked.
pub(in crate::checkpoint) fn decode(
    checkpoint: &Checkpoint,
    name: &str,
    form: &Form,
) -> Result<CompressedWeight, CheckpointError> {
    let path = checkpoint.entry_file(name).ok_or_else(|| CheckpointError::Missing {
        path: checkpoint.path().to_path_buf(),
        tensor: name.to_owned(),
    })?;
    if checkpoint.entry(name).is_ok_and(Entry::is_entropy_coded) {
        let tensor = format!("{name}{}", coded::SUFFIX);
        return coded::decode_weight(form, checkpoint.tensor(&tensor)?.bytes)
            .map_err(|reason| CheckpointError::tensor(path, &tensor, reason));
    }
    Parts { checkpoint, name, form, path }.weight()
}

/// The tensors of one weight.
struct Parts<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    form: &'a Form,
    path: &'a Path,
}

impl<'a> Parts<'a> {
    fn weight(&self) -> Result<CompressedWeight, CheckpointError> {
        let Self { checkpoint, name, form, path } = *self;
        let [rows, cols] = [form.rows(), form.cols()];
        let dense = form.layout() == LayoutKind::Dense;
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
            LayoutKind::Empty => {
                let weight = self.factors()?.map(|factors| CompressedWeight::low_rank(form.shape(), factors));
                let none = || CheckpointError::tensor(path, name, "its form has neither values nor factors");
                return weight.ok_or_else(none)?.map_err(CheckpointError::weight(path, name));
            }
            LayoutKind::Bitmask => {
                let bytes = self.get("_bitmask", &[DType::U8])?.bytes.to_vec();
                Mask::from_bytes(rows, cols, bytes).map(Layout::bitmask)
            }
            LayoutKind::NofM(pattern) => Layout::n_of_m(pattern, rows, cols, self.words("_positions")?),
            LayoutKind::CompressedRows => {
                let (offsets, _) = self.get("_row_offsets", &[DType::I64])?.bytes.as_chunks::<8>();
                let offsets = offsets.iter().map(|b| u64::from_le_bytes(*b)).collect();
                let columns = self.get("_columns", &[DType::U16, DType::U32])?;
                let columns = match columns.dtype {
                    DType::U16 => {
                        let (columns, _) = columns.bytes.as_chunks::<2>();
                        columns.iter().map(|b| u32::from(u16::from_le_bytes(*b))).collect()
                    }
                    _ => self.words("_columns")?,
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
                let bytes = self.get(suffix, &[precision.dtype()])?.bytes;
                match precision {
                    Precision::F32 => {
                        let mut values = vec![0.0; bytes.len() / 4];
                        convert::widen(FloatType::F32, bytes, &mut values);
                        Values::F32(values)
                    }
                    Precision::F16 => {
                        Values::F16(bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect())
                    }
                    Precision::Bf16 => Values::Bf16(
                        bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b)).collect(),
                    ),
                }
            }
            Coding::F8E4M3 { .. } => {
                let codes = self.get(suffix, &[DType::F8_E4M3])?.bytes.to_vec();
                if let Some(index) = codes.iter().position(|c| c & 0x7f == 0x7f) {
                    let reason = format!("holds NaN at index {index}");
                    return Err(CheckpointError::tensor(path, name, reason));
                }
                Values::F8 { codes, scales: self.scales()? }
            }
            Coding::Int { bits, .. } => {
                let codes = if dense && !checkpoint.has_tensor(&format!("{name}_packed")) {
                    // int-quantized: one I8 per code
                    let bytes = self.get("", &[DType::I8])?.bytes;
                    self.check_range("", bits, bytes)?;
                    let codes = PackedCodes::from_rows(bits.get(), rows, cols, |row, out| {
                        for (out, byte) in out.iter_mut().zip(&bytes[row * cols..]) {
                            *out = stored_code(bits, *byte as i8);
                        }
                    });
                    Ok(codes)
                } else {
                    let words = self.words(if dense { "_packed" } else { "_values" })?;
                    let [packed_rows, row_len] = if dense { [rows, cols] } else { [1, form.kept()] };
                    PackedCodes::from_words("words of codes", bits.get(), packed_rows, row_len, words)
                };
                let codes = codes.map_err(CheckpointError::weight(path, name))?;
                Values::Int { bits, codes, scales: self.scales()? }
            }
            Coding::Codebook { bits, .. } => {
                let words = self.words(if dense { "_packed" } else { "_values" })?;
                let [packed_rows, row_len] = if dense { [rows, cols] } else { [1, form.kept()] };
                let codes =
                    PackedCodes::from_words("words of codes", bits.get(), packed_rows, row_len, words);
                let codes = codes.map_err(CheckpointError::weight(path, name))?;
                Values::Codebook { codes, books: self.codebooks(bits)? }
            }
        };
        let weight = CompressedWeight::from_parts(form.shape(), layout, values);
        let input = form.input().map(|input| self.input(input)).transpose()?;
        let factors = self.factors()?;
        weight
            .and_then(|weight| match input {
                Some(input) => weight.with_input(input),
                None => Ok(weight),
            })
            .and_then(|weight| match factors {
                Some(factors) => weight.with_correction(factors),
                None => Ok(weight),
            })
            .map_err(CheckpointError::weight(path, name))
    }

    /// The factors of a weight that has some.
    fn factors(&self) -> Result<Option<LowRank>, CheckpointError> {
        let Some(forms) = self.form.factors() else { return Ok(None) };
        let mut factors = Vec::new();
        for (form, suffix) in forms.iter().zip(FACTORS) {
            let name = format!("{}{suffix}", self.name);
            factors.push(Parts { name: &name, form, ..*self }.weight()?);
        }
        let (Some(v), Some(u)) = (factors.pop(), factors.pop()) else { return Ok(None) };
        LowRank::new(u, v).map(Some).map_err(CheckpointError::weight(self.path, self.name))
    }

    fn get(&self, suffix: &str, dtypes: &[DType]) -> Result<TensorRef<'a>, CheckpointError> {
        let name = format!("{}{suffix}", self.name);
        let tensor = self.checkpoint.tensor(&name)?;
        if dtypes.contains(&tensor.dtype) {
            return Ok(tensor);
        }
        let reason = format!("holds {:?} where {} needs {dtypes:?}", tensor.dtype, self.form);
        Err(CheckpointError::tensor(tensor.path, &name, reason))
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
        Err(CheckpointError::tensor(self.path, &format!("{}{suffix}", self.name), reason))
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
        let (coding, path) = (self.form.coding(), self.path);
        let precision = precision_of(coding);
        let values = self.floats("_codebook", precision)?;
        let granularity = coding.granularity().unwrap_or(Granularity::Tensor);
        Codebooks::new(bits, granularity, precision, values)
            .map_err(CheckpointError::weight(path, &format!("{}_codebook", self.name)))
    }

    fn scales(&self) -> Result<Scales, CheckpointError> {
        let coding = self.form.coding();
        let path = self.path;
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
pub(in crate::checkpoint) fn stored_shape(
    tensor: &TensorRef<'_>,
    name: &str,
) -> Result<Vec<usize>, CheckpointError> {
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

#[cfg(test)]
mod tests {
    use super::super::write::pack_columns;
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
