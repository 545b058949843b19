//! The compressed linear layer is the executor's product.

use candle_core::{DType, Device, Module, Tensor, Var};
use ndarray::ArrayView2;
use tersor::candle::{CompressedLinear, compress, tensor_of};
use tersor::{
    ActivationCodes, Activations, Bits, Checkpoint, Classifier, LayoutKind, Mask, PackedWeight, Precision,
    RoundToNearest, Sequential, one_line,
};
use tersor::{CompressedWeight, DenseValues};

use crate::{grid, values};

fn forms() -> Vec<(CompressedWeight, Activations)> {
    let weight = grid(&[7, 24], 1);
    let int4 = compress(&weight, &RoundToNearest::int(Bits::new(4).unwrap())).unwrap();
    let mask = Mask::from_fn(7, 24, |row, col| (row + col) % 4 < 2);
    let mut kept = values(&weight);
    mask.apply(&mut kept).unwrap();
    let float = DenseValues::Float(Precision::F32, &kept);
    let sparse = CompressedWeight::encode(&[7, 24], LayoutKind::Bitmask, Some(&mask), float).unwrap();
    let dense = CompressedWeight::from_f32(&[7, 24], Precision::F32, &values(&weight)).unwrap();
    let int8 = Activations::Int8(ActivationCodes::PerToken);
    vec![
        (dense, Activations::Float),
        (int4.clone(), Activations::Float),
        (int4, int8),
        (sparse, Activations::Float),
    ]
}

#[test]
fn the_product_is_that_of_the_packed_weight() {
    let x = grid(&[2, 5, 24], 3);
    let bias: Vec<f32> = (0..7).map(|row| row as f32 / 4.0).collect();
    for (weight, activations) in forms() {
        let packed = PackedWeight::new(&weight, activations).unwrap();
        let rows = values(&x);
        let mut expected = packed.matmul(ArrayView2::from_shape((10, 24), &rows).unwrap()).unwrap();
        expected.rows_mut().into_iter().for_each(|mut row| row += &ndarray::aview1(&bias));
        let linear = CompressedLinear::new(weight, Some(&bias), activations).unwrap();
        let y = linear.forward(&x).unwrap();
        assert_eq!(y.dims(), [2, 5, 7]);
        assert_eq!(values(&y), expected.into_raw_vec_and_offset().0);
    }
}

#[test]
fn a_network_of_such_layers_gives_the_executors_logits() {
    let checkpoint = Checkpoint::open("fixtures/fashion-mlp").unwrap();
    let executor = Sequential::open(&checkpoint).unwrap();
    let pixels = grid(&[3, 784], 4).abs().unwrap();
    let expected =
        executor.class_logits(ArrayView2::from_shape((3, 784), &values(&pixels)).unwrap()).unwrap();
    let mut x = pixels;
    for name in ["fc1", "fc2", "fc3"] {
        let weight = checkpoint.weight(&format!("{name}.weight")).unwrap();
        let bias = checkpoint.dense(&format!("{name}.bias")).unwrap();
        x = CompressedLinear::new(weight, Some(&bias), Activations::Float).unwrap().forward(&x).unwrap();
        x = if name == "fc3" { x } else { x.relu().unwrap() };
    }
    assert_eq!(values(&x), expected.into_raw_vec_and_offset().0);
}

#[test]
fn the_gradient_of_the_input_is_that_of_the_dense_product() {
    for (weight, activations) in forms() {
        let dense = tensor_of(&weight, &Device::Cpu).unwrap();
        let linear = CompressedLinear::new(weight, None, activations).unwrap();
        let x = Var::from_tensor(&grid(&[2, 5, 24], 3)).unwrap();
        let outer = grid(&[2, 5, 7], 6);
        let grads = (linear.forward(&x).unwrap() * &outer).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = outer.reshape((10, 7)).unwrap().matmul(&dense).unwrap();
        assert_eq!(grads.get(&x).unwrap().dims(), x.dims());
        assert_eq!(values(grads.get(&x).unwrap()), values(&expected));
    }
}

#[test]
fn inputs_and_biases_that_do_not_fit_are_named() {
    let (weight, _) = forms().remove(0);
    let error = CompressedLinear::new(weight.clone(), Some(&[1.0]), Activations::Float).unwrap_err();
    assert_eq!(error.to_string(), "biases: expected 7, got 1");
    let linear = CompressedLinear::new(weight, None, Activations::Float).unwrap();
    let error = one_line(&linear.forward(&grid(&[2, 23], 1)).unwrap_err());
    assert!(error.contains("[2, 23]") && error.contains("[2, 24]"), "{error}");
    let half = linear.forward(&Tensor::ones((1, 24), DType::F16, &Device::Cpu).unwrap()).unwrap();
    assert_eq!((half.dtype(), half.dims()), (DType::F16, &[1, 7][..]));
}
