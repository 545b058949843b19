//! Quantized values in the forward pass, and scales that are learned.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, Var};

use super::bridge::{constant, on_cpu, precision_of, read, slice};
use super::error::{TrainingError, wrap};
use crate::dtype::Precision;
use crate::kernels::quantize::{self, Affine};
use crate::layer::{Layer, MethodError};
use crate::weight::{
    Bits, CompressedWeight, DenseValues, Granularity, LayoutKind, ScaleGrid, Scales, matrix_shape,
};

/// A scale that training finds: learned step size quantization, LSQ (Esser et al. 2020, "Learned Step Size Quantization").
///
/// With the scale s, and `Q_N = 2^(b−1)` and `Q_P = 2^(b−1) − 1` for symmetric codes of b bits, the forward pass sees
/// `round(clip(w / s, −Q_N, Q_P)) · s` (Eq. 1 and 2), ties to even. The gradient of w passes where `−Q_N < w/s < Q_P`, and is 0
/// elsewhere (Eq. 5). That of s is `round(w/s) − w/s` there, `−Q_N` and `Q_P` at the ends (Eq. 3), summed over the weights that share
/// the scale and multiplied by `1 / √(N · Q_P)`, where N is their number (section 2.2).
///
/// The scales are a [`Var`] of their own, f32, one a tile of the granularity: give it to the optimizer beside the weights, without
/// weight decay. A scale that falls below the precision's epsilon counts as that epsilon, and can still grow again. What
/// [`compress`](Self::compress) stores is, bit for bit, what the forward pass computes with.
///
/// ```
/// use candle_core::{Device, Var};
/// use tersor::{Bits, Granularity};
/// use tersor::candle::LearnedScale;
///
/// let weight = Var::new(&[[0.4f32, -0.4, 0.4, -0.4]], &Device::Cpu)?;
/// let quantizer = LearnedScale::new(Bits::new(2).unwrap(), Granularity::Channel, &weight)?;
/// assert_eq!(quantizer.scale().to_vec2::<f32>()?, [[0.8]]); // 2 · mean |w| / √1
/// let loss = quantizer.forward(&weight)?.sqr()?.sum_all()?;
/// assert!(loss.backward()?.get(quantizer.scale()).is_some());
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct LearnedScale {
    bits: Bits,
    granularity: Granularity,
    scale: Var,
    shape: Vec<usize>,
}

impl LearnedScale {
    /// Scales for a weight, which begin at `2 · mean |w| / √Q_P` of their tile (section 2.1).
    ///
    /// # Shapes
    /// The weight's first dimension counts as rows, the others together as columns.
    ///
    /// # Errors
    /// When a weight is not finite.
    pub fn new(bits: Bits, granularity: Granularity, weight: &Tensor) -> Result<Self> {
        let precision = precision_of("the weight", weight)?;
        let shape = weight.dims().to_vec();
        let [rows, cols] = matrix_shape(&shape).map_err(wrap)?;
        let grid = granularity.grid(rows, cols);
        let mut sums = vec![(0.0f64, 0u32); grid.len()];
        read(&constant(weight)?, |values| {
            Layer::new(&shape, values, precision).check().map_err(wrap)?;
            for (index, value) in values.iter().enumerate() {
                let (sum, count) = &mut sums[grid.index(index / cols, index % cols)];
                *sum += f64::from(value.abs());
                *count += 1;
            }
            Ok(())
        })?;
        let root = f64::from(bits.range().1).sqrt();
        let scales = sums
            .into_iter()
            .map(|(sum, count)| {
                ((2.0 * sum / f64::from(count.max(1)) / root) as f32).max(precision.epsilon())
            })
            .collect();
        let scale = Var::from_vec(scales, (grid.rows, grid.cols), &Device::Cpu)?;
        Ok(Self { bits, granularity, scale, shape })
    }

    /// The scales, `[tile_rows, tile_cols]`, to be given to an optimizer.
    pub fn scale(&self) -> &Var {
        &self.scale
    }

    /// The weight as it would be stored with the scales as they are.
    ///
    /// # Shapes
    /// `weight` has the shape that the scales were made for, and so has the result.
    ///
    /// # Errors
    /// When it has not, it is not of f32, f16 or bf16, or a scale is not finite.
    pub fn forward(&self, weight: &Tensor) -> Result<Tensor> {
        let op = LearnedOp { rounding: self.rounding(weight)?, scales: OnceLock::new() };
        on_cpu(weight)?.apply_op2(&on_cpu(&self.scale)?, op)?.to_dtype(weight.dtype())
    }

    /// The weight as it is stored.
    ///
    /// # Shapes
    /// As for [`forward`](Self::forward).
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub fn compress(&self, weight: &Tensor) -> Result<CompressedWeight> {
        let rounding = self.rounding(weight)?;
        read(&constant(weight)?, |values| read(&self.scale, |scales| rounding.compress(values, scales)))
    }

    fn rounding(&self, weight: &Tensor) -> Result<Rounding> {
        if weight.dims() != self.shape {
            let (actual, expected) = (weight.dims().to_vec(), self.shape.clone());
            let (what, rule) = ("the weight".to_owned(), "the scales were made for a weight of that shape");
            return Err(wrap(TrainingError::Shape { what, actual, expected, rule }));
        }
        let precision = precision_of("the weight", weight)?;
        let [rows, cols] = matrix_shape(&self.shape).map_err(wrap)?;
        let (bits, granularity) = (self.bits, self.granularity);
        let grid = granularity.grid(rows, cols);
        Ok(Rounding { bits, granularity, precision, grid, cols, shape: self.shape.clone() })
    }
}

/// Rounding to integers under given scales.
struct Rounding {
    bits: Bits,
    granularity: Granularity,
    precision: Precision,
    grid: ScaleGrid,
    cols: usize,
    shape: Vec<usize>,
}

impl Rounding {
    fn compress(&self, values: &[f32], scales: &[f32]) -> Result<CompressedWeight> {
        if let Some((index, &value)) = scales.iter().enumerate().find(|(_, scale)| !scale.is_finite()) {
            return Err(wrap(TrainingError::Scale { index, value }));
        }
        Layer::new(&self.shape, values, self.precision).check().map_err(wrap)?;
        let scales = scales.iter().map(|scale| scale.max(self.precision.epsilon())).collect();
        let scales = Scales::new(self.granularity, self.precision, scales, None).map_err(wrap)?;
        let mut codes = vec![0i8; values.len()];
        for (row, (values, codes)) in
            values.chunks(self.cols.max(1)).zip(codes.chunks_mut(self.cols.max(1))).enumerate()
        {
            let runs = values.chunks(self.grid.block_cols).zip(codes.chunks_mut(self.grid.block_cols));
            for (run, (values, codes)) in runs.enumerate() {
                let tile = self.grid.index(row, run * self.grid.block_cols);
                let affine = Affine { scale: scales.scales()[tile], zero_point: 0 };
                quantize::quantize_int(values, affine, self.bits.get(), self.precision, codes);
            }
        }
        let codes = DenseValues::Int(self.bits, &codes, &scales);
        CompressedWeight::encode(&self.shape, LayoutKind::Dense, None, codes)
            .map_err(|error| wrap(MethodError::from(error)))
    }

    /// The gradients of the values and of the scales.
    fn gradients(&self, values: &[f32], scales: &[f32], outer: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (low, high) = self.bits.range();
        let (low, high) = (low as f32, high as f32);
        let mut of_scales = vec![(0.0f64, 0u32); scales.len()];
        let mut of_values = Vec::with_capacity(values.len());
        for (index, (value, outer)) in values.iter().zip(outer).enumerate() {
            let tile = self.grid.index(index / self.cols, index % self.cols);
            let ratio = self.precision.round(value / scales[tile]);
            let (passed, slope) = if ratio <= low {
                (0.0, low)
            } else if ratio >= high {
                (0.0, high)
            } else {
                (*outer, ratio.round_ties_even() - ratio)
            };
            of_values.push(passed);
            of_scales[tile].0 += f64::from(slope) * f64::from(*outer);
            of_scales[tile].1 += 1;
        }
        let scaled =
            |(sum, count): (f64, u32)| (sum / (f64::from(count.max(1)) * f64::from(high)).sqrt()) as f32;
        (of_values, of_scales.into_iter().map(scaled).collect())
    }
}

struct LearnedOp {
    rounding: Rounding,
    /// As they were in the forward pass, in the precision in which they are stored.
    scales: OnceLock<Scales>,
}

impl CustomOp2 for LearnedOp {
    fn name(&self) -> &'static str {
        "learned scale quantization"
    }

    fn cpu_fwd(
        &self,
        values: &CpuStorage,
        layout: &Layout,
        scales: &CpuStorage,
        scales_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let stored = self.rounding.compress(slice(values, layout)?, slice(scales, scales_layout)?)?;
        if let Some(scales) = stored.scales() {
            // an operation is made for one tensor: nothing was kept before
            self.scales.set(scales.clone()).ok();
        }
        Ok((CpuStorage::F32(stored.dequantize().into_raw_vec_and_offset().0), layout.shape().clone()))
    }

    fn bwd(
        &self,
        values: &Tensor,
        scale: &Tensor,
        _: &Tensor,
        outer: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let op = CustomOp2::name(self);
        let scales = self.scales.get().ok_or(candle_core::Error::BackwardNotSupported { op })?;
        let outer = outer.contiguous()?;
        let (of_values, of_scales) = read(values, |values| {
            read(&outer, |outer| Ok(self.rounding.gradients(values, scales.scales(), outer)))
        })?;
        let of_values = Tensor::from_vec(of_values, values.shape(), &Device::Cpu)?;
        Ok((Some(of_values), Some(Tensor::from_vec(of_scales, scale.shape(), &Device::Cpu)?)))
    }
}
