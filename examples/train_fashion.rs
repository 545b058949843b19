//! Trains the two small Fashion-MNIST networks that the tests and the other examples compress.
//!
//! * `fashion-mlp`: a 784-300-100-10 perceptron.
//! * `fashion-lenet`: LeNet-5 as Caffe has it, the network of the Deep Compression paper: convolutions of 20
//!   and 50 channels, each 5×5 and followed by `ReLU` and 2×2 max pooling, then dense layers 800-500-10.
//!
//! Each one is written to `OUT/NAME/model.safetensors` with a `config.json` beside it that lists its layers.
//!
//! ```text
//! cargo run --release --features candle --example train_fashion
//! cargo run --release --features candle --example train_fashion -- DATA OUT --seed 7 --only fashion-mlp
//! ```
//!
//! DATA is the folder that holds the four `*-ubyte.gz` files, by default the one where the Debian package
//! `dataset-fashion-mnist` puts them; OUT is `fixtures` unless given.
//!
//! With the default settings, on one core of a small server:
//!
//! | network         | parameters | epochs | test accuracy | half the weights pruned | time      |
//! |-----------------|-----------:|-------:|--------------:|------------------------:|-----------|
//! | `fashion-mlp`   |    266,610 |     40 |       89.82 % |                 89.59 % | 2 minutes |
//! | `fashion-lenet` |    431,080 |     16 |       91.11 % |                 91.08 % | 8 minutes |
//!
//! The fifth column is the test accuracy without the smaller half of every layer's weights, with no training
//! after that. Networks that are to be pruned are usually trained with a penalty on large weights, so that
//! the weights that matter little end up near zero: here by gradient descent with Nesterov's momentum, an L2
//! penalty, and for `fashion-lenet`, whose first convolution suffers most from pruning, a small L1 penalty
//! too. The strengths were tried out on pruned and rounded networks and held-out images.
//!
//! The matrices are small, so `RAYON_NUM_THREADS=1` is as fast as more threads or faster. Everything random
//! comes from the seed: the same seed, build and machine give the same files, bit for bit.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    f64::consts::PI,
    fs::{self, File},
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use candle_core::{D, DType, Device, Tensor, Var, backprop::GradStore};
use candle_nn::loss::cross_entropy;
use flate2::read::GzDecoder;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const DEFAULT_DATA: &str = "/usr/share/datasets/fashion-mnist";
const DEFAULT_OUT: &str = "fixtures";
const USAGE: &str = "usage: train_fashion [DATA] [OUT] [--seed N] [--epochs N] [--only NAME]";

/// Images are `SIDE` × `SIDE` grey pixels.
const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;
const CLASSES: usize = 10;
/// A power of two, so that scaled pixels are exact in every float format.
const PIXEL_SCALE: f32 = 1.0 / 256.0;

/// The last training images are kept apart to watch the progress; the test set is read once, at the end.
const HELD_OUT: usize = 5_000;
const BATCH: usize = 64;
const MOMENTUM: f64 = 0.9;

/// One step of a network, as `config.json` lists it. Convolutions have stride 1.
#[derive(Clone, Copy)]
enum Layer {
    Conv2d { name: &'static str, channels: usize, kernel: usize, padding: usize },
    Linear { name: &'static str, outputs: usize },
    MaxPool2d { size: usize },
    Flatten,
    Relu,
}

/// A network and the settings that train it well.
struct Recipe {
    name: &'static str,
    layers: &'static [Layer],
    epochs: usize,
    learning_rate: f64,
    /// The loss of a weight `w` is `l2 / 2 · w² + l1 · |w|`; biases have none.
    l2: f64,
    l1: f64,
    /// How many pixels a training image may be moved, each way.
    shift: i16,
}

const RECIPES: [Recipe; 2] = [
    Recipe {
        name: "fashion-mlp",
        layers: &[
            Layer::Flatten,
            Layer::Linear { name: "fc1", outputs: 300 },
            Layer::Relu,
            Layer::Linear { name: "fc2", outputs: 100 },
            Layer::Relu,
            Layer::Linear { name: "fc3", outputs: CLASSES },
        ],
        epochs: 40,
        learning_rate: 0.05,
        l2: 5e-4,
        l1: 0.0,
        shift: 0,
    },
    Recipe {
        name: "fashion-lenet",
        layers: &[
            Layer::Conv2d { name: "conv1", channels: 20, kernel: 5, padding: 0 },
            Layer::Relu,
            Layer::MaxPool2d { size: 2 },
            Layer::Conv2d { name: "conv2", channels: 50, kernel: 5, padding: 0 },
            Layer::Relu,
            Layer::MaxPool2d { size: 2 },
            Layer::Flatten,
            Layer::Linear { name: "fc1", outputs: 500 },
            Layer::Relu,
            Layer::Linear { name: "fc2", outputs: CLASSES },
        ],
        epochs: 16,
        learning_rate: 0.08,
        l2: 5e-4,
        l1: 2.5e-5,
        shift: 1,
    },
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args = Args::parse(std::env::args().skip(1))?;
    let data = Dataset::load(&args.data)?;
    for (stream, recipe) in (0..).zip(&RECIPES) {
        if args.only.as_deref().is_some_and(|only| only != recipe.name) {
            continue;
        }
        // A stream for each network: the weights do not depend on which others are trained.
        let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
        rng.set_stream(stream);
        let network = train(recipe, args.epochs.unwrap_or(recipe.epochs), &data, &mut rng)?;
        println!("{}: test accuracy {:.2} %", recipe.name, 100.0 * network.accuracy(&data.test)?);
        network.save(&args.out.join(recipe.name))?;
    }
    Ok(())
}

/// What the command line asks for.
struct Args {
    data: PathBuf,
    out: PathBuf,
    seed: u64,
    epochs: Option<usize>,
    only: Option<String>,
}

impl Args {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut folders = Vec::new();
        let (mut seed, mut epochs, mut only) = (0, None, None);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value\n{USAGE}"));
            match arg.as_str() {
                "--seed" => seed = number(&value()?)?,
                "--epochs" => epochs = Some(number(&value()?)? as usize),
                "--only" => only = Some(value()?),
                _ if arg.starts_with('-') || folders.len() == 2 => {
                    return Err(format!("{arg} was not expected\n{USAGE}").into());
                }
                _ => folders.push(PathBuf::from(arg)),
            }
        }
        if let Some(only) = only.as_deref().filter(|only| RECIPES.iter().all(|recipe| recipe.name != *only)) {
            let names = RECIPES.map(|recipe| recipe.name).join(", ");
            return Err(format!("no network is called {only}; there are {names}").into());
        }
        let mut folders = folders.into_iter();
        Ok(Self {
            data: folders.next().unwrap_or_else(|| DEFAULT_DATA.into()),
            out: folders.next().unwrap_or_else(|| DEFAULT_OUT.into()),
            seed,
            epochs,
            only,
        })
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| format!("{text} is not a whole number\n{USAGE}").into())
}

/// Images, `PIXELS` bytes each, and the class of each one.
struct Images {
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

/// A mini-batch. The images are a `[1, SIDE, SIDE, batch]` tensor. With the batch in the last dimension, here
/// and in every layer, a layer is a plain product `weight · x`, and the pixels under a kernel are whole rows.
struct Batch {
    images: Tensor,
    labels: Tensor,
}

impl Images {
    fn load(folder: &Path, split: &str) -> Result<Self> {
        let pixels = read_idx(&folder.join(format!("{split}-images-idx3-ubyte.gz")), &[SIDE, SIDE])?;
        let labels = read_idx(&folder.join(format!("{split}-labels-idx1-ubyte.gz")), &[])?;
        if pixels.len() != labels.len() * PIXELS || labels.iter().any(|&label| usize::from(label) >= CLASSES)
        {
            return Err(format!("the {split} labels in {} do not fit the images", folder.display()).into());
        }
        Ok(Self { pixels, labels })
    }

    fn len(&self) -> usize {
        self.labels.len()
    }

    /// Moves the images from `at` on into a set of their own.
    fn split_off(&mut self, at: usize) -> Self {
        Self { pixels: self.pixels.split_off(at * PIXELS), labels: self.labels.split_off(at) }
    }

    /// The images of `rows`, each looked at through the view that `view` returns for it.
    fn batch(&self, rows: &[usize], mut view: impl FnMut() -> View) -> Result<Batch> {
        let mut pixels = vec![0.0; PIXELS * rows.len()];
        for (column, &row) in rows.iter().enumerate() {
            let view = view();
            let image = &self.pixels[row * PIXELS..(row + 1) * PIXELS];
            for (pixel, batch) in pixels.chunks_exact_mut(rows.len()).enumerate() {
                batch[column] = PIXEL_SCALE * view.pixel(image, pixel / SIDE, pixel % SIDE);
            }
        }
        let labels: Vec<u32> = rows.iter().map(|&row| self.labels[row].into()).collect();
        Ok(Batch {
            images: Tensor::from_vec(pixels, (1, SIDE, SIDE, rows.len()), &Device::Cpu)?,
            labels: Tensor::from_vec(labels, rows.len(), &Device::Cpu)?,
        })
    }
}

/// A way to look at an image: mirrored or not, and moved by some pixels down and to the right.
#[derive(Clone, Copy, Default)]
struct View {
    mirrored: bool,
    down: isize,
    right: isize,
}

impl View {
    fn random(rng: &mut ChaCha8Rng, shift: i16) -> Self {
        let mut pixels = || rng.random_range(-shift..=shift).into();
        Self { down: pixels(), right: pixels(), mirrored: rng.random() }
    }

    /// The grey value seen at a row and a column; outside the image it is black.
    fn pixel(self, image: &[u8], row: usize, column: usize) -> f32 {
        let column = if self.mirrored { SIDE - 1 - column } else { column };
        match (row.checked_add_signed(-self.down), column.checked_add_signed(-self.right)) {
            (Some(row @ ..SIDE), Some(column @ ..SIDE)) => image[row * SIDE + column].into(),
            _ => 0.0,
        }
    }
}

/// Reads a gzipped IDX file of bytes: a big-endian header of sizes, then the items, each of the shape `item`.
fn read_idx(path: &Path, item: &[usize]) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!(
            "{} does not exist: install the Debian package `dataset-fashion-mnist`, \
             or give the folder of the Fashion-MNIST files as the first argument",
            path.display()
        ),
        _ => format!("{}: {error}", path.display()),
    })?;
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).map_err(|error| format!("{}: {error}", path.display()))?;

    let mut words =
        bytes.chunks_exact(4).map(|word| word.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)));
    let magic = words.next();
    let count = words.next().unwrap_or(0);
    let start = 4 * (2 + item.len());
    let fits = magic == Some(0x0801 + item.len())
        && words.take(item.len()).eq(item.iter().copied())
        && bytes.len() == start + count * item.iter().product::<usize>();
    if !fits {
        return Err(format!("{} is not an IDX file of bytes of the shape {item:?}", path.display()).into());
    }
    Ok(bytes.split_off(start))
}

/// The three parts of Fashion-MNIST.
struct Dataset {
    training: Images,
    held_out: Images,
    test: Images,
}

impl Dataset {
    fn load(folder: &Path) -> Result<Self> {
        let mut training = Images::load(folder, "train")?;
        let held_out = training.split_off(training.len().saturating_sub(HELD_OUT));
        Ok(Self { training, held_out, test: Images::load(folder, "t10k")? })
    }
}

/// The layers and their parameters, by tensor name.
struct Network {
    layers: &'static [Layer],
    parameters: BTreeMap<String, Var>,
}

impl Network {
    /// Draws the weights (Xavier's uniform distribution, as in Caffe); the biases start at zero.
    fn new(layers: &'static [Layer], rng: &mut ChaCha8Rng) -> Result<Self> {
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
                Layer::Relu => {}
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

    /// The logits of a batch of images, `[batch, CLASSES]`.
    fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = images.clone();
        for layer in self.layers {
            x = match *layer {
                Layer::Conv2d { name, padding, .. } => {
                    let (weight, bias) = self.parameters_of(name)?;
                    conv2d(&x, weight, bias, padding)?
                }
                Layer::Linear { name, .. } => {
                    let (weight, bias) = self.parameters_of(name)?;
                    linear(&x, weight, bias)?
                }
                Layer::MaxPool2d { size } => max_pool2d(&x, size)?,
                Layer::Flatten => x.flatten_to(2)?,
                Layer::Relu => x.relu()?,
            };
        }
        Ok(x.t()?)
    }

    fn parameters_of(&self, layer: &str) -> Result<(&Var, &Var)> {
        let get = |part| self.parameters.get(&format!("{layer}.{part}"));
        get("weight").zip(get("bias")).ok_or_else(|| format!("the layer {layer} has no parameters").into())
    }

    /// The share of the images that the network puts in their class.
    fn accuracy(&self, images: &Images) -> Result<f64> {
        let mut right = 0.0;
        for rows in (0..images.len()).collect::<Vec<_>>().chunks(500) {
            let batch = images.batch(rows, View::default)?;
            let classes = self.forward(&batch.images)?.argmax(D::Minus1)?;
            right += classes.eq(&batch.labels)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        }
        Ok(right / images.len() as f64)
    }

    fn save(&self, folder: &Path) -> Result<()> {
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
    let (channels, height, width, batch) = x.dims4()?;
    let (outputs, _, kernel, _) = weight.dims4()?;
    let (out_height, out_width) = (height + 1 - kernel, width + 1 - kernel);

    let mut index = Vec::with_capacity(channels * kernel * kernel * out_height * out_width);
    for channel in 0..channels {
        for (down, right) in grid(kernel, kernel) {
            for (top, left) in grid(out_height, out_width) {
                index.push(((channel * height + top + down) * width + left + right) as u32);
            }
        }
    }
    let index = Tensor::new(index, x.device())?;
    let patches = x.flatten_to(2)?.index_select(&index, 0)?;
    let patches = patches.reshape((channels * kernel * kernel, out_height * out_width * batch))?;
    linear(&patches, &weight.flatten_from(1)?, bias)?.reshape((outputs, out_height, out_width, batch))
}

/// Rows and columns of a grid, row by row.
fn grid(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| (row, column)))
}

/// The largest value of each `size` × `size` tile.
fn max_pool2d(x: &Tensor, size: usize) -> candle_core::Result<Tensor> {
    let (channels, height, width, batch) = x.dims4()?;
    let x = x.reshape((channels * height / size, size, width * batch))?.max(1)?;
    let x = x.reshape((channels * height * width / size / size, size, batch))?.max(1)?;
    x.reshape((channels, height / size, width / size, batch))
}

/// Trains a new network for a number of epochs, with a learning rate that falls to zero along a cosine.
fn train(recipe: &Recipe, epochs: usize, data: &Dataset, rng: &mut ChaCha8Rng) -> Result<Network> {
    let network = Network::new(recipe.layers, rng)?;
    let mut optimizer = Sgd::new(&network, recipe)?;

    let mut order: Vec<usize> = (0..data.training.len()).collect();
    let steps = epochs * order.len().div_ceil(BATCH);
    let mut step = 0;
    let start = Instant::now();
    for epoch in 1..=epochs {
        order.shuffle(rng);
        let mut total = 0.0;
        for rows in order.chunks(BATCH) {
            let batch = data.training.batch(rows, || View::random(rng, recipe.shift))?;
            let loss = cross_entropy(&network.forward(&batch.images)?, &batch.labels)?;
            let progress = f64::from(step) / steps as f64;
            let learning_rate = recipe.learning_rate * 0.5 * (1.0 + (PI * progress).cos());
            optimizer.step(&loss.backward()?, learning_rate)?;
            total += f64::from(loss.to_scalar::<f32>()?) * rows.len() as f64;
            step += 1;
        }
        println!(
            "{}: epoch {epoch}/{epochs}: loss {:.4}, held-out accuracy {:.2} %, {:.0} s",
            recipe.name,
            total / order.len() as f64,
            100.0 * network.accuracy(&data.held_out)?,
            start.elapsed().as_secs_f64(),
        );
    }
    Ok(network)
}

/// Gradient descent with Nesterov's momentum.
struct Sgd {
    /// The parameters, each with its velocity.
    parameters: Vec<(Var, Tensor)>,
    l2: f64,
    l1: f64,
}

impl Sgd {
    fn new(network: &Network, recipe: &Recipe) -> Result<Self> {
        let parameters = network.parameters.values().map(|var| Ok((var.clone(), var.zeros_like()?)));
        Ok(Self { parameters: parameters.collect::<Result<_>>()?, l2: recipe.l2, l1: recipe.l1 })
    }

    fn step(&mut self, gradients: &GradStore, learning_rate: f64) -> Result<()> {
        for (var, velocity) in &mut self.parameters {
            let weight = var.as_detached_tensor();
            let mut gradient = gradients.get(var).ok_or("a parameter has no gradient")?.detach();
            if weight.rank() > 1 {
                gradient = ((gradient + (&weight * self.l2)?)? + (weight.sign()? * self.l1)?)?;
            }
            *velocity = ((&*velocity * MOMENTUM)? + &gradient)?;
            let step = ((gradient + (&*velocity * MOMENTUM)?)? * learning_rate)?;
            var.set(&(weight - step)?)?;
        }
        Ok(())
    }
}

/// The text of `config.json`: how to run the network, one layer a line.
fn config(layers: &[Layer]) -> String {
    let lines: Vec<String> = layers.iter().map(|layer| format!("    {}", layer.json())).collect();
    format!(
        "{{\n  \"model_type\": \"sequential\",\n  \"input_shape\": [1, {SIDE}, {SIDE}],\n  \
         \"pixel_scale\": {PIXEL_SCALE},\n  \"layers\": [\n{}\n  ]\n}}\n",
        lines.join(",\n")
    )
}

impl Layer {
    fn json(self) -> String {
        match self {
            Self::Conv2d { name, padding, .. } => {
                format!(r#"{{"type": "conv2d", "name": "{name}", "padding": {padding}, "stride": 1}}"#)
            }
            Self::Linear { name, .. } => format!(r#"{{"type": "linear", "name": "{name}"}}"#),
            Self::MaxPool2d { size } => format!(r#"{{"type": "max_pool2d", "size": {size}}}"#),
            Self::Flatten => r#"{"type": "flatten"}"#.to_owned(),
            Self::Relu => r#"{"type": "relu"}"#.to_owned(),
        }
    }
}
