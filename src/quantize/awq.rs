use rayon::prelude::*;

use super::affine::Affine;
use super::calibrated::{better_of, comparison_bytes, hessian, hessian_of};
use super::observer::Range;
use super::round::{CodeType, RoundToNearest};
use super::tiles::{IntTarget, affines, is_pruned};
use crate::kernels::gram::quadratic_form;
use crate::kernels::reduce;
use crate::kernels::symmetric::SymmetricTiles;
use crate::layer::{Compressed, Layer, LayerStats, Method, MethodError, Needs};
use crate::weight::{Bits, Coding, Granularity};

/// Least scale of a channel before normalization.
const LEAST_SCALE: f32 = 1e-4;

/// How [`awq_scales`] searches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AwqOptions {
    steps: usize,
    duo_scaling: bool,
}

impl Default for AwqOptions {
    fn default() -> Self {
        Self { steps: 20, duo_scaling: false }
    }
}

impl AwqOptions {
    /// Chooses how many ratios are tried: `0, 1/steps, …, (steps − 1)/steps`; 20 unless chosen.
    #[must_use]
    pub fn steps(self, steps: usize) -> Self {
        Self { steps, ..self }
    }

    /// Whether scales are also divided by the channel's mean weight to the power of `1 − ratio`; not unless chosen.
    #[must_use]
    pub fn duo_scaling(self, duo_scaling: bool) -> Self {
        Self { duo_scaling, ..self }
    }
}

/// The scales of input channels that [`awq_scales`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct AwqScales {
    /// What columns of the weights are to be multiplied by, and the inputs divided by; all 1 when nothing is better.
    pub scales: Vec<f32>,
    /// The power of the activations' magnitude; 0 when the scales are 1.
    pub ratio: f32,
    /// `Σ‖(W − Q(W·s)/s)·Xᵀ‖² / Σ‖W·Xᵀ‖²` over the layers.
    pub error: f64,
    /// The same without scales.
    pub rounding_error: f64,
}

/// Searches the scales of input channels that protect those weights from rounding which meet large activations.
///
/// `s = mean|X|^ratio`, normalized by `√(max s · min s)`; with [`AwqOptions::duo_scaling`] divided by `mean|W|^(1 − ratio)` before,
/// where every tile of the weights is first divided by its largest magnitude. Of all ratios and of no scaling at all, that with
/// the least error of the layers' outputs together is taken. The error is exact, by way of the Hessian.
///
/// Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2023), equations 4 and 5.
///
/// # Shapes
/// All layers and the statistics have the same input features; so many are the scales.
///
/// # Errors
/// When there is no Hessian or it is of another layer, a weight is NaN or infinite, there are no layers or no steps, or codes
/// do not fit the weights.
pub fn awq_scales(
    layers: &[Layer<'_>],
    stats: &LayerStats,
    codes: CodeType,
    granularity: Granularity,
    options: AwqOptions,
) -> Result<AwqScales, MethodError> {
    let positive = |option, value: usize| match value {
        0 => Err(MethodError::Option { option, value: 0.0, expected: "at least 1" }),
        _ => Ok(()),
    };
    positive("layers that share an input", layers.len())?;
    positive("steps", options.steps)?;
    let size = stats.size();
    let matrix = hessian_of(stats, || "AWQ's search of scales".to_owned())?;
    for layer in layers {
        layer.check()?;
        if layer.cols() != size {
            return Err(MethodError::StatsShape { expected: layer.cols(), actual: size });
        }
    }
    let method = RoundToNearest::codes(codes).granularity(granularity);
    let error_of = |scales: Option<&[f32]>| -> Result<f64, MethodError> {
        layers
            .iter()
            .map(|layer| Ok(quadratic_form(&difference(layer, &method, scales)?, size, matrix)))
            .sum()
    };
    let whole: f64 = layers.iter().map(|layer| quadratic_form(layer.values, size, matrix)).sum();
    let rounding = error_of(None)?;
    let mut best = (rounding, 0.0, None);
    let activations: Vec<f32> = stats.mean_abs().iter().map(|x| *x as f32).collect();
    let weights = options.duo_scaling.then(|| mean_weights(layers, granularity));
    for step in 0..options.steps {
        let ratio = step as f32 / options.steps as f32;
        let scales = scales_at(ratio, &activations, weights.as_deref());
        // a scaled weight may leave the precision's range, which only rules out this ratio
        let Ok(error) = error_of(Some(&scales)) else { continue };
        if error < best.0 {
            best = (error, ratio, Some(scales));
        }
    }
    let (error, ratio, scales) = best;
    let relative = |error: f64| if error == 0.0 { 0.0 } else { error / whole };
    let scales = scales.unwrap_or_else(|| vec![1.0; size]);
    Ok(AwqScales { scales, ratio, error: relative(error), rounding_error: relative(rounding) })
}

/// `Q(W·s)/s − W`.
fn difference(
    layer: &Layer<'_>,
    method: &RoundToNearest,
    scales: Option<&[f32]>,
) -> Result<Vec<f32>, MethodError> {
    let cols = layer.cols().max(1);
    let Some(scales) = scales else {
        let rounded = method.compress(layer)?.weight.dequantize();
        return Ok(rounded.iter().zip(layer.values).map(|(q, w)| q - w).collect());
    };
    let mut scaled = layer.values.to_vec();
    for row in scaled.chunks_exact_mut(cols) {
        for (w, s) in row.iter_mut().zip(scales) {
            *w = layer.precision.round(*w * s);
        }
    }
    let rounded = method.compress(&Layer { values: &scaled, ..*layer })?.weight.dequantize();
    let of_columns = scales.iter().cycle();
    Ok(rounded.iter().zip(layer.values).zip(of_columns).map(|((q, w), s)| q / s - w).collect())
}

/// The scales that one ratio gives.
fn scales_at(ratio: f32, activations: &[f32], weights: Option<&[f32]>) -> Vec<f32> {
    // powers in f64, so that they hardly depend on the system's library
    let power = |x: f32, y: f32| f64::from(x).powf(f64::from(y)) as f32;
    let mut scales: Vec<f32> = activations.iter().map(|x| power(*x, ratio)).collect();
    if let Some(weights) = weights {
        for (scale, w) in scales.iter_mut().zip(weights) {
            *scale /= power(*w, 1.0 - ratio) + LEAST_SCALE;
        }
    }
    let (mut least, mut largest) = (f32::INFINITY, 0.0f32);
    for scale in &mut scales {
        *scale = scale.max(LEAST_SCALE);
        (least, largest) = (least.min(*scale), largest.max(*scale));
    }
    let middle = (largest * least).sqrt();
    for scale in &mut scales {
        *scale /= middle;
        if !scale.is_finite() || *scale == 0.0 {
            *scale = 1.0;
        }
    }
    scales
}

/// Mean of every column of the layers, whose tiles are first divided by their largest magnitude.
fn mean_weights(layers: &[Layer<'_>], granularity: Granularity) -> Vec<f32> {
    let cols = layers[0].cols();
    let mut sums = vec![0.0f64; cols];
    let mut rows = 0;
    for layer in layers {
        let grid = granularity.grid(layer.rows(), cols);
        let mut largest = vec![0.0f32; grid.len()];
        for (i, w) in layer.values.iter().enumerate() {
            let tile = &mut largest[grid.index(i / cols, i % cols)];
            *tile = tile.max(w.abs());
        }
        for (i, w) in layer.values.iter().enumerate() {
            sums[i % cols] += f64::from(w.abs() / (largest[grid.index(i / cols, i % cols)] + 1e-6));
        }
        rows += layer.rows();
    }
    sums.iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect()
}

/// Rounding to integers whose range is clipped, tile by tile, to where the layer's output suffers least.
///
/// A range reaches from the smallest to the largest weight of a tile, both cut to a factor of the largest magnitude: one of
/// `1, 1 − 1/steps, …` above `1 − shrink`. Each tile takes that whose error `δ · H · δᵀ` is least, with the block of the Hessian
/// that belongs to its columns.
///
/// Lin et al., "AWQ" (2023): the weight clipping of their implementation.
///
/// ```
/// use tersor::{Bits, ClippedRounding, Layer, LayerStats, Method, Needs, Precision};
///
/// let mut stats = LayerStats::new(4, Needs::Hessian);
/// stats.observe(ndarray::array![[1.0, 1.0, -1.0, 0.01], [1.0, -1.0, 1.0, 0.0]].view())?;
/// let values = [0.3, -0.2, 0.1, 0.5]; // the largest weight meets the smallest inputs
/// let layer = Layer { stats: Some(&stats), ..Layer::new(&[1, 4], &values, Precision::F32) };
/// let outcome = ClippedRounding::int(Bits::new(3).unwrap()).compress(&layer)?.outcome.unwrap();
/// assert!(outcome.method_error < outcome.plain_error);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClippedRounding {
    target: IntTarget,
    steps: usize,
    shrink: f64,
}

impl ClippedRounding {
    /// Symmetric integers, one scale per channel; factors 1, 0.95, … 0.55.
    pub fn int(bits: Bits) -> Self {
        Self { target: IntTarget::new(bits), steps: 20, shrink: 0.5 }
    }

    /// Whether the zero point is fixed at 0.
    #[must_use]
    pub fn symmetric(self, symmetric: bool) -> Self {
        Self { target: IntTarget { symmetric, ..self.target }, ..self }
    }

    /// Chooses which weights share a scale.
    #[must_use]
    pub fn granularity(self, granularity: Granularity) -> Self {
        Self { target: IntTarget { granularity, ..self.target }, ..self }
    }

    /// Chooses the factors: those of `1, 1 − 1/steps, 1 − 2/steps, …` that are above `1 − shrink`.
    #[must_use]
    pub fn grid(self, steps: usize, shrink: f64) -> Self {
        Self { steps, shrink, ..self }
    }

    fn check(&self) -> Result<(), MethodError> {
        if self.steps == 0 {
            return Err(MethodError::Option { option: "steps", value: 0.0, expected: "at least 1" });
        }
        if !(0.0..=1.0).contains(&self.shrink) {
            let expected = "between 0 and 1";
            return Err(MethodError::Option { option: "shrink", value: self.shrink, expected });
        }
        Ok(())
    }

    /// The best parameters of the tiles that stand in one column of tiles.
    fn search(
        &self,
        layer: &Layer<'_>,
        hessian: &[f32],
        column: usize,
        plain: &[Affine],
    ) -> Result<Vec<Affine>, MethodError> {
        let (grid, cols) = (self.target.grid(layer), layer.cols());
        let columns = column * grid.block_cols..((column + 1) * grid.block_cols).min(cols);
        let tiles = SymmetricTiles::of_block(hessian, cols, columns.clone());
        let width = columns.len();
        let rows_of = |band: usize| band * grid.block_rows..((band + 1) * grid.block_rows).min(layer.rows());
        let run = |row: usize| &layer.values[row * cols..][columns.clone()];
        // what was pruned is zero, and zero is in every range
        let ranges: Result<Vec<Range>, MethodError> = (0..grid.rows)
            .map(|band| {
                rows_of(band).try_fold(Range { min: 0.0, max: 0.0 }, |all, row| {
                    let (min, max) = reduce::min_max(run(row))?;
                    Ok(Range { min: all.min.min(min), max: all.max.max(max) })
                })
            })
            .collect();
        let ranges = ranges?;
        let codes = self.target.codes();
        let mut difference = vec![0.0; layer.rows() * width];
        let mut errors_of = |affines: &[Affine]| -> Vec<f64> {
            difference.par_chunks_exact_mut(width.max(1)).enumerate().for_each(|(row, difference)| {
                let affine = affines[row / grid.block_rows];
                for (i, (to, w)) in difference.iter_mut().zip(run(row)).enumerate() {
                    let pruned = is_pruned(layer, row, columns.start + i);
                    let w_hat = if pruned { *w } else { affine.fake_quantize(*w, codes, layer.precision) };
                    *to = w_hat - w;
                }
            });
            tiles.errors_of_rows(&difference).chunks(grid.block_rows).map(|rows| rows.iter().sum()).collect()
        };
        let mut best: Vec<Affine> = (0..grid.rows).map(|band| plain[band * grid.cols + column]).collect();
        let mut least = errors_of(&best);
        for step in 1..(self.shrink * self.steps as f64) as usize {
            let shrunk = |range: &Range| {
                let largest = range.max.max(-range.min);
                let limit = largest * (1.0 - step as f64 / self.steps as f64) as f32;
                let range = Range { min: range.min.max(-limit), max: range.max.min(limit) };
                Affine::from_range(range, codes, layer.precision)
            };
            let affines = ranges.iter().map(shrunk).collect::<Result<Vec<_>, _>>()?;
            let found = errors_of(&affines);
            for (((best, least), affine), error) in best.iter_mut().zip(&mut least).zip(affines).zip(found) {
                if error < *least {
                    (*best, *least) = (affine, error);
                }
            }
        }
        Ok(best)
    }
}

impl Method for ClippedRounding {
    fn name(&self) -> String {
        format!("clip and round to {}", self.coding(Coding::Float(crate::dtype::Precision::F32)))
    }

    fn coding(&self, before: Coding) -> Coding {
        self.target.coding(before)
    }

    fn needs(&self) -> Needs {
        Needs::Hessian
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let grid = self.target.granularity.grid(rows, cols);
        let (height, width) = (grid.block_rows.min(rows), grid.block_cols.min(cols));
        // the block of the Hessian; of a tile its values, errors and products; what the results are compared with
        let tiles = height * width * 3 * rayon::current_num_threads();
        (size_of::<f32>() * (width * width + tiles) + comparison_bytes(rows, cols)) as u64
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        self.check()?;
        let rounding = self.target.rounding().compress(layer)?;
        let (stats, hessian) = hessian(layer, || self.name())?;
        let mut tiles = affines(&rounding.weight);
        let grid = self.target.grid(layer);
        if !layer.values.is_empty() {
            for column in 0..grid.cols {
                for (band, affine) in self.search(layer, hessian, column, &tiles)?.into_iter().enumerate() {
                    tiles[band * grid.cols + column] = affine;
                }
            }
        }
        let found = self.target.encode(layer, &tiles)?;
        Ok(better_of(layer, stats, hessian, rounding, found))
    }
}
