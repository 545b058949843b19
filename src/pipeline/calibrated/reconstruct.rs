//! Blocks as wholes: the codes and scales of all layers of a block, learned together.

use std::num::NonZeroUsize;

use super::block::Planned;
use super::finish::Finishing;
use crate::calibrate::Store;
use crate::evaluate::WeightErrors;
use crate::layer::{Alternative, Outcome};
use crate::model::TrainedBlock;
use crate::model::blockwise::{Blockwise, Hidden};
use crate::pipeline::PipelineError;
use crate::pipeline::plan::{MaskPlan, Plan, PlannedAction, PlannedTensor};
use crate::quantize::learned::{LearnedCodes, Rates};

/// Samples of one step.
const BATCH: usize = 2;

/// Samples whose error is measured, at most.
const MEASURED: usize = 32;

/// How far the first step goes; later ones go less far, along a cosine.
const RATES: Rates = Rates { places: 1.5e-3, ends: 1e-2 };

/// What of the first rates is left at least.
const LEAST: f64 = 0.02;

/// A layer of a block that is learned.
struct Learner {
    /// Number of the layer.
    layer: usize,
    tensor: String,
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
    /// compressed. What is no nearer to that is forgotten.
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
        model.replace(block, finishing.weights.iter().cloned())?;
        let mut trained =
            model.trained_block(block)?.ok_or_else(|| self.reconstruction_error(ONLY_DECODERS))?;
        let mut learners = self.learners(planned, finishing, &trained)?;
        let before = error_of(&trained, hidden, targets)?;
        for step in 0..if learners.is_empty() { 0 } else { steps.get() } {
            let left = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps.get() as f64).cos());
            let left = left.max(LEAST) as f32;
            let rates = Rates { places: RATES.places * left, ends: RATES.ends * left };
            descend(&mut trained, &mut learners, [&mut *hidden, &mut *targets], step, rates)?;
        }
        let after = error_of(&trained, hidden, targets)?;
        let names: Vec<String> = finishing.weights.iter().map(|(name, _)| name.clone()).collect();
        for Learner { tensor, values, codes, .. } in &learners {
            let error = PipelineError::method(self.source(), tensor);
            let learned = codes.weight().map_err(error)?;
            let is_of = |name: &str| name == tensor;
            let weight = finishing.weights.iter_mut().find(|(name, _)| is_of(name));
            let report = finishing.reports.iter_mut().find(|report| is_of(&report.name));
            let (Some((_, weight)), Some(report)) = (weight, report) else { continue };
            // an error that is no number is no better
            let is_better = after.relative < before.relative;
            if is_better {
                let decoded = learned.dequantize();
                report.errors = Some(WeightErrors::between(values, decoded.as_slice().unwrap_or_default()));
                *weight = learned;
                // which is more than rounding: values may be further from the source's than their neighbours
                report.transforms.push(format!("block reconstructed in {steps} steps"));
                report.changed = true;
            }
            report.outcomes.push(Outcome {
                plain: Alternative::LayerByLayer,
                plain_error: before.relative,
                method_error: after.relative,
                kept_plain: !is_better,
                damping: 0.0,
                dead_channels: 0,
                tokens: before.tokens,
                notes: Vec::new(),
            });
        }
        Ok(model.restore(block, names.iter().map(String::as_str))?)
    }

    fn learners(
        &self,
        planned: &Planned<'_>,
        finishing: &Finishing,
        trained: &TrainedBlock<'_>,
    ) -> Result<Vec<Learner>, PipelineError> {
        let mut learners = Vec::new();
        for (layer, name) in trained.names().into_iter().enumerate() {
            let tensor = planned.weight_of(name).filter(|tensor| Self::is_learned(tensor));
            let Some(name) = tensor.map(PlannedTensor::name) else { continue };
            let Some((_, weight)) = finishing.weights.iter().find(|(of, _)| of == name) else { continue };
            let values = match finishing.changed.values.get(name) {
                Some(values) => values.clone(),
                None => self.checkpoint.values(name)?.into_owned(),
            };
            let Some(codes) = LearnedCodes::of(weight, &values) else { continue };
            learners.push(Learner { layer, tensor: name.to_owned(), values, codes });
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

/// How far what a block gives is from what it is to give.
struct BlockError {
    /// The mean over all tokens of the squared error, as a fraction of what it is to give squared.
    relative: f64,
    tokens: u64,
}

/// The error of a block on samples that are spread over all of them.
fn error_of(
    trained: &TrainedBlock<'_>,
    hidden: &mut Store,
    targets: &mut Store,
) -> Result<BlockError, PipelineError> {
    let (mut sum, mut tokens) = (0.0, 0);
    let measured = hidden.len().min(MEASURED);
    for sample in 0..measured {
        let index = sample * hidden.len() / measured;
        let [states, target] = [copy_of(hidden, index)?, copy_of(targets, index)?];
        let width = states.states.ncols();
        let found = trained.run(slice(&states));
        for (found, target) in found.chunks_exact(width.max(1)).zip(slice(&target).chunks_exact(width.max(1)))
        {
            let (error, square) = squares(found, target);
            sum += if square > 0.0 { error / square } else { 0.0 };
            tokens += 1;
        }
    }
    Ok(BlockError { relative: sum / (tokens as f64).max(1.0), tokens })
}

/// One step for all learners.
fn descend(
    trained: &mut TrainedBlock<'_>,
    learners: &mut [Learner],
    [hidden, targets]: [&mut Store; 2],
    step: usize,
    rates: Rates,
) -> Result<(), PipelineError> {
    let mut sums: Option<[Vec<f32>; TrainedBlock::LAYERS]> = None;
    for number in step * BATCH..(step + 1) * BATCH {
        let index = spread(number, hidden.len());
        let [states, target] = [copy_of(hidden, index)?, copy_of(targets, index)?];
        let width = states.states.ncols();
        let gradients = trained.gradients(slice(&states), |found| slope(found, slice(&target), width));
        match &mut sums {
            None => sums = Some(gradients),
            Some(sums) => {
                let of_layers = sums.iter_mut().zip(&gradients);
                of_layers.for_each(|(sum, gradient)| crate::kernels::activate::add(sum, gradient));
            }
        }
    }
    let Some(mut sums) = sums else { return Ok(()) };
    for Learner { layer, codes, .. } in learners {
        codes.descend(&mut sums[*layer], step, rates);
        trained.set(*layer, &codes.values());
    }
    Ok(())
}

/// The gradient of the mean over all tokens of the relative squared error.
fn slope(found: &[f32], target: &[f32], width: usize) -> Vec<f32> {
    let tokens = (found.len() / width.max(1)).max(1) as f64;
    let mut slope = Vec::with_capacity(found.len());
    for (found, target) in found.chunks_exact(width.max(1)).zip(target.chunks_exact(width.max(1))) {
        let (_, square) = squares(found, target);
        let scale = if square > 0.0 { 2.0 / (tokens * square) } else { 0.0 } as f32;
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

/// The samples in an order in which neighbours, which come from one text, are far apart: steps of the golden section.
fn spread(number: usize, samples: usize) -> usize {
    let (round, at) = (number / samples.max(1), number % samples.max(1));
    let mut stride = ((samples as f64 * 0.618_033_988_75) as usize).max(1);
    while gcd(stride, samples) > 1 {
        stride += 1;
    }
    (at * stride + round) % samples.max(1)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn copy_of(store: &mut Store, index: usize) -> Result<Hidden, PipelineError> {
    let hidden = store.take(index)?;
    let copy = hidden.clone();
    store.put(index, hidden)?;
    Ok(copy)
}

fn slice(hidden: &Hidden) -> &[f32] {
    hidden.states.as_slice().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_takes_every_sample_once_and_neighbours_are_far_apart() {
        for samples in [1, 2, 3, 12, 128] {
            for round in 0..3 {
                let mut taken: Vec<usize> =
                    (round * samples..(round + 1) * samples).map(|number| spread(number, samples)).collect();
                if samples > 12 {
                    assert!(taken.windows(2).all(|two| two[0].abs_diff(two[1]) > samples / 4));
                }
                taken.sort_unstable();
                assert!(taken.into_iter().eq(0..samples));
            }
        }
    }
}
