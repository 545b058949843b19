//! The compressed network with the scales that it has learned; everything else as it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::Distilled;
use super::student::Student;
use crate::checkpoint::formats::{encode, specs};
use crate::checkpoint::{
    Checkpoint, CheckpointError, Companions, INDEX, MANIFEST, OutputFolder, TensorSpec, TensorWriter,
};
use crate::file::read_regular;
use crate::pipeline::PipelineError;
use crate::pipeline::run::{index, pretty};

/// What the manifest says of how far a layer's weight and output are off, which are others now.
const ERRORS: [&str; 5] = ["relative", "sqnr_db", "cosine", "max_abs", "outcomes"];

impl Student<'_> {
    /// Writes all files but the manifest.
    pub(super) fn write(&self, folder: &OutputFolder, companions: &Companions) -> Result<(), PipelineError> {
        let checkpoint = self.checkpoint;
        let scales = self.scales()?;
        let mut all = Vec::new();
        let is_single = checkpoint.files().len() == 1;
        for (number, path) in checkpoint.files().enumerate() {
            let name = if is_single { Path::new("model.safetensors") } else { path };
            let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
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
        if !is_single {
            folder.write(Path::new(INDEX), &pretty(&index(all.iter().map(|(s, f)| (s, f.as_str())))))?;
        }
        if checkpoint.config().is_some() {
            let config = Path::new("config.json");
            folder.copy(&checkpoint.path().join(config), config)?;
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
}

/// What `tersor.json` says of the compressed network.
pub(super) struct Manifest {
    /// Everything but what changed.
    values: Map<String, Value>,
    /// What changed the values of tensors, by their names.
    changed: BTreeMap<String, Vec<String>>,
}

impl Manifest {
    /// Reads it; there is none beside what was made by something else.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub(super) fn read(checkpoint: &Checkpoint) -> Result<Self, CheckpointError> {
        let path = checkpoint.path().join(MANIFEST);
        let error = |what: String| {
            CheckpointError::config(&path, format!("is no manifest that tersor wrote: {what}; remove it"))
        };
        let mut values: Map<String, Value> = match read_regular(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()))?,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Map::new(),
            Err(e) => return Err(CheckpointError::io(&path, "read")(e)),
        };
        if !values.entry("layers").or_insert_with(|| json!([])).is_array() {
            return Err(error("`layers` is no list".into()));
        }
        let changed = match values.remove("changed") {
            Some(changed) => serde_json::from_value(changed).map_err(|e| error(format!("`changed`: {e}")))?,
            None => BTreeMap::new(),
        };
        Ok(Self { values, changed })
    }

    /// Writes it with what became of the network.
    pub(super) fn write(
        mut self,
        folder: &OutputFolder,
        student: &Student<'_>,
        distilled: &Distilled,
    ) -> Result<(), CheckpointError> {
        let words = format!("scales distilled in {} steps", distilled.steps);
        let learned: BTreeSet<&str> = student.learned().map(|(weight, _)| weight).collect();
        for weight in &learned {
            self.changed.entry((*weight).to_owned()).or_default().push(words.clone());
        }
        let layers = self.values.get_mut("layers").and_then(Value::as_array_mut);
        for layer in layers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let name = layer.get("name").and_then(Value::as_str);
            if name.is_some_and(|name| learned.contains(name)) {
                layer.retain(|key, _| !ERRORS.contains(&key.as_str()));
                if let Some(methods) = layer.get_mut("methods").and_then(Value::as_array_mut) {
                    methods.push(json!(words));
                }
            }
        }
        self.values.insert("tersor".into(), json!(env!("CARGO_PKG_VERSION")));
        self.values.insert("changed".into(), json!(self.changed));
        self.values.insert(
            "distilled".into(),
            json!({
                "steps": distilled.steps,
                "samples": distilled.samples,
                "held_out": distilled.held_out,
                "before": distilled.before,
                "after": distilled.after,
            }),
        );
        folder.write(Path::new(MANIFEST), &pretty(&Value::Object(self.values)))
    }
}
