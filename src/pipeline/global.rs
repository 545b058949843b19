use std::collections::BTreeMap;

use super::PipelineError;
use crate::checkpoint::{Checkpoint, Entry, Stored};
use crate::dtype::{FloatType, Precision};
use crate::kernels::reduce;
use crate::kernels::select::{self, Source, Standing};
use crate::layer::Layer;
use crate::prune::{
    Allocation, MagnitudeThreshold, Pruning, Sensitivity, Sparsity, by_sensitivity, erdos_renyi_kernel,
};

/// What pruning costs layers, by the names of their weights.
pub(super) type Sensitivities = BTreeMap<String, Sensitivity>;

/// A tensor's part in a pruning step that spans several: the threshold as it stands when the tensor's turn comes, and
/// how many weights the tensor keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) threshold: MagnitudeThreshold,
    pub(super) kept: usize,
}

/// What a pruning step that spans several tensors asks of each.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Threshold(Share),
    Sparsity(Sparsity),
}

/// The sparsity of each of some tensors, of which all together have `sparsity`. What was not measured is now, by its weights.
pub(super) fn allocated(
    checkpoint: &Checkpoint,
    entries: &[&Entry],
    (pruning, sparsity): (&Pruning, Sparsity),
    allocation: Allocation,
    measured: &Sensitivities,
) -> Result<BTreeMap<String, Sparsity>, PipelineError> {
    match allocation {
        Allocation::Sensitivity => {
            let of = |entry: &&Entry| {
                if let Some(sensitivity) = measured.get(&entry.name) {
                    return Ok(sensitivity.clone());
                }
                let values = checkpoint.dense(&entry.name)?;
                let layer = Layer::new(&entry.shape, &values, entry.precision().unwrap_or(Precision::F32));
                let sensitivity = Sensitivity::measure(&layer, pruning);
                sensitivity.map_err(PipelineError::method(checkpoint.path(), &entry.name))
            };
            let all = entries.iter().map(of).collect::<Result<Vec<_>, PipelineError>>()?;
            let names = entries.iter().map(|entry| entry.name.clone());
            Ok(names.zip(by_sensitivity(&all, sparsity)).collect())
        }
        Allocation::ErdosRenyiKernel => {
            let shapes: Vec<&[usize]> = entries.iter().map(|entry| entry.shape.as_slice()).collect();
            let names = entries.iter().map(|entry| entry.name.clone());
            Ok(names.zip(erdos_renyi_kernel(&shapes, sparsity)).collect())
        }
        Allocation::Global => {
            let shares = shares(checkpoint, entries, sparsity)?;
            let of = |entry: &&Entry| {
                let (all, kept) = (entry.elements(), shares.get(&entry.name).map_or(0, |share| share.kept));
                // a layer that would lose everything has no sparsity, and the error says so
                let share = Sparsity::new((all - kept) as f64 / all.max(1) as f64);
                Ok((
                    entry.name.clone(),
                    share.map_err(PipelineError::method(checkpoint.path(), &entry.name))?,
                ))
            };
            entries.iter().map(of).collect()
        }
    }
}

/// Finds the common threshold of some tensors: by one pass over them where they are plain floats, of which only those
/// that are not aligned `f32` are widened, a piece at a time; otherwise a tensor at a time, by a few passes.
pub(super) fn shares(
    checkpoint: &Checkpoint,
    entries: &[&Entry],
    sparsity: Sparsity,
) -> Result<BTreeMap<String, Share>, PipelineError> {
    let total: u64 = entries.iter().map(|e| e.elements() as u64).sum();
    let drop = sparsity.of(total);
    let sources: Option<Vec<Source<'_>>> = entries.iter().map(|e| source(checkpoint, e)).collect();
    let Some(sources) = sources else {
        return shares_of_decoded(checkpoint, entries, drop);
    };
    let selection = select::select(&sources, drop);
    if !selection.finite {
        for entry in entries {
            check_finite(checkpoint, entry, &checkpoint.dense(&entry.name)?)?;
        }
    }
    let mut threshold = MagnitudeThreshold::from_cut(selection.cut);
    let share = |(entry, standing): (&&Entry, Standing)| {
        let before = threshold;
        let kept = threshold.next_kept(standing) as usize;
        (entry.name.clone(), Share { threshold: before, kept })
    };
    Ok(entries.iter().zip(selection.standings).map(share).collect())
}

/// A tensor's elements in its file, if nothing but widening makes them its values.
fn source<'a>(checkpoint: &'a Checkpoint, entry: &Entry) -> Option<Source<'a>> {
    let Stored::Plain(dtype) = entry.stored else { return None };
    // codes of 8 bits may belong to scales, which the checkpoint looks for
    let float = FloatType::of(dtype).filter(|float| float.size() > 1)?;
    Some(Source::of(float, checkpoint.tensor(&entry.name).ok()?.bytes))
}

fn check_finite(checkpoint: &Checkpoint, entry: &Entry, values: &[f32]) -> Result<(), PipelineError> {
    match reduce::first_non_finite(values) {
        Some(found) => Err(PipelineError::method(checkpoint.path(), &entry.name)(found.into())),
        None => Ok(()),
    }
}

/// As [`shares`], of tensors in any form.
fn shares_of_decoded(
    checkpoint: &Checkpoint,
    entries: &[&Entry],
    drop: u64,
) -> Result<BTreeMap<String, Share>, PipelineError> {
    let mut checked = false;
    let mut threshold = MagnitudeThreshold::find(drop, |show| {
        for entry in entries {
            let values = checkpoint.dense(&entry.name)?;
            if !checked {
                check_finite(checkpoint, entry, &values)?;
            }
            show(&values);
        }
        checked = true;
        Ok::<(), PipelineError>(())
    })?;
    let mut shares = BTreeMap::new();
    for entry in entries {
        let values = checkpoint.dense(&entry.name)?;
        let before = threshold;
        let rows = entry.shape.first().copied().unwrap_or(1);
        let cols = entry.shape.iter().skip(1).product();
        let mask = threshold
            .next_mask(rows, cols, &values)
            .map_err(PipelineError::method(checkpoint.path(), &entry.name))?;
        shares.insert(entry.name.clone(), Share { threshold: before, kept: mask.kept() });
    }
    Ok(shares)
}
