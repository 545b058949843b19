use serde::Serialize;

use crate::checkpoint::{Checkpoint, CheckpointError, Entry, Stored, TensorClass};
use crate::evaluate::WeightErrors;

/// How far one tensor is from the reference's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerError {
    /// Its name.
    pub name: String,
    /// What it is to the network: `linear`, `conv`, `embedding`, `norm`, `bias`, `other`.
    pub class: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How the reference stores it.
    pub before: String,
    /// How it is stored.
    pub after: String,
    /// Its bytes in the reference.
    pub bytes_before: u64,
    /// Its bytes.
    pub bytes_after: u64,
    /// How far its values are from the reference's.
    #[serde(flatten)]
    pub errors: WeightErrors,
}

/// A tensor that stands in a checkpoint or in its reference, and could not be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotCompared {
    /// Its name.
    pub name: String,
    /// Why not: it is missing on one side, or has another shape.
    pub reason: String,
}

/// Compares every tensor of floats with the reference's, one at a time, and names those that cannot be compared.
pub(super) fn compare(
    reference: &Checkpoint,
    checkpoint: &Checkpoint,
) -> Result<(Vec<LayerError>, Vec<NotCompared>), CheckpointError> {
    let (mut layers, mut not_compared) = (Vec::new(), Vec::new());
    let mut leave_out =
        |name: &str, reason: String| not_compared.push(NotCompared { name: name.to_owned(), reason });
    for before in reference.entries() {
        let Ok(after) = checkpoint.entry(&before.name) else {
            leave_out(&before.name, "it is missing".into());
            continue;
        };
        if let Some(reason) = clash(before, after) {
            leave_out(&before.name, reason);
            continue;
        }
        if before.precision().is_none() || before.elements() == 0 {
            continue;
        }
        let errors =
            WeightErrors::between(&reference.values(&before.name)?, &checkpoint.values(&before.name)?);
        reference.release_entry(before);
        checkpoint.release_entry(after);
        layers.push(LayerError {
            name: before.name.clone(),
            class: before.class.to_string(),
            shape: before.shape.clone(),
            before: before.describe(),
            after: after.describe(),
            bytes_before: before.bytes,
            bytes_after: after.bytes,
            errors,
        });
    }
    for after in checkpoint.entries() {
        if reference.entry(&after.name).is_err() {
            leave_out(&after.name, "the reference has no such tensor".into());
        }
    }
    Ok((layers, not_compared))
}

fn clash(before: &Entry, after: &Entry) -> Option<String> {
    if before.shape != after.shape {
        return Some(format!("shape {:?} became {:?}", before.shape, after.shape));
    }
    let differ = before.precision().is_some() != after.precision().is_some();
    differ.then(|| format!("{} became {}", before.describe(), after.describe()))
}

/// The layer that lost most; `None` if all are exact. NaN is worse than anything.
pub(super) fn worst(layers: &[LayerError]) -> Option<&LayerError> {
    let error = |layer: &LayerError| {
        let relative = layer.errors.relative;
        if relative.is_nan() { f64::INFINITY } else { relative }
    };
    let mut worst: Option<&LayerError> = None;
    for layer in layers {
        if error(layer) > worst.map_or(0.0, error) {
            worst = Some(layer);
        }
    }
    worst
}

/// Bytes of linear, convolution and embedding weights: values, positions, scales and zero points.
pub(super) fn weight_bytes(checkpoint: &Checkpoint) -> u64 {
    let is_weight = |class| matches!(class, TensorClass::Linear | TensorClass::Conv | TensorClass::Embedding);
    let weights = checkpoint.entries().iter().filter(|e| is_weight(e.class));
    weights
        .map(|e| match &e.stored {
            Stored::Compressed(form) if !e.is_entropy_coded() => form.bytes().total(),
            _ => e.bytes,
        })
        .sum()
}
