//! Runs that look at what goes into every layer: block by block, each on what the blocks before it give.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::PipelineError;
use super::plan::{Job, Plan, PlannedAction, PlannedTensor};
use super::prepared::{Prepared, TensorReport};
use super::resume::Unfinished;
use super::run::{Progress, Run};
use super::stream::Failure;
use crate::calibrate::{Group, Samples, Store, embed, observe_block, run_block};
use crate::checkpoint::CheckpointError;
use crate::evaluate::WeightErrors;
use crate::file::{hash_regular, hex};
use crate::layer::{LayerStats, Needs};
use crate::model::Execution;
use crate::model::blockwise::Blockwise;
use crate::model::overlay::Overlay;
use crate::weight::CompressedWeight;

/// What the layers of a block are given while it is calibrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockInputs {
    /// What the compressed blocks before it give, so that it can make up for their errors.
    #[default]
    Compressed,
    /// What the blocks before it gave before they were compressed.
    Dense,
}

/// How a run is calibrated.
#[derive(Debug, Clone, Copy)]
pub struct Calibration<'s> {
    samples: &'s Samples,
    inputs: BlockInputs,
    strict: bool,
    memory: usize,
}

impl<'s> Calibration<'s> {
    /// Bytes of hidden states that are kept in memory unless something else is said.
    pub const MEMORY: usize = 512 << 20;

    /// Calibration on these samples.
    pub fn new(samples: &'s Samples) -> Self {
        Self { samples, inputs: BlockInputs::default(), strict: false, memory: Self::MEMORY }
    }

    /// Chooses what the layers of a block are given.
    #[must_use]
    pub fn inputs(self, inputs: BlockInputs) -> Self {
        Self { inputs, ..self }
    }

    /// Makes an error of everything that a report would only mention: a layer where the method lost to plain rounding, a
    /// Hessian that had to be damped more than asked for, too few samples.
    #[must_use]
    pub fn strict(self, strict: bool) -> Self {
        Self { strict, ..self }
    }

    /// Sets how many bytes of hidden states are kept in memory; those beyond lie in a file beside the output.
    #[must_use]
    pub fn memory(self, memory: usize) -> Self {
        Self { memory, ..self }
    }
}

impl Plan<'_> {
    /// What the recipe needs to know of the layers' inputs. Unless that is nothing, [`run_calibrated`](Self::run_calibrated)
    /// runs it.
    pub fn needs(&self) -> Needs {
        self.tensors().iter().map(needs_of).max().unwrap_or_default()
    }

    /// Does what is planned, as [`run`](Self::run), with calibration: every layer is compressed with regard to what goes into
    /// it when the network runs on the samples, block by block.
    ///
    /// Every finished block is kept in a folder `OUTPUT.unfinished` until the output is complete. If a run is interrupted, the
    /// same plan goes on behind the last of them, and gives the same bytes.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when tersor does not run the network, the samples do not fit it, a layer's input is not finite,
    /// or [`strict`](Calibration::strict) says so. Then the finished blocks stay.
    pub fn run_calibrated(
        &self,
        output: impl AsRef<Path>,
        calibration: Calibration<'_>,
        progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Run, PipelineError> {
        let output = output.as_ref();
        self.check_output(output)?;
        let unfinished = Unfinished::open(output, &self.fingerprint(calibration)?)?;
        match self.run_blocks(&unfinished, calibration, progress) {
            Ok(prepared) => {
                let run = self.write(output, &prepared, progress)?;
                drop(prepared);
                unfinished.remove();
                Ok(run)
            }
            Err(error) => {
                unfinished.remove_if_empty();
                Err(error)
            }
        }
    }

    /// A hash of everything that the result depends on.
    fn fingerprint(&self, calibration: Calibration<'_>) -> Result<String, PipelineError> {
        let mut hash = Sha256::new();
        for path in self.checkpoint.files() {
            let (_, of_file) = hash_regular(path).map_err(CheckpointError::io(path, "open"))?;
            hash.update(of_file);
        }
        if let Some(config) = self.checkpoint.config() {
            hash.update(config.to_string());
        }
        for tensor in self.tensors() {
            let methods = match &tensor.action {
                PlannedAction::Compress(job) => format!("{job:?}"),
                other => format!("{other:?}"),
            };
            hash.update(format!("{} {methods}\n", tensor.name()));
        }
        hash.update(format!("{} {:?}", calibration.samples.fingerprint(), calibration.inputs));
        Ok(hex(hash))
    }

    fn run_blocks(
        &self,
        unfinished: &Unfinished,
        calibration: Calibration<'_>,
        progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Prepared, PipelineError> {
        let planned: BTreeMap<&str, &PlannedTensor<'_>> =
            self.tensors().iter().map(|t| (t.name(), t)).collect();
        let mut model = Blockwise::open(self.checkpoint, Overlay::default(), Execution::default())?;
        self.check_seen(&model)?;
        let store = Store::new(calibration.memory, unfinished.folder());
        let mut store = embed(&model, calibration.samples, store)?;
        let mut prepared = Prepared::default();
        let total = self.tensors().iter().map(|t| t.entry.bytes).sum();
        let mut done = 0;
        for block in 0..model.blocks() {
            let groups = model.block_layers(block);
            let tensors: Vec<&PlannedTensor<'_>> = groups
                .iter()
                .flatten()
                .filter_map(|layer| planned.get(format!("{layer}.weight").as_str()).copied())
                .collect();
            let what = tensors.first().map(|tensor| tensor.name());
            if progress(Progress { tensor: what, done, total }).is_break() {
                return Err(PipelineError::Stopped);
            }
            let dense = calibration.inputs == BlockInputs::Dense;
            let finished = match unfinished.block(block)? {
                Some(finished) => {
                    if dense {
                        run_block(&model, block, &mut store)?;
                    }
                    finished
                }
                None => {
                    let stats = self.observe(&model, block, groups, &planned, &mut store)?;
                    if dense {
                        run_block(&model, block, &mut store)?;
                    }
                    let (weights, reports) = self.compress_block_of(&model, &tensors, &stats, calibration)?;
                    unfinished.write_block(block, &weights, &reports)?
                }
            };
            if !dense && block + 1 < model.blocks() {
                let weights = finished.weights()?;
                let names: Vec<String> = weights.iter().map(|(name, _)| name.clone()).collect();
                model.replace(block, weights)?;
                run_block(&model, block, &mut store)?;
                model.restore(block, names.iter().map(String::as_str))?;
            }
            prepared.push(finished);
            for tensor in tensors {
                done += tensor.entry.bytes;
                self.checkpoint.release_entry(&tensor.entry);
            }
        }
        Ok(prepared)
    }

    /// Every tensor that is to be compressed with regard to its input must be part of a block.
    fn check_seen(&self, model: &Blockwise<'_>) -> Result<(), PipelineError> {
        let seen: Vec<String> =
            (0..model.blocks()).flat_map(|block| model.block_layers(block)).flatten().collect();
        let unseen = self.tensors().iter().find(|tensor| {
            needs_of(tensor) > Needs::Nothing && !seen.iter().any(|layer| layer == tensor.entry.module())
        });
        match unseen {
            None => Ok(()),
            Some(tensor) => Err(PipelineError::NotSeen {
                path: self.source().to_path_buf(),
                tensor: tensor.name().to_owned(),
                method: tensor.methods().join(" + "),
            }),
        }
    }

    /// What goes into the layers of a block, by layer.
    fn observe(
        &self,
        model: &Blockwise<'_>,
        block: usize,
        groups: Vec<Vec<String>>,
        planned: &BTreeMap<&str, &PlannedTensor<'_>>,
        store: &mut Store,
    ) -> Result<BTreeMap<String, LayerStats>, PipelineError> {
        let needs = |layers: &[String]| {
            let of = |layer: &String| {
                planned.get(format!("{layer}.weight").as_str()).map(|tensor| needs_of(tensor))
            };
            layers.iter().filter_map(of).max().unwrap_or_default()
        };
        let mut groups: Vec<Group> =
            groups.into_iter().map(|layers| Group { needs: needs(&layers), layers, stats: None }).collect();
        if groups.iter().any(|group| group.needs > Needs::Nothing) {
            observe_block(model, block, &mut groups, store)?;
        }
        let mut stats = BTreeMap::new();
        for Group { layers, stats: of_group, .. } in groups {
            let Some(of_group) = of_group else { continue };
            if let Some((last, others)) = layers.split_last() {
                stats.extend(others.iter().map(|layer| (layer.clone(), of_group.clone())));
                stats.insert(last.clone(), of_group);
            }
        }
        Ok(stats)
    }

    fn compress_block_of(
        &self,
        model: &Blockwise<'_>,
        tensors: &[&PlannedTensor<'_>],
        stats: &BTreeMap<String, LayerStats>,
        calibration: Calibration<'_>,
    ) -> Result<(Vec<(String, CompressedWeight)>, Vec<TensorReport>), PipelineError> {
        let (mut weights, mut reports) = (Vec::new(), Vec::new());
        for tensor in tensors {
            let PlannedAction::Compress(job) = &tensor.action else { continue };
            let values = model.overlay().dense(self.checkpoint, tensor.name())?;
            let (weight, report) =
                self.compress_observed(tensor, job, &values, stats.get(tensor.entry.module()), calibration)?;
            weights.push((tensor.name().to_owned(), weight));
            reports.push(report);
        }
        Ok((weights, reports))
    }

    fn compress_observed(
        &self,
        tensor: &PlannedTensor<'_>,
        job: &Job<'_>,
        values: &[f32],
        stats: Option<&LayerStats>,
        calibration: Calibration<'_>,
    ) -> Result<(CompressedWeight, TensorReport), PipelineError> {
        let error = || PipelineError::method(self.source(), tensor.name());
        let compressed =
            self.compress(tensor, job, &tensor.entry.shape, values, stats).map_err(|e| match e {
                Failure::Run(error) => error,
                Failure::Method(e) => error()(e),
            })?;
        if let (true, Some(outcome)) = (calibration.strict, &compressed.outcome) {
            let mut reasons = outcome.notes.clone();
            if outcome.kept_rounding {
                reasons.push("the method lost to plain rounding".into());
            }
            if !reasons.is_empty() {
                let (path, tensor) = (self.source().to_path_buf(), tensor.name().to_owned());
                return Err(PipelineError::Strict { path, tensor, reasons: reasons.join("; ") });
            }
        }
        let decoded = compressed.weight.dequantize();
        let errors = WeightErrors::between(values, decoded.as_slice().unwrap_or_default());
        let report = TensorReport {
            name: tensor.name().to_owned(),
            clamped: compressed.clamped,
            errors: Some(errors),
            outcome: compressed.outcome,
        };
        Ok((compressed.weight, report))
    }
}

fn needs_of(tensor: &PlannedTensor<'_>) -> Needs {
    match &tensor.action {
        PlannedAction::Compress(Job { quantize: Some(method), .. }) => method.needs(),
        _ => Needs::Nothing,
    }
}
