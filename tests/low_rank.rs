//! Factors of low rank: against numpy's decomposition (`fixtures/golden/low_rank/make.py`), in files, products and runs.

mod common;

use std::borrow::Cow;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::Folder;
use ndarray::Array2;
use safetensors::SafeTensors;
use serde_json::Value;
use tersor::{
    Activations, Alternative, Bits, Calibration, Checkpoint, Coding, CompressedWeight, Corrected, CpuLevel,
    Decoder, Epilogue, Execution, FactorType, Factorize, FloatCast, Gptq, Granularity, LanguageModel, Layer,
    LayerStats, LowRank, Method, Needs, NofM, OutputFormat, PackedWeight, Plan, Precision, PresetOptions,
    Rank, Recipe, RoundToNearest, Samples, Sparsity, SparsityPattern, Step, ValueImportance, VerifyOptions,
    Wanda, one_line, stored_tensors, verify,
};

const GOLDEN: &[u8] = include_bytes!("../fixtures/golden/low_rank/low_rank.safetensors");

fn rank(rank: usize) -> NonZeroUsize {
    NonZeroUsize::new(rank).unwrap()
}

fn fixed(r: usize) -> Factorize {
    Factorize::new(Rank::fixed(rank(r)))
}

/// Numbers without a pattern.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut random = common::damage::Random(seed);
    (0..len).map(|_| (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn stats_of(tokens: usize, cols: usize, inputs: impl Fn(usize, usize) -> f32) -> LayerStats {
    let mut stats = LayerStats::new(cols, Needs::Hessian);
    stats.observe(Array2::from_shape_fn((tokens, cols), |(t, c)| inputs(t, c)).view()).unwrap();
    stats
}

fn distance(found: &Array2<f32>, expected: &[f32]) -> f64 {
    found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn approximations_are_those_of_numpy() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let (_, header) = SafeTensors::read_metadata(GOLDEN).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
    for case in &cases {
        let id = case["id"].as_str().unwrap();
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let [rows, cols, tokens, r] = ["rows", "cols", "tokens", "rank"].map(number);
        let data = |name: &str| golden.tensor(&format!("{id}.{name}")).unwrap().data().to_vec();
        let floats = |name: &str| -> Vec<f32> {
            data(name).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let doubles = |name: &str| -> Vec<f64> {
            data(name).as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
        };
        let (values, inputs, errors) = (floats("weight"), data("inputs"), doubles("errors"));
        let stats = stats_of(tokens, cols, |t, c| f32::from(inputs[t * cols + c] as i8) / 16.0);
        let shape = [rows, cols];
        let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &values, Precision::F32) };

        let plain = fixed(r).compress(&layer).unwrap().weight;
        assert_eq!(plain.form().to_string(), format!("rank {r} × f32"));
        let plain = plain.dequantize();
        assert!(distance(&plain, &floats("plain")) < 1e-3 * errors[0], "{id}");
        assert!((distance(&plain, &values) / errors[0] - 1.0).abs() < 1e-5, "{id}");

        let weighted = fixed(r).importance(ValueImportance::Inputs).compress(&layer).unwrap();
        let outcome = weighted.outcome.unwrap();
        assert_eq!(
            (outcome.plain, outcome.damping, outcome.kept_plain),
            (Alternative::Svd, 0.01, false),
            "{id}"
        );
        assert!(outcome.method_error < outcome.plain_error, "{id}");
        let weighted = weighted.weight.dequantize();
        let norm = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!(distance(&weighted, &floats("weighted")) < 2e-4 * norm, "{id}: {weighted}");

        let energies = doubles("energies");
        let coding = Coding::Float(Precision::F32);
        for share in [0.3, 0.8, 0.99] {
            let found = Rank::energy(share).unwrap();
            let found = found.of(shape, coding, coding, || Ok::<_, Infallible>(Cow::Borrowed(&values[..])));
            let (found, all) = (found.unwrap(), energies.iter().sum::<f64>());
            assert!(energies[..found].iter().sum::<f64>() >= share * all, "{id} {share}: {found}");
            assert!(energies[..found - 1].iter().sum::<f64>() < share * all, "{id} {share}: {found}");
        }
    }
}

#[test]
fn every_level_and_number_of_threads_gives_the_same_bytes() {
    let (rows, cols) = (90, 120);
    let values = noise(1, rows * cols);
    let stats = stats_of(150, cols, |t, c| ((t * 31 + c * 17) % 23) as f32 / (1 + c % 5) as f32 - 2.0);
    let shape = [rows, cols];
    let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &values, Precision::F16) };
    let rounding = RoundToNearest::int(Bits::new(3).unwrap());
    let methods: [Box<dyn Method>; 4] = [
        Box::new(fixed(7).importance(ValueImportance::Inputs)),
        Box::new(fixed(60)),
        Box::new(fixed(9).factor_type(FactorType::Int(Bits::new(8).unwrap()))),
        Box::new(Corrected::new(rounding, rank(5)).importance(ValueImportance::Inputs)),
    ];
    let before = CpuLevel::current();
    for method in &methods {
        let mut found = Vec::new();
        for level in CpuLevel::ALL.into_iter().filter(|level| level.set_current().is_ok()) {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let weight = pool.install(|| method.compress(&layer).unwrap().weight);
                let dense = weight.dequantize().mapv(f32::to_bits);
                found.push((format!("{level} with {threads}"), stored_tensors("w", &weight), dense));
            }
        }
        let (_, tensors, dense) = &found[0];
        for (what, others, other) in &found[1..] {
            assert!(others == tensors && other == dense, "{}: {what} threads", method.name());
        }
    }
    before.set_current().unwrap();
}

#[test]
fn products_are_those_of_the_dense_values() {
    let (rows, cols) = (70, 50);
    let values = noise(3, rows * cols);
    let shape = [rows, cols];
    let layer = Layer::new(&shape, &values, Precision::F32);
    let int8 = RoundToNearest::int(Bits::new(8).unwrap());
    let sparse = {
        let stats = stats_of(9, cols, |t, c| (t + c) as f32);
        let layer = Layer { stats: Some(&stats), layout: tersor::LayoutKind::Bitmask, ..layer };
        let half = SparsityPattern::Unstructured(Sparsity::new(0.5).unwrap());
        Wanda::new(half).compress(&layer).unwrap().weight
    };
    let factors = fixed(6).compress(&layer).unwrap().weight.factors().unwrap().clone();
    let weights = [
        fixed(6).compress(&layer).unwrap().weight,
        fixed(6).factor_type(FactorType::Int(Bits::new(4).unwrap())).compress(&layer).unwrap().weight,
        Corrected::new(int8, rank(3)).compress(&layer).unwrap().weight,
        sparse.with_correction(factors).unwrap(),
    ];
    for weight in weights {
        let dense = weight.dequantize();
        let packed = PackedWeight::new(&weight, Activations::Float).unwrap();
        let bias = noise(4, rows);
        for batch in [1, 7, 40] {
            let x = Array2::from_shape_vec((batch, cols), noise(5, batch * cols)).unwrap();
            let expected = x.dot(&dense.t());
            let near = |found: f32, expected: f32| (found - expected).abs() < 2e-4;
            for y in [weight.matmul(x.view()).unwrap(), packed.matmul(x.view()).unwrap()] {
                assert!(y.iter().zip(&expected).all(|(y, e)| near(*y, *e)), "{} {batch}", weight.form());
            }
            let mut y = vec![f32::NAN; batch * rows];
            let epilogue = Epilogue { bias: Some(&bias), relu: true };
            packed.matmul_into(x.as_slice().unwrap(), epilogue, &mut y).unwrap();
            for ((y, e), b) in y.iter().zip(&expected).zip(bias.iter().cycle()) {
                assert!(near(*y, (e + b).max(0.0)), "{} {batch}", weight.form());
            }
        }
    }
    // the codes' product in integers, that of the factors in floats
    let corrected = Corrected::new(int8, rank(3)).compress(&layer).unwrap().weight;
    let how = Activations::Int8(tersor::ActivationCodes::PerToken);
    let x = Array2::from_shape_vec((3, cols), noise(5, 3 * cols)).unwrap();
    let y = PackedWeight::new(&corrected, how).unwrap().matmul(x.view()).unwrap();
    let expected = x.dot(&corrected.dequantize().t());
    assert!(y.iter().zip(&expected).all(|(y, e)| (y - e).abs() < 0.1));
    let error = PackedWeight::new(&fixed(6).compress(&layer).unwrap().weight, how).unwrap_err().to_string();
    assert!(error.contains("rank 6 × f32"), "{error}");
}

#[test]
fn small_and_strange_weights() {
    for shape in [[1, 1], [1, 9], [9, 1], [2, 3]] {
        let values = noise(6, shape[0] * shape[1]);
        let layer = Layer::new(&shape, &values, Precision::F32);
        // a rank beyond what there is gives all of it
        let weight = fixed(100).compress(&layer).unwrap().weight;
        assert_eq!(weight.factors().unwrap().form().rank, shape[0].min(shape[1]));
        assert!(distance(&weight.dequantize(), &values) < 1e-5, "{shape:?}");
        let nothing = vec![0.0; values.len()];
        let layer = Layer { values: &nothing, ..layer };
        assert!(fixed(1).compress(&layer).unwrap().weight.dequantize().iter().all(|x| *x == 0.0));
    }
    for shape in [[0, 4], [4, 0]] {
        let error = fixed(3).compress(&Layer::new(&shape, &[], Precision::F32)).unwrap_err().to_string();
        assert!(error.contains("rank 0"), "{error}");
        let rounding = Corrected::new(RoundToNearest::int(Bits::new(4).unwrap()), rank(3));
        assert!(
            rounding.compress(&Layer::new(&shape, &[], Precision::F32)).unwrap().weight.factors().is_none()
        );
    }
    for wrong in [f32::NAN, f32::INFINITY] {
        let error = fixed(1).compress(&Layer::new(&[1, 3], &[1.0, wrong, 2.0], Precision::F32)).unwrap_err();
        assert!(error.to_string().contains("index 1"), "{error}");
    }
    // factors of what f16 does not hold are refused by number
    let values = [1e10; 6];
    let error = fixed(1).factor_type(FactorType::Float(Precision::F16));
    let error = error.compress(&Layer::new(&[2, 3], &values, Precision::F32)).unwrap_err().to_string();
    assert!(error.contains("65504"), "{error}");
}

#[test]
fn a_hessian_of_low_rank_and_dead_channels_is_enough() {
    let (rows, cols) = (12, 10);
    let values = noise(7, rows * cols);
    // two directions, and three channels that are always zero
    let stats = stats_of(40, cols, |t, c| match c {
        0 | 4 | 9 => 0.0,
        c => (t % 5) as f32 * (c as f32) + if t % 2 == 0 { 1.0 } else { -1.0 },
    });
    let shape = [rows, cols];
    let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &values, Precision::F32) };
    let found = fixed(3).importance(ValueImportance::Inputs).compress(&layer).unwrap();
    let outcome = found.outcome.unwrap();
    assert_eq!((outcome.dead_channels, outcome.kept_plain), (3, false));
    assert!(outcome.method_error < 1e-3 && outcome.plain_error > 0.05, "{outcome:?}");
    let error = fixed(3).importance(ValueImportance::Inputs).compress(&Layer { stats: None, ..layer });
    assert!(error.unwrap_err().to_string().contains("needs samples"));
}

#[test]
fn corrections_make_good_what_rounding_lost() {
    let (rows, cols) = (48, 64);
    let values = noise(8, rows * cols);
    let inputs = noise(9, 300 * cols);
    let stats =
        stats_of(300, cols, |t, c| inputs[t * cols + c] * (1 + c % 9) as f32 + inputs[t * cols] * 3.0);
    let shape = [rows, cols];
    let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &values, Precision::F32) };
    let bits = Bits::new(3).unwrap();
    let bases: [std::sync::Arc<dyn Method>; 2] =
        [std::sync::Arc::new(RoundToNearest::int(bits)), std::sync::Arc::new(Gptq::int(bits))];
    for base in bases {
        let corrected = |importance| {
            let method = Corrected::of(base.clone(), rank(8)).importance(importance);
            let compressed = method.compress(&layer).unwrap();
            let form = method.correction(&shape, Coding::Float(Precision::F32)).unwrap();
            assert_eq!(compressed.weight.form().low_rank(), Some(form));
            assert_eq!(form.coding, Coding::Float(Precision::F16));
            compressed.outcome.unwrap()
        };
        let [plain, weighted] = [ValueImportance::Equal, ValueImportance::Inputs].map(corrected);
        assert_eq!((plain.plain, plain.kept_plain), (Alternative::Uncorrected, false));
        assert!(weighted.method_error < plain.method_error, "{}: {weighted:?} {plain:?}", base.name());
        assert!(weighted.method_error < 0.8 * weighted.plain_error, "{}: {weighted:?}", base.name());
        // without calibration there is nothing to be said, and the values are nearer
        let without = Corrected::new(RoundToNearest::int(bits), rank(8));
        let without = without.compress(&Layer { stats: None, ..layer }).unwrap();
        assert_eq!(without.outcome, None);
        let rounded = RoundToNearest::int(bits).compress(&layer).unwrap().weight.dequantize();
        assert!(distance(&without.weight.dequantize(), &values) < 0.8 * distance(&rounded, &values));
    }
}

#[test]
fn factors_that_do_not_fit_are_refused() {
    let float = |rows: usize, cols: usize| {
        CompressedWeight::from_f32(&[rows, cols], Precision::F32, &vec![0.5; rows * cols]).unwrap()
    };
    let error = LowRank::new(float(4, 2), float(3, 5)).unwrap_err().to_string();
    assert!(error.contains("expected 2, got 3"), "{error}");
    let error = LowRank::new(float(2, 3), float(3, 5)).unwrap_err().to_string();
    assert!(error.contains("rank 3") && error.contains("2 × 5"), "{error}");
    let half = FloatCast::to(Precision::F16).compress(&Layer::new(&[2, 5], &[0.5; 10], Precision::F32));
    assert!(LowRank::new(float(4, 2), half.unwrap().weight).is_err());
    let factors = LowRank::new(float(4, 2), float(2, 5)).unwrap();
    assert!(
        LowRank::new(CompressedWeight::low_rank(&[4, 5], factors.clone()).unwrap(), float(5, 5)).is_err()
    );
    assert!(CompressedWeight::low_rank(&[4, 6], factors.clone()).is_err());
    assert!(float(5, 5).with_correction(factors.clone()).is_err());
    let weight = CompressedWeight::low_rank(&[4, 5], factors.clone()).unwrap();
    assert!(weight.with_correction(factors.clone()).is_err());
    // a convolution is a matrix too
    assert_eq!(CompressedWeight::low_rank(&[4, 1, 5], factors).unwrap().shape(), [4, 1, 5]);
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn preset(name: &str) -> Recipe {
    let group_size = name.contains("int").then(|| rank(8));
    Recipe::preset(name, PresetOptions { group_size, ..PresetOptions::default() }).unwrap()
}

#[test]
fn runs_write_what_the_plan_says_and_networks_read_it() {
    let source = fixture("golden/transformers/llama");
    let checkpoint = Checkpoint::open(&source).unwrap();
    let model = Decoder::open(&checkpoint, Execution::default()).unwrap();
    let vocab = model.vocab_size();
    let samples: Vec<Vec<u32>> =
        (0..12).map(|s| (0..24).map(|t| ((s * 37 + t * t * 7 + 5) % vocab) as u32).collect()).collect();
    let samples = Samples::tokens(samples).unwrap();
    let tokens: Vec<u32> = (0..20).map(|i| i * 3 % 50).collect();
    let original = model.logits(&tokens).unwrap();
    let toml = |text: &str| Recipe::from_toml(text).unwrap();
    let recipes = [
        preset("rank60%"),
        preset("rank60%-weighted"),
        preset("int4+rank2"),
        preset("int4+rank2-weighted"),
        preset("rank3").entropy(true),
        toml("ignore = [\"lm_head\"]\n[[step]]\nlow_rank = { energy = 0.6, dtype = \"int8\" }"),
        toml(
            "ignore = [\"lm_head\"]
[[step]]
quantize = { bits = 3, method = \"gptq\", correction = { rank = 1, dtype = \"bf16\" } }",
        ),
    ];
    let mut distances = Vec::new();
    for recipe in &recipes {
        let plan = Plan::new(&checkpoint, recipe).unwrap();
        assert_eq!(plan.format(), OutputFormat::Tersor);
        let folder = Folder::new();
        let output = folder.path().join("out");
        let mut go = |_: tersor::pipeline::Progress<'_>| ControlFlow::Continue(());
        let run = if plan.needs() > Needs::Nothing {
            plan.run_calibrated(&output, Calibration::new(&samples), &mut go)
        } else {
            plan.run(&output, &mut go)
        };
        let run = run.unwrap();
        let size = std::fs::metadata(output.join("model.safetensors")).unwrap().len();
        assert!(size == plan.bytes_after() || recipe.is_entropy_coded() && size < plan.bytes_after());
        assert!(run.layers.iter().any(|layer| layer.after.contains("rank ")), "{recipe:?}");
        let found = Checkpoint::open(&output).unwrap();
        for entry in found.entries() {
            let planned = plan.tensors().iter().find(|tensor| tensor.name() == entry.name).unwrap();
            let coded = if entry.is_entropy_coded() { ", entropy coded" } else { "" };
            assert_eq!(
                format!("{}{coded}", planned.describe()).to_uppercase(),
                entry.describe().to_uppercase()
            );
            if let Some(layer) = run.layers.iter().find(|layer| layer.name == entry.name) {
                assert_eq!((layer.sparsity, layer.pruned, layer.errors.relative < 1.0), (0.0, false, true));
            }
        }
        let options = VerifyOptions { max_relative_error: Some(1.0) };
        let verified = verify(&source, &output, options).unwrap();
        assert!(verified.checks.iter().all(|check| check.failure.is_none()), "{recipe:?}");
        let model = Decoder::open(&found, Execution::default()).unwrap();
        let difference = &model.logits(&tokens).unwrap() - &original;
        distances.push(difference.mapv(|x| x * x).sum().sqrt());
        // what is a product of factors can become something else
        let again = Plan::new(&found, &recipes[0]);
        let eight = preset("int8");
        let eight = Plan::new(&found, &eight).unwrap().run(folder.path().join("eight"), &mut go).unwrap();
        assert!(eight.layers.iter().all(|layer| layer.after.starts_with("int8")), "{:?}", again.is_ok());
    }
    assert!(distances.iter().all(|d| d.is_finite() && *d > 0.0), "{distances:?}");
}

#[test]
fn plans_say_what_stays_and_what_cannot_be() {
    let checkpoint = Checkpoint::open(fixture("fashion-mlp")).unwrap();
    // 300×784, 100×300 and 10×100: at rank 40 the last has no smaller factors
    let recipe = Recipe::preset("rank40", PresetOptions::default()).unwrap();
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    let of = |name: &str| plan.tensors().iter().find(|t| t.name() == name).unwrap();
    assert_eq!(of("fc1.weight").bytes(), 40 * (300 + 784) * 4 + 16);
    assert_eq!(of("fc1.weight").methods(), ["SVD, rank 40"]);
    let stays = of("fc3.weight");
    assert!(!stays.is_compressed() && stays.reason().contains("rank 10 take 4400 bytes and as it is 4000"));
    let fails = |recipe: &Recipe| one_line(&Plan::new(&checkpoint, recipe).unwrap_err());
    let all = Recipe::new().step(Step::factorize(fixed(10)).names(["fc3"]).unwrap());
    let error = fails(&all);
    assert!(error.contains("fc3.weight") && error.contains("lower rank"), "{error}");
    let recipe = Recipe::preset("rank8", PresetOptions::default()).unwrap();
    let error = fails(&recipe.format(OutputFormat::CompressedTensors));
    assert!(error.contains("factors of low rank") && error.contains("fc1.weight"), "{error}");
    let error = fails(&preset("int8+rank4").format(OutputFormat::CompressedTensors));
    assert!(error.contains("factors of low rank"), "{error}");
    let pruned = Recipe::new()
        .step(Step::prune(tersor::Magnitude::NofM(NofM::new(2, 4).unwrap())))
        .step(Step::factorize(fixed(4)));
    let error = fails(&pruned);
    assert!(error.contains("step 1 prunes") && error.contains("step 2 factorizes"), "{error}");
    // of two steps for a tensor the last wins
    let both = Recipe::new()
        .step(Step::factorize(fixed(4)))
        .step(Step::quantize(RoundToNearest::int(Bits::new(8).unwrap())).names(["fc3"]).unwrap());
    let plan = Plan::new(&checkpoint, &both).unwrap();
    let forms: Vec<String> = plan.tensors().iter().filter_map(|t| Some(t.form()?.to_string())).collect();
    assert_eq!(forms, ["rank 4 × f32", "rank 4 × f32", "int8, channel"]);
    for (name, part) in [
        ("rank0", "above 0"),
        ("rankx", "above 0"),
        ("rank120%", "above 0 and below 1"),
        ("rank4+rank5", "a rank stands alone"),
        ("fp16+rank4", "a rank stands alone"),
        ("int4+rank50%", "such as rank32"),
    ] {
        let error = Recipe::preset(name, PresetOptions::default()).unwrap_err().to_string();
        assert!(error.contains(part), "{name}: {error}");
    }
    for (text, part) in [
        ("low_rank = {}", "needs exactly one of `rank`, `energy` and `bytes`"),
        ("low_rank = { rank = 0 }", "at least 1"),
        ("low_rank = { rank = 3, energy = 0.5 }", "needs exactly one of"),
        ("low_rank = { energy = 1.5 }", "share of energy is 1.5"),
        ("low_rank = { rank = 3, dtype = \"int9\" }", "unknown dtype `int9`"),
        ("low_rank = { rank = 3, importance = \"input\" }", "did you mean `inputs`"),
        ("quantize = { bits = 4, correction = { rnk = 3 } }", "did you mean `rank`"),
        ("quantize = { bits = 4, correction = { dtype = \"f16\" } }", "needs `rank`"),
        ("quantize = { type = \"f16\", correction = { rank = 3 } }", "unknown key `correction`"),
    ] {
        let error = Recipe::from_toml(&format!("[[step]]\n{text}")).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let group = Granularity::Group(rank(100));
    let codes = Corrected::new(RoundToNearest::int(Bits::new(4).unwrap()).granularity(group), rank(4));
    let plan = Recipe::new().step(Step::quantize(codes));
    let plan = Plan::new(&checkpoint, &plan).unwrap();
    let weight = plan.tensors().iter().find(|t| t.name() == "fc1.weight").unwrap();
    assert_eq!(weight.describe(), "int4, group 100 + rank 4 × f16");
    assert_eq!(weight.methods().len(), 1);
    assert!(weight.methods()[0].ends_with(" + rank 4"), "{:?}", weight.methods());
}
