//! Perceptrons and LeNet-style networks: layers as `config.json` lists them, parameters as candle's variables.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::loss::cross_entropy;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::Result;
use super::images::{CLASSES, Images, PIXEL_SCALE, SIDE};
use super::operations::{max_pool2d, patches};

/// One step of a network. Convolutions have stride 1.
#[derive(Clone, Copy)]
pub(crate) enum Layer {
    Conv2d {
        name: &'static str,
        channels: usize,
        kernel: usize,
        padding: usize,
    },
    Linear {
        name: &'static str,
        outputs: usize,
    },
    MaxPool2d {
        size: usize,
    },
    Flatten,
    Relu,
    /// While training, zeroes this share of the values, and makes up for it in the others (Srivastava et al. 2014).
    Dropout {
        share: f32,
    },
}

/// A perceptron with two hidden layers, LeNet-300-100.
pub(crate) const LENET_300_100: &[Layer] = &[
    Layer::Flatten,
    Layer::Linear { name: "fc1", outputs: 300 },
    Layer::Relu,
    Layer::Linear { name: "fc2", outputs: 100 },
    Layer::Relu,
    Layer::Linear { name: "fc3", outputs: CLASSES },
];

/// LeNet-5 as Caffe has it.
pub(crate) const LENET_5: &[Layer] = &[
    Layer::Conv2d { name: "conv1", channels: 20, kernel: 5, padding: 0 },
    Layer::MaxPool2d { size: 2 },
    Layer::Relu,
    Layer::Conv2d { name: "conv2", channels: 50, kernel: 5, padding: 0 },
    Layer::MaxPool2d { size: 2 },
    Layer::Relu,
    Layer::Flatten,
    Layer::Linear { name: "fc1", outputs: 500 },
    Layer::Relu,
    Layer::Linear { name: "fc2", outputs: CLASSES },
];

/// The layers and their parameters, by tensor name.
pub(crate) struct Network {
    pub(crate) layers: &'static [Layer],
    pub(crate) parameters: BTreeMap<String, Var>,
}

/// Loss and number of errors of a network on some images.
pub(crate) struct Evaluation {
    pub(crate) loss: f64,
    pub(crate) errors: usize,
    pub(crate) images: usize,
}

impl Evaluation {
    pub(crate) fn accuracy(&self) -> f64 {
        1.0 - self.errors as f64 / self.images as f64
    }
}

impl Network {
    /// Draws the weights (Xavier's uniform distribution, as in Caffe); the biases start at zero.
    pub(crate) fn new(layers: &'static [Layer], rng: &mut ChaCha8Rng) -> Result<Self> {
        let mut network = Self { layers, parameters: BTreeMap::new() };
        let (mut channels, mut side) = (1, SIDE);
        for &layer in layers {
            match layer {
                Layer::Conv2d { name, channels: outputs, kernel, padding } => {
                    network.add(name, &[outputs, channels, kernel, kernel], rng)?;
                    (channels, side) = (outputs, side + 2 * padding + 1 - kernel);
                }
                Layer::Linear { name, outputs } => {
                    network.add(name, &[outputs, channels], rng)?;
                    channels = outputs;
                }
                Layer::MaxPool2d { size } => side /= size,
                Layer::Flatten => (channels, side) = (channels * side * side, 1),
                Layer::Relu | Layer::Dropout { .. } => {}
            }
        }
        Ok(network)
    }

    fn add(&mut self, name: &str, shape: &[usize], rng: &mut ChaCha8Rng) -> Result<()> {
        let fan_in: usize = shape[1..].iter().product();
        let bound = (3.0 / fan_in as f32).sqrt();
        let weight = (0..shape[0] * fan_in).map(|_| rng.random_range(-bound..bound)).collect();
        self.parameters.insert(format!("{name}.weight"), Var::from_vec(weight, shape, &Device::Cpu)?);
        self.parameters.insert(format!("{name}.bias"), Var::zeros(shape[0], DType::F32, &Device::Cpu)?);
        Ok(())
    }

    /// The names of the weights, first layer first.
    pub(crate) fn weights(&self) -> impl Iterator<Item = String> {
        self.layers.iter().filter_map(|layer| match layer {
            Layer::Conv2d { name, .. } | Layer::Linear { name, .. } => Some(format!("{name}.weight")),
            _ => None,
        })
    }

    /// The logits of a batch of images, `[batch, CLASSES]`.
    pub(crate) fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.forward_with(images, |_, weight| Ok(weight.as_tensor().clone()), None)
    }

    /// The same with `weight(name, variable)` in the place of each weight, and, where there is a source of chance, with dropout.
    pub(crate) fn forward_with(
        &self,
        images: &Tensor,
        weight: impl Fn(&str, &Var) -> Result<Tensor>,
        mut chance: Option<&mut ChaCha8Rng>,
    ) -> Result<Tensor> {
        let mut x = images.clone();
        for layer in self.layers {
            let parameters = |name: &str| -> Result<(Tensor, &Var)> {
                let key = format!("{name}.weight");
                Ok((weight(&key, &self.parameters[&key])?, &self.parameters[&format!("{name}.bias")]))
            };
            x = match *layer {
                Layer::Conv2d { name, padding, .. } => {
                    let (weight, bias) = parameters(name)?;
                    conv2d(&x, &weight, bias, padding)?
                }
                Layer::Linear { name, .. } => {
                    let (weight, bias) = parameters(name)?;
                    linear(&x, &weight, bias)?
                }
                Layer::MaxPool2d { size } => max_pool2d(&x, size)?,
                Layer::Flatten => x.flatten_to(2)?,
                Layer::Relu => x.relu()?,
                Layer::Dropout { share } => match &mut chance {
                    Some(rng) => dropout(&x, share, rng)?,
                    None => x,
                },
            };
        }
        Ok(x.t()?)
    }

    /// The logits of all images, `[images, CLASSES]`, and no way back through them.
    pub(crate) fn logits(&self, images: &Images) -> Result<Tensor> {
        let parts = images
            .batches()
            .map(|batch| Ok(self.forward(&batch?.images)?.detach().contiguous()?))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// How the network does on images, with its weights as they are.
    pub(crate) fn evaluate(&self, images: &Images) -> Result<Evaluation> {
        self.evaluate_with(images, |_, weight| Ok(weight.as_tensor().clone()))
    }

    /// The same with `weight(name, variable)` in the place of each weight.
    pub(crate) fn evaluate_with(
        &self,
        images: &Images,
        weight: impl Fn(&str, &Var) -> Result<Tensor>,
    ) -> Result<Evaluation> {
        let (mut loss, mut right) = (0.0, 0.0);
        for batch in images.batches() {
            let batch = batch?;
            let logits = self.forward_with(&batch.images, &weight, None)?.detach();
            let rows = batch.labels.elem_count() as f64;
            loss += f64::from(cross_entropy(&logits, &batch.labels)?.to_scalar::<f32>()?) * rows;
            let classes = logits.argmax(D::Minus1)?;
            right += classes.eq(&batch.labels)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        }
        let count = images.len();
        Ok(Evaluation { loss: loss / count as f64, errors: count - right as usize, images: count })
    }

    /// The values of all parameters, to come back to.
    pub(crate) fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        self.parameters
            .iter()
            .map(|(name, var)| Ok((name.clone(), var.as_tensor().copy()?.detach())))
            .collect()
    }

    /// Sets parameters to what they were.
    pub(crate) fn restore(&self, snapshot: &BTreeMap<String, Tensor>) -> Result<()> {
        Ok(snapshot.iter().try_for_each(|(name, value)| self.parameters[name].set(value))?)
    }

    /// Writes a folder that tersor opens: `model.safetensors` and `config.json`.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let tensors = self.parameters.iter().map(|(name, var)| (name, var.as_tensor()));
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        fs::write(folder.join("model.safetensors"), safetensors::serialize(tensors, Some(metadata))?)?;
        fs::write(folder.join("config.json"), config(self.layers))?;
        println!("wrote {}", folder.display());
        Ok(())
    }
}

/// `weight · x + bias`, for `x` of the shape `[inputs, columns]`.
fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> candle_core::Result<Tensor> {
    weight.matmul(x)?.broadcast_add(&bias.unsqueeze(1)?)
}

/// A convolution of stride 1, as one matrix product of the kernels and the patches under them.
fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, padding: usize) -> candle_core::Result<Tensor> {
    let x = x.pad_with_zeros(1, padding, padding)?.pad_with_zeros(2, padding, padding)?;
    let (_, height, width, batch) = x.dims4()?;
    let (outputs, _, kernel, _) = weight.dims4()?;
    let (out_height, out_width) = (height + 1 - kernel, width + 1 - kernel);
    let patches = patches(&x, kernel)?.flatten_from(1)?;
    linear(&patches, &weight.flatten_from(1)?, bias)?.reshape((outputs, out_height, out_width, batch))
}

fn dropout(x: &Tensor, share: f32, rng: &mut ChaCha8Rng) -> candle_core::Result<Tensor> {
    // a byte of chance for each value: shares to the nearest 256th
    let mut bytes = vec![0u8; x.elem_count()];
    rng.fill(&mut bytes[..]);
    let dropped = (share * 256.0).round();
    let scale = 256.0 / (256.0 - dropped);
    let factors = bytes.into_iter().map(|byte| if f32::from(byte) < dropped { 0.0 } else { scale }).collect();
    x * Tensor::from_vec(factors, x.shape(), x.device())?
}

/// The text of `config.json`: how to run the network, one layer a line.
pub(crate) fn config(layers: &[Layer]) -> String {
    let lines: Vec<String> =
        layers.iter().filter_map(|layer| Some(format!("    {}", layer.json()?))).collect();
    format!(
        "{{\n  \"model_type\": \"sequential\",\n  \"input_shape\": [1, {SIDE}, {SIDE}],\n  \
         \"pixel_scale\": {PIXEL_SCALE},\n  \"layers\": [\n{}\n  ]\n}}\n",
        lines.join(",\n")
    )
}

impl Layer {
    fn json(self) -> Option<String> {
        Some(match self {
            Self::Conv2d { name, padding, .. } => {
                format!(r#"{{"type": "conv2d", "name": "{name}", "padding": {padding}, "stride": 1}}"#)
            }
            Self::Linear { name, .. } => format!(r#"{{"type": "linear", "name": "{name}"}}"#),
            Self::MaxPool2d { size } => format!(r#"{{"type": "max_pool2d", "size": {size}}}"#),
            Self::Flatten => r#"{"type": "flatten"}"#.to_owned(),
            Self::Relu => r#"{"type": "relu"}"#.to_owned(),
            Self::Dropout { .. } => return None,
        })
    }
}
