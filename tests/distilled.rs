//! Compressed decoders that learn their scales from what the original predicts.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

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
    ] {
        let (original, folder) = (fixture(name), Folder::new());
        let student = compressed(&original, preset, &folder);
        let output = folder.path().join("out");
        let found = distill(&student, &original, steps(40).rate(0.05), &output);
        let label = format!("{name} {preset}: {found:?}");
        assert!(found.after < 0.9 * found.before, "{label}");
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
    for (goes_on, stop) in [(0, 0), (0, 5), (5, 9)] {
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

    // what was made by something else has no manifest
    fs::remove_file(student.join("tersor.json")).unwrap();
    let again = folder.path().join("again");
    distill(&student, &original, steps(20), &again);
    let verified = verify(original.path(), &again, VerifyOptions::default()).unwrap();
    assert_eq!(verified.failures().count(), 0, "{verified:?}");
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
