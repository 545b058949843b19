//! Small checkpoints with something of everything.
#![allow(dead_code)] // as in `common`

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Value, json};
use tersor::{DType, StoredTensor};

use crate::common::{Folder, i64s, safetensors, stored};

/// `n` values that look like weights: around 0, most of them small, none of them equal for small `n`.
pub(crate) fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (uniform() + uniform() + uniform()) * 0.1).collect()
}

/// Little-endian bytes of values in a float type.
pub(crate) fn floats(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => crate::common::f32s(values),
        DType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn weight(name: &str, dtype: DType, shape: &[usize]) -> StoredTensor {
    let seed = name.bytes().fold(7u64, |seed, b| seed.wrapping_mul(31) + u64::from(b));
    stored(name, dtype, shape, floats(dtype, &values(shape.iter().product(), seed)))
}

/// Every class, ragged columns, a convolution, a scalar, tensors without elements and of integers.
pub(crate) fn mixed(dtype: DType) -> Vec<StoredTensor> {
    vec![
        weight("embed_tokens.weight", dtype, &[20, 48]),
        weight("layers.0.fc1.weight", dtype, &[33, 128]),
        weight("layers.0.fc1.bias", dtype, &[33]),
        weight("layers.0.fc2.weight", dtype, &[17, 200]),
        weight("conv.weight", dtype, &[6, 3, 3, 3]),
        weight("norm.weight", dtype, &[128]),
        weight("lm_head.weight", dtype, &[20, 48]),
        stored("steps", DType::I64, &[], i64s(&[1_234_567])),
        stored("flags", DType::BOOL, &[3], [1, 0, 1]),
        stored("empty.weight", dtype, &[0, 16], []),
        weight("temperature", dtype, &[]),
    ]
}

/// Weights that `compressed-tensors` has names for.
pub(crate) fn decoder(dtype: DType) -> Vec<StoredTensor> {
    vec![
        weight("model.embed_tokens.weight", dtype, &[40, 128]),
        weight("model.layers.0.q_proj.weight", dtype, &[64, 128]),
        weight("model.layers.0.down_proj.weight", dtype, &[128, 256]),
        weight("model.layers.0.input_layernorm.weight", dtype, &[128]),
        weight("lm_head.weight", dtype, &[40, 128]),
    ]
}

/// A folder with `model.safetensors`, and `config.json` if there is one.
pub(crate) fn folder(tensors: &[StoredTensor], config: Option<&Value>) -> Folder {
    let folder = Folder::new();
    folder.put("model.safetensors", safetensors(tensors, &[].into()));
    if let Some(config) = config {
        folder.put("config.json", config.to_string());
    }
    folder
}

/// A folder with two shards and their index.
pub(crate) fn sharded(tensors: &[StoredTensor], config: Option<&Value>) -> Folder {
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let folder = Folder::new();
    let (first, second) = tensors.split_at(tensors.len() / 2);
    let mut map = serde_json::Map::new();
    for (name, tensors) in names.into_iter().zip([first, second]) {
        folder.put(name, safetensors(tensors, &[].into()));
        map.extend(tensors.iter().map(|t| (t.name.clone(), json!(name))));
    }
    let total: usize = tensors.iter().map(|t| t.bytes.len()).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    folder.put("model.safetensors.index.json", index.to_string());
    if let Some(config) = config {
        folder.put("config.json", config.to_string());
    }
    folder
}

/// A `config.json` that makes `compressed-tensors` the default format.
pub(crate) fn architectures() -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "vocab_size": 40})
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}
