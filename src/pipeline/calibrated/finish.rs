//! Tensors as they will be in the output, once it is known what goes into their layers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::block::SeenStats;
use crate::checkpoint::{CheckpointError, Stored};
use crate::dtype::Precision;
use crate::evaluate::WeightErrors;
use crate::layer::{Layer, Method};
use crate::pipeline::PipelineError;
use crate::pipeline::plan::{Job, Plan, PlannedAction, PlannedTensor};
use crate::pipeline::prepared::TensorReport;
use crate::pipeline::run::Seen;
use crate::pipeline::stream::Failure;
use crate::pipeline::transforms::Changed;
use crate::quantize::{FloatCast, bias_correction};
use crate::weight::{CompressedWeight, InputScales};

const BIAS_CORRECTED: &str = "bias corrected";

/// What is known of the inputs of some layers, by layer.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    pub(super) stats: SeenStats,
    /// What static quantization makes of them.
    pub(super) scales: BTreeMap<String, InputScales>,
}

/// Tensors in the form that they will have in the output, and what became of them.
#[derive(Debug, Default)]
pub(super) struct Finishing {
    /// What they were changed to before.
    pub(super) changed: Changed,
    pub(super) weights: Vec<(String, CompressedWeight)>,
    pub(super) reports: Vec<TensorReport>,
}

impl Finishing {
    pub(super) fn new(changed: Changed) -> Self {
        Self { changed, ..Self::default() }
    }
}

impl Plan<'_> {
    /// Gives some tensors the form that they will have in the output: those that are compressed with regard to their input,
    /// and those that changed.
    pub(super) fn finish(
        &self,
        tensors: &[&PlannedTensor<'_>],
        inputs: &Inputs,
        finishing: &mut Finishing,
    ) -> Result<(), PipelineError> {
        let Finishing { changed, weights, reports } = finishing;
        // weights first: biases make up for what became of them
        let is_corrected = |tensor: &&PlannedTensor<'_>| self.corrected.contains(tensor.entry.module());
        let (first, others): (Vec<&PlannedTensor<'_>>, Vec<_>) =
            tensors.iter().copied().partition(is_corrected);
        for tensor in first.into_iter().chain(others) {
            let (name, layer) = (tensor.name(), tensor.entry.module());
            let seen = Seen {
                stats: inputs.stats.get(layer).map(Arc::as_ref),
                input: inputs.scales.get(layer).copied(),
            };
            let values = changed.values.get(name);
            let (weight, mut report) = match (&tensor.action, values) {
                (PlannedAction::Compress(job), Some(values)) => {
                    self.compress_observed(tensor, job, values, seen)?
                }
                // the next block is to see what becomes of it
                (PlannedAction::Compress(job), None) => {
                    let values = self.checkpoint.values(name)?;
                    self.compress_observed(tensor, job, &values, seen)?
                }
                (_, Some(values)) => self.round_changed(tensor, values)?,
                (_, None) => continue,
            };
            report.transforms = changed.words.get(name).cloned().unwrap_or_default();
            report.changed = changed.values.contains_key(name);
            // what no block runs stays as it is
            if self.corrected.contains(layer) && seen.stats.is_some() {
                self.correct_bias(tensor, &weight, seen, changed)?;
                report.transforms.push(BIAS_CORRECTED.into());
            }
            weights.push((name.to_owned(), weight));
            reports.push(report);
        }
        Ok(())
    }

    /// Lets the bias of a layer make up for what became of its weight.
    fn correct_bias(
        &self,
        tensor: &PlannedTensor<'_>,
        weight: &CompressedWeight,
        seen: Seen<'_>,
        changed: &mut Changed,
    ) -> Result<(), PipelineError> {
        let values = changed.get(self.checkpoint, tensor.name())?;
        let layer = Layer { stats: seen.stats, ..Layer::new(&tensor.entry.shape, &values, Precision::F32) };
        let correction = bias_correction(&layer, weight);
        let correction = correction.map_err(PipelineError::method(self.source(), tensor.name()))?;
        let name = format!("{}.bias", tensor.entry.module());
        let mut bias = changed.get(self.checkpoint, &name)?;
        if bias.len() != correction.len() {
            let reason = format!("has {} values for {} output features", bias.len(), correction.len());
            return Err(CheckpointError::tensor(self.source(), &name, reason).into());
        }
        bias.iter_mut().zip(&correction).for_each(|(bias, correction)| *bias += correction);
        changed.say(&name, BIAS_CORRECTED.into());
        changed.values.insert(name, bias);
        Ok(())
    }

    /// A tensor that changed and is not compressed, in the precision that it had.
    fn round_changed(
        &self,
        tensor: &PlannedTensor<'_>,
        values: &[f32],
    ) -> Result<(CompressedWeight, TensorReport), PipelineError> {
        let entry = &tensor.entry;
        let (Stored::Plain(_), Some(precision)) = (&entry.stored, entry.precision()) else {
            return Err(PipelineError::Transformed {
                path: self.source().to_path_buf(),
                tensor: entry.name.clone(),
                form: entry.describe(),
            });
        };
        let layer = Layer::new(&entry.shape, values, precision);
        let compressed = FloatCast::to(precision).compress(&layer);
        let compressed = compressed.map_err(PipelineError::method(self.source(), &entry.name))?;
        let report = TensorReport {
            name: entry.name.clone(),
            clamped: compressed.clamped,
            errors: None,
            outcomes: Vec::new(),
            transforms: Vec::new(),
            afterwards: Vec::new(),
            changed: false,
        };
        Ok((compressed.weight, report))
    }

    fn compress_observed(
        &self,
        tensor: &PlannedTensor<'_>,
        job: &Job<'_>,
        values: &[f32],
        seen: Seen<'_>,
    ) -> Result<(CompressedWeight, TensorReport), PipelineError> {
        let error = || PipelineError::method(self.source(), tensor.name());
        let compressed =
            self.compress(tensor, job, &tensor.entry.shape, values, seen).map_err(|e| match e {
                Failure::Run(error) => error,
                Failure::Method(e) => error()(e),
            })?;
        let decoded = compressed.weight.dequantize();
        let errors = WeightErrors::between(values, decoded.as_slice().unwrap_or_default());
        let report = TensorReport {
            name: tensor.name().to_owned(),
            clamped: compressed.clamped,
            errors: Some(errors),
            outcomes: compressed.outcomes,
            transforms: Vec::new(),
            afterwards: Vec::new(),
            changed: false,
        };
        Ok((compressed.weight, report))
    }
}
