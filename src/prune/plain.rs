//! What the calibrated methods share: how a chosen pattern is stored, and the plain alternative.

use super::magnitude::{MagnitudeThreshold, n_of_m_mask};
use super::pattern::SparsityPattern;
use crate::layer::{Layer, Method, MethodError};
use crate::quantize::FloatCast;
use crate::weight::{CompressedWeight, LayoutKind, Mask};

/// Stores, in the layer's layout and precision, what a mask keeps of some values.
///
/// # Errors
/// When a value is beyond the precision's largest, or the layout does not hold such a mask.
pub(super) fn store(layer: &Layer<'_>, mask: &Mask, values: &[f32]) -> Result<CompressedWeight, MethodError> {
    let zeroed;
    let mut values = values;
    if layer.layout == LayoutKind::Dense {
        // the other layouts leave out what is dropped
        let mut all = values.to_vec();
        mask.apply(&mut all)?;
        zeroed = all;
        values = &zeroed;
    }
    let kept = Layer { values, mask: Some(mask), ..*layer };
    Ok(FloatCast::to(layer.precision).compress(&kept)?.weight)
}

/// The layer with as many weights by magnitude.
pub(super) fn magnitude_of(
    layer: &Layer<'_>,
    kept: usize,
    pattern: SparsityPattern,
) -> Result<CompressedWeight, MethodError> {
    let (rows, cols) = (layer.rows(), layer.cols());
    let mask = match pattern {
        SparsityPattern::NofM(pattern) => n_of_m_mask(pattern, rows, cols, layer.values)?,
        SparsityPattern::Unstructured(_) => {
            let drop = (rows * cols - kept) as u64;
            MagnitudeThreshold::of(drop, &[layer.values]).next_mask(rows, cols, layer.values)?
        }
    };
    store(layer, &mask, layer.values)
}
