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

/// Errors `‖(W − Ŵ)·Xᵀ‖² / ‖W·Xᵀ‖²` of several results; 0 where the output is as it was.
///
/// # Shapes
/// `values` is `[rows, cols]` of the weights, `hessian` is `[cols, cols]`.
pub(super) fn output_errors<const N: usize>(
    values: &[f32],
    weights: [&CompressedWeight; N],
    hessian: &[f32],
) -> [f64; N] {
    let mut output = None;
    weights.map(|weight| {
        let cols = weight.cols();
        let decoded = weight.dequantize();
        let difference: Vec<f32> = values.iter().zip(&decoded).map(|(w, q)| w - q).collect();
        let error = quadratic_form(&difference, cols, hessian);
        let output = output.get_or_insert_with(|| quadratic_form(values, cols, hessian));
        // a negative sum is a rounding error of nearly nothing
        if error <= 0.0 { 0.0 } else { error / *output }
    })
}

/// What a method made of a layer.
pub(super) struct Found {
    pub(super) weight: CompressedWeight,
    /// See [`Outcome::damping`].
    pub(super) damping: f64,
    pub(super) notes: Vec<String>,
}

/// What a method found, or the layer rounded to nearest if that serves the output at least as well.
pub(super) fn keep_better(
    layer: &Layer<'_>,
    (stats, hessian): (&LayerStats, &[f32]),
    rounded: CompressedWeight,
    found: Found,
) -> Compressed {
    let [rounding_error, method_error] = output_errors(layer.values, [&rounded, &found.weight], hessian);
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
    let found = Found { weight: found, damping: 0.0, notes: Vec::new() };
    keep_better(layer, (stats, hessian), rounding.weight, found)
}
