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
//! `dataset-fashion-mnist` puts them; OUT is `fixtures` unless given. With `--resume FOLDER` an interrupted
//! run goes on after its last epoch, from a file there, and ends with the same weights.
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

mod training;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_nn::Optimizer;
use candle_nn::loss::cross_entropy;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use training::Result;
use training::arguments::{Arguments, report};
use training::images::{Dataset, View};
use training::network::{LENET_5, LENET_300_100, Layer, Network};
use training::optimizer::{Sgd, SgdConfig};
use training::trainer::{Trainer, Validation};

const DEFAULT_DATA: &str = "/usr/share/datasets/fashion-mnist";
const USAGE: &str =
    "usage: train_fashion [DATA] [OUT] [--seed N] [--epochs N] [--only NAME] [--resume FOLDER]";

/// The last training images are kept apart to watch the progress; the test set is read once, at the end.
const HELD_OUT: usize = 5_000;
const BATCH: usize = 64;

/// A network and the settings that train it well.
struct Recipe {
    name: &'static str,
    layers: &'static [Layer],
    epochs: usize,
    learning_rate: f64,
    /// As in [`SgdConfig`].
    l2: f64,
    l1: f64,
    /// How many pixels a training image may be moved, each way.
    shift: i16,
}

const RECIPES: [Recipe; 2] = [
    Recipe {
        name: "fashion-mlp",
        layers: LENET_300_100,
        epochs: 40,
        learning_rate: 0.05,
        l2: 5e-4,
        l1: 0.0,
        shift: 0,
    },
    Recipe {
        name: "fashion-lenet",
        layers: LENET_5,
        epochs: 16,
        learning_rate: 0.08,
        l2: 5e-4,
        l1: 2.5e-5,
        shift: 1,
    },
];

fn run() -> Result<()> {
    let args = Arguments::read(USAGE, &["--seed", "--epochs", "--only", "--resume"], &[], 2)?;
    let only = args.text("--only");
    if let Some(only) = only.filter(|only| RECIPES.iter().all(|recipe| recipe.name != *only)) {
        let names = RECIPES.map(|recipe| recipe.name).join(", ");
        return Err(format!("no network is called {only}; there are {names}").into());
    }
    let (seed, epochs) = (args.number("--seed")?.unwrap_or(0), args.number("--epochs")?);
    let mut folders = args.plain.iter().cloned();
    let data = folders.next().unwrap_or_else(|| DEFAULT_DATA.into());
    let out = folders.next().unwrap_or_else(|| "fixtures".into());
    let data = dataset(&data)?;
    for (stream, recipe) in (0..).zip(&RECIPES) {
        if only.is_some_and(|only| only != recipe.name) {
            continue;
        }
        // A stream for each network: the weights do not depend on which others are trained.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        let epochs = epochs.map_or(recipe.epochs, |epochs| epochs as usize);
        let resume = args.text("--resume").map(|folder| Path::new(folder).join(recipe.name));
        let network = train(recipe, epochs, &data, resume, &mut rng)?;
        println!("{}: test accuracy {:.2} %", recipe.name, 100.0 * network.evaluate(&data.test)?.accuracy());
        network.save(&out.join(recipe.name))?;
    }
    Ok(())
}

fn dataset(folder: &Path) -> Result<Dataset> {
    if !folder.is_dir() {
        let folder = folder.display();
        return Err(format!(
            "{folder} does not exist: install the Debian package `dataset-fashion-mnist`, or give the folder of the \
             Fashion-MNIST files as the first argument"
        )
        .into());
    }
    Dataset::load(folder, HELD_OUT)
}

/// Trains a new network for a number of epochs.
fn train(
    recipe: &Recipe,
    epochs: usize,
    data: &Dataset,
    resume: Option<PathBuf>,
    rng: &mut ChaCha8Rng,
) -> Result<Network> {
    let network = Network::new(recipe.layers, rng)?;
    let config = SgdConfig { l2: recipe.l2, l1: recipe.l1, ..SgdConfig::default() };
    let mut optimizer = Sgd::new(network.parameters.values().cloned().collect(), config)?;
    let resume = resume.map(|path| path.with_extension("safetensors"));
    let trainer = Trainer {
        resume: resume.as_deref(),
        ..Trainer::new(recipe.name, epochs, BATCH, recipe.learning_rate)
    };
    let loss = |rows: &[usize], rng: &mut ChaCha8Rng| {
        let batch = data.training.batch(rows, || View::random(rng, recipe.shift))?;
        Ok(cross_entropy(&network.forward(&batch.images)?, &batch.labels)?)
    };
    let validate = |_| {
        let held_out = network.evaluate(&data.held_out)?;
        let text = format!("held-out accuracy {:.2} %", 100.0 * held_out.accuracy());
        Ok(Validation { loss: held_out.loss, text })
    };
    trainer.run(&network.parameters, &mut optimizer, data.training.len(), rng, loss, validate)?;
    Ok(network)
}

fn main() -> ExitCode {
    report(run)
}
