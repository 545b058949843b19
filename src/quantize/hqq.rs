use std::num::NonZeroUsize;

use rayon::prelude::*;

use super::affine::Affine;
use super::tiles::{IntTarget, affines, is_pruned};
use crate::dtype::Precision;
use crate::layer::{Compressed, Layer, Method, MethodError};
use crate::weight::{Bits, Coding, Granularity};

/// Half-quadratic quantization: codes whose parameters are fitted to the weights alone, under a norm that forgives outliers.
///
/// Zero points are found as the paper does, and then rounded, since they are stored as integers; what is left of the gain is
/// little, because a step of a whole code moves the ends of the range only and not the values between them. Therefore the
/// scale is fitted in the same way, with the same splitting: for symmetric codes, too. Every tile keeps what has the least mean
/// absolute error, so that none is worse than rounding to nearest.
///
/// Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023).
///
/// ```
/// use tersor::{Bits, Hqq, Layer, Method, Precision, RoundToNearest};
///
/// let values = [0.11, -0.14, 0.21, 0.09, -0.2, 1.0];
/// let layer = Layer::new(&[1, 6], &values, Precision::F32);
/// let bits = Bits::new(2).unwrap();
/// let error = |method: &dyn Method| -> Result<f32, tersor::MethodError> {
///     let weight = method.compress(&layer)?.weight.dequantize();
///     Ok(weight.iter().zip(&values).map(|(q, w)| (q - w).abs()).sum())
/// };
/// assert!(error(&Hqq::int(bits))? < error(&RoundToNearest::int(bits))?);
/// # Ok::<(), tersor::MethodError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hqq {
    target: IntTarget,
    options: HqqOptions,
    fit_scale: bool,
}

/// How half-quadratic splitting proceeds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HqqOptions {
    /// The norm's exponent, `0 < p ≤ 1`; 0.7 in the paper.
    pub p: f64,
    /// The first weight of the quadratic term; 10 in the paper.
    pub beta: f64,
    /// What the weight is multiplied by after every step; 1.01 in the paper.
    pub kappa: f64,
    /// Steps at most; 20 in the paper.
    pub iterations: usize,
}

impl Default for HqqOptions {
    fn default() -> Self {
        Self { p: 0.7, beta: 10.0, kappa: 1.01, iterations: 20 }
    }
}

impl HqqOptions {
    fn check(self) -> Result<(), MethodError> {
        let fail = |option, value, expected| Err(MethodError::Option { option, value, expected });
        if !(self.p > 0.0 && self.p <= 1.0) {
            return fail("p", self.p, "above 0 and at most 1");
        }
        if self.beta <= 0.0 || !self.beta.is_finite() {
            return fail("beta", self.beta, "positive");
        }
        if self.kappa < 1.0 || !self.kappa.is_finite() {
            return fail("kappa", self.kappa, "at least 1");
        }
        Ok(())
    }

    /// What the norm forgives of an error: `sign(x) · max(|x| − |x|^(p − 1) / β, 0)` (equation 6).
    fn shrink(self, x: f64, beta: f64) -> f64 {
        if x == 0.0 {
            return 0.0;
        }
        let size = x.abs();
        // within the range of ordinary weights nothing is forgiven: then no power is needed
        let kept = if size >= 1.0 || size * beta > 1.0 { size - size.powf(self.p - 1.0) / beta } else { 0.0 };
        kept.max(0.0).copysign(x)
    }
}

/// The real-valued zero point that minimizes the error of codes of `bits` bits, under a given scale.
///
/// Alternates between the errors that the norm forgives and the zero point that is best for the rest, until the mean absolute
/// error no longer falls (equations 6 and 8). `value = (code − zero_point) · scale`, with codes from `−2^(bits−1)` on. Formats that
/// store zero points as floats can hold it; [`Hqq`] rounds it.
///
/// # Errors
/// When an option is outside its range.
pub fn hqq_zero_point(
    values: &[f32],
    scale: f32,
    zero_point: f32,
    bits: Bits,
    options: HqqOptions,
) -> Result<f32, MethodError> {
    options.check()?;
    let (low, high) = bits.range();
    let (low, high) = (f64::from(low), f64::from(high));
    let scale = f64::from(scale);
    let mut zero = f64::from(zero_point);
    let mut best = (f64::INFINITY, zero);
    let mut beta = options.beta;
    // once more than there are steps, so that the last is measured, too
    for _ in 0..=options.iterations {
        let (mut error, mut sum) = (0.0, 0.0);
        for w in values.iter().map(|w| f64::from(*w)) {
            let code = (w / scale + zero).round_ties_even().clamp(low, high);
            let left = w - (code - zero) * scale;
            error += left.abs();
            sum += code - (w - options.shrink(left, beta)) / scale;
        }
        if error >= best.0 || values.is_empty() {
            break;
        }
        best = (error, zero);
        zero = sum / values.len() as f64;
        beta *= options.kappa;
    }
    Ok(best.1 as f32)
}

impl Hqq {
    /// Symmetric integers, one scale per channel.
    pub fn int(bits: Bits) -> Self {
        Self { target: IntTarget::new(bits), options: HqqOptions::default(), fit_scale: true }
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

    /// Chooses norm and steps.
    #[must_use]
    pub fn options(self, options: HqqOptions) -> Self {
        Self { options, ..self }
    }

    /// Whether scales are fitted, too, as the paper does not; they are unless chosen otherwise.
    #[must_use]
    pub fn fit_scale(self, fit_scale: bool) -> Self {
        Self { fit_scale, ..self }
    }

    fn error(&self, values: &[f32], affine: Affine, precision: Precision) -> f64 {
        let codes = self.target.codes();
        values.iter().map(|w| f64::from((w - affine.fake_quantize(*w, codes, precision)).abs())).sum()
    }

    fn fit(&self, values: &[f32], plain: Affine, precision: Precision) -> Result<Affine, MethodError> {
        let mut best = (self.error(values, plain, precision), plain);
        if !self.target.symmetric {
            let (low, high) = self.target.bits.range();
            let least = values.iter().fold(0.0f32, |least, w| least.min(*w));
            let start = low as f32 - least / plain.scale;
            let zero = hqq_zero_point(values, plain.scale, start, self.target.bits, self.options)?;
            let zero_point = zero.round_ties_even().clamp(low as f32, high as f32) as i8;
            let found = Affine { zero_point, ..plain };
            let error = self.error(values, found, precision);
            if error < best.0 {
                best = (error, found);
            }
        }
        if self.fit_scale {
            let mut beta = self.options.beta;
            for _ in 0..self.options.iterations {
                let scale = self.fitted_scale(values, best.1, precision, beta);
                let found = Affine { scale, ..best.1 };
                let error = self.error(values, found, precision);
                // of values that are all zero the scale is NaN
                if scale.is_nan() || scale <= 0.0 || error >= best.0 {
                    break;
                }
                best = (error, found);
                beta *= self.options.kappa;
            }
        }
        Ok(best.1)
    }

    /// The scale that is best, in the least-squares sense, for the present codes and what the norm does not forgive.
    fn fitted_scale(&self, values: &[f32], affine: Affine, precision: Precision, beta: f64) -> f32 {
        let codes = self.target.codes();
        let (mut with_values, mut squares) = (0.0, 0.0);
        for w in values {
            let w_hat = affine.fake_quantize(*w, codes, precision);
            let steps = (f64::from(w_hat) / f64::from(affine.scale)).round_ties_even();
            let forgiven = self.options.shrink(f64::from(*w) - f64::from(w_hat), beta);
            with_values += (f64::from(*w) - forgiven) * steps;
            squares += steps * steps;
        }
        precision.round((with_values / squares) as f32)
    }
}

impl Method for Hqq {
    fn name(&self) -> String {
        format!("half-quadratic {}", self.coding(Coding::Float(Precision::F32)))
    }

    fn coding(&self, before: Coding) -> Coding {
        self.target.coding(before)
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let grid = self.target.granularity.grid(rows, cols);
        let tile = grid.block_rows.min(rows) * grid.block_cols.min(cols);
        // gathered tiles, and the codes before they are packed
        (size_of::<f32>() * tile * grid.len().min(rayon::current_num_threads()) + rows * cols) as u64
    }

    fn row_block(&self) -> Option<NonZeroUsize> {
        self.target.rounding().row_block()
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        self.options.check()?;
        let rounding = self.target.rounding().compress(layer)?;
        let plain = affines(&rounding.weight);
        let (grid, cols) = (self.target.grid(layer), layer.cols());
        let tiles: Result<Vec<Affine>, MethodError> = plain
            .par_iter()
            .enumerate()
            .map_init(Vec::new, |values, (tile, plain)| {
                values.clear();
                let first = [tile / grid.cols * grid.block_rows, tile % grid.cols * grid.block_cols];
                for row in first[0]..(first[0] + grid.block_rows).min(layer.rows()) {
                    for col in first[1]..(first[1] + grid.block_cols).min(cols) {
                        if !is_pruned(layer, row, col) {
                            values.push(layer.values[row * cols + col]);
                        }
                    }
                }
                self.fit(values, *plain, layer.precision)
            })
            .collect();
        Ok(Compressed::plain(self.target.encode(layer, &tiles?)?))
    }
}
