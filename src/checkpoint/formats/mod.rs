//! How compressed weights are stored: forms ↔ tensors of a file, as `docs/formats.md` describes them.
//!
//! What every weight looks like is written to the file's metadata ([`tersor`]) and, where `compressed-tensors` has a name
//! for it, to `config.json` ([`compressed_tensors`]).

pub(crate) mod coded;
pub(crate) mod compressed_tensors;
mod read;
pub(crate) mod tersor;
mod write;

pub use coded::coded_tensor;
pub(super) use read::{decode, stored_shape};
pub(crate) use write::{Piece, encode, encode_rows};
pub use write::{StoredTensor, stored_tensors};

use std::collections::{BTreeMap, BTreeSet};

use self::compressed_tensors::QuantizationConfig;
use self::tersor::Storage;
use super::{Checkpoint, CheckpointError, TensorSpec};
use crate::dtype::{DType, Precision};
use crate::kernels::pack;
use crate::weight::{Coding, Form, Granularity, InputForm, LayoutKind, column_size};

/// What the names of two factors end with.
const FACTORS: [&str; 2] = ["_u", "_v"];

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
    let ours: BTreeSet<String> =
        found.values().flat_map(|weight: &Found| weight.tensors.iter().cloned()).collect();
    for tensor in names {
        let Some(name) = tensor.strip_suffix("_scale") else { continue };
        if !found.contains_key(name)
            && !ours.contains(tensor)
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
        _ if form.layout() == LayoutKind::Empty => {}
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
        LayoutKind::Dense | LayoutKind::Empty => {}
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
    if form.layout() == LayoutKind::Empty {
        // the coding is that of the factors
    } else if let (Coding::Codebook { bits, values, .. }, Some(grid)) = (form.coding(), form.grid()) {
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
    for (factor, suffix) in form.factors().iter().flatten().zip(FACTORS) {
        specs.extend(self::specs(&format!("{name}{suffix}"), factor));
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

/// Rows that some of a weight's rows must be a multiple of, so that the data of every tensor is that of the rows alone;
/// `None` when the rows' data depends on the rows before.
pub(crate) fn row_unit(form: &Form) -> Option<usize> {
    // so many of whatever is packed into words fill whole words
    const WORD: usize = 32;
    // the right factor is made of all rows
    if form.low_rank().is_some() {
        return None;
    }
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
        LayoutKind::Bitmask | LayoutKind::CompressedRows | LayoutKind::Empty => return None,
    };
    match form.coding().granularity() {
        None | Some(Granularity::Channel | Granularity::Group(_)) => Some(unit),
        Some(Granularity::Block(rows, _)) => Some(lcm(unit, rows.get())),
        Some(Granularity::Tensor) => None,
    }
}

/// The least common multiple; the largest number there is when it would be larger.
pub(crate) fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    (a / x.max(1)).saturating_mul(b)
}
