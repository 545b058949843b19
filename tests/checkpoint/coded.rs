//! Entropy-coded weights: what they hold, how small they are, and what is refused.

use std::ops::ControlFlow;
use std::path::Path;

use serde_json::json;
use tersor::{
    Bits, Checkpoint, CodebookBits, DType, FloatCast, Granularity, KMeans, Layer, LayoutKind, Magnitude,
    Method, NofM, Plan, Precision, Recipe, RoundToNearest, Run, Sparsity, Step, VerifyOptions, coded_tensor,
    stored_tensors, verify,
};

use crate::common::{File, Folder, f32s, safetensors, stored};
use crate::drafts::{Draft, every_form};

fn error_of(draft: &Draft) -> String {
    let file = File::new(draft.bytes());
    let error = Checkpoint::open(&file.path).and_then(|c| c.weight("fc.weight")).unwrap_err();
    tersor::one_line(&error)
}

#[test]
fn every_form_comes_back() {
    for weight in every_form() {
        let file = File::new(Draft::coded(&[("fc.weight", &weight)]).bytes());
        let checkpoint = Checkpoint::open(&file.path).unwrap();
        let entry = &checkpoint.entries()[0];
        assert!(entry.is_entropy_coded());
        assert_eq!(entry.describe(), format!("{}, entropy coded", weight.form()));
        assert_eq!(checkpoint.weight("fc.weight").unwrap(), weight, "{}", weight.form());
    }
}

/// Bell-shaped values.
fn bell(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 0.02).collect()
}

#[test]
fn large_weights_come_within_a_hundredth_of_the_bound() {
    let (rows, cols) = (400, 700);
    let values = bell(rows * cols);
    let shape = [rows, cols];
    let int = |bits| RoundToNearest::int(Bits::new(bits).unwrap());
    let codebook = |bits| KMeans::new(CodebookBits::new(bits).unwrap()).granularity(Granularity::Tensor);
    let methods: [Box<dyn Method>; 5] = [
        Box::new(int(8)),
        Box::new(int(4)),
        Box::new(codebook(4)),
        Box::new(codebook(2)),
        Box::new(FloatCast::to(Precision::Bf16)),
    ];
    let pattern = NofM::new(2, 4).unwrap();
    let prunes = [
        None,
        Some((LayoutKind::Bitmask, Magnitude::Unstructured(Sparsity::new(0.9).unwrap()))),
        Some((LayoutKind::CompressedRows, Magnitude::Unstructured(Sparsity::new(0.98).unwrap()))),
        Some((LayoutKind::NofM(pattern), Magnitude::NofM(pattern))),
    ];
    for method in &methods {
        for prune in prunes {
            let layout = prune.map_or(LayoutKind::Dense, |(layout, _)| layout);
            let layer = Layer { layout, ..Layer::new(&shape, &values, Precision::F32) };
            let mask = prune.map(|(_, magnitude)| magnitude.mask(&layer).unwrap());
            let mut kept = values.clone();
            if let Some(mask) = &mask {
                mask.apply(&mut kept).unwrap();
            }
            let layer = Layer { values: &kept, mask: mask.as_ref(), ..layer };
            let weight = method.compress(&layer).unwrap().weight;
            // Shannon's bound, counted here: of kept codes or bytes of floats, and of kept positions
            let decoded = weight.dequantize();
            let is_kept = |i: usize| mask.as_ref().is_none_or(|mask| mask.keeps(i / cols, i % cols));
            let kept: Vec<f32> =
                decoded.iter().enumerate().filter(|(i, _)| is_kept(*i)).map(|(_, x)| *x).collect();
            let coded = coded_tensor("w", &weight).bytes.len() as f64;
            let plain: usize = stored_tensors("w", &weight).iter().map(|t| t.bytes.len()).sum();
            assert!(coded < plain as f64 * 1.001 + 64.0, "{}: {coded} {plain}", weight.form());
            // a codebook of the whole tensor has as many values as codes
            if weight.codebooks().is_some() {
                let mut counts = std::collections::BTreeMap::new();
                for x in &kept {
                    *counts.entry(x.to_bits()).or_insert(0u32) += 1;
                }
                let bits = |n: f64, all: f64| if n == 0.0 { 0.0 } else { n * (all / n).log2() };
                let codes: f64 = counts.values().map(|n| bits(f64::from(*n), kept.len() as f64)).sum();
                let all = (rows * cols) as f64;
                let positions = match layout {
                    LayoutKind::Dense => 0.0,
                    // six of the sixteen pairs of positions
                    LayoutKind::NofM(_) => all / 4.0 * 6f64.log2(),
                    _ => bits(kept.len() as f64, all) + bits(all - kept.len() as f64, all),
                };
                let bound = (codes + positions) / 8.0;
                assert!(coded < bound * 1.01 + 200.0, "{}: {coded} bytes, bound {bound}", weight.form());
                assert!(coded > bound * 0.97, "{}: {coded} bytes, bound {bound}", weight.form());
            }
        }
    }
}

fn run(source: &Path, recipe: &Recipe, output: &Path) -> (Run, u64) {
    let checkpoint = Checkpoint::open(source).unwrap();
    let plan = Plan::new(&checkpoint, recipe).unwrap();
    let run = plan.run(output, &mut |_| ControlFlow::Continue(())).unwrap();
    (run, plan.bytes_after())
}

#[test]
fn a_coded_output_is_what_a_plain_one_is() {
    let folder = Folder::new();
    let values = bell(96 * 200);
    let tensors = [
        stored("fc1.weight", DType::F32, &[96, 200], f32s(&values)),
        stored("fc1.bias", DType::F32, &[3], f32s(&[0.5, -1.0, 2.0])),
        stored("fc2.weight", DType::F32, &[2, 4], f32s(&values[..8])),
    ];
    folder.put("model.safetensors", safetensors(&tensors, &[].into()));
    let source = folder.path().join("model.safetensors");
    let steps: [fn() -> Step; 3] = [
        || Step::quantize(RoundToNearest::int(Bits::new(4).unwrap())),
        || Step::quantize(KMeans::new(CodebookBits::new(3).unwrap())),
        || Step::prune(Magnitude::Unstructured(Sparsity::new(0.9).unwrap())),
    ];
    for (i, step) in steps.into_iter().enumerate() {
        let [plain, coded, again, restored] =
            ["plain", "coded", "again", "restored"].map(|name| folder.path().join(format!("{name}{i}")));
        let recipe = Recipe::new().step(step());
        let (_, bytes) = run(&source, &recipe, &plain);
        let (done, at_most) = run(&source, &recipe.clone().entropy(true), &coded);
        assert_eq!(at_most, bytes);
        assert!(done.bytes_after < bytes, "{} {bytes}", done.bytes_after);
        let on_disk = std::fs::metadata(coded.join("model.safetensors")).unwrap().len();
        assert_eq!(on_disk, done.bytes_after);
        let row = done.layers.iter().find(|layer| layer.name == "fc1.weight").unwrap();
        let report = row.entropy.as_ref().unwrap();
        assert!(report.coded && report.bytes == row.bytes_after && report.bytes < report.plain_bytes);
        assert!(report.bits_per_weight < 1.1 * report.bound_bits_per_weight + 0.2, "{report:?}");
        // too small to gain anything
        let small = done.layers.iter().find(|layer| layer.name == "fc2.weight").unwrap();
        assert!(!small.entropy.as_ref().unwrap().coded);
        assert_eq!(verify(&source, &coded, VerifyOptions::default()).unwrap().failures().count(), 0);
        let (a, b) = (Checkpoint::open(&plain).unwrap(), Checkpoint::open(&coded).unwrap());
        for entry in a.entries() {
            assert_eq!(a.weight(&entry.name).unwrap(), b.weight(&entry.name).unwrap(), "{}", entry.name);
        }
        // the plain output coded afterwards has the same bytes, and the coded one without coding those of the plain one
        run(&plain, &Recipe::new().entropy(true), &again);
        let file = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
        assert!(file(&again) == file(&coded));
        let kept = Recipe::new().step(
            Step::quantize(FloatCast::to(Precision::F32))
                .names(["fc1.bias"])
                .unwrap()
                .classes(tersor::TensorClass::ALL),
        );
        run(&coded, &kept, &restored);
        assert!(file(&restored) == file(&plain), "step {i}");
    }
}

#[test]
fn compressed_tensors_holds_no_coded_weights() {
    let folder = Folder::new();
    folder.put(
        "model.safetensors",
        safetensors(&[stored("fc.weight", DType::F32, &[2, 2], f32s(&[1.0; 4]))], &[].into()),
    );
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let recipe = Recipe::new().entropy(true).format(tersor::OutputFormat::CompressedTensors);
    let error = Plan::new(&checkpoint, &recipe).unwrap_err().to_string();
    assert!(error.contains("tersor"), "{error}");
}

#[test]
fn what_is_no_coded_weight_is_refused() {
    let weights = every_form();
    let weight = &weights[20];
    let draft = || Draft::coded(&[("fc.weight", weight)]);
    let mut spoiled = draft();
    spoiled.document["weights"]["fc.weight"]["entropy"] = json!("huffman");
    assert!(error_of(&spoiled).contains("unknown entropy coder `huffman`"));
    let mut spoiled = draft();
    spoiled.tensors[0].bytes.push(0);
    spoiled.tensors[0].shape[0] += 1;
    assert!(error_of(&spoiled).contains("1 bytes too many"), "{}", error_of(&spoiled));
    let mut spoiled = draft();
    spoiled.tensors[0].bytes.pop();
    spoiled.tensors[0].shape[0] -= 1;
    assert!(error_of(&spoiled).contains("fc.weight_coded"), "{}", error_of(&spoiled));
    let mut spoiled = draft();
    spoiled.tensors[0].dtype = DType::I8;
    assert!(error_of(&spoiled).contains("U8"), "{}", error_of(&spoiled));
    let mut spoiled = draft();
    spoiled.tensors[0].name = "fc.weight_values".into();
    assert!(error_of(&spoiled).contains("fc.weight_coded"), "{}", error_of(&spoiled));
    // a few bytes claim a terabyte
    let mut spoiled = draft();
    let form = &mut spoiled.document["weights"]["fc.weight"];
    *form = json!({"shape": [1 << 20, 1 << 18], "layout": "dense", "kept": 1u64 << 38, "entropy": "rans",
        "coding": {"type": "int", "bits": 4, "symmetric": true, "strategy": "tensor", "scale_dtype": "F32"}});
    spoiled.tensors[0].bytes = vec![0, 0, 0, 0, 0, 0, 0, 0, 0];
    spoiled.tensors[0].shape = vec![9];
    assert!(error_of(&spoiled).contains("4096"), "{}", error_of(&spoiled));
}
