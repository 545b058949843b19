//! Plans, runs and recipes through the library.

mod common;
#[path = "common/models.rs"]
mod models;

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tersor::pipeline::Progress;
use tersor::recipe::{LayoutChoice, Prune, Selection};
use tersor::{
    Axis, Bits, Checkpoint, CodeType, Coding, Compressed, DType, FloatCast, Granularity, Layer, LayoutKind,
    Magnitude, Method, MethodError, NofM, Observer, OutputFormat, Overflow, PipelineError, Plan, Precision,
    PresetOptions, Recipe, RoundToNearest, Run, Sparsity, Step, StoredTensor, Structured, TensorClass,
    VerifyOptions, one_line, verify,
};

use common::{Folder, f32s, stored};
use models::{architectures, decoder, floats, folder, mixed, sharded, values, weight};

fn preset(names: &str) -> Recipe {
    Recipe::preset(names, PresetOptions::default()).unwrap()
}

fn bits(bits: u8) -> Bits {
    Bits::new(bits).unwrap()
}

fn sparsity(fraction: f64) -> Sparsity {
    Sparsity::new(fraction).unwrap()
}

fn group(size: usize) -> Granularity {
    Granularity::Group(NonZeroUsize::new(size).unwrap())
}

fn run(source: &Path, recipe: &Recipe) -> Result<(Folder, PathBuf, Run), PipelineError> {
    let checkpoint = Checkpoint::open(source)?;
    let work = Folder::new();
    let output = work.path().join("out");
    let run = Plan::new(&checkpoint, recipe)?.run(&output, &mut |_| ControlFlow::Continue(()))?;
    Ok((work, output, run))
}

/// Form and reason of every tensor.
fn planned(plan: &Plan<'_>) -> BTreeMap<String, (String, String)> {
    let tensors = plan.tensors().iter();
    tensors.map(|t| (t.name().to_owned(), (t.describe(), t.reason().to_owned()))).collect()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// Weights that no method accepts are only found by the run: planning does not look at them.
#[test]
fn a_plan_reads_no_weights() {
    let nan = stored("x.weight", DType::F32, &[8, 64], f32s(&[f32::NAN; 512]));
    let source = folder(&[nan], None);
    let checkpoint = source.open().unwrap();
    for names in ["int8", "int4", "fp8", "fp16", "2:4", "50%", "2:4+int8", "90%+int3-asym"] {
        let recipe = preset(names);
        let plan = Plan::new(&checkpoint, &recipe).unwrap();
        assert!(plan.tensors()[0].is_compressed());
        let work = Folder::new();
        let error = plan.run(work.path().join("a/out"), &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(
            matches!(error, PipelineError::Method { source: MethodError::NonFinite(_), .. }),
            "{error:?}"
        );
        let line = one_line(&error);
        assert!(line.contains("`x.weight`") && line.contains("NaN at index 0"), "{line}");
        assert!(line.contains(&source.path().display().to_string()), "{line}");
        assert!(is_empty(work.path()), "{names}");
    }
    // what several tensors share takes a look at them
    let recipe = preset("50%-global");
    let error = Plan::new(&checkpoint, &recipe).unwrap_err();
    assert!(matches!(error, PipelineError::Method { source: MethodError::NonFinite(_), .. }), "{error:?}");
}

#[test]
fn every_tensor_has_a_reason() {
    let source = folder(&mixed(DType::F16), None);
    let checkpoint = source.open().unwrap();
    let recipe = preset("50%+int4").ignore("*.fc2").unwrap();
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    let planned = planned(&plan);
    let reason = |name: &str| planned[name].1.as_str();
    assert_eq!(reason("layers.0.fc1.weight"), "linear: step 1 and 2");
    assert_eq!(reason("conv.weight"), "conv: step 1 and 2");
    assert_eq!(reason("layers.0.fc2.weight"), "ignored by `*.fc2`");
    assert_eq!(reason("lm_head.weight"), "ignored by `*lm_head`");
    assert_eq!(reason("embed_tokens.weight"), "embedding: no step names it");
    assert_eq!(reason("layers.0.fc1.bias"), "bias: no step names it");
    assert_eq!(reason("empty.weight"), "it has no elements");
    assert_eq!(planned["layers.0.fc1.weight"].0, "bitmask × int4, group 128");
    assert_eq!(planned["steps"].0, "I64");

    let recipe = preset("fp16");
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    assert!(plan.tensors().iter().all(|t| !t.is_compressed()));
    assert_eq!(self::planned(&plan)["norm.weight"].1, "F16 already");
    assert_eq!(self::planned(&plan)["steps"].1, "I64 is no float");
}

#[test]
fn peak_memory_is_that_of_the_largest_tensor() {
    let tensors = |n: usize| -> Vec<StoredTensor> {
        let small = (0..n).map(|i| weight(&format!("small.{i}.weight"), DType::F32, &[64, 64]));
        small.chain([weight("large.weight", DType::F32, &[512, 256])]).collect()
    };
    // with more threads, more of them are in work at a time
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let peak = |source: &Folder, recipe: &Recipe| {
        pool.install(|| Plan::new(&source.open().unwrap(), recipe).unwrap().peak_memory())
    };
    let (few, many) = (folder(&tensors(1), None), folder(&tensors(100), None));
    for names in ["int8", "int2", "fp16", "2:4", "50%+int4"] {
        let recipe = preset(names);
        let bytes = peak(&few, &recipe);
        // at least the values as f32, at most some copies of them
        assert!((4 * 512 * 256..32 * 512 * 256).contains(&bytes), "{names}: {bytes}");
        assert_eq!(peak(&many, &recipe), bytes, "{names}");
        // one that is only copied takes no memory
        let rest = peak(&many, &recipe.ignore("large").unwrap());
        assert!((4 * 64 * 64..32 * 64 * 64).contains(&rest), "{names}: {rest}");
    }
}

/// A percentile is found in a sorted copy.
#[test]
fn peak_memory_counts_the_copy_that_is_sorted() {
    let source = folder(&[weight("large.weight", DType::F32, &[512, 256])], None);
    let checkpoint = source.open().unwrap();
    let peak = |observer| {
        let method = RoundToNearest::int(bits(8)).granularity(Granularity::Tensor).observer(observer);
        let recipe = Recipe::new().step(Step::quantize(method));
        Plan::new(&checkpoint, &recipe).unwrap().peak_memory()
    };
    assert_eq!(peak(Observer::Percentile(99.0)), peak(Observer::MinMax) + 4 * 512 * 256);
}

/// What an option leaves without effect is an error that names the option.
#[test]
fn options_without_effect_are_refused() {
    let source = folder(&decoder(DType::F32), None);
    let checkpoint = source.open().unwrap();
    let refused = |recipe: &Recipe, parts: &[&str]| {
        let error = Plan::new(&checkpoint, recipe).unwrap_err();
        assert!(matches!(error, PipelineError::NothingLeft { .. }), "{error:?}");
        for part in parts {
            assert!(error.to_string().contains(part), "no `{part}` in: {error}");
        }
    };
    let parts = [source.path().to_str().unwrap(), "`ignore`", "nothing to do", "`*`"];
    refused(&preset("int8").ignore("*").unwrap(), &parts);
    refused(&preset("fp16").ignore("*").unwrap(), &parts);
    // by the usual exceptions and a pattern together
    refused(&preset("int8").ignore("model.layers.*").unwrap(), &["`model.layers.*`, `*lm_head`"]);
    let clamp = PresetOptions { overflow: Overflow::Clamp, ..PresetOptions::default() };
    for names in ["int8", "2:4", "2:4+int4"] {
        let error = Recipe::preset(names, clamp).unwrap_err().to_string();
        assert!(error.contains(names) && error.contains("overflow"), "{error}");
    }
    assert!(Recipe::preset("2:4+fp16", clamp).is_ok());
}

/// Every float means every float; what is not pruned is converted all the same.
#[test]
fn a_head_that_is_not_pruned_is_converted() {
    let source = folder(&decoder(DType::F32), None);
    let checkpoint = source.open().unwrap();
    for (names, layer) in [("2:4+fp16", "2:4 × f16"), ("fp16+2:4", "2:4 × f16")] {
        let recipe = preset(names);
        let planned = planned(&Plan::new(&checkpoint, &recipe).unwrap());
        assert_eq!(planned["lm_head.weight"].0, "f16");
        assert_eq!(planned["model.layers.0.q_proj.weight"].0, layer);
        assert_eq!(planned["model.embed_tokens.weight"].0, "f16");
    }
    let recipe = preset("2:4+int8");
    let planned = planned(&Plan::new(&checkpoint, &recipe).unwrap());
    assert_eq!(planned["lm_head.weight"], ("F32".into(), "ignored by `*lm_head`".into()));
}

/// Where a run stood at each call: the tensor, and the bytes done and in all.
type Calls = Vec<(Option<String>, u64, u64)>;

#[test]
fn progress_goes_through_the_tensors_and_can_stop_anywhere() {
    for source in [folder(&mixed(DType::F32), None), sharded(&mixed(DType::F32), None)] {
        let checkpoint = source.open().unwrap();
        let recipe = preset("int4");
        let plan = Plan::new(&checkpoint, &recipe).unwrap();
        let watch = |stop_at: usize| -> (Calls, Result<Run, PipelineError>, Folder) {
            let work = Folder::new();
            let mut calls = Vec::new();
            let result = plan.run(work.path().join("new/deep/out"), &mut |p: Progress<'_>| {
                calls.push((p.tensor.map(str::to_owned), p.done, p.total));
                if calls.len() > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            (calls, result, work)
        };
        let (calls, result, work) = watch(usize::MAX);
        assert!(
            result.unwrap().output.join("model.safetensors.index.json").exists()
                == (plan.output_files().count() > 1)
        );
        assert!(work.path().join("new/deep/out").is_dir());
        let total: u64 = checkpoint.entries().iter().map(|e| e.bytes).sum();
        let mut done = 0;
        let mut expected: Calls = Vec::new();
        for entry in checkpoint.entries() {
            expected.push((Some(entry.name.clone()), done, total));
            done += entry.bytes;
        }
        expected.push((None, total, total));
        assert_eq!(calls, expected);
        // before any tensor, and when everything is written but not yet named
        for stop_at in 0..calls.len() {
            let (seen, result, work) = watch(stop_at);
            assert!(matches!(result, Err(PipelineError::Stopped)), "{stop_at}");
            assert_eq!(seen, calls[..=stop_at], "{stop_at}");
            assert!(is_empty(work.path()), "{stop_at}");
        }
    }
}

/// Recipes that are the same write the same files.
#[test]
fn presets_toml_and_code_say_the_same() {
    let source = folder(&mixed(DType::F32), None);
    let toml = |text: &str| Recipe::from_toml(text).unwrap();
    let lm_head = "ignore = [\"lm_head\"]\n";
    let options = PresetOptions { group_size: NonZeroUsize::new(32), ..PresetOptions::default() };
    let all = "classes = [\"linear\", \"conv\", \"embedding\", \"norm\", \"bias\", \"other\"]";
    for (preset, toml, built) in [
        (
            preset("int8"),
            toml(&format!("{lm_head}[[step]]\nquantize = {{ bits = 8 }}")),
            Recipe::new().step(Step::quantize(RoundToNearest::int(bits(8)))),
        ),
        (
            Recipe::preset("int3-asym", options).unwrap(),
            toml(&format!(
                "{lm_head}[[step]]\nquantize = {{ bits = 3, symmetric = false, group_size = 32 }}"
            )),
            Recipe::new().step(Step::quantize(
                RoundToNearest::codes(tersor::CodeType::Int { bits: bits(3), symmetric: false })
                    .granularity(group(32))
                    .observer(Observer::MinMax),
            )),
        ),
        (
            preset("fp8"),
            toml(&format!("{lm_head}[[step]]\nquantize = {{ type = \"f8_e4m3\", strategy = \"channel\" }}")),
            Recipe::new().step(Step::quantize(RoundToNearest::f8_e4m3())),
        ),
        (
            preset("2:4+int4"),
            toml(&format!(
                "{lm_head}[[step]]\nprune = {{ method = \"n:m\", pattern = \"2:4\" }}\n\
                 [[step]]\nquantize = {{ type = \"int\", bits = 4, strategy = \"group\", group_size = 128 }}"
            )),
            Recipe::new()
                .step(Step::prune(Magnitude::NofM(NofM::new(2, 4).unwrap())))
                .step(Step::quantize(RoundToNearest::int(bits(4)).granularity(group(128)))),
        ),
        (
            preset("50%"),
            toml(&format!("{lm_head}[[step]]\nprune = {{ method = \"magnitude\", sparsity = 0.5 }}")),
            Recipe::new().step(Step::prune(Magnitude::Unstructured(sparsity(0.5)))),
        ),
        (
            preset("90%-global"),
            toml(&format!(
                "{lm_head}[[step]]\nprune = {{ method = \"magnitude\", sparsity = 0.9, scope = \"global\", layout = \"smallest\" }}"
            )),
            Recipe::new().step(Step::prune(Prune {
                selection: Selection::Global(sparsity(0.9)),
                layout: LayoutChoice::Smallest,
            })),
        ),
        (
            preset("bf16"),
            toml(&format!("[[step]]\n{all}\nquantize = {{ type = \"bf16\", overflow = \"refuse\" }}")),
            Recipe::new().step(
                Step::quantize(FloatCast::to(Precision::Bf16).overflow(Overflow::Refuse))
                    .classes(TensorClass::ALL),
            ),
        ),
    ] {
        // an ignored `lm_head` is the presets' convention; in code it is said
        let everything = built.steps()[0].applies_to("norm.weight", TensorClass::Norm);
        let built = if everything { built } else { built.ignore("lm_head").unwrap() };
        let written = |recipe: &Recipe| {
            let (_work, output, run) = run(source.path(), recipe).unwrap();
            let manifest = fs::read_to_string(output.join("tersor.json")).unwrap();
            (fs::read(output.join("model.safetensors")).unwrap(), run.layers, manifest)
        };
        let expected = written(&preset);
        assert!(!expected.1.is_empty());
        assert_eq!(written(&toml), expected, "{preset:?}");
        assert_eq!(written(&built), expected, "{preset:?}");
    }
}

#[test]
fn other_names_of_the_same_preset() {
    assert_eq!(format!("{:?}", preset("f16")), format!("{:?}", preset("fp16")));
    assert_eq!(format!("{:?}", preset(" 2:4 + int8 ")), format!("{:?}", preset("int8+2:4")));
}

/// The threshold is one for all layers, and drops exactly as many weights as asked for, equal ones included.
#[test]
fn global_pruning_drops_the_exact_number_over_all_layers() {
    // few distinct magnitudes, so that the threshold falls among many equal ones
    let coarse = |n: usize, seed: u64, scale: f32| -> Vec<f32> {
        values(n, seed).into_iter().map(|x| (x * 60.0).round() / 8.0 * scale).collect()
    };
    let layers: [(&str, [usize; 2], Vec<f32>); 3] = [
        ("a.weight", [10, 37], coarse(370, 1, 1.0)),
        ("b.weight", [8, 64], coarse(512, 2, 0.5)),
        ("c.weight", [3, 99], coarse(297, 3, 4.0)),
    ];
    let tensors: Vec<_> = layers.iter().map(|(n, shape, v)| stored(n, DType::F32, shape, f32s(v))).collect();
    let source = folder(&tensors, None);
    let count: usize = layers.iter().map(|(_, _, v)| v.len()).sum();
    for fraction in [0.0, 0.001, 0.1, 0.5, 0.77, 0.9, 0.999] {
        let recipe = Recipe::new().step(Step::prune(Prune {
            selection: Selection::Global(sparsity(fraction)),
            layout: LayoutChoice::Fixed(LayoutKind::Bitmask),
        }));
        let (_work, output, run) = run(source.path(), &recipe).unwrap();
        // oracle: sort all magnitudes, among equals the later position first
        let mut all: Vec<(f32, usize, usize)> = Vec::new();
        for (l, (_, _, values)) in layers.iter().enumerate() {
            all.extend(values.iter().enumerate().map(|(i, x)| (x.abs(), l, i)));
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then((b.1, b.2).cmp(&(a.1, a.2))));
        let drop = (fraction * count as f64).round() as usize;
        let mut expected: Vec<Vec<f32>> = layers.iter().map(|(_, _, v)| v.clone()).collect();
        let mut kept: Vec<usize> = expected.iter().map(Vec::len).collect();
        for (_, l, i) in &all[..drop] {
            expected[*l][*i] = 0.0;
            kept[*l] -= 1;
        }
        let written = Checkpoint::open(&output).unwrap();
        for (l, (name, _, _)) in layers.iter().enumerate() {
            let dense = written.dense(name).unwrap();
            assert!(dense.iter().zip(&expected[l]).all(|(a, b)| a == b), "{fraction} {name}");
            let weight = written.weight(name).unwrap();
            assert_eq!(weight.form().kept(), kept[l], "{fraction} {name}");
            let stored = 1.0 - kept[l] as f64 / expected[l].len() as f64;
            assert!((run.layers[l].sparsity - stored).abs() < 1e-12);
        }
        assert_eq!(kept.iter().sum::<usize>(), count - drop);
    }
}

/// A threshold spans what its own step names: not what a later step, or an ignore pattern, takes away from it.
#[test]
fn global_pruning_spans_the_layers_of_its_step() {
    let tensors: Vec<_> =
        ["a", "b", "c"].iter().map(|n| weight(&format!("{n}.weight"), DType::F32, &[16, 50])).collect();
    let source = folder(&tensors, None);
    let bitmask = |selection| Prune { selection, layout: LayoutChoice::Fixed(LayoutKind::Bitmask) };
    let recipe = Recipe::new().step(Step::prune(bitmask(Selection::Global(sparsity(0.25))))).step(
        Step::prune(bitmask(Selection::Layer(Magnitude::Unstructured(sparsity(0.9)).into())))
            .names(["b"])
            .unwrap(),
    );
    let (_work, output, _) = run(source.path(), &recipe).unwrap();
    let kept = |name: &str| Checkpoint::open(&output).unwrap().weight(name).unwrap().form().kept();
    assert_eq!(kept("a.weight") + kept("c.weight"), 1200);
    assert_eq!(kept("b.weight"), 80);
}

#[test]
fn of_the_steps_that_name_a_tensor_the_last_wins() {
    let source = folder(&decoder(DType::F32), None);
    let checkpoint = source.open().unwrap();
    let recipe = Recipe::new()
        .step(Step::prune(Magnitude::Unstructured(sparsity(0.5))))
        .step(Step::prune(Magnitude::NofM(NofM::new(1, 4).unwrap())).names(["*.q_proj"]).unwrap())
        .step(Step::quantize(RoundToNearest::int(bits(4))))
        .step(Step::quantize(RoundToNearest::f8_e4m3()).names(["re:.*down", "nothing of this name"]).unwrap())
        .step(Step::quantize(FloatCast::to(Precision::F16)).classes([TensorClass::Embedding]));
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    let planned = planned(&plan);
    let of = |name: &str| (planned[name].0.as_str(), planned[name].1.as_str());
    assert_eq!(of("lm_head.weight"), ("bitmask × int4, channel", "linear: step 1 and 3"));
    assert_eq!(of("model.layers.0.q_proj.weight"), ("1:4 × int4, channel", "linear: step 2 and 3"));
    assert_eq!(of("model.layers.0.down_proj.weight"), ("bitmask × f8 e4m3, channel", "linear: step 1 and 4"));
    assert_eq!(of("model.embed_tokens.weight"), ("f16", "embedding: step 5"));
    assert_eq!(of("model.layers.0.input_layernorm.weight"), ("F32", "norm: no step names it"));
    let (_work, output, _) = run(source.path(), &recipe).unwrap();
    let verification = verify(source.path(), &output, VerifyOptions::default()).unwrap();
    assert_eq!(verification.failures().count(), 0, "{verification:?}");
}

#[test]
fn pruning_takes_the_smallest_layout_and_says_when_that_is_dense() {
    let source = folder(&[weight("x.weight", DType::F32, &[64, 256])], None);
    let checkpoint = source.open().unwrap();
    for (names, layout, dense) in [
        // 16384 codes of 4 bits are 8 KiB dense; kept, 7.2 KiB and 2 KiB of mask
        ("10%+int4", LayoutKind::Dense, true),
        ("0%", LayoutKind::Dense, true),
        ("50%+int4", LayoutKind::Bitmask, false),
        ("10%", LayoutKind::Bitmask, false),
        // 164 values of 16384: 2 bytes of column each are less than a mask of 2 KiB
        ("99%", LayoutKind::CompressedRows, false),
        ("2:4", LayoutKind::NofM(NofM::new(2, 4).unwrap()), false),
        ("1:8+int8", LayoutKind::NofM(NofM::new(1, 8).unwrap()), false),
        // 3 of 4 positions of 2 bits are more than the 4 bits of a mask
        ("3:4", LayoutKind::Bitmask, false),
        ("4:4", LayoutKind::Dense, true),
    ] {
        let recipe = preset(names);
        let plan = Plan::new(&checkpoint, &recipe).unwrap();
        let tensor = &plan.tensors()[0];
        assert_eq!(tensor.form().unwrap().layout(), layout, "{names}");
        let says = tensor.reason().contains("at this sparsity dense zeros take the fewest bytes");
        assert_eq!(says, dense, "{names}: {}", tensor.reason());
        // each layout with its bytes, the fewest first
        let layouts = tensor.layouts();
        assert_eq!(layouts[0], (layout, tensor.form().unwrap().bytes().total()), "{names}");
        assert!(layouts.is_sorted_by_key(|(_, bytes)| *bytes), "{names}: {layouts:?}");
        let is_dense = |of: &&(LayoutKind, u64)| of.0 == LayoutKind::Dense;
        let bits: u64 = names.split_once("+int").map_or(32, |(_, bits)| bits.parse().unwrap());
        let scales = if bits == 4 { 64 * 2 * 4 } else { 64 * 4 * u64::from(bits < 32) };
        assert_eq!(layouts.iter().find(is_dense).unwrap().1, 64 * 256 * bits / 8 + scales, "{names}");
        // none of the others is smaller
        let form = tensor.form().unwrap();
        let (rows, cols) = (form.rows(), form.cols());
        for other in [LayoutKind::Bitmask, LayoutKind::CompressedRows] {
            let kept = if layout == LayoutKind::Dense { None } else { Some(form.kept()) };
            let Some(kept) = kept else { continue };
            let positions = form.layout().position_bytes(rows, cols, kept);
            assert!(positions <= other.position_bytes(rows, cols, kept), "{names}");
        }
        let (_work, output, _) = run(source.path(), &recipe).unwrap();
        assert_eq!(Checkpoint::open(&output).unwrap().file_bytes(), plan.bytes_after(), "{names}");
        let verification = verify(source.path(), &output, VerifyOptions::default()).unwrap();
        assert_eq!(verification.failures().count(), 0, "{names}: {verification:?}");
    }
}

#[test]
fn rows_and_columns_go_whole() {
    let source = folder(&[weight("x.weight", DType::F32, &[20, 30])], None);
    for (axis, kept) in [(Axis::Rows, 15 * 30), (Axis::Cols, 20 * 22)] {
        let recipe = Recipe::new().step(Step::prune(Structured::new(axis, sparsity(0.26))));
        let (_work, output, run) = run(source.path(), &recipe).unwrap();
        // 26 % of 20 are 5 rows, of 30 are 8 columns
        let dense = Checkpoint::open(&output).unwrap().dense("x.weight").unwrap();
        assert_eq!(dense.iter().filter(|x| **x != 0.0).count(), kept);
        assert!(run.layers[0].pruned);
        assert_eq!(
            run.layers[0].methods,
            [if axis == Axis::Rows { "drop 26% of rows" } else { "drop 26% of columns" }]
        );
    }
}

#[test]
fn the_format_decides_what_is_refused() {
    let source = folder(&[weight("conv.weight", DType::F32, &[4, 2, 3, 3])], None);
    let checkpoint = source.open().unwrap();
    let recipe = preset("int8").format(OutputFormat::CompressedTensors);
    let error = Plan::new(&checkpoint, &recipe).unwrap_err();
    let line = one_line(&error);
    assert!(matches!(error, PipelineError::Format { .. }), "{error:?}");
    assert!(line.contains("`conv.weight`") && line.contains("[4, 2, 3, 3]"), "{line}");
    // a sparse one is written all the same, and named
    let recipe = preset("50%+int8").format(OutputFormat::CompressedTensors);
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    let only: Vec<_> = plan.only_tersor_reads().collect();
    assert_eq!(only, [("conv.weight", "it has no bitmask layout".to_owned())]);
    let recipe = preset("int8");
    assert_eq!(Plan::new(&checkpoint, &recipe).unwrap().format(), OutputFormat::Tersor);
}

#[test]
fn a_step_after_its_tensors_were_quantized_is_refused() {
    let source = folder(&decoder(DType::F32), None);
    let checkpoint = source.open().unwrap();
    let recipe = Recipe::new()
        .step(Step::quantize(RoundToNearest::int(bits(8))).names(["lm_head"]).unwrap())
        .step(Step::prune(Magnitude::Unstructured(sparsity(0.5))));
    let line = one_line(&Plan::new(&checkpoint, &recipe).unwrap_err());
    assert!(line.contains("`lm_head.weight`: step 2 prunes what step 1 already quantized"), "{line}");
    // not of a tensor that is ignored
    assert!(Plan::new(&checkpoint, &recipe.ignore("lm_head").unwrap()).is_ok());
}

/// A method from elsewhere that fails at one tensor, or does something else than it announced.
#[derive(Debug)]
struct Faulty {
    fails: bool,
}

impl Method for Faulty {
    fn name(&self) -> String {
        "faulty".into()
    }

    fn coding(&self, before: Coding) -> Coding {
        RoundToNearest::int(bits(4)).coding(before)
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        if self.fails && layer.shape == [128, 256] {
            return Err(MethodError::Option { option: "faultiness", value: 1.0, expected: "0" });
        }
        RoundToNearest::int(bits(if self.fails { 4 } else { 5 })).compress(layer)
    }
}

#[test]
fn a_method_that_fails_or_lies_leaves_nothing() {
    let source = folder(&decoder(DType::F32), None);
    let checkpoint = source.open().unwrap();
    for (fails, parts) in [
        (true, ["`model.layers.0.down_proj.weight`", "faultiness is 1, but must be 0"]),
        (false, ["`model.layers.0.q_proj.weight", "where the plan has"]),
    ] {
        let recipe = Recipe::new().step(Step::quantize(Faulty { fails }));
        let plan = Plan::new(&checkpoint, &recipe).unwrap();
        assert_eq!(plan.tensors()[1].methods(), ["faulty"]);
        let work = Folder::new();
        let error = plan.run(work.path().join("new/out"), &mut |_| ControlFlow::Continue(())).unwrap_err();
        let line = one_line(&error);
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        assert!(is_empty(work.path()), "{line}");
    }
}

/// The bound that `verify` holds an error against follows from the form; a tighter one can be asked for.
#[test]
fn verify_finds_errors_beyond_the_bound() {
    let source = folder(&decoder(DType::F32), None);
    let (_work, int8, _) = run(source.path(), &preset("int8")).unwrap();
    let (_work, int3, _) = run(source.path(), &preset("int3")).unwrap();
    let errors = |output: &Path, max_relative_error| {
        let verification = verify(source.path(), output, VerifyOptions { max_relative_error }).unwrap();
        assert_eq!(verification.checks.len(), 5);
        verification.failures().count()
    };
    assert_eq!((errors(&int8, None), errors(&int3, None)), (0, 0));
    assert_eq!((errors(&int8, Some(0.02)), errors(&int3, Some(0.02))), (0, 2));
    assert_eq!((errors(&int8, Some(0.0)), errors(&int3, Some(f64::INFINITY))), (2, 0));
}

/// Ranges even on both sides of 0 with zero points, and scales too small to be precise, are rounded to nearest like any.
#[test]
fn verify_accepts_what_rounding_to_nearest_gives() {
    let one_sided: Vec<f32> = values(64 * 64, 5).iter().map(|x| x.abs()).collect();
    let asymmetric = |bits_: u8| RoundToNearest::codes(CodeType::Int { bits: bits(bits_), symmetric: false });
    let tiny = |scale: f32| -> Vec<f32> { values(64 * 64, 6).iter().map(|x| x * scale).collect() };
    let mut cases = vec![(DType::F32, one_sided, Step::quantize(asymmetric(8).observer(Observer::AbsMax)))];
    for scale in [1e-3, 1e-4, 3e-5, 1e-5, 1e-6] {
        for step in [
            Step::quantize(RoundToNearest::int(bits(8))),
            Step::quantize(RoundToNearest::int(bits(3))),
            Step::quantize(asymmetric(8)),
            Step::quantize(asymmetric(4)),
            Step::quantize(RoundToNearest::f8_e4m3()),
        ] {
            cases.push((DType::F16, tiny(scale), step));
        }
        cases.push((DType::F32, tiny(scale), Step::quantize(FloatCast::to(Precision::F16))));
    }
    for (dtype, values, step) in cases {
        let tensor = stored("fc.weight", dtype, &[64, 64], floats(dtype, &values));
        let source = folder(&[tensor], None);
        let (_work, output, _) = run(source.path(), &Recipe::new().step(step.clone())).unwrap();
        let verification = verify(source.path(), &output, VerifyOptions::default()).unwrap();
        assert_eq!(verification.failures().count(), 0, "{dtype:?} {step:?} {:?}", verification.checks);
    }
}

/// What `config.json` says must be what the files hold, because other loaders go by it.
#[test]
fn verify_holds_the_configuration_against_the_files() {
    let source = folder(&decoder(DType::F32), Some(&architectures()));
    let (_work, output, _) = run(source.path(), &preset("int8")).unwrap();
    let path = output.join("config.json");
    let written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let failures = |config: &Value| -> Vec<(String, String)> {
        fs::write(&path, config.to_string()).unwrap();
        let verification = verify(source.path(), &output, VerifyOptions::default()).unwrap();
        verification.failures().map(|c| (c.name.clone(), c.failure.clone().unwrap())).collect()
    };
    assert_eq!(failures(&written), []);
    let layers = ["model.layers.0.q_proj.weight", "model.layers.0.down_proj.weight"];
    for (at, value, names, part) in [
        ("/config_groups/group_0/weights/num_bits", json!(4), &layers[..], "another form than int8, channel"),
        ("/config_groups/group_0/weights/symmetric", json!(false), &layers, "another form"),
        ("/config_groups/group_0/weights/strategy", json!("tensor"), &layers, "another form"),
        ("/config_groups/group_0/targets", json!(["model.layers.0.q_proj"]), &layers[1..], "no group"),
        ("/ignore", json!(["lm_head", "model.layers.0.q_proj"]), &layers[..1], "or `ignore` does"),
        ("/ignore", json!([]), &["lm_head.weight"], "add it to `ignore`"),
    ] {
        let mut config = written.clone();
        *config["quantization_config"].pointer_mut(at).unwrap() = value;
        let failures = failures(&config);
        assert_eq!(failures.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), names, "{at}");
        assert!(failures.iter().all(|f| f.1.contains(part)), "{failures:?}");
    }
    let failures = failures(&architectures());
    assert_eq!(failures.len(), 2);
    assert!(failures[0].1.contains("no quantization_config"), "{failures:?}");
}

/// Two runs, one that prunes and one that quantizes, end where one run with both steps ends.
#[test]
fn quantizing_a_pruned_checkpoint_keeps_it_pruned() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/fashion-mlp");
    let (_first, pruned, _) = run(Path::new(source), &preset("2:4")).unwrap();
    let (_second, twice, _) = run(&pruned, &preset("int8")).unwrap();
    let (_third, once, _) = run(Path::new(source), &preset("2:4+int8")).unwrap();
    let (twice, once) = (Checkpoint::open(twice).unwrap(), Checkpoint::open(once).unwrap());
    for name in ["fc1.weight", "fc2.weight", "fc3.weight"] {
        let weight = twice.weight(name).unwrap();
        assert_eq!(weight.form().to_string(), "2:4 × int8, channel");
        assert_eq!(weight, once.weight(name).unwrap());
    }
}

#[test]
fn pruned_weights_take_few_bytes_and_come_back_to_the_bit() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fashion-mlp");
    let prune =
        |what: &str, layout: &str| format!("prune = {{ method = 'magnitude', {what}, layout = '{layout}' }}");
    for (what, coding, most) in [
        ("sparsity = 0.5", "quantize = { type = 'f16' }", 0.57),
        ("pattern = '2:4'", "quantize = { bits = 8 }", 0.66),
        ("sparsity = 0.9", "", 0.16),
    ] {
        let write = |layout: &str| {
            let steps = [prune(what, layout), coding.to_owned()];
            let steps: Vec<String> =
                steps.iter().filter(|s| !s.is_empty()).map(|s| format!("{{ {s} }}")).collect();
            let recipe = Recipe::from_toml(&format!("step = [{}]", steps.join(", "))).unwrap();
            let (work, output, _) = run(&source, &recipe).unwrap();
            (Checkpoint::open(&output).unwrap(), work)
        };
        let ((sparse, _work), (dense, _also)) = (write("smallest"), write("dense"));
        let mut bytes = [0, 0];
        for entry in sparse.entries().iter().filter(|entry| entry.class == TensorClass::Linear) {
            bytes[0] += entry.bytes;
            bytes[1] += dense.entry(&entry.name).unwrap().bytes;
            let values = |of: &Checkpoint| of.dense(&entry.name).unwrap();
            let bits = |values: Vec<f32>| values.into_iter().map(|x| (x + 0.0).to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(values(&sparse)), bits(values(&dense)), "{what}: {}", entry.name);
        }
        let share = bytes[0] as f64 / bytes[1] as f64;
        assert!(share <= most, "{what}: {bytes:?}, {share}");
    }
}
