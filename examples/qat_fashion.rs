//! Quantization-aware training: the fashion networks learn to live with weights of 2, 3 and 4 bits.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release --features candle --example qat_fashion
//! cargo run --release --features candle --example qat_fashion -- --data FOLDER --only fashion-lenet --seeds 3 --quick
//! ```
//!
//! Each network of `fixtures` is rounded to nearest, one symmetric scale a channel, and then fine-tuned in two ways: through
//! `FakeQuantize`, whose ranges follow the weights, and with scales that are learned (`LearnedScale`, LSQ). Every result is stored,
//! opened again, and scored on the test images by tersor's executor, which runs the integers as they are stored.
//!
//! FOLDER holds the four `*-ubyte.gz` files of Fashion-MNIST, by default where the Debian package `dataset-fashion-mnist` puts them.
//!
//! Printed are test accuracies, means and standard deviations over the seeds. With `--quick --seeds 1 --only fashion-mlp`, which
//! fine-tunes for one epoch each:
//!
//! ```text
//!  network       bits   file bytes   rounded   fine-tuned   learned scales
//! ─────────────────────────────────────────────────────────────────────────
//!  fashion-mlp     32    1,066,928   89.82 %
//!  fashion-mlp      4      138,216   89.52 %      89.58 %          89.55 %
//!  fashion-mlp      3      105,688   88.97 %      89.43 %          89.29 %
//!  fashion-mlp      2       71,552   64.69 %      88.97 %          89.26 %
//! ```
mod training;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use candle_nn::Optimizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tersor::candle::{FakeQuantize, LearnedScale, tensors_of, weight_of};
use tersor::distill::CrossEntropy;
use tersor::report::{Align, Table};
use tersor::{
    Bits, Checkpoint, Classification, CompressedWeight, Granularity, ImageSet, RoundToNearest, Sequential,
    Task, save_weights,
};

use training::Result;
use training::arguments::{Arguments, report, spread};
use training::images::{Dataset, View, open};
use training::network::{LENET_5, LENET_300_100, Layer, Network, config};
use training::optimizer::Adam;
use training::trainer::{Trainer, Validation};

const DEFAULT_DATA: &str = "/usr/share/datasets/fashion-mnist";
const USAGE: &str = "usage: qat_fashion [--data FOLDER] [--only NAME] [--seeds N] [--quick]";

/// Name, layers, how far training images are moved each way, and epochs of fine-tuning.
const NETWORKS: [(&str, &[Layer], i16, usize); 2] =
    [("fashion-mlp", LENET_300_100, 0, 6), ("fashion-lenet", LENET_5, 1, 2)];
const BITS: [u8; 3] = [4, 3, 2];
const BATCH: usize = 64;
const HELD_OUT: usize = 5_000;
const LEARNING_RATE: f64 = 5e-4;

/// What stands for a weight while the network is trained, and is stored of it then.
enum Quantizer {
    Observed(FakeQuantize),
    Learned(LearnedScale),
}

impl Quantizer {
    fn forward(&self, weight: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Observed(quantizer) => quantizer.forward(weight),
            Self::Learned(quantizer) => quantizer.forward(weight),
        }
    }

    fn compress(&self, weight: &Tensor) -> candle_core::Result<CompressedWeight> {
        match self {
            Self::Observed(quantizer) => quantizer.compress(weight),
            Self::Learned(quantizer) => quantizer.compress(weight),
        }
    }
}

/// A quantizer for every weight, by name.
type Quantizers = BTreeMap<String, Quantizer>;

struct Run<'a> {
    name: &'static str,
    layers: &'static [Layer],
    shift: i16,
    epochs: usize,
    data: &'a Dataset,
    test: &'a ImageSet,
    folder: &'a Path,
}

fn run() -> Result<()> {
    let args = Arguments::read(USAGE, &["--data", "--only", "--seeds"], &["--quick"], 0)?;
    let seeds = args.number("--seeds")?.unwrap_or(3);
    let folder = Path::new(args.text("--data").unwrap_or(DEFAULT_DATA));
    if !folder.is_dir() {
        let folder = folder.display();
        return Err(format!(
            "{folder} does not exist: install the Debian package `dataset-fashion-mnist`, or say --data FOLDER"
        )
        .into());
    }
    let (data, test) = (Dataset::load(folder, HELD_OUT)?, open(folder, "t10k")?);
    let stored = tempfile::tempdir()?;
    let columns = ["network", "bits", "file bytes", "rounded", "fine-tuned", "learned scales", "time"];
    let mut table =
        Table::new(columns.map(|name| (name, if name == "network" { Align::Left } else { Align::Right })));
    for (name, layers, shift, epochs) in NETWORKS {
        if args.text("--only").is_some_and(|only| only != name) {
            continue;
        }
        let epochs = if args.has("--quick") { 1 } else { epochs };
        let run = Run { name, layers, shift, epochs, data: &data, test: &test, folder: stored.path() };
        let source = Checkpoint::open(Path::new("fixtures").join(name))?;
        let dense = accuracy(&source, &test)?;
        table.row([name.into(), "32".into(), source.file_bytes().into(), format!("{dense:.2} %").into()]);
        for bits in BITS {
            let bits = Bits::new(bits).ok_or("no such number of bits")?;
            let start = Instant::now();
            let (rounded, bytes) = run.rounded(&source, bits)?;
            let mut scores = [Vec::new(), Vec::new()];
            for seed in 1..=seeds {
                for (learned, scores) in scores.iter_mut().enumerate() {
                    scores.push(run.tuned(&source, bits, learned == 1, seed)?);
                }
            }
            table.row([
                name.into(),
                u64::from(bits.get()).into(),
                bytes.into(),
                format!("{rounded:.2} %").into(),
                format!("{} %", spread(&scores[0], 2)).into(),
                format!("{} %", spread(&scores[1], 2)).into(),
                format!("{:.0} s", start.elapsed().as_secs_f64() / (2 * seeds) as f64).into(),
            ]);
        }
    }
    println!("\n{table}\n\n{seeds} seeds, mean ± standard deviation; time of one fine-tuning");
    Ok(())
}

impl Run<'_> {
    /// The network of a checkpoint, and a quantizer for each of its weights.
    fn network(&self, source: &Checkpoint, bits: Bits, learned: bool) -> Result<(Network, Quantizers)> {
        let parameters = tensors_of(source, &Device::Cpu)?
            .into_iter()
            .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?)))
            .collect::<Result<_>>()?;
        let network = Network { layers: self.layers, parameters };
        let quantizer = |name: String| -> Result<(String, Quantizer)> {
            let quantizer = if learned {
                Quantizer::Learned(LearnedScale::new(bits, Granularity::Channel, &network.parameters[&name])?)
            } else {
                Quantizer::Observed(FakeQuantize::new(RoundToNearest::int(bits)))
            };
            Ok((name, quantizer))
        };
        let quantizers = network.weights().map(quantizer).collect::<Result<_>>()?;
        Ok((network, quantizers))
    }

    /// Accuracy in percent without fine-tuning, and the bytes of the file.
    fn rounded(&self, source: &Checkpoint, bits: Bits) -> Result<(f64, u64)> {
        let (network, quantizers) = self.network(source, bits, false)?;
        self.score(&network, &quantizers, &format!("{}-int{}", self.name, bits.get()))
    }

    /// Accuracy in percent after fine-tuning.
    fn tuned(&self, source: &Checkpoint, bits: Bits, learned: bool, seed: u64) -> Result<f64> {
        let (network, quantizers) = self.network(source, bits, learned)?;
        let mut parameters = network.parameters.clone();
        for (name, quantizer) in &quantizers {
            if let Quantizer::Learned(quantizer) = quantizer {
                parameters.insert(format!("{name}.scale"), quantizer.scale().clone());
            }
        }
        let mut optimizer = Adam::new(parameters.values().cloned().collect(), LEARNING_RATE)?;
        let how = if learned { "learned" } else { "observed" };
        let name = format!("{}-int{}-{how}-{seed}", self.name, bits.get());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let quantized = |name: &str, weight: &Var| Ok(quantizers[name].forward(weight)?);
        let loss = |rows: &[usize], rng: &mut ChaCha8Rng| {
            let batch = self.data.training.batch(rows, || View::random(rng, self.shift))?;
            let logits = network.forward_with(&batch.images, quantized, None)?;
            Ok(CrossEntropy::new().forward(&logits, &batch.labels)?)
        };
        let validate = |_| {
            let held_out = network.evaluate_with(&self.data.held_out, quantized)?;
            let text = format!("held-out accuracy {:.2} %", 100.0 * held_out.accuracy());
            Ok(Validation { loss: held_out.loss, text })
        };
        let trainer = Trainer::new(&name, self.epochs, BATCH, LEARNING_RATE);
        trainer.run(&parameters, &mut optimizer, self.data.training.len(), &mut rng, loss, validate)?;
        Ok(self.score(&network, &quantizers, &name)?.0)
    }

    /// Stores a network as it was trained, and scores what the file holds: accuracy in percent, and the bytes of the file.
    fn score(&self, network: &Network, quantizers: &Quantizers, name: &str) -> Result<(f64, u64)> {
        let folder = self.folder.join(name);
        fs::create_dir(&folder)?;
        let weights = network.parameters.iter().map(|(name, var)| {
            let weight =
                quantizers.get(name).map_or_else(|| weight_of(var), |quantizer| quantizer.compress(var))?;
            Ok((name.clone(), weight))
        });
        save_weights(folder.join("model.safetensors"), &weights.collect::<Result<_>>()?)?;
        fs::write(folder.join("config.json"), config(self.layers))?;
        let stored = Checkpoint::open(&folder)?;
        Ok((accuracy(&stored, self.test)?, stored.file_bytes()))
    }
}

/// Accuracy on the test images in percent, by tersor's executor.
fn accuracy(checkpoint: &Checkpoint, test: &ImageSet) -> Result<f64> {
    let scores = Classification { images: test.clone() }.score(&Sequential::open(checkpoint)?)?;
    Ok(scores[0].value)
}

fn main() -> ExitCode {
    report(run)
}
