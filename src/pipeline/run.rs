use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::PipelineError;
use super::plan::{Job, MaskPlan, Plan, PlannedAction, PlannedTensor};
use crate::checkpoint::{OutputFolder, TensorWriter, formats};
use crate::evaluate::WeightErrors;
use crate::layer::{Layer, Method};
use crate::quantize::FloatCast;
use crate::weight::{CompressedWeight, LayoutKind};

/// Bytes of config and manifest that are allowed for when the free space is checked.
const SMALL_FILES: u64 = 1 << 16;

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
    /// Does what is planned, one tensor at a time, and writes the output folder.
    ///
    /// The folder appears under its name only when everything in it has reached the disk. `progress` is told of every
    /// tensor and can stop the run.
    ///
    /// # Errors
    /// When `output` exists or lies in the source, the disk refuses or has too little room, a weight is not finite, or a
    /// method fails. Then nothing is left behind.
    pub fn run(
        &self,
        output: impl AsRef<Path>,
        progress: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Run, PipelineError> {
        let source = self.source();
        let companions = &self.companions.carried;
        let carried: u64 =
            companions.iter().filter_map(|c| Some(fs::metadata(source.join(c)).ok()?.len())).sum();
        let folder =
            OutputFolder::create(output.as_ref(), source, self.bytes_after() + carried + SMALL_FILES)?;
        let total = self.tensors().iter().map(|t| t.entry.bytes).sum();
        let mut done = 0;
        let mut layers = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            let of_file = || self.tensors().iter().filter(move |t| t.entry.file == number);
            let specs = of_file().flat_map(|t| t.specs.iter().cloned()).collect();
            let mut writer = TensorWriter::create(&folder.path().join(&file.name), specs, &file.metadata)?;
            for tensor in of_file() {
                if progress(Progress { tensor: Some(tensor.name()), done, total }).is_break() {
                    return Err(PipelineError::Stopped);
                }
                layers.extend(self.write_tensor(tensor, &mut writer)?);
                done += tensor.entry.bytes;
            }
            writer.finish()?;
        }
        for companion in companions {
            folder.copy(&source.join(companion), companion)?;
        }
        if self.files.len() > 1 {
            folder.write(Path::new("model.safetensors.index.json"), &pretty(&self.index()))?;
        }
        if let Some(config) = &self.config {
            folder.write(Path::new("config.json"), &pretty(config))?;
        }
        let manifest = json!({
            "tersor": env!("CARGO_PKG_VERSION"),
            "format": self.format().to_string(),
            "bytes_before": self.bytes_before(),
            "bytes_after": self.bytes_after(),
            "layers": layers,
        });
        folder.write(Path::new(crate::checkpoint::MANIFEST), &pretty(&manifest))?;
        if progress(Progress { tensor: None, done, total }).is_break() {
            return Err(PipelineError::Stopped);
        }
        Ok(Run {
            output: folder.finish()?,
            bytes_before: self.bytes_before(),
            bytes_after: self.bytes_after(),
            layers,
            left_behind: self.companions.left_behind.clone(),
        })
    }

    fn write_tensor(
        &self,
        tensor: &PlannedTensor<'_>,
        writer: &mut TensorWriter,
    ) -> Result<Option<LayerReport>, PipelineError> {
        let write = |writer: &mut TensorWriter, weight: &CompressedWeight| {
            let data = formats::encode(weight);
            tensor.specs.iter().zip(data).try_for_each(|(spec, bytes)| writer.write(&spec.name, &bytes))
        };
        match &tensor.action {
            PlannedAction::Copy => {
                writer.write(tensor.name(), self.checkpoint.tensor(tensor.name())?.bytes)?;
                Ok(None)
            }
            PlannedAction::Rewrite(_) => {
                write(writer, &self.checkpoint.weight(tensor.name())?)?;
                Ok(None)
            }
            PlannedAction::Compress(job) => {
                let values = self.checkpoint.dense(tensor.name())?;
                let (weight, clamped) = self.compress(tensor, job, &values)?;
                write(writer, &weight)?;
                let compressed = weight.dequantize();
                let kept = weight.mask().map_or(1.0, |m| 1.0 - m.sparsity());
                Ok(Some(LayerReport {
                    name: tensor.name().to_owned(),
                    shape: tensor.entry.shape.clone(),
                    methods: tensor.methods(),
                    before: tensor.entry.describe(),
                    after: weight.form().to_string(),
                    bytes_before: tensor.entry.bytes,
                    bytes_after: tensor.bytes(),
                    pruned: !matches!(job.mask, MaskPlan::KeepAll),
                    sparsity: 1.0 - kept,
                    clamped,
                    errors: WeightErrors::between(&values, compressed.as_slice().unwrap_or_default()),
                }))
            }
        }
    }

    fn compress(
        &self,
        tensor: &PlannedTensor<'_>,
        job: &Job<'_>,
        values: &[f32],
    ) -> Result<(CompressedWeight, u64), PipelineError> {
        let error = || PipelineError::method(self.source(), tensor.name());
        let shape = &tensor.entry.shape;
        let layer = Layer { shape, values, mask: None, precision: job.precision, layout: LayoutKind::Dense };
        layer.check().map_err(error())?;
        let mask = match job.mask {
            MaskPlan::KeepAll => None,
            MaskPlan::OfSource => self.checkpoint.weight(tensor.name())?.mask().map(Ok),
            MaskPlan::Magnitude(magnitude) => Some(magnitude.mask(&layer)),
            MaskPlan::Structured(structured) => Some(structured.mask(&layer)),
            MaskPlan::Threshold(mut threshold) => {
                Some(threshold.next_mask(layer.rows(), layer.cols(), values))
            }
        };
        let mask = mask.transpose().map_err(error())?;
        let layout = job.form.layout();
        let layer = Layer { layout, mask: None, ..layer };
        let pruned;
        let layer = match &mask {
            None => layer,
            Some(mask) => {
                let mut kept = values.to_vec();
                mask.apply(&mut kept).map_err(|e| error()(e.into()))?;
                pruned = kept;
                Layer { values: &pruned, mask: Some(mask), ..layer }
            }
        };
        let compressed = match job.quantize {
            Some(method) => method.compress(&layer),
            // only pruned: the kept values stay as they are
            None => FloatCast::to(job.precision).compress(&layer),
        };
        let compressed = compressed.map_err(error())?;
        Ok((compressed.weight, compressed.clamped))
    }

    /// The index of a sharded output.
    fn index(&self) -> Value {
        let specs = || {
            self.tensors()
                .iter()
                .flat_map(|t| t.specs.iter().map(move |s| (s, &self.files[t.entry.file].name)))
        };
        let total: u64 = specs().map(|(spec, _)| spec.bytes()).sum();
        let map: BTreeMap<&str, &String> = specs().map(|(spec, file)| (spec.name.as_str(), file)).collect();
        let map: Map<String, Value> =
            map.into_iter().map(|(name, file)| (name.to_owned(), json!(file))).collect();
        json!({"metadata": {"total_size": total}, "weight_map": map})
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}");
    text.push('\n');
    text.into_bytes()
}
