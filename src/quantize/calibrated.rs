//! What all calibrated methods share.

use rayon::prelude::*;

use crate::kernels::gram::quadratic_forms;
use crate::layer::{Compressed, Layer, LayerStats, MethodError, Outcome};
use crate::weight::CompressedWeight;

/// The statistics of a layer, with the Hessian that a method needs.
///
/// # Errors
/// When there are none, they have no Hessian, nothing was seen, or they are of another layer.
pub(super) fn hessian<'a>(
    layer: &Layer<'a>,
    method: impl Fn() -> String,
) -> Result<(&'a LayerStats, &'a [f32]), MethodError> {
    let stats = statistics(layer, &method)?;
    Ok((stats, hessian_of(stats, method)?))
}

/// The Hessian that a method needs.
///
/// # Errors
/// When it was not gathered, or nothing was seen.
pub(super) fn hessian_of(stats: &LayerStats, method: impl Fn() -> String) -> Result<&[f32], MethodError> {
    let missing = |what| MethodError::NotCalibrated { method: method(), what };
    if stats.tokens() == 0 {
        return Err(missing("samples"));
    }
    stats.hessian().ok_or_else(|| missing("the products of all channels"))
}

/// The statistics of a layer.
///
/// # Errors
/// When there are none, nothing was seen, or they are of another layer.
pub(super) fn statistics<'a>(
    layer: &Layer<'a>,
    method: impl Fn() -> String,
) -> Result<&'a LayerStats, MethodError> {
    let Some(stats) = layer.stats.filter(|stats| stats.tokens() > 0) else {
        return Err(MethodError::NotCalibrated { method: method(), what: "samples" });
    };
    if stats.size() != layer.cols() {
        return Err(MethodError::StatsShape { expected: layer.cols(), actual: stats.size() });
    }
    Ok(stats)
}

/// What a method made of a layer.
pub(super) struct Found {
    pub(super) weight: CompressedWeight,
    /// See [`Outcome::damping`].
    pub(super) damping: f64,
    pub(super) notes: Vec<String>,
    /// `‖(W − Ŵ)·Xᵀ‖²` where the method has come upon it on its way.
    pub(super) squared_error: Option<f64>,
}

/// Bytes that [`keep_better`] takes for a layer of so many weights: two differences, and all three in columns.
pub(super) fn comparison_bytes(weights: usize) -> usize {
    5 * size_of::<f32>() * weights
}

/// What a method found, or the layer rounded to nearest if that serves the output at least as well; with the errors
/// `‖(W − Ŵ)·Xᵀ‖² / ‖W·Xᵀ‖²` of both, 0 where the output is as it was.
pub(super) fn keep_better(
    layer: &Layer<'_>,
    (stats, hessian): (&LayerStats, &[f32]),
    rounded: CompressedWeight,
    found: Found,
) -> Compressed {
    let difference = |weight: &CompressedWeight| {
        let mut values = weight.dequantize().into_raw_vec_and_offset().0;
        values.par_iter_mut().zip(layer.values).for_each(|(q, w)| *q = w - *q);
        values
    };
    let of_rounding = difference(&rounded);
    let ([output, rounding_error], method_error) = if let Some(error) = found.squared_error {
        (quadratic_forms([layer.values, &of_rounding], layer.cols(), hessian), error)
    } else {
        let differences = [layer.values, &of_rounding, &difference(&found.weight)];
        let [output, rounding, method] = quadratic_forms(differences, layer.cols(), hessian);
        ([output, rounding], method)
    };
    // a negative sum is a rounding error of nearly nothing
    let relative = |squared: f64| if squared <= 0.0 { 0.0 } else { squared / output };
    let (rounding_error, method_error) = (relative(rounding_error), relative(method_error));
    // an error that is not a number is no better either
    let better = method_error <= rounding_error;
    let mut notes = found.notes;
    if stats.tokens() < stats.size() as u64 {
        notes.push(format!(
            "{} tokens say little of {} input features: calibrate with more",
            stats.tokens(),
            stats.size()
        ));
    }
    let outcome = Outcome {
        rounding_error,
        method_error,
        kept_rounding: !better,
        damping: found.damping,
        dead_channels: stats.abs_max().iter().filter(|x| **x == 0.0).count(),
        tokens: stats.tokens(),
        notes,
    };
    let weight = if better { found.weight } else { rounded };
    Compressed { weight, clamped: 0, outcome: Some(outcome) }
}

/// What a method made of a layer, unless plain rounding is better.
///
/// `rounding` is the layer rounded to nearest with the same codes, `found` what the method made of it.
pub(super) fn better_of(
    layer: &Layer<'_>,
    stats: &LayerStats,
    hessian: &[f32],
    rounding: Compressed,
    found: CompressedWeight,
) -> Compressed {
    let found = Found { weight: found, damping: 0.0, notes: Vec::new(), squared_error: None };
    keep_better(layer, (stats, hessian), rounding.weight, found)
}
