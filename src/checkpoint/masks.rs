use std::collections::BTreeMap;
use std::path::Path;

use super::{Checkpoint, CheckpointError, TensorSpec, TensorWriter};
use crate::dtype::DType;
use crate::weight::Mask;

/// Key in the file's metadata: the columns of every mask, as a JSON object.
const COLUMNS: &str = "tersor.mask_columns";

/// Saves masks to a new safetensors file: one U8 tensor `[rows, ⌈cols / 8⌉]` each, lowest bit first; the metadata holds
/// the numbers of columns.
///
/// # Errors
/// When the file exists or cannot be written; then nothing is left behind.
pub fn save_masks(path: impl AsRef<Path>, masks: &BTreeMap<String, Mask>) -> Result<(), CheckpointError> {
    let path = path.as_ref();
    if path.symlink_metadata().is_ok() {
        return Err(CheckpointError::OutputExists { path: path.to_path_buf() });
    }
    if masks.contains_key("__metadata__") {
        return Err(CheckpointError::tensor(
            path,
            "__metadata__",
            "is a name that the format keeps for itself",
        ));
    }
    let specs = masks
        .iter()
        .map(|(name, mask)| TensorSpec {
            name: name.clone(),
            dtype: DType::U8,
            shape: vec![mask.rows(), mask.cols().div_ceil(8)],
        })
        .collect();
    let columns: BTreeMap<&String, usize> = masks.iter().map(|(name, m)| (name, m.cols())).collect();
    let metadata = BTreeMap::from([(COLUMNS.to_owned(), serde_json::json!(columns).to_string())]);
    let written = TensorWriter::create(path, specs, &metadata).and_then(|mut writer| {
        masks.iter().try_for_each(|(name, mask)| writer.write(name, mask.as_bytes()))?;
        writer.finish()
    });
    if written.is_err() {
        std::fs::remove_file(path).ok();
    }
    written
}

/// Loads what [`save_masks`] saved.
///
/// # Errors
/// When the file is malformed.
pub fn load_masks(path: impl AsRef<Path>) -> Result<BTreeMap<String, Mask>, CheckpointError> {
    let path = path.as_ref();
    let file = Checkpoint::open(path)?;
    let columns: BTreeMap<String, usize> = file
        .metadata(0)
        .and_then(|metadata| serde_json::from_str(metadata.get(COLUMNS)?).ok())
        .ok_or_else(|| {
            CheckpointError::config(path, format!("its metadata has no `{COLUMNS}`; this is no mask file"))
        })?;
    if let Some(entry) = file.entries().iter().find(|e| !columns.contains_key(&e.name)) {
        let reason = format!("`{COLUMNS}` does not give its columns");
        return Err(CheckpointError::tensor(path, &entry.name, reason));
    }
    let mut masks = BTreeMap::new();
    for (name, cols) in columns {
        let tensor = file.tensor(&name)?;
        if tensor.dtype != DType::U8 {
            let reason = format!("a mask is U8, not {:?}", tensor.dtype);
            return Err(CheckpointError::tensor(path, &name, reason));
        }
        let [rows, _] = tensor.shape else {
            let reason = format!("a mask has two dimensions, not {:?}", tensor.shape);
            return Err(CheckpointError::tensor(path, &name, reason));
        };
        let mask = Mask::from_bytes(*rows, cols, tensor.bytes.to_vec());
        masks.insert(name.clone(), mask.map_err(CheckpointError::weight(path, &name))?);
    }
    Ok(masks)
}
