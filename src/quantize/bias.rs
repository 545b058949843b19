use super::calibrated::statistics;
use crate::layer::{Layer, MethodError};
use crate::weight::CompressedWeight;

/// What is to be added to a layer's bias, so that its mean output is what it was before its weight was compressed:
/// `(W − Ŵ)·E[x]`.
///
/// Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), equation 17; here with the
/// observed mean of the inputs.
///
/// ```
/// use tersor::{Bits, Layer, LayerStats, Method, Needs, Precision, RoundToNearest, bias_correction};
///
/// let mut stats = LayerStats::new(2, Needs::Channels);
/// stats.observe(ndarray::array![[1.0, 4.0], [3.0, 4.0]].view())?;
/// let values = [3.0, 1.0];
/// let layer = Layer { stats: Some(&stats), ..Layer::new(&[1, 2], &values, Precision::F32) };
/// let weight = RoundToNearest::int(Bits::new(2).unwrap()).compress(&layer)?.weight;
/// assert_eq!(weight.dequantize().as_slice(), Some(&[2.0, 0.0][..])); // codes 1 and 0 of scale 2
/// assert_eq!(bias_correction(&layer, &weight)?, [1.0 * 2.0 + 1.0 * 4.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Shapes
/// As many as the layer has output features.
///
/// # Errors
/// When nothing was seen of the layer's input, or statistics or weight are of another shape.
pub fn bias_correction(layer: &Layer<'_>, weight: &CompressedWeight) -> Result<Vec<f32>, MethodError> {
    layer.check()?;
    let mean = statistics(layer, || "bias correction".to_owned())?.mean();
    let decoded = weight.dequantize();
    crate::weight::WeightError::check_len("compressed values", layer.values.len(), decoded.len())?;
    let cols = layer.cols().max(1);
    let rows = layer.values.chunks_exact(cols).zip(decoded.as_slice().unwrap_or_default().chunks_exact(cols));
    let correction = |(w, w_hat): (&[f32], &[f32])| {
        let terms = w.iter().zip(w_hat).zip(&mean);
        terms.map(|((w, q), x)| (f64::from(*w) - f64::from(*q)) * x).sum::<f64>() as f32
    };
    Ok(rows.map(correction).collect())
}
