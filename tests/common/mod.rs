//! Files and folders for tests, well-formed or not.
#![allow(dead_code)] // every test target compiles this module and uses some of it

pub(crate) mod damage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tersor::{Checkpoint, CheckpointError, DType, StoredTensor};

/// Asserts that a result is the error `CheckpointError::$variant` and that its one line names the file `$path` and holds
/// every other text.
#[macro_export]
macro_rules! refused {
    ($result:expr, $variant:ident, $path:expr, [$($part:expr),* $(,)?]) => {{
        let Some(error) = $result.err() else { panic!("{}: was not refused", stringify!($result)) };
        let line = tersor::one_line(&error);
        assert!(matches!(error, tersor::CheckpointError::$variant { .. }), "{error:?}");
        assert!(line.contains(&$path.display().to_string()), "no file in: {line}");
        assert!(!line.contains('\n'), "{line}");
        $(assert!(line.contains($part), "no `{}` in: {line}", $part);)*
    }};
}

/// A folder that goes when it is dropped.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        // a new file, because some file systems wait for the disk when a file is truncated and written again
        std::fs::remove_file(&path).ok();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn open(&self) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open(self.path())
    }
}

/// A file in a folder of its own.
pub(crate) struct File {
    _folder: Folder,
    pub(crate) path: PathBuf,
}

impl File {
    pub(crate) fn new(bytes: impl AsRef<[u8]>) -> Self {
        let folder = Folder::new();
        let path = folder.put("weights.safetensors", bytes);
        Self { _folder: folder, path }
    }

    pub(crate) fn open(&self) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open(&self.path)
    }
}

/// The bytes of a safetensors file with this header.
pub(crate) fn raw(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

/// One tensor's description in a header.
pub(crate) fn info(dtype: &str, shape: &str, from: u64, to: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
}

pub(crate) fn stored(name: &str, dtype: DType, shape: &[usize], bytes: impl Into<Vec<u8>>) -> StoredTensor {
    StoredTensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes: bytes.into() }
}

pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub(crate) fn i64s(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The bytes of a well-formed file: the tensors in this order, without gaps.
pub(crate) fn safetensors(tensors: &[StoredTensor], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut data = Vec::new();
    for tensor in tensors {
        let from = data.len();
        data.extend_from_slice(&tensor.bytes);
        let info = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [from, data.len()]});
        header.insert(tensor.name.clone(), info);
    }
    raw(Value::Object(header).to_string(), &data)
}

/// The same network with the dense values of every weight, in `f32`.
pub(crate) fn dequantized(checkpoint: &Checkpoint) -> Folder {
    let dense = |entry: &tersor::Entry| {
        let values = checkpoint.dense(&entry.name).unwrap();
        stored(&entry.name, DType::F32, &entry.shape, f32s(&values))
    };
    let tensors: Vec<_> = checkpoint.entries().iter().map(dense).collect();
    let folder = Folder::new();
    folder.put("model.safetensors", safetensors(&tensors, &BTreeMap::new()));
    if let Ok(tokenizer) = std::fs::read(checkpoint.path().join("tokenizer.json")) {
        folder.put("tokenizer.json", tokenizer);
    }
    let mut config = checkpoint.config().unwrap().clone();
    // what says how weights are stored
    config.as_object_mut().unwrap().remove("quantization_config");
    folder.put("config.json", config.to_string());
    folder
}

/// Opens a checkpoint and reads everything in it in every way there is.
pub(crate) fn read_all(path: &Path) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::open(path)?;
    for entry in checkpoint.entries() {
        assert_eq!(entry.elements(), entry.shape.iter().product::<usize>());
        assert!(!entry.describe().is_empty());
        for name in &entry.tensors {
            checkpoint.tensor(name)?;
        }
        let dense = checkpoint.dense(&entry.name)?;
        let weight = checkpoint.weight(&entry.name)?;
        assert_eq!(dense.len(), entry.elements());
        assert_eq!(weight.form().bytes(), weight.form().clone().bytes());
        if let Some(mask) = weight.mask() {
            assert_eq!((mask.rows(), mask.cols()), (weight.rows(), weight.cols()));
        }
    }
    Ok(())
}
