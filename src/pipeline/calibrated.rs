//! Runs that look at what goes into every layer: block by block, each on what the blocks before it give.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::PipelineError;
use super::plan::{Job, Plan, PlannedAction, PlannedTensor};
use super::prepared::{Prepared, TensorReport};
use super::resume::Unfinished;
use super::run::{Progress, Run, Seen};
use super::stream::Failure;
use super::transforms::Changed;
use crate::calibrate::{Group, Samples, Saved, Store, embed, hash_of_inputs, observe_block, run_block};
use crate::checkpoint::{CheckpointError, Stored};
use crate::dtype::Precision;
use crate::evaluate::WeightErrors;
use crate::file::hex;
use crate::layer::{Layer, LayerStats, Method, Needs, Outcome};
use crate::model::Execution;
use crate::model::blockwise::Blockwise;
use crate::model::overlay::Overlay;
use crate::quantize::{ActivationObserver, FloatCast, bias_correction};
use crate::recipe::InputQuantization;
use crate::weight::{CompressedWeight, InputScales};

const BIAS_CORRECTED: &str = "bias corrected";

/// The tensors of a block, by name.
type Planned<'p> = BTreeMap<&'p str, &'p PlannedTensor<'p>>;

/// What went into the layers of a block, by layer; those with the same input share it.
pub(super) type SeenStats = BTreeMap<String, Arc<LayerStats>>;

/// Tensors in the form that they will have in the output, and what became of them.
type Finishing = (Vec<(String, CompressedWeight)>, Vec<TensorReport>);

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
                let (weights, reports) =
                    self.finish(&outside, changed, (&SeenStats::new(), &BTreeMap::new()))?;
                unfinished.write_block(blocks.len(), &weights, &reports)?
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
        let mut store = match calibration.samples {
            // nothing has to be run
            Some(_) if self.static_inputs().next().is_none() && saved.as_ref().is_some_and(all_saved) => {
                Store::new(0, unfinished.folder())
            }
            Some(samples) => {
                let store = Store::new(calibration.memory, unfinished.folder());
                embed(&model, samples, store)?
            }
            None => Store::new(0, unfinished.folder()),
        };
        for (block, tensors) in blocks.iter().enumerate() {
            next(tensors)?;
            let finished = if let Some(finished) = unfinished.block(block)? {
                self.check_strict(&finished.reports, calibration)?;
                finished
            } else {
                let (weights, reports) =
                    self.calibrate_block(&mut model, block, tensors, &mut store, saved.as_ref())?;
                self.check_strict(&reports, calibration)?;
                unfinished.write_block(block, &weights, &reports)?
            };
            if calibration.inputs == BlockInputs::Dense && store.len() > 0 {
                self.run_dense(&mut model, block, tensors, &mut store)?;
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

    /// Replaces the hidden states by what a block gives before it is compressed: as it was rotated, and nothing else, so that a
    /// run that goes on from here has the same bits.
    pub(super) fn run_dense(
        &self,
        model: &mut Blockwise<'_>,
        block: usize,
        tensors: &[&PlannedTensor<'_>],
        store: &mut Store,
    ) -> Result<(), PipelineError> {
        let planned: Planned<'_> = tensors.iter().map(|t| (t.name(), *t)).collect();
        let rotated = self.transforms.rotate(self.checkpoint, tensors.iter().map(|t| t.name()))?;
        self.replace_changed(model, block, &planned, &rotated)?;
        run_block(model, block, store)?;
        Ok(model.restore(block, rotated.values.keys().map(String::as_str))?)
    }

    /// Compresses the tensors of a block; the hidden states stay.
    fn calibrate_block(
        &self,
        model: &mut Blockwise<'_>,
        block: usize,
        tensors: &[&PlannedTensor<'_>],
        store: &mut Store,
        saved: Option<&Saved>,
    ) -> Result<Finishing, PipelineError> {
        let planned: Planned<'_> = tensors.iter().map(|t| (t.name(), *t)).collect();
        let mut changed = self.transforms.rotate(self.checkpoint, tensors.iter().map(|t| t.name()))?;
        self.replace_changed(model, block, &planned, &changed)?;
        let mut stats = self.observe(model, block, &planned, store, saved)?;
        self.transforms.scale(self, &planned, block, &mut changed, &mut stats)?;
        self.replace_changed(model, block, &planned, &changed)?;
        let inputs = self.observe_ranges(model, block, &planned, store)?;
        model.restore(block, changed.values.keys().map(String::as_str))?;
        self.finish(tensors, changed, (&stats, &inputs))
    }

    /// Lets a block compute with what the transforms made of its tensors.
    fn replace_changed(
        &self,
        model: &mut Blockwise<'_>,
        block: usize,
        planned: &Planned<'_>,
        changed: &Changed,
    ) -> Result<(), PipelineError> {
        if !changed.values.is_empty() {
            let weight = |(name, values): (&String, &Vec<f32>)| {
                let shape = &planned.get(name.as_str()).map_or(&[][..], |tensor| &tensor.entry.shape);
                let weight = CompressedWeight::from_f32(shape, Precision::F32, values);
                Ok((name.clone(), weight.map_err(PipelineError::weight(self.source(), name))?))
            };
            model.replace(
                block,
                changed.values.iter().map(weight).collect::<Result<Vec<_>, PipelineError>>()?,
            )?;
        }
        Ok(())
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

    /// What must be known of the input of a tensor's layer.
    pub(super) fn needs_of(&self, tensor: &PlannedTensor<'_>) -> Needs {
        let PlannedAction::Compress(job) = &tensor.action else { return Needs::Nothing };
        let of_method = job.needs();
        let is_static = matches!(job.inputs, Some(InputQuantization::Static { .. }));
        let unknown = is_static && !self.input_scales.contains_key(tensor.name());
        if unknown { of_method.max(Needs::Channels) } else { of_method }
    }

    /// What static quantization makes of the inputs of a block's layers, by layer.
    fn observe_ranges(
        &self,
        model: &Blockwise<'_>,
        block: usize,
        planned: &Planned<'_>,
        store: &mut Store,
    ) -> Result<BTreeMap<String, InputScales>, PipelineError> {
        // layers with the same input can be asked for in different ways
        let layers = model.block_layers(block).into_iter().flatten();
        let mut asked = Vec::new();
        let mut groups = Vec::new();
        for layer in layers {
            let Some(tensor) = planned.get(format!("{layer}.weight").as_str()) else { continue };
            let PlannedAction::Compress(job) = &tensor.action else { continue };
            let Some(InputQuantization::Static { symmetric, observer }) = job.inputs else { continue };
            let error = PipelineError::method(self.source(), tensor.name());
            let range = Some(ActivationObserver::new(observer).map_err(error)?);
            groups.push(Group { range, ..Group::new(vec![layer]) });
            asked.push((tensor.name(), symmetric, job.precision));
        }
        if !groups.is_empty() {
            observe_block(model, block, &mut groups, store)?;
        }
        let mut inputs = BTreeMap::new();
        for (group, (name, symmetric, precision)) in groups.into_iter().zip(asked) {
            let (Some(range), Some(layer)) = (group.range, group.layers.into_iter().next()) else { continue };
            let scales = range.static_input(symmetric, precision);
            inputs.insert(layer, scales.map_err(PipelineError::method(self.source(), name))?);
        }
        Ok(inputs)
    }

    /// What goes into the layers of a block, by layer.
    fn observe(
        &self,
        model: &Blockwise<'_>,
        block: usize,
        planned: &Planned<'_>,
        store: &mut Store,
        saved: Option<&Saved>,
    ) -> Result<SeenStats, PipelineError> {
        let needs = |layers: &[String]| {
            let of = |layer: &String| {
                let of_method =
                    planned.get(format!("{layer}.weight").as_str()).map(|tensor| self.needs_of(tensor));
                let of_bias = if self.corrected.contains(layer) { Needs::Channels } else { Needs::Nothing };
                of_method.unwrap_or_default().max(of_bias).max(self.transforms.needs_of(layer))
            };
            layers.iter().map(of).max().unwrap_or_default()
        };
        observe_groups(model, block, needs, store, saved)
    }

    /// Gives some tensors the form that they will have in the output: those that are compressed with regard to their input,
    /// and those that changed.
    fn finish(
        &self,
        tensors: &[&PlannedTensor<'_>],
        mut changed: Changed,
        (stats, inputs): (&SeenStats, &BTreeMap<String, InputScales>),
    ) -> Result<Finishing, PipelineError> {
        let (mut weights, mut reports) = (Vec::new(), Vec::new());
        // weights first: biases make up for what became of them
        let is_corrected = |tensor: &&PlannedTensor<'_>| self.corrected.contains(tensor.entry.module());
        let (first, others): (Vec<&PlannedTensor<'_>>, Vec<_>) =
            tensors.iter().copied().partition(is_corrected);
        for tensor in first.into_iter().chain(others) {
            let (name, layer) = (tensor.name(), tensor.entry.module());
            let seen = Seen { stats: stats.get(layer).map(Arc::as_ref), input: inputs.get(layer).copied() };
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
                self.correct_bias(tensor, &weight, seen, &mut changed)?;
                report.transforms.push(BIAS_CORRECTED.into());
            }
            weights.push((name.to_owned(), weight));
            reports.push(report);
        }
        Ok((weights, reports))
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
            changed: false,
        };
        Ok((compressed.weight, report))
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
            changed: false,
        };
        Ok((compressed.weight, report))
    }
}

/// What goes into the layers of a block, by layer; `needs` says what must be known of layers that share an input.
pub(super) fn observe_groups(
    model: &Blockwise<'_>,
    block: usize,
    needs: impl Fn(&[String]) -> Needs,
    store: &mut Store,
    saved: Option<&Saved>,
) -> Result<SeenStats, PipelineError> {
    let groups = model.block_layers(block).into_iter();
    let mut groups: Vec<Group> =
        groups.map(|layers| Group { needs: needs(&layers), ..Group::new(layers) }).collect();
    if let Some(saved) = saved {
        if saved.has(block) {
            saved.read(block, &mut groups)?;
        } else {
            // whatever the next recipe needs
            for group in &mut groups {
                group.needs = Needs::Hessian;
            }
            observe_block(model, block, &mut groups, store)?;
            saved.write(block, &groups)?;
        }
    } else if groups.iter().any(|group| group.needs > Needs::Nothing) {
        observe_block(model, block, &mut groups, store)?;
    }
    let mut stats = BTreeMap::new();
    for Group { layers, stats: of_group, .. } in groups {
        let Some(of_group) = of_group.map(Arc::new) else { continue };
        stats.extend(layers.into_iter().map(|layer| (layer, Arc::clone(&of_group))));
    }
    Ok(stats)
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
