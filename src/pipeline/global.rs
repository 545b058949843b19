use std::collections::BTreeMap;

use super::PipelineError;
use crate::checkpoint::{Checkpoint, Entry};
use crate::kernels::reduce;
use crate::prune::{MagnitudeThreshold, Sparsity};

/// A tensor's part in a pruning step that spans several: the threshold as it stands when the tensor's turn comes, and
/// how many weights the tensor keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub(super) threshold: MagnitudeThreshold,
    pub(super) kept: usize,
}

/// Finds the common threshold of some tensors. Reads each of them a few times, one at a time.
pub(super) fn shares(
    checkpoint: &Checkpoint,
    entries: &[&Entry],
    sparsity: Sparsity,
) -> Result<BTreeMap<String, Share>, PipelineError> {
    let total: u64 = entries.iter().map(|e| e.elements() as u64).sum();
    let mut checked = false;
    let mut threshold = MagnitudeThreshold::find(sparsity.of(total), |show| {
        for entry in entries {
            let values = checkpoint.dense(&entry.name)?;
            if !checked && let Some(found) = reduce::first_non_finite(&values) {
                return Err(PipelineError::method(checkpoint.path(), &entry.name)(found.into()));
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
