//! Compressed decoders that learn their scales from what the original predicts.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Folder, f32s, safetensors, stored};
use ndarray::Array2;
use tersor::pipeline::{Distillation, DistillationProgress, Distilled};
use tersor::{
    Checkpoint, CpuLevel, DType, Decoder, Execution, LanguageModel, OutputFormat, PipelineError, Plan,
    PresetOptions, Recipe, Samples, VerifyOptions, one_line, verify,
};

const SEQUENCES: usize = 12;
const TOKENS: usize = 24;

/// Of 12 samples the last one is held out, and the first step learns from these two.
const HELD_OUT: usize = 11;
const FIRST_STEP: [usize; 2] = [0, 6];

fn fixture(name: &str) -> Checkpoint {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/transformers");
    Checkpoint::open(golden.join(name)).unwrap()
}

fn sequence(s: usize) -> Vec<u32> {
    (s * TOKENS..(s + 1) * TOKENS).map(|i| ((i * i * 7 + i * 13 + 5) % 50) as u32).collect()
}

fn samples() -> Samples {
    Samples::tokens((0..SEQUENCES).map(sequence).collect()).unwrap()
}

fn steps(steps: usize) -> Distillation {
    Distillation::new(steps.try_into().unwrap())
}

fn go(_: DistillationProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A model in a folder, compressed by a preset.
fn compressed(original: &Checkpoint, preset: &str, folder: &Folder) -> PathBuf {
    let format = Some(OutputFormat::Tersor);
    let options = PresetOptions { group_size: 8.try_into().ok(), format, ..PresetOptions::default() };
    let recipe = Recipe::preset(preset, options).unwrap();
    let output = folder.path().join(preset.replace(['+', ':'], "-"));
    let plan = Plan::new(original, &recipe).unwrap();
    plan.run(&output, &mut |_| ControlFlow::Continue(())).unwrap();
    output
}

fn distill(student: &Path, original: &Checkpoint, by: Distillation, output: &Path) -> Distilled {
    let student = Checkpoint::open(student).unwrap();
    by.run(&student, original, &samples(), output, &mut go).unwrap()
}

fn refused(
    student: &Path,
    original: &Checkpoint,
    by: Distillation,
    samples: &Samples,
    output: &Path,
) -> String {
    let student = Checkpoint::open(student).unwrap();
    let error = by.run(&student, original, samples, output, &mut go).unwrap_err();
    assert!(!output.exists());
    let line = one_line(&error);
    assert!(!line.contains('\n'), "{line}");
    line
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(&path).unwrap())).collect()
}

/// Σ p ln(p/q) for every token, by the definition.
fn divergences(student: &Array2<f32>, teacher: &Array2<f32>) -> Vec<f64> {
    let log_probabilities = |logits: ndarray::ArrayView1<'_, f32>| -> Vec<f64> {
        let sum = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        logits.iter().map(|x| f64::from(*x) - sum).collect()
    };
    let rows = student.rows().into_iter().zip(teacher.rows());
    let of_row = |(student, teacher)| {
        let (student, teacher) = (log_probabilities(student), log_probabilities(teacher));
        teacher.iter().zip(&student).map(|(p, q)| p.exp() * (p - q)).sum()
    };
    rows.map(of_row).collect()
}

/// The mean divergence over the tokens of some samples.
fn divergence(student: &Checkpoint, teacher: &Checkpoint, samples: &[usize]) -> f64 {
    let [student, teacher] =
        [student, teacher].map(|network| Decoder::open(network, Execution::default()).unwrap());
    let of_sample = |sample: &usize| {
        let tokens = sequence(*sample);
        divergences(&student.logits(&tokens).unwrap(), &teacher.logits(&tokens).unwrap())
    };
    let all: Vec<f64> = samples.iter().flat_map(of_sample).collect();
    all.iter().sum::<f64>() / all.len() as f64
}

#[test]
fn what_it_predicts_comes_nearer_to_the_original_and_nothing_but_scales_changes() {
    for (name, preset) in [
        ("llama", "int2-asym"),
        ("llama", "int4"),
        ("qwen3", "int3"),
        ("llama-bias", "fp8"),
        ("qwen2-window", "2:4+int4"),
        ("llama-yarn", "int2"),
        ("llama-bf16", "int3"),
        ("mistral", "w8a8"),
    ] {
        let (original, folder) = (fixture(name), Folder::new());
        let student = compressed(&original, preset, &folder);
        let output = folder.path().join("out");
        let found = distill(&student, &original, steps(40).rate(0.05), &output);
        let label = format!("{name} {preset}: {found:?}");
        // eight bits have little to learn
        assert!(found.after < if preset == "w8a8" { 1.0 } else { 0.9 } * found.before, "{label}");
        let (before, after) = (Checkpoint::open(&student).unwrap(), Checkpoint::open(&output).unwrap());
        for (said, network) in [(found.before, &before), (found.after, &after)] {
            let expected = divergence(network, &original, &[HELD_OUT]);
            assert!((said - expected).abs() < 1e-5 * expected.max(0.1), "{label}: {expected}");
        }
        let counts = [found.steps, found.samples, found.held_out, found.held_out_tokens];
        assert_eq!(counts, [40, SEQUENCES - 1, 1, TOKENS], "{label}");

        let (mut weights, mut scales) = (0, 0);
        for entry in before.entries() {
            for tensor in &entry.tensors {
                let (old, new) = (before.tensor(tensor).unwrap(), after.tensor(tensor).unwrap());
                assert_eq!((old.dtype, old.shape), (new.dtype, new.shape), "{tensor}");
                if tensor.ends_with("proj.weight_scale") {
                    assert!(old.bytes != new.bytes, "{label}: {tensor}");
                    weights += 1;
                    scales += old.shape.iter().product::<usize>();
                } else {
                    assert!(old.bytes == new.bytes, "{label}: {tensor}");
                }
            }
        }
        assert_eq!((found.weights, found.scales), (weights, scales), "{label}");
        assert_eq!(weights, 7 * Decoder::open(&before, Execution::default()).unwrap().blocks());
        let (mut before, mut after) = (files(&student), files(&output));
        for manifest in [&mut before, &mut after] {
            manifest.remove(Path::new("tersor.json")).unwrap();
        }
        let sizes = |files: &BTreeMap<PathBuf, Vec<u8>>| -> Vec<(PathBuf, usize)> {
            files.iter().map(|(path, bytes)| (path.clone(), bytes.len())).collect()
        };
        assert_eq!(sizes(&before), sizes(&after));
        before.remove(Path::new("model.safetensors"));
        assert!(before.iter().all(|(path, bytes)| after[path] == *bytes), "{label}");
    }
}

/// Adam's first step goes by the rate against the sign of the gradient, whatever its size: the signs are those of differences of the
/// divergence, by the definition, when one scale after the other is moved.
#[test]
fn the_first_step_goes_downhill() {
    for name in ["llama", "qwen3", "llama-bias"] {
        let (original, folder) = (fixture(name), Folder::new());
        let student = compressed(&original, "int3", &folder);
        let output = folder.path().join("out");
        let rate = 0.004;
        distill(&student, &original, steps(1).rate(rate), &output);
        let (before, after) = (Checkpoint::open(&student).unwrap(), Checkpoint::open(&output).unwrap());
        let scales = before.entries().iter().flat_map(|entry| &entry.tensors);
        let (mut seen, mut steep) = (0, 0);
        for tensor in scales.filter(|tensor| tensor.ends_with("proj.weight_scale")) {
            let [old, new] = [&before, &after].map(|network| {
                let bytes = network.tensor(tensor).unwrap().bytes;
                bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect::<Vec<_>>()
            });
            for at in (0..old.len()).step_by(old.len() / 3 + 1) {
                // int3: the code furthest from zero is 4 steps away
                let factor = (new[at] / old[at]).ln();
                assert!((factor.abs() - rate / 4.0).abs() < 0.01 * rate, "{name} {tensor}: {factor}");
                let loss = |by: f32| {
                    let mut moved = old.clone();
                    moved[at] *= by.exp();
                    divergence(&with_tensor(&before, tensor, &moved), &original, &FIRST_STEP)
                };
                let slope = (loss(0.05) - loss(-0.05)) / 0.1;
                seen += 1;
                // where it is flat, the sign is that of rounding
                if slope.abs() > 1e-5 {
                    steep += 1;
                    assert!(f64::from(factor) * slope < 0.0, "{name} {tensor} {at}: {factor} {slope}");
                }
            }
        }
        assert!(steep > 20 && 2 * steep > seen, "{name}: {steep} of {seen}");
    }
}

/// A network with other values of one tensor.
fn with_tensor(network: &Checkpoint, name: &str, values: &[f32]) -> Checkpoint {
    let tensors: Vec<_> = network
        .entries()
        .iter()
        .flat_map(|entry| &entry.tensors)
        .map(|tensor| {
            let found = network.tensor(tensor).unwrap();
            let bytes = if tensor == name { f32s(values) } else { found.bytes.to_vec() };
            assert!(tensor != name || found.dtype == DType::F32);
            stored(tensor, found.dtype, found.shape, bytes)
        })
        .collect();
    let folder = Folder::new();
    folder.put("model.safetensors", safetensors(&tensors, network.metadata(0).unwrap()));
    folder.put("config.json", network.config().unwrap().to_string());
    // which stays mapped when the folder goes
    folder.open().unwrap()
}

#[test]
fn neither_threads_nor_instructions_nor_interruptions_change_what_is_learned() {
    let (original, folder) = (fixture("llama"), Folder::new());
    let student = compressed(&original, "int2-asym", &folder);
    let whole = folder.path().join("whole");
    distill(&student, &original, steps(12), &whole);

    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let output = folder.path().join("one-thread");
    one_thread.install(|| distill(&student, &original, steps(12), &output));
    assert!(files(&output) == files(&whole));

    let level = CpuLevel::current();
    CpuLevel::Portable.set_current().unwrap();
    let output = folder.path().join("portable");
    distill(&student, &original, steps(12), &output);
    level.set_current().unwrap();
    assert!(files(&output) == files(&whole));

    let checkpoint = Checkpoint::open(&student).unwrap();
    let output = folder.path().join("interrupted");
    let unfinished = folder.path().join("interrupted.unfinished");
    for (goes_on, stop) in [(0, 5), (5, 9)] {
        let mut first = None;
        let mut stop_at = |progress: DistillationProgress| {
            first = first.or(Some(progress.done));
            if progress.done == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let stopped = steps(12).run(&checkpoint, &original, &samples(), &output, &mut stop_at);
        assert!(matches!(stopped, Err(PipelineError::Stopped)));
        assert!(!output.exists() && unfinished.exists());
        assert_eq!(first, Some(goes_on));
    }
    // one that ends without a word goes on from where the disk was written last
    let mut killed = |progress: DistillationProgress| {
        assert!(progress.done < 11, "killed");
        ControlFlow::Continue(())
    };
    let every_step = steps(12).keep_every(Duration::ZERO);
    let run = AssertUnwindSafe(|| every_step.run(&checkpoint, &original, &samples(), &output, &mut killed));
    assert!(catch_unwind(run).is_err());
    let kept =
        files(&unfinished).into_keys().filter(|name| name.to_string_lossy().ends_with("-000011.safetensors"));
    assert_eq!(kept.count(), 1);
    // with other steps it is another run
    let line = refused(&student, &original, steps(13), &samples(), &output);
    assert!(line.contains("interrupted.unfinished") && line.contains("another run"), "{line}");
    distill(&student, &original, steps(12), &output);
    assert!(files(&output) == files(&whole));
    assert!(!unfinished.exists());
}

#[test]
fn verify_and_the_manifest_say_what_was_learned() {
    let (original, folder) = (fixture("llama"), Folder::new());
    let student = compressed(&original, "int3", &folder);
    let output = folder.path().join("out");
    let found = distill(&student, &original, steps(20), &output);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(output.join("tersor.json")).unwrap()).unwrap();
    let distilled = &manifest["distilled"];
    assert_eq!((&distilled["steps"], &distilled["held_out"]), (&20.into(), &1.into()));
    assert_eq!(distilled["after"].as_f64(), Some(found.after));
    let layer = &manifest["layers"].as_array().unwrap()[0];
    // the error that there was is not that of what there is
    assert!(layer["relative"].is_null() && layer["bytes_after"].is_u64(), "{layer}");
    let methods = layer["methods"].as_array().unwrap();
    assert_eq!(methods.last().unwrap(), "scales distilled in 20 steps");

    let verified = verify(original.path(), &output, VerifyOptions::default()).unwrap();
    assert_eq!(verified.failures().count(), 0, "{verified:?}");
    assert_eq!(verified.changed().count(), found.weights);
    let words = verified.changed().next().unwrap().changed.as_deref();
    assert_eq!(words, Some("scales distilled in 20 steps"));

    // outputs of layers are others now, too
    assert!(layer["outcomes"].is_null());

    // what was made by something else has no manifest
    fs::remove_file(student.join("tersor.json")).unwrap();
    let again = folder.path().join("again");
    distill(&student, &original, steps(20), &again);
    let verified = verify(original.path(), &again, VerifyOptions::default()).unwrap();
    assert_eq!(verified.failures().count(), 0, "{verified:?}");
}

/// A network whose embedding is its head gets a head of its own when it is rotated.
#[test]
fn a_rotated_network_learns_and_what_did_not_learn_is_as_it_was() {
    let (original, folder) = (fixture("qwen3"), Folder::new());
    let recipe = Recipe::from_toml(
        "format = 'tersor'\ntransforms = ['rotate']\n\
         [[step]]\nnames = ['*.mlp.*']\nquantize = { bits = 2, symmetric = false, group_size = 8 }\n\
         [[step]]\nnames = ['*.o_proj.weight']\nquantize = { type = 'codebook', bits = 3 }\n",
    );
    let recipe = recipe.unwrap();
    let student = folder.path().join("rotated");
    Plan::new(&original, &recipe).unwrap().run(&student, &mut |_| ControlFlow::Continue(())).unwrap();
    let output = folder.path().join("out");
    let found = distill(&student, &original, steps(30).rate(0.05), &output);
    let blocks = Decoder::open(&original, Execution::default()).unwrap().blocks();
    assert_eq!((found.weights, found.left_alone.len()), (3 * blocks, blocks), "{found:?}");
    assert!(found.left_alone.iter().all(|name| name.ends_with("o_proj.weight")), "{found:?}");
    let layers = |folder: &Path| -> BTreeMap<String, serde_json::Value> {
        let manifest = fs::read(folder.join("tersor.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let layers = manifest["layers"].as_array().unwrap().iter();
        layers.map(|layer| (layer["name"].as_str().unwrap().to_owned(), layer.clone())).collect()
    };
    let (before, after) = (layers(&student), layers(&output));
    for (name, layer) in &before {
        assert_eq!(layer == &after[name], name.ends_with("o_proj.weight"), "{name}");
    }

    let verified = verify(original.path(), &output, VerifyOptions::default()).unwrap();
    assert_eq!(verified.failures().count(), 0, "{verified:?}");
    let head = verified.checks.iter().find(|check| check.name == "lm_head.weight").unwrap();
    assert_eq!(head.changed.as_deref(), Some("rotation, of `model.embed_tokens.weight`"));
    // no other tensor is explained by saying so
    let written = Checkpoint::open(&output).unwrap();
    let names = written.entries().iter().flat_map(|entry| &entry.tensors);
    let tensor = |name: &String| {
        let found = written.tensor(name).unwrap();
        stored(name, found.dtype, found.shape, found.bytes)
    };
    let mut tensors: Vec<_> = names.map(tensor).collect();
    tensors.push(stored("extra.weight", DType::F32, &[1, 2], f32s(&[1.0, 2.0])));
    let bytes = safetensors(&tensors, written.metadata(0).unwrap());
    fs::write(output.join("model.safetensors"), bytes).unwrap();
    let manifest = fs::read_to_string(output.join("tersor.json")).unwrap();
    let manifest = manifest.replace("\"changed\": {", "\"changed\": { \"extra.weight\": [\"rotation\"],");
    fs::write(output.join("tersor.json"), manifest).unwrap();
    let verified = verify(original.path(), &output, VerifyOptions::default()).unwrap();
    assert_eq!(verified.failures().map(|check| check.name.as_str()).collect::<Vec<_>>(), ["extra.weight"]);
}

/// Files keep their tensors, and a single one gets the name that everybody looks for.
#[test]
fn shards_stay_shards() {
    let (original, folder) = (fixture("llama"), Folder::new());
    let whole = compressed(&original, "int3", &folder);
    let student = Checkpoint::open(&whole).unwrap();
    let names: Vec<&String> = student.entries().iter().flat_map(|entry| &entry.tensors).collect();
    let tensor = |name: &&String| {
        let found = student.tensor(name).unwrap();
        stored(name, found.dtype, found.shape, found.bytes)
    };
    let config = fs::read(whole.join("config.json")).unwrap();
    let metadata = student.metadata(0).unwrap();
    let single = Folder::new();
    single.put("config.json", &config);
    single.put("odd.safetensors", safetensors(&names.iter().map(tensor).collect::<Vec<_>>(), metadata));
    let found = folder.path().join("single");
    distill(single.path(), &original, steps(5), &found);

    // whatever a weight is made of lies in one file
    let sharded = Folder::new();
    sharded.put("config.json", &config);
    let first_half = |entry: &&tersor::Entry| entry.name.contains("layers.0");
    let (mut map, mut total) = (serde_json::Map::new(), 0);
    for (file, is_first) in [("model-1.safetensors", true), ("model-2.safetensors", false)] {
        let entries = student.entries().iter().filter(|entry| first_half(entry) == is_first);
        let names: Vec<&String> = entries.flat_map(|entry| &entry.tensors).collect();
        let tensors: Vec<_> = names.iter().map(tensor).collect();
        total += tensors.iter().map(|tensor| tensor.bytes.len()).sum::<usize>();
        map.extend(names.iter().map(|name| ((*name).clone(), file.into())));
        let forms: serde_json::Value = serde_json::from_str(&metadata["tersor"]).unwrap();
        let weights = forms["weights"].as_object().unwrap().clone().into_iter();
        let weights: serde_json::Map<_, _> =
            weights.filter(|(name, _)| name.contains("layers.0") == is_first).collect();
        let forms = serde_json::json!({ "version": forms["version"], "weights": weights });
        let metadata = BTreeMap::from([("tersor".to_owned(), forms.to_string())]);
        sharded.put(file, safetensors(&tensors, &metadata));
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map });
    sharded.put("model.safetensors.index.json", index.to_string());
    let output = folder.path().join("sharded");
    distill(sharded.path(), &original, steps(5), &output);
    let (single, sharded) = (Checkpoint::open(&found).unwrap(), Checkpoint::open(&output).unwrap());
    assert!(found.join("model.safetensors").exists() && !found.join("odd.safetensors").exists());
    assert_eq!((single.files().len(), sharded.files().len()), (1, 2));
    for entry in single.entries() {
        for tensor in &entry.tensors {
            assert!(
                single.tensor(tensor).unwrap().bytes == sharded.tensor(tensor).unwrap().bytes,
                "{tensor}"
            );
        }
    }
}

#[test]
fn what_was_learned_is_not_taken_from_damaged_or_foreign_files() {
    let (original, folder) = (fixture("llama"), Folder::new());
    let student = compressed(&original, "int3", &folder);
    let checkpoint = Checkpoint::open(&student).unwrap();
    let output = folder.path().join("out");
    let unfinished = folder.path().join("out.unfinished");
    let stop = || {
        let mut stop = |progress: DistillationProgress| {
            if progress.done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let stopped = steps(4).run(&checkpoint, &original, &samples(), &output, &mut stop);
        assert!(matches!(stopped, Err(PipelineError::Stopped)), "{stopped:?}");
        let is_step = |path: &PathBuf| path.to_string_lossy().starts_with("step-");
        unfinished.join(files(&unfinished).into_keys().find(is_step).unwrap())
    };
    let file = stop();
    let bytes = fs::read(&file).unwrap();
    let tensors = Checkpoint::open(&file).unwrap();
    let rewritten = |change: &dyn Fn(&str, &mut Vec<u8>)| {
        let tensor = |entry: &tersor::Entry| {
            let mut tensor =
                stored(&entry.name, DType::F32, &entry.shape, tensors.tensor(&entry.name).unwrap().bytes);
            change(&entry.name, &mut tensor.bytes);
            tensor.shape = vec![tensor.bytes.len() / 4];
            tensor
        };
        safetensors(&tensors.entries().iter().map(tensor).collect::<Vec<_>>(), &BTreeMap::new())
    };
    let nan = rewritten(&|name, bytes| {
        if name.ends_with(".square") {
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
    });
    let short = rewritten(&|_, bytes| bytes.truncate(4));
    for damaged in [&bytes[..bytes.len() / 2], &nan, &short, b""] {
        fs::remove_file(&file).unwrap();
        fs::write(&file, damaged).unwrap();
        let line = refused(&student, &original, steps(4), &samples(), &output);
        assert!(line.contains("step-") && line.contains("delete the folder"), "{line}");
    }
    fs::remove_dir_all(&unfinished).unwrap();

    // a folder of somebody else is neither used nor deleted
    fs::create_dir(&unfinished).unwrap();
    fs::write(unfinished.join("model.safetensors"), "precious").unwrap();
    let line = refused(&student, &original, steps(4), &samples(), &output);
    assert!(line.contains("out.unfinished") && line.contains("model.safetensors"), "{line}");
    assert_eq!(files(&unfinished).into_keys().collect::<Vec<_>>(), [Path::new("model.safetensors")]);
}

#[test]
fn a_network_that_predicts_no_numbers_is_named_with_the_sample() {
    let (original, folder) = (fixture("llama"), Folder::new());
    let student = compressed(&original, "int3", &folder);
    let norm = "model.layers.1.input_layernorm.weight";
    let values = vec![f32::NAN; original.entry(norm).unwrap().elements()];
    let tensors: Vec<_> = original
        .entries()
        .iter()
        .map(|entry| {
            let found = original.tensor(&entry.name).unwrap();
            let bytes = if entry.name == norm { f32s(&values) } else { found.bytes.to_vec() };
            stored(&entry.name, found.dtype, found.shape, bytes)
        })
        .collect();
    let broken = Folder::new();
    broken.put("model.safetensors", safetensors(&tensors, &BTreeMap::new()));
    broken.put("config.json", original.config().unwrap().to_string());
    let checkpoint = broken.open().unwrap();
    let line = refused(&student, &checkpoint, steps(2), &samples(), &folder.path().join("out"));
    let named = broken.path().display().to_string();
    assert!(line.contains(&named) && line.contains(&format!("sample {HELD_OUT}")), "{line}");
}

#[test]
fn what_cannot_be_distilled_is_refused() {
    let (original, folder) = (fixture("llama"), Folder::new());
    let student = compressed(&original, "int3", &folder);
    let output = folder.path().join("out");
    let refuse = |student: &Path, original: &Checkpoint, by: Distillation, samples: &Samples| {
        refused(student, original, by, samples, &output)
    };
    let all = samples();
    let one = Samples::tokens(vec![sequence(0)]).unwrap();
    let long = Samples::tokens(vec![vec![1; 10_000]; 2]).unwrap();
    let unknown = Samples::tokens(vec![vec![1, 2], vec![1, 60_000]]).unwrap();
    let bert = fixture("bert");
    let plain = original.path();
    let coded = folder.path().join("coded");
    let recipe = Recipe::new().entropy(true);
    let checkpoint = Checkpoint::open(&student).unwrap();
    Plan::new(&checkpoint, &recipe).unwrap().run(&coded, &mut |_| ControlFlow::Continue(())).unwrap();
    for (line, parts) in [
        (refuse(&student, &original, steps(1).rate(0.0), &all), ["int3", "rate of 0"]),
        (refuse(&student, &original, steps(1).rate(f32::NAN), &all), ["int3", "rate of NaN"]),
        (refuse(&student, &original, steps(1), &one), ["1 samples", "too few"]),
        (refuse(&student, &original, steps(1), &long), ["10000 tokens", "more than"]),
        (refuse(&student, &original, steps(1), &unknown), ["60000", "vocabulary"]),
        (refuse(&student, &bert, steps(1), &all), ["bert", "decoder"]),
        (refuse(bert.path(), &original, steps(1), &all), ["bert", "decoder"]),
        (refuse(plain, &original, steps(1), &all), ["llama", "no linear layer"]),
        (refuse(&coded, &original, steps(1), &all), ["entropy coded", "proj.weight"]),
        (refuse(&student, &original, steps(2).rate(1000.0), &all), ["int3", "rate"]),
    ] {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    let inside = student.join("out");
    let line = refused(&student, &original, steps(1), &all, &inside);
    assert!(line.contains("int3"), "{line}");
    let exists = folder.put("exists", "");
    let error = steps(1).run(&checkpoint, &original, &all, &exists, &mut go).unwrap_err();
    assert!(one_line(&error).contains("exists"), "{error}");
    // nothing is left behind
    let left = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["coded", "exists", "int3"]);
}

#[test]
fn another_vocabulary_is_refused() {
    let (original, folder) = (fixture("llama"), Folder::new());
    let student = compressed(&original, "int3", &folder);
    let other = fixture("llama-bias");
    let sizes =
        [&original, &other].map(|network| Decoder::open(network, Execution::default()).unwrap().vocab_size());
    let line = refused(&student, &other, steps(1), &samples(), &folder.path().join("out"));
    assert!(line.contains(&sizes[0].to_string()) && line.contains(&sizes[1].to_string()), "{line}");
}
