//! What becomes of one tensor, and why.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use super::{Job, MaskPlan, PlannedAction, PlannedTensor};
use crate::checkpoint::formats::{self, compressed_tensors};
use crate::checkpoint::{Checkpoint, Entry, Stored, TensorClass, TensorSpec};
use crate::dtype::Precision;
use crate::factorize::{Factorize, Rank};
use crate::kernels::reduce;
use crate::layer::{Method, MethodError};
use crate::pipeline::PipelineError;
use crate::pipeline::advice::{advice, is_transposed};
use crate::pipeline::global::{Part, Sensitivities, allocated, shares};
use crate::prune::{Magnitude, SparsityPattern};
use crate::recipe::{
    Action, Decision, InputQuantization, LayoutChoice, OutputFormat, Prune, Recipe, Selection, Written,
};
use crate::transform::AddedTensor;
use crate::weight::{Coding, Form, LayoutKind, LowRankForm};

/// Why a tensor cannot be compressed at all.
pub(in crate::pipeline) fn compressible(entry: &Entry) -> Result<Precision, String> {
    match (entry.precision(), &entry.stored) {
        _ if entry.elements() == 0 => Err("it has no elements".into()),
        (Some(precision), _) => Ok(precision),
        (None, Stored::Plain(dtype)) => Err(format!("{dtype:?} is no float")),
        (None, Stored::Compressed(_)) => Err("it is no float".into()),
    }
}

/// What the pruning step that spans several tensors asks of each.
pub(super) fn parts_of_all(
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

pub(super) fn plan_tensor<'a>(
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
    let (prune, written) = match recipe.decide(&entry.name, entry.class)? {
        Decision::Ignored(pattern) => return keep(format!("ignored by `{pattern}`")),
        Decision::NotNamed => return keep(format!("{}: no step names it", entry.class)),
        Decision::Apply { prune, written } => (prune, written),
    };
    let precision = match compressible(entry) {
        Ok(precision) => precision,
        Err(reason) => return keep(reason),
    };
    let steps: Vec<String> =
        prune.iter().map(|p| p.0).chain(written.iter().map(|w| w.0)).map(|i| (i + 1).to_string()).collect();
    let mut reason = format!("{}: step {}", entry.class, steps.join(" and "));
    if let Stored::Compressed(form) = &entry.stored {
        reason.push_str(&format!("; was {form}"));
    }
    let before = Coding::Float(precision);
    if let Some((_, Written::Factorized(factorize))) = written {
        let (form, factorize) = match factorized(checkpoint, entry, precision, factorize)? {
            Ok(made) => made,
            Err(dense) => return keep(format!("{reason}; {dense}")),
        };
        check_format(checkpoint, recipe, format, entry, &form)?;
        let specs = formats::specs(&entry.name, &form);
        let (mask, written) = (MaskPlan::KeepAll, Some(Written::Factorized(factorize)));
        let action =
            PlannedAction::Compress(Job { mask, prune: None, written, inputs: None, form, precision });
        let layouts = Vec::new();
        return Ok(PlannedTensor { entry: Cow::Borrowed(entry), action, reason, layouts, specs });
    }
    let method = written.as_ref().map(|(_, written)| written.method());
    let coding = method.map_or(before, |method| method.coding(before));
    let correction = method.and_then(|method| method.correction(&entry.shape, before));
    let is_as_before = entry.stored == Stored::Plain(precision.dtype()) && coding == before;
    if prune.is_none() && is_as_before && correction.is_none() {
        return keep(format!("{} already", entry.describe()));
    }
    let [rows, cols] = [entry.shape.first().copied().unwrap_or(1), entry.shape.iter().skip(1).product()];
    let inputs = written.as_ref().and_then(|(step, _)| recipe.steps()[*step].input_quantization());
    let form_of = |layout, kept| {
        Form::new(&entry.shape, layout, coding, kept)
            .and_then(|form| form.with_input(inputs.map(InputQuantization::form)))
            .and_then(|form| form.with_correction(correction))
            .map_err(PipelineError::weight(checkpoint.path(), &entry.name))
    };
    let prune = prune.map(|(_, prune)| prune);
    let (mask, kept) = match prune.map(|p| p.selection) {
        None => match &entry.stored {
            Stored::Compressed(form) if form.is_sparse() => (MaskPlan::OfSource, form.kept()),
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
            Stored::Compressed(before) if before.is_sparse() => (form_of(before.layout(), kept)?, Vec::new()),
            _ => (dense, Vec::new()),
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
    if correction.is_some() && form.bytes().total() >= entry.bytes {
        return keep(format!(
            "{reason}; with its correction it takes {} bytes and as it is {}, so it stays",
            form.bytes().total(),
            entry.bytes
        ));
    }
    check_format(checkpoint, recipe, format, entry, &form)?;
    let specs = formats::specs(&entry.name, &form);
    let written = written.map(|(_, written)| written);
    let action = PlannedAction::Compress(Job { mask, prune, written, inputs, form, precision });
    Ok(PlannedTensor { entry: Cow::Borrowed(entry), action, reason, layouts, specs })
}

/// The form of a tensor's factors, and what makes them, the rank being known; or why the tensor stays as it is.
fn factorized(
    checkpoint: &Checkpoint,
    entry: &Entry,
    precision: Precision,
    factorize: Factorize,
) -> Result<Result<(Form, Factorize), String>, PipelineError> {
    let [rows, cols] = [entry.shape.first().copied().unwrap_or(1), entry.shape.iter().skip(1).product()];
    let dense = Coding::Float(precision);
    let coding = factorize.coding(dense);
    let rank = factorize.rank().of([rows, cols], dense, coding, || {
        let values = checkpoint.values(&entry.name)?;
        match reduce::first_non_finite(&values) {
            None => Ok(values),
            Some(found) => {
                Err(PipelineError::method(checkpoint.path(), &entry.name)(MethodError::from(found)))
            }
        }
    })?;
    let Some(fixed) = NonZeroUsize::new(rank) else {
        return Ok(Err("not even factors of rank 1 fit, so it stays".into()));
    };
    let form = Form::of_factors(&entry.shape, LowRankForm { rank, coding })
        .map_err(PipelineError::weight(checkpoint.path(), &entry.name))?;
    let bytes = form.bytes().total();
    if bytes >= entry.bytes {
        let kept =
            format!("factors of rank {rank} take {bytes} bytes and as it is {}, so it stays", entry.bytes);
        return Ok(Err(kept));
    }
    Ok(Ok((form, factorize.with_rank(Rank::fixed(fixed)))))
}

/// The output format must be able to hold what is quantized or factorized.
fn check_format(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    format: OutputFormat,
    entry: &Entry,
    form: &Form,
) -> Result<(), PipelineError> {
    let is_named = form.layout() == LayoutKind::Dense || form.low_rank().is_some();
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
        && is_named
        && let Some(reason) = compressed_tensors::why_not(form)
    {
        return Err(PipelineError::Format {
            path: checkpoint.path().to_path_buf(),
            tensor: entry.name.clone(),
            form: form.to_string(),
            reason: format!("{reason}; {}", advice(checkpoint, recipe, form)),
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
    Ok(())
}

/// A tensor that a rotated model has and its source has not.
pub(super) fn plan_added(
    checkpoint: &Checkpoint,
    added: &AddedTensor,
) -> Result<PlannedTensor<'static>, PipelineError> {
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
