mod checks;
mod tensor;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub(super) use self::tensor::compressible;
use super::PipelineError;
use super::config::{described, plan_config};
use super::global::Sensitivities;
use super::prepared::Prepared;
use super::stream::{self, Stage};
use super::transforms::Transforms;
use crate::checkpoint::formats::tersor::Storage;
use crate::checkpoint::formats::{compressed_tensors, tersor};
use crate::checkpoint::{Checkpoint, Companions, Entry, Stored, TensorClass, TensorSpec, file_bytes};
use crate::dtype::Precision;
use crate::layer::{Method, Needs};
use crate::prune::{Magnitude, MagnitudeThreshold, Pruning, Structured};
use crate::quantize::Gptq;
use crate::recipe::{Action, InputQuantization, OutputFormat, Prune, Recipe, RecipeError, Step, Written};
use crate::weight::{Coding, Form, InputScales, LayoutKind};

/// What happens to one tensor of the model.
#[derive(Debug)]
pub struct PlannedTensor<'a> {
    pub(in crate::pipeline) entry: Cow<'a, Entry>,
    pub(in crate::pipeline) action: PlannedAction<'a>,
    reason: String,
    /// Of a pruned weight, the layouts that hold what is kept, and the bytes of each; the fewest first.
    layouts: Vec<(LayoutKind, u64)>,
    pub(in crate::pipeline) specs: Vec<TensorSpec>,
}

/// What happens to a tensor.
#[derive(Debug)]
pub enum PlannedAction<'a> {
    /// It is copied byte for byte.
    Copy,
    /// It was compressed before and stays so; its tensors are written as tersor writes them, without loss.
    Rewrite(Form),
    /// It is compressed.
    Compress(Job<'a>),
}

/// How a tensor is compressed.
#[derive(Debug)]
pub struct Job<'a> {
    pub(in crate::pipeline) mask: MaskPlan,
    pub(in crate::pipeline) prune: Option<&'a Prune>,
    written: Option<Written<'a>>,
    pub(in crate::pipeline) inputs: Option<InputQuantization>,
    pub(in crate::pipeline) form: Form,
    pub(in crate::pipeline) precision: Precision,
}

/// Where a tensor's mask comes from.
#[derive(Debug, Clone, Copy)]
pub(in crate::pipeline) enum MaskPlan {
    KeepAll,
    /// What an earlier run pruned stays pruned.
    OfSource,
    Magnitude(Magnitude),
    Structured(Structured),
    /// The part of a threshold that several tensors share.
    Threshold(MagnitudeThreshold),
    /// Chosen with regard to the layer's input, by a method that may change the weights that stay.
    Calibrated(Pruning),
}

impl MaskPlan {
    fn of(pruning: Pruning) -> Self {
        match pruning {
            Pruning::Magnitude(magnitude) => Self::Magnitude(magnitude),
            calibrated => Self::Calibrated(calibrated),
        }
    }
}

impl Job<'_> {
    /// What writes the weights that are kept, if they do not stay as they are.
    pub(in crate::pipeline) fn method(&self) -> Option<&dyn Method> {
        self.written.as_ref().map(Written::method)
    }

    /// Pruning and rounding in one, where that can be done.
    pub(in crate::pipeline) fn joint(&self) -> Option<Gptq> {
        match &self.mask {
            MaskPlan::Calibrated(pruning) => pruning.jointly_with(self.method()?),
            _ => None,
        }
    }

    /// What must be known of the layer's input to prune and to round it.
    pub(in crate::pipeline) fn needs(&self) -> Needs {
        let of_pruning = match &self.mask {
            MaskPlan::Calibrated(pruning) => pruning.method().needs(),
            _ => Needs::Nothing,
        };
        self.method().map(Method::needs).unwrap_or_default().max(of_pruning)
    }

    /// Bytes that its methods take for a tensor of this shape.
    pub(in crate::pipeline) fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let of_pruning = match &self.mask {
            MaskPlan::Calibrated(pruning) => pruning.method().scratch_bytes(shape),
            _ => 0,
        };
        match self.joint() {
            Some(joint) => joint.scratch_bytes(shape),
            // one after the other
            None => self.method().map_or(0, |method| method.scratch_bytes(shape)).max(of_pruning),
        }
    }
}

impl PlannedTensor<'_> {
    /// Name in the model.
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// The tensor as it is.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// What happens to it.
    pub fn action(&self) -> &PlannedAction<'_> {
        &self.action
    }

    /// Why.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Of a weight that is pruned, the layouts that can hold what is kept, and the bytes that its values and positions, scales and
    /// zero points take in each; the fewest first, dense zeros included.
    pub fn layouts(&self) -> &[(LayoutKind, u64)] {
        &self.layouts
    }

    /// The form it will have; `None` when it is copied.
    pub fn form(&self) -> Option<&Form> {
        match &self.action {
            PlannedAction::Copy => None,
            PlannedAction::Rewrite(form) => Some(form),
            PlannedAction::Compress(job) => Some(&job.form),
        }
    }

    /// Whether the output is compressed by this plan.
    pub fn is_compressed(&self) -> bool {
        matches!(self.action, PlannedAction::Compress(_))
    }

    /// Exact bytes of its tensors in the output.
    pub fn bytes(&self) -> u64 {
        self.specs.iter().map(TensorSpec::bytes).sum()
    }

    /// What it will be, in words.
    pub fn describe(&self) -> String {
        self.form().map_or_else(|| self.entry.describe(), ToString::to_string)
    }

    /// Names of the methods.
    pub fn methods(&self) -> Vec<String> {
        let PlannedAction::Compress(job) = &self.action else { return Vec::new() };
        if let Some(joint) = job.joint() {
            return vec![joint.name()];
        }
        let prune = job.prune.map(ToString::to_string);
        prune.into_iter().chain(job.method().map(Method::name)).collect()
    }
}

/// One safetensors file of the output.
#[derive(Debug)]
pub(in crate::pipeline) struct PlannedFile {
    pub(in crate::pipeline) name: String,
    pub(in crate::pipeline) metadata: BTreeMap<String, String>,
    pub(in crate::pipeline) bytes: u64,
}

/// For every tensor what happens and why, the exact bytes out, and the memory it takes.
///
/// ```no_run
/// use tersor::{Checkpoint, Plan, PresetOptions, Recipe};
///
/// let checkpoint = Checkpoint::open("fixtures/fashion-mlp")?;
/// let recipe = Recipe::preset("int8", PresetOptions::default())?;
/// let plan = Plan::new(&checkpoint, &recipe)?;
/// println!("{} → {} bytes", plan.bytes_before(), plan.bytes_after());
/// let run = plan.run("/tmp/fashion-mlp-int8", &mut |_| std::ops::ControlFlow::Continue(()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Plan<'a> {
    pub(in crate::pipeline) checkpoint: &'a Checkpoint,
    format: OutputFormat,
    tensors: Vec<PlannedTensor<'a>>,
    pub(in crate::pipeline) files: Vec<PlannedFile>,
    /// `config.json`, if the output has one.
    pub(in crate::pipeline) config: Option<Value>,
    pub(in crate::pipeline) companions: Companions,
    pub(in crate::pipeline) transforms: Transforms,
    /// Layers, without `.weight`, whose biases make up for what becomes of their weights.
    pub(in crate::pipeline) corrected: BTreeSet<String>,
    /// In how many steps blocks are reconstructed, if they are.
    pub(in crate::pipeline) reconstruction: Option<NonZeroUsize>,
    block_bytes: usize,
    pub(in crate::pipeline) entropy: bool,
    pub(in crate::pipeline) input_scales: BTreeMap<String, InputScales>,
}

impl<'a> Plan<'a> {
    /// Plans what a recipe does to a checkpoint. Reads no weights, unless the recipe prunes several tensors together.
    ///
    /// # Errors
    /// When a step or ignore pattern names no tensor, the recipe contradicts itself, or the output format cannot hold a
    /// weight.
    pub fn new(checkpoint: &'a Checkpoint, recipe: &'a Recipe) -> Result<Self, PipelineError> {
        Self::measured(checkpoint, recipe, &Sensitivities::new())
    }

    /// As [`new`](Self::new), with what is known of what pruning costs layers.
    pub(in crate::pipeline) fn measured(
        checkpoint: &'a Checkpoint,
        recipe: &'a Recipe,
        sensitivities: &Sensitivities,
    ) -> Result<Self, PipelineError> {
        let format = recipe.output_format().unwrap_or_else(|| default_format(checkpoint, recipe));
        if recipe.is_entropy_coded() && format == OutputFormat::CompressedTensors {
            let reason = "compressed-tensors holds no entropy-coded weights; choose the format `tersor`, which only tersor reads";
            return Err(RecipeError::value("entropy", reason).into());
        }
        checks::check_matches(checkpoint, recipe)?;
        let parts = tensor::parts_of_all(checkpoint, recipe, sensitivities)?;
        let mut tensors = Vec::new();
        for entry in checkpoint.entries() {
            tensors.push(tensor::plan_tensor(checkpoint, recipe, format, &parts, entry)?);
        }
        let transforms = Transforms::new(checkpoint, recipe.transforms())?;
        if let Some(rotation) = &transforms.rotation {
            for tensor in tensors.iter_mut().filter(|tensor| rotation.changes(tensor.name())) {
                // what is pruned would not be where it was
                if let Stored::Compressed(form) = &tensor.entry.stored
                    && form.is_sparse()
                {
                    return Err(PipelineError::Transformed {
                        path: checkpoint.path().to_path_buf(),
                        tensor: tensor.entry.name.clone(),
                        form: tensor.entry.describe(),
                    });
                }
                tensor.reason.push_str("; rotated");
            }
            for added in rotation.added() {
                tensors.push(tensor::plan_added(checkpoint, added)?);
            }
        }
        checks::check_factors(checkpoint, recipe, &tensors)?;
        check_names(checkpoint, &tensors)?;
        let corrected =
            if recipe.corrects_biases() { corrected(checkpoint, &tensors)? } else { BTreeSet::new() };
        let files = plan_files(checkpoint, &tensors);
        let mut config = plan_config(checkpoint, &tensors, recipe.is_entropy_coded())?;
        if let (Some(config), Some(rotation)) = (&mut config, &transforms.rotation) {
            for (key, value) in rotation.config() {
                config[*key] = value.clone();
            }
        }
        let companions = checkpoint.companions()?;
        let block_bytes = stream::BLOCK_BYTES;
        let input_scales = BTreeMap::new();
        Ok(Self {
            checkpoint,
            format,
            tensors,
            files,
            config,
            companions,
            transforms,
            corrected,
            reconstruction: recipe.reconstruction(),
            block_bytes,
            entropy: recipe.is_entropy_coded(),
            input_scales,
        })
    }

    /// The weights whose layers' inputs get a static scale, and how it is to be found.
    pub fn static_inputs(&self) -> impl Iterator<Item = (&Entry, InputQuantization)> {
        self.tensors.iter().filter_map(|tensor| match &tensor.action {
            PlannedAction::Compress(Job {
                inputs: Some(inputs @ InputQuantization::Static { .. }), ..
            }) => Some((&*tensor.entry, *inputs)),
            _ => None,
        })
    }

    /// Gives the scales of layers' inputs, by the names of their weights; a run needs those of all [`Plan::static_inputs`].
    #[must_use]
    pub fn input_scales(mut self, scales: impl IntoIterator<Item = (String, InputScales)>) -> Self {
        self.input_scales.extend(scales);
        self
    }

    /// In how many steps blocks are reconstructed, if they are, as [`Recipe::reconstruct`] says.
    pub fn reconstruction(&self) -> Option<NonZeroUsize> {
        self.reconstruction
    }

    /// The output format.
    pub fn format(&self) -> OutputFormat {
        self.format
    }

    /// The source.
    pub fn source(&self) -> &Path {
        self.checkpoint.path()
    }

    /// Every tensor of the model.
    pub fn tensors(&self) -> &[PlannedTensor<'a>] {
        &self.tensors
    }

    /// Bytes of the source's safetensors files.
    pub fn bytes_before(&self) -> u64 {
        self.checkpoint.file_bytes()
    }

    /// Exact bytes of the output's safetensors files; the most that they take if they are entropy coded.
    pub fn bytes_after(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// Whether the output is entropy coded: then the bytes of its files and tensors are the most that they take.
    pub fn is_entropy_coded(&self) -> bool {
        self.entropy
    }

    /// Safetensors files of the output: name and exact bytes, the most that they take if they are entropy coded.
    pub fn output_files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|f| (f.name.as_str(), f.bytes))
    }

    /// Weights in the source's folder that are not part of the checkpoint, and that the output will therefore lack: those of
    /// another part of the model, such as `2_Dense/model.safetensors`, or the same in another format. Relative to the
    /// folder.
    pub fn left_behind(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.companions.left_behind.iter().map(PathBuf::as_path)
    }

    /// Sets how much of a tensor, in bytes of `f32`, a thread works on at a time; 1 MiB unless set.
    ///
    /// Only tensors whose rows can be compressed apart from each other are cut into blocks, and a block has at least as
    /// many rows as packed codes ask for. What is written and measured does not depend on it.
    #[must_use]
    pub fn block_bytes(self, block_bytes: usize) -> Self {
        Self { block_bytes, ..self }
    }

    /// What a run does for a file of the output, in order.
    pub(in crate::pipeline) fn stages(&self, file: usize, prepared: &Prepared) -> Vec<Stage<'_>> {
        stream::stages(self.tensors.iter().filter(|t| t.entry.file == file), self.block_bytes, prepared)
    }

    /// Weights that only tersor can read, and why, when the output format is `compressed-tensors`.
    pub fn only_tersor_reads(&self) -> impl Iterator<Item = (&str, String)> {
        self.tensors.iter().filter_map(|t| Some((t.name(), compressed_tensors::why_not(t.form()?)?)))
    }
}

/// Layers that are quantized and have a bias.
fn corrected(
    checkpoint: &Checkpoint,
    tensors: &[PlannedTensor<'_>],
) -> Result<BTreeSet<String>, PipelineError> {
    let names: BTreeSet<&str> = tensors.iter().map(PlannedTensor::name).collect();
    let quantized = tensors.iter().filter(|tensor| {
        let is_layer = matches!(tensor.entry.class, TensorClass::Linear | TensorClass::Conv);
        is_layer && matches!(&tensor.action, PlannedAction::Compress(job) if job.method().is_some())
    });
    let modules = quantized.map(|tensor| tensor.entry.module().to_owned());
    let found: BTreeSet<String> =
        modules.filter(|module| names.contains(format!("{module}.bias").as_str())).collect();
    if found.is_empty() {
        return Err(PipelineError::MatchesNothing {
            path: checkpoint.path().to_path_buf(),
            what: "bias correction".into(),
            hint: " (no layer that is quantized has a bias)".into(),
        });
    }
    Ok(found)
}

fn default_format(checkpoint: &Checkpoint, recipe: &Recipe) -> OutputFormat {
    let is_ours = recipe.steps().iter().any(|step| match step.action() {
        Action::Quantize(method) => {
            matches!(method.coding(Coding::Float(Precision::F32)), Coding::Codebook { .. })
        }
        Action::Prune(_) | Action::Factorize(_) => false,
    });
    if recipe.is_entropy_coded() || is_ours || recipe.steps().iter().any(makes_factors) {
        return OutputFormat::Tersor;
    }
    let names_architectures = checkpoint.config().is_some_and(|c| c.get("architectures").is_some());
    if names_architectures { OutputFormat::CompressedTensors } else { OutputFormat::Tersor }
}

/// Whether a step makes factors of low rank.
fn makes_factors(step: &Step) -> bool {
    match step.action() {
        Action::Factorize(_) => true,
        Action::Quantize(method) => method.correction(&[1, 1], Coding::Float(Precision::F32)).is_some(),
        Action::Prune(_) => false,
    }
}

fn check_names(checkpoint: &Checkpoint, tensors: &[PlannedTensor<'_>]) -> Result<(), PipelineError> {
    let mut taken = BTreeSet::new();
    for tensor in tensors {
        for spec in &tensor.specs {
            if !taken.insert(&spec.name) {
                return Err(PipelineError::NameTaken {
                    path: checkpoint.path().to_path_buf(),
                    tensor: tensor.name().to_owned(),
                    name: spec.name.clone(),
                });
            }
        }
    }
    Ok(())
}

/// The same files as the source has; a single one is called `model.safetensors`.
fn plan_files<'a>(checkpoint: &Checkpoint, tensors: &'a [PlannedTensor<'_>]) -> Vec<PlannedFile> {
    let single = checkpoint.files().len() == 1;
    checkpoint
        .files()
        .enumerate()
        .map(|(file, path)| {
            let of_file = || tensors.iter().filter(|t| t.entry.file == file);
            let mut metadata = checkpoint.metadata(file).cloned().unwrap_or_default();
            metadata.remove(tersor::KEY);
            // transformers refuses files that do not say which framework's tensors they hold
            metadata.entry("format".into()).or_insert_with(|| "pt".into());
            let form = |t: &'a PlannedTensor<'_>| Some((t.name(), described(t)?, Storage::Parts));
            let mut forms = of_file().filter_map(form).peekable();
            if forms.peek().is_some() {
                metadata.insert(tersor::KEY.into(), tersor::write_metadata(forms));
            }
            let specs: Vec<TensorSpec> = of_file().flat_map(|t| t.specs.iter().cloned()).collect();
            let name = if single { Path::new("model.safetensors") } else { path };
            PlannedFile {
                name: name.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                bytes: file_bytes(&specs, &metadata),
                metadata,
            }
        })
        .collect()
}
