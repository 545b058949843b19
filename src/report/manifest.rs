use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{CheckpointError, MANIFEST};
use crate::file::open_regular;

/// Most bytes that are read of a manifest: a tensor takes about 600.
const MAX_BYTES: u64 = 1 << 27;

/// How a checkpoint was made, as the `tersor.json` beside its weights tells.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Made {
    /// Version of tersor that made it.
    pub tersor: Option<String>,
    /// Format in which it was written.
    pub format: Option<String>,
    /// Bytes of the source's safetensors files.
    pub bytes_before: Option<u64>,
    /// Bytes of its own.
    pub bytes_after: Option<u64>,
    /// What was done, and to how many tensors, in the order in which it first occurs.
    pub steps: Vec<MadeStep>,
    /// The tensors that were compressed.
    pub tensors: Vec<MadeTensor>,
}

/// Tensors that were treated in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MadeStep {
    /// The methods, in order.
    pub methods: Vec<String>,
    /// The form that came out.
    pub form: String,
    /// How many tensors.
    pub tensors: usize,
    /// Their bytes in the source.
    pub bytes_before: u64,
    /// Their bytes in the output.
    pub bytes_after: u64,
}

/// One tensor that was compressed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MadeTensor {
    /// Its name.
    pub name: String,
    /// The methods, in order.
    #[serde(default)]
    pub methods: Vec<String>,
    /// What it was.
    #[serde(default)]
    pub before: String,
    /// What it became.
    #[serde(default)]
    pub after: String,
    /// Its bytes in the source.
    #[serde(default)]
    pub bytes_before: u64,
    /// Its bytes in the output.
    #[serde(default)]
    pub bytes_after: u64,
    /// Fraction of its weights that are not stored.
    #[serde(default)]
    pub sparsity: Option<f64>,
    /// Values that were clamped.
    #[serde(default)]
    pub clamped: u64,
}

/// What is read of the file; the rest is for others.
#[derive(Deserialize)]
struct Manifest {
    tersor: Option<String>,
    format: Option<String>,
    bytes_before: Option<u64>,
    bytes_after: Option<u64>,
    #[serde(default)]
    layers: Vec<MadeTensor>,
}

impl Made {
    /// Reads the manifest of a checkpoint's folder; `None` if there is none, or the checkpoint is a file by itself.
    ///
    /// # Errors
    /// When there is one that cannot be read, is no JSON, or has other types than tersor writes.
    pub fn read(checkpoint: impl AsRef<Path>) -> Result<Option<Self>, CheckpointError> {
        let path = checkpoint.as_ref().join(MANIFEST);
        let file = match open_regular(&path) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(e) => return Err(CheckpointError::io(&path, "open")(e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(CheckpointError::io(&path, "read"))?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(CheckpointError::config(
                &path,
                format!("is larger than the {MAX_BYTES} bytes of any manifest that tersor writes; remove it"),
            ));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| {
            CheckpointError::config(&path, format!("is no manifest that tersor wrote: {e}; remove it"))
        })?;
        Ok(Some(Self {
            steps: steps(&manifest.layers),
            tersor: manifest.tersor,
            format: manifest.format,
            bytes_before: manifest.bytes_before,
            bytes_after: manifest.bytes_after,
            tensors: manifest.layers,
        }))
    }
}

fn steps(tensors: &[MadeTensor]) -> Vec<MadeStep> {
    let mut steps: Vec<MadeStep> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for tensor in tensors {
        let place = *places.entry((&tensor.methods, &tensor.after)).or_insert_with(|| {
            steps.push(MadeStep {
                methods: tensor.methods.clone(),
                form: tensor.after.clone(),
                tensors: 0,
                bytes_before: 0,
                bytes_after: 0,
            });
            steps.len() - 1
        });
        let step = &mut steps[place];
        step.tensors += 1;
        step.bytes_before = step.bytes_before.saturating_add(tensor.bytes_before);
        step.bytes_after = step.bytes_after.saturating_add(tensor.bytes_after);
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Made>, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MANIFEST), text).unwrap();
        Made::read(folder.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn like_tensors_are_counted_together() {
        let made = read(
            r#"{"tersor": "0.1.0", "bytes_after": 7, "unknown": [], "layers": [
                {"name": "a", "methods": ["round"], "after": "int8", "bytes_before": 40, "bytes_after": 10},
                {"name": "b", "methods": ["prune", "round"], "after": "int8", "bytes_before": 8, "relative": null},
                {"name": "c", "methods": ["round"], "after": "int8", "bytes_before": 4, "bytes_after": 1}]}"#,
        );
        let made = made.unwrap().unwrap();
        assert_eq!((made.bytes_before, made.bytes_after, made.tensors.len()), (None, Some(7), 3));
        let steps: Vec<_> =
            made.steps.iter().map(|s| (s.methods.len(), s.tensors, s.bytes_before, s.bytes_after)).collect();
        assert_eq!(steps, [(1, 2, 44, 11), (2, 1, 8, 0)]);
    }

    #[test]
    fn what_tersor_did_not_write_is_refused_with_a_reason() {
        for (text, part) in [
            ("", "EOF"),
            ("[]", "invalid"),
            (r#"{"layers": 5}"#, "invalid type"),
            (r#"{"layers": [{"methods": []}]}"#, "missing field `name`"),
            (r#"{"layers": [{"name": "a", "bytes_before": -1}]}"#, "-1"),
            (&format!("{{\"x\": {}", "[".repeat(100_000)), "EOF"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part) && error.contains(MANIFEST), "{error}");
        }
        assert_eq!(read("{}").unwrap().unwrap().tensors, []);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Made::read(folder.path()).unwrap(), None);
        let file = folder.path().join("model.safetensors");
        std::fs::write(&file, "").unwrap();
        assert_eq!(Made::read(&file).unwrap(), None);
    }
}
