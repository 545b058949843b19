//! Networks that lose neurons, heads, channels or blocks.

mod common;
#[path = "common/models.rs"]
mod models;

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::{Folder, f32s, safetensors, stored};
use models::{fixtures, sharded};
use ndarray::Array2;
use serde_json::{Value, json};
use tersor::pipeline::{BlockChoice, Progress, Shrink, ShrinkPlan, Shrunk};
use tersor::{
    BlockInputs, Calibration, Checkpoint, CpuLevel, DType, Decoder, Encoder, Execution, Importance,
    LanguageModel, Network, PipelineError, Plan, PresetOptions, Recipe, Samples, SentenceEncoder, Sequential,
    one_line,
};

const DECODERS: [&str; 6] = ["llama", "llama-bias", "llama-bf16", "qwen2", "qwen2-window", "qwen3"];

fn go(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn golden(case: &str) -> Checkpoint {
    Checkpoint::open(fixtures().join("golden/transformers").join(case)).unwrap()
}

/// Changed values of a checkpoint's tensors, in `f32`.
struct Model {
    tensors: BTreeMap<String, Vec<f32>>,
    shapes: BTreeMap<String, Vec<usize>>,
    config: Option<Value>,
}

impl Model {
    fn of(checkpoint: &Checkpoint) -> Self {
        let entries = || checkpoint.entries().iter();
        Self {
            tensors: entries().map(|e| (e.name.clone(), checkpoint.dense(&e.name).unwrap())).collect(),
            shapes: entries().map(|e| (e.name.clone(), e.shape.clone())).collect(),
            config: checkpoint.config().cloned(),
        }
    }

    /// Sets some rows of every tensor whose name ends so to zero.
    fn clear_rows(&mut self, end: &str, rows: impl Iterator<Item = usize> + Clone) {
        let mut found = 0;
        for (name, values) in self.tensors.iter_mut().filter(|(name, _)| name.ends_with(end)) {
            let width = self.shapes[name].iter().skip(1).product::<usize>();
            for row in rows.clone() {
                values[row * width..(row + 1) * width].fill(0.0);
            }
            found += 1;
        }
        assert!(found > 0, "{end}");
    }

    fn write(&self) -> Folder {
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, values)| stored(name, DType::F32, &self.shapes[name], f32s(values)))
            .collect();
        let folder = Folder::new();
        folder.put("model.safetensors", safetensors(&tensors, &BTreeMap::new()));
        if let Some(config) = &self.config {
            folder.put("config.json", config.to_string());
        }
        folder
    }
}

fn tokens(model: &Checkpoint, sequences: usize, length: usize) -> Vec<Vec<u32>> {
    let vocab = model.config().unwrap()["vocab_size"].as_u64().unwrap() as usize;
    let token = |i: usize| ((i * i * 7 + i * 13 + 5) % vocab) as u32;
    (0..sequences).map(|s| (0..length).map(|t| token(s * length + t)).collect()).collect()
}

fn samples(model: &Checkpoint) -> Samples {
    match model.config().and_then(|config| config["model_type"].as_str()) {
        Some("sequential") => Samples::features(images(80)).unwrap(),
        _ => Samples::tokens(tokens(model, 12, 20)).unwrap(),
    }
}

fn images(count: usize) -> Array2<f32> {
    Array2::from_shape_fn((count, 784), |(i, j)| ((i * 131 + j * 17 + i * j * 3) % 97) as f32 / 97.0)
}

/// What a network gives for some inputs.
fn outputs(folder: &Path) -> Vec<f32> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let all: Array2<f32> = match Network::open(&checkpoint, Execution::default()).unwrap() {
        Network::Sequential(model) => model.forward(images(5).view()).unwrap(),
        Network::Encoder(model) => {
            let sentences = tokens(&checkpoint, 3, 9);
            model.embed(&sentences.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap()
        }
        Network::Decoder(model) => model.logits(&tokens(&checkpoint, 1, 24)[0]).unwrap(),
        other => panic!("{other:?}"),
    };
    all.into_raw_vec_and_offset().0
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (error / a.iter().map(|a| square(*a)).sum::<f64>()).sqrt()
}

fn run(model: &Checkpoint, shrink: Shrink, output: &Path) -> Shrunk {
    let samples = samples(model);
    let plan = ShrinkPlan::new(model, shrink).unwrap();
    let shrunk = plan.run(output, Some(Calibration::new(&samples)), &mut go).unwrap();
    // what was planned is what is there
    assert_eq!(shrunk.bytes_after, plan.bytes_after());
    let files = fs::read_dir(output).unwrap().map(|entry| entry.unwrap().path());
    let weights = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
    assert_eq!(weights.map(|path| fs::metadata(path).unwrap().len()).sum::<u64>(), shrunk.bytes_after);
    shrunk
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

fn amount(text: &str) -> tersor::Amount {
    text.parse().unwrap()
}

/// Every file of a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.strip_prefix(folder).unwrap().to_path_buf(), fs::read(&path).unwrap())).collect()
}

#[test]
fn neurons_that_give_nothing_go_and_nothing_changes() {
    let dead = [3, 7, 8, 20, 31, 39];
    for case in DECODERS {
        let mut model = Model::of(&golden(case));
        model.clear_rows("up_proj.weight", dead.into_iter());
        if model.tensors.keys().any(|name| name.ends_with("up_proj.bias")) {
            model.clear_rows("up_proj.bias", dead.into_iter());
        }
        let folder = model.write();
        let checkpoint = folder.open().unwrap();
        let expected = outputs(folder.path());
        for importance in [Importance::Activation, Importance::Wanda, Importance::Reconstruction] {
            let scratch = Folder::new();
            let output = scratch.path().join("out");
            let shrunk = run(&checkpoint, Shrink::new().neurons(amount("6")).importance(importance), &output);
            for units in &shrunk.units {
                assert_eq!((units.before, units.after), (40, 34));
                assert_eq!(units.removed, dead, "{case} {importance:?}");
                assert_eq!((units.naive_error, units.error), (Some(0.0), Some(0.0)), "{case}");
            }
            assert_eq!(shrunk.units.len(), 2);
            assert!(distance(&expected, &outputs(&output)) < 1e-6, "{case} {importance:?}");
            let smaller = Checkpoint::open(&output).unwrap();
            for entry in smaller.entries() {
                let before = &model.tensors[&entry.name];
                let (rows, cols) =
                    (model.shapes[&entry.name][0], before.len() / model.shapes[&entry.name][0]);
                let (mut kept_rows, mut kept_cols): (Vec<_>, Vec<_>) =
                    ((0..rows).collect(), (0..cols).collect());
                if entry.name.contains("gate_proj") || entry.name.contains("up_proj") {
                    kept_rows.retain(|row| !dead.contains(row));
                }
                if entry.name.ends_with("down_proj.weight") {
                    kept_cols.retain(|col| !dead.contains(col));
                }
                let expected: Vec<f32> = kept_rows
                    .iter()
                    .flat_map(|row| kept_cols.iter().map(move |col| before[row * cols + col]))
                    .collect();
                assert_eq!(smaller.dense(&entry.name).unwrap(), expected, "{case} {}", entry.name);
            }
            let mut expected = model.config.clone().unwrap();
            expected["intermediate_size"] = json!(34);
            assert_eq!(config(&output), expected, "{case}");
        }
    }
}

#[test]
fn heads_that_give_nothing_go_and_nothing_changes() {
    // the second of four, two or two groups
    for (case, head_dim) in [("llama-bias", 8), ("llama", 8), ("qwen2", 8), ("qwen3", 12)] {
        let mut model = Model::of(&golden(case));
        model.clear_rows("v_proj.weight", head_dim..2 * head_dim);
        if model.tensors.keys().any(|name| name.ends_with("v_proj.bias")) {
            model.clear_rows("v_proj.bias", head_dim..2 * head_dim);
        }
        let folder = model.write();
        let checkpoint = folder.open().unwrap();
        let groups = model.config.as_ref().unwrap()["num_key_value_heads"].as_u64().unwrap() as usize;
        let shrink = Shrink::new().heads(amount("1"));
        if case == "llama-bias" {
            let refused = ShrinkPlan::new(&checkpoint, shrink).unwrap_err();
            let line = one_line(&refused);
            assert!(line.contains("3 attention heads") && line.contains("leave out 3 or 2"), "{line}");
            // two more that give nothing
            model.clear_rows("v_proj.weight", 2 * head_dim..3 * head_dim);
            model.clear_rows("v_proj.bias", 2 * head_dim..3 * head_dim);
        }
        let folder = model.write();
        let checkpoint = folder.open().unwrap();
        let gone = if case == "llama-bias" { 2 } else { 1 };
        let output = Folder::new();
        let out = output.path().join("out");
        let shrunk = run(&checkpoint, Shrink::new().heads(amount(&gone.to_string())), &out);
        for units in &shrunk.units {
            assert_eq!((units.before, units.after), (groups, groups - gone), "{case}");
            assert_eq!(units.removed, (1..=gone).collect::<Vec<_>>(), "{case}");
        }
        assert!(distance(&outputs(folder.path()), &outputs(&out)) < 1e-6, "{case}");
        let mut expected = model.config.clone().unwrap();
        expected["num_attention_heads"] = json!(4 / groups * (groups - gone));
        expected["num_key_value_heads"] = json!(groups - gone);
        expected["head_dim"] = json!(head_dim);
        assert_eq!(config(&out), expected, "{case}");
    }
}

#[test]
fn blocks_that_do_nothing_go_and_nothing_changes() {
    for case in ["llama", "llama-bias", "qwen2-window", "qwen3"] {
        for block in 0..2 {
            let mut model = Model::of(&golden(case));
            for part in ["self_attn.o_proj", "mlp.down_proj"] {
                for (name, values) in &mut model.tensors {
                    if name.contains(&format!("layers.{block}.{part}")) {
                        values.fill(0.0);
                    }
                }
            }
            let folder = model.write();
            let checkpoint = folder.open().unwrap();
            for choice in [BlockChoice::Influence, BlockChoice::Distance] {
                let output = Folder::new();
                let out = output.path().join("out");
                let shrunk = run(&checkpoint, Shrink::new().blocks(amount("1"), choice), &out);
                let scores: Vec<_> =
                    shrunk.blocks.iter().map(|b| (b.score.unwrap() < 1e-6, b.removed)).collect();
                assert_eq!(
                    scores,
                    [(block == 0, block == 0), (block == 1, block == 1)],
                    "{case} {:?}",
                    shrunk.blocks
                );
                // the same computation, and so the same bits
                assert_eq!(outputs(folder.path()), outputs(&out), "{case} {choice:?}");
                let (before, after) = (checkpoint.config().unwrap(), config(&out));
                assert_eq!(after["num_hidden_layers"], 1);
                if let Some(types) = before["layer_types"].as_array() {
                    assert_eq!(after["layer_types"], json!([types[1 - block]]), "{case}");
                }
            }
        }
    }
}

#[test]
fn an_encoder_loses_neurons_and_blocks() {
    let mut model = Model::of(&golden("bert"));
    let dead = [0, 11, 47];
    // GELU of zero is zero
    model.clear_rows("intermediate.dense.weight", dead.into_iter());
    model.clear_rows("intermediate.dense.bias", dead.into_iter());
    let folder = model.write();
    let checkpoint = folder.open().unwrap();
    let output = Folder::new();
    let out = output.path().join("out");
    let shrunk = run(&checkpoint, Shrink::new().neurons(amount("3")).importance(Importance::Wanda), &out);
    assert!(shrunk.units.iter().all(|units| units.removed == dead), "{:?}", shrunk.units);
    assert!(distance(&outputs(folder.path()), &outputs(&out)) < 1e-6);
    assert_eq!(config(&out)["intermediate_size"], 45);
    let out = output.path().join("blocks");
    run(
        &checkpoint,
        Shrink::new().neurons(amount("40%")).blocks(amount("50%"), BlockChoice::Influence),
        &out,
    );
    let smaller = Checkpoint::open(&out).unwrap();
    let encoder = Encoder::open(&smaller, Execution::default()).unwrap();
    assert_eq!(encoder.blocks(), 1);
    // 48 is a multiple of 16, and so is what stays
    assert_eq!(smaller.entry("encoder.layer.0.output.dense.weight").unwrap().shape, [32, 32]);
    assert!(outputs(&out).iter().all(|x| x.is_finite()));
}

/// Units that are left out are units that give zero.
#[test]
fn networks_of_layers_lose_neurons_and_channels() {
    let checkpoint = Checkpoint::open(fixtures().join("fashion-lenet")).unwrap();
    let output = Folder::new();
    let out = output.path().join("out");
    let shrink = Shrink::new().neurons(amount("200")).channels(amount("40%")).multiple(NonZeroUsize::MIN);
    let shrunk = run(&checkpoint, shrink.importance(Importance::Magnitude).repair(false), &out);
    let mut model = Model::of(&checkpoint);
    let before: Vec<usize> =
        ["conv1", "conv2", "fc1"].map(|l| model.shapes[&format!("{l}.weight")][0]).into();
    let units = shrunk.units.iter().zip(["conv1", "conv2", "fc1"]);
    for (units, maker) in units {
        model.clear_rows(&format!("{maker}.weight"), units.removed.iter().copied());
        model.clear_rows(&format!("{maker}.bias"), units.removed.iter().copied());
    }
    let zeroed = outputs(model.write().path());
    assert!(distance(&zeroed, &outputs(checkpoint.path())) > 0.01);
    assert!(distance(&zeroed, &outputs(&out)) < 1e-6);
    let kinds: Vec<_> = shrunk.units.iter().map(|u| (u.layer.as_str(), u.kind.as_str(), u.before)).collect();
    let expected = [("conv2", "channels"), ("fc1", "channels"), ("fc2", "neurons")];
    assert!(kinds.iter().zip(expected).zip(&before).all(|((k, e), b)| *k == (e.0, e.1, *b)), "{kinds:?}");
    assert_eq!(kinds.len(), 3);
    assert_eq!(config(&out), *checkpoint.config().unwrap());
    // fitted anew, the same units are missed less
    let repaired = output.path().join("repaired");
    run(&checkpoint, shrink.importance(Importance::Magnitude), &repaired);
    let original = outputs(checkpoint.path());
    assert!(distance(&original, &outputs(&repaired)) < distance(&original, &outputs(&out)));
}

#[test]
fn a_chain_without_a_description_gets_one() {
    let model =
        Model { config: None, ..Model::of(&Checkpoint::open(fixtures().join("fashion-mlp")).unwrap()) };
    let folder = model.write();
    let checkpoint = folder.open().unwrap();
    let output = Folder::new();
    let out = output.path().join("out");
    let shrink = Shrink::new().neurons(amount("50%")).importance(Importance::Magnitude).repair(false);
    let plan = ShrinkPlan::new(&checkpoint, shrink).unwrap();
    let shrunk = plan.run(&out, None, &mut go).unwrap();
    assert!(shrunk.units.iter().all(|u| u.error.is_none()), "{:?}", shrunk.units);
    // 300 and 100 are multiples of 4
    assert_eq!(shrunk.units.iter().map(|u| u.after).collect::<Vec<_>>(), [152, 52]);
    assert_eq!(config(&out)["model_type"], "sequential");
    assert_eq!(Sequential::open(&Checkpoint::open(&out).unwrap()).unwrap().input_features(), 784);
}

#[test]
fn the_smallest_norms_go_by_magnitude() {
    let checkpoint = golden("llama");
    let output = Folder::new();
    let out = output.path().join("out");
    let shrink = Shrink::new().neurons(amount("10")).importance(Importance::Magnitude).repair(false);
    let plan = ShrinkPlan::new(&checkpoint, shrink).unwrap();
    let shrunk = plan.run(&out, None, &mut go).unwrap();
    for (block, units) in shrunk.units.iter().enumerate() {
        let dense =
            |part: &str| checkpoint.dense(&format!("model.layers.{block}.mlp.{part}.weight")).unwrap();
        let (gate, up, down) = (dense("gate_proj"), dense("up_proj"), dense("down_proj"));
        let square = |x: &f32| f64::from(*x) * f64::from(*x);
        let norm = |n: usize| -> f64 {
            let rows = [&gate, &up].into_iter().flat_map(|w| &w[n * 32..(n + 1) * 32]);
            rows.chain(down.iter().skip(n).step_by(40)).map(square).sum()
        };
        let mut order: Vec<usize> = (0..40).collect();
        order.sort_by(|a, b| norm(*a).total_cmp(&norm(*b)));
        let mut smallest = order[..10].to_vec();
        smallest.sort_unstable();
        assert_eq!(units.removed, smallest, "block {block}");
    }
}

#[test]
fn repair_serves_the_outputs() {
    for (case, share) in [
        ("golden/transformers/llama", "25%"),
        ("golden/transformers/llama-bias", "25%"),
        ("golden/transformers/qwen3", "25%"),
        ("golden/transformers/bert", "25%"),
        // of whose neurons many never give anything
        ("fashion-mlp", "80%"),
    ] {
        let path = fixtures().join(case);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let original = outputs(&path);
        let output = Folder::new();
        let of = |repair: bool| {
            let out = output.path().join(format!("{repair}"));
            let shrink = Shrink::new().neurons(amount(share)).importance(Importance::Wanda).repair(repair);
            let shrink = shrink.multiple(NonZeroUsize::MIN);
            let shrunk = run(&checkpoint, shrink, &out);
            for units in shrunk.units.iter().filter(|_| repair) {
                assert!(units.error < units.naive_error, "{case}: {units:?}");
            }
            distance(&original, &outputs(&out))
        };
        let (naive, repaired) = (of(false), of(true));
        assert!(repaired < naive, "{case}: {repaired}, left out {naive}");
    }
}

#[test]
fn bytes_depend_on_neither_threads_nor_instructions() {
    let output = Folder::new();
    for (case, shrink) in [
        (
            "golden/transformers/llama",
            Shrink::new().neurons(amount("30%")).heads(amount("1")).importance(Importance::Reconstruction),
        ),
        (
            "golden/transformers/bert",
            Shrink::new().neurons(amount("15")).blocks(amount("1"), BlockChoice::Influence),
        ),
        (
            "fashion-lenet",
            Shrink::new().channels(amount("25%")).neurons(amount("25%")).importance(Importance::Wanda),
        ),
    ] {
        let checkpoint = Checkpoint::open(fixtures().join(case)).unwrap();
        let mut first = None;
        for threads in [1, 2] {
            for level in CpuLevel::ALL.into_iter().filter(|level| *level <= CpuLevel::detected()) {
                let before = CpuLevel::current();
                level.set_current().unwrap();
                let out = output.path().join("out");
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| run(&checkpoint, shrink, &out));
                before.set_current().unwrap();
                let mut written = files(&out);
                // scores of blocks are sums over hidden states
                written.remove(Path::new("tersor.json"));
                assert!(
                    first.get_or_insert_with(|| written.clone()) == &written,
                    "{case}: {threads} threads, {level}"
                );
                fs::remove_dir_all(&out).unwrap();
            }
        }
    }
}

#[test]
fn later_blocks_see_what_the_smaller_ones_give() {
    let checkpoint = golden("llama");
    let samples = samples(&checkpoint);
    let output = Folder::new();
    let run = |name: &str, calibration: Calibration<'_>| {
        let plan =
            ShrinkPlan::new(&checkpoint, Shrink::new().neurons(amount("8")).heads(amount("1"))).unwrap();
        plan.run(output.path().join(name), Some(calibration), &mut go).unwrap().units
    };
    let smaller = run("smaller", Calibration::new(&samples));
    let dense = run("dense", Calibration::new(&samples).inputs(BlockInputs::Dense));
    // the heads of the first block come before anything is left out
    let same: Vec<bool> = smaller.iter().zip(&dense).map(|(a, b)| a == b).collect();
    assert_eq!(same, [true, false, false, false]);
    // kept statistics are those of dense inputs, and are the same when they come from the disk
    let folder = output.path().join("statistics");
    for name in ["writes", "reads"] {
        assert_eq!(run(name, Calibration::new(&samples).statistics(&folder)), dense, "{name}");
    }
    assert_eq!(files(&output.path().join("reads")), files(&output.path().join("dense")));
    // and serve what compresses
    let recipe = Recipe::preset("int8", PresetOptions::default()).unwrap();
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    let calibration = Calibration::new(&samples).statistics(&folder);
    plan.run_calibrated(output.path().join("compressed"), calibration, &mut go).unwrap();
}

#[test]
fn shards_stay_and_companions_come_along() {
    let checkpoint = golden("llama");
    let tensors: Vec<_> = checkpoint
        .entries()
        .iter()
        .map(|e| stored(&e.name, DType::F32, &e.shape, f32s(&checkpoint.dense(&e.name).unwrap())))
        .collect();
    let folder = sharded(&tensors, checkpoint.config());
    folder.put("generation_config.json", "{\"temperature\": 0.5}");
    folder.put("model.onnx", "weights of another format");
    let source = folder.open().unwrap();
    let output = Folder::new();
    let out = output.path().join("out");
    let shrink = Shrink::new().neurons(amount("8")).blocks(amount("1"), BlockChoice::Distance);
    let shrunk = run(&source, shrink, &out);
    assert_eq!(fs::read(out.join("generation_config.json")).unwrap(), b"{\"temperature\": 0.5}");
    assert_eq!(shrunk.left_behind, [PathBuf::from("model.onnx")]);
    let smaller = Checkpoint::open(&out).unwrap();
    assert!(smaller.entries().iter().all(|e| !e.name.contains("layers.1.")));
    assert_eq!(Decoder::open(&smaller, Execution::default()).unwrap().blocks(), 1);
    // it can be compressed further
    let recipe = Recipe::preset("int8", PresetOptions::default()).unwrap();
    Plan::new(&smaller, &recipe).unwrap().run(output.path().join("int8"), &mut go).unwrap();
    let int8 = Checkpoint::open(output.path().join("int8")).unwrap();
    let refused = one_line(&ShrinkPlan::new(&int8, shrink).unwrap_err());
    assert!(refused.contains("int8") && refused.contains("start from the original model"), "{refused}");
}

#[test]
fn what_cannot_be_left_out_is_refused_with_a_reason() {
    let llama = golden("llama");
    let refused = |checkpoint: &Checkpoint, shrink: Shrink, parts: &[&str]| {
        let line = one_line(&ShrinkPlan::new(checkpoint, shrink).unwrap_err());
        for part in parts {
            assert!(line.contains(part), "no `{part}` in: {line}");
        }
    };
    let new = Shrink::new;
    refused(&llama, new(), &["nothing is to be left out"]);
    refused(&llama, new().neurons(amount("40")), &["40 of the 40 neurons", "at least one must stay"]);
    refused(&llama, new().neurons(amount("1%")), &["none"]);
    refused(&llama, new().channels(amount("1")), &["no channels"]);
    refused(
        &llama,
        new().blocks(amount("2"), BlockChoice::Influence),
        &["2 of 2 blocks", "at least one must stay"],
    );
    refused(&golden("bert"), new().heads(amount("1")), &["heads cannot be left out", "num_attention_heads"]);
    let lenet = Checkpoint::open(fixtures().join("fashion-lenet")).unwrap();
    refused(&lenet, new().blocks(amount("1"), BlockChoice::Influence), &["blocks cannot be left out"]);
    refused(&lenet, new().heads(amount("1")), &["heads cannot be left out"]);

    // another architecture
    let mut model = Model::of(&llama);
    model.config.as_mut().unwrap()["model_type"] = json!("gpt_neox");
    let folder = model.write();
    refused(&folder.open().unwrap(), new().neurons(amount("8")), &["gpt_neox"]);
    // a tensor of which it is not known what it depends on
    let mut model = Model::of(&llama);
    let name = "model.layers.1.mlp.down_proj.lora_A.weight";
    model.tensors.insert(name.into(), vec![0.5; 80]);
    model.shapes.insert(name.into(), vec![2, 40]);
    let folder = model.write();
    refused(&folder.open().unwrap(), new().neurons(amount("8")), &[name, "not known"]);
    // a layer that stands in two places
    let mut model = Model::of(&Checkpoint::open(fixtures().join("fashion-mlp")).unwrap());
    let layers = model.config.as_mut().unwrap()["layers"].as_array_mut().unwrap();
    let first = layers.iter().position(|layer| layer["type"] == "linear").unwrap();
    let (again, name) = (layers[first].clone(), layers[first]["name"].as_str().unwrap().to_owned());
    layers.push(again);
    model.shapes.insert(format!("{name}.weight"), vec![784, 784]);
    let folder = model.write();
    assert!(
        folder.open().is_err()
            || ShrinkPlan::new(&folder.open().unwrap(), new().neurons(amount("8"))).is_err()
    );
}

#[test]
fn runs_without_what_they_need_leave_nothing_behind() {
    let checkpoint = golden("llama");
    let output = Folder::new();
    let out = output.path().join("out");
    let plan = ShrinkPlan::new(&checkpoint, Shrink::new().neurons(amount("8"))).unwrap();
    let line = one_line(&plan.run(&out, None, &mut go).unwrap_err());
    assert!(
        line.contains("calibration samples are needed to repair") && line.contains("magnitude"),
        "{line}"
    );
    let few = Samples::tokens(vec![vec![1, 2]]).unwrap();
    let strict = plan.run(&out, Some(Calibration::new(&few).strict(true)), &mut go).unwrap_err();
    assert!(matches!(strict, PipelineError::Strict { .. }), "{strict:?}");
    let mut stop = |_: Progress<'_>| ControlFlow::Break(());
    let stopped = plan.run(&out, Some(Calibration::new(&few)), &mut stop);
    assert!(matches!(stopped, Err(PipelineError::Stopped)));
    let images = Samples::features(images(2)).unwrap();
    assert!(plan.run(&out, Some(Calibration::new(&images)), &mut go).is_err());
    assert_eq!(fs::read_dir(output.path()).unwrap().count(), 0);
    let noted = plan.run(&out, Some(Calibration::new(&few)), &mut go).unwrap();
    assert!(
        noted.units.iter().all(|units| units.notes[0].contains("2 tokens say little")),
        "{:?}",
        noted.units
    );
    assert!(plan.run(&out, Some(Calibration::new(&few)), &mut go).is_err(), "it exists");

    // a weight that is not finite
    let mut model = Model::of(&checkpoint);
    model.tensors.get_mut("model.layers.0.mlp.down_proj.weight").unwrap()[3] = f32::NAN;
    let folder = model.write();
    let broken = folder.open().unwrap();
    let shrink = Shrink::new().neurons(amount("8")).importance(Importance::Magnitude).repair(false);
    let refused = ShrinkPlan::new(&broken, shrink).unwrap().run(output.path().join("nan"), None, &mut go);
    let line = one_line(&refused.unwrap_err());
    assert!(line.contains("down_proj.weight") && line.contains("NaN"), "{line}");
}
