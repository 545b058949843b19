//! The files of a folder that make a checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::CheckpointError;
use super::header::{TensorEntry, UniqueMap};
use crate::file::read_regular;

pub(crate) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

pub(super) fn read_config(path: &Path) -> Result<Option<Value>, CheckpointError> {
    match read_regular(path) {
        Ok(bytes) => match serde_json::from_slice::<Value>(&bytes) {
            Ok(config) if config.is_object() => Ok(Some(config)),
            Ok(_) => Err(CheckpointError::config(path, "is not a JSON object")),
            Err(e) => Err(CheckpointError::config(path, format!("is not JSON: {e}"))),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(CheckpointError::io(path, "read")(e)),
    }
}

/// What an index must have no two of.
#[derive(Deserialize)]
struct UniqueKeys {
    #[serde(rename = "weight_map")]
    _weight_map: UniqueMap<Value>,
}

pub(super) type WeightMap = BTreeMap<String, String>;

/// The safetensors files of a folder, and the index that names them, if there is one.
pub(super) fn find_files(root: &Path) -> Result<(Vec<PathBuf>, Option<WeightMap>), CheckpointError> {
    let index_path = root.join(INDEX);
    if index_path.exists() {
        let index = read_index(&index_path)?;
        let mut names: Vec<&String> = index.values().collect();
        names.sort();
        names.dedup();
        let mut files = Vec::new();
        for name in names {
            // a shard is a file of this folder, not a way out of it
            let plain = Path::new(name).components().count() == 1 && Path::new(name).file_name().is_some();
            let file = root.join(name);
            if !plain || !file.is_file() {
                let reason = format!("names the shard `{name}`, which is not a file of this folder");
                return Err(CheckpointError::Index { path: index_path, reason });
            }
            files.push(file);
        }
        return Ok((files, Some(index)));
    }
    let single = root.join(SINGLE);
    if single.exists() {
        return Ok((vec![single], None));
    }
    let mut found = Vec::new();
    for item in fs::read_dir(root).map_err(CheckpointError::io(root, "list"))? {
        let path = item.map_err(CheckpointError::io(root, "list"))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            found.push(path);
        }
    }
    found.sort();
    match found.len() {
        1 => Ok((found, None)),
        0 => Err(CheckpointError::NotACheckpoint {
            path: root.to_path_buf(),
            reason: format!("has neither {SINGLE} nor {INDEX}, nor any other .safetensors file"),
        }),
        n => Err(CheckpointError::NotACheckpoint {
            path: root.to_path_buf(),
            reason: format!("has {n} .safetensors files but no {INDEX}; name one of the files"),
        }),
    }
}

fn read_index(path: &Path) -> Result<WeightMap, CheckpointError> {
    let bad = |reason: String| CheckpointError::Index { path: path.to_path_buf(), reason };
    let bytes = read_regular(path).map_err(CheckpointError::io(path, "read"))?;
    let index: Value = serde_json::from_slice(&bytes).map_err(|e| bad(format!("is not JSON: {e}")))?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| bad("has no `weight_map` from tensor names to files".into()))?;
    if map.is_empty() {
        return Err(bad("its `weight_map` is empty".into()));
    }
    // of two equal keys the last has won so far
    serde_json::from_slice::<UniqueKeys>(&bytes).map_err(|e| bad(e.to_string()))?;
    map.iter()
        .map(|(tensor, file)| match file.as_str() {
            Some(file) => Ok((tensor.clone(), file.to_owned())),
            None => Err(bad(format!("`weight_map` gives tensor `{tensor}` no file name"))),
        })
        .collect()
}

/// Index and shards must agree about where every tensor stands.
pub(super) fn check_index(
    path: &Path,
    index: &WeightMap,
    files: &[&Path],
    tensors: &BTreeMap<String, (usize, TensorEntry)>,
) -> Result<(), CheckpointError> {
    let bad = |reason: String| Err(CheckpointError::Index { path: path.to_path_buf(), reason });
    for (tensor, file) in index {
        match tensors.get(tensor) {
            None => return bad(format!("names tensor `{tensor}`, which is not in its shard {file}")),
            Some((file_of, _)) => {
                let actual = files[*file_of].file_name().unwrap_or_default().to_string_lossy();
                if actual != file.as_str() {
                    return bad(format!("says tensor `{tensor}` is in {file}, but it is in {actual}"));
                }
            }
        }
    }
    match tensors.keys().find(|name| !index.contains_key(*name)) {
        Some(tensor) => bad(format!("does not name tensor `{tensor}`, which is in a shard")),
        None => Ok(()),
    }
}
