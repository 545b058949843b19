//! How much memory a run takes.

use super::PipelineError;
use super::calibrated::{BlockInputs, Calibration};
use super::plan::{Plan, PlannedTensor};
use super::prepared::Prepared;
use super::stream::{self, Stage};
use crate::calibrate::{BATCH_INPUTS, BATCH_TOKENS, Samples};
use crate::layer::{LayerStats, Needs};
use crate::model::Execution;
use crate::model::blockwise::Blockwise;
use crate::model::overlay::Overlay;
use crate::quantize::learned::LearnedCodes;
use crate::weight::Form;

/// Tokens of a sample when it is not known what the run is calibrated with.
const USUAL_TOKENS: usize = 2048;

/// Bytes of a value while it is worked on.
const FLOAT: u64 = size_of::<f32>() as u64;

impl Plan<'_> {
    /// Most bytes that the run holds at a time: a block for every thread of the current pool, or the largest tensor that
    /// must be seen as a whole, and what they become. Tensors that are copied take none.
    pub fn peak_memory(&self) -> u64 {
        let threads = rayon::current_num_threads();
        let of_stage = |stage: Stage<'_>| match stage {
            Stage::Whole(tensor, _) => stream::working_bytes(tensor, tensor.form().map_or(0, Form::rows)),
            Stage::Blocks(blocks) => {
                let mut bytes: Vec<u64> = blocks
                    .iter()
                    .map(|block| stream::working_bytes(block.tensor, block.rows.len()))
                    .collect();
                bytes.sort_unstable_by(|a, b| b.cmp(a));
                bytes.iter().take(threads).sum()
            }
        };
        let none = Prepared::default();
        let stages = (0..self.files.len()).flat_map(|file| self.stages(file, &none));
        // a tensor, its symbols and what they become
        let of_coding = |tensor: &PlannedTensor<'_>| 3 * tensor.bytes() + values(tensor);
        let coding = self.tensors().iter().filter(|_| self.entropy).map(of_coding).max();
        stages.map(of_stage).max().unwrap_or(0).max(coding.unwrap_or(0))
    }

    /// Most bytes that a [calibrated run](Self::run_calibrated) holds at a time beside the mapped source: the hidden states of
    /// the samples, and of one block the weights, what is seen of their inputs, and what compressing the largest takes.
    ///
    /// `None`: with as many hidden states as [`Calibration::MEMORY`] says, in samples of 2,048 tokens; or what an ordinary
    /// [`run`](Self::run) holds, if that is enough for the recipe.
    ///
    /// # Errors
    /// When tersor does not run the network.
    pub fn calibrated_memory(&self, calibration: Option<Calibration<'_>>) -> Result<u64, PipelineError> {
        if calibration.is_none() && self.needs() == Needs::Nothing && self.transforms.is_empty() {
            return Ok(self.peak_memory());
        }
        let model = Blockwise::open(self.checkpoint, Overlay::default(), Execution::default())?;
        let calibration = calibration.unwrap_or(Calibration::none());
        let width = model.states_width() as u64 * FLOAT;
        let states = calibration.samples.map_or(u64::MAX / 2, |samples| samples.token_count() as u64 * width);
        // what goes into blocks that are reconstructed, and what they are to give
        let stores = if self.reconstruction.is_some() { 2 } else { 1 };
        let states = (stores * states).min(calibration.memory as u64);
        let tokens = tokens_at_once(calibration.samples) as u64;
        let (blocks, outside) = self.tensors_of_blocks(&model);

        // what is kept of changed tensors outside the blocks, and what changing the largest takes
        let rotated: Vec<u64> =
            if self.transforms.is_empty() { Vec::new() } else { outside.iter().map(|t| values(t)).collect() };
        let kept = 2 * FLOAT * rotated.iter().sum::<u64>();
        let network =
            if model.is_mapped() { 0 } else { FLOAT * self.tensors().iter().map(values).sum::<u64>() };

        let of_block = |(block, tensors): (usize, &Vec<&PlannedTensor<'_>>)| {
            let all: u64 = tensors.iter().map(|t| values(t)).sum();
            let changed = if self.transforms.is_empty() { 0 } else { FLOAT * all };
            let groups = model.block_layers(block);
            let of_groups = groups.iter().map(|layers| self.stats_bytes(tensors, layers, calibration));
            // scales of channels are found for all layers, whatever they see later
            let in_turn = calibration.inputs == BlockInputs::Compressed;
            let one_by_one = in_turn && self.transforms.needs() == Needs::Nothing;
            let seen: u64 = if one_by_one { of_groups.max().unwrap_or(0) } else { of_groups.sum() };
            // what goes into the layers and comes out of them, and the hidden states before and after
            let rows_and_cols =
                |t: &&PlannedTensor<'_>| (t.entry.shape.first().copied().unwrap_or(0) + columns(t)) as u64;
            let working = tokens * (4 * width + FLOAT * tensors.iter().map(rows_and_cols).sum::<u64>());
            let compressing = tensors.iter().map(|t| {
                let rows = t.form().map_or(0, Form::rows);
                // the values, and what is decoded again to be compared
                stream::working_bytes(t, rows) + 2 * FLOAT * values(t)
            });
            let compressed: u64 = tensors.iter().filter_map(|t| Some(t.form()?.bytes().total())).sum();
            // a block is run on what it was changed to: as it is in the overlay, and arranged for products; so are the layers
            // that are finished when later ones are observed
            let finished = if in_turn { 5 * compressed } else { 0 };
            let observing = seen + working + 3 * changed + finished;
            let finishing = seen + changed + compressing.max().unwrap_or(0) + (2 * compressed).max(finished);
            let running = working + 4 * compressed;
            let learning = match self.reconstruction {
                Some(_) => changed + finished + FLOAT * learning_floats(all, tokens, working / FLOAT),
                None => 0,
            };
            observing.max(finishing).max(running).max(learning)
        };
        let of_blocks = blocks.iter().enumerate().map(of_block).max().unwrap_or(0);
        let of_outside = 4 * FLOAT * rotated.iter().copied().max().unwrap_or(0);
        Ok((network + states + kept + of_blocks.max(of_outside)).max(self.peak_memory()))
    }

    /// What is known of the input of some layers of a block.
    fn stats_bytes(
        &self,
        tensors: &[&PlannedTensor<'_>],
        layers: &[String],
        calibration: Calibration<'_>,
    ) -> u64 {
        let of_layers = || tensors.iter().filter(|t| layers.iter().any(|layer| layer == t.entry.module()));
        let of_bias = if self.corrected.is_empty() { Needs::Nothing } else { Needs::Channels };
        let needs = layers.iter().map(|layer| self.transforms.needs_of(layer).max(of_bias));
        let needs = of_layers().map(|t| self.needs_of(t)).chain(needs).max().unwrap_or_default();
        // a folder of statistics is for whatever the next recipe needs
        let needs = if calibration.statistics.is_some() { Needs::Hessian } else { needs };
        let size = of_layers().map(|t| columns(t)).max().unwrap_or(0);
        LayerStats::bytes(size, needs)
    }
}

/// Floats that learning a block of so many weights takes, through which so many tokens go at a time, which leave `working` ones.
fn learning_floats(weights: u64, tokens: u64, working: u64) -> u64 {
    // what weights were, and are now; for both directions of products; two samples' gradients; and as much as one for scales
    let of_weights = (LearnedCodes::BYTES as u64 / FLOAT + 7) * weights;
    // the forward pass keeps what the backward pass makes as much of again; attention's weights and slopes
    let of_tokens = 4 * working + 2 * tokens * tokens * rayon::current_num_threads() as u64;
    of_weights + of_tokens
}

/// Number of values of a tensor.
fn values(tensor: &PlannedTensor<'_>) -> u64 {
    tensor.entry.shape.iter().map(|n| *n as u64).product()
}

/// Columns of the matrix that a tensor is.
fn columns(tensor: &PlannedTensor<'_>) -> usize {
    tensor.entry.shape.iter().skip(1).product()
}

/// Tokens, or inputs, that go through a block together.
fn tokens_at_once(samples: Option<&Samples>) -> usize {
    samples.map_or(USUAL_TOKENS, Samples::longest).max(BATCH_TOKENS).max(BATCH_INPUTS)
}
