//! Scores a network that tersor does not run, with a task that tersor does not have.
//!
//! The network is a perceptron that multiplies with `ndarray`, in the place of whatever runs your models: it takes any
//! checkpoint, because [`Checkpoint::dense`] gives what a compressed weight stands for. To be scored it needs to be a
//! [`Classifier`] (or a `LanguageModel`, or a `SentenceEncoder`), and nothing else. The task is the expected calibration error: how
//! far a network's confidence is from how often it is right.
//!
//! ```text
//! cargo run --release --example custom_model
//! cargo run --release --example custom_model -- OUT
//! ```
//!
//! The weights are those of `fixtures/fashion-mlp`, and compressed ones. The table is printed; OUT, by default
//! `target/custom_model`, gets a page of HTML, with its plots beside it.
//!
//! ```text
//! model      file bytes   accuracy   calibration error
//! ────────────────────────────────────────────────────
//! dense       1,066,928     89.82%               1.28%
//! fp8           270,728     89.83%               1.38%
//! int8          271,096     89.84%               1.28%
//! int4          146,264     89.70%               1.16%
//! int3          113,736     88.83%               1.34%
//! int2           79,600     84.24%               1.10%
//! 50%           568,818     89.59%               0.98%
//! 2:4           568,752     86.38%               0.62%
//! 2:4+int4      113,008     86.63%               1.03%
//!
//! report and plots in target/custom_model
//! ```

use std::error::Error;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ndarray::{Array1, Array2, ArrayView2};
use tersor::report::Align;
use tersor::{
    Better, Checkpoint, Classification, Classifier, Comparison, EvaluateError, ImageSet, ModelError, Plan,
    PresetOptions, Recipe, Score, Table, Task, one_line,
};

const LAYERS: [&str; 3] = ["fc1", "fc2", "fc3"];

/// A perceptron: linear layers with the larger of 0 and x between them.
struct Mlp {
    layers: Vec<(Array2<f32>, Array1<f32>)>,
}

impl Mlp {
    fn open(checkpoint: &Checkpoint, layers: [&str; 3]) -> Result<Self, Box<dyn Error>> {
        let open = |layer: &str| {
            let (weight, bias) = (format!("{layer}.weight"), format!("{layer}.bias"));
            let [rows, cols] = checkpoint.entry(&weight)?.shape[..] else {
                return Err(format!("{weight} is no matrix").into());
            };
            let weight = Array2::from_shape_vec((rows, cols), checkpoint.dense(&weight)?)?;
            Ok((weight, Array1::from_vec(checkpoint.dense(&bias)?)))
        };
        Ok(Self { layers: layers.into_iter().map(open).collect::<Result<_, Box<dyn Error>>>()? })
    }
}

impl Classifier for Mlp {
    fn input_features(&self) -> usize {
        self.layers.first().map_or(0, |(weight, _)| weight.ncols())
    }

    fn pixel_scale(&self) -> f32 {
        1.0 / 256.0
    }

    fn class_logits(&self, inputs: ArrayView2<'_, f32>) -> Result<Array2<f32>, ModelError> {
        if inputs.ncols() != self.input_features() {
            return Err(ModelError::Input { expected: self.input_features(), actual: inputs.ncols() });
        }
        let mut x = inputs.to_owned();
        for (number, (weight, bias)) in self.layers.iter().enumerate() {
            if number > 0 {
                x.mapv_inplace(|x| x.max(0.0));
            }
            x = x.dot(&weight.t()) + bias;
        }
        Ok(x)
    }
}

/// The expected calibration error (Guo, Pleiss, Sun & Weinberger 2017, equation 3).
struct Calibration<'a> {
    images: &'a ImageSet,
    bins: usize,
}

impl<M: Classifier + ?Sized> Task<M> for Calibration<'_> {
    fn score(&self, model: &M) -> Result<Vec<Score>, EvaluateError> {
        let pixels = self.images.pixels().iter().map(|p| f32::from(*p) * model.pixel_scale()).collect();
        let inputs = Array2::from_shape_vec((self.images.len(), self.images.features()), pixels)
            .map_err(|e| EvaluateError::Task { task: "calibration".into(), reason: e.to_string() })?;
        let logits = model.class_logits(inputs.view())?;
        let outcomes = logits.rows().into_iter().zip(self.images.labels()).map(|(logits, label)| {
            let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
            let sum: f64 = logits.iter().map(|logit| f64::from(logit - logits[best]).exp()).sum();
            (1.0 / sum, best == usize::from(*label))
        });
        let value = 100.0 * calibration_error(outcomes, self.bins);
        Ok(vec![Score {
            task: "calibration".into(),
            metric: "calibration_error".into(),
            value,
            unit: "%".into(),
            better: Better::Lower,
            samples: self.images.len(),
            interval: [value; 2],
        }])
    }
}

/// The mean over samples of |accuracy − confidence| of their bins, which part the confidences from 0 to 1 evenly. Every sample
/// has its confidence, and whether it was right.
fn calibration_error(outcomes: impl Iterator<Item = (f64, bool)>, bins: usize) -> f64 {
    let (mut gaps, mut samples) = (vec![0.0; bins], 0.0);
    for (confidence, right) in outcomes {
        // of a bin's n samples, n · (confidence − accuracy)
        gaps[((confidence * bins as f64) as usize).min(bins - 1)] += confidence - f64::from(u8::from(right));
        samples += 1.0;
    }
    gaps.iter().map(|gap: &f64| gap.abs()).sum::<f64>() / samples
}

fn run(out: &Path) -> Result<(), Box<dyn Error>> {
    let [model, images, labels] = fixtures();
    let images = ImageSet::open(images, labels)?;
    let calibration = Calibration { images: &images, bins: 15 };
    let accuracy = Classification { images: images.clone() };
    let scores = |checkpoint: &Checkpoint| -> Result<_, Box<dyn Error>> {
        let mlp = Mlp::open(checkpoint, LAYERS)?;
        Ok([accuracy.score(&mlp)?, calibration.score(&mlp)?].concat())
    };
    fs::create_dir_all(out).map_err(|e| format!("{}: cannot create: {e}", out.display()))?;
    let models = tempfile::tempdir_in(out)?;

    let source = Checkpoint::open(model)?;
    let mut comparison = Comparison::new();
    comparison.add_reference("dense", &source, scores(&source)?)?;
    for preset in ["fp8", "int8", "int4", "int3", "int2", "50%", "2:4", "2:4+int4"] {
        let recipe = Recipe::preset(preset, PresetOptions::default())?;
        let folder = models.path().join(preset);
        Plan::new(&source, &recipe)?.run(&folder, &mut |_| ControlFlow::Continue(()))?;
        let compressed = Checkpoint::open(&folder)?;
        comparison.add(preset, &compressed, scores(&compressed)?)?;
    }

    let columns = ["file bytes", "accuracy", "calibration error"].map(|name| (name, Align::Right));
    let mut table = Table::new([("model", Align::Left)].into_iter().chain(columns));
    for variant in &comparison.variants {
        let scores = variant.scores.iter().map(|score| format!("{:.2}%", score.value).into());
        table.row([variant.name.as_str().into(), variant.file_bytes.into()].into_iter().chain(scores));
    }
    let write = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).map_err(|e| format!("{}: cannot write: {e}", path.display()))
    };
    write("report.html", &comparison.to_html()?)?;
    comparison.plots().iter().try_for_each(|(name, svg)| write(name, svg))?;
    println!("{table}\n\nreport and plots in {}", out.display());
    Ok(())
}

/// What a clone of tersor holds: a network, images and their labels.
fn fixtures() -> [PathBuf; 3] {
    ["fashion-mlp", "fashion-mnist/t10k-images-idx3-ubyte.gz", "fashion-mnist/t10k-labels-idx1-ubyte.gz"]
        .map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name))
}

fn main() -> ExitCode {
    let out = std::env::args_os().nth(1).map_or("target/custom_model".into(), PathBuf::from);
    match run(&out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("custom_model: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor::{Execution, Network};

    #[test]
    fn calibration_by_hand() {
        let error = |outcomes: &[(f64, bool)]| calibration_error(outcomes.iter().copied(), 4);
        // sure and right; half sure and right every other time
        assert_eq!(error(&[(1.0, true), (0.5, false), (0.5, true)]), 0.0);
        // sure and wrong
        assert_eq!(error(&[(1.0, false)]), 1.0);
        // a bin of two that is half too sure, and one of one that is half not sure enough: (2 · ½ + ½) / 3
        assert_eq!(error(&[(1.0, true), (1.0, false), (0.5, true)]), 0.5);
    }

    #[test]
    fn tersor_runs_the_same_network() {
        let [model, images, labels] = fixtures();
        let task = Classification { images: ImageSet::open(images, labels).unwrap() };
        let checkpoint = Checkpoint::open(model).unwrap();
        let network = Network::open(&checkpoint, Execution::default()).unwrap();
        let mlp = Mlp::open(&checkpoint, LAYERS).unwrap();
        assert_eq!(task.score(&mlp).unwrap(), task.score(&network).unwrap());
    }

    #[test]
    fn runs_in_a_fresh_clone() {
        let out = tempfile::tempdir().unwrap();
        run(out.path()).unwrap();
        assert!(out.path().join("report.html").is_file());
    }
}
