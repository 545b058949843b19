//! Values of codebooks are learned under codes that stay.

use candle_core::Tensor;
use tersor::candle::{LearnedCodebook, weight_of};
use tersor::{
    CodebookBits, CompressedWeight, Granularity, KMeans, Layer, LayoutKind, Mask, Method, Precision, one_line,
};

use crate::{grid, values};

fn stored(layout: LayoutKind, granularity: Granularity) -> (CompressedWeight, Mask) {
    let mask = Mask::from_fn(6, 20, |row, col| layout == LayoutKind::Dense || (row * 7 + col) % 3 != 0);
    let mut weights = values(&grid(&[6, 20], 1));
    mask.apply(&mut weights).unwrap();
    let layer = Layer { mask: Some(&mask), layout, ..Layer::new(&[6, 20], &weights, Precision::F32) };
    let method = KMeans::new(CodebookBits::new(3).unwrap()).granularity(granularity);
    (method.compress(&layer).unwrap().weight, mask)
}

#[test]
fn the_gradient_of_a_value_is_the_sum_of_its_weights() {
    for layout in [LayoutKind::Dense, LayoutKind::Bitmask, LayoutKind::CompressedRows] {
        for granularity in [Granularity::Tensor, Granularity::Channel] {
            let (weight, mask) = stored(layout, granularity);
            let codebook = LearnedCodebook::new(weight.clone()).unwrap();
            assert_eq!(values(&codebook.weight().unwrap()), weight.dequantize().into_raw_vec_and_offset().0);
            let outer = grid(&[6, 20], 2);
            let grads = (codebook.weight().unwrap() * &outer).unwrap().sum_all().unwrap().backward().unwrap();
            let codes = weight.codebook_codes().unwrap();
            let grid = granularity.grid(6, 20);
            let mut expected = vec![0.0; grid.len() * 8];
            for (at, outer) in values(&outer).into_iter().enumerate() {
                if mask.keeps(at / 20, at % 20) {
                    expected[grid.index(at / 20, at % 20) * 8 + usize::from(codes[at])] += outer;
                }
            }
            assert_eq!(values(grads.get(codebook.values()).unwrap()), expected, "{layout} {granularity}");
        }
    }
}

#[test]
fn what_is_trained_is_what_is_stored() {
    let (weight, mask) = stored(LayoutKind::CompressedRows, Granularity::Channel);
    let codebook = LearnedCodebook::new(weight.clone()).unwrap();
    let moved = (codebook.values().as_detached_tensor() + 0.3).unwrap();
    codebook.values().set(&moved).unwrap();
    let tuned = codebook.compress().unwrap();
    assert_eq!(tuned.form(), weight.form());
    assert_eq!(tuned.codebook_codes(), weight.codebook_codes());
    let trained = values(&codebook.weight().unwrap());
    assert_eq!(trained, tuned.dequantize().into_raw_vec_and_offset().0);
    let zeros = trained.iter().enumerate().filter(|(at, _)| !mask.keeps(at / 20, at % 20));
    assert!(zeros.into_iter().all(|(_, weight)| *weight == 0.0));
    codebook.values().set(&Tensor::full(f32::NAN, 48, codebook.values().device()).unwrap()).unwrap();
    assert!(one_line(&codebook.compress().unwrap_err()).contains("NaN"));
    let error = one_line(&LearnedCodebook::new(weight_of(&grid(&[2, 2], 1)).unwrap()).unwrap_err());
    assert!(error.contains("no codebooks"), "{error}");
}
