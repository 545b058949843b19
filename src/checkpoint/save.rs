use std::collections::BTreeMap;
use std::path::Path;

use super::formats::{encode, specs, tersor};
use super::{CheckpointError, TensorWriter};
use crate::weight::CompressedWeight;

/// Saves weights as they are, compressed or dense, to a new safetensors file, sorted by name. [`Checkpoint::open`] reads them
/// back, in the same forms.
///
/// # Errors
/// When the file exists, two weights would be stored under one name, or the disk refuses; then nothing is left behind.
///
/// [`Checkpoint::open`]: super::Checkpoint::open
///
/// ```
/// use std::collections::BTreeMap;
/// use tersor::{Bits, Checkpoint, CompressedWeight, Layer, Method, Precision, RoundToNearest, save_weights};
///
/// let layer = Layer::new(&[2, 2], &[0.1, -0.4, 0.7, 0.2], Precision::F32);
/// let int4 = RoundToNearest::int(Bits::new(4).unwrap()).compress(&layer)?.weight;
/// let bias = CompressedWeight::from_f32(&[2], Precision::F32, &[1.0, 2.0])?;
/// let weights = BTreeMap::from([("fc.weight".to_owned(), int4), ("fc.bias".to_owned(), bias)]);
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("model.safetensors");
/// save_weights(&path, &weights)?;
/// assert_eq!(Checkpoint::open(&path)?.weight("fc.weight")?, weights["fc.weight"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save_weights(
    path: impl AsRef<Path>,
    weights: &BTreeMap<String, CompressedWeight>,
) -> Result<(), CheckpointError> {
    let path = path.as_ref();
    if path.symlink_metadata().is_ok() {
        return Err(CheckpointError::OutputExists { path: path.to_path_buf() });
    }
    let mut planned = Vec::new();
    let mut owners = BTreeMap::from([("__metadata__".to_owned(), "the format's own metadata")]);
    for (name, weight) in weights {
        for spec in specs(name, weight.form()) {
            if let Some(other) = owners.insert(spec.name.clone(), name) {
                let reason = format!("would be stored for `{name}` and for `{other}`");
                return Err(CheckpointError::tensor(path, &spec.name, reason));
            }
            planned.push(spec);
        }
    }
    let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let forms = weights.iter().map(|(name, weight)| (name.as_str(), weight.form(), tersor::Storage::Parts));
    let mut forms = forms.filter(|(_, form, _)| !form.is_plain());
    if let Some(first) = forms.next() {
        metadata.insert(tersor::KEY.into(), tersor::write_metadata(std::iter::once(first).chain(forms)));
    }
    let written = TensorWriter::create(path, planned, &metadata).and_then(|mut writer| {
        for (name, weight) in weights {
            for (spec, (_, bytes)) in specs(name, weight.form()).into_iter().zip(encode(weight)) {
                writer.write(&spec.name, &bytes)?;
            }
        }
        writer.finish()
    });
    match &written {
        // somebody else's, made meanwhile
        Err(CheckpointError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(CheckpointError::OutputExists { path: path.to_path_buf() });
        }
        Err(_) => {
            std::fs::remove_file(path).ok();
        }
        Ok(()) => {}
    }
    written
}
