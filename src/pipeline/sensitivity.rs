//! What pruning costs each layer, measured on samples before anything is planned.

use std::ops::ControlFlow;

use super::PipelineError;
use super::calibrated::{Calibration, Planned, observe_groups};
use super::global::Sensitivities;
use super::plan::{Plan, PlannedAction, PlannedTensor};
use super::run::Progress;
use crate::calibrate::{Saved, Store, embed};
use crate::checkpoint::Checkpoint;
use crate::dtype::Precision;
use crate::file::hex;
use crate::layer::{Layer, Needs};
use crate::model::Execution;
use crate::model::blockwise::Blockwise;
use crate::model::overlay::Overlay;
use crate::prune::{Allocation, Pruning, Sensitivity};
use crate::recipe::{Prune, Recipe, RecipeError, Selection};

impl PlannedTensor<'_> {
    /// The method that prunes it to a sparsity that depends on what pruning costs.
    fn measured_pruning(&self) -> Option<Pruning> {
        let PlannedAction::Compress(job) = &self.action else { return None };
        match job.prune {
            Some(Prune { selection: Selection::Allocated(pruning, Allocation::Sensitivity), .. }) => {
                Some(*pruning)
            }
            _ => None,
        }
    }
}

impl<'a> Plan<'a> {
    /// As [`new`](Self::new), where a sparsity that is spread [by sensitivity](Allocation::Sensitivity) goes by what pruning
    /// costs the output of each layer on samples: the network runs once, block by block, before it is planned.
    ///
    /// With [statistics](Calibration::statistics) that are kept, the run that follows does not have to do it again.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when tersor does not run the network, the samples do not fit it, a layer that is to be
    /// measured is in none of its blocks, or the recipe also transforms the model.
    pub fn calibrated(
        checkpoint: &'a Checkpoint,
        recipe: &'a Recipe,
        calibration: Calibration<'_>,
        progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Self, PipelineError> {
        let plan = Self::new(checkpoint, recipe)?;
        if plan.tensors().iter().all(|tensor| tensor.measured_pruning().is_none()) {
            return Ok(plan);
        }
        if !plan.transforms.is_empty() {
            let reason = "a sparsity is spread by the sensitivity of the layers as they are: transform the model in a run before";
            return Err(RecipeError::value("scope", reason).into());
        }
        let sensitivities = plan.sensitivities(calibration, progress)?;
        Self::measured(checkpoint, recipe, &sensitivities)
    }

    fn sensitivities(
        &self,
        calibration: Calibration<'_>,
        progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Sensitivities, PipelineError> {
        let mut model = Blockwise::open(self.checkpoint, Overlay::default(), Execution::default())?;
        let (blocks, outside) = self.tensors_of_blocks(&model);
        if let Some(unseen) = outside.iter().find(|tensor| tensor.measured_pruning().is_some()) {
            return Err(PipelineError::NotSeen {
                path: self.source().to_path_buf(),
                tensor: unseen.name().to_owned(),
                method: unseen.methods().join(" + "),
            });
        }
        let saved = match calibration.statistics {
            Some(folder) => Some(Saved::open(folder, &hex(self.fingerprint_of_inputs(calibration)?))?),
            None => None,
        };
        let is_saved = saved.as_ref().is_some_and(|saved| (0..blocks.len()).all(|block| saved.has(block)));
        let folder = std::env::temp_dir();
        let mut store = match calibration.samples {
            Some(samples) if !is_saved => embed(&model, samples, Store::new(calibration.memory, &folder))?,
            _ => Store::new(0, &folder),
        };
        let total = self.tensors().iter().map(|tensor| tensor.entry.bytes).sum();
        let (mut done, mut found) = (0, Sensitivities::new());
        for (block, tensors) in blocks.iter().enumerate() {
            let tensor = tensors.first().map(|tensor| tensor.name());
            if progress(Progress { tensor, done, total }).is_break() {
                return Err(PipelineError::Stopped);
            }
            done += tensors.iter().map(|tensor| tensor.entry.bytes).sum::<u64>();
            let asked: Vec<_> =
                tensors.iter().filter_map(|tensor| Some((*tensor, tensor.measured_pruning()?))).collect();
            let is_asked = |layer: &str| asked.iter().any(|(tensor, _)| tensor.entry.module() == layer);
            let needs = |layer: &str| if is_asked(layer) { Needs::Hessian } else { Needs::Nothing };
            let stats = observe_groups(&model, block, needs, &mut store, saved.as_ref())?;
            for (tensor, pruning) in &asked {
                let entry = &tensor.entry;
                let Some(stats) = stats.get(entry.module()) else {
                    return Err(PipelineError::NotSeen {
                        path: self.source().to_path_buf(),
                        tensor: tensor.name().to_owned(),
                        method: tensor.methods().join(" + "),
                    });
                };
                let values = self.checkpoint.values(tensor.name())?;
                let precision = entry.precision().unwrap_or(Precision::F32);
                let layer = Layer { stats: Some(stats), ..Layer::new(&entry.shape, &values, precision) };
                let sensitivity = Sensitivity::measure(&layer, pruning);
                let sensitivity = sensitivity.map_err(PipelineError::method(self.source(), tensor.name()))?;
                found.insert(tensor.name().to_owned(), sensitivity);
            }
            if store.len() > 0 && block + 1 < blocks.len() {
                self.run_dense(&mut model, &Planned::new(block, tensors), &mut store)?;
            }
        }
        let _ = progress(Progress { tensor: None, done: total, total });
        Ok(found)
    }
}
