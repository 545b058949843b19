//! The compressed network with the scales that it has learned; everything else as it was.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Distilled;
use super::student::Student;
use crate::checkpoint::formats::{encode, specs};
use crate::checkpoint::{
    CheckpointError, Companions, INDEX, MANIFEST, OutputFolder, TensorSpec, TensorWriter,
};
use crate::file::read_regular;
use crate::pipeline::PipelineError;
use crate::pipeline::run::{index, pretty};

/// What the manifest says of the error of a layer's weight, which is another one now.
const ERRORS: [&str; 4] = ["relative", "sqnr_db", "cosine", "max_abs"];

impl Student<'_> {
    /// Writes all files but the manifest.
    pub(super) fn write(&self, folder: &OutputFolder, companions: &Companions) -> Result<(), PipelineError> {
        let checkpoint = self.checkpoint;
        let scales = self.scales()?;
        let mut all = Vec::new();
        for (number, path) in checkpoint.files().enumerate() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let entries = || checkpoint.entries().iter().filter(move |entry| entry.file == number);
            let mut specs = Vec::new();
            for tensor in entries().flat_map(|entry| &entry.tensors) {
                let found = checkpoint.tensor(tensor)?;
                specs.push(TensorSpec {
                    name: tensor.clone(),
                    dtype: found.dtype,
                    shape: found.shape.to_vec(),
                });
            }
            let metadata = checkpoint.metadata(number).cloned().unwrap_or_default();
            let mut writer = TensorWriter::create(&folder.path().join(&name), specs.clone(), &metadata)?;
            for spec in &specs {
                match scales.get(&spec.name) {
                    Some(bytes) => writer.write(&spec.name, bytes)?,
                    None => writer.write(&spec.name, checkpoint.tensor(&spec.name)?.bytes)?,
                }
            }
            writer.finish()?;
            all.extend(specs.into_iter().map(|spec| (spec, name.clone())));
        }
        for companion in &companions.carried {
            folder.copy(&checkpoint.path().join(companion), companion)?;
        }
        if checkpoint.files().len() > 1 {
            folder.write(Path::new(INDEX), &pretty(&index(all.iter().map(|(s, f)| (s, f.as_str())))))?;
        }
        if let Some(config) = checkpoint.config() {
            folder.write(Path::new("config.json"), &pretty(config))?;
        }
        Ok(())
    }

    /// The bytes of the learned scales, by the names of their tensors.
    ///
    /// # Errors
    /// When a weight's scales have no tensor of their own, or one of another type.
    pub(super) fn scales(&self) -> Result<HashMap<String, Vec<u8>>, CheckpointError> {
        let mut scales = HashMap::new();
        for (weight, learned) in self.learned() {
            let name = format!("{weight}_scale");
            if self.checkpoint.entry(weight)?.is_entropy_coded() {
                let reason = "is entropy coded, and its scales with it: distil the model as it was before, and code what comes out";
                return Err(CheckpointError::tensor(self.checkpoint.path(), weight, reason));
            }
            let stored = self.checkpoint.tensor(&name)?;
            let parts = specs(weight, learned.weight().form()).into_iter().zip(encode(learned.weight()));
            let part = parts.into_iter().find(|(spec, _)| spec.name == name);
            let part = part
                .filter(|(spec, (_, bytes))| spec.dtype == stored.dtype && bytes.len() == stored.bytes.len());
            let Some((_, (_, bytes))) = part else {
                let reason = format!(
                    "is stored as {:?} of shape {:?}, in which learned scales cannot be",
                    stored.dtype, stored.shape
                );
                return Err(CheckpointError::tensor(stored.path, &name, reason));
            };
            scales.insert(name, bytes.into_owned());
        }
        Ok(scales)
    }

    /// Writes the manifest: that of the compressed network, with what became of it.
    pub(super) fn write_manifest(
        &self,
        folder: &OutputFolder,
        distilled: &Distilled,
    ) -> Result<(), PipelineError> {
        let path = self.checkpoint.path().join(MANIFEST);
        let mut manifest = match read_regular(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| CheckpointError::config(&path, format!("is no manifest: {e}; remove it")))?,
            // made by something else
            Err(_) => Map::new(),
        };
        let words = format!("scales distilled in {} steps", distilled.steps);
        let mut changed: BTreeMap<String, Vec<String>> = match manifest.remove("changed") {
            Some(changed) => serde_json::from_value(changed)
                .map_err(|e| CheckpointError::config(&path, format!("`changed`: {e}; remove it")))?,
            None => BTreeMap::new(),
        };
        for (weight, _) in self.learned() {
            changed.entry(weight.to_owned()).or_default().push(words.clone());
        }
        let layers = manifest.entry("layers").or_insert_with(|| json!([]));
        for layer in layers.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            let is_learned =
                layer.get("name").and_then(Value::as_str).is_some_and(|name| changed.contains_key(name));
            if is_learned {
                layer.retain(|key, _| !ERRORS.contains(&key.as_str()));
                if let Some(methods) = layer.get_mut("methods").and_then(Value::as_array_mut) {
                    methods.push(json!(words));
                }
            }
        }
        manifest.insert("tersor".into(), json!(env!("CARGO_PKG_VERSION")));
        manifest.insert("changed".into(), json!(changed));
        manifest.insert(
            "distilled".into(),
            json!({
                "steps": distilled.steps,
                "samples": distilled.samples,
                "held_out": distilled.held_out,
                "before": distilled.before,
                "after": distilled.after,
            }),
        );
        Ok(folder.write(Path::new(MANIFEST), &pretty(&Value::Object(manifest)))?)
    }
}
