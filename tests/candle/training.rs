//! The operations of the examples' networks beside the same made of candle's.

#[path = "../../examples/training/operations.rs"]
mod operations;

use candle_core::{Device, Result, Tensor, Var};

/// A result, and the gradient of the sum of what it is multiplied by.
fn with_gradient(x: &Var, of: impl Fn(&Tensor) -> Result<Tensor>) -> [Vec<f32>; 2] {
    let result = of(x.as_tensor()).unwrap();
    let weights: Vec<f32> = (0..result.elem_count()).map(|i| ((i * 37 + 11) % 64) as f32 - 31.0).collect();
    let weights = Tensor::from_vec(weights, result.shape(), &Device::Cpu).unwrap();
    let gradients = (&result * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    [flat(&result), flat(gradients.get(x).unwrap())]
}

/// Different small integers, so that every sum is exact.
fn images(dims: (usize, usize, usize, usize)) -> Var {
    let count = dims.0 * dims.1 * dims.2 * dims.3;
    let values: Vec<f32> = (0..count).map(|i| ((i * 7919) % 4099) as f32 - 2000.0).collect();
    Var::from_vec(values, dims, &Device::Cpu).unwrap()
}

#[test]
fn patches_are_what_lies_under_the_kernel() {
    for (dims, kernel) in [((2, 5, 7, 3), 3), ((1, 4, 4, 1), 1), ((3, 2, 2, 5), 2)] {
        let (x, (channels, height, width, batch)) = (images(dims), dims);
        let places = (height + 1 - kernel, width + 1 - kernel);
        let of_candle = |x: &Tensor| {
            let mut parts = Vec::new();
            for channel in 0..channels {
                for (down, right) in (0..kernel).flat_map(|down| (0..kernel).map(move |right| (down, right)))
                {
                    let part =
                        x.narrow(0, channel, 1)?.narrow(1, down, places.0)?.narrow(2, right, places.1)?;
                    parts.push(part.contiguous()?.reshape((1, places.0 * places.1, batch))?);
                }
            }
            Tensor::cat(&parts, 0)
        };
        assert_eq!(with_gradient(&x, |x| operations::patches(x, kernel)), with_gradient(&x, of_candle));
    }
}

#[test]
fn the_largest_value_of_a_tile_takes_the_gradient() {
    for (dims, size) in [((2, 4, 6, 3), 2), ((1, 9, 3, 2), 3), ((2, 3, 3, 4), 1)] {
        let (x, (channels, height, width, batch)) = (images(dims), dims);
        let of_candle = |x: &Tensor| {
            let x = x.reshape((channels * height / size, size, width * batch))?.max(1)?;
            let x = x.reshape((channels * height * width / size / size, size, batch))?.max(1)?;
            x.reshape((channels, height / size, width / size, batch))
        };
        assert_eq!(with_gradient(&x, |x| operations::max_pool2d(x, size)), with_gradient(&x, of_candle));
    }
    // the first of several
    let x = Var::from_vec(vec![1.0f32, 5.0, 5.0, 5.0, 0.0, 5.0], (1, 2, 3, 1), &Device::Cpu).unwrap();
    let [largest, gradient] = with_gradient(&x, |x| operations::max_pool2d(x, 2));
    assert_eq!((largest, gradient), (vec![5.0], vec![0.0, -20.0, 0.0, 0.0, 0.0, 0.0]));
}
