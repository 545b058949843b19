//! Training through candle: losses, masks, fake quantization, compressed layers, and what goes in and out of checkpoints.

mod codebooks;
#[path = "../common/golden.rs"]
mod golden;
mod linear;
mod losses;
mod masks;
mod quantizers;
mod tensors;
mod training;

use candle_core::{Device, Tensor};

/// A tensor of numbers on a grid of 1/64 in ±2, from a small linear congruential generator.
fn grid(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) as i64 % 257 - 128) as f32 / 64.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
