use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::PipelineError;
use super::resume::Finished;
use crate::checkpoint::CheckpointError;
use crate::evaluate::WeightErrors;
use crate::layer::Outcome;
use crate::weight::CompressedWeight;

/// What became of a tensor that was compressed before the output is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TensorReport {
    pub(super) name: String,
    pub(super) clamped: u64,
    /// How far it is from what it was after the transforms; `None` of a tensor that only these changed.
    pub(super) errors: Option<WeightErrors>,
    pub(super) outcomes: Vec<Outcome>,
    /// What was done to it before.
    pub(super) transforms: Vec<String>,
    /// What was done to it afterwards.
    pub(super) afterwards: Vec<String>,
    /// Whether either changed its values.
    pub(super) changed: bool,
}

/// Tensors that stand ready to be written.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    blocks: Vec<Finished>,
    /// From a tensor's name to its block.
    by_name: HashMap<String, usize>,
}

impl Prepared {
    /// Adds a block that is on the disk.
    pub(super) fn push(&mut self, block: Finished) {
        let number = self.blocks.len();
        self.by_name.extend(block.tensors.entries().iter().map(|entry| (entry.name.clone(), number)));
        self.blocks.push(block);
    }

    /// The tensors whose values are others than the source's, whatever form they have, and what changed them.
    pub(super) fn changed(&self) -> BTreeMap<&str, Vec<&str>> {
        let reports = self.blocks.iter().flat_map(|block| &block.reports).filter(|report| report.changed);
        let named = reports.map(|report| {
            let words = report.transforms.iter().chain(&report.afterwards);
            (report.name.as_str(), words.map(String::as_str).collect())
        });
        named.collect()
    }

    /// Whether a tensor is among them.
    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// A tensor and what became of it; `None` if it is not among them.
    ///
    /// # Errors
    /// When its file has changed.
    pub(super) fn take(
        &self,
        name: &str,
    ) -> Result<Option<(CompressedWeight, &TensorReport)>, PipelineError> {
        let Some(block) = self.by_name.get(name).map(|number| &self.blocks[*number]) else { return Ok(None) };
        let report = block.reports.iter().find(|report| report.name == name);
        let report = report.ok_or_else(|| {
            CheckpointError::tensor(block.tensors.path(), name, "has no report beside it; delete the folder")
        })?;
        Ok(Some((block.tensors.weight(name)?, report)))
    }
}
