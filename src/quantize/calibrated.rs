//! What all calibrated methods share.

use rayon::prelude::*;

use crate::kernels::gram::quadratic_forms;
use crate::layer::{Alternative, Compressed, Layer, LayerStats, MethodError, Outcome};
use crate::weight::CompressedWeight;

/// The statistics of a layer, with the Hessian that a method needs.
///
/// # Errors
/// When there are none, they have no Hessian, nothing was seen, or they are of another layer.
pub(crate) fn hessian<'a>(
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
pub(crate) fn hessian_of(stats: &LayerStats, method: impl Fn() -> String) -> Result<&[f32], MethodError> {
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
pub(crate) fn statistics<'a>(
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

/// What becomes of a layer without regard to its output.
pub(crate) struct Plain {
    pub(crate) what: Alternative,
    pub(crate) weight: CompressedWeight,
}

/// What a method made of a layer.
pub(crate) struct Found {
    pub(crate) weight: CompressedWeight,
    /// See [`Outcome::damping`].
    pub(crate) damping: f64,
    pub(crate) notes: Vec<String>,
    /// `‖(W − Ŵ)·Xᵀ‖²` where the method has come upon it on its way.
    pub(crate) squared_error: Option<f64>,
}

impl Found {
    /// A weight of which nothing more is to be said.
    pub(crate) fn new(weight: CompressedWeight) -> Self {
        Self { weight, damping: 0.0, notes: Vec::new(), squared_error: None }
    }
}

/// Rows whose errors are measured together: what they take is little beside a large weight, and the Hessian is packed once for
/// many.
const ROWS: usize = 1024;

/// Bytes that [`keep_better`] takes for a weight of this shape: two differences, and all three in columns.
pub(crate) fn comparison_bytes(rows: usize, cols: usize) -> usize {
    5 * size_of::<f32>() * rows.min(ROWS) * cols
}

/// `‖W·Xᵀ‖²`, and `‖(W − Ŵ)·Xᵀ‖²` of several results.
pub(super) fn squared_errors<const N: usize>(
    layer: &Layer<'_>,
    weights: [&CompressedWeight; N],
    hessian: &[f32],
) -> (f64, [f64; N]) {
    let (mut output, mut errors) = (0.0, [0.0; N]);
    let cols = layer.cols();
    let mut differences = weights.map(|_| Vec::new());
    for (part, values) in layer.values.chunks((ROWS * cols).max(1)).enumerate() {
        let rows = part * ROWS..part * ROWS + values.len() / cols;
        for (difference, weight) in differences.iter_mut().zip(weights) {
            difference.resize(values.len(), 0.0);
            weight.dequantize_rows(rows.clone(), difference);
            difference.par_iter_mut().zip(values).for_each(|(q, w)| *q = w - *q);
        }
        let all: Vec<&[f32]> = std::iter::once(values).chain(differences.iter().map(Vec::as_slice)).collect();
        let sums = quadratic_forms(&all, cols, hessian);
        output += sums[0];
        errors.iter_mut().zip(&sums[1..]).for_each(|(error, sum)| *error += sum);
    }
    (output, errors)
}

/// What a method found, or the plain alternative if that serves the output at least as well; with the errors
/// `‖(W − Ŵ)·Xᵀ‖² / ‖W·Xᵀ‖²` of both, 0 where the output is as it was.
pub(crate) fn keep_better(
    layer: &Layer<'_>,
    (stats, hessian): (&LayerStats, &[f32]),
    plain: Plain,
    found: Found,
) -> Compressed {
    let (output, [plain_error, method_error]) = if let Some(error) = found.squared_error {
        let (output, [plain]) = squared_errors(layer, [&plain.weight], hessian);
        (output, [plain, error])
    } else {
        squared_errors(layer, [&plain.weight, &found.weight], hessian)
    };
    // a negative sum is a rounding error of nearly nothing
    let relative = |squared: f64| if squared <= 0.0 { 0.0 } else { squared / output };
    let (plain_error, method_error) = (relative(plain_error), relative(method_error));
    // an error that is not a number is no better either
    let better = method_error <= plain_error;
    let mut notes = found.notes;
    if stats.tokens() < stats.size() as u64 {
        notes.push(format!(
            "{} tokens say little of {} input features: calibrate with more",
            stats.tokens(),
            stats.size()
        ));
    }
    let outcome = Outcome {
        plain: plain.what,
        plain_error,
        method_error,
        kept_plain: !better,
        damping: found.damping,
        dead_channels: stats.abs_max().iter().filter(|x| **x == 0.0).count(),
        tokens: stats.tokens(),
        notes,
    };
    let weight = if better { found.weight } else { plain.weight };
    Compressed { weight, clamped: 0, outcome: Some(outcome) }
}

/// What a method made of a layer, unless plain rounding is better.
///
/// `rounding` is the layer rounded to nearest with the same codes, `found` what the method made of it.
pub(crate) fn better_of(
    layer: &Layer<'_>,
    stats: &LayerStats,
    hessian: &[f32],
    rounding: Compressed,
    found: CompressedWeight,
) -> Compressed {
    let plain = Plain { what: Alternative::Rounding, weight: rounding.weight };
    keep_better(layer, (stats, hessian), plain, Found::new(found))
}
