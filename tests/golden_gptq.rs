//! GPTQ against llmcompressor and the paper's algorithm in f64 (`fixtures/golden/gptq/make.py`).

use std::num::NonZeroUsize;

use ndarray::Array2;
use safetensors::SafeTensors;
use serde_json::Value;
use tersor::{
    Bits, CodeType, DType, Gptq, Granularity, Layer, LayerStats, Method, Needs, Observer, Precision,
};

const GOLDEN: &[u8] = include_bytes!("../fixtures/golden/gptq/gptq.safetensors");

fn floats(golden: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = golden.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), DType::F32, "{name}");
    tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn doubles(golden: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let tensor = golden.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), DType::F64, "{name}");
    tensor.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn method(case: &Value) -> Gptq {
    let bits = Bits::new(case["num_bits"].as_u64().unwrap() as u8).unwrap();
    let group = case["group_size"].as_u64().map(|size| NonZeroUsize::new(size as usize).unwrap());
    Gptq::codes(CodeType::Int { bits, symmetric: case["symmetric"].as_bool().unwrap() })
        .granularity(group.map_or(Granularity::Channel, Granularity::Group))
        .observer(if case["mse"] == true { Observer::Mse } else { Observer::MinMax })
        .act_order(case["act_order"].as_bool().unwrap())
        .static_groups(case["static"].as_bool().unwrap())
}

#[test]
fn every_case_equals_the_reference() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let (_, header) = SafeTensors::read_metadata(GOLDEN).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
    let (weights, inputs) = (floats(&golden, "weight"), golden.tensor("inputs").unwrap());
    let shape = golden.tensor("weight").unwrap().shape().to_vec();
    let (rows, cols) = (shape[0], shape[1]);
    for case in &cases {
        let id = case["id"].as_str().unwrap();
        let dead = case["dead"].as_u64().map(|column| column as usize);
        let mut x = Array2::from_shape_fn((inputs.shape()[0], cols), |(t, c)| {
            f32::from(inputs.data()[t * cols + c] as i8) / 16.0
        });
        if let Some(dead) = dead {
            x.column_mut(dead).fill(0.0);
        }
        let mut stats = LayerStats::new(cols, Needs::Hessian);
        stats.observe(x.view()).unwrap();
        let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &weights, Precision::F32) };
        let compressed = method(case).compress(&layer).unwrap();

        let scales = compressed.weight.scales().unwrap();
        let expected_scales = floats(&golden, &format!("{id}.scale"));
        let groups = expected_scales.len() / rows;
        let size = case["group_size"].as_u64().map_or(cols, |size| size as usize);
        for (ours, theirs) in scales.scales().iter().zip(&expected_scales) {
            // scales of the weights as they stand are found in f32 here, in f64 there
            let off = if case["static"] == true { 0.0 } else { 1e-5 };
            assert!((ours - theirs).abs() <= off * theirs, "{id}: scale {ours}, not {theirs}");
        }
        let zero_points = golden.tensor(&format!("{id}.zero_point")).ok();
        let zero_points: Option<Vec<i8>> = zero_points.map(|z| z.data().iter().map(|b| *b as i8).collect());
        assert_eq!(scales.zero_points(), zero_points.as_deref(), "{id}");

        let expected = golden.tensor(&format!("{id}.codes")).unwrap();
        let decoded = compressed.weight.dequantize();
        let mut wrong = 0;
        for ((row, col), value) in decoded.indexed_iter().filter(|((_, col), _)| Some(*col) != dead) {
            let group = row * groups + col / size;
            let zero = zero_points.as_ref().map_or(0, |z| i32::from(z[group]));
            let code = (value / scales.scales()[group]).round() as i32 + zero;
            wrong += usize::from(code != i32::from(expected.data()[row * cols + col] as i8));
        }
        assert_eq!(wrong, 0, "{id}: codes of {} weights", weights.len());

        let outcome = compressed.outcome.unwrap();
        let [method_error, rounding_error] = doubles(&golden, &format!("{id}.error"))[..] else {
            panic!("{id}")
        };
        for (ours, theirs) in [(outcome.method_error, method_error), (outcome.plain_error, rounding_error)] {
            assert!((ours - theirs).abs() <= 1e-4 * theirs, "{id}: error {ours}, not {theirs}");
        }
        assert!(!outcome.kept_plain && outcome.damping == 0.01 && outcome.notes.is_empty(), "{id}");
        assert_eq!(outcome.dead_channels, usize::from(dead.is_some()), "{id}");
    }
    assert_eq!(cases.len(), 16);
}
