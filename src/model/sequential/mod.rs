//! Networks that are a list of layers.

mod config;

use std::path::Path;

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

pub use config::{LayerConfig, SequentialConfig};

use super::overlay::Overlay;
use super::{Classifier, Execution, ModelError, Tap};
use crate::checkpoint::Checkpoint;
use crate::kernels::matmul::Epilogue;
use crate::weight::{CompressedWeight, PackedWeight};

/// Most values that a layer may take for one input: more is a mistake in the configuration, not a small network.
const MAX_VALUES: usize = 1 << 28;

/// A perceptron or a small convolutional network over compressed weights.
///
/// ```no_run
/// use tersor::{Checkpoint, Sequential};
///
/// let model = Sequential::open(&Checkpoint::open("fixtures/fashion-mlp")?)?;
/// let images = ndarray::Array2::<f32>::zeros((2, model.input_features()));
/// assert_eq!(model.forward(images.view())?.dim(), (2, 10));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sequential {
    layers: Vec<Layer>,
    input_features: usize,
    output_features: usize,
    pixel_scale: f32,
}

#[derive(Debug, Clone)]
enum Layer {
    Linear(Product),
    Conv2d(Product, Geometry),
    Relu,
    MaxPool2d { size: usize, input: [usize; 3] },
}

/// A product with a weight, as the checkpoint names it without `.weight`.
#[derive(Debug, Clone)]
struct Product {
    name: String,
    weight: PackedWeight,
    bias: Option<Vec<f32>>,
}

/// A convolution's window and images, `[channels, height, width]`.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    input: [usize; 3],
    output: [usize; 3],
    kernel: [usize; 2],
    padding: usize,
    stride: usize,
}

impl Sequential {
    /// Builds the network that a checkpoint holds, with every weight in the form in which it is stored.
    ///
    /// # Errors
    /// When the checkpoint does not say what network it is, or tensors are missing or misshapen.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        Self::open_with(checkpoint, Execution::default())
    }

    /// As [`open`](Self::open), with a choice of how it is run.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when a weight cannot be run so.
    pub fn open_with(checkpoint: &Checkpoint, execution: Execution) -> Result<Self, ModelError> {
        Self::open_over(checkpoint, &Overlay::default(), execution)
    }

    /// As [`open_with`](Self::open_with), with other tensors in the place of some.
    pub(super) fn open_over(
        checkpoint: &Checkpoint,
        overlay: &Overlay,
        execution: Execution,
    ) -> Result<Self, ModelError> {
        let config = SequentialConfig::of(checkpoint)?;
        let input_features = checked_product(&config.input_shape).filter(|n| (1..=MAX_VALUES).contains(n));
        let input_features = input_features.ok_or_else(|| ModelError::Architecture {
            path: checkpoint.path().to_path_buf(),
            reason: format!("its input_shape {:?} is not 1 to {MAX_VALUES} values", config.input_shape),
        })?;
        let mut builder = Builder { checkpoint, overlay, execution, shape: config.input_shape.clone() };
        let layers = config.layers.iter().filter_map(|l| builder.layer(l).transpose());
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let output_features = checked_product(&builder.shape).filter(|n| *n > 0);
        let output_features = output_features.ok_or_else(|| ModelError::Architecture {
            path: checkpoint.path().to_path_buf(),
            reason: format!("its output of shape {:?} has no values", builder.shape),
        })?;
        Ok(Self { layers, input_features, output_features, pixel_scale: config.pixel_scale })
    }

    /// Number of values in one input.
    pub fn input_features(&self) -> usize {
        self.input_features
    }

    /// Number of values in one output: classes.
    pub fn output_features(&self) -> usize {
        self.output_features
    }

    /// What an 8-bit pixel is multiplied by.
    pub fn pixel_scale(&self) -> f32 {
        self.pixel_scale
    }

    /// Runs the network.
    ///
    /// # Shapes
    /// `[batch, input_features]` → `[batch, output_features]`: logits.
    ///
    /// # Errors
    /// When the input has another number of features.
    pub fn forward(&self, input: ArrayView2<'_, f32>) -> Result<Array2<f32>, ModelError> {
        let mut x = self.embed(input)?;
        for block in 0..self.blocks() {
            self.run_block(block, &mut x, None)?;
        }
        Ok(x)
    }

    /// Number of layers with weights. Each is the first of a block, whose other layers have none.
    pub fn blocks(&self) -> usize {
        self.layers.iter().filter(|layer| layer.product().is_some()).count()
    }

    /// What the first block takes.
    ///
    /// # Shapes
    /// `[batch, input_features]` → `[batch, features]`.
    ///
    /// # Errors
    /// When the input has another number of features.
    pub fn embed(&self, input: ArrayView2<'_, f32>) -> Result<Array2<f32>, ModelError> {
        if input.ncols() != self.input_features {
            return Err(ModelError::Input { expected: self.input_features, actual: input.ncols() });
        }
        let mut before = self.layers.iter().take_while(|layer| layer.product().is_none());
        before.try_fold(input.to_owned(), |x, layer| layer.run(x, &mut None))
    }

    /// Runs a layer with weights, and those behind it that have none.
    ///
    /// # Shapes
    /// `[batch, features]`, before and after.
    ///
    /// # Errors
    /// When the input has another number of features.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn run_block(
        &self,
        block: usize,
        x: &mut Array2<f32>,
        mut tap: Option<&mut dyn Tap>,
    ) -> Result<(), ModelError> {
        let first = self.block_start(block);
        for (number, layer) in self.layers[first..].iter().enumerate() {
            if number > 0 && layer.product().is_some() {
                break;
            }
            *x = layer.run(std::mem::take(x), &mut tap)?;
        }
        Ok(())
    }

    fn block_start(&self, block: usize) -> usize {
        let starts = self.layers.iter().enumerate().filter(|(_, layer)| layer.product().is_some());
        let start = starts.map(|(number, _)| number).nth(block);
        assert!(start.is_some(), "block {block} of {}", self.blocks());
        start.unwrap_or_default()
    }

    /// Most numbers that a layer works with for an input: what goes in and comes out, and a convolution's windows.
    pub(super) fn widest_layer(&self) -> usize {
        let of_layer = |layer: &Layer| match layer {
            Layer::Linear(product) => product.weight.rows() + product.weight.cols(),
            Layer::Conv2d(product, Geometry { input, output, .. }) => {
                let [_, height, width] = output;
                let of_images = input.iter().product::<usize>() + output.iter().product::<usize>();
                of_images + height * width * product.weight.cols()
            }
            Layer::MaxPool2d { input, .. } => input.iter().product(),
            Layer::Relu => 0,
        };
        self.layers.iter().map(of_layer).max().unwrap_or(0).max(self.input_features)
    }

    /// The layer of a block that has a weight.
    pub(super) fn block_layers(&self, block: usize) -> Vec<Vec<String>> {
        let product = self.layers[self.block_start(block)].product();
        product.map(|product| vec![product.name.clone()]).into_iter().collect()
    }

    /// The layers whose weights are arranged for products.
    pub(super) fn packed_layers(&self) -> Vec<(&str, &PackedWeight)> {
        let products = self.layers.iter().filter_map(Layer::product);
        products.map(|product| (product.name.as_str(), &product.weight)).collect()
    }
}

impl Layer {
    fn product(&self) -> Option<&Product> {
        match self {
            Self::Linear(product) | Self::Conv2d(product, _) => Some(product),
            Self::Relu | Self::MaxPool2d { .. } => None,
        }
    }

    fn run(&self, mut x: Array2<f32>, tap: &mut Option<&mut dyn Tap>) -> Result<Array2<f32>, ModelError> {
        match self {
            Self::Linear(product) => product.run(x.view(), tap),
            Self::Conv2d(product, geometry) => geometry.convolve(x.view(), product, tap),
            Self::Relu => {
                // a comparison, because `max` would turn NaN into 0
                x.mapv_inplace(|v| if v < 0.0 { 0.0 } else { v });
                Ok(x)
            }
            Self::MaxPool2d { size, input } => Ok(max_pool(x.view(), *size, *input)),
        }
    }
}

impl Classifier for Sequential {
    fn input_features(&self) -> usize {
        self.input_features
    }

    fn pixel_scale(&self) -> f32 {
        self.pixel_scale
    }

    fn class_logits(&self, inputs: ArrayView2<'_, f32>) -> Result<Array2<f32>, ModelError> {
        self.forward(inputs)
    }
}

/// Follows the shape of the activations through the layers.
struct Builder<'a> {
    checkpoint: &'a Checkpoint,
    overlay: &'a Overlay,
    execution: Execution,
    shape: Vec<usize>,
}

impl Builder<'_> {
    fn layer(&mut self, config: &LayerConfig) -> Result<Option<Layer>, ModelError> {
        let bad = |layer: &str, reason: String| ModelError::Layer {
            path: self.checkpoint.path().to_path_buf(),
            layer: layer.to_owned(),
            reason,
        };
        let overflow =
            |layer: &str| bad(layer, format!("it takes more than {MAX_VALUES} values for one input"));
        match config {
            LayerConfig::Relu => Ok(Some(Layer::Relu)),
            LayerConfig::Flatten => {
                let features = checked_product(&self.shape).ok_or_else(|| overflow("flatten"))?;
                self.shape = vec![features];
                Ok(None)
            }
            LayerConfig::Linear { name } => {
                let (weight, bias) = self.tensors(name)?;
                let product = |weight| Product { name: name.clone(), weight, bias };
                let features = self.shape.last().copied().unwrap_or(0);
                if self.shape.len() != 1 || weight.shape().len() != 2 || weight.cols() != features {
                    let reason = format!(
                        "a weight of shape {:?} does not fit an input of shape {:?}",
                        weight.shape(),
                        self.shape
                    );
                    return Err(bad(name, reason));
                }
                self.shape = vec![weight.rows()];
                Ok(Some(Layer::Linear(product(self.execution.packed(&weight)?))))
            }
            LayerConfig::Conv2d { name, padding, stride } => {
                let (weight, bias) = self.tensors(name)?;
                let clash = || {
                    let reason = format!(
                        "a weight of shape {:?} with padding {padding} and stride {stride} does not fit an input of shape {:?}",
                        weight.shape(),
                        self.shape
                    );
                    bad(name, reason)
                };
                let ([out, channels, kh, kw], [c, h, w]) = (weight.shape(), self.shape.as_slice()) else {
                    return Err(clash());
                };
                let side = |image: usize, kernel: usize| {
                    let padded = image.checked_add(padding.checked_mul(2)?)?;
                    Some(padded.checked_sub(kernel)?.checked_div(*stride)? + 1)
                };
                let (Some(oh), Some(ow), true) = (side(*h, *kh), side(*w, *kw), channels == c) else {
                    return Err(clash());
                };
                let geometry = Geometry {
                    input: [*c, *h, *w],
                    output: [*out, oh, ow],
                    kernel: [*kh, *kw],
                    padding: *padding,
                    stride: *stride,
                };
                let fits = |shape: &[usize]| checked_product(shape).is_some_and(|n| n <= MAX_VALUES);
                if !fits(&[oh, ow, *c, *kh, *kw]) || !fits(&geometry.output) {
                    return Err(overflow(name));
                }
                self.shape = geometry.output.to_vec();
                let product = Product { name: name.clone(), weight: self.execution.packed(&weight)?, bias };
                Ok(Some(Layer::Conv2d(product, geometry)))
            }
            LayerConfig::MaxPool2d { size } => {
                let &[c, h, w] = self.shape.as_slice() else {
                    return Err(bad(
                        "max_pool2d",
                        format!("needs an image, not an input of shape {:?}", self.shape),
                    ));
                };
                if *size == 0 || *size > h || *size > w {
                    return Err(bad(
                        "max_pool2d",
                        format!("a window of {size} does not fit an image of {h} × {w}"),
                    ));
                }
                self.shape = vec![c, h / size, w / size];
                Ok(Some(Layer::MaxPool2d { size: *size, input: [c, h, w] }))
            }
        }
    }

    fn tensors(&self, name: &str) -> Result<(CompressedWeight, Option<Vec<f32>>), ModelError> {
        let weight_name = format!("{name}.weight");
        let weight = match self.overlay.get(&weight_name) {
            Some(weight) => weight.clone(),
            None => self.checkpoint.weight(&weight_name)?,
        };
        let bias_name = format!("{name}.bias");
        let bias = if self.checkpoint.entry(&bias_name).is_ok() {
            let bias = self.overlay.dense(self.checkpoint, &bias_name)?;
            if bias.len() != weight.rows() {
                return Err(ModelError::Layer {
                    path: self.checkpoint.path().to_path_buf(),
                    layer: name.to_owned(),
                    reason: format!("{} biases do not fit {} output features", bias.len(), weight.rows()),
                });
            }
            Some(bias)
        } else {
            None
        };
        Ok((weight, bias))
    }
}

impl Product {
    /// `x · Wᵀ + bias`.
    fn run(&self, x: ArrayView2<'_, f32>, tap: &mut Option<&mut dyn Tap>) -> Result<Array2<f32>, ModelError> {
        if let Some(tap) = tap {
            tap.observe(&[&self.name], x);
        }
        let mut y = Array2::zeros((x.nrows(), self.weight.rows()));
        let x = x.as_standard_layout();
        if let (Some(x), Some(y)) = (x.as_slice(), y.as_slice_mut()) {
            self.weight.matmul_into(x, Epilogue { bias: self.bias.as_deref(), relu: false }, y)?;
        }
        Ok(y)
    }
}

fn checked_product(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))
}

impl Geometry {
    /// Every window becomes a row (im2col), so that the convolution is a product with the weight's matrix.
    fn convolve(
        &self,
        x: ArrayView2<'_, f32>,
        product: &Product,
        tap: &mut Option<&mut dyn Tap>,
    ) -> Result<Array2<f32>, ModelError> {
        let [c, h, w] = self.input;
        let [out, oh, ow] = self.output;
        let [kh, kw] = self.kernel;
        let (batch, windows, patch) = (x.nrows(), oh * ow, c * kh * kw);
        let x = x.as_standard_layout();
        let x: &[f32] = x.as_slice().unwrap_or_default();
        let mut patches = Array2::<f32>::zeros((batch * windows, patch));
        if let Some(all) = patches.as_slice_mut()
            && windows * patch > 0
        {
            all.par_chunks_mut(windows * patch).zip(x.par_chunks(c * h * w)).for_each(|(patches, image)| {
                for (window, patch) in patches.chunks_exact_mut(patch).enumerate() {
                    let (top, left) = (window / ow * self.stride, window % ow * self.stride);
                    for (i, value) in patch.iter_mut().enumerate() {
                        let (channel, row, col) = (i / (kh * kw), top + i / kw % kh, left + i % kw);
                        let inside = (self.padding..h + self.padding).contains(&row)
                            && (self.padding..w + self.padding).contains(&col);
                        if inside {
                            *value = image[(channel * h + row - self.padding) * w + col - self.padding];
                        }
                    }
                }
            });
        }
        // [batch · windows, out] → [batch, out · windows]
        let product = product.run(patches.view(), tap)?;
        let mut y = Array2::<f32>::zeros((batch, out * windows));
        for ((image, mut y), product) in
            y.axis_iter_mut(Axis(0)).enumerate().zip(product.axis_chunks_iter(Axis(0), windows.max(1)))
        {
            debug_assert!(image < batch);
            for ((window, channel), value) in product.indexed_iter() {
                y[channel * windows + window] = *value;
            }
        }
        Ok(y)
    }
}

fn max_pool(x: ArrayView2<'_, f32>, size: usize, [c, h, w]: [usize; 3]) -> Array2<f32> {
    let (oh, ow) = (h / size, w / size);
    Array2::from_shape_fn((x.nrows(), c * oh * ow), |(image, i)| {
        let (channel, row, col) = (i / (oh * ow), i / ow % oh, i % ow);
        let mut largest = f32::NEG_INFINITY;
        for y in row * size..(row + 1) * size {
            for x_ in col * size..(col + 1) * size {
                let value = x[[image, (channel * h + y) * w + x_]];
                // NaN stays
                if value > largest || value.is_nan() {
                    largest = value;
                }
            }
        }
        largest
    })
}

/// Convenience for callers that have a path.
impl TryFrom<&Path> for Sequential {
    type Error = ModelError;

    fn try_from(path: &Path) -> Result<Self, ModelError> {
        Self::open(&Checkpoint::open(path)?)
    }
}
