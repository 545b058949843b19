//! What tersor writes to a file's metadata about the weights it compressed: see `docs/formats.md`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::CheckpointError;
use super::super::header::UniqueMap;
use super::coded::CODER;
use crate::dtype::Precision;
use crate::weight::{
    Bits, CodebookBits, Coding, Form, Granularity, InputForm, LayoutKind, LowRankForm, NofM,
};

/// The metadata's key.
pub(crate) const KEY: &str = "tersor";

const VERSION: u32 = 1;

#[derive(Serialize)]
struct Document {
    version: u32,
    weights: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct ReadDocument {
    version: u32,
    /// A [`StoredForm`] each; read one by one, so that an error can name the weight.
    weights: UniqueMap<Value>,
}

#[derive(Serialize, Deserialize)]
struct StoredForm {
    shape: Vec<usize>,
    layout: String,
    kept: usize,
    coding: StoredCoding,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input: Option<StoredInput>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    low_rank: Option<StoredFactors>,
    /// The coder of one tensor that holds all parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    entropy: Option<String>,
}

/// Two factors.
#[derive(Serialize, Deserialize)]
struct StoredFactors {
    rank: usize,
    coding: StoredCoding,
}

/// How a weight stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// A tensor for each part.
    Parts,
    /// One entropy-coded tensor.
    Coded,
}

/// How the layer's input is quantized.
#[derive(Serialize, Deserialize)]
struct StoredInput {
    dynamic: bool,
    symmetric: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StoredCoding {
    Float {
        dtype: StoredPrecision,
    },
    #[serde(rename = "f8_e4m3")]
    F8E4M3 {
        #[serde(flatten)]
        granularity: StoredGranularity,
        scale_dtype: StoredPrecision,
    },
    Int {
        bits: u8,
        symmetric: bool,
        #[serde(flatten)]
        granularity: StoredGranularity,
        scale_dtype: StoredPrecision,
    },
    Codebook {
        bits: u8,
        #[serde(flatten)]
        granularity: StoredGranularity,
        dtype: StoredPrecision,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "strategy", rename_all = "snake_case")]
enum StoredGranularity {
    Tensor,
    Channel,
    Group { group_size: NonZeroUsize },
    Block { block: [NonZeroUsize; 2] },
}

#[derive(Serialize, Deserialize, Clone, Copy)]
enum StoredPrecision {
    F32,
    F16,
    BF16,
}

/// The metadata's value for these weights.
pub(crate) fn write_metadata<'a>(forms: impl Iterator<Item = (&'a str, &'a Form, Storage)>) -> String {
    let weights = forms
        .map(|(name, form, storage)| {
            let entropy = (storage == Storage::Coded).then(|| CODER.to_owned());
            (name.to_owned(), serde_json::json!(StoredForm { entropy, ..store(form) }))
        })
        .collect();
    serde_json::json!(Document { version: VERSION, weights }).to_string()
}

/// The forms that the metadata of a file describes.
pub(super) fn read_metadata(
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<(String, Form, Storage)>, CheckpointError> {
    let Some(text) = metadata.get(KEY) else { return Ok(Vec::new()) };
    let bad = |reason: String| CheckpointError::config(path, format!("metadata `{KEY}`: {reason}"));
    let document: ReadDocument = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    if document.version != VERSION {
        let reason =
            format!("version {} was written by a newer tersor; this one reads {VERSION}", document.version);
        return Err(bad(reason));
    }
    document
        .weights
        .0
        .into_iter()
        .map(|(name, stored)| {
            let (form, storage) = serde_json::from_value::<StoredForm>(stored)
                .map_err(|e| format!("metadata `{KEY}`: {e}"))
                .and_then(|stored| Ok((load(&stored)?, storage(&stored)?)))
                .map_err(|reason| CheckpointError::tensor(path, &name, reason))?;
            Ok((name, form, storage))
        })
        .collect()
}

fn store(form: &Form) -> StoredForm {
    let input = form.input().map(|input| match input {
        InputForm::Dynamic { symmetric } => StoredInput { dynamic: true, symmetric },
        InputForm::Static { symmetric } => StoredInput { dynamic: false, symmetric },
    });
    StoredForm {
        entropy: None,
        input,
        shape: form.shape().to_vec(),
        layout: form.layout().to_string(),
        kept: form.kept(),
        coding: store_coding(form.coding()),
        low_rank: form
            .low_rank()
            .map(|LowRankForm { rank, coding }| StoredFactors { rank, coding: store_coding(coding) }),
    }
}

fn store_coding(coding: Coding) -> StoredCoding {
    let precision = |p| match p {
        Precision::F32 => StoredPrecision::F32,
        Precision::F16 => StoredPrecision::F16,
        Precision::Bf16 => StoredPrecision::BF16,
    };
    let granularity = |g| match g {
        Granularity::Tensor => StoredGranularity::Tensor,
        Granularity::Channel => StoredGranularity::Channel,
        Granularity::Group(group_size) => StoredGranularity::Group { group_size },
        Granularity::Block(rows, cols) => StoredGranularity::Block { block: [rows, cols] },
    };
    match coding {
        Coding::Float(p) => StoredCoding::Float { dtype: precision(p) },
        Coding::F8E4M3 { granularity: g, scales } => {
            StoredCoding::F8E4M3 { granularity: granularity(g), scale_dtype: precision(scales) }
        }
        Coding::Int { bits, symmetric, granularity: g, scales } => StoredCoding::Int {
            bits: bits.get(),
            symmetric,
            granularity: granularity(g),
            scale_dtype: precision(scales),
        },
        Coding::Codebook { bits, granularity: g, values } => {
            StoredCoding::Codebook { bits: bits.get(), granularity: granularity(g), dtype: precision(values) }
        }
    }
}

fn storage(stored: &StoredForm) -> Result<Storage, String> {
    match stored.entropy.as_deref() {
        None => Ok(Storage::Parts),
        Some(CODER) => Ok(Storage::Coded),
        Some(other) => Err(format!("unknown entropy coder `{other}`")),
    }
}

fn load(stored: &StoredForm) -> Result<Form, String> {
    let layout = match stored.layout.as_str() {
        "dense" => LayoutKind::Dense,
        "bitmask" => LayoutKind::Bitmask,
        "rows" => LayoutKind::CompressedRows,
        "empty" => LayoutKind::Empty,
        other => other
            .split_once(':')
            .and_then(|(n, m)| NofM::new(n.parse().ok()?, m.parse().ok()?))
            .map(LayoutKind::NofM)
            .ok_or_else(|| format!("unknown layout `{other}`"))?,
    };
    let coding = load_coding(&stored.coding)?;
    let input = stored.input.as_ref().map(|input| match *input {
        StoredInput { dynamic: true, symmetric } => InputForm::Dynamic { symmetric },
        StoredInput { dynamic: false, symmetric } => InputForm::Static { symmetric },
    });
    let factors = match &stored.low_rank {
        Some(StoredFactors { rank, coding }) => {
            Some(LowRankForm { rank: *rank, coding: load_coding(coding)? })
        }
        None => None,
    };
    let form = match (layout, factors) {
        (LayoutKind::Empty, Some(factors)) if factors.coding == coding && stored.kept == 0 => {
            Form::of_factors(&stored.shape, factors)
        }
        (LayoutKind::Empty, _) => {
            return Err(
                "an empty layout keeps no values, and has `low_rank` factors of its own coding".into()
            );
        }
        (layout, factors) => Form::new(&stored.shape, layout, coding, stored.kept)
            .and_then(|form| form.with_correction(factors)),
    };
    form.and_then(|form| form.with_input(input)).map_err(|e| e.to_string())
}

fn load_coding(stored: &StoredCoding) -> Result<Coding, String> {
    let precision = |p: &StoredPrecision| match p {
        StoredPrecision::F32 => Precision::F32,
        StoredPrecision::F16 => Precision::F16,
        StoredPrecision::BF16 => Precision::Bf16,
    };
    let granularity = |g: &StoredGranularity| match g {
        StoredGranularity::Tensor => Granularity::Tensor,
        StoredGranularity::Channel => Granularity::Channel,
        StoredGranularity::Group { group_size } => Granularity::Group(*group_size),
        StoredGranularity::Block { block: [rows, cols] } => Granularity::Block(*rows, *cols),
    };
    Ok(match stored {
        StoredCoding::Float { dtype } => Coding::Float(precision(dtype)),
        StoredCoding::F8E4M3 { granularity: g, scale_dtype } => {
            Coding::F8E4M3 { granularity: granularity(g), scales: precision(scale_dtype) }
        }
        StoredCoding::Int { bits, symmetric, granularity: g, scale_dtype } => Coding::Int {
            bits: Bits::new(*bits).ok_or_else(|| format!("{bits} bits are not between 2 and 8"))?,
            symmetric: *symmetric,
            granularity: granularity(g),
            scales: precision(scale_dtype),
        },
        StoredCoding::Codebook { bits, granularity: g, dtype } => Coding::Codebook {
            bits: CodebookBits::new(*bits).ok_or_else(|| format!("{bits} bits are not between 1 and 8"))?,
            granularity: granularity(g),
            values: precision(dtype),
        },
    })
}
