//! Round-to-nearest against what `compressed-tensors` computed (`fixtures/golden/quantize.py`), byte for byte.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tersor::{
    Bits, CodeType, CompressedWeight, DType, Granularity, Layer, Method, MethodError, Precision,
    RoundToNearest, stored_tensors,
};

const GOLDEN: &[u8] = include_bytes!("../fixtures/golden/quantize.safetensors");

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    let halves = |f: fn([u8; 2]) -> f32| tensor.data().as_chunks::<2>().0.iter().map(|b| f(*b)).collect();
    match tensor.dtype() {
        DType::F32 => tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DType::F16 => halves(|b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => halves(|b| bf16::from_le_bytes(b).to_f32()),
        other => panic!("{other:?} is no float type of the fixture"),
    }
}

fn size(value: &Value) -> NonZeroUsize {
    NonZeroUsize::new(value.as_u64().unwrap() as usize).unwrap()
}

fn method(case: &Value) -> RoundToNearest {
    let codes = match case["type"].as_str().unwrap() {
        "int" => CodeType::Int {
            bits: Bits::new(case["num_bits"].as_u64().unwrap() as u8).unwrap(),
            symmetric: case["symmetric"].as_bool().unwrap(),
        },
        _ => CodeType::F8E4M3,
    };
    RoundToNearest::codes(codes).granularity(match case["strategy"].as_str().unwrap() {
        "tensor" => Granularity::Tensor,
        "channel" => Granularity::Channel,
        "group" => Granularity::Group(size(&case["group_size"])),
        _ => Granularity::Block(size(&case["block_structure"][0]), size(&case["block_structure"][1])),
    })
}

/// Element type, shape and bytes by name.
type Tensors = BTreeMap<String, (DType, Vec<usize>, Vec<u8>)>;

/// The tensors that store a case's weight: not its source and result.
fn package_tensors(golden: &SafeTensors<'_>, id: &str) -> Tensors {
    let weight = format!("{id}.weight");
    let tensors = golden.iter().filter(|(name, _)| name.starts_with(&weight));
    tensors.map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn our_tensors(weight: &CompressedWeight, id: &str) -> Tensors {
    let tensors = stored_tensors(&format!("{id}.weight"), weight).into_iter();
    tensors.map(|t| (t.name, (t.dtype, t.shape, t.bytes))).collect()
}

/// `int-quantized` holds one byte per code and zero point, a form that tersor reads and does not write: scales and
/// zero points are compared here, codes through the dequantized values.
fn assert_same_bytewise(weight: &CompressedWeight, ours: &Tensors, id: &str, package: &Tensors) {
    let scale = format!("{id}.weight_scale");
    assert_eq!(ours[&scale], package[&scale], "{id}");
    let zero_points = package.get(&format!("{id}.weight_zero_point"));
    let zero_points = zero_points.map(|(_, _, bytes)| bytes.iter().map(|b| *b as i8).collect::<Vec<_>>());
    assert_eq!(weight.scales().unwrap().zero_points(), zero_points.as_deref(), "{id}");
}

/// Where the package computes NaN or an infinity in f16, tersor refuses; so it must in the other precisions.
#[test]
fn values_that_would_dequantize_to_an_infinity_are_refused() {
    let bf16_max = bf16::MAX.to_f32();
    for (precision, max) in
        [(Precision::F32, f32::MAX), (Precision::Bf16, bf16_max), (Precision::F16, 65504.0)]
    {
        // symmetric int2: the scale is max / 1.5 and the code −2, so that −max becomes −4/3 · max
        let values = [-max, 0.0];
        let layer = Layer::new(&[1, 2], &values, precision);
        let result = RoundToNearest::int(Bits::new(2).unwrap()).compress(&layer);
        assert!(matches!(result, Err(MethodError::Range { .. })), "{precision:?}: {result:?}");
        // a hundredth of it is far from the limit
        let values = [-max / 100.0, 0.0];
        assert!(
            RoundToNearest::int(Bits::new(2).unwrap()).compress(&Layer { values: &values, ..layer }).is_ok()
        );
    }
}

#[test]
fn every_case_equals_the_package() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let (_, header) = SafeTensors::read_metadata(GOLDEN).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
    let (mut packed, mut bytewise, mut refused, mut skipped) = (0, 0, 0, 0);
    for case in &cases {
        if case["type"] == "float" && case["symmetric"] == false {
            skipped += 1; // e4m3 codes with a zero point are not offered
            continue;
        }
        let id = case["id"].as_str().unwrap();
        let tensor = |suffix: &str| golden.tensor(&format!("{id}.{suffix}")).unwrap();
        let source = tensor("source");
        let precision = match source.dtype() {
            DType::F16 => Precision::F16,
            DType::BF16 => Precision::Bf16,
            _ => Precision::F32,
        };
        let values = floats(&source);
        let layer = Layer::new(source.shape(), &values, precision);
        let result = method(case).compress(&layer);
        let dequantized = floats(&tensor("dequantized"));
        if dequantized.iter().chain(&floats(&tensor("weight_scale"))).any(|x| !x.is_finite()) {
            assert!(matches!(result, Err(MethodError::Range { .. })), "{id}: {result:?}");
            refused += 1;
            continue;
        }
        let weight = result.unwrap_or_else(|e| panic!("{id}: {e}")).weight;
        let ours = our_tensors(&weight, id);
        let package = package_tensors(&golden, id);
        if case["format"] == "int-quantized" {
            assert_same_bytewise(&weight, &ours, id, &package);
            bytewise += 1;
        } else {
            assert_eq!(ours, package, "{id}");
            packed += 1;
        }
        // bits, so that the sign of zero counts
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(weight.dequantize().as_slice().unwrap()), bits(&dequantized), "{id}");
    }
    assert_eq!((packed, bytewise, refused, skipped, cases.len()), (78, 10, 4, 7, 99));
}
