//! A linear layer over a compressed weight.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Module, Result, Shape, Tensor};

use super::bridge::{constant, on_cpu, slice};
use super::error::{TrainingError, wrap};
use crate::kernels::matmul::Epilogue;
use crate::weight::{Activations, CompressedWeight, PackedWeight, WeightError};

/// A linear layer `y = x · Wᵀ + b` whose weight stays compressed, as a module of candle.
///
/// The product is that of tersor's own networks. The weight is not trained: it has no gradient, and neither has the bias. The
/// input has one, `g · W` with the dequantized weight (straight through, where inputs are rounded to 8 bits), so that what
/// lies before the layer can be trained.
///
/// The layer holds the weight twice: arranged for products, and as it is stored, for the gradient.
///
/// ```
/// use candle_core::{Device, Module, Tensor};
/// use tersor::candle::CompressedLinear;
/// use tersor::{Activations, Bits, Layer, Method, Precision, RoundToNearest};
///
/// let layer = Layer::new(&[2, 3], &[0.5, 1.0, -1.5, 3.0, 0.0, 1.5], Precision::F32);
/// let int4 = RoundToNearest::int(Bits::new(4).unwrap()).compress(&layer)?.weight;
/// let linear = CompressedLinear::new(int4, Some(&[0.5, 0.0]), Activations::Float)?;
/// let y = linear.forward(&Tensor::ones((1, 4, 3), candle_core::DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.dims(), [1, 4, 2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct CompressedLinear(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    weight: CompressedWeight,
    packed: PackedWeight,
    bias: Option<Vec<f32>>,
}

impl CompressedLinear {
    /// A layer over a weight; `activations` says how inputs enter the product.
    ///
    /// # Shapes
    /// The weight is `[outputs, inputs]`, the bias has `outputs` values.
    ///
    /// # Errors
    /// When the bias has another length, or this product of weight and activations is not implemented, as
    /// [`PackedWeight::new`] says.
    pub fn new(
        weight: CompressedWeight,
        bias: Option<&[f32]>,
        activations: Activations,
    ) -> std::result::Result<Self, WeightError> {
        let packed = PackedWeight::new(&weight, activations)?;
        if let Some(bias) = bias {
            WeightError::check_len("biases", weight.rows(), bias.len())?;
        }
        Ok(Self(Arc::new(Parts { weight, packed, bias: bias.map(<[f32]>::to_vec) })))
    }

    /// The weight.
    pub fn weight(&self) -> &CompressedWeight {
        &self.0.weight
    }
}

impl Module for CompressedLinear {
    /// The product; `x` is `[…, inputs]`, the result `[…, outputs]`, of `x`'s element type.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let dtype = x.dtype();
        on_cpu(x)?.apply_op1(Product(Arc::clone(&self.0)))?.to_dtype(dtype)
    }
}

struct Product(Arc<Parts>);

impl CustomOp1 for Product {
    fn name(&self) -> &'static str {
        "compressed linear layer"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Parts { weight, packed, bias } = &*self.0;
        let mut dims = layout.dims().to_vec();
        let Some(last) = dims.last_mut().filter(|last| **last == weight.cols()) else {
            let mut expected = layout.dims().to_vec();
            expected.pop();
            expected.push(weight.cols());
            let (what, actual) = ("the input of the linear layer".to_owned(), layout.dims().to_vec());
            let rule = "its last dimension is the weight's input features";
            return Err(wrap(TrainingError::Shape { what, actual, expected, rule }));
        };
        *last = weight.rows();
        let mut y = vec![0.0; dims.iter().product()];
        let epilogue = Epilogue { bias: bias.as_deref(), relu: false };
        packed.matmul_into(slice(storage, layout)?, epilogue, &mut y).map_err(wrap)?;
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, outer: &Tensor) -> Result<Option<Tensor>> {
        let weight = &self.0.weight;
        let (rows, cols) = (weight.rows(), weight.cols());
        let dense = weight.dequantize().into_raw_vec_and_offset().0;
        let dense = Tensor::from_vec(dense, (rows, cols), &Device::Cpu)?;
        let outer = constant(outer)?.reshape(((), rows))?;
        outer.matmul(&dense)?.reshape(x.shape()).map(Some)
    }
}
