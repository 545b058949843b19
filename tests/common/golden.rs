//! Numbers that PyTorch computed.
#![allow(dead_code)] // every test target compiles this module and uses some of it

use serde_json::Value;

/// A file in `fixtures/golden`.
pub(crate) fn golden(file: &str) -> Value {
    let path = format!("{}/fixtures/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The numbers of an array, or of arrays of arrays, row by row.
pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

/// The same as f32, in which they must be exact.
pub(crate) fn exact(value: &Value) -> Vec<f32> {
    let exact = |number: f64| {
        assert_eq!(f64::from(number as f32), number, "inputs are exact in f32");
        number as f32
    };
    numbers(value).into_iter().map(exact).collect()
}

/// One of the tensors that the losses' golden cases share: shape and values.
pub(crate) fn input(golden: &Value, name: &str) -> (Vec<usize>, Vec<f32>) {
    let input = &golden["inputs"][name];
    let shape = numbers(&input["shape"]).into_iter().map(|size| size as usize).collect();
    (shape, exact(&input["data"]))
}

pub(crate) fn float(case: &Value, key: &str) -> f32 {
    case[key].as_f64().unwrap() as f32
}

/// The largest deviation of `got` from `want`, relative to the largest entry of `want`.
///
/// The floor of 1e-12 is for tensors that are 0 up to rounding: PyTorch's own numbers then hold the rounding
/// of sums of terms of up to 1e4, about 1e-12.
pub(crate) fn deviation(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0_f64, |max, v| max.max(v.abs()));
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0_f64, |max, d| {
        assert!(d.is_finite());
        max.max(d)
    });
    (worst - 1e-12).max(0.0) / (largest + f64::MIN_POSITIVE)
}
