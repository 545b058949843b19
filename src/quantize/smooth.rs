use super::round::RoundToNearest;
use crate::kernels::gram::quadratic_form;
use crate::layer::{Layer, LayerStats, Method, MethodError};
use crate::weight::Bits;

/// The bits that activations and weights are smoothed for.
const EIGHT: Bits = Bits::new(8).unwrap();

/// How strongly activations are smoothed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Smoothing {
    /// The power of the activations' magnitude, from 0 to 1.
    Alpha(f32),
    /// The best of 0.1, 0.2, … 0.9, or no smoothing, under a model of the error of 8-bit weights and activations. Needs the Hessian.
    Search,
}

impl Default for Smoothing {
    /// The paper's 0.5.
    fn default() -> Self {
        Self::Alpha(0.5)
    }
}

/// The scales of input channels that [`smooth_scales`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct SmoothScales {
    /// What columns of the weights are to be multiplied by, and the inputs divided by.
    pub scales: Vec<f32>,
    /// The power of the activations' magnitude; `None` when the search found no smoothing better.
    pub alpha: Option<f32>,
    /// The error of the outputs with 8-bit weights and activations, of the outputs' size; `None` without a Hessian.
    pub error: Option<f64>,
    /// The same without smoothing.
    pub plain_error: Option<f64>,
}

/// The scales of input channels that share the difficulty of quantizing between activations and weights.
///
/// `s_j = max|X_j|^α / max|W_j|^(1 − α)` over the weights of all layers that share the input; 1 for a channel whose inputs or
/// weights are all zero.
/// Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (2022), equation 4.
///
/// Errors are those of symmetric 8-bit weights with a scale per channel, computed exactly by way of the Hessian, plus those of
/// symmetric 8-bit activations with one scale, taken for uniform noise: `step² / 12 · ‖W·s‖²`.
///
/// # Shapes
/// All layers and the statistics have the same input features; so many are the scales.
///
/// # Errors
/// When nothing was seen, the search lacks a Hessian, the statistics are of another layer, a weight is NaN or infinite, there are
/// no layers, or α is not from 0 to 1.
pub fn smooth_scales(
    layers: &[Layer<'_>],
    stats: &LayerStats,
    smoothing: Smoothing,
) -> Result<SmoothScales, MethodError> {
    let size = stats.size();
    let missing = |what| MethodError::NotCalibrated { method: "SmoothQuant".to_owned(), what };
    if stats.tokens() == 0 {
        return Err(missing("samples"));
    }
    if layers.is_empty() {
        let (option, expected) = ("layers that share an input", "at least 1");
        return Err(MethodError::Option { option, value: 0.0, expected });
    }
    let mut weights = vec![0.0f32; size];
    for layer in layers {
        layer.check()?;
        if layer.cols() != size {
            return Err(MethodError::StatsShape { expected: layer.cols(), actual: size });
        }
        for row in layer.values.chunks_exact(size.max(1)) {
            for (largest, w) in weights.iter_mut().zip(row) {
                *largest = largest.max(w.abs());
            }
        }
    }
    let errors = stats.hessian().map(|hessian| W8A8::new(layers, stats, hessian));
    let error_of = |scales: &[f32]| errors.as_ref().map(|errors| errors.of(scales)).transpose();
    let plain = vec![1.0; size];
    let plain_error = error_of(&plain)?;
    let scales_at = |alpha: f32| scales_at(alpha, stats.abs_max(), &weights);
    match smoothing {
        Smoothing::Alpha(alpha) => {
            if !(0.0..=1.0).contains(&alpha) {
                let (value, expected) = (f64::from(alpha), "between 0 and 1");
                return Err(MethodError::Option { option: "alpha", value, expected });
            }
            let scales = scales_at(alpha);
            let error = error_of(&scales)?;
            Ok(SmoothScales { scales, alpha: Some(alpha), error, plain_error })
        }
        Smoothing::Search => {
            let Some(plain_error) = plain_error else { return Err(missing("the products of all channels")) };
            let mut best = (plain_error, None, plain);
            for tenth in 1..10u8 {
                let alpha = f32::from(tenth) / 10.0;
                let scales = scales_at(alpha);
                // a scaled weight may leave the precision's range, which only rules out this power
                let Ok(Some(error)) = error_of(&scales) else { continue };
                if error < best.0 {
                    best = (error, Some(alpha), scales);
                }
            }
            let (error, alpha, scales) = best;
            Ok(SmoothScales { scales, alpha, error: Some(error), plain_error: Some(plain_error) })
        }
    }
}

fn scales_at(alpha: f32, activations: &[f32], weights: &[f32]) -> Vec<f32> {
    let (of_inputs, of_weights) = (f64::from(alpha), 1.0 - f64::from(alpha));
    let channels = activations.iter().zip(weights);
    channels
        .map(|(x, w)| {
            // powers in f64, so that they hardly depend on the system's library
            let scale = (f64::from(*x).powf(of_inputs) / f64::from(*w).powf(of_weights)) as f32;
            if *x > 0.0 && *w > 0.0 && scale > 0.0 && scale.is_finite() { scale } else { 1.0 }
        })
        .collect()
}

/// What layers lose with 8-bit weights and activations.
struct W8A8<'a> {
    layers: &'a [Layer<'a>],
    stats: &'a LayerStats,
    hessian: &'a [f32],
    outputs: f64,
}

impl<'a> W8A8<'a> {
    fn new(layers: &'a [Layer<'a>], stats: &'a LayerStats, hessian: &'a [f32]) -> Self {
        let outputs = layers.iter().map(|layer| quadratic_form(layer.values, stats.size(), hessian)).sum();
        Self { layers, stats, hessian, outputs }
    }

    fn of(&self, scales: &[f32]) -> Result<f64, MethodError> {
        let int8 = RoundToNearest::int(EIGHT);
        let inputs = self.stats.abs_max().iter().zip(scales);
        let step = f64::from(inputs.fold(0.0f32, |largest, (x, s)| largest.max(x / s))) / 127.5;
        let mut error = 0.0;
        for layer in self.layers {
            let columns = || scales.iter().cycle();
            let scaled: Vec<f32> =
                layer.values.iter().zip(columns()).map(|(w, s)| layer.precision.round(w * s)).collect();
            let rounded = int8.compress(&Layer { values: &scaled, ..*layer })?.weight.dequantize();
            let difference: Vec<f32> =
                rounded.iter().zip(layer.values).zip(columns()).map(|((q, w), s)| q / s - w).collect();
            let squares: f64 = scaled.iter().map(|w| f64::from(*w).powi(2)).sum();
            error +=
                quadratic_form(&difference, self.stats.size(), self.hessian) + step * step / 12.0 * squares;
        }
        Ok(if error == 0.0 { 0.0 } else { error / self.outputs })
    }
}
