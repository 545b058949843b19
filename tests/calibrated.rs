//! Runs that look at what goes into the layers.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::{Folder, f32s, i64s, safetensors, stored};
use ndarray::{Array2, ArrayView2};
use tersor::pipeline::{BlockInputs, Calibration, Progress};
use tersor::recipe::{Criterion, Rounding, Transform};
use tersor::{
    Allocation, Bits, CalibrateError, Checkpoint, CpuLevel, Cut, DType, Decoder, Execution, Gptq,
    Granularity, LanguageModel, Needs, OutputFormat, PipelineError, Plan, PresetOptions, Recipe, Run,
    Samples, Step, VerifyOptions, one_line, verify,
};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn tiny() -> Checkpoint {
    Checkpoint::open(fixture("golden/transformers/llama")).unwrap()
}

/// Sequences that use the whole vocabulary.
fn samples(checkpoint: &Checkpoint) -> Samples {
    let vocab = Decoder::open(checkpoint, Execution::default()).unwrap().vocab_size();
    let token = |i: usize| ((i * i * 7 + i * 13 + 5) % vocab) as u32;
    Samples::tokens((0..12).map(|s| (0..24).map(|t| token(s * 24 + t)).collect()).collect()).unwrap()
}

fn recipe(name: &str) -> Recipe {
    let rounding = Rounding::from_name(name).unwrap();
    let group_size = 8.try_into().ok();
    Recipe::preset("int4", PresetOptions { rounding, group_size, ..PresetOptions::default() }).unwrap()
}

fn go(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn run(checkpoint: &Checkpoint, recipe: &Recipe, output: &Path) -> Run {
    let samples = samples(checkpoint);
    let plan = Plan::new(checkpoint, recipe).unwrap();
    plan.run_calibrated(output, Calibration::new(&samples), &mut go).unwrap()
}

/// Every file of a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(&path).unwrap())).collect()
}

fn logits(folder: &Path) -> Array2<f32> {
    let model = Decoder::open(&Checkpoint::open(folder).unwrap(), Execution::default()).unwrap();
    model.logits(&(0..20).map(|i| i * 3 % 50).collect::<Vec<u32>>()).unwrap()
}

fn distance(a: &Array2<f32>, b: &Array2<f32>) -> f32 {
    (a - b).mapv(|x| x * x).sum().sqrt() / a.mapv(|x| x * x).sum().sqrt()
}

/// What every layer of a network is given, token by token.
fn inputs_of(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<Vec<f32>>> {
    let mut inputs: BTreeMap<String, Vec<Vec<f32>>> = BTreeMap::new();
    let model = Decoder::open(checkpoint, Execution::default()).unwrap();
    let vocab = model.vocab_size();
    for s in 0..12 {
        let tokens: Vec<u32> =
            (s * 24..(s + 1) * 24).map(|i| ((i * i * 7 + i * 13 + 5) % vocab) as u32).collect();
        let mut tap = |layers: &[&str], x: ArrayView2<'_, f32>| {
            for layer in layers {
                let rows = inputs.entry((*layer).to_owned()).or_default();
                rows.extend(x.rows().into_iter().map(|row| row.to_vec()));
            }
        };
        model.forward(&tokens, Some(&mut tap)).unwrap();
    }
    inputs
}

#[test]
fn reported_errors_are_those_of_the_layers_outputs() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let output = folder.path().join("out");
    let run = run(&checkpoint, &recipe("gptq"), &output);
    assert_eq!(run.layers.len(), checkpoint.entries().iter().filter(|e| e.name.contains("_proj")).count());
    for layer in &run.layers {
        let outcome = &layer.outcomes[0];
        assert!(outcome.method_error <= outcome.plain_error || outcome.kept_plain, "{}", layer.name);
        assert_eq!(outcome.tokens, 12 * 24);
    }
    // every layer saw what it sees in the compressed network: by the definition, in f64
    let compressed = Checkpoint::open(&output).unwrap();
    let inputs = inputs_of(&compressed);
    for layer in &run.layers {
        let (before, after) =
            (checkpoint.dense(&layer.name).unwrap(), compressed.dense(&layer.name).unwrap());
        let x = &inputs[layer.name.strip_suffix(".weight").unwrap()];
        let (mut error, mut total) = (0.0, 0.0);
        for x in x {
            for (w, q) in before.chunks(x.len()).zip(after.chunks(x.len())) {
                let dot =
                    |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                let (y, z) = (dot(w), dot(q));
                error += (y - z) * (y - z);
                total += y * y;
            }
        }
        let outcome = &layer.outcomes[0];
        let reported = if outcome.kept_plain { outcome.plain_error } else { outcome.method_error };
        assert!(
            (error / total - reported).abs() <= 1e-3 * reported,
            "{}: {} {reported}",
            layer.name,
            error / total
        );
    }
}

#[test]
fn methods_that_look_at_the_inputs_serve_the_outputs_better() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let original = logits(checkpoint.path());
    let of = |name: &str, transform: Option<&str>| {
        let output = folder.path().join(format!("{name}{}", transform.unwrap_or_default()));
        let mut recipe = recipe(name);
        if let Some(transform) = transform {
            recipe = recipe.transform(Transform::from_name(transform).unwrap());
        }
        let total = |run: &Run| -> f64 {
            run.layers.iter().filter_map(|layer| Some(layer.outcomes.first()?.method_error)).sum()
        };
        let run = run(&checkpoint, &recipe, &output);
        assert!(distance(&original, &logits(&output)) < 0.5, "{name}");
        total(&run)
    };
    let rounding: f64 = {
        let run = run(&checkpoint, &recipe("gptq"), &folder.path().join("rounding"));
        run.layers.iter().map(|layer| layer.outcomes[0].plain_error).sum()
    };
    for (name, transform) in [
        ("gptq", None),
        ("gptq-act-order", None),
        ("clip", None),
        ("clip", Some("awq")),
        ("autoround", None),
        ("gptq", Some("rotate")),
    ] {
        let error = of(name, transform);
        assert!(error < rounding, "{name} {transform:?}: {error} beside {rounding}");
    }
}

/// Recipes that prune with regard to the inputs, and what the first of its methods is called.
fn pruning_recipes() -> Vec<(Recipe, &'static str)> {
    let preset = |names: &str, criterion: &str, rounding: &str, allocation: &str| {
        let options = PresetOptions {
            criterion: Criterion::from_name(criterion).unwrap(),
            rounding: Rounding::from_name(rounding).unwrap(),
            allocation: Allocation::from_name(allocation).unwrap(),
            group_size: names.contains("int").then(|| 8.try_into().unwrap()),
            ..PresetOptions::default()
        };
        Recipe::preset(names, options).unwrap()
    };
    vec![
        (preset("50%", "wanda", "nearest", "layer"), "Wanda 50%"),
        (preset("2:4", "sparsegpt", "nearest", "layer"), "SparseGPT 2:4"),
        (preset("60%", "sparsegpt", "nearest", "erk"), "SparseGPT 60%, by shape"),
        (preset("60%", "wanda", "nearest", "global"), "Wanda 60%, global"),
        (preset("60%", "sparsegpt", "nearest", "sensitivity"), "SparseGPT 60%, by sensitivity"),
        (preset("2:4", "obc", "nearest", "layer"), "OBC 2:4"),
        (preset("50%+int4", "wanda", "gptq", "layer"), "Wanda 50%"),
        (
            preset("2:4+int4", "sparsegpt", "gptq", "layer"),
            "SparseGPT 2:4 jointly with GPTQ to int4, group 8",
        ),
        (preset("2:4+int8", "sparsegpt", "nearest", "layer"), "SparseGPT 2:4"),
    ]
}

#[test]
fn pruning_with_regard_to_the_inputs_writes_what_was_planned() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let original = logits(checkpoint.path());
    let magnitude = {
        let output = folder.path().join("magnitude");
        let recipe = Recipe::preset("50%", PresetOptions::default()).unwrap();
        Plan::new(&checkpoint, &recipe).unwrap().run(&output, &mut go).unwrap();
        distance(&original, &logits(&output))
    };
    for (i, (recipe, name)) in pruning_recipes().into_iter().enumerate() {
        let output = folder.path().join(format!("out{i}"));
        let plan = Plan::new(&checkpoint, &recipe).unwrap();
        assert_eq!(plan.needs(), Needs::Hessian);
        let uncalibrated = plan.run(&output, &mut go).unwrap_err();
        assert!(matches!(uncalibrated, PipelineError::NeedsCalibration { .. }));
        let run = run(&checkpoint, &recipe, &output);
        assert_eq!(run.bytes_after, plan.bytes_after(), "{name}");
        let compressed = Checkpoint::open(&output).unwrap();
        for layer in &run.layers {
            assert!(layer.methods[0].starts_with(name), "{:?}", layer.methods);
            let asked = if name.contains("60%") { None } else { Some(0.5) };
            assert!(asked.is_none_or(|asked| (layer.sparsity - asked).abs() < 0.01), "{name} {}", layer.name);
            let zeros = compressed.dense(&layer.name).unwrap().iter().filter(|w| **w == 0.0).count();
            let elements: usize = layer.shape.iter().product();
            assert!(zeros as f64 >= layer.sparsity * elements as f64, "{name} {}", layer.name);
            let methods = if name == "Wanda 50%" && recipe.steps().len() == 2 { 2 } else { 1 };
            assert_eq!(layer.outcomes.len(), methods, "{name}");
            assert!(layer.outcomes.iter().all(|outcome| outcome.error() <= outcome.plain_error), "{name}");
        }
        let all: usize = run.layers.iter().map(|layer| layer.shape.iter().product::<usize>()).sum();
        let gone: f64 =
            run.layers.iter().map(|l| l.sparsity * l.shape.iter().product::<usize>() as f64).sum::<f64>();
        let asked = if name.contains("60%") { 0.6 } else { 0.5 };
        assert!((gone / all as f64 - asked).abs() < 0.01, "{name}: {}", gone / all as f64);
        let distance = distance(&original, &logits(&output));
        assert!(distance < 1.3 * magnitude, "{name}: {distance} beside {magnitude}");
    }
}

#[test]
fn what_was_pruned_before_stays_pruned_and_the_sparsity_is_of_the_whole() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let preset = |names: &str, criterion: &str| {
        let criterion = Criterion::from_name(criterion).unwrap();
        Recipe::preset(names, PresetOptions { criterion, ..PresetOptions::default() }).unwrap()
    };
    let first = folder.path().join("first");
    run(&checkpoint, &preset("40%", "sparsegpt"), &first);
    let first = Checkpoint::open(&first).unwrap();
    for criterion in ["magnitude", "wanda", "sparsegpt"] {
        let output = folder.path().join(criterion);
        let run = run(&first, &preset("70%", criterion), &output);
        let second = Checkpoint::open(&output).unwrap();
        for layer in &run.layers {
            assert!((layer.sparsity - 0.7).abs() < 0.02, "{criterion} {}: {}", layer.name, layer.sparsity);
            let masks = [&first, &second].map(|c| c.weight(&layer.name).unwrap().mask().unwrap());
            if criterion != "wanda" {
                assert_eq!(masks[1].and(&masks[0]).unwrap(), masks[1], "{criterion} {}", layer.name);
            }
            let values = second.dense(&layer.name).unwrap();
            let revived = (0..values.len())
                .filter(|i| !masks[0].keeps(i / layer.shape[1], i % layer.shape[1]) && values[*i] != 0.0);
            assert_eq!(revived.count(), 0, "{criterion} {}", layer.name);
        }
    }
}

#[test]
fn bytes_depend_on_neither_threads_nor_instructions() {
    let checkpoint = tiny();
    let folder = Folder::new();
    for (name, transform) in [("gptq", Some("rotate")), ("autoround", None), ("clip", Some("awq"))] {
        let mut recipe = recipe(name);
        if let Some(transform) = transform {
            recipe = recipe.transform(Transform::from_name(transform).unwrap());
        }
        let mut first = None;
        for threads in [1, 2] {
            for level in CpuLevel::ALL.into_iter().filter(|level| *level <= CpuLevel::detected()) {
                let before = CpuLevel::current();
                level.set_current().unwrap();
                let output = folder.path().join(format!("{name}-{threads}-{level}"));
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| run(&checkpoint, &recipe, &output));
                before.set_current().unwrap();
                let written = files(&output);
                assert!(
                    first.get_or_insert_with(|| written.clone()) == &written,
                    "{name}: {threads} threads, {level}"
                );
            }
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_and_ends_with_the_same_bytes() {
    let prune = |number: usize| pruning_recipes().swap_remove(number).0;
    for (mut recipe, inputs, transforms) in [
        (recipe("gptq"), BlockInputs::Compressed, &["rotate"][..]),
        (recipe("gptq"), BlockInputs::Compressed, &["rotate", "awq"]),
        (recipe("gptq"), BlockInputs::Dense, &["rotate", "awq"]),
        (prune(1), BlockInputs::Compressed, &[]),
        (prune(4), BlockInputs::Dense, &[]),
    ] {
        let checkpoint = tiny();
        let folder = Folder::new();
        for name in transforms {
            recipe = recipe.transform(Transform::from_name(name).unwrap());
        }
        let samples = samples(&checkpoint);
        let plan = Plan::new(&checkpoint, &recipe).unwrap();
        let calibration = Calibration::new(&samples).inputs(inputs);
        plan.run_calibrated(folder.path().join("whole"), calibration, &mut go).unwrap();
        let (output, unfinished) = (folder.path().join("out"), folder.path().join("out.unfinished"));
        let mut stops = 0;
        for allowed in 0.. {
            let mut calls = 0;
            let mut stop = |_: Progress<'_>| {
                calls += 1;
                if calls > allowed + 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            match plan.run_calibrated(&output, calibration, &mut stop) {
                Ok(_) => break,
                Err(PipelineError::Stopped) => stops += 1,
                Err(error) => panic!("{}", one_line(&error)),
            }
            assert!(!output.exists());
            assert!(unfinished.exists(), "what is finished stays");
        }
        assert!(stops >= 3, "{stops}");
        assert!(!unfinished.exists());
        assert!(files(&output) == files(&folder.path().join("whole")), "{inputs:?} {transforms:?}");
    }
}

#[test]
fn blocks_of_a_run_that_was_not_strict_are_held_to_it() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let recipe = recipe("gptq");
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    let few = Samples::tokens(vec![vec![1, 2]]).unwrap();
    let output = folder.path().join("out");
    let mut calls = 0;
    let mut stop = |_: Progress<'_>| {
        calls += 1;
        if calls > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = plan.run_calibrated(&output, Calibration::new(&few), &mut stop);
    assert!(matches!(stopped, Err(PipelineError::Stopped)));
    let strict = plan.run_calibrated(&output, Calibration::new(&few).strict(true), &mut go);
    assert!(matches!(strict, Err(PipelineError::Strict { .. })));
}

#[test]
fn the_blocks_of_another_run_are_refused() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let samples = samples(&checkpoint);
    let output = folder.path().join("out");
    let mut calls = 0;
    let mut stop = |_: Progress<'_>| {
        calls += 1;
        if calls > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let first = recipe("gptq");
    let plan = Plan::new(&checkpoint, &first).unwrap();
    let stopped = plan.run_calibrated(&output, Calibration::new(&samples), &mut stop);
    assert!(matches!(stopped, Err(PipelineError::Stopped)));
    let other = recipe("gptq-act-order");
    let plan = Plan::new(&checkpoint, &other).unwrap();
    let refused = plan.run_calibrated(&output, Calibration::new(&samples), &mut go).unwrap_err();
    let line = one_line(&refused);
    assert!(line.contains("out.unfinished") && line.contains("another run"), "{line}");
    // the same recipe on other inputs is another run, too
    let plan = Plan::new(&checkpoint, &first).unwrap();
    let dense = Calibration::new(&samples).inputs(BlockInputs::Dense);
    assert!(matches!(plan.run_calibrated(&output, dense, &mut go), Err(PipelineError::Unfinished { .. })));
    plan.run_calibrated(&output, Calibration::new(&samples), &mut go).unwrap();
}

/// What still runs after its folder was deleted writes into the one that the next run has made.
#[test]
fn a_single_block_of_another_run_is_refused() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let samples = samples(&checkpoint);
    let recipes = [("out", recipe("gptq")), ("other", recipe("gptq-act-order"))];
    for (name, recipe) in &recipes {
        let mut calls = 0;
        let mut stop = |_: Progress<'_>| {
            calls += 1;
            if calls > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let plan = Plan::new(&checkpoint, recipe).unwrap();
        let stopped = plan.run_calibrated(folder.path().join(name), Calibration::new(&samples), &mut stop);
        assert!(matches!(stopped, Err(PipelineError::Stopped)));
    }
    for file in ["block-00000.json", "block-00000.safetensors"] {
        let [to, from] = ["out", "other"].map(|run| folder.path().join(format!("{run}.unfinished/{file}")));
        std::fs::copy(from, to).unwrap();
    }
    let plan = Plan::new(&checkpoint, &recipes[0].1).unwrap();
    let output = folder.path().join("out");
    let refused = plan.run_calibrated(&output, Calibration::new(&samples), &mut go).unwrap_err();
    let line = one_line(&refused);
    assert!(line.contains("block-00000.json") && line.contains("another run"), "{line}");
    assert!(!output.exists());
}

#[test]
fn later_layers_see_what_the_compressed_ones_give() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let samples = samples(&checkpoint);
    let recipe = recipe("gptq");
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    let run = |inputs, name: &str| {
        let calibration = Calibration::new(&samples).inputs(inputs);
        plan.run_calibrated(folder.path().join(name), calibration, &mut go).unwrap()
    };
    let (compressed, dense) = (run(BlockInputs::Compressed, "compressed"), run(BlockInputs::Dense, "dense"));
    for (a, b) in compressed.layers.iter().zip(&dense.layers) {
        let same = a.outcomes == b.outcomes;
        let is_first = ["q_proj", "k_proj", "v_proj"].iter().any(|layer| a.name.contains(layer));
        assert_eq!(same, is_first && a.name.contains("layers.0."), "{}", a.name);
    }
}

#[test]
fn hidden_states_beyond_the_limit_change_nothing() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let samples = samples(&checkpoint);
    let recipe = recipe("gptq");
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    for memory in [0, 10_000, usize::MAX] {
        let calibration = Calibration::new(&samples).memory(memory);
        plan.run_calibrated(folder.path().join(memory.to_string()), calibration, &mut go).unwrap();
    }
    let all = files(&folder.path().join("0"));
    assert!(all == files(&folder.path().join("10000")));
    assert!(all == files(&folder.path().join(usize::MAX.to_string())));
}

#[test]
fn a_rotated_model_computes_the_same() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let output = folder.path().join("out");
    // eight bits in small groups lose little, whatever the rotation
    let options = PresetOptions { group_size: 8.try_into().ok(), ..PresetOptions::default() };
    let recipe = Recipe::preset("int8", options).unwrap().transform(Transform::from_name("rotate").unwrap());
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    assert_eq!(plan.needs(), Needs::Nothing);
    let run = plan.run(&output, &mut go).unwrap();
    assert!(run.layers.iter().all(|layer| layer.methods[0] == "rotation"), "{:?}", run.layers[0].methods);
    assert!(distance(&logits(checkpoint.path()), &logits(&output)) < 0.02);
    assert!(!folder.path().join("out.unfinished").exists());

    // value by value they differ, and verify says why
    let verification = verify(checkpoint.path(), &output, VerifyOptions::default()).unwrap();
    assert_eq!(verification.failures().count(), 0);
    assert_eq!(verification.changed().count(), verification.checks.len());
    assert!(verification.changed().all(|check| check.changed.as_deref() == Some("rotation")));
    let manifest = fs::read_to_string(output.join("tersor.json")).unwrap();
    fs::write(output.join("tersor.json"), manifest.replace("\"changed\"", "\"other\"")).unwrap();
    let unexplained = verify(checkpoint.path(), &output, VerifyOptions::default()).unwrap();
    assert_eq!(unexplained.changed().count(), 0);
    assert!(unexplained.failures().count() > verification.checks.len() / 2);
}

#[test]
fn verify_tells_what_was_changed_from_what_was_not() {
    let checkpoint = Checkpoint::open(fixture("golden/transformers/llama-bias")).unwrap();
    let recipe = recipe("clip").transform(Transform::from_name("awq").unwrap()).correct_biases(true);
    let folder = Folder::new();
    let output = folder.path().join("out");
    run(&checkpoint, &recipe, &output);
    let verification = verify(checkpoint.path(), &output, VerifyOptions::default()).unwrap();
    assert_eq!(verification.failures().count(), 0);
    let changed = |name: &str| {
        let check = verification.checks.iter().find(|check| check.name == name).unwrap();
        check.changed.clone().unwrap_or_default()
    };
    assert!(changed("model.layers.0.self_attn.q_proj.weight").starts_with("activation-aware scales, ratio"));
    assert_eq!(changed("model.layers.0.input_layernorm.weight"), "scaled for the next layers");
    assert_eq!(changed("model.layers.0.self_attn.q_proj.bias"), "bias corrected");
    assert_eq!(changed("model.embed_tokens.weight"), "");
}

#[test]
fn networks_of_layers_are_calibrated_too() {
    for (name, group) in [("fashion-mlp", 64), ("fashion-lenet", 25)] {
        let checkpoint = Checkpoint::open(fixture(name)).unwrap();
        let folder = Folder::new();
        let samples = Samples::features(Array2::from_shape_fn((80, 784), |(i, j)| {
            ((i * 31 + j * 17) % 97) as f32 / 97.0
        }));
        let samples = samples.unwrap();
        let rounding = Rounding::from_name("gptq").unwrap();
        let options =
            PresetOptions { rounding, group_size: group.try_into().ok(), ..PresetOptions::default() };
        let recipe = Recipe::preset("int4", options).unwrap();
        let plan = Plan::new(&checkpoint, &recipe).unwrap();
        let run =
            plan.run_calibrated(folder.path().join("out"), Calibration::new(&samples), &mut go).unwrap();
        for layer in &run.layers {
            let outcome = &layer.outcomes[0];
            assert!(outcome.method_error < outcome.plain_error, "{name} {}: {outcome:?}", layer.name);
        }
    }
}

#[test]
fn what_cannot_be_calibrated_is_refused() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let output = folder.path().join("out");
    let vocab = Decoder::open(&checkpoint, Execution::default()).unwrap().vocab_size() as u32;
    let gptq = || Gptq::codes(tersor::CodeType::Int { bits: Bits::new(4).unwrap(), symmetric: true });
    let refused = |recipe: &Recipe, samples: &Samples| {
        let plan = Plan::new(&checkpoint, recipe).unwrap();
        one_line(&plan.run_calibrated(&output, Calibration::new(samples), &mut go).unwrap_err())
    };
    let plain = recipe("gptq");
    let plan = Plan::new(&checkpoint, &plain).unwrap();
    let line = one_line(&plan.run(&output, &mut go).unwrap_err());
    assert!(line.contains("give calibration samples"), "{line}");

    let line = refused(&plain, &Samples::tokens(vec![vec![1, 2], vec![3, vocab]]).unwrap());
    assert!(line.contains(&format!("token {vocab} at position 1")), "{line}");
    let line = refused(&plain, &Samples::features(Array2::zeros((2, 8))).unwrap());
    assert!(line.contains("takes tokens, not 8 features"), "{line}");

    let embedding =
        Step::quantize(gptq().granularity(Granularity::Channel)).classes([tersor::TensorClass::Embedding]);
    let line = refused(&Recipe::new().step(embedding), &samples(&checkpoint));
    assert!(line.contains("embed_tokens.weight") && line.contains("none of the network's blocks"), "{line}");

    // two tokens say little of 32 and more features
    let plan = Plan::new(&checkpoint, &plain).unwrap();
    let few = Samples::tokens(vec![vec![1, 2]]).unwrap();
    let strict = plan.run_calibrated(&output, Calibration::new(&few).strict(true), &mut go).unwrap_err();
    assert!(one_line(&strict).contains("2 tokens say little"), "{}", one_line(&strict));
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "nothing is left behind");

    assert!(one_line(&Samples::tokens(vec![]).unwrap_err()).contains("no samples"));
    assert!(one_line(&Samples::tokens(vec![vec![1], vec![]]).unwrap_err()).contains("sample 1"));
    let nan = Array2::from_shape_fn((2, 3), |(i, j)| if i == 1 && j == 2 { f32::NAN } else { 0.0 });
    assert!(
        one_line(&Samples::features(nan).unwrap_err())
            .contains("sample 1 (counted from 0) is NaN at feature 2")
    );
}

#[test]
fn samples_come_from_tensors_and_lines() {
    let folder = Folder::new();
    let cut = Cut { samples: 2, context: 3, seed: 1 };
    let ids = |name: &str, ids: &[i64]| {
        let tensor = stored("input_ids", DType::I64, &[ids.len() / 4, 4], i64s(ids));
        folder.put(name, safetensors(&[tensor], &BTreeMap::new()))
    };
    let three = ids("ids.safetensors", &[0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]);
    let taken = Samples::read(&three, cut, true, None).unwrap();
    assert_eq!((taken.len(), taken.token_count()), (2, 6));
    let all = Samples::read(&three, Cut { samples: 9, context: 9, seed: 0 }, true, None).unwrap();
    assert_eq!((all.len(), all.token_count()), (3, 12));
    let line = |result: Result<Samples, CalibrateError>| one_line(&result.unwrap_err());
    let refused = line(Samples::read(ids("negative.safetensors", &[0, 1, -2, 3]), cut, true, None));
    assert!(refused.contains("negative.safetensors") && refused.contains("sample 0"), "{refused}");
    let wrong = stored("input_ids", DType::F32, &[1, 2], f32s(&[1.0, 2.0]));
    let wrong = folder.put("wrong.safetensors", safetensors(&[wrong], &BTreeMap::new()));
    assert!(line(Samples::read(wrong, cut, true, None)).contains("F32, not I64"));
    let other = stored("outputs", DType::F32, &[1, 2], f32s(&[1.0, 2.0]));
    let other = folder.put("other.safetensors", safetensors(&[other], &BTreeMap::new()));
    assert!(
        line(Samples::read(other, cut, true, None)).contains("neither a tensor `input_ids` nor `inputs`")
    );

    let inputs = stored("inputs", DType::F32, &[2, 3], f32s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let inputs = folder.put("inputs.safetensors", safetensors(&[inputs], &BTreeMap::new()));
    let features = Array2::from_shape_vec((2, 3), vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let read = Samples::read(&inputs, cut, false, None).unwrap();
    assert_eq!((read.len(), read.token_count()), (Samples::features(features).unwrap().len(), 2));

    let lines = folder.put("lines.jsonl", "{\"input_ids\": [1, 2, 3, 4]}\n\n{\"input_ids\": [5]}\n");
    assert_eq!(Samples::read(&lines, cut, true, None).unwrap().token_count(), 3 + 1);
    let text = folder.put("text.jsonl", "{\"text\": \"one two\"}\n");
    assert!(line(Samples::read(text, cut, true, None)).contains("no tokenizer.json"));
    let empty = folder.put("empty.jsonl", "{\"input_ids\": []}\n");
    assert!(line(Samples::read(empty, cut, true, None)).contains("line 1 has no tokens"));
}

/// `b + (W − Ŵ)·E[x]`, by the definition, where `x` is what the layer gets in the compressed network.
#[test]
fn corrected_biases_make_up_for_the_mean_error() {
    let checkpoint = Checkpoint::open(fixture("golden/transformers/llama-bias")).unwrap();
    let samples = samples(&checkpoint);
    let recipe = recipe("nearest").correct_biases(true);
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    assert_eq!(plan.needs(), Needs::Channels);
    let folder = Folder::new();
    let output = folder.path().join("out");
    let run = plan.run_calibrated(&output, Calibration::new(&samples), &mut go).unwrap();
    assert!(
        run.layers.iter().all(|layer| layer.methods.iter().any(|m| m == "bias corrected")),
        "{:?}",
        run.layers[0]
    );

    let compressed = Checkpoint::open(&output).unwrap();
    let mut changed = 0;
    for (layer, inputs) in inputs_of(&compressed).iter().filter(|(layer, _)| layer.contains("layers.")) {
        let dense =
            |checkpoint: &Checkpoint, what: &str| checkpoint.dense(&format!("{layer}.{what}")).unwrap();
        let (before, after) = (dense(&checkpoint, "weight"), dense(&compressed, "weight"));
        let (bias, corrected) = (dense(&checkpoint, "bias"), dense(&compressed, "bias"));
        let cols = inputs[0].len();
        for (row, (bias, corrected)) in bias.iter().zip(&corrected).enumerate() {
            let of_column = |col: usize| {
                let error = f64::from(before[row * cols + col]) - f64::from(after[row * cols + col]);
                error * inputs.iter().map(|x| f64::from(x[col])).sum::<f64>() / inputs.len() as f64
            };
            let expected = f64::from(*bias) + (0..cols).map(of_column).sum::<f64>();
            assert!((f64::from(*corrected) - expected).abs() < 1e-5, "{layer}: {corrected}, not {expected}");
            changed += usize::from(bias != corrected);
        }
    }
    assert!(changed > 100, "{changed}");
    // there is nothing to correct in a network without biases
    let error = Plan::new(&tiny(), &recipe).unwrap_err().to_string();
    assert!(
        error.contains("bias correction") && error.contains("no layer that is quantized has a bias"),
        "{error}"
    );
}

/// Whatever is pruned and rounded further: a weight that an earlier run pruned is zero, and what follows the pruning keeps it so.
#[test]
fn what_was_pruned_before_stays_zero_when_what_is_left_is_rounded() {
    let checkpoint = tiny();
    let folder = Folder::new();
    let before = folder.path().join("before");
    let half = Recipe::preset("50%", PresetOptions::default()).unwrap();
    Plan::new(&checkpoint, &half).unwrap().run(&before, &mut go).unwrap();
    let before = Checkpoint::open(&before).unwrap();
    let samples = samples(&checkpoint);
    for (preset, criterion) in [("60%+int4", "wanda"), ("2:4+int4", "magnitude"), ("60%+int4", "sparsegpt")] {
        let options = PresetOptions {
            rounding: Rounding::from_name("gptq-act-order").unwrap(),
            criterion: Criterion::from_name(criterion).unwrap(),
            group_size: 8.try_into().ok(),
            format: Some(OutputFormat::Tersor),
            ..PresetOptions::default()
        };
        let recipe = Recipe::preset(preset, options).unwrap();
        let output = folder.path().join(format!("{preset}-{criterion}"));
        let plan = Plan::new(&before, &recipe).unwrap();
        plan.run_calibrated(&output, Calibration::new(&samples), &mut go).unwrap();
        let after = Checkpoint::open(&output).unwrap();
        let mut zeros = 0;
        for entry in before.entries().iter().filter(|entry| entry.name.contains("_proj")) {
            let (was, is) = (before.dense(&entry.name).unwrap(), after.dense(&entry.name).unwrap());
            let revived = was.iter().zip(&is).filter(|(was, is)| **was == 0.0 && **is != 0.0).count();
            assert_eq!(revived, 0, "{preset} by {criterion}: {}", entry.name);
            zeros += was.iter().filter(|x| **x == 0.0).count();
        }
        assert!(zeros > 1000, "{zeros}");
    }
}
