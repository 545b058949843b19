#![allow(dead_code)] // the methods that use it are on their way
//! What all calibrated methods share.

use crate::kernels::gram::quadratic_form;
use crate::layer::{Layer, LayerStats, MethodError};
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
    let hessian = stats.hessian().ok_or_else(|| MethodError::NotCalibrated {
        method: method(),
        what: "the products of all channels",
    })?;
    Ok((stats, hessian))
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
