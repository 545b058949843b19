//! The header of a safetensors file, read strictly.
//!
//! Format: 8 bytes little-endian length `n`, `n` bytes of JSON, then the data without gaps
//! (<https://github.com/huggingface/safetensors#format>).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::CheckpointError;
use crate::dtype::DType;

/// What the format allows as the longest header.
const MAX_HEADER: u64 = 100_000_000;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorEntry {
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    /// Where its data begins and ends in the file.
    pub(super) span: (usize, usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Header {
    /// In the order of their data.
    pub(super) tensors: Vec<TensorEntry>,
    pub(super) metadata: BTreeMap<String, String>,
}

pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header, CheckpointError> {
    let bad = |reason: String| CheckpointError::Header { path: path.to_path_buf(), reason };
    let size = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(bad(format!(
            "{size} bytes are too few for a safetensors file, which begins with 8 bytes of header length"
        )));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(bad(format!(
            "the header claims {length} bytes, more than the {MAX_HEADER} the format allows; this is no safetensors file, or an unfinished one"
        )));
    }
    let Some(json) = rest.get(..length as usize) else {
        return Err(bad(format!(
            "the header claims {length} bytes, but only {} follow; the file is truncated",
            size - 8
        )));
    };
    let json = std::str::from_utf8(json)
        .map_err(|e| bad(format!("the header is not UTF-8 from its byte {} on", e.valid_up_to())))?;
    if !json.starts_with('{') {
        return Err(bad(
            "the header does not begin with `{`; this is no safetensors file, or an unfinished one".into(),
        ));
    }
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let raw = deserializer
        .deserialize_map(HeaderVisitor)
        .and_then(|raw| deserializer.end().map(|()| raw))
        .map_err(|e| bad(format!("header: {e}")))?;
    check(path, raw, 8 + length as usize, file.len())
}

/// The offsets must tile the data: no gap, no overlap, nothing left over.
fn check(path: &Path, raw: RawHeader, data: usize, end: usize) -> Result<Header, CheckpointError> {
    let available = end - data;
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, info) in raw.tensors {
        let (from, to) = info.data_offsets;
        let bad = |reason: String| CheckpointError::tensor(path, &name, reason);
        if from > to || to > available {
            return Err(bad(format!(
                "its offsets {from} to {to} do not lie in the {available} bytes of data; the file is truncated or corrupt"
            )));
        }
        let elements = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let bits = elements.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let Some(bits) = bits else {
            return Err(bad(format!(
                "shape {:?} has more elements than this machine can address",
                info.shape
            )));
        };
        if !bits.is_multiple_of(8) {
            let reason = format!(
                "shape {:?} of {} takes {bits} bits, which are no whole bytes",
                info.shape, info.dtype
            );
            return Err(bad(reason));
        }
        if bits / 8 != to - from {
            return Err(bad(format!(
                "shape {:?} of {} takes {} bytes, but its offsets {from} to {to} hold {}",
                info.shape,
                info.dtype,
                bits / 8,
                to - from
            )));
        }
        tensors.push(TensorEntry { name, dtype: info.dtype, shape: info.shape, span: (from, to) });
    }
    tensors.sort_by(|a, b| a.span.cmp(&b.span).then_with(|| a.name.cmp(&b.name)));
    let mut next = 0;
    for tensor in &mut tensors {
        let (from, to) = tensor.span;
        if from != next {
            let what = if from < next { "overlaps the tensor before it" } else { "leaves a gap" };
            let reason = format!("its data begins at {from}, but the data before ends at {next}: it {what}");
            return Err(CheckpointError::tensor(path, &tensor.name, reason));
        }
        next = to;
        tensor.span = (data + from, data + to);
    }
    if next != available {
        let reason = format!("the tensors end at byte {next} of the data, but {available} bytes are there");
        return Err(CheckpointError::Header { path: path.to_path_buf(), reason });
    }
    Ok(Header { tensors, metadata: raw.metadata })
}

#[derive(Default)]
struct RawHeader {
    tensors: Vec<(String, TensorInfo)>,
    metadata: BTreeMap<String, String>,
}

/// Reads the map entry by entry, because a plain map would let the last of two equal keys win.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tensor names to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut raw = RawHeader::default();
        let mut seen = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("the name `{name}` occurs twice")));
            }
            if name == "__metadata__" {
                raw.metadata = map
                    .next_value::<UniqueMap<String>>()
                    .map_err(|e| A::Error::custom(format!("`{name}`: {e}")))?
                    .0;
            } else {
                let info = map
                    .next_value::<TensorInfo>()
                    .map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
                raw.tensors.push((name, info));
            }
        }
        Ok(raw)
    }
}

/// A map in which no key occurs twice: a plain one would let the last of two win.
pub(super) struct UniqueMap<V>(pub(super) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueMapVisitor(PhantomData))
    }
}

struct UniqueMapVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueMapVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap<V>, A::Error> {
        let mut unique = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, V>()? {
            if unique.contains_key(&key) {
                return Err(A::Error::custom(format!("the name `{key}` occurs twice")));
            }
            unique.insert(key, value);
        }
        Ok(UniqueMap(unique))
    }
}
