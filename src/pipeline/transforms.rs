//! Changes of the model that keep its function, as a run makes them: whole tensors before a block is looked at, scales of
//! channels once it is known what goes into it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::PipelineError;
use super::calibrated::SeenStats;
use super::plan::{Plan, PlannedAction, PlannedTensor};
use crate::checkpoint::Checkpoint;
use crate::layer::{Layer, Needs};
use crate::quantize::{CodeType, awq_scales, smooth_scales};
use crate::recipe::Transform;
use crate::transform::{Fold, Rotation, TransformError, folds};
use crate::weight::{Coding, Granularity};

/// Of what gives a scaled input, or is added to it.
const FOLDED: &str = "scaled for the next layers";

/// The transforms of a recipe, for one checkpoint.
#[derive(Debug, Default)]
pub(super) struct Transforms {
    asked: Vec<Transform>,
    pub(super) rotation: Option<Rotation>,
    scalings: Vec<Transform>,
    folds: Vec<Fold>,
}

/// The tensors of a block that are not the checkpoint's any more, and what was done to them.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub(super) values: BTreeMap<String, Vec<f32>>,
    pub(super) words: BTreeMap<String, Vec<String>>,
}

impl Changed {
    pub(super) fn say(&mut self, name: &str, words: String) {
        self.words.entry(name.to_owned()).or_default().push(words);
    }

    /// The values of a tensor, changed or not.
    pub(super) fn get(&self, checkpoint: &Checkpoint, name: &str) -> Result<Vec<f32>, PipelineError> {
        match self.values.get(name) {
            Some(values) => Ok(values.clone()),
            None => Ok(checkpoint.dense(name)?),
        }
    }
}

impl Transforms {
    /// Prepares the transforms; no tensor is read.
    ///
    /// # Errors
    /// When the network does not allow them.
    pub(super) fn new(checkpoint: &Checkpoint, asked: &[Transform]) -> Result<Self, TransformError> {
        let mut transforms = Self { asked: asked.to_vec(), ..Self::default() };
        for transform in asked {
            match transform {
                Transform::Rotate(options) => {
                    transforms.rotation = Some(Rotation::new(checkpoint, *options)?);
                }
                scaling => transforms.scalings.push(*scaling),
            }
        }
        if !transforms.scalings.is_empty() {
            transforms.folds = folds(checkpoint)?;
        }
        Ok(transforms)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rotation.is_none() && self.scalings.is_empty()
    }

    /// What was asked for, in words that depend on nothing else.
    pub(super) fn fingerprint(&self) -> String {
        format!("{:?}", self.asked)
    }

    /// The same of those that are made before anything is known of the layers' inputs.
    pub(super) fn fingerprint_of_rotation(&self) -> String {
        let rotations = self.asked.iter().filter(|transform| matches!(transform, Transform::Rotate(_)));
        format!("{:?}", rotations.collect::<Vec<_>>())
    }

    pub(super) fn needs(&self) -> Needs {
        self.scalings.iter().map(Transform::needs).max().unwrap_or_default()
    }

    /// What the layers of a fold need to show of their input.
    pub(super) fn needs_of(&self, layer: &str) -> Needs {
        let takes = |fold: &Fold| fold.consumers.iter().any(|consumer| consumer == layer);
        if self.folds.iter().any(takes) { self.needs() } else { Needs::Nothing }
    }

    /// What becomes of some tensors before anything is known of the layers' inputs.
    ///
    /// # Errors
    /// When a tensor cannot be read, or is not finite.
    pub(super) fn rotate<'n>(
        &self,
        checkpoint: &Checkpoint,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<Changed, PipelineError> {
        let mut changed = Changed::default();
        let Some(rotation) = &self.rotation else { return Ok(changed) };
        for name in names {
            let read = |name: &str| checkpoint.dense(name).map_err(PipelineError::from);
            if let Some(values) = rotation.tensor(name, read)? {
                changed.values.insert(name.to_owned(), values);
                changed.say(name, "rotation".into());
            }
        }
        Ok(changed)
    }

    /// Scales the channels of a block, and what is known of them with them.
    ///
    /// # Errors
    /// When a tensor cannot be read, or scales cannot be found or used.
    pub(super) fn scale(
        &self,
        plan: &Plan<'_>,
        planned: &BTreeMap<&str, &PlannedTensor<'_>>,
        block: usize,
        changed: &mut Changed,
        stats: &mut SeenStats,
    ) -> Result<(), PipelineError> {
        for transform in &self.scalings {
            for fold in self.folds.iter().filter(|fold| fold.block == Some(block)) {
                let names: Vec<String> =
                    fold.consumers.iter().map(|layer| format!("{layer}.weight")).collect();
                let left_alone = |changed: &mut Changed, why: &str| {
                    for name in &names {
                        changed.say(name, format!("no {transform}: {why}"));
                    }
                };
                if fold.repeats() > 1 {
                    left_alone(changed, "heads share the channels");
                    continue;
                }
                let Some(of_input) = fold.consumers.first().and_then(|layer| stats.get(layer)) else {
                    left_alone(changed, "nothing is known of the input");
                    continue;
                };
                let Some(codes) = common_codes(&names, planned) else {
                    left_alone(changed, "the layers with this input do not all have the same integer codes");
                    continue;
                };
                let mut values = Vec::with_capacity(names.len());
                for name in &names {
                    values.push(changed.get(plan.checkpoint, name)?);
                }
                let layers: Vec<Layer<'_>> = names
                    .iter()
                    .zip(&values)
                    .filter_map(|(name, values)| {
                        let tensor = planned.get(name.as_str())?;
                        let precision = tensor.entry().precision()?;
                        Some(Layer::new(&tensor.entry().shape, values, precision))
                    })
                    .collect();
                let together = names.join("`, `");
                let error = PipelineError::method(plan.source(), &together);
                let (scales, words) = match transform {
                    Transform::ActivationAware(options) => {
                        let (codes, granularity) = codes;
                        let found =
                            awq_scales(&layers, of_input, codes, granularity, *options).map_err(error)?;
                        (found.scales, format!("activation-aware scales, ratio {}", found.ratio))
                    }
                    Transform::Smooth(smoothing) => {
                        let found = smooth_scales(&layers, of_input, *smoothing).map_err(error)?;
                        let alpha = found.alpha.map_or("none".into(), |alpha| alpha.to_string());
                        (found.scales, format!("smoothing, α {alpha}"))
                    }
                    Transform::Rotate(_) => continue,
                };
                if scales.iter().all(|scale| *scale == 1.0) {
                    left_alone(changed, "none is better");
                    continue;
                }
                let inverse: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
                let scaled = Arc::new(of_input.scaled(&inverse));
                for layer in &fold.consumers {
                    stats.insert(layer.clone(), Arc::clone(&scaled));
                }
                for name in fold.tensors() {
                    let mut values = changed.get(plan.checkpoint, name)?;
                    fold.scale(name, &mut values, &scales)?;
                    changed.values.insert(name.to_owned(), values);
                    let takes = names.iter().any(|consumer| consumer == name);
                    changed.say(name, if takes { words.clone() } else { FOLDED.into() });
                }
            }
        }
        Ok(())
    }
}

/// The integer codes that all of some tensors will have.
fn common_codes(
    names: &[String],
    planned: &BTreeMap<&str, &PlannedTensor<'_>>,
) -> Option<(CodeType, Granularity)> {
    let mut codes = names.iter().map(|name| match &planned.get(name.as_str())?.action {
        PlannedAction::Compress(job) => match job.form.coding() {
            Coding::Int { bits, symmetric, granularity, .. } => {
                Some((CodeType::Int { bits, symmetric }, granularity))
            }
            _ => None,
        },
        _ => None,
    });
    let first = codes.next()??;
    codes.all(|other| other == Some(first)).then_some(first)
}
