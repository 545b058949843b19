//! Blocks that are learned as wholes.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::Folder;
use ndarray::Array2;
use tersor::pipeline::{BlockInputs, Calibration, Progress};
use tersor::recipe::{Rounding, Transform};
use tersor::{
    Checkpoint, CompressedWeight, CpuLevel, Decoder, Entry, Execution, Needs, PipelineError, Plan, Precision,
    PresetOptions, Recipe, Run, Samples, one_line, save_weights,
};

fn fixture(name: &str) -> Checkpoint {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/transformers");
    Checkpoint::open(golden.join(name)).unwrap()
}

const SEQUENCES: usize = 12;
const TOKENS: usize = 24;

fn sequence(s: usize) -> Vec<u32> {
    (s * TOKENS..(s + 1) * TOKENS).map(|i| ((i * i * 7 + i * 13 + 5) % 50) as u32).collect()
}

fn samples() -> Samples {
    Samples::tokens((0..SEQUENCES).map(sequence).collect()).unwrap()
}

fn recipe(preset: &str, method: &str, steps: usize) -> Recipe {
    let rounding = Rounding::from_name(method).unwrap();
    let options = PresetOptions { rounding, group_size: 8.try_into().ok(), ..PresetOptions::default() };
    Recipe::preset(preset, options).unwrap().reconstruct(steps.try_into().unwrap())
}

fn go(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn run(checkpoint: &Checkpoint, recipe: &Recipe, output: &Path) -> Run {
    let samples = samples();
    let plan = Plan::new(checkpoint, recipe).unwrap();
    plan.run_calibrated(output, Calibration::new(&samples), &mut go).unwrap()
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(&path).unwrap())).collect()
}

/// What a network gives behind every block, for all samples.
fn behind_blocks(checkpoint: &Checkpoint) -> Vec<Vec<Array2<f32>>> {
    let model = Decoder::open(checkpoint, Execution::default()).unwrap();
    let mut hidden: Vec<Array2<f32>> = (0..SEQUENCES).map(|s| model.embed(&sequence(s)).unwrap()).collect();
    let behind = |block: usize| {
        for hidden in &mut hidden {
            model.run_block(block, hidden, None).unwrap();
        }
        hidden.clone()
    };
    (0..model.blocks()).map(behind).collect()
}

/// The mean over all tokens of `‖ŷ − y‖² / ‖y‖²`, by the definition.
fn errors(dense: &[Vec<Array2<f32>>], compressed: &[Vec<Array2<f32>>]) -> Vec<f64> {
    let of_block = |(dense, compressed): (&Vec<Array2<f32>>, &Vec<Array2<f32>>)| {
        let mut all = Vec::new();
        for (dense, compressed) in dense.iter().zip(compressed) {
            for (y, z) in dense.rows().into_iter().zip(compressed.rows()) {
                let square = |x: f32| f64::from(x).powi(2);
                let error: f64 = y.iter().zip(z).map(|(y, z)| square(y - z)).sum();
                all.push(error / y.iter().map(|y| square(*y)).sum::<f64>());
            }
        }
        all.iter().sum::<f64>() / all.len() as f64
    };
    dense.iter().zip(compressed).map(of_block).collect()
}

/// What is said of a block, from one of its layers.
fn block_outcome(run: &Run, block: usize) -> tersor::Outcome {
    let of_block = |name: &str| name.contains(&format!("layers.{block}."));
    let layer = run.layers.iter().find(|layer| of_block(&layer.name)).unwrap();
    layer.outcomes.last().unwrap().clone()
}

#[test]
fn blocks_come_nearer_to_what_they_gave_and_reports_say_how_near() {
    for (name, method, transform) in [
        ("llama", "nearest", None),
        ("llama-bias", "gptq", None),
        ("qwen3", "gptq-act-order", Some("rotate")),
    ] {
        let checkpoint = fixture(name);
        let folder = Folder::new();
        let with = |recipe: Recipe| match transform {
            Some(transform) => recipe.transform(Transform::from_name(transform).unwrap()),
            None => recipe,
        };
        let output = folder.path().join("out");
        let run = run(&checkpoint, &with(recipe("int2-asym", method, 100)), &output);
        let compressed = Checkpoint::open(&output).unwrap();
        assert!(run.layers.iter().all(|layer| layer.after.starts_with("int2") || layer.outcomes.is_empty()));
        let outcomes: Vec<_> = (0..2).map(|block| block_outcome(&run, block)).collect();
        for outcome in &outcomes {
            assert_eq!(outcome.plain.to_string(), "each layer on its own");
            assert!(outcome.method_error < 0.8 * outcome.plain_error, "{name}: {outcome:?}");
            assert_eq!(outcome.tokens, (SEQUENCES * TOKENS) as u64);
        }
        // a rotated network's hidden states are others
        if transform.is_none() {
            let found = errors(&behind_blocks(&checkpoint), &behind_blocks(&compressed));
            for (found, outcome) in found.iter().zip(&outcomes) {
                let reported = outcome.error();
                assert!((found - reported).abs() < 2e-3 * reported, "{name}: {found}, not {reported}");
            }
        }
    }
}

/// A decoder whose weights are what 8 bits with zero points make of them, so that rounding them again loses next to nothing.
fn exact(folder: &Folder) -> Checkpoint {
    let checkpoint = fixture("llama");
    let rounded = folder.path().join("rounded");
    let options = PresetOptions { group_size: 8.try_into().ok(), ..PresetOptions::default() };
    let int8 = Recipe::preset("int8-asym", options).unwrap();
    Plan::new(&checkpoint, &int8).unwrap().run(&rounded, &mut go).unwrap();
    let rounded = Checkpoint::open(rounded).unwrap();
    let of_entry = |entry: &Entry| {
        let values = rounded.dense(&entry.name).unwrap();
        (entry.name.clone(), CompressedWeight::from_f32(&entry.shape, Precision::F32, &values).unwrap())
    };
    let weights: BTreeMap<String, CompressedWeight> = checkpoint.entries().iter().map(of_entry).collect();
    let exact = folder.path().join("exact");
    fs::create_dir(&exact).unwrap();
    fs::copy(checkpoint.path().join("config.json"), exact.join("config.json")).unwrap();
    save_weights(exact.join("model.safetensors"), &weights).unwrap();
    Checkpoint::open(exact).unwrap()
}

/// Where descent leads away, what was found before is kept, to the last bit.
#[test]
fn a_block_that_is_no_nearer_stays_as_it_was() {
    let folder = Folder::new();
    let checkpoint = exact(&folder);
    let plain = folder.path().join("plain");
    let options = PresetOptions { group_size: 8.try_into().ok(), ..PresetOptions::default() };
    let rounded = Recipe::preset("int8-asym", options).unwrap();
    Plan::new(&checkpoint, &rounded).unwrap().run(&plain, &mut go).unwrap();
    let output = folder.path().join("out");
    let recipe = recipe("int8-asym", "nearest", 1);
    let run = run(&checkpoint, &recipe, &output);
    for block in 0..2 {
        let outcome = block_outcome(&run, block);
        let is_kept = outcome.kept_plain && outcome.plain_error < outcome.method_error;
        assert!(is_kept && outcome.words() == "lost to each layer on its own, which was kept", "{outcome:?}");
    }
    let [plain, output] = [plain, output].map(|path| fs::read(path.join("model.safetensors")).unwrap());
    assert!(plain == output);

    let samples = samples();
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    let strict = Calibration::new(&samples).strict(true);
    let error = plan.run_calibrated(folder.path().join("strict"), strict, &mut go).unwrap_err();
    assert!(matches!(error, PipelineError::Strict { .. }), "{error}");
}

#[test]
fn levels_threads_and_interruptions_change_no_byte() {
    let checkpoint = fixture("llama");
    let folder = Folder::new();
    let recipe = recipe("int3", "gptq", 9);
    let expected = folder.path().join("expected");
    run(&checkpoint, &recipe, &expected);
    let expected = files(&expected);
    for (level, threads) in [(CpuLevel::Portable, 1), (CpuLevel::detected().min(CpuLevel::Avx2), 2)] {
        let before = CpuLevel::current();
        level.set_current().unwrap();
        let output = folder.path().join(format!("{level}-{threads}"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&checkpoint, &recipe, &output));
        before.set_current().unwrap();
        assert!(files(&output) == expected, "{level}, {threads} threads");
    }

    let output = folder.path().join("interrupted");
    let samples = samples();
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    let mut told = 0;
    let mut stop = |_: Progress<'_>| {
        told += 1;
        if told == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = plan.run_calibrated(&output, Calibration::new(&samples), &mut stop);
    assert!(matches!(stopped, Err(PipelineError::Stopped)));
    assert!(folder.path().join("interrupted.unfinished").join("block-00000.json").exists());
    plan.run_calibrated(&output, Calibration::new(&samples), &mut go).unwrap();
    assert!(files(&output) == expected);
}

#[test]
fn what_cannot_be_reconstructed_is_refused() {
    let folder = Folder::new();
    let output = folder.path().join("out");
    let samples = samples();
    let refused = |checkpoint: &Checkpoint, recipe: &Recipe, calibration: Calibration<'_>| {
        let plan = Plan::new(checkpoint, recipe).unwrap();
        let error = plan.run_calibrated(&output, calibration, &mut go).unwrap_err();
        assert!(!output.exists());
        one_line(&error)
    };
    let decoder = fixture("llama");
    let four = recipe("int4", "nearest", 4);
    let error = refused(&fixture("bert"), &four, Calibration::new(&samples));
    assert!(error.contains("bert") && error.contains("decoders alone"), "{error}");
    let dense = Calibration::new(&samples).inputs(BlockInputs::Dense);
    assert!(refused(&decoder, &four, dense).contains("leave out dense inputs"));
    for preset in ["fp16", "2:4+int4"] {
        let recipe = Recipe::preset(preset, PresetOptions::default()).unwrap();
        let recipe = recipe.reconstruct(4.try_into().unwrap());
        let error = refused(&decoder, &recipe, Calibration::new(&samples));
        assert!(error.contains("no layer of a block becomes integers"), "{error}");
    }
    let plan = Plan::new(&decoder, &four).unwrap();
    assert_eq!(plan.needs(), Needs::Channels);
    let error = plan.run(&output, &mut go).unwrap_err().to_string();
    assert!(error.contains("block reconstruction") && error.contains("calibration samples"), "{error}");
}
