//! A model that a test changes before it is opened.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tersor::{Checkpoint, Execution, ModelError, Network, StoredTensor, one_line};

use crate::common::{Folder, safetensors, stored};

pub(crate) struct Model {
    pub(crate) config: Value,
    pub(crate) tensors: Vec<StoredTensor>,
}

pub(crate) fn fixture(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/transformers").join(case)
}

impl Model {
    pub(crate) fn of(case: &str) -> Self {
        let checkpoint = Checkpoint::open(fixture(case)).unwrap();
        let tensor = |entry: &tersor::Entry| {
            let tensor = checkpoint.tensor(&entry.name).unwrap();
            stored(&entry.name, tensor.dtype, tensor.shape, tensor.bytes)
        };
        let config = serde_json::from_slice(&fs::read(fixture(case).join("config.json")).unwrap()).unwrap();
        Self { config, tensors: checkpoint.entries().iter().map(tensor).collect() }
    }

    /// With some keys of `config.json` changed.
    pub(crate) fn with(case: &str, keys: Value) -> Self {
        let mut model = Self::of(case);
        for (key, value) in keys.as_object().unwrap() {
            model.config[key] = value.clone();
        }
        model
    }

    pub(crate) fn without(case: &str, key: &str) -> Self {
        let mut model = Self::of(case);
        assert!(model.config.as_object_mut().unwrap().shift_remove(key).is_some(), "{case} has no {key}");
        model
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut StoredTensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    pub(crate) fn folder(&self) -> Folder {
        let folder = Folder::new();
        folder.put("model.safetensors", safetensors(&self.tensors, &[].into()));
        folder.put("config.json", self.config.to_string());
        folder
    }

    pub(crate) fn open(&self) -> Network {
        open(&self.folder()).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Asserts that opening is refused with one line that names the folder and holds these texts.
    pub(crate) fn refused(&self, parts: &[&str]) {
        let folder = self.folder();
        let error = open(&folder).err().unwrap_or_else(|| panic!("not refused, though {parts:?}"));
        let line = one_line(&error);
        let path = folder.path().display().to_string();
        for part in parts.iter().copied().chain([path.as_str()]) {
            assert!(line.contains(part), "no `{part}` in: {line}");
        }
    }
}

pub(crate) fn open(folder: &Folder) -> Result<Network, ModelError> {
    Network::open(&folder.open()?, Execution::default())
}

/// Asserts that something is refused with a line that holds these texts.
pub(crate) fn assert_error<T>(result: Result<T, impl std::error::Error>, parts: &[&str]) {
    let Err(error) = result else { panic!("not refused, though {parts:?}") };
    let line = one_line(&error);
    for part in parts {
        assert!(line.contains(part), "no `{part}` in: {line}");
    }
}
