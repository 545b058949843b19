use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use super::blocks::{Measured, choose_blocks};
use super::config::shrunk_config;
use super::plan::{PlannedUnits, ShrinkPlan};
use super::write::Output;
use crate::calibrate::{Group, Saved, Store, embed, hash_of_inputs, observe_block, run_block};
use crate::checkpoint::OutputFolder;
use crate::dtype::Precision;
use crate::file::hex;
use crate::kernels::norm;
use crate::layer::{Layer, LayerStats, Method, Needs};
use crate::model::Execution;
use crate::model::blockwise::Blockwise;
use crate::model::overlay::Overlay;
use crate::model::structure::UnitGroup;
use crate::pipeline::PipelineError;
use crate::pipeline::calibrated::{BlockInputs, Calibration};
use crate::pipeline::run::{Progress, SMALL_FILES};
use crate::prune::{Consumer, Importance};
use crate::quantize::FloatCast;
use crate::weight::CompressedWeight;

/// What became of the units before a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnitReport {
    /// The layer that takes what they give, without `.weight`.
    pub layer: String,
    /// What they are: neurons, heads or channels.
    pub kind: String,
    /// How many there were.
    pub before: usize,
    /// How many are left.
    pub after: usize,
    /// Error `‖(W − Ŵ)·Xᵀ‖² / ‖W·Xᵀ‖²` of the layer's output if the units were only left out; `None` if it was not measured.
    pub naive_error: Option<f64>,
    /// The same of what was written, fitted anew; `None` if it was not.
    pub error: Option<f64>,
    /// What was added to the Hessian's diagonal, as a fraction of its mean; 0 if nothing was fitted.
    pub damping: f64,
    /// Rows of activations behind it.
    pub tokens: u64,
    /// The units that went, counted from 0.
    pub removed: Vec<usize>,
    /// What did not go as asked.
    pub notes: Vec<String>,
}

/// How much a block was found to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlockReport {
    /// Its number in the source, counted from 0.
    pub block: usize,
    /// Its influence, or the distance over the run of blocks that begins with it; `None` where no such run begins.
    pub score: Option<f64>,
    /// Whether it went.
    pub removed: bool,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shrunk {
    /// The folder that was written.
    pub output: PathBuf,
    /// Bytes of the source's safetensors files.
    pub bytes_before: u64,
    /// Bytes of the output's.
    pub bytes_after: u64,
    /// Values of all tensors of the source.
    pub parameters_before: u64,
    /// Values of all tensors of the output.
    pub parameters_after: u64,
    /// The blocks, if some were to go.
    pub blocks: Vec<BlockReport>,
    /// The units of every layer that lost some.
    pub units: Vec<UnitReport>,
    /// Weights in the source's folder that the output lacks, as [`ShrinkPlan::left_behind`] names them.
    pub left_behind: Vec<PathBuf>,
}

impl ShrinkPlan<'_> {
    /// Does what is planned, block by block, and writes the output folder, which appears under its name only when everything in
    /// it has reached the disk.
    ///
    /// Every block's units are judged, and the layers that take them repaired, on what the smaller blocks before it give, or, as the
    /// calibration says, on what the original gave; which blocks go, always on the latter. `progress` is told of every block
    /// and can stop the run.
    ///
    /// # Errors
    /// When `output` exists or lies in the source, the disk refuses or has too little room, samples are needed and there are none,
    /// or do not fit the network, a weight or a layer's input is not finite, or [`strict`](Calibration::strict) says so. Then
    /// nothing is left behind.
    pub fn run(
        &self,
        output: impl AsRef<Path>,
        calibration: Option<Calibration<'_>>,
        progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Shrunk, PipelineError> {
        let output = output.as_ref();
        let calibration = calibration.filter(|calibration| calibration.samples.is_some());
        if let (None, Some(purpose)) = (calibration, self.needs_samples()) {
            let reason = format!(
                "calibration samples are needed {purpose}: give some, or judge by magnitude and repair nothing"
            );
            return Err(PipelineError::Shrink { path: self.source().to_path_buf(), reason });
        }
        let calibration = calibration.unwrap_or_else(Calibration::none);
        let folder = OutputFolder::create(output, self.source(), self.bytes_after() + SMALL_FILES)?;
        let total = self.tensors().iter().filter(|t| t.becomes.is_some()).map(|t| t.bytes_before).sum();
        let mut done = 0;
        let mut next = |tensor: Option<&str>, more: u64| {
            done += more;
            match progress(Progress { tensor, done, total }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(PipelineError::Stopped),
            }
        };

        let mut model = Blockwise::open(self.checkpoint, Overlay::default(), Execution::default())?;
        let mut seen = Seen::open(self, &model, calibration, folder.path())?;
        let measured = if self.blocks > 0 {
            let mut look =
                || match next(self.structure.blocks.as_ref().map(|blocks| blocks.prefix.as_str()), 0) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                };
            Some(choose_blocks(&model, &mut seen.store, self.options.choice, self.blocks, &mut look)?)
        } else {
            None
        };
        let kept_blocks = self.kept_blocks(measured.as_ref());
        let mut output = Output::create(self, folder, &kept_blocks)?;
        let mut reports = Vec::new();
        let mut written = output.write_ready()?;
        let last = self.units.iter().map(|units| self.group(units).block).max();
        for block in 0..last.map_or(0, |last| last + 1) {
            if kept_blocks.get(block) == Some(&false) {
                // what the original gives goes through all of its blocks
                if calibration.inputs == BlockInputs::Dense && seen.runs_on() && Some(block) != last {
                    run_block(&model, block, &mut seen.store)?;
                }
                continue;
            }
            let of_block: Vec<&PlannedUnits> =
                self.units.iter().filter(|units| self.group(units).block == block).collect();
            if let Some(units) = of_block.first() {
                next(Some(&units.layer), std::mem::take(&mut written))?;
            }
            let mut changed = Vec::new();
            for together in seen.rounds(&of_block) {
                let stats = seen.observe(&model, block, together)?;
                for units in together {
                    let found = self.shrink(units, stats.get(&units.layer))?;
                    check_strict(self.source(), &found.report, calibration)?;
                    if seen.runs_on() && calibration.inputs == BlockInputs::Compressed {
                        changed.extend(found.as_if_whole.iter().map(|(name, _)| name.clone()));
                        model.replace(block, found.as_if_whole)?;
                    }
                    output.decide(units.group, found.kept, found.replaced);
                    reports.push(found.report);
                    written += output.write_ready()?;
                }
            }
            if seen.runs_on() && Some(block) != last {
                run_block(&model, block, &mut seen.store)?;
            }
            if !changed.is_empty() {
                model.restore(block, changed.iter().map(String::as_str))?;
            }
        }
        next(None, written)?;
        self.finish(output, measured, &kept_blocks, reports)
    }

    fn finish(
        &self,
        output: Output<'_>,
        measured: Option<Measured>,
        kept_blocks: &[bool],
        units: Vec<UnitReport>,
    ) -> Result<Shrunk, PipelineError> {
        let scores = measured.into_iter().flat_map(|measured| measured.scores).zip(kept_blocks).enumerate();
        let blocks: Vec<BlockReport> =
            scores.map(|(block, (score, kept))| BlockReport { block, score, removed: !kept }).collect();
        let config = shrunk_config(self.checkpoint.config(), &self.structure, &self.units, kept_blocks);
        let elements = |shape: &Vec<usize>| shape.iter().product::<usize>() as u64;
        let tensors = self.tensors_with(kept_blocks);
        let parameters_before = tensors.iter().map(|tensor| elements(&tensor.before)).sum();
        let left = tensors.iter().filter(|tensor| tensor.becomes.is_some());
        let parameters_after = left.map(|tensor| elements(&tensor.after)).sum();
        let (bytes_before, bytes_after) = (self.bytes_before(), output.bytes());
        let manifest = json!({
            "tersor": env!("CARGO_PKG_VERSION"),
            "bytes_before": bytes_before,
            "bytes_after": bytes_after,
            "layers": [],
            "shrunk": { "blocks": blocks, "units": units },
        });
        Ok(Shrunk {
            output: output.finish(config.as_ref(), &manifest)?,
            bytes_before,
            bytes_after,
            parameters_before,
            parameters_after,
            blocks,
            units,
            left_behind: self.companions.left_behind.clone(),
        })
    }

    fn kept_blocks(&self, measured: Option<&Measured>) -> Vec<bool> {
        let count = self.structure.blocks.as_ref().map_or(0, |blocks| blocks.count);
        let goes = |block: &usize| measured.is_some_and(|measured| measured.removed.contains(block));
        (0..count).map(|block| !goes(&block)).collect()
    }

    fn group(&self, units: &PlannedUnits) -> &UnitGroup {
        &self.structure.groups[units.group]
    }

    /// Chooses the units that stay, and fits the layer that takes them.
    fn shrink(&self, units: &PlannedUnits, stats: Option<&LayerStats>) -> Result<Found, PipelineError> {
        let group = self.group(units);
        let name = group.consumer.weight();
        let error = || PipelineError::method(self.source(), &name);
        let entry = self.checkpoint.entry(&name)?;
        let values = self.checkpoint.values(&name)?;
        let precision = entry.precision().unwrap_or(Precision::F32);
        let layer = Layer { stats, ..Layer::new(&entry.shape, &values, precision) };
        let consumer = Consumer { has_bias: group.consumer.has_bias, ..Consumer::new(layer, group.width) };
        let importance = self.options.importance;
        let makers = if importance == Importance::Magnitude { self.makers(group)? } else { Vec::new() };
        let kept = importance.choose(&consumer, &makers, units.after).map_err(error())?;
        let removed = kept.iter().enumerate().filter(|(_, kept)| !**kept).map(|(unit, _)| unit).collect();
        let mut report = UnitReport {
            layer: units.layer.clone(),
            kind: units.kind.to_string(),
            before: units.before,
            after: units.after,
            naive_error: None,
            error: None,
            damping: 0.0,
            tokens: stats.map_or(0, LayerStats::tokens),
            removed,
            notes: Vec::new(),
        };
        let channels: Vec<usize> = (0..layer.cols()).filter(|channel| kept[channel / group.width]).collect();
        let mut replaced = Vec::new();
        let decoded;
        let left = if self.options.repair {
            let repaired = consumer.repair(&kept).map_err(error())?;
            report.naive_error = Some(repaired.naive_error);
            report.error = Some(repaired.error);
            report.damping = repaired.damping;
            report.notes.extend(notes(&consumer, repaired.damping, report.tokens));
            if let (Some(bias), Some(change)) = (group.consumer.bias(), &repaired.bias) {
                replaced.push((bias.clone(), self.changed_bias(&bias, change)?));
            }
            decoded = repaired.weight.dequantize();
            replaced.push((name.clone(), repaired.weight));
            decoded.as_slice().unwrap_or_default()
        } else {
            &[]
        };
        // the layer as it is with zeros where units have gone, which computes the same
        let mut whole = vec![0f32; values.len()];
        for (row, to) in whole.chunks_exact_mut(layer.cols().max(1)).enumerate() {
            for (at, channel) in channels.iter().enumerate() {
                to[*channel] = match left.get(row * channels.len() + at) {
                    Some(fitted) => *fitted,
                    None => values[row * layer.cols() + channel],
                };
            }
        }
        let whole = CompressedWeight::from_f32(&entry.shape, precision, &whole)
            .map_err(PipelineError::weight(self.source(), &name))?;
        let biases = replaced.iter().filter(|(replaced, _)| *replaced != name).cloned();
        let as_if_whole = biases.chain([(name.clone(), whole)]).collect();
        Ok(Found { kept, replaced, as_if_whole, report })
    }

    /// The sum of the squared weights that make every unit.
    fn makers(&self, group: &UnitGroup) -> Result<Vec<f64>, PipelineError> {
        let mut sums = vec![0f64; group.count];
        for (maker, rows) in &group.makers {
            let name = maker.weight();
            let values = self.checkpoint.values(&name)?;
            Layer::new(&self.checkpoint.entry(&name)?.shape, &values, Precision::F32)
                .check()
                .map_err(PipelineError::method(self.source(), &name))?;
            let mut of_units = vec![0f64; group.count];
            norm::rows_squared(&values, values.len() / (group.count * rows) * rows, &mut of_units);
            sums.iter_mut().zip(of_units).for_each(|(sum, of_unit)| *sum += of_unit);
        }
        Ok(sums)
    }

    /// A bias with something added to it.
    fn changed_bias(&self, name: &str, change: &[f32]) -> Result<CompressedWeight, PipelineError> {
        let entry = self.checkpoint.entry(name)?;
        let precision = entry.precision().unwrap_or(Precision::F32);
        let values: Vec<f32> =
            self.checkpoint.values(name)?.iter().zip(change).map(|(bias, change)| bias + change).collect();
        let layer = Layer::new(&entry.shape, &values, precision);
        let cast = FloatCast::to(precision).compress(&layer);
        Ok(cast.map_err(PipelineError::method(self.source(), name))?.weight)
    }
}

/// What was found for the units before a layer.
struct Found {
    kept: Vec<bool>,
    /// Tensors with new values, without the columns that they lost.
    replaced: Vec<(String, CompressedWeight)>,
    /// The same in the shapes of the source.
    as_if_whole: Vec<(String, CompressedWeight)>,
    report: UnitReport,
}

/// What did not go as asked.
fn notes(consumer: &Consumer<'_>, damping: f64, tokens: u64) -> Vec<String> {
    let mut notes = Vec::new();
    if damping > consumer.damping {
        notes.push(format!(
            "the Hessian could not be factorized with damping {}: {damping} was taken",
            consumer.damping
        ));
    }
    let features = consumer.layer.cols();
    if tokens < features as u64 {
        notes.push(format!("{tokens} tokens say little of {features} input features: calibrate with more"));
    }
    notes
}

fn check_strict(
    source: &Path,
    report: &UnitReport,
    calibration: Calibration<'_>,
) -> Result<(), PipelineError> {
    if !calibration.strict || report.notes.is_empty() {
        return Ok(());
    }
    let (path, tensor) = (source.to_path_buf(), format!("{}.weight", report.layer));
    Err(PipelineError::Strict { path, tensor, reasons: report.notes.join("; ") })
}

/// What goes into the layers, as the blocks are gone through.
struct Seen {
    store: Store,
    saved: Option<Saved>,
    needs: Needs,
    inputs: BlockInputs,
}

impl Seen {
    fn open(
        plan: &ShrinkPlan<'_>,
        model: &Blockwise<'_>,
        calibration: Calibration<'_>,
        folder: &Path,
    ) -> Result<Self, PipelineError> {
        let needs = plan.needs();
        let saved = match calibration.statistics {
            Some(folder) if needs > Needs::Nothing => {
                // as of a run without transforms
                let hash = hash_of_inputs(plan.checkpoint, calibration.samples, "[]")?;
                Some(Saved::open(folder, &hex(hash))?)
            }
            _ => None,
        };
        let all_saved = saved.as_ref().is_some_and(|saved| (0..model.blocks()).all(|block| saved.has(block)));
        let is_run = plan.blocks > 0 || (needs > Needs::Nothing && !all_saved);
        let store = match calibration.samples.filter(|_| is_run) {
            Some(samples) => embed(model, samples, Store::new(calibration.memory, folder))?,
            None => Store::new(0, folder),
        };
        Ok(Self { store, saved, needs, inputs: calibration.inputs })
    }

    /// Whether hidden states go on from block to block.
    fn runs_on(&self) -> bool {
        self.needs > Needs::Nothing && self.store.len() > 0
    }

    /// The units of a block that are looked at together: those whose inputs do not depend on what becomes of the others.
    fn rounds<'u, 'p>(&self, units: &'u [&'p PlannedUnits]) -> std::slice::Chunks<'u, &'p PlannedUnits> {
        let together = if self.inputs == BlockInputs::Dense { units.len() } else { 1 };
        units.chunks(together.max(1))
    }

    /// What goes into the layers that take some units, by layer.
    fn observe(
        &mut self,
        model: &Blockwise<'_>,
        block: usize,
        units: &[&PlannedUnits],
    ) -> Result<BTreeMap<String, LayerStats>, PipelineError> {
        let mut groups: Vec<Group> = model.block_layers(block).into_iter().map(Group::new).collect();
        let is_asked = |group: &Group| units.iter().any(|units| group.layers.contains(&units.layer));
        if self.needs == Needs::Nothing {
            return Ok(BTreeMap::new());
        }
        match &self.saved {
            Some(saved) if saved.has(block) => saved.read(block, &mut groups)?,
            saved => {
                for group in &mut groups {
                    // whatever the next run needs
                    group.needs = match saved {
                        Some(_) => Needs::Hessian,
                        None if is_asked(group) => self.needs,
                        None => Needs::Nothing,
                    };
                }
                observe_block(model, block, &mut groups, &mut self.store)?;
                if let Some(saved) = saved {
                    saved.write(block, &groups)?;
                }
            }
        }
        let asked = groups.into_iter().filter(is_asked);
        Ok(asked.filter_map(|group| Some((group.layers.into_iter().next()?, group.stats?))).collect())
    }
}
