//! Weights as one tensor of bytes, in which codes, positions and floats take as few bits as their frequencies allow:
//! see `docs/formats.md`.

use std::mem::size_of;

use half::{bf16, f16};

use super::{StoredTensor, precision_of};
use crate::dtype::{DType, FloatType, Precision};
use crate::kernels::convert;
use crate::kernels::entropy::{EntropyError, Gaps, decode, encode, read_gaps};
use crate::kernels::view::le_bytes;
use crate::weight::{
    CodebookBits, Codebooks, Coding, CompressedWeight, Form, Granularity, InputForm, InputScales, Layout,
    LayoutKind, LowRank, Mask, NofM, PackedCodes, QuantizedInput, Scales, Values, WeightError,
};

/// What the tensor's name ends with.
pub(crate) const SUFFIX: &str = "_coded";

/// Positions that the name of the coder is written for in the metadata.
pub(super) const CODER: &str = "rans";

/// Elements that a coded weight may have whatever its bytes, and how many for every byte beyond.
const HOLLOW_ELEMENTS: usize = 1 << 28;
const ELEMENTS_PER_BYTE: usize = 4096;

/// A weight in as few bits as its parts' frequencies allow.
pub(crate) struct CodedWeight {
    pub(crate) bytes: Vec<u8>,
    /// The bits of Shannon's bound of order 0: of codes, of bytes of floats, and of positions by their gaps or by their number
    /// alone, whichever is less.
    pub(crate) bound: f64,
}

/// Whether so few bytes may stand for a weight of this form.
pub(crate) fn check_hollow(form: &Form, bytes: usize) -> Result<(), WeightError> {
    // what a few bytes could ask for: values, those of codebooks, and a number for every row
    let entries = match form.coding() {
        Coding::Codebook { bits, .. } => bits.entries(),
        _ => 1,
    };
    for factor in form.factors().iter().flatten() {
        check_hollow(factor, bytes)?;
    }
    let tiles = form.grid().map_or(0, |grid| grid.len());
    let of_rows = if form.layout() == LayoutKind::CompressedRows { form.rows() } else { 0 };
    let elements = (form.rows() * form.cols()).max(tiles.saturating_mul(entries)).max(of_rows);
    if elements > HOLLOW_ELEMENTS && elements / ELEMENTS_PER_BYTE > bytes {
        return Err(WeightError::Hollow { shape: form.shape().to_vec(), elements, bytes: bytes as u64 });
    }
    Ok(())
}

/// Codes a weight.
pub(crate) fn encode_weight(weight: &CompressedWeight) -> CodedWeight {
    let mut bytes = Vec::new();
    let mut bound =
        if weight.form().layout() == LayoutKind::Empty { 0.0 } else { encode_kept(weight, &mut bytes) };
    for factor in weight.factors().into_iter().flat_map(|factors| [factors.u(), factors.v()]) {
        bound += encode_kept(factor, &mut bytes);
    }
    CodedWeight { bytes, bound }
}

/// Codes what a weight is without factors, and gives the bound.
fn encode_kept(weight: &CompressedWeight, bytes: &mut Vec<u8>) -> f64 {
    let form = weight.form();
    let (rows, cols) = (form.rows(), form.cols());
    let all_codes = |codes: &PackedCodes| {
        let mut all = vec![0u8; form.kept()];
        if form.layout() == LayoutKind::Dense {
            for (row, out) in all.chunks_exact_mut(cols.max(1)).enumerate() {
                codes.unpack(row, 0, out);
            }
        } else {
            codes.unpack(0, 0, &mut all);
        }
        all
    };
    let mut bound = match weight.values() {
        Values::F32(v) => encode_planes(Precision::F32, &le_bytes(v), bytes),
        Values::F16(v) => encode_planes(Precision::F16, &le_bytes(v), bytes),
        Values::Bf16(v) => encode_planes(Precision::Bf16, &le_bytes(v), bytes),
        Values::F8 { codes, .. } => encode(codes, bytes),
        Values::Int { codes, .. } | Values::Codebook { codes, .. } => encode(&all_codes(codes), bytes),
    };
    bound += match weight.layout() {
        Layout::Dense | Layout::Empty => 0.0,
        Layout::NofM { pattern, positions } => {
            let mut all = vec![0u8; form.kept()];
            positions.unpack(0, 0, &mut all);
            encode(&grouped(*pattern, &all), bytes)
        }
        layout => {
            let (mut gaps, mut columns) = (Gaps::default(), Vec::new());
            for row in 0..if cols == 0 { 0 } else { rows } {
                layout.columns_of(row, cols, &mut columns);
                let first = (row * cols) as u64;
                for col in &columns {
                    gaps.push(first + u64::from(*col));
                }
            }
            // positions that stand together take less than their number alone says
            gaps.write(bytes).min(of_fraction(rows * cols, form.kept()))
        }
    };
    let precision = precision_of(form.coding());
    let floats = |values: &[f32], bytes: &mut Vec<u8>| {
        let mut stored = Vec::new();
        convert::narrow(precision, values, &mut stored);
        encode_planes(precision, &stored, bytes)
    };
    let signed = |codes: &[i8], bytes: &mut Vec<u8>| {
        encode(&codes.iter().map(|code| *code as u8).collect::<Vec<_>>(), bytes)
    };
    if let Some(scales) = weight.scales() {
        bound += floats(scales.scales(), bytes);
        bound += scales.zero_points().map_or(0.0, |zeros| signed(zeros, bytes));
    }
    if let Some(books) = weight.codebooks() {
        bound += floats(books.values(), bytes);
    }
    if let Some(QuantizedInput::Static(input)) = weight.input() {
        bound += floats(&[input.scale()], bytes);
        bound += input.zero_point().map_or(0.0, |zero| signed(&[zero], bytes));
    }
    bound
}

/// The one tensor that stores a weight entropy coded, whether or not that is smaller than
/// [`stored_tensors`](super::stored_tensors), as tersor writes it with [`Recipe::entropy`](crate::Recipe::entropy).
pub fn coded_tensor(name: &str, weight: &CompressedWeight) -> StoredTensor {
    let bytes = encode_weight(weight).bytes;
    StoredTensor { name: format!("{name}{SUFFIX}"), dtype: DType::U8, shape: vec![bytes.len()], bytes }
}

/// Bits that say which `kept` of `all` positions are kept, if nothing but their fraction is known.
fn of_fraction(all: usize, kept: usize) -> f64 {
    let bits = |n: usize| if n == 0 { 0.0 } else { n as f64 * (all as f64 / n as f64).log2() };
    bits(kept) + bits(all - kept)
}

/// How many positions of a group make one symbol.
fn positions_in_symbol(pattern: NofM) -> usize {
    let at_most = usize::from(8 / pattern.position_bits());
    (1..=at_most).rev().find(|n| pattern.n().is_multiple_of(*n)).unwrap_or(1)
}

/// Positions within a group, several in one symbol.
fn grouped(pattern: NofM, positions: &[u8]) -> Vec<u8> {
    let bits = pattern.position_bits();
    let join = |positions: &[u8]| positions.iter().rev().fold(0, |symbol, p| symbol << bits | p);
    positions.chunks(positions_in_symbol(pattern)).map(join).collect()
}

/// The bytes of floats, those of one significance after the other: most frequencies are those of exponents. The sign of a
/// float whose exponent would straddle two bytes goes to its end.
fn encode_planes(precision: Precision, stored: &[u8], out: &mut Vec<u8>) -> f64 {
    let size = precision.size();
    let mut planes = vec![Vec::with_capacity(stored.len() / size); size];
    for float in stored.chunks_exact(size) {
        let mut bits = [0; 4];
        bits[..size].copy_from_slice(float);
        let bits = rotated(precision, u32::from_le_bytes(bits)).to_le_bytes();
        for (plane, byte) in planes.iter_mut().zip(bits) {
            plane.push(byte);
        }
    }
    planes.iter().map(|plane| encode(plane, out)).sum()
}

/// The sign behind the mantissa, where exponents have 8 bits.
fn rotated(precision: Precision, bits: u32) -> u32 {
    match precision {
        Precision::F32 => bits.rotate_left(1),
        Precision::Bf16 => u32::from((bits as u16).rotate_left(1)),
        Precision::F16 => bits,
    }
}

fn rotated_back(precision: Precision, bits: u32) -> u32 {
    match precision {
        Precision::F32 => bits.rotate_right(1),
        Precision::Bf16 => u32::from((bits as u16).rotate_right(1)),
        Precision::F16 => bits,
    }
}

/// Reads what [`encode_weight`] wrote. Everything is checked.
///
/// # Errors
/// In words, when the bytes are not those of a weight of this form.
pub(super) fn decode_weight(form: &Form, bytes: &[u8]) -> Result<CompressedWeight, String> {
    check_hollow(form, bytes.len()).map_err(|e| e.to_string())?;
    let mut parts = Parts { bytes, form };
    let weight = parts.weight().map_err(|fault| match fault {
        Fault::Stream(error) => error.to_string(),
        Fault::Weight(error) => error.to_string(),
        Fault::Memory(bytes) => format!("takes {bytes} bytes when decoded, more than there is memory"),
    })?;
    if parts.bytes.is_empty() { Ok(weight) } else { Err(format!("has {} bytes too many", parts.bytes.len())) }
}

enum Fault {
    Stream(EntropyError),
    Weight(WeightError),
    Memory(usize),
}

impl From<EntropyError> for Fault {
    fn from(error: EntropyError) -> Self {
        Self::Stream(error)
    }
}

impl From<WeightError> for Fault {
    fn from(error: WeightError) -> Self {
        Self::Weight(error)
    }
}

/// What is left to be read of a weight.
struct Parts<'b, 'f> {
    bytes: &'b [u8],
    form: &'f Form,
}

impl Parts<'_, '_> {
    fn weight(&mut self) -> Result<CompressedWeight, Fault> {
        let form = self.form;
        let (rows, cols, kept) = (form.rows(), form.cols(), form.kept());
        let is_dense = form.layout() == LayoutKind::Dense;
        if form.layout() == LayoutKind::Empty {
            room::<f32>(rows * cols)?;
            let factors = self.factors()?.ok_or(WeightError::Unsupported {
                reason: "a form with neither values nor factors".into(),
            })?;
            return Ok(CompressedWeight::low_rank(form.shape(), factors)?);
        }
        // whoever decodes it would fail where no error can be given
        if !is_dense && Vec::<f32>::new().try_reserve_exact(rows * cols).is_err() {
            return Err(Fault::Memory(4 * rows * cols));
        }
        let coding = form.coding();
        let precision = precision_of(coding);
        let mut values = match coding {
            Coding::Float(precision) => self.float_values(precision)?,
            // scales and codebooks come later
            _ => Values::F32(Vec::new()),
        };
        let codes = if matches!(coding, Coding::Float(_)) { Vec::new() } else { self.symbols(kept)? };
        let layout = self.layout()?;
        let grid = form.grid().map_or(0, |grid| grid.len());
        let packed = |bits: u8| {
            if is_dense {
                PackedCodes::from_rows(bits, rows, cols, |row, out| {
                    out.copy_from_slice(&codes[row * cols..][..out.len()]);
                })
            } else {
                PackedCodes::from_codes(bits, &codes)
            }
        };
        match coding {
            Coding::Float(_) => {}
            Coding::F8E4M3 { granularity, scales } => {
                if let Some(index) = codes.iter().position(|code| code & 0x7f == 0x7f) {
                    return Err(WeightError::NanCode { index }.into());
                }
                let scales = Scales::new(granularity, scales, self.floats(precision, grid)?, None)?;
                values = Values::F8 { codes, scales };
            }
            Coding::Int { bits, symmetric, granularity, scales } => {
                check_codes(&codes, bits.get())?;
                let factors = self.floats(precision, grid)?;
                let zeros = if symmetric { None } else { Some(self.signed(grid)?) };
                if let Some(zeros) = &zeros {
                    bits.check("zero point", zeros)?;
                }
                let scales = Scales::new(granularity, scales, factors, zeros)?;
                values = Values::Int { bits, codes: packed(bits.get()), scales };
            }
            Coding::Codebook { bits, granularity, values: precision } => {
                check_codes(&codes, bits.get())?;
                values = Values::Codebook {
                    codes: packed(bits.get()),
                    books: self.codebooks(bits, granularity, precision, grid)?,
                };
            }
        }
        let weight = CompressedWeight::from_parts(form.shape(), layout, values)?;
        WeightError::check_len("kept values", kept, weight.form().kept())?;
        let weight = match form.input() {
            None => weight,
            Some(InputForm::Dynamic { symmetric }) => {
                weight.with_input(QuantizedInput::Dynamic { symmetric })?
            }
            Some(InputForm::Static { symmetric }) => {
                let scale = self.floats(precision, 1)?[0];
                let zero = if symmetric { None } else { Some(self.signed(1)?[0]) };
                weight.with_input(QuantizedInput::Static(InputScales::new(scale, zero)?))?
            }
        };
        Ok(match self.factors()? {
            Some(factors) => weight.with_correction(factors)?,
            None => weight,
        })
    }

    /// The factors of a weight that has some.
    fn factors(&mut self) -> Result<Option<LowRank>, Fault> {
        let Some(forms) = self.form.factors() else { return Ok(None) };
        let [u, v] = forms.each_ref().map(|form| {
            let mut parts = Parts { bytes: self.bytes, form };
            let factor = parts.weight();
            self.bytes = parts.bytes;
            factor
        });
        Ok(Some(LowRank::new(u?, v?)?))
    }

    fn symbols(&mut self, count: usize) -> Result<Vec<u8>, Fault> {
        let mut symbols = room(count)?;
        symbols.resize(count, 0);
        self.bytes = decode(self.bytes, &mut symbols)?;
        Ok(symbols)
    }

    fn signed(&mut self, count: usize) -> Result<Vec<i8>, Fault> {
        Ok(self.symbols(count)?.into_iter().map(|byte| byte as i8).collect())
    }

    /// The bytes of floats as a file has them.
    fn stored(&mut self, precision: Precision, count: usize) -> Result<Vec<u8>, Fault> {
        let planes: Vec<Vec<u8>> =
            (0..precision.size()).map(|_| self.symbols(count)).collect::<Result<_, _>>()?;
        let mut stored = room(count * planes.len())?;
        for i in 0..count {
            let mut bits = [0; size_of::<u32>()];
            for (byte, plane) in bits.iter_mut().zip(&planes) {
                *byte = plane[i];
            }
            let bits = rotated_back(precision, u32::from_le_bytes(bits)).to_le_bytes();
            stored.extend(&bits[..planes.len()]);
        }
        Ok(stored)
    }

    fn floats(&mut self, precision: Precision, count: usize) -> Result<Vec<f32>, Fault> {
        let stored = self.stored(precision, count)?;
        let mut values = room(count)?;
        values.resize(count, 0.0);
        convert::widen(FloatType::of(precision.dtype()).unwrap_or(FloatType::F32), &stored, &mut values);
        Ok(values)
    }

    fn float_values(&mut self, precision: Precision) -> Result<Values, Fault> {
        let kept = self.form.kept();
        Ok(match precision {
            Precision::F32 => Values::F32(self.floats(precision, kept)?),
            Precision::F16 => {
                let stored = self.stored(precision, kept)?;
                Values::F16(stored.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect())
            }
            Precision::Bf16 => {
                let stored = self.stored(precision, kept)?;
                Values::Bf16(stored.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
            }
        })
    }

    fn codebooks(
        &mut self,
        bits: CodebookBits,
        granularity: Granularity,
        precision: Precision,
        tiles: usize,
    ) -> Result<Codebooks, Fault> {
        let values = self.floats(precision, tiles.saturating_mul(bits.entries()))?;
        Ok(Codebooks::new(bits, granularity, precision, values)?)
    }

    fn layout(&mut self) -> Result<Layout, Fault> {
        let form = self.form;
        let (rows, cols, kept) = (form.rows(), form.cols(), form.kept());
        let end = (rows * cols) as u64;
        match form.layout() {
            LayoutKind::Dense => Ok(Layout::Dense),
            LayoutKind::Empty => Ok(Layout::Empty),
            LayoutKind::NofM(pattern) => {
                let (joined, bits) = (positions_in_symbol(pattern), pattern.position_bits());
                let symbols = self.symbols(kept.div_ceil(joined))?;
                let split = |symbol: u8| {
                    (0..joined)
                        .map(move |i| symbol.unbounded_shr(i as u32 * u32::from(bits)) & ((1 << bits) - 1))
                };
                let positions: Vec<u8> = symbols.into_iter().flat_map(split).take(kept).collect();
                let words = PackedCodes::from_codes(bits, &positions).words().to_vec();
                Ok(Layout::n_of_m(pattern, rows, cols, words)?)
            }
            LayoutKind::Bitmask => {
                let stride = cols.div_ceil(8);
                let mut mask = room(rows * stride)?;
                mask.resize(rows * stride, 0u8);
                self.bytes = read_gaps(self.bytes, kept, end, |position| {
                    let (row, col) = (position as usize / cols, position as usize % cols);
                    mask[row * stride + col / 8] |= 1 << (col % 8);
                })?;
                Ok(Layout::bitmask(Mask::from_bytes(rows, cols, mask)?))
            }
            LayoutKind::CompressedRows => {
                let (mut columns, mut offsets) = (room(kept)?, room(rows + 1)?);
                offsets.resize(rows + 1, 0u64);
                self.bytes = read_gaps(self.bytes, kept, end, |position| {
                    columns.push((position as usize % cols) as u32);
                    offsets[position as usize / cols + 1] += 1;
                })?;
                let mut before = 0;
                for offset in &mut offsets {
                    before += *offset;
                    *offset = before;
                }
                Ok(Layout::compressed_rows(rows, cols, offsets, columns)?)
            }
        }
    }
}

/// Room for so many elements, if there is memory for them.
fn room<T>(count: usize) -> Result<Vec<T>, Fault> {
    let mut room = Vec::new();
    room.try_reserve_exact(count).map_err(|_| Fault::Memory(count.saturating_mul(size_of::<T>())))?;
    Ok(room)
}

/// Codes are as they are stored, not negative.
fn check_codes(codes: &[u8], bits: u8) -> Result<(), Fault> {
    let entries = 1usize << bits;
    match codes.iter().position(|code| usize::from(*code) >= entries) {
        Some(index) => Err(WeightError::CodebookIndex { index, value: codes[index], entries }.into()),
        None => Ok(()),
    }
}
