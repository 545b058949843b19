//! What all calibrated methods share.

use crate::kernels::gram::quadratic_form;
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

/// `‖(W − Ŵ)·Xᵀ‖² / ‖W·Xᵀ‖²`, 0 where the layer's output is zero and stays so.
///
/// # Shapes
/// `values` is `[rows, cols]` of the weight, `hessian` is `[cols, cols]`.
pub(crate) fn output_error(values: &[f32], weight: &CompressedWeight, hessian: &[f32]) -> f64 {
    let decoded = weight.dequantize();
    let difference: Vec<f32> = values.iter().zip(&decoded).map(|(w, q)| w - q).collect();
    let cols = weight.cols();
    let error = quadratic_form(&difference, cols, hessian);
    let output = quadratic_form(values, cols, hessian);
    if error == 0.0 { 0.0 } else { error / output }
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
    let rounding_error = output_error(layer.values, &rounding.weight, hessian);
    let method_error = output_error(layer.values, &found, hessian);
    let kept_rounding = method_error > rounding_error || method_error.is_nan();
    let outcome = Outcome {
        rounding_error,
        method_error,
        kept_rounding,
        damping: 0.0,
        dead_channels: stats.abs_max().iter().filter(|max| **max == 0.0).count(),
        tokens: stats.tokens(),
        notes: Vec::new(),
    };
    let weight = if kept_rounding { rounding.weight } else { found };
    Compressed { weight, clamped: rounding.clamped, outcome: Some(outcome) }
}
