//! Layers whose inputs are quantized: written, read again, and run as the checkpoint says.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ndarray::ArrayView2;
use serde_json::{Value, json};
use tersor::{
    ActivationCodes, ActivationObserver, Activations, Checkpoint, Execution, InputForm, InputQuantization,
    InputScales, Network, Observer, OutputFormat, Plan, PresetOptions, Recipe, Stored, Tap,
};

use crate::common::{Folder, safetensors, stored as stored_tensor};
use crate::model::fixture;

const SENTENCE: [u32; 7] = [3, 17, 42, 5, 60, 11, 8];

fn recipe(activations: &str) -> Recipe {
    let text = format!("[[step]]\nquantize = {{ bits = 8, {activations} }}");
    Recipe::from_toml(&text).unwrap().format(OutputFormat::CompressedTensors)
}

/// The ranges of all layers' inputs, by the names of their weights.
struct Ranges(BTreeMap<String, ActivationObserver>);

impl Tap for Ranges {
    fn observe(&mut self, layers: &[&str], input: ArrayView2<'_, f32>) {
        for layer in layers {
            let new = || ActivationObserver::new(Observer::MinMax).unwrap();
            let observer = self.0.entry(format!("{layer}.weight")).or_insert_with(new);
            observer.observe(input.as_slice().unwrap()).unwrap();
        }
    }
}

fn static_scales(checkpoint: &Checkpoint, plan: &Plan<'_>) -> Vec<(String, InputScales)> {
    let mut ranges = Ranges(BTreeMap::new());
    let network = Network::open(checkpoint, Execution::default()).unwrap();
    let Network::Encoder(encoder) = &network else { panic!("no encoder") };
    encoder.forward(&[&SENTENCE], Some(&mut ranges)).unwrap();
    let of = |(entry, inputs): (&tersor::Entry, InputQuantization)| {
        let InputQuantization::Static { symmetric, .. } = inputs else { panic!("{inputs:?}") };
        // what no layer takes, such as the pooler's weight, was not seen
        let scales = ranges.0.get(&entry.name).map_or_else(
            || InputScales::new(1.0, (!symmetric).then_some(0)).unwrap(),
            |observer| observer.static_input(symmetric, entry.precision().unwrap()).unwrap(),
        );
        (entry.name.clone(), scales)
    };
    plan.static_inputs().map(of).collect()
}

/// The compressed checkpoint, and what quantizes the input of its first weight.
fn compress(activations: &str) -> (Folder, Checkpoint) {
    let folder = Folder::new();
    let source = Checkpoint::open(fixture("bert")).unwrap();
    let recipe = recipe(activations);
    let plan = Plan::new(&source, &recipe).unwrap();
    let scales = static_scales(&source, &plan);
    let output = folder.path().join("out");
    plan.input_scales(scales).run(&output, &mut |_| ControlFlow::Continue(())).unwrap();
    let checkpoint = Checkpoint::open(output).unwrap();
    (folder, checkpoint)
}

const WAYS: [(&str, InputForm); 4] = [
    ("activations = 'dynamic'", InputForm::Dynamic { symmetric: true }),
    ("activations = 'dynamic', activation_symmetric = false", InputForm::Dynamic { symmetric: false }),
    ("activations = 'static'", InputForm::Static { symmetric: true }),
    ("activations = 'static', activation_symmetric = false", InputForm::Static { symmetric: false }),
];

fn embed(checkpoint: &Checkpoint, execution: Execution) -> Vec<f32> {
    let network = Network::open(checkpoint, execution).unwrap();
    network.sentence_encoder().unwrap().embed(&[&SENTENCE]).unwrap().into_raw_vec_and_offset().0
}

#[test]
fn what_is_written_is_read_and_run() {
    let dense = embed(&Checkpoint::open(fixture("bert")).unwrap(), Execution::default());
    for (way, form) in WAYS {
        let (folder, checkpoint) = compress(way);
        let (mut entries, mut layer) = (0, String::new());
        for entry in checkpoint.entries() {
            let Stored::Compressed(stored) = &entry.stored else { continue };
            assert_eq!(stored.input(), Some(form), "{way}: {}", entry.name);
            let weight = checkpoint.weight(&entry.name).unwrap();
            assert_eq!(weight.input().unwrap().form(), form);
            let bytes: u64 =
                entry.tensors.iter().map(|t| checkpoint.tensor(t).unwrap().bytes.len() as u64).sum();
            assert_eq!(stored.bytes().total(), bytes, "{way}: {}", entry.name);
            entries += 1;
            layer.clone_from(&entry.name);
        }
        assert!(entries >= 12, "{way}: {entries}");
        let module = layer.strip_suffix(".weight").unwrap();
        let has = |part: &str| checkpoint.tensor(&format!("{module}.{part}")).is_ok();
        assert!(has("weight") && has("weight_scale") && !has("weight_packed") && !has("weight_shape"));
        assert_eq!(has("input_scale"), matches!(form, InputForm::Static { .. }), "{way}");
        assert_eq!(has("input_zero_point"), form == InputForm::Static { symmetric: false }, "{way}");

        // as stored is neither as floats nor far from them
        let stored = embed(&checkpoint, Execution::default());
        let float = embed(&checkpoint, Activations::Float.into());
        assert_ne!(stored, float, "{way}");
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 0.05;
        assert!(stored.iter().zip(&float).all(close), "{way}: {stored:?} {float:?}");
        assert!(stored.iter().zip(&dense).all(close), "{way}");
        if form == (InputForm::Dynamic { symmetric: true }) {
            let int8 = Activations::Int8(ActivationCodes::PerToken);
            assert_eq!(stored, embed(&checkpoint, int8.into()), "{way}");
        }

        // config.json says it all, without tersor's own metadata
        let path = folder.path().join("out/config.json");
        let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let group = &config["quantization_config"]["config_groups"]["group_0"];
        assert_eq!(group["format"], "int-quantized");
        let expected = match form {
            InputForm::Dynamic { symmetric } => json!([8, "int", symmetric, "token", true]),
            InputForm::Static { symmetric } => json!([8, "int", symmetric, "tensor", false]),
        };
        let inputs = &group["input_activations"];
        let found = ["num_bits", "type", "symmetric", "strategy", "dynamic"].map(|key| inputs[key].clone());
        assert_eq!(json!(found), expected, "{way}");
        let plain = Folder::new();
        let tensors = checkpoint.entries().iter().flat_map(|entry| &entry.tensors).map(|name| {
            let tensor = checkpoint.tensor(name).unwrap();
            stored_tensor(name, tensor.dtype, tensor.shape, tensor.bytes)
        });
        plain.put("model.safetensors", safetensors(&tensors.collect::<Vec<_>>(), &[].into()));
        plain.put("config.json", config.to_string());
        let again = plain.open().unwrap();
        assert_eq!(again.entries().len(), checkpoint.entries().len(), "{way}");
        assert_eq!(embed(&again, Execution::default()), stored, "{way}");

        // what is left alone keeps its inputs; what is compressed anew would lose them
        let keep = Recipe::from_toml("[[step]]\nclasses = ['embedding']\nquantize = { bits = 8 }").unwrap();
        let output = folder.path().join("again");
        Plan::new(&checkpoint, &keep).unwrap().run(&output, &mut |_| ControlFlow::Continue(())).unwrap();
        let kept = Checkpoint::open(output).unwrap();
        assert_eq!(kept.weight(&layer).unwrap(), checkpoint.weight(&layer).unwrap(), "{way}");
        let lose = Recipe::from_toml("[[step]]\nquantize = { bits = 4, group_size = 8 }").unwrap();
        let error = Plan::new(&checkpoint, &lose).unwrap_err().to_string();
        assert!(error.contains("`input_activations` of group_0"), "{error}");
    }
}

#[test]
fn static_scales_must_be_given() {
    let folder = Folder::new();
    let source = Checkpoint::open(fixture("bert")).unwrap();
    let recipe = recipe("activations = 'static'");
    let plan = Plan::new(&source, &recipe).unwrap();
    assert!(plan.static_inputs().count() >= 12);
    let run = |plan: Plan<'_>| {
        let output = folder.path().join("out");
        plan.run(output, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    let error = run(plan);
    assert!(error.contains("give calibration samples"), "{error}");
    let plan = Plan::new(&source, &recipe).unwrap();
    let asymmetric = InputScales::new(1.0, Some(3)).unwrap();
    let scales: Vec<_> = plan.static_inputs().map(|(entry, _)| (entry.name.clone(), asymmetric)).collect();
    assert!(run(plan.input_scales(scales)).contains("a scale without a zero point"));
}

#[test]
fn recipes_ask_for_quantized_inputs() {
    let inputs = |recipe: &Recipe| recipe.steps()[0].input_quantization();
    let preset = |name: &str| inputs(&Recipe::preset(name, PresetOptions::default()).unwrap());
    assert_eq!(preset("int8"), None);
    assert_eq!(preset("w8a8"), Some(InputQuantization::Dynamic { symmetric: true }));
    assert!(matches!(preset("w8a8-static"), Some(InputQuantization::Static { .. })));
    let percentile = recipe("activations = 'static', activation_percentile = 99.9");
    let observer = Observer::Percentile(99.9);
    assert_eq!(inputs(&percentile), Some(InputQuantization::Static { symmetric: true, observer }));
    for (wrong, words) in [
        ("bits = 8, activations = 'sometimes'", ["`sometimes`", "static"]),
        ("bits = 8, activation_symmetric = false", ["`activation_symmetric`", "`activations`"]),
        (
            "bits = 8, activations = 'dynamic', activation_observer = 'mse'",
            ["`activation_observer`", "static"],
        ),
        ("type = 'f8_e4m3', activations = 'dynamic'", ["activations", "step 1"]),
    ] {
        let text = format!("[[step]]\nquantize = {{ {wrong} }}");
        let error = Recipe::from_toml(&text).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let float = Recipe::new().step(
        tersor::Step::quantize(tersor::RoundToNearest::f8_e4m3())
            .inputs(InputQuantization::Dynamic { symmetric: true }),
    );
    let source = Checkpoint::open(fixture("bert")).unwrap();
    let error = Plan::new(&source, &float).unwrap_err().to_string();
    assert!(error.contains("needs integer codes"), "{error}");
}
