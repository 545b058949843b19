//! Layers that lose input channels, against numpy's least squares (`fixtures/golden/structured/make.py`).

use ndarray::Array2;
use safetensors::SafeTensors;
use serde_json::Value;
use tersor::prune::Consumer;
use tersor::{DType, Importance, Layer, LayerStats, Needs, Precision};

const GOLDEN: &[u8] = include_bytes!("../fixtures/golden/structured/structured.safetensors");

fn doubles(golden: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let tensor = golden.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), DType::F64, "{name}");
    tensor.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

#[test]
fn repairs_and_choices_are_those_of_least_squares() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let (_, header) = SafeTensors::read_metadata(GOLDEN).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
    assert_eq!(cases.len(), 5);
    let weight = golden.tensor("weight").unwrap();
    let (shape, inputs) = (weight.shape().to_vec(), golden.tensor("inputs").unwrap());
    let values: Vec<f32> = weight.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let cols = shape[1];
    let x = Array2::from_shape_fn((inputs.shape()[0], cols), |(t, c)| {
        f32::from(inputs.data()[t * cols + c] as i8) / 16.0
    });
    let mut stats = LayerStats::new(cols, Needs::Hessian);
    stats.observe(x.view()).unwrap();
    for case in &cases {
        let id = case["id"].as_str().unwrap();
        let kept: Vec<bool> = serde_json::from_value(case["kept"].clone()).unwrap();
        let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &values, Precision::F32) };
        let mut consumer = Consumer::new(layer, case["width"].as_u64().unwrap() as usize);
        consumer.has_bias = case["bias"].as_bool().unwrap();
        consumer.damping = case["damping"].as_f64().unwrap();

        let count = kept.iter().filter(|kept| **kept).count();
        assert_eq!(Importance::Reconstruction.choose(&consumer, &[], count).unwrap(), kept, "{id}");

        let repaired = consumer.repair(&kept).unwrap();
        let expected = doubles(&golden, &format!("{id}.weight"));
        let left = repaired.weight.dequantize();
        assert_eq!(left.shape(), [shape[0], expected.len() / shape[0]], "{id}");
        for (ours, theirs) in left.iter().zip(&expected) {
            assert!((f64::from(*ours) - theirs).abs() < 2e-5, "{id}: {ours}, not {theirs}");
        }
        match repaired.bias {
            None => assert_eq!(case["bias"], false),
            Some(bias) => {
                for (ours, theirs) in bias.iter().zip(doubles(&golden, &format!("{id}.bias"))) {
                    assert!((f64::from(*ours) - theirs).abs() < 2e-5, "{id}: {ours}, not {theirs}");
                }
            }
        }
        let errors = [repaired.naive_error, repaired.error];
        for (ours, theirs) in errors.iter().zip(doubles(&golden, &format!("{id}.errors"))) {
            assert!((ours - theirs).abs() < 1e-4 * theirs, "{id}: {ours}, not {theirs}");
        }
        assert!(repaired.error < repaired.naive_error, "{id}");
        assert_eq!(repaired.damping, consumer.damping, "{id}");
    }
}
