//! Blocks as wholes: the codes and scales of all layers of a block, learned together.

use std::num::NonZeroUsize;
use std::path::Path;

use super::block::Planned;
use super::finish::Finishing;
use crate::calibrate::{Store, spread};
use crate::evaluate::WeightErrors;
use crate::kernels::learn::cosine;
use crate::kernels::reduce::first_non_finite;
use crate::layer::{Alternative, MethodError, Outcome};
use crate::model::blockwise::{Blockwise, Hidden};
use crate::model::{GradientSums, TrainedBlock};
use crate::pipeline::PipelineError;
use crate::pipeline::plan::{MaskPlan, Plan, PlannedAction, PlannedTensor};
use crate::quantize::learned::{LearnedCodes, Rates};

/// Samples of one step.
const BATCH: usize = 2;

/// Samples whose error is measured, at most.
const MEASURED: usize = 32;

/// How far the first step goes; later ones go less far, along a cosine.
const RATES: Rates = Rates { places: 1.5e-3, ends: 1e-2 };

/// The least sum of squares that an error is held against.
const TINY: f64 = 1e-30;

/// A layer of a block that is learned.
struct Learner {
    /// Number of the layer.
    layer: usize,
    /// Number among the finished tensors.
    finished: usize,
    /// What it was before it was compressed.
    values: Vec<f32>,
    codes: LearnedCodes,
}

impl Plan<'_> {
    /// Whether the codes of a tensor can be learned: all of them are stored, and none was pruned.
    pub(in crate::pipeline) fn is_learned(tensor: &PlannedTensor<'_>) -> bool {
        let PlannedAction::Compress(job) = &tensor.action else { return false };
        matches!(job.mask, MaskPlan::KeepAll) && LearnedCodes::is_learned(&job.form)
    }

    /// Learns the codes and scales of all layers of a finished block together, so that it gives what it gave before anything was
    /// compressed. What is no nearer to that, when the block is run as it is stored, is forgotten.
    ///
    /// `hidden` is what goes into the block, `targets` what it is to give; both stay.
    pub(super) fn reconstruct(
        &self,
        model: &mut Blockwise<'_>,
        planned: &Planned<'_>,
        finishing: &mut Finishing,
        [hidden, targets]: [&mut Store; 2],
        steps: NonZeroUsize,
    ) -> Result<(), PipelineError> {
        let block = planned.block;
        let mut samples = Pairs { hidden, targets, path: self.source(), block };
        let names: Vec<String> = finishing.weights.iter().map(|(name, _)| name.clone()).collect();
        model.replace(block, finishing.weights.iter().cloned())?;
        let learners = self.learn(model, planned, finishing, &mut samples, steps)?;
        if !learners.is_empty() {
            let before = error_of(model, &mut samples)?;
            let learned: Result<Vec<_>, MethodError> =
                learners.iter().map(|learner| learner.codes.weight()).collect();
            let (after, learned, notes) = match learned {
                Ok(learned) => {
                    let of_layers = learners.iter().zip(&learned);
                    let named = of_layers.map(|(of, weight)| (names[of.finished].clone(), weight.clone()));
                    model.replace(block, named.collect::<Vec<_>>())?;
                    (error_of(model, &mut samples)?.relative, learned, Vec::new())
                }
                Err(error) => (f64::INFINITY, Vec::new(), vec![format!("learning went astray: {error}")]),
            };
            // an error that is no number is no better
            let is_better = after < before.relative;
            let outcome = Outcome {
                plain: Alternative::LayerByLayer,
                plain_error: before.relative,
                method_error: after,
                kept_plain: !is_better,
                damping: 0.0,
                dead_channels: 0,
                tokens: before.tokens,
                notes,
            };
            for learner in &learners {
                finishing.reports[learner.finished].outcomes.push(outcome.clone());
            }
            for (learner, weight) in learners.iter().zip(learned).filter(|_| is_better) {
                let decoded = weight.dequantize();
                let report = &mut finishing.reports[learner.finished];
                let decoded = decoded.as_slice().unwrap_or_default();
                report.errors = Some(WeightErrors::between(&learner.values, decoded));
                report.afterwards.push(format!("block reconstructed in {steps} steps"));
                // which is more than rounding: values may be further from the source's than their neighbours
                report.changed = true;
                finishing.weights[learner.finished].1 = weight;
            }
        }
        Ok(model.restore(block, names.iter().map(String::as_str))?)
    }

    /// What the layers of a block have learned after so many steps.
    fn learn(
        &self,
        model: &Blockwise<'_>,
        planned: &Planned<'_>,
        finishing: &mut Finishing,
        samples: &mut Pairs<'_>,
        steps: NonZeroUsize,
    ) -> Result<Vec<Learner>, PipelineError> {
        let trained = model.trained_block(planned.block)?;
        let mut trained = trained.ok_or_else(|| self.reconstruction_error(ONLY_DECODERS))?;
        let mut learners = self.learners(planned, finishing, &trained)?;
        if learners.is_empty() {
            return Ok(learners);
        }
        for Learner { layer, codes, .. } in &learners {
            trained.set(*layer, &codes.values());
        }
        for step in 0..steps.get() {
            let left = cosine(step, steps.get());
            let rates = Rates { places: RATES.places * left, ends: RATES.ends * left };
            descend(&mut trained, &mut learners, samples, step, rates)?;
        }
        Ok(learners)
    }

    fn learners(
        &self,
        planned: &Planned<'_>,
        finishing: &mut Finishing,
        trained: &TrainedBlock<'_>,
    ) -> Result<Vec<Learner>, PipelineError> {
        let mut learners = Vec::new();
        for (layer, name) in trained.names().into_iter().enumerate() {
            let tensor = planned.weight_of(name).filter(|tensor| Self::is_learned(tensor));
            let Some(name) = tensor.map(PlannedTensor::name) else { continue };
            // weights and reports stand in the same order
            let finished = finishing.weights.iter().position(|(of, _)| of == name);
            let Some(finished) = finished else { continue };
            let values = match finishing.changed.values.get(name) {
                Some(values) => values.clone(),
                None => self.checkpoint.values(name)?.into_owned(),
            };
            match LearnedCodes::of(&finishing.weights[finished].1, &values) {
                Some(codes) => learners.push(Learner { layer, finished, values, codes }),
                None => finishing.reports[finished].afterwards.push(NOT_LEARNED.into()),
            }
        }
        Ok(learners)
    }

    /// What stands in the way of a reconstruction.
    pub(super) fn reconstruction_error(&self, reason: &str) -> PipelineError {
        PipelineError::Reconstruct { path: self.source().to_path_buf(), reason: reason.to_owned() }
    }
}

pub(super) const ONLY_DECODERS: &str =
    "blocks of decoders alone can be reconstructed; leave `reconstruct` out for this network";

const NOT_LEARNED: &str = "not reconstructed: a scale is 0";

/// What goes into a block, and what it is to give.
struct Pairs<'a> {
    hidden: &'a mut Store,
    targets: &'a mut Store,
    path: &'a Path,
    block: usize,
}

impl Pairs<'_> {
    fn len(&self) -> usize {
        self.hidden.len()
    }

    /// The two of one sample.
    ///
    /// # Errors
    /// When they cannot be read, or one is not finite.
    fn get(&mut self, index: usize) -> Result<[Hidden; 2], PipelineError> {
        let pair = [self.hidden.copy(index)?, self.targets.copy(index)?];
        for (hidden, what) in pair.iter().zip(["gets", "is to give"]) {
            if let Some(found) = first_non_finite(slice(hidden)) {
                let Self { block, path, .. } = self;
                let reason = format!(
                    "block {block} cannot be reconstructed: what it {what} for sample {index} holds {found}; leave this sample out, or \
                     `reconstruct`"
                );
                return Err(PipelineError::Reconstruct { path: path.to_path_buf(), reason });
            }
        }
        Ok(pair)
    }
}

/// How far what a block gives is from what it is to give.
struct BlockError {
    /// The mean over all tokens of the squared error, as a fraction of what it is to give squared.
    relative: f64,
    tokens: u64,
}

/// The error of a block, run as it is stored, on samples that are spread over all of them.
fn error_of(model: &Blockwise<'_>, samples: &mut Pairs<'_>) -> Result<BlockError, PipelineError> {
    let (mut sum, mut tokens) = (0.0, 0);
    let measured = samples.len().min(MEASURED);
    for sample in 0..measured {
        let [mut found, target] = samples.get(sample * samples.len() / measured)?;
        model.run_block(samples.block, &mut found, None)?;
        let width = found.states.ncols().max(1);
        for (found, target) in slice(&found).chunks_exact(width).zip(slice(&target).chunks_exact(width)) {
            let (error, square) = squares(found, target);
            sum += error / square.max(TINY);
            tokens += 1;
        }
    }
    Ok(BlockError { relative: sum / (tokens as f64).max(1.0), tokens })
}

/// One step for all learners.
fn descend(
    trained: &mut TrainedBlock<'_>,
    learners: &mut [Learner],
    samples: &mut Pairs<'_>,
    step: usize,
    rates: Rates,
) -> Result<(), PipelineError> {
    let mut sums = GradientSums::default();
    for number in step * BATCH..(step + 1) * BATCH {
        let [states, target] = samples.get(spread(number, samples.len()))?;
        let width = states.states.ncols().max(1);
        sums.add(trained.gradients(slice(&states), |found| slope(found, slice(&target), width)));
    }
    for Learner { layer, codes, .. } in learners {
        codes.descend(&mut sums.layers[*layer], step, rates);
        trained.set(*layer, &codes.values());
    }
    Ok(())
}

/// The gradient of the mean over all tokens of the relative squared error.
fn slope(found: &[f32], target: &[f32], width: usize) -> Vec<f32> {
    let tokens = (found.len() / width).max(1) as f64;
    let mut slope = Vec::with_capacity(found.len());
    for (found, target) in found.chunks_exact(width).zip(target.chunks_exact(width)) {
        let (_, square) = squares(found, target);
        let scale = (2.0 / (tokens * square.max(TINY))) as f32;
        slope.extend(found.iter().zip(target).map(|(found, target)| (found - target) * scale));
    }
    slope
}

/// The sums of the squared differences, and of the squared targets.
fn squares(found: &[f32], target: &[f32]) -> (f64, f64) {
    found.iter().zip(target).fold((0.0, 0.0), |(error, square), (found, target)| {
        let (found, target) = (f64::from(*found), f64::from(*target));
        (error + (found - target) * (found - target), square + target * target)
    })
}

fn slice(hidden: &Hidden) -> &[f32] {
    hidden.states.as_slice().unwrap_or_default()
}
