//! Wanda and SparseGPT against llmcompressor and the paper's algorithm in f64 (`fixtures/golden/pruning/make.py`), and optimal brain
//! compression against its definition (`fixtures/golden/obc/make.py`).

use std::num::NonZeroUsize;

use ndarray::Array2;
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::Value;
use tersor::{
    Alternative, Bits, CodeType, Gptq, Granularity, Layer, LayerStats, LayoutKind, Method, Needs, NofM, Obc,
    Precision, Pruning, SparseGpt, Sparsity, SparsityPattern, Wanda,
};

const GOLDEN: &[u8] = include_bytes!("../fixtures/golden/pruning/pruning.safetensors");
const OBC: &[u8] = include_bytes!("../fixtures/golden/obc/obc.safetensors");

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn doubles(tensor: &TensorView<'_>) -> Vec<f64> {
    tensor.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn pattern(case: &Value) -> SparsityPattern {
    if let Some(sparsity) = case["sparsity"].as_f64() {
        return SparsityPattern::Unstructured(Sparsity::new(sparsity).unwrap());
    }
    let [n, m] = ["keep", "of"].map(|key| case[key].as_u64().unwrap() as usize);
    SparsityPattern::NofM(NofM::new(n, m).unwrap())
}

fn pruning(case: &Value) -> Pruning {
    match case["method"].as_str().unwrap() {
        "wanda" => Wanda::new(pattern(case)).into(),
        _ => SparseGpt::new(pattern(case)).into(),
    }
}

fn gptq(case: &Value) -> Option<Gptq> {
    let bits = Bits::new(case["num_bits"].as_u64()? as u8).unwrap();
    let group = case["group"].as_u64().map(|size| NonZeroUsize::new(size as usize).unwrap());
    let codes = CodeType::Int { bits, symmetric: case["symmetric"].as_bool().unwrap() };
    Some(Gptq::codes(codes).granularity(group.map_or(Granularity::Channel, Granularity::Group)))
}

#[test]
fn every_case_equals_the_reference() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let tensor = |name: &str| golden.tensor(name).unwrap();
    let (_, header) = SafeTensors::read_metadata(GOLDEN).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
    let (weights, inputs) = (floats(&tensor("weight")), tensor("inputs"));
    let shape = tensor("weight").shape().to_vec();
    let (rows, cols) = (shape[0], shape[1]);
    for case in &cases {
        let id = case["id"].as_str().unwrap();
        let of = |what: &str| tensor(&format!("{id}.{what}"));
        let dead = case["dead"].as_u64().map(|column| column as usize);
        let mut x = Array2::from_shape_fn((inputs.shape()[0], cols), |(t, c)| {
            f32::from(inputs.data()[t * cols + c] as i8) / 16.0
        });
        if let Some(dead) = dead {
            x.column_mut(dead).fill(0.0);
        }
        let mut stats = LayerStats::new(cols, Needs::Hessian);
        stats.observe(x.view()).unwrap();
        let layer = Layer {
            stats: Some(&stats),
            layout: LayoutKind::Bitmask,
            ..Layer::new(&shape, &weights, Precision::F32)
        };
        let pruning = pruning(case);
        let joint = gptq(case).map(|gptq| pruning.jointly_with(&gptq).unwrap());
        let method: &dyn Method = joint.as_ref().map_or(pruning.method(), |joint| joint);
        let compressed = method.compress(&layer).unwrap();

        // of a dead channel's weights, all the same to the output, any may be kept
        let is_dead = |i: usize| Some(i % cols) == dead;
        let (mask, kept) = (compressed.weight.mask().unwrap(), of("kept"));
        let differ = |i: &usize| mask.keeps(i / cols, i % cols) != (kept.data()[*i] == 1) && !is_dead(*i);
        assert_eq!((0..rows * cols).filter(differ).count(), 0, "{id}: masks");
        assert_eq!(compressed.weight.form().kept(), pruning.kept(rows, cols), "{id}");

        let decoded = compressed.weight.dequantize();
        if let Some(scales) = compressed.weight.scales() {
            for (ours, theirs) in scales.scales().iter().zip(floats(&of("scale"))) {
                assert!((ours - theirs).abs() <= 1e-5 * theirs, "{id}: scale {ours}, not {theirs}");
            }
            let zero_points = of("zero_point");
            let zero_point = |tile: usize| i32::from(zero_points.data()[tile] as i8);
            if let Some(ours) = scales.zero_points() {
                assert!((0..ours.len()).all(|tile| i32::from(ours[tile]) == zero_point(tile)), "{id}");
            }
            let codes = of("codes");
            for (i, value) in decoded.iter().enumerate().filter(|(i, _)| kept.data()[*i] == 1) {
                let tile = i / cols * (scales.scales().len() / rows)
                    + i % cols / case["group"].as_u64().map_or(cols, |size| size as usize);
                let code = (value / scales.scales()[tile]).round() as i32 + zero_point(tile);
                assert_eq!(code, i32::from(codes.data()[i] as i8), "{id}: code {i}");
            }
        } else if let Ok(values) = golden.tensor(&format!("{id}.values")) {
            for (i, (ours, theirs)) in decoded.iter().zip(floats(&values)).enumerate() {
                assert!((ours - theirs).abs() < 2e-5 || is_dead(i), "{id}: value {i} {ours}, not {theirs}");
            }
        } else {
            let unchanged = decoded.iter().zip(&weights).zip(kept.data());
            assert!(unchanged.clone().all(|((ours, w), kept)| *kept == 0 || ours == w), "{id}");
        }

        let outcome = compressed.outcome.unwrap();
        let [method_error, magnitude_error] = doubles(&of("error"))[..] else { panic!("{id}") };
        assert!((outcome.method_error / method_error - 1.0).abs() < 1e-4, "{id}: {outcome:?} {method_error}");
        if joint.is_none() {
            assert_eq!(outcome.plain, Alternative::Magnitude);
            let ratio = outcome.plain_error / magnitude_error;
            // Wanda's rows each lose a whole number
            assert!((ratio - 1.0).abs() < 1e-4, "{id}: {outcome:?} {magnitude_error}");
        } else {
            assert_eq!(outcome.plain, Alternative::MagnitudeAndRounding);
            assert!(outcome.plain_error > magnitude_error, "{id}: {outcome:?}");
        }
        assert!(!outcome.kept_plain && outcome.notes.is_empty(), "{id}");
        assert_eq!(outcome.dead_channels, usize::from(dead.is_some()), "{id}");
    }
    assert_eq!(cases.len(), 19);
}

#[test]
fn optimal_brain_compression_equals_its_definition_and_is_never_worse_than_a_sweep() {
    let golden = SafeTensors::deserialize(OBC).unwrap();
    let tensor = |name: &str| golden.tensor(name).unwrap();
    let (_, header) = SafeTensors::read_metadata(OBC).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
    let (weights, inputs) = (floats(&tensor("weight")), tensor("inputs"));
    let shape = tensor("weight").shape().to_vec();
    let cols = shape[1];
    let x = inputs.data().iter().map(|x| f32::from(*x as i8) / 16.0).collect();
    let x = Array2::from_shape_vec((inputs.shape()[0], cols), x).unwrap();
    let mut stats = LayerStats::new(cols, Needs::Hessian);
    stats.observe(x.view()).unwrap();
    let layer = Layer {
        stats: Some(&stats),
        layout: LayoutKind::Bitmask,
        ..Layer::new(&shape, &weights, Precision::F32)
    };
    for case in &cases {
        let id = case["id"].as_str().unwrap();
        let compressed = Obc::new(pattern(case)).compress(&layer).unwrap();
        let (mask, kept) = (compressed.weight.mask().unwrap(), tensor(&format!("{id}.kept")));
        let differ = |i: &usize| mask.keeps(i / cols, i % cols) != (kept.data()[*i] == 1);
        assert_eq!((0..weights.len()).filter(differ).count(), 0, "{id}: masks");
        let values = floats(&tensor(&format!("{id}.values")));
        for (i, (ours, theirs)) in compressed.weight.dequantize().iter().zip(values).enumerate() {
            assert!((ours - theirs).abs() < 2e-5, "{id}: value {i} {ours}, not {theirs}");
        }
        let error = doubles(&tensor(&format!("{id}.error")))[0];
        let outcome = compressed.outcome.unwrap();
        assert!((outcome.method_error / error - 1.0).abs() < 1e-4, "{id}: {outcome:?}, not {error}");
        let sweep = SparseGpt::new(pattern(case)).compress(&layer).unwrap().outcome.unwrap();
        assert!(outcome.method_error < sweep.method_error, "{id}: {outcome:?}, {sweep:?}");
    }
    assert_eq!(cases.len(), 6);
}
