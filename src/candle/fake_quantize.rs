//! Quantized values in the forward pass, gradients straight through: ranges that are observed.

use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Device, Layout, ModuleT, Result, Shape, Tensor};

use super::bridge::{on_cpu, precision_of, read, slice};
use super::error::{TrainingError, wrap};
use crate::dtype::Precision;
use crate::kernels::reduce;
use crate::layer::{Layer, Method, MethodError};
use crate::quantize::{Affine, CodeType, Observer, RoundToNearest};
use crate::weight::{Bits, CompressedWeight, Granularity, InputScales, ScaleGrid, Scales, WeightError};

/// Trains a weight to live with rounding: the forward pass sees what [`RoundToNearest`] would store of it, the backward
/// pass goes straight through (Jacob et al. 2018, section 3; the straight-through estimator of Bengio et al. 2013).
///
/// Ranges are observed anew in every forward pass, by the method's [`Observer`]; so what the network is trained with, bit for bit, is
/// what the same `RoundToNearest` makes of the trained weight, in any checkpoint. For scales that are learned there is
/// [`LearnedScale`](super::LearnedScale).
///
/// The gradient of a value is passed on where its code is one that there is, and is 0 where the value was clamped: of
/// `round(w / scale) + zero_point` within the codes' range, as PyTorch's `fake_quantize` has it. (With [`Observer::MinMax`] and
/// symmetric codes that is all but the largest magnitude of each range, whose code would be half a step above the last.)
///
/// ```
/// use candle_core::{Device, Var};
/// use tersor::candle::FakeQuantize;
/// use tersor::{Bits, RoundToNearest};
///
/// let int2 = FakeQuantize::new(RoundToNearest::int(Bits::new(2).unwrap()));
/// let weight = Var::new(&[[1.5f32, -0.6, 0.4]], &Device::Cpu)?; // one row: scale 1.5 / 1.5
/// let rounded = int2.forward(&weight)?;
/// assert_eq!(rounded.to_vec2::<f32>()?, [[1.0, -1.0, 0.0]]);
/// let grads = rounded.sum_all()?.backward()?;
/// assert_eq!(grads.get(&weight).unwrap().to_vec2::<f32>()?, [[0.0, 1.0, 1.0]]); // 1.5 was clamped
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FakeQuantize {
    method: RoundToNearest,
}

impl FakeQuantize {
    /// What this method stores, with all its options.
    pub fn new(method: RoundToNearest) -> Self {
        Self { method }
    }

    /// The weight as the method would store it.
    ///
    /// # Shapes
    /// The first dimension counts as rows, the others together as columns; the result has the weight's shape and element type.
    ///
    /// # Errors
    /// When the weight is not of f32, f16 or bf16, or the method refuses it: a value that is not finite, a range that overflows.
    pub fn forward(&self, weight: &Tensor) -> Result<Tensor> {
        let precision = precision_of("the weight", weight)?;
        let method = self.method;
        let quantize = move |dims: &[usize], values: &[f32]| {
            let stored = method.compress(&Layer::new(dims, values, precision)).map_err(wrap)?.weight;
            let tiles = Tiles::of(&stored, method.code_type(), precision);
            Ok((stored.dequantize().into_raw_vec_and_offset().0, tiles))
        };
        on_cpu(weight)?.apply_op1(StraightThrough::new(quantize))?.to_dtype(weight.dtype())
    }

    /// The weight as it is stored.
    ///
    /// # Shapes
    /// As for [`forward`](Self::forward).
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub fn compress(&self, weight: &Tensor) -> Result<CompressedWeight> {
        super::tensors::compress(weight, &self.method)
    }
}

/// The ranges that values were rounded in.
pub(super) struct Tiles {
    grid: ScaleGrid,
    cols: usize,
    codes: CodeType,
    precision: Precision,
    affine: Vec<Affine>,
}

impl Tiles {
    fn of(weight: &CompressedWeight, codes: CodeType, precision: Precision) -> Self {
        let (scales, zero_points) =
            weight.scales().map_or((&[][..], None), |scales| (scales.scales(), scales.zero_points()));
        let affine = scales.iter().enumerate().map(|(tile, scale)| Affine {
            scale: *scale,
            zero_point: zero_points.map_or(0, |zero_points| zero_points[tile]),
        });
        let granularity = weight.scales().map_or(Granularity::Tensor, Scales::granularity);
        let grid = granularity.grid(weight.rows(), weight.cols());
        Self { grid, cols: weight.cols(), codes, precision, affine: affine.collect() }
    }

    /// The gradient of the values, given that of what they were rounded to.
    fn pass(&self, values: &[f32], outer: &[f32]) -> Vec<f32> {
        let gradient = |(index, (value, outer)): (usize, (&f32, &f32))| {
            let tile = self.grid.index(index / self.cols, index % self.cols);
            if self.affine[tile].clamps(*value, self.codes, self.precision) { 0.0 } else { *outer }
        };
        values.iter().zip(outer).enumerate().map(gradient).collect()
    }
}

/// Rounding whose gradient is that of doing nothing, where nothing was clamped.
struct StraightThrough<Q> {
    quantize: Q,
    tiles: OnceLock<Tiles>,
}

impl<Q> StraightThrough<Q> {
    fn new(quantize: Q) -> Self {
        Self { quantize, tiles: OnceLock::new() }
    }
}

impl<Q> CustomOp1 for StraightThrough<Q>
where
    Q: Fn(&[usize], &[f32]) -> Result<(Vec<f32>, Tiles)>,
{
    fn name(&self) -> &'static str {
        "fake quantization"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (values, tiles) = (self.quantize)(layout.dims(), slice(storage, layout)?)?;
        // an operation is made for one tensor: nothing was kept before
        self.tiles.set(tiles).ok();
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, values: &Tensor, _: &Tensor, outer: &Tensor) -> Result<Option<Tensor>> {
        let op = CustomOp1::name(self);
        let tiles = self.tiles.get().ok_or(candle_core::Error::BackwardNotSupported { op })?;
        let outer = outer.contiguous()?;
        let grad = read(values, |values| read(&outer, |outer| Ok(tiles.pass(values, outer))))?;
        Tensor::from_vec(grad, values.shape(), &Device::Cpu).map(Some)
    }
}

/// Trains a network to live with rounded activations: one scale for the tensor, from a moving average of the smallest and largest
/// value of each batch (Jacob et al. 2018, section 3.1), gradients as in [`FakeQuantize`].
///
/// The first batch sets the range; later ones move it by `momentum` of the way, as PyTorch's `MovingAverageMinMaxObserver`
/// does. Only training moves it: `forward_t(x, false)` takes the range as it stands.
///
/// ```
/// use candle_core::{Device, ModuleT, Tensor};
/// use tersor::Bits;
/// use tersor::candle::FakeQuantizeInput;
///
/// let input = FakeQuantizeInput::new(Bits::new(8).unwrap(), false, 0.5)?;
/// input.forward_t(&Tensor::new(&[0.0f32, 255.0], &Device::Cpu)?, true)?;
/// input.forward_t(&Tensor::new(&[0.0f32, 765.0], &Device::Cpu)?, true)?; // moves 255 to 510
/// let rounded = input.forward_t(&Tensor::new(&[1.2f32, 600.0], &Device::Cpu)?, false)?;
/// assert_eq!(rounded.to_vec1::<f32>()?, [2.0, 510.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct FakeQuantizeInput {
    codes: CodeType,
    momentum: f32,
    /// Smallest and largest value; `None` before the first batch.
    range: Mutex<Option<[f32; 2]>>,
}

impl FakeQuantizeInput {
    /// Integers of `bits` bits; a range that every batch moves by a share `momentum` of the way, `0 < momentum ≤ 1`.
    ///
    /// # Errors
    /// When the momentum is outside its range.
    pub fn new(bits: Bits, symmetric: bool, momentum: f32) -> Result<Self> {
        if !(momentum > 0.0 && momentum <= 1.0) {
            let (option, value) = ("momentum", f64::from(momentum));
            return Err(wrap(MethodError::Option { option, value, expected: "above 0 and at most 1" }));
        }
        Ok(Self { codes: CodeType::Int { bits, symmetric }, momentum, range: Mutex::new(None) })
    }

    /// Smallest and largest value, as far as the moving average has come; `None` before the first batch.
    pub fn range(&self) -> Option<[f32; 2]> {
        *self.range.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a layer's static input quantization is to be so that it computes what was trained: for
    /// [`CompressedWeight::with_input`], if the codes have 8 bits.
    ///
    /// # Errors
    /// When there was no batch yet, the codes do not have 8 bits, or the range overflows.
    pub fn static_input(&self) -> Result<InputScales> {
        let CodeType::Int { bits, symmetric } = self.codes else { unreachable!("`new` takes integers only") };
        if bits.get() != 8 {
            let reason = format!("layers run with inputs of 8 bits, and these have {}", bits.get());
            return Err(wrap(WeightError::Unsupported { reason }));
        }
        let affine = self.affine()?;
        InputScales::new(affine.scale, (!symmetric).then_some(affine.zero_point)).map_err(wrap)
    }

    fn affine(&self) -> Result<Affine> {
        let what = "the quantizer of an input";
        let [min, max] = self.range().ok_or_else(|| wrap(TrainingError::Unseen { what }))?;
        let range = crate::quantize::Range { min, max };
        Affine::from_range(range, self.codes, Precision::F32).map_err(wrap)
    }

    fn observe(&self, values: &[f32]) -> Result<()> {
        let (min, max) = reduce::min_max(values).map_err(|found| wrap(MethodError::from(found)))?;
        let mut range = self.range.lock().unwrap_or_else(PoisonError::into_inner);
        *range = Some(range.map_or([min, max], |[low, high]| {
            [low + self.momentum * (min - low), high + self.momentum * (max - high)]
        }));
        Ok(())
    }
}

impl ModuleT for FakeQuantizeInput {
    /// The values as codes would give them; of any shape, which the result has too.
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let values = on_cpu(x)?;
        if train {
            read(&values, |values| self.observe(values))?;
        }
        let (affine, codes) = (self.affine()?, self.codes);
        let quantize = move |dims: &[usize], values: &[f32]| {
            let cols = dims.iter().product::<usize>().max(1);
            let grid = Granularity::Tensor.grid(1, cols);
            let tiles = Tiles { grid, cols, codes, precision: Precision::F32, affine: vec![affine] };
            let rounded = values.iter().map(|x| affine.fake_quantize(*x, codes, Precision::F32));
            Ok((rounded.collect(), tiles))
        };
        values.apply_op1(StraightThrough::new(quantize))?.to_dtype(x.dtype())
    }
}

/// Min-max ranges, one scale a row, symmetric: the most usual.
impl From<Bits> for FakeQuantize {
    fn from(bits: Bits) -> Self {
        Self::new(RoundToNearest::int(bits).observer(Observer::MinMax))
    }
}
