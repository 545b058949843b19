//! What the calibrated methods share: how a chosen pattern is stored, the plain alternative, and what is done around a search that
//! goes by the Hessian.

use super::magnitude::{MagnitudeThreshold, n_of_m_mask};
use super::pattern::SparsityPattern;
use crate::dtype::Precision;
use crate::kernels::memory::copy;
use crate::kernels::reduce;
use crate::layer::{Alternative, Compressed, Layer, Method, MethodError};
use crate::quantize::calibrated::{Found, Plain, hessian, keep_better};
use crate::quantize::factor::Factor;
use crate::quantize::sweep::Swept;
use crate::quantize::{Damping, FloatCast};
use crate::weight::{CompressedWeight, Layout, LayoutKind, Mask, Values};

/// Stores, in the layer's layout and precision, what a mask keeps of some finite values.
///
/// # Errors
/// When a value is beyond the precision's largest, or the layout does not hold such a mask.
pub(super) fn store(
    layer: &Layer<'_>,
    mask: &Mask,
    mut values: Vec<f32>,
) -> Result<CompressedWeight, MethodError> {
    if layer.layout == LayoutKind::Dense {
        // the other layouts leave out what is dropped
        mask.apply(&mut values)?;
        if layer.precision == Precision::F32 {
            return Ok(CompressedWeight::from_parts(layer.shape, Layout::Dense, Values::F32(values))?);
        }
    }
    let kept = Layer { values: &values, mask: Some(mask), ..*layer };
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
    store(layer, &mask, copy(layer.values))
}

/// Prunes a layer by what `search` finds with the factor of its Hessian, or by magnitude, whichever serves the output better.
///
/// # Errors
/// What is wrong with the layer, its statistics or the damping; what `search` returns; and values that go beyond the precision.
pub(super) fn by_hessian(
    method: &impl Method,
    layer: &Layer<'_>,
    pattern: SparsityPattern,
    damping: Damping,
    search: impl FnOnce(&Factor) -> Result<Swept<Vec<f32>>, MethodError>,
) -> Result<Compressed, MethodError> {
    damping.check()?;
    layer.check()?;
    let (rows, cols) = (layer.rows(), layer.cols());
    layer.mask.map_or(Ok(()), |mask| mask.check(rows, cols))?;
    let (stats, hessian) = hessian(layer, || method.name())?;
    let weight = magnitude_of(layer, pattern.kept(rows, cols), pattern)?;
    let plain = Plain { what: Alternative::Magnitude, weight };
    if layer.values.is_empty() {
        let found = Found::new(plain.weight.clone());
        return Ok(keep_better(layer, (stats, hessian), plain, found));
    }
    let factor = Factor::new(hessian, cols, false, damping)?;
    let Swept { result: values, mask, squared_error } = search(&factor)?;
    if reduce::first_non_finite(&values).is_some() {
        // finite before: what it made good for was beyond the precision's largest
        let (min, max) = reduce::min_max(layer.values)?;
        return Err(MethodError::Range { min, max });
    }
    let mask = mask.unwrap_or_else(|| Mask::keep_all(rows, cols));
    let weight = store(layer, &mask, values)?;
    let (damping, notes) = (factor.damping, factor.note().into_iter().collect());
    let found = Found { weight, damping, notes, squared_error };
    Ok(keep_better(layer, (stats, hessian), plain, found))
}
