use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::PipelineError;
use super::advice::{advice, is_transposed};
use super::config::{described, plan_config};
use super::global::{Part, Sensitivities, allocated, shares};
use super::prepared::Prepared;
use super::stream::{self, Stage};
use super::transforms::Transforms;
use crate::checkpoint::formats::tersor::Storage;
use crate::checkpoint::formats::{self, compressed_tensors, tersor};
use crate::checkpoint::{Checkpoint, Companions, Entry, Stored, TensorClass, TensorSpec, file_bytes};
use crate::dtype::Precision;
use crate::layer::{Method, Needs};
use crate::prune::{Magnitude, MagnitudeThreshold, Pruning, SparsityPattern, Structured};
use crate::quantize::Gptq;
use crate::recipe::{
    Action, Decision, InputQuantization, LayoutChoice, OutputFormat, Prune, Recipe, RecipeError, Selection,
};
use crate::transform::AddedTensor;
use crate::weight::{Coding, Form, InputScales, LayoutKind};

/// What happens to one tensor of the model.
#[derive(Debug)]
pub struct PlannedTensor<'a> {
    pub(super) entry: Cow<'a, Entry>,
    pub(super) action: PlannedAction<'a>,
    reason: String,
    /// Of a pruned weight, the layouts that hold what is kept, and the bytes of each; the fewest first.
    layouts: Vec<(LayoutKind, u64)>,
    pub(super) specs: Vec<TensorSpec>,
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
    pub(super) mask: MaskPlan,
    pub(super) prune: Option<&'a Prune>,
    pub(super) quantize: Option<&'a dyn Method>,
    pub(super) inputs: Option<InputQuantization>,
    pub(super) form: Form,
    pub(super) precision: Precision,
}

/// Where a tensor's mask comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum MaskPlan {
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
    /// Pruning and rounding in one, where that can be done.
    pub(super) fn joint(&self) -> Option<Gptq> {
        match &self.mask {
            MaskPlan::Calibrated(pruning) => pruning.jointly_with(self.quantize?),
            _ => None,
        }
    }

    /// What must be known of the layer's input to prune and to round it.
    pub(super) fn needs(&self) -> Needs {
        let of_pruning = match &self.mask {
            MaskPlan::Calibrated(pruning) => pruning.method().needs(),
            _ => Needs::Nothing,
        };
        self.quantize.map(Method::needs).unwrap_or_default().max(of_pruning)
    }

    /// Bytes that its methods take for a tensor of this shape.
    pub(super) fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let of_pruning = match &self.mask {
            MaskPlan::Calibrated(pruning) => pruning.method().scratch_bytes(shape),
            _ => 0,
        };
        match self.joint() {
            Some(joint) => joint.scratch_bytes(shape),
            // one after the other
            None => self.quantize.map_or(0, |method| method.scratch_bytes(shape)).max(of_pruning),
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
        prune.into_iter().chain(job.quantize.map(Method::name)).collect()
    }
}

/// One safetensors file of the output.
#[derive(Debug)]
pub(super) struct PlannedFile {
    pub(super) name: String,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) bytes: u64,
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
    pub(super) checkpoint: &'a Checkpoint,
    format: OutputFormat,
    tensors: Vec<PlannedTensor<'a>>,
    pub(super) files: Vec<PlannedFile>,
    /// `config.json`, if the output has one.
    pub(super) config: Option<Value>,
    pub(super) companions: Companions,
    pub(super) transforms: Transforms,
    /// Layers, without `.weight`, whose biases make up for what becomes of their weights.
    pub(super) corrected: BTreeSet<String>,
    block_bytes: usize,
    pub(super) entropy: bool,
    pub(super) input_scales: BTreeMap<String, InputScales>,
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
    pub(super) fn measured(
        checkpoint: &'a Checkpoint,
        recipe: &'a Recipe,
        sensitivities: &Sensitivities,
    ) -> Result<Self, PipelineError> {
        let format = recipe.output_format().unwrap_or_else(|| default_format(checkpoint, recipe));
        if recipe.is_entropy_coded() && format == OutputFormat::CompressedTensors {
            let reason = "compressed-tensors holds no entropy-coded weights; choose the format `tersor`, which only tersor reads";
            return Err(RecipeError::value("entropy", reason).into());
        }
        check_matches(checkpoint, recipe)?;
        let parts = parts_of_all(checkpoint, recipe, sensitivities)?;
        let mut tensors = Vec::new();
        for entry in checkpoint.entries() {
            tensors.push(plan_tensor(checkpoint, recipe, format, &parts, entry)?);
        }
        let transforms = Transforms::new(checkpoint, recipe.transforms())?;
        if let Some(rotation) = &transforms.rotation {
            for tensor in tensors.iter_mut().filter(|tensor| rotation.changes(tensor.name())) {
                // what is pruned would not be where it was
                if let Stored::Compressed(form) = &tensor.entry.stored
                    && form.layout() != LayoutKind::Dense
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
                tensors.push(plan_added(checkpoint, added)?);
            }
        }
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
    pub(super) fn stages(&self, file: usize, prepared: &Prepared) -> Vec<Stage<'_>> {
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
        is_layer && matches!(&tensor.action, PlannedAction::Compress(job) if job.quantize.is_some())
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
    let makes_codebooks = recipe.steps().iter().any(|step| match step.action() {
        Action::Quantize(method) => {
            matches!(method.coding(Coding::Float(Precision::F32)), Coding::Codebook { .. })
        }
        Action::Prune(_) => false,
    });
    if recipe.is_entropy_coded() || makes_codebooks {
        return OutputFormat::Tersor;
    }
    let names_architectures = checkpoint.config().is_some_and(|c| c.get("architectures").is_some());
    if names_architectures { OutputFormat::CompressedTensors } else { OutputFormat::Tersor }
}

/// A step or pattern that names nothing is a mistake, most likely a misspelt name.
fn check_matches(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<(), PipelineError> {
    let entries = checkpoint.entries();
    let nothing = |what: String, hint: String| {
        Err(PipelineError::MatchesNothing { path: checkpoint.path().to_path_buf(), what, hint })
    };
    for pattern in recipe.ignored() {
        if !entries.iter().any(|e| pattern.matches(&e.name)) {
            return nothing(
                format!("ignore pattern `{pattern}`"),
                hint(pattern.to_string().as_str(), entries),
            );
        }
    }
    for (i, step) in recipe.steps().iter().enumerate() {
        if !entries.iter().any(|e| step.applies_to(&e.name, e.class) && compressible(e).is_ok()) {
            let counts: Vec<String> = TensorClass::ALL
                .into_iter()
                .map(|class| (class, entries.iter().filter(|e| e.class == class).count()))
                .filter(|(_, n)| *n > 0)
                .map(|(class, n)| format!("{n} {class}"))
                .collect();
            let hint = match counts.as_slice() {
                [] => " (there are none)".into(),
                counts => format!(" (there are: {})", counts.join(", ")),
            };
            return nothing(format!("step {} of the recipe", i + 1), hint);
        }
    }
    check_leaves_something(checkpoint, recipe)
}

/// A recipe whose tensors are all ignored would do nothing, and look as if it had.
fn check_leaves_something(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<(), PipelineError> {
    let mut patterns: Vec<String> = Vec::new();
    for entry in checkpoint.entries() {
        let named = recipe.steps().iter().any(|s| s.applies_to(&entry.name, entry.class));
        if !named || compressible(entry).is_err() {
            continue;
        }
        let Decision::Ignored(pattern) = recipe.decide(&entry.name, entry.class)? else { return Ok(()) };
        let pattern = format!("`{pattern}`");
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
    }
    if patterns.is_empty() {
        return Ok(());
    }
    let (path, patterns) = (checkpoint.path().to_path_buf(), patterns.join(", "));
    Err(PipelineError::NothingLeft { path, patterns })
}

fn hint(pattern: &str, entries: &[Entry]) -> String {
    let similarity = |e: &&Entry| (strsim::jaro_winkler(pattern, e.module()) * 1e6) as u64;
    match entries.iter().max_by_key(similarity) {
        Some(entry) => format!(" (the most similar name is `{}`)", entry.module()),
        None => String::new(),
    }
}

/// Why a tensor cannot be compressed at all.
pub(super) fn compressible(entry: &Entry) -> Result<Precision, String> {
    match (entry.precision(), &entry.stored) {
        _ if entry.elements() == 0 => Err("it has no elements".into()),
        (Some(precision), _) => Ok(precision),
        (None, Stored::Plain(dtype)) => Err(format!("{dtype:?} is no float")),
        (None, Stored::Compressed(_)) => Err("it is no float".into()),
    }
}

/// What the pruning step that spans several tensors asks of each.
fn parts_of_all(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    sensitivities: &Sensitivities,
) -> Result<BTreeMap<String, Part>, PipelineError> {
    let mut all = BTreeMap::new();
    for (i, step) in recipe.steps().iter().enumerate() {
        let Action::Prune(Prune { selection, .. }) = step.action() else { continue };
        if !matches!(selection, Selection::Global(_) | Selection::Allocated(..)) {
            continue;
        }
        let mut members = Vec::new();
        for entry in checkpoint.entries().iter().filter(|e| compressible(e).is_ok()) {
            if let Decision::Apply { prune: Some((step, _)), .. } = recipe.decide(&entry.name, entry.class)?
                && step == i
            {
                members.push(entry);
            }
        }
        match selection {
            Selection::Global(sparsity) => {
                let shares = shares(checkpoint, &members, *sparsity)?;
                all.extend(shares.into_iter().map(|(name, share)| (name, Part::Threshold(share))));
            }
            Selection::Allocated(pruning, allocation) => {
                // what has no one sparsity takes it as it is
                let SparsityPattern::Unstructured(sparsity) = pruning.pattern() else { continue };
                let of_all = (pruning, sparsity);
                let parts = allocated(checkpoint, &members, of_all, *allocation, sensitivities)?;
                all.extend(parts.into_iter().map(|(name, sparsity)| (name, Part::Sparsity(sparsity))));
            }
            Selection::Layer(_) | Selection::Structured(_) => {}
        }
    }
    Ok(all)
}

fn plan_tensor<'a>(
    checkpoint: &Checkpoint,
    recipe: &'a Recipe,
    format: OutputFormat,
    parts: &BTreeMap<String, Part>,
    entry: &'a Entry,
) -> Result<PlannedTensor<'a>, PipelineError> {
    let keep = |reason: String| {
        let (action, specs) = match &entry.stored {
            Stored::Compressed(form) => {
                (PlannedAction::Rewrite(form.clone()), formats::specs(&entry.name, form))
            }
            Stored::Plain(dtype) => {
                let spec = TensorSpec { name: entry.name.clone(), dtype: *dtype, shape: entry.shape.clone() };
                (PlannedAction::Copy, vec![spec])
            }
        };
        Ok(PlannedTensor { entry: Cow::Borrowed(entry), action, reason, layouts: Vec::new(), specs })
    };
    let (prune, quantize) = match recipe.decide(&entry.name, entry.class)? {
        Decision::Ignored(pattern) => return keep(format!("ignored by `{pattern}`")),
        Decision::NotNamed => return keep(format!("{}: no step names it", entry.class)),
        Decision::Apply { prune, quantize } => (prune, quantize),
    };
    let precision = match compressible(entry) {
        Ok(precision) => precision,
        Err(reason) => return keep(reason),
    };
    let steps: Vec<String> =
        prune.iter().map(|p| p.0).chain(quantize.iter().map(|q| q.0)).map(|i| (i + 1).to_string()).collect();
    let mut reason = format!("{}: step {}", entry.class, steps.join(" and "));
    if let Stored::Compressed(form) = &entry.stored {
        reason.push_str(&format!("; was {form}"));
    }
    let before = Coding::Float(precision);
    let coding = quantize.map_or(before, |(_, method)| method.coding(before));
    if prune.is_none() && entry.stored == Stored::Plain(precision.dtype()) && coding == before {
        return keep(format!("{} already", entry.describe()));
    }
    let [rows, cols] = [entry.shape.first().copied().unwrap_or(1), entry.shape.iter().skip(1).product()];
    let inputs = quantize.and_then(|(step, _)| recipe.steps()[step].input_quantization());
    let form_of = |layout, kept| {
        Form::new(&entry.shape, layout, coding, kept)
            .and_then(|form| form.with_input(inputs.map(InputQuantization::form)))
            .map_err(PipelineError::weight(checkpoint.path(), &entry.name))
    };
    let prune = prune.map(|(_, prune)| prune);
    let (mask, kept) = match prune.map(|p| p.selection) {
        None => match &entry.stored {
            Stored::Compressed(form) if form.layout() != LayoutKind::Dense => {
                (MaskPlan::OfSource, form.kept())
            }
            _ => (MaskPlan::KeepAll, rows * cols),
        },
        Some(Selection::Layer(pruning)) => (MaskPlan::of(pruning), pruning.kept(rows, cols)),
        Some(Selection::Allocated(pruning, _)) => {
            let pruning = match parts.get(&entry.name) {
                Some(Part::Sparsity(sparsity)) => pruning.with_sparsity(*sparsity),
                _ => pruning,
            };
            (MaskPlan::of(pruning), pruning.kept(rows, cols))
        }
        Some(Selection::Structured(structured)) => {
            (MaskPlan::Structured(structured), structured.kept(rows, cols))
        }
        Some(Selection::Global(_)) => match parts.get(&entry.name) {
            Some(Part::Threshold(share)) => (MaskPlan::Threshold(share.threshold), share.kept),
            _ => (MaskPlan::KeepAll, rows * cols),
        },
    };
    let dense = form_of(LayoutKind::Dense, rows * cols)?;
    let (form, layouts) = match prune.map(|p| p.layout) {
        None => match &entry.stored {
            Stored::Compressed(before) => (form_of(before.layout(), kept)?, Vec::new()),
            Stored::Plain(_) => (dense, Vec::new()),
        },
        Some(choice) => {
            let pattern = match mask {
                MaskPlan::Magnitude(Magnitude::NofM(pattern)) => Some(LayoutKind::NofM(pattern)),
                MaskPlan::Calibrated(pruning) => match pruning.pattern() {
                    SparsityPattern::NofM(pattern) => Some(LayoutKind::NofM(pattern)),
                    SparsityPattern::Unstructured(_) => None,
                },
                _ => None,
            };
            let sparse = pattern.into_iter().chain([LayoutKind::Bitmask, LayoutKind::CompressedRows]);
            // one that cannot hold it is no choice
            let mut forms: Vec<Form> = sparse.filter_map(|layout| form_of(layout, kept).ok()).collect();
            forms.push(dense);
            // of equals the first: the sparser one
            forms.sort_by_key(|form| form.bytes().total());
            let layouts: Vec<_> = forms.iter().map(|form| (form.layout(), form.bytes().total())).collect();
            let form = match choice {
                LayoutChoice::Fixed(LayoutKind::Dense) => form_of(LayoutKind::Dense, rows * cols)?,
                LayoutChoice::Fixed(layout) => form_of(layout, kept)?,
                LayoutChoice::Smallest => forms.swap_remove(0),
            };
            if choice == LayoutChoice::Smallest && form.layout() == LayoutKind::Dense {
                reason.push_str("; at this sparsity dense zeros take the fewest bytes");
            }
            (form, layouts)
        }
    };
    if format == OutputFormat::CompressedTensors
        && form.layout() == LayoutKind::Dense
        && form.coding().granularity().is_some()
        && !entry.name.ends_with(".weight")
    {
        return Err(PipelineError::Format {
            path: checkpoint.path().to_path_buf(),
            tensor: entry.name.clone(),
            form: form.to_string(),
            reason: "it names modules, and this is no module's `….weight`, so no loader would find it; ignore this \
                     tensor, or choose the format `tersor`, which only tersor reads"
                .into(),
        });
    }
    if format == OutputFormat::CompressedTensors
        && form.layout() == LayoutKind::Dense
        && let Some(reason) = compressed_tensors::why_not(&form)
    {
        return Err(PipelineError::Format {
            path: checkpoint.path().to_path_buf(),
            tensor: entry.name.clone(),
            form: form.to_string(),
            reason: format!("{reason}; {}", advice(checkpoint, recipe, &form)),
        });
    }
    if format == OutputFormat::CompressedTensors
        && form.coding().granularity().is_some()
        && is_transposed(checkpoint, entry)
    {
        return Err(PipelineError::Format {
            path: checkpoint.path().to_path_buf(),
            tensor: entry.name.clone(),
            form: form.to_string(),
            reason: "transformers keeps this layer as a transposed `Conv1D`, which it does not load quantized; ignore \
                     it, or choose the format `tersor`, which only tersor reads"
                .into(),
        });
    }
    let specs = formats::specs(&entry.name, &form);
    let quantize = quantize.map(|(_, method)| method);
    let action = PlannedAction::Compress(Job { mask, prune, quantize, inputs, form, precision });
    Ok(PlannedTensor { entry: Cow::Borrowed(entry), action, reason, layouts, specs })
}

/// A tensor that a rotated model has and its source has not.
fn plan_added(checkpoint: &Checkpoint, added: &AddedTensor) -> Result<PlannedTensor<'static>, PipelineError> {
    let like = checkpoint.entry(&added.like)?;
    let dtype = like.precision().unwrap_or(Precision::F32).dtype();
    let spec = TensorSpec { name: added.name.clone(), dtype, shape: added.shape.clone() };
    let entry = Entry {
        name: added.name.clone(),
        shape: added.shape.clone(),
        class: TensorClass::Linear,
        stored: Stored::Plain(dtype),
        bytes: spec.bytes(),
        file: like.file,
        tensors: vec![added.name.clone()],
    };
    let reason = format!("added: rotated, it is not `{}` any more", added.like);
    let (action, layouts, specs) = (PlannedAction::Copy, Vec::new(), vec![spec]);
    Ok(PlannedTensor { entry: Cow::Owned(entry), action, reason, layouts, specs })
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
