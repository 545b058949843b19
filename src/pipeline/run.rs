use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::{Add, ControlFlow};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::PipelineError;
use super::calibrated::Calibration;
use super::coded::{CodedFile, EntropyReport, code_file};
use super::plan::{Job, MaskPlan, Plan, PlannedAction, PlannedTensor};
use super::prepared::{Prepared, TensorReport};
use super::stream::{Failure, Stage, put};
use crate::checkpoint::formats::encode;
use crate::checkpoint::{INDEX, OutputFolder, Stored, TensorSpec, TensorWriter};
use crate::evaluate::WeightErrors;
use crate::kernels::compare::Sums;
use crate::kernels::reduce;
use crate::layer::{Compressed, Layer, LayerStats, Method, MethodError, Needs, Outcome};
use crate::quantize::FloatCast;
use crate::recipe::InputQuantization;
use crate::weight::{CompressedWeight, InputScales, LayoutKind, Mask, QuantizedInput};

/// Bytes of config and manifest that are allowed for when the free space is checked.
pub(super) const SMALL_FILES: u64 = 1 << 16;

/// Where a run stands.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The tensor that is worked on next; `None` when all are done.
    pub tensor: Option<&'a str>,
    /// Source bytes of the tensors that are done.
    pub done: u64,
    /// Source bytes of all tensors.
    pub total: u64,
}

/// What calibration saw at the layer of a tensor.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen<'s> {
    pub(super) stats: Option<&'s LayerStats>,
    /// What static quantization makes of its input.
    pub(super) input: Option<InputScales>,
}

/// What became of a tensor, or of some rows of it.
pub(super) struct Made {
    pub(super) weight: CompressedWeight,
    pub(super) clamped: u64,
    pub(super) outcomes: Vec<Outcome>,
}

/// What compression did to one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerReport {
    /// Name in the model.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// What was done, in order.
    pub methods: Vec<String>,
    /// What it was.
    pub before: String,
    /// What it is.
    pub after: String,
    /// Bytes of its tensors in the source.
    pub bytes_before: u64,
    /// Bytes of its tensors in the output.
    pub bytes_after: u64,
    /// Whether weights were pruned, in whatever layout what is left is stored.
    pub pruned: bool,
    /// Fraction of weights that are not stored.
    pub sparsity: f64,
    /// Values that were beyond the target's largest and were clamped.
    pub clamped: u64,
    /// How far it is from the original.
    #[serde(flatten)]
    pub errors: WeightErrors,
    /// What calibrated methods made of the layer's output, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<Outcome>,
    /// What entropy coding made of it, if there was any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyReport>,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// The folder that was written.
    pub output: PathBuf,
    /// Bytes of the source's safetensors files.
    pub bytes_before: u64,
    /// Bytes of the output's.
    pub bytes_after: u64,
    /// The tensors that were compressed.
    pub layers: Vec<LayerReport>,
    /// Weights in the source's folder that the output lacks, as [`Plan::left_behind`] names them.
    pub left_behind: Vec<PathBuf>,
}

impl Plan<'_> {
    /// Does what is planned, a block of rows per thread or one tensor at a time, and writes the output folder.
    ///
    /// The folder appears under its name only when everything in it has reached the disk. `progress` is told of every
    /// tensor, and of every block of a large one, in order, and can stop the run.
    ///
    /// # Errors
    /// When `output` exists or lies in the source, the disk refuses or has too little room, a weight is not finite, or a
    /// method fails or [needs calibration](Self::needs). Then nothing is left behind.
    pub fn run(
        &self,
        output: impl AsRef<Path>,
        progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Run, PipelineError> {
        if self.needs() > Needs::Nothing {
            let path = self.source().to_path_buf();
            let needs = |tensor: &&PlannedTensor<'_>| self.needs_of(tensor) > Needs::Nothing;
            let method = self.tensors().iter().find(needs).map(|tensor| tensor.methods().join(" + "));
            let other = match self.reconstruction {
                Some(_) => "block reconstruction",
                None if self.corrected.is_empty() => "a transform",
                None => "bias correction",
            };
            let method = method.unwrap_or_else(|| other.to_owned());
            return Err(PipelineError::NeedsCalibration { path, method });
        }
        if self.transforms.is_empty() {
            self.write(output.as_ref(), &Prepared::default(), progress)
        } else {
            self.run_calibrated(output, Calibration::none(), progress)
        }
    }

    /// Checks that the output can be made, before work that takes long.
    pub(super) fn check_output(&self, output: &Path) -> Result<(), PipelineError> {
        Ok(OutputFolder::check(output, self.source())?)
    }

    /// Writes the output: what is prepared as it is, and everything else as it is planned.
    pub(super) fn write(
        &self,
        output: &Path,
        prepared: &Prepared,
        progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Run, PipelineError> {
        let source = self.source();
        let companions = &self.companions.carried;
        let carried = self.companions.carried_bytes(source);
        // a file that is entropy coded stands there as it was, in coded pieces, and as it will be
        let times = if self.entropy { 3 } else { 1 };
        let needed = times * self.bytes_after() + carried + SMALL_FILES;
        let folder = OutputFolder::create(output, source, needed)?;
        let mut coded = Vec::new();
        let total = self.tensors().iter().map(|t| t.entry.bytes).sum();
        let mut done = 0;
        let mut layers = Vec::new();
        let mut next = |tensor: Option<&str>, done: u64| match progress(Progress { tensor, done, total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(PipelineError::Stopped),
        };
        for (number, file) in self.files.iter().enumerate() {
            let of_file = self.tensors().iter().filter(|t| t.entry.file == number);
            let specs = of_file.flat_map(|t| t.specs.iter().cloned()).collect();
            let writer = TensorWriter::create(&folder.path().join(&file.name), specs, &file.metadata)?;
            for stage in self.stages(number, prepared) {
                match stage {
                    Stage::Whole(tensor, slot) => {
                        next(Some(tensor.name()), done)?;
                        if let Some((weight, report)) = prepared.take(tensor.name())? {
                            put(&writer, slot, encode(&weight))?;
                            layers.extend(prepared_report(tensor, report));
                        } else if let Some(written) = self.write_whole(tensor, slot, &writer)? {
                            let sums = written.pieces.into_iter().fold(Sums::default(), Sums::add);
                            layers.extend(layer_report(
                                tensor,
                                WeightErrors::from_sums(sums),
                                written.clamped,
                            ));
                        }
                        done += tensor.entry.bytes;
                    }
                    Stage::Blocks(blocks) => {
                        let (mut sums, mut clamped) = (Sums::default(), 0);
                        self.stream(&blocks, &writer, |number, written| {
                            if let Some(written) = written {
                                let before = &blocks[number - 1];
                                done += before.bytes;
                                sums = written.pieces.into_iter().fold(sums, Sums::add);
                                clamped += written.clamped;
                                if before.last {
                                    layers.extend(layer_report(
                                        before.tensor,
                                        WeightErrors::from_sums(sums),
                                        clamped,
                                    ));
                                    (sums, clamped) = (Sums::default(), 0);
                                }
                            }
                            blocks.get(number).map_or(Ok(()), |block| next(Some(block.tensor.name()), done))
                        })?;
                    }
                }
            }
            writer.finish()?;
            if self.entropy {
                let specs = self.tensors().iter().flat_map(|tensor| &tensor.specs);
                let taken = specs.map(|spec| spec.name.as_str()).collect();
                let path = folder.path().join(&file.name);
                coded.push(code_file(&path, &taken, &mut |name| next(Some(name), done))?);
            }
        }
        for layer in &mut layers {
            layer.entropy = coded.iter().find_map(|file| file.reports.get(&layer.name)).cloned();
            layer.bytes_after = layer.entropy.as_ref().map_or(layer.bytes_after, |report| report.bytes);
        }
        let bytes_after =
            if self.entropy { coded.iter().map(|file| file.bytes).sum() } else { self.bytes_after() };
        for companion in companions {
            folder.copy(&source.join(companion), companion)?;
        }
        if self.files.len() > 1 {
            folder.write(Path::new(INDEX), &pretty(&self.index(&coded)))?;
        }
        if let Some(config) = &self.config {
            folder.write(Path::new("config.json"), &pretty(config))?;
        }
        let manifest = json!({
            "tersor": env!("CARGO_PKG_VERSION"),
            "format": self.format().to_string(),
            "bytes_before": self.bytes_before(),
            "bytes_after": bytes_after,
            "layers": layers,
            "changed": prepared.changed(),
        });
        folder.write(Path::new(crate::checkpoint::MANIFEST), &pretty(&manifest))?;
        next(None, done)?;
        Ok(Run {
            output: folder.finish()?,
            bytes_before: self.bytes_before(),
            bytes_after,
            layers,
            left_behind: self.companions.left_behind.clone(),
        })
    }

    /// Compresses a tensor that is held as a whole; gives its values too.
    pub(super) fn compress_whole(
        &self,
        tensor: &PlannedTensor<'_>,
        job: &Job<'_>,
    ) -> Result<(Cow<'_, [f32]>, Made), PipelineError> {
        let error = || PipelineError::method(self.source(), tensor.name());
        let values = self.checkpoint.values(tensor.name())?;
        reduce::first_non_finite(&values).map_or(Ok(()), |found| Err(error()(found.into())))?;
        let compressed = self.compress(tensor, job, &tensor.entry.shape, &values, Seen::default()).map_err(
            |e| match e {
                Failure::Run(error) => error,
                Failure::Method(e) => error()(e),
            },
        )?;
        Ok((values, compressed))
    }

    /// Compresses a tensor, or some rows of it, which have `shape`.
    pub(super) fn compress(
        &self,
        tensor: &PlannedTensor<'_>,
        job: &Job<'_>,
        shape: &[usize],
        values: &[f32],
        seen: Seen<'_>,
    ) -> Result<Made, Failure> {
        let layer = Layer { stats: seen.stats, ..Layer::new(shape, values, job.precision) };
        let mut outcomes = Vec::new();
        let chosen;
        let mut values = values;
        let layout = job.form.layout();
        let mask = match job.mask {
            MaskPlan::KeepAll => None,
            MaskPlan::OfSource => self.earlier_mask(tensor)?,
            MaskPlan::Magnitude(magnitude) => Some(magnitude.mask(&layer)?),
            MaskPlan::Structured(structured) => Some(structured.mask(&layer)?),
            MaskPlan::Threshold(mut threshold) => {
                Some(threshold.next_mask(layer.rows(), layer.cols(), values)?)
            }
            MaskPlan::Calibrated(pruning) => {
                let earlier = self.earlier_mask(tensor)?;
                let layer = Layer { mask: earlier.as_ref(), layout, ..layer };
                let input = self.input(tensor, job, seen)?;
                if let Some(joint) = job.joint() {
                    return Ok(made(joint.compress(&layer)?, outcomes, input)?);
                }
                if job.method().is_none() {
                    return Ok(made(pruning.method().compress(&layer)?, outcomes, input)?);
                }
                // whatever the layout will be, the next method is to know the mask
                let layer = Layer { layout: LayoutKind::Bitmask, ..layer };
                let Compressed { weight, outcome, .. } = pruning.method().compress(&layer)?;
                outcomes.extend(outcome);
                chosen = weight.dequantize().into_raw_vec_and_offset().0;
                values = &chosen;
                weight.mask()
            }
        };
        let earlier =
            if mask.is_some() && job.method().is_some() { self.earlier_mask(tensor)? } else { None };
        let layer = Layer { layout, mask: None, frozen: earlier.as_ref(), values, ..layer };
        let pruned;
        let layer = match &mask {
            None => layer,
            Some(mask) => {
                let mut kept = values.to_vec();
                mask.apply(&mut kept).map_err(MethodError::from)?;
                pruned = kept;
                Layer { values: &pruned, mask: Some(mask), ..layer }
            }
        };
        let input = self.input(tensor, job, seen)?;
        let compressed = match job.method() {
            Some(method) => method.compress(&layer),
            // only pruned: the kept values stay as they are
            None => FloatCast::to(job.precision).compress(&layer),
        }?;
        Ok(made(compressed, outcomes, input)?)
    }

    /// What an earlier run pruned of a tensor.
    fn earlier_mask(&self, tensor: &PlannedTensor<'_>) -> Result<Option<Mask>, PipelineError> {
        match &tensor.entry.stored {
            Stored::Compressed(form) if form.is_sparse() => Ok(self.checkpoint.weight(tensor.name())?.mask()),
            _ => Ok(None),
        }
    }

    /// How the input of a layer is quantized.
    fn input(
        &self,
        tensor: &PlannedTensor<'_>,
        job: &Job<'_>,
        seen: Seen<'_>,
    ) -> Result<Option<QuantizedInput>, PipelineError> {
        let (symmetric, scales) = match job.inputs {
            None => return Ok(None),
            Some(InputQuantization::Dynamic { symmetric }) => {
                return Ok(Some(QuantizedInput::Dynamic { symmetric }));
            }
            Some(InputQuantization::Static { symmetric, .. }) => {
                (symmetric, seen.input.as_ref().or_else(|| self.input_scales.get(tensor.name())).copied())
            }
        };
        match scales {
            Some(scales) if scales.zero_point().is_none() == symmetric => {
                Ok(Some(QuantizedInput::Static(scales)))
            }
            _ => Err(PipelineError::InputScales {
                path: self.source().to_path_buf(),
                tensor: tensor.name().to_owned(),
                what: if symmetric { "a scale without a zero point" } else { "a scale and a zero point" },
            }),
        }
    }

    /// The index of a sharded output.
    fn index(&self, coded: &[CodedFile]) -> Value {
        if coded.is_empty() {
            let file = |t: &PlannedTensor<'_>| self.files[t.entry.file].name.as_str();
            index(self.tensors().iter().flat_map(|t| t.specs.iter().map(move |spec| (spec, file(t)))))
        } else {
            let files = self.files.iter().zip(coded);
            index(
                files
                    .flat_map(|(file, coded)| coded.specs.iter().map(move |spec| (spec, file.name.as_str()))),
            )
        }
    }
}

/// The index of a sharded output, given its tensors and the file of each.
pub(super) fn index<'s>(specs: impl Iterator<Item = (&'s TensorSpec, &'s str)>) -> Value {
    let mut total = 0;
    let mut map: BTreeMap<&str, &str> = BTreeMap::new();
    for (spec, file) in specs {
        total += spec.bytes();
        map.insert(&spec.name, file);
    }
    let map: Map<String, Value> =
        map.into_iter().map(|(name, file)| (name.to_owned(), json!(file))).collect();
    json!({"metadata": {"total_size": total}, "weight_map": map})
}

/// What is reported of a tensor that was compressed; `None` of one that was not.
fn layer_report(tensor: &PlannedTensor<'_>, errors: WeightErrors, clamped: u64) -> Option<LayerReport> {
    let PlannedAction::Compress(job) = &tensor.action else { return None };
    let elements = tensor.entry.elements();
    let sparsity =
        if job.form.is_sparse() { (elements - job.form.kept()) as f64 / elements.max(1) as f64 } else { 0.0 };
    Some(LayerReport {
        name: tensor.name().to_owned(),
        shape: tensor.entry.shape.clone(),
        methods: tensor.methods(),
        before: tensor.entry.describe(),
        after: job.form.to_string(),
        bytes_before: tensor.entry.bytes,
        bytes_after: tensor.bytes(),
        pruned: !matches!(job.mask, MaskPlan::KeepAll),
        sparsity,
        clamped,
        errors,
        outcomes: Vec::new(),
        entropy: None,
    })
}

/// The same of a tensor that was prepared.
fn prepared_report(tensor: &PlannedTensor<'_>, report: &TensorReport) -> Option<LayerReport> {
    let layer = layer_report(tensor, report.errors?, report.clamped)?;
    let before = report.transforms.iter().cloned();
    let methods = before.chain(layer.methods).chain(report.afterwards.iter().cloned()).collect();
    Some(LayerReport { methods, outcomes: report.outcomes.clone(), ..layer })
}

/// What a tensor's last method made of it, with how its layer's input is quantized.
fn made(
    compressed: Compressed,
    mut outcomes: Vec<Outcome>,
    input: Option<QuantizedInput>,
) -> Result<Made, MethodError> {
    let Compressed { mut weight, clamped, outcome } = compressed;
    if let Some(input) = input {
        weight = weight.with_input(input)?;
    }
    outcomes.extend(outcome);
    Ok(Made { weight, clamped, outcomes })
}

pub(super) fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}
