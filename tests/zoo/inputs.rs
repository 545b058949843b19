//! A sentence encoder whose layers' inputs are quantized too.

use std::collections::BTreeMap;
use std::path::Path;

use libtest_mimic::Failed;
use ndarray::ArrayView2;
use tersor::{
    ActivationObserver, Checkpoint, Execution, InputQuantization, InputScales, Network, Observer, Plan,
    Recipe, Tap, Tokenizer,
};

use crate::common::Folder;
use crate::scores::correlations;
use crate::{Add, check, go};

pub(crate) fn add(add: &mut Add<'_>) {
    add("quantized inputs of a sentence encoder", quantized_inputs, "all-minilm-l6-v2");
}

/// Sentences of another text than the one that is scored.
const CALIBRATION: usize = 128;

/// What the dense model scores.
const DENSE: f64 = 0.820_324_673_1;

/// Observers of one kind, by the names of the layers' weights.
struct Ranges(Observer, BTreeMap<String, ActivationObserver>);

impl Tap for Ranges {
    fn observe(&mut self, layers: &[&str], input: ArrayView2<'_, f32>) {
        for layer in layers {
            let new = || ActivationObserver::new(self.0).unwrap();
            let observer = self.1.entry(format!("{layer}.weight")).or_insert_with(new);
            observer.observe(input.as_slice().unwrap()).unwrap();
        }
    }
}

fn ranges(zoo: &Path, checkpoint: &Checkpoint, observer: Observer) -> Result<Ranges, Failed> {
    let tokenizer = Tokenizer::of(checkpoint)?;
    let text = std::fs::read_to_string(zoo.join("text/wikitext2-test.txt"))?;
    let sentences = text.split(" . ").map(str::trim).filter(|s| (40..200).contains(&s.len()));
    let Network::Encoder(encoder) = Network::open(checkpoint, Execution::default())? else {
        return Err("no encoder".into());
    };
    let mut ranges = Ranges(observer, BTreeMap::new());
    for sentence in sentences.step_by(7).take(CALIBRATION) {
        encoder.forward(&[&tokenizer.encode(sentence, true)?], Some(&mut ranges))?;
    }
    Ok(ranges)
}

/// Spearman's correlation of the model with its inputs quantized as asked for.
fn spearman(
    zoo: &Path,
    checkpoint: &Checkpoint,
    activations: &str,
    observer: Observer,
) -> Result<f64, Failed> {
    let recipe = format!("ignore = ['*pooler*']\n[[step]]\nquantize = {{ bits = 8, {activations} }}");
    let recipe = Recipe::from_toml(&recipe)?;
    let plan = Plan::new(checkpoint, &recipe)?;
    let ranges = if plan.static_inputs().next().is_some() {
        ranges(zoo, checkpoint, observer)?
    } else {
        Ranges(observer, BTreeMap::new())
    };
    let mut scales: Vec<(String, InputScales)> = Vec::new();
    for (entry, inputs) in plan.static_inputs() {
        let InputQuantization::Static { symmetric, .. } = inputs else { continue };
        let observer = ranges.1.get(&entry.name).ok_or_else(|| format!("{} was not seen", entry.name))?;
        let precision = entry.precision().ok_or("no float")?;
        scales.push((entry.name.clone(), observer.static_input(symmetric, precision)?));
    }
    let folder = Folder::new();
    let output = folder.path().join("out");
    plan.input_scales(scales).run(&output, &mut go)?;
    Ok(correlations(zoo, &Checkpoint::open(output)?, None)?[0])
}

fn quantized_inputs(zoo: &Path, model: &str) -> Result<(), Failed> {
    let checkpoint = Checkpoint::open(zoo.join(model))?;
    // what comes out of GELU is hardly negative: codes without zero points waste half of themselves on it
    for (activations, loss) in [
        ("activations = 'dynamic'", 0.003),
        ("activations = 'dynamic', activation_symmetric = false", 0.001),
        ("activations = 'static', activation_symmetric = false", 0.004),
    ] {
        let value = spearman(zoo, &checkpoint, activations, Observer::MinMax)?;
        check(value >= DENSE - loss && value.to_bits() != DENSE.to_bits(), || {
            format!("{activations}: {value}")
        })?;
    }
    Ok(())
}
