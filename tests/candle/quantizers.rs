//! Fake quantization: PyTorch's straight-through gradients, LSQ's, and that what is trained is what is stored.

use std::num::NonZeroUsize;

use candle_core::{DType, Device, ModuleT, Tensor, Var};
use serde_json::Value;
use tersor::candle::{FakeQuantize, FakeQuantizeInput, LearnedScale, compress, tensor_of};
use tersor::{Bits, CodeType, Granularity, Layer, Method, Observer, Precision, RoundToNearest, one_line};

use crate::golden::{deviation, exact, golden, numbers};
use crate::{grid, values};

fn matrix(value: &Value) -> Tensor {
    let rows = value.as_array().unwrap().len();
    let values: Vec<f32> = exact(value);
    let cols = values.len() / rows;
    Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
}

fn bits(case: &Value) -> Bits {
    Bits::new(case["bits"].as_u64().unwrap() as u8).unwrap()
}

fn granularity(case: &Value) -> Granularity {
    if case["granularity"] == "tensor" { Granularity::Tensor } else { Granularity::Channel }
}

fn off(tensor: &Tensor, expected: &Value) -> f64 {
    let got: Vec<f64> = values(tensor).into_iter().map(f64::from).collect();
    deviation(&got, &numbers(expected))
}

#[test]
fn straight_through_gradients_are_those_of_pytorch() {
    let golden = golden("candle/golden.json");
    let cases = golden["straight_through"].as_array().unwrap();
    assert_eq!(cases.len(), 16);
    for case in cases {
        let codes = CodeType::Int { bits: bits(case), symmetric: case["symmetric"].as_bool().unwrap() };
        let quantizer = FakeQuantize::new(RoundToNearest::codes(codes).granularity(granularity(case)));
        let weight = Var::from_tensor(&matrix(&case["weight"])).unwrap();
        let rounded = quantizer.forward(&weight).unwrap();
        let grads = (&rounded * matrix(&case["outer"])).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(off(&rounded, &case["value"]) < 1e-6, "{case}: {rounded}");
        assert_eq!(off(grads.get(&weight).unwrap(), &case["grad"]), 0.0, "{case}");
    }
}

#[test]
fn learned_scales_have_the_values_and_gradients_of_the_paper() {
    let golden = golden("candle/golden.json");
    let cases = golden["lsq"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let weight = Var::from_tensor(&matrix(&case["weight"])).unwrap();
        let quantizer = LearnedScale::new(bits(case), granularity(case), &weight).unwrap();
        assert!(off(quantizer.scale(), &case["initial"]) < 1e-6, "{case}");
        quantizer.scale().set(&matrix(&case["scale"])).unwrap();
        let rounded = quantizer.forward(&weight).unwrap();
        let grads = (&rounded * matrix(&case["outer"])).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(off(&rounded, &case["value"]) < 1e-6, "{case}: {rounded}");
        assert!(off(grads.get(&weight).unwrap(), &case["grad"]) < 1e-6, "{case}");
        assert!(off(grads.get(quantizer.scale()).unwrap(), &case["scale_grad"]) < 1e-6, "{case}");
    }
}

/// Between two jumps the output is linear in the scale, so that away from them the slope is code · scale's change: the gradient
/// of the definition is that slope minus what straight-through adds, `w/s`.
#[test]
fn the_gradient_of_a_scale_is_the_slope_less_the_ratio() {
    let weight = Var::from_tensor(&grid(&[1, 16], 3)).unwrap();
    let quantizer = LearnedScale::new(Bits::new(3).unwrap(), Granularity::Tensor, &weight).unwrap();
    let scale = values(quantizer.scale())[0];
    let grads = quantizer.forward(&weight).unwrap().sum_all().unwrap().backward().unwrap();
    let step = scale * 2e-4;
    let total = |scale: f32| -> f64 {
        quantizer.scale().set(&Tensor::new(&[[scale]], &Device::Cpu).unwrap()).unwrap();
        values(&quantizer.forward(&weight).unwrap()).into_iter().map(f64::from).sum()
    };
    let slope = (total(scale + step) - total(scale - step)) / (2.0 * f64::from(step));
    let ratios = values(&weight).into_iter().map(|w| f64::from(w / scale)).filter(|r| *r > -4.0 && *r < 3.0);
    let expected = (slope - ratios.sum::<f64>()) / (16.0f64 * 3.0).sqrt();
    let got = f64::from(values(grads.get(quantizer.scale()).unwrap())[0]);
    assert!((got - expected).abs() < 2e-3, "{got} {expected}");
}

#[test]
fn what_is_trained_is_what_is_stored() {
    let group = Granularity::Group(NonZeroUsize::new(5).unwrap());
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let precision = match dtype {
            DType::F16 => Precision::F16,
            DType::BF16 => Precision::Bf16,
            _ => Precision::F32,
        };
        let weight = grid(&[6, 2, 6], 9).affine(0.83, 0.11).unwrap().to_dtype(dtype).unwrap();
        let wide = values(&weight.to_dtype(DType::F32).unwrap());
        let layer = Layer::new(&[6, 2, 6], &wide, precision);
        for granularity in [Granularity::Tensor, Granularity::Channel, group] {
            for bits in [2, 3, 4, 8].map(|bits| Bits::new(bits).unwrap()) {
                for symmetric in [true, false] {
                    for observer in [Observer::MinMax, Observer::Mse] {
                        let codes = CodeType::Int { bits, symmetric };
                        let method = RoundToNearest::codes(codes).granularity(granularity).observer(observer);
                        let stored = method.compress(&layer).unwrap().weight;
                        let trained = FakeQuantize::new(method).forward(&weight).unwrap();
                        assert_eq!((trained.dtype(), trained.dims()), (dtype, weight.dims()));
                        let trained = values(&trained.to_dtype(DType::F32).unwrap());
                        assert_eq!(trained, stored.dequantize().into_raw_vec_and_offset().0);
                        assert_eq!(FakeQuantize::new(method).compress(&weight).unwrap(), stored);
                    }
                }
                let learned = LearnedScale::new(bits, granularity, &weight).unwrap();
                let stored = learned.compress(&weight).unwrap();
                let trained = learned.forward(&weight).unwrap();
                assert_eq!(
                    values(&trained.to_dtype(DType::F32).unwrap()),
                    stored.dequantize().into_raw_vec_and_offset().0
                );
                assert_eq!(stored.form().grid(), Some(granularity.grid(6, 12)));
            }
        }
    }
}

/// What `RoundToNearest` stores for the scales that it finds, LSQ stores when it has learned the same.
#[test]
fn a_learned_scale_stores_what_rounding_does_under_the_same_scale() {
    let weight = grid(&[5, 12], 2);
    for bits in [2, 4, 8].map(|bits| Bits::new(bits).unwrap()) {
        let nearest = compress(&weight, &RoundToNearest::int(bits)).unwrap();
        let learned = LearnedScale::new(bits, Granularity::Channel, &weight).unwrap();
        let scales = nearest.scales().unwrap().scales().to_vec();
        learned.scale().set(&Tensor::from_vec(scales, (5, 1), &Device::Cpu).unwrap()).unwrap();
        assert_eq!(learned.compress(&weight).unwrap(), nearest);
    }
}

/// Gradient descent on scale and weight finds a better scale than the first, on a weight with an outlier.
#[test]
fn learning_improves_the_scale() {
    let mut numbers = values(&grid(&[1, 64], 8));
    numbers[5] = 30.0;
    let weight = Tensor::from_vec(numbers, (1, 64), &Device::Cpu).unwrap();
    let quantizer = LearnedScale::new(Bits::new(3).unwrap(), Granularity::Tensor, &weight).unwrap();
    quantizer.scale().set(&Tensor::new(&[[8.0f32]], &Device::Cpu).unwrap()).unwrap();
    let error =
        || (quantizer.forward(&weight).unwrap() - &weight).unwrap().sqr().unwrap().mean_all().unwrap();
    let first = error().to_scalar::<f32>().unwrap();
    for _ in 0..200 {
        let grads = error().backward().unwrap();
        let scale = quantizer.scale();
        let step = (grads.get(scale).unwrap() * 1.0).unwrap();
        scale.set(&(scale.as_detached_tensor() - step).unwrap()).unwrap();
    }
    let last = error().to_scalar::<f32>().unwrap();
    assert!(last < 0.95 * first, "{first} {last}");
}

#[test]
fn the_range_of_an_input_moves_with_training_only() {
    let input = FakeQuantizeInput::new(Bits::new(8).unwrap(), true, 0.25).unwrap();
    let batch = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).unwrap();
    let error = one_line(&input.forward_t(&batch([0.0, 1.0, 2.0]), false).unwrap_err());
    assert!(error.contains("has seen no values yet"), "{error}");
    input.forward_t(&batch([-1.0, 0.5, 2.0]), true).unwrap();
    assert_eq!(input.range(), Some([-1.0, 2.0]));
    input.forward_t(&batch([-3.0, 0.5, 6.0]), true).unwrap();
    assert_eq!(input.range(), Some([-1.5, 3.0]));
    let x = Var::from_tensor(&batch([-8.0, 0.01, 2.0])).unwrap();
    let rounded = input.forward_t(&x, false).unwrap();
    assert_eq!(input.range(), Some([-1.5, 3.0]));
    // scale 3 / 127.5: −8 is clamped, and gets no gradient
    let scale = 3.0f32 / 127.5;
    assert_eq!(input.static_input().unwrap().scale(), scale);
    assert_eq!(values(&rounded), [-128.0 * scale, 0.0, 85.0 * scale]);
    let grads = rounded.sum_all().unwrap().backward().unwrap();
    assert_eq!(values(grads.get(&x).unwrap()), [0.0, 1.0, 1.0]);
    let error = one_line(&FakeQuantizeInput::new(Bits::new(8).unwrap(), true, 0.0).unwrap_err());
    assert!(error.contains("momentum"), "{error}");
}

#[test]
fn what_cannot_be_quantized_is_named() {
    let weight = grid(&[2, 4], 1);
    let learned = LearnedScale::new(Bits::new(4).unwrap(), Granularity::Channel, &weight).unwrap();
    let error = one_line(&learned.forward(&grid(&[4, 2], 1)).unwrap_err());
    assert!(error.contains("[4, 2]") && error.contains("[2, 4]"), "{error}");
    learned.scale().set(&Tensor::new(&[[1.0f32], [f32::NAN]], &Device::Cpu).unwrap()).unwrap();
    let error = one_line(&learned.forward(&weight).unwrap_err());
    assert!(error.contains("learned scale 1 is NaN"), "{error}");
    // a scale that went below zero counts as the smallest there is
    learned.scale().set(&Tensor::new(&[[-1.0f32], [1.0]], &Device::Cpu).unwrap()).unwrap();
    let stored = learned.compress(&weight).unwrap();
    assert_eq!(stored.scales().unwrap().scales(), [f32::EPSILON, 1.0]);
    assert_eq!(values(&tensor_of(&stored, &Device::Cpu).unwrap()).len(), 8);

    let quantizer = FakeQuantize::new(RoundToNearest::int(Bits::new(4).unwrap()));
    let infinite = Tensor::new(&[[1.0f32, f32::INFINITY]], &Device::Cpu).unwrap();
    let error = one_line(&quantizer.forward(&infinite).unwrap_err());
    assert!(error.contains("inf at index 1"), "{error}");
    let error = one_line(&quantizer.forward(&weight.to_dtype(DType::F64).unwrap()).unwrap_err());
    assert!(error.contains("F64") && error.contains("bf16"), "{error}");
}
