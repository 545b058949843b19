//! Runs that look at what goes into every layer: block by block, each on what the blocks before it give.

mod block;
mod finish;
mod reconstruct;

use std::ops::ControlFlow;
use std::path::Path;

use sha2::{Digest, Sha256};

pub(super) use self::block::{Planned, SeenStats, observe_groups};
use self::finish::{Finishing, Inputs};
use self::reconstruct::ONLY_DECODERS;
use super::PipelineError;
use super::plan::{Plan, PlannedAction, PlannedTensor};
use super::prepared::{Prepared, TensorReport};
use super::resume::Unfinished;
use super::run::{Progress, Run};
use crate::calibrate::{Samples, Saved, Store, embed, hash_of_inputs, run_block};
use crate::file::hex;
use crate::layer::{Needs, Outcome};
use crate::model::Execution;
use crate::model::blockwise::Blockwise;
use crate::model::overlay::Overlay;
use crate::recipe::InputQuantization;

/// What the layers of a block are given while it is calibrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockInputs {
    /// What the compressed blocks before it give, and within it the compressed layers before theirs: each layer can make up for
    /// the errors of all before it.
    #[default]
    Compressed,
    /// What they got before anything was compressed.
    Dense,
}

/// How a run is calibrated.
#[derive(Debug, Clone, Copy)]
pub struct Calibration<'s> {
    pub(super) samples: Option<&'s Samples>,
    pub(super) inputs: BlockInputs,
    pub(super) strict: bool,
    pub(super) memory: usize,
    pub(super) statistics: Option<&'s Path>,
}

impl<'s> Calibration<'s> {
    /// Bytes of hidden states that are kept in memory unless something else is said.
    pub const MEMORY: usize = 512 << 20;

    /// Calibration on these samples.
    pub fn new(samples: &'s Samples) -> Self {
        Self { samples: Some(samples), ..Self::none() }
    }

    /// No calibration: for recipes with transforms that need none.
    pub(super) fn none() -> Self {
        let inputs = BlockInputs::Compressed;
        Self { samples: None, inputs, strict: false, memory: Self::MEMORY, statistics: None }
    }

    /// Chooses what the layers of a block are given. Statistics are kept of [dense inputs](BlockInputs::Dense) alone.
    #[must_use]
    pub fn inputs(self, inputs: BlockInputs) -> Self {
        let statistics = self.statistics.filter(|_| inputs == BlockInputs::Dense);
        Self { inputs, statistics, ..self }
    }

    /// Makes an error of everything that a report would only mention: a layer where the method lost to the plain alternative, a
    /// Hessian that had to be damped more than asked for, too few samples.
    #[must_use]
    pub fn strict(self, strict: bool) -> Self {
        Self { strict, ..self }
    }

    /// Keeps what goes into the layers in a folder, or takes it from there, so that several recipes can be tried on it.
    ///
    /// Only [dense inputs](BlockInputs::Dense) are the same for every recipe; this chooses them.
    #[must_use]
    pub fn statistics(self, folder: &'s Path) -> Self {
        Self { inputs: BlockInputs::Dense, statistics: Some(folder), ..self }
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
        self.tensors()
            .iter()
            .map(|tensor| self.needs_of(tensor))
            .max()
            .unwrap_or_default()
            .max(self.transforms.needs())
            .max(if self.corrected.is_empty() { Needs::Nothing } else { Needs::Channels })
            .max(if self.reconstruction.is_none() { Needs::Nothing } else { Needs::Channels })
    }

    /// Does what is planned, as [`run`](Self::run), with calibration: every layer is compressed with regard to what goes into
    /// it when the network runs on the samples, block by block.
    ///
    /// Every finished block is kept in a folder `OUTPUT.unfinished` until the output is complete. If a run is interrupted, the
    /// same plan goes on behind the last of them, and gives the same bytes.
    ///
    /// # Errors
    /// As [`run`](Self::run), and when tersor does not run the network, the samples do not fit it, a layer's input is not finite,
    /// blocks are to be [reconstructed](crate::Recipe::reconstruct) that cannot be,
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

    /// A hash of everything that the layers' inputs depend on as long as nothing is compressed.
    pub(super) fn fingerprint_of_inputs(
        &self,
        calibration: Calibration<'_>,
    ) -> Result<Sha256, PipelineError> {
        let rotation = self.transforms.fingerprint_of_rotation();
        Ok(hash_of_inputs(self.checkpoint, calibration.samples, &rotation)?)
    }

    /// A hash of everything that the result depends on.
    fn fingerprint(&self, calibration: Calibration<'_>) -> Result<String, PipelineError> {
        let mut hash = self.fingerprint_of_inputs(calibration)?;
        for tensor in self.tensors() {
            let methods = match &tensor.action {
                PlannedAction::Compress(job) => format!("{job:?}"),
                other => format!("{other:?}"),
            };
            hash.update(format!("{} {methods}\n", tensor.name()));
        }
        let (transforms, scales) = (self.transforms.fingerprint(), &self.input_scales);
        hash.update(format!("{transforms} {:?} {scales:?} {:?}", calibration.inputs, self.corrected));
        if let Some(steps) = self.reconstruction {
            hash.update(format!(" reconstructed in {steps} steps"));
        }
        Ok(hex(hash))
    }

    fn run_blocks(
        &self,
        unfinished: &Unfinished,
        calibration: Calibration<'_>,
        progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Prepared, PipelineError> {
        let mut model = Blockwise::open(self.checkpoint, Overlay::default(), Execution::default())?;
        self.check_seen(&model)?;
        self.check_reconstruction(&model, calibration)?;
        let total = self.tensors().iter().map(|t| t.entry.bytes).sum();
        let mut done = 0;
        let mut next = |tensors: &[&PlannedTensor<'_>]| {
            let tensor = tensors.first().map(|tensor| tensor.name());
            let ended = progress(Progress { tensor, done, total }).is_break();
            done += tensors.iter().map(|tensor| tensor.entry.bytes).sum::<u64>();
            if ended { Err(PipelineError::Stopped) } else { Ok(()) }
        };
        let mut prepared = Prepared::default();
        let (blocks, outside) = self.tensors_of_blocks(&model);
        if !self.transforms.is_empty() {
            next(&outside)?;
            let finished = if let Some(finished) = unfinished.block(blocks.len())? {
                finished
            } else {
                let names = outside.iter().map(|tensor| tensor.name());
                let changed = self.transforms.rotate(self.checkpoint, names)?;
                let mut finishing = Finishing::new(changed);
                self.finish(&outside, &Inputs::default(), &mut finishing)?;
                unfinished.write_block(blocks.len(), &finishing.weights, &finishing.reports)?
            };
            let mut overlay = Overlay::default();
            for (name, weight) in finished.weights()? {
                overlay.insert(&name, weight);
            }
            model = Blockwise::open(self.checkpoint, overlay, Execution::default())?;
            prepared.push(finished);
        }
        let saved = match calibration.statistics {
            Some(folder) => Some(Saved::open(folder, &hex(self.fingerprint_of_inputs(calibration)?))?),
            None => None,
        };
        let all_saved = |saved: &Saved| (0..blocks.len()).all(|block| saved.has(block));
        // nothing has to be run when all that is asked for is there
        let is_known = self.static_inputs().next().is_none() && saved.as_ref().is_some_and(all_saved);
        let of_store = calibration.memory / if self.reconstruction.is_some() { 2 } else { 1 };
        let embedded = || match calibration.samples.filter(|_| !is_known) {
            Some(samples) => embed(&model, samples, Store::new(of_store, unfinished.folder())),
            None => Ok(Store::new(0, unfinished.folder())),
        };
        let mut store = embedded()?;
        // what blocks are to give, when they are reconstructed
        let mut dense = self.reconstruction.map(|_| embedded()).transpose()?;
        for (block, tensors) in blocks.iter().enumerate() {
            next(tensors)?;
            if let Some(dense) = &mut dense {
                self.run_dense(&mut model, &Planned::new(block, tensors), dense)?;
            }
            let finished = if let Some(finished) = unfinished.block(block)? {
                self.check_strict(&finished.reports, calibration)?;
                finished
            } else {
                let planned = Planned::new(block, tensors);
                let mut finishing = match calibration.inputs {
                    BlockInputs::Dense => {
                        self.calibrate_at_once(&mut model, &planned, &mut store, saved.as_ref())?
                    }
                    BlockInputs::Compressed => self.calibrate_in_turn(&mut model, &planned, &mut store)?,
                };
                if let (Some(steps), Some(dense)) = (self.reconstruction, &mut dense) {
                    self.reconstruct(&mut model, &planned, &mut finishing, [&mut store, dense], steps)?;
                }
                let Finishing { weights, reports, .. } = finishing;
                self.check_strict(&reports, calibration)?;
                unfinished.write_block(block, &weights, &reports)?
            };
            if calibration.inputs == BlockInputs::Dense && store.len() > 0 {
                self.run_dense(&mut model, &Planned::new(block, tensors), &mut store)?;
            }
            if calibration.inputs == BlockInputs::Compressed && block + 1 < blocks.len() && store.len() > 0 {
                let weights = finished.weights()?;
                let names: Vec<String> = weights.iter().map(|(name, _)| name.clone()).collect();
                model.replace(block, weights)?;
                run_block(&model, block, &mut store)?;
                model.restore(block, names.iter().map(String::as_str))?;
            }
            prepared.push(finished);
            for tensor in tensors {
                self.checkpoint.release_entry(&tensor.entry);
            }
        }
        Ok(prepared)
    }

    /// The tensors of every block, and all others.
    pub(super) fn tensors_of_blocks(
        &self,
        model: &Blockwise<'_>,
    ) -> (Vec<Vec<&PlannedTensor<'_>>>, Vec<&PlannedTensor<'_>>) {
        let prefixes: Vec<String> =
            (0..model.blocks()).map(|block| common_prefix(&model.block_layers(block))).collect();
        let is_of = |tensor: &PlannedTensor<'_>, prefix: &String| tensor.name().starts_with(prefix.as_str());
        let of_block = |prefix: &String| {
            self.tensors().iter().filter(|tensor| is_of(tensor, prefix)).collect::<Vec<_>>()
        };
        let is_outside = |tensor: &&PlannedTensor<'_>| !prefixes.iter().any(|prefix| is_of(tensor, prefix));
        (prefixes.iter().map(of_block).collect(), self.tensors().iter().filter(is_outside).collect())
    }

    /// Every tensor that is to be compressed with regard to its input must be part of a block.
    pub(super) fn check_seen(&self, model: &Blockwise<'_>) -> Result<(), PipelineError> {
        let seen: Vec<String> =
            (0..model.blocks()).flat_map(|block| model.block_layers(block)).flatten().collect();
        let unseen = self.tensors().iter().find(|tensor| {
            self.needs_of(tensor) > Needs::Nothing && !seen.iter().any(|layer| layer == tensor.entry.module())
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

    /// Blocks that are to be reconstructed must be those of a decoder, see what compressed ones give, and have something to learn.
    fn check_reconstruction(
        &self,
        model: &Blockwise<'_>,
        calibration: Calibration<'_>,
    ) -> Result<(), PipelineError> {
        if self.reconstruction.is_none() {
            return Ok(());
        }
        if !model.is_decoder() {
            return Err(self.reconstruction_error(ONLY_DECODERS));
        }
        if calibration.inputs == BlockInputs::Dense {
            let reason = "blocks are reconstructed from what compressed ones give; leave out dense inputs, which kept statistics are of, \
                          too, or `reconstruct`";
            return Err(self.reconstruction_error(reason));
        }
        let (blocks, _) = self.tensors_of_blocks(model);
        if !blocks.iter().flatten().any(|tensor| Self::is_learned(tensor)) {
            let reason = "nothing can be reconstructed: no layer of a block becomes integers for every weight; quantize some to int2 … int8 \
                          without pruning them, or leave `reconstruct` out";
            return Err(self.reconstruction_error(reason));
        }
        Ok(())
    }

    /// What must be known of the input of a tensor's layer.
    pub(super) fn needs_of(&self, tensor: &PlannedTensor<'_>) -> Needs {
        let PlannedAction::Compress(job) = &tensor.action else { return Needs::Nothing };
        let of_method = job.needs();
        let is_static = matches!(job.inputs, Some(InputQuantization::Static { .. }));
        let unknown = is_static && !self.input_scales.contains_key(tensor.name());
        if unknown { of_method.max(Needs::Channels) } else { of_method }
    }

    /// What did not go as asked is an error of a strict run, also if an earlier one that was not strict did it.
    fn check_strict(
        &self,
        reports: &[TensorReport],
        calibration: Calibration<'_>,
    ) -> Result<(), PipelineError> {
        let words = |report: &TensorReport| Outcome::words_of(&report.outcomes);
        match reports.iter().find(|report| calibration.strict && !words(report).is_empty()) {
            None => Ok(()),
            Some(report) => Err(PipelineError::Strict {
                path: self.source().to_path_buf(),
                tensor: report.name.clone(),
                reasons: words(report),
            }),
        }
    }
}

/// What the names of all of a block's tensors begin with.
fn common_prefix(layers: &[Vec<String>]) -> String {
    let mut names = layers.iter().flatten().map(|name| format!("{name}."));
    let Some(mut prefix) = names.next() else { return String::new() };
    for name in names {
        let same = prefix.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        let until = prefix.as_bytes()[..same].iter().rposition(|byte| *byte == b'.').map_or(0, |dot| dot + 1);
        prefix.truncate(until);
    }
    prefix
}
