//! The compressed network while its scales are learned.

use std::path::Path;

use ndarray::{Array2, s};

use super::Sample;
use super::teacher::Teacher;
use crate::calibrate::Store;
use crate::checkpoint::{Checkpoint, Stored};
use crate::distill::LossGrad;
use crate::model::blockwise::Hidden;
use crate::model::{Decoder, GradientSums, TrainedBlock, TrainedHead};
use crate::pipeline::PipelineError;
use crate::pipeline::calibrated::Calibration;
use crate::quantize::scales::LearnedScales;
use crate::weight::CompressedWeight;

/// A decoder whose scales are learned.
pub(super) struct Student<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) decoder: &'a Decoder,
    head: TrainedHead<'a>,
    /// The linear layers of every block.
    blocks: Vec<Vec<Layer>>,
}

/// A linear layer.
pub(super) struct Layer {
    /// Name of its weight.
    pub(super) weight: String,
    /// `None`: it has none that can be learned.
    pub(super) scales: Option<LearnedScales>,
}

impl<'a> Student<'a> {
    /// A decoder with the scales that its checkpoint has.
    pub(super) fn new(checkpoint: &'a Checkpoint, decoder: &'a Decoder) -> Result<Self, PipelineError> {
        let layer = |name: String| {
            let weight = format!("{name}.weight");
            let scales = match &checkpoint.entry(&weight)?.stored {
                Stored::Compressed(_) => LearnedScales::of(checkpoint.weight(&weight)?),
                Stored::Plain(_) => None,
            };
            Ok(Layer { weight, scales })
        };
        let of_block = |block| decoder.block_layers(block).into_iter().flatten().map(layer).collect();
        let blocks: Result<_, PipelineError> = (0..decoder.blocks()).map(of_block).collect();
        let student = Self { checkpoint, decoder, head: decoder.trained_head(checkpoint)?, blocks: blocks? };
        // rather than after all steps
        student.scales()?;
        Ok(student)
    }

    /// The layers whose scales are learned.
    pub(super) fn learned(&self) -> impl Iterator<Item = (&str, &LearnedScales)> {
        let layers = self.blocks.iter().flatten();
        layers.filter_map(|layer| Some((layer.weight.as_str(), layer.scales.as_ref()?)))
    }

    /// The same, to be changed.
    pub(super) fn learned_mut(&mut self) -> impl Iterator<Item = (&str, &mut LearnedScales)> {
        let layers = self.blocks.iter_mut().flatten();
        layers.filter_map(|layer| Some((layer.weight.as_str(), layer.scales.as_mut()?)))
    }

    /// The weights whose scales are learned, as they are now.
    pub(super) fn weights(&self) -> impl Iterator<Item = &CompressedWeight> {
        self.learned().map(|(_, scales)| scales.weight())
    }

    /// Names of the compressed weights whose scales stay.
    pub(super) fn left_alone(&self) -> Vec<String> {
        let is_learned = |name: &str| self.learned().any(|(learned, _)| learned == name);
        let compressed =
            self.checkpoint.entries().iter().filter(|entry| matches!(entry.stored, Stored::Compressed(_)));
        compressed.map(|entry| entry.name.clone()).filter(|name| !is_learned(name)).collect()
    }

    /// One step for all scales, on some samples; gives the divergence before it, in nats a token. What goes into every block spills
    /// into a file in `folder` past a limit.
    pub(super) fn descend(
        &mut self,
        teacher: &Teacher<'_>,
        samples: &[Sample<'_>],
        step: usize,
        rate: f32,
        folder: &Path,
    ) -> Result<f64, PipelineError> {
        let mut inputs = Store::new(Calibration::MEMORY, folder);
        let mut states = Vec::with_capacity(samples.len());
        for sample in samples {
            states.push(self.decoder.embed(sample.tokens)?);
        }
        for block in 0..self.blocks.len() {
            let trained = self.trained(block)?;
            for states in &mut states {
                let after = with_values(states.dim(), trained.run(slice(states)));
                let lengths = vec![states.nrows()];
                inputs.push(Hidden { states: std::mem::replace(states, after), lengths })?;
            }
        }
        let tokens: usize = samples.iter().map(|sample| sample.tokens.len()).sum();
        let (mut loss, mut slopes) = (0.0, Vec::with_capacity(samples.len()));
        for (sample, states) in samples.iter().zip(states) {
            let wanted = teacher.decoder.states(sample.tokens)?;
            slopes.push(self.head.gradient(states.view(), |first, logits| {
                let rows = first..first + logits.nrows();
                let wanted = teacher.decoder.head(wanted.slice(s![rows, ..]), None)?;
                let LossGrad { value, mut grad, .. } =
                    teacher.compare(wanted.view(), logits, self.checkpoint.path(), *sample, first)?;
                loss += value.total() / tokens as f64;
                grad.mapv_inplace(|slope| slope / tokens as f32);
                Ok::<_, PipelineError>(grad)
            })?);
        }
        for block in (0..self.blocks.len()).rev() {
            let trained = self.trained(block)?;
            let mut sums = GradientSums::default();
            for (sample, slope) in slopes.iter_mut().enumerate() {
                let input = inputs.take(block * samples.len() + sample)?.states;
                let of_output = std::mem::take(slope);
                let gradients = trained.gradients(slice(&input), |_| of_output);
                if block > 0 {
                    *slope = trained.input_gradient(slice(&input), &gradients);
                }
                sums.add(gradients);
            }
            drop(trained);
            let of_layers = self.blocks[block].iter_mut().zip(&sums.layers);
            for (Layer { weight, scales }, gradient) in of_layers {
                if let Some(scales) = scales {
                    scales.descend(gradient, step, rate).map_err(|error| PipelineError::Distill {
                        path: self.checkpoint.path().to_path_buf(),
                        reason: format!(
                            "`{weight}` went astray in step {}: {error}; give a lower rate",
                            step + 1
                        ),
                    })?;
                }
            }
        }
        Ok(loss)
    }

    /// A block with the weights as they are now.
    fn trained(&self, block: usize) -> Result<TrainedBlock<'_>, PipelineError> {
        self.decoder.trained_block(block, |layer| {
            let weight = format!("{layer}.weight");
            let found = self.blocks[block].iter().find(|layer| layer.weight == weight);
            match found.and_then(|layer| layer.scales.as_ref()) {
                Some(scales) => Ok(scales.values()),
                None => Ok(self.checkpoint.dense(&weight)?),
            }
        })
    }
}

fn slice(states: &Array2<f32>) -> &[f32] {
    states.as_slice().unwrap_or_default()
}

fn with_values(dim: (usize, usize), values: Vec<f32>) -> Array2<f32> {
    Array2::from_shape_vec(dim, values).unwrap_or_default()
}
