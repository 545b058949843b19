//! Codebooks: centroids against kmeans1d and scikit-learn (`fixtures/golden/codebook/make.py`), and what methods make of layers.

use std::num::NonZeroUsize;

use safetensors::SafeTensors;
use tersor::kernels::kmeans::{Start, centroids, squared_error};
use tersor::{
    Bits, CodebookBits, Codebooks, Coding, CompressedWeight, CpuLevel, DenseValues, Granularity, KMeans,
    Layer, LayerStats, LayoutKind, Magnitude, Mask, Method, Needs, NofM, Precision, RoundToNearest, Sparsity,
    ValueImportance, stored_tensors,
};

const GOLDEN: &[u8] = include_bytes!("../fixtures/golden/codebook/codebook.safetensors");

fn floats(golden: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let bytes = golden.tensor(name).unwrap().data().to_vec();
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn doubles(golden: &SafeTensors<'_>, name: &str) -> Vec<f64> {
    let bytes = golden.tensor(name).unwrap().data().to_vec();
    bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn bits(bits: u8) -> CodebookBits {
    CodebookBits::new(bits).unwrap()
}

fn waves(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.7131).sin().powi(3) + (i as f32 * 0.031).cos() * 0.2).collect()
}

#[test]
fn centroids_are_those_of_the_exact_references() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let (values, weights) = (floats(&golden, "values"), floats(&golden, "weights"));
    for k in [2, 3, 7, 16, 32] {
        let errors = doubles(&golden, &format!("{k}.error"));
        for (weights, name, expected_error) in
            [(None, "centroids", errors[0]), (Some(weights.as_slice()), "weighted.centroids", errors[1])]
        {
            let found = centroids(&values, weights, k, Start::Optimal).unwrap();
            let expected = doubles(&golden, &format!("{k}.{name}"));
            assert_eq!(found.len(), k);
            for (found, expected) in found.iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{k} {name}");
            }
            let error = squared_error(&values, weights, &found);
            assert!((error / expected_error - 1.0).abs() < 1e-6, "{k} {name}: {error} {expected_error}");
        }
    }
}

#[test]
fn lloyds_algorithm_ends_where_scikit_learns_does() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let values = floats(&golden, "values");
    for k in [2, 3, 7] {
        let found = centroids(&values, None, k, Start::Linear).unwrap();
        for (found, expected) in found.iter().zip(doubles(&golden, &format!("{k}.lloyd.linear"))) {
            assert!(
                (f64::from(*found) - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                "{k}: {found} {expected}"
            );
        }
    }
    // no start is better than the optimum
    let error = |start| squared_error(&values, None, &centroids(&values, None, 16, start).unwrap());
    let best = error(Start::Optimal);
    for start in [Start::Linear, Start::Density, Start::Random { seed: 1 }] {
        assert!(error(start) >= best * (1.0 - 1e-9), "{start:?}");
    }
}

#[test]
fn every_layout_keeps_zero_and_the_nearest_value() {
    let (rows, cols) = (6, 40);
    let values = waves(rows * cols);
    let shape = [rows, cols];
    let size = |n| NonZeroUsize::new(n).unwrap();
    let granularities = [
        Granularity::Tensor,
        Granularity::Channel,
        Granularity::Group(size(16)),
        Granularity::Block(size(4), size(cols)),
    ];
    let layouts = [
        LayoutKind::Dense,
        LayoutKind::Bitmask,
        LayoutKind::CompressedRows,
        LayoutKind::NofM(NofM::new(2, 4).unwrap()),
    ];
    for layout in layouts {
        for granularity in granularities {
            for b in [1, 3, 4, 8] {
                let layer = Layer { layout, ..Layer::new(&shape, &values, Precision::F16) };
                let mask = match layout {
                    LayoutKind::NofM(pattern) => Magnitude::NofM(pattern).mask(&layer).unwrap(),
                    _ => Magnitude::Unstructured(Sparsity::new(0.7).unwrap()).mask(&layer).unwrap(),
                };
                let mut kept = values.clone();
                mask.apply(&mut kept).unwrap();
                let layer = Layer { values: &kept, mask: Some(&mask), ..layer };
                let weight = KMeans::new(bits(b)).granularity(granularity).compress(&layer).unwrap().weight;
                let coding = Coding::Codebook { bits: bits(b), granularity, values: Precision::F16 };
                assert_eq!((weight.form().coding(), weight.form().layout()), (coding, layout));
                let decoded = weight.dequantize();
                let books = weight.codebooks().unwrap();
                let grid = granularity.grid(rows, cols);
                for (i, (decoded, original)) in decoded.iter().zip(&kept).enumerate() {
                    let (row, col) = (i / cols, i % cols);
                    if mask.keeps(row, col) {
                        let distance = |x: &f32| (x - original).abs();
                        let book = books.of_tile(grid.index(row, col));
                        let least = book.iter().map(distance).fold(f32::INFINITY, f32::min);
                        assert_eq!(distance(decoded), least, "{layout} {granularity} {b} at {i}");
                    } else {
                        assert_eq!(*decoded, 0.0, "{layout} {granularity} {b} at {i}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_weight_is_built_from_codes_and_values_and_taken_apart_again() {
    let mask = Mask::from_fn(3, 5, |row, col| (row + col) % 2 == 0);
    let books = Codebooks::new(bits(2), Granularity::Channel, Precision::Bf16, waves(12)).unwrap();
    let codes: Vec<u8> = (0..15).map(|i| (i * 3 % 4) as u8).collect();
    for (layout, mask) in [
        (LayoutKind::Dense, None),
        (LayoutKind::CompressedRows, Some(&mask)),
        (LayoutKind::Bitmask, Some(&mask)),
    ] {
        let values = DenseValues::Codebook(&codes, &books);
        let weight = CompressedWeight::encode(&[3, 5], layout, mask, values).unwrap();
        let kept = |i: usize| mask.is_none_or(|mask| mask.keeps(i / 5, i % 5));
        let expected: Vec<u8> = codes.iter().enumerate().map(|(i, c)| if kept(i) { *c } else { 0 }).collect();
        assert_eq!(weight.codebook_codes().unwrap(), expected);
        let tuned = books.values().iter().map(|x| x + 1.0).collect();
        let tuned = Codebooks::new(bits(2), Granularity::Channel, Precision::Bf16, tuned).unwrap();
        let weight = weight.with_codebooks(tuned.clone()).unwrap();
        for (i, x) in weight.dequantize().iter().enumerate() {
            let value = tuned.of_tile(i / 5)[usize::from(codes[i])];
            assert_eq!(*x, if kept(i) { value } else { 0.0 });
        }
        let other = Codebooks::new(bits(3), Granularity::Channel, Precision::Bf16, waves(24)).unwrap();
        let error = weight.with_codebooks(other).unwrap_err().to_string();
        assert!(error.contains("3 bits") && error.contains("codebook2"), "{error}");
    }
    let values = DenseValues::Codebook(&[0, 4, 1], &books);
    let error = CompressedWeight::encode(&[3, 1], LayoutKind::Dense, None, values).unwrap_err();
    assert_eq!(error.to_string(), "code 4 at index 1 is beyond the 4 values of a codebook");
    let nan = Codebooks::new(bits(1), Granularity::Tensor, Precision::F32, vec![0.0, f32::NAN]).unwrap_err();
    assert_eq!(nan.to_string(), "codebook value NaN at index 1");
    let infinite = Codebooks::new(bits(1), Granularity::Tensor, Precision::F16, vec![0.0, 1e6]);
    assert!(infinite.is_err());
    assert!(Codebooks::new(bits(2), Granularity::Tensor, Precision::F32, vec![0.0; 6]).is_err());
}

#[test]
fn bytes_are_those_of_codes_and_values() {
    let values = waves(10 * 100);
    let layer = Layer::new(&[10, 100], &values, Precision::F16);
    let weight = KMeans::new(bits(5)).compress(&layer).unwrap().weight;
    // 500 bits a row are 16 words; 32 values of two bytes a row
    assert_eq!(weight.form().bytes().total(), 10 * 16 * 4 + 10 * 32 * 2);
    let names: Vec<String> = stored_tensors("w", &weight).into_iter().map(|t| t.name).collect();
    assert_eq!(names, ["w_packed", "w_codebook", "w_shape"]);
    assert_eq!(weight.form().to_string(), "codebook5, channel");
}

#[test]
fn codebooks_are_better_than_integers_of_as_many_bits() {
    let values = waves(32 * 96);
    let layer = Layer::new(&[32, 96], &values, Precision::F32);
    let error = |method: &dyn Method| -> f64 {
        let weight = method.compress(&layer).unwrap().weight.dequantize();
        weight.iter().zip(&values).map(|(q, w)| f64::from(q - w).powi(2)).sum()
    };
    for b in 2..=8 {
        let rounded = RoundToNearest::int(Bits::new(b).unwrap());
        assert!(error(&KMeans::new(bits(b))) < error(&rounded), "{b} bits");
    }
}

#[test]
fn what_matters_to_the_output_is_nearer() {
    let (rows, cols) = (8, 48);
    let values = waves(rows * cols);
    let shape = [rows, cols];
    let mut stats = LayerStats::new(cols, Needs::Hessian);
    // a few inputs are far larger than the others
    let inputs = ndarray::Array2::from_shape_fn((200, cols), |(t, c)| {
        ((t * 31 + c * 17) as f32 * 0.37).sin() * if c % 8 == 0 { 12.0 } else { 1.0 }
    });
    stats.observe(inputs.view()).unwrap();
    let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &values, Precision::F32) };
    let weighted = KMeans::new(bits(3)).importance(ValueImportance::Inputs).compress(&layer).unwrap();
    let plain = KMeans::new(bits(3)).compress(&layer).unwrap();
    // by definition: ‖(W − Ŵ)·Xᵀ‖² / ‖W·Xᵀ‖²
    let output_error = |weight: &CompressedWeight| {
        let (decoded, mut error, mut all) = (weight.dequantize(), 0.0, 0.0);
        for x in inputs.outer_iter() {
            for row in 0..rows {
                let dot = |w: &dyn Fn(usize) -> f32| {
                    (0..cols).map(|c| f64::from(w(c)) * f64::from(x[c])).sum::<f64>()
                };
                error += dot(&|c| decoded[[row, c]] - values[row * cols + c]).powi(2);
                all += dot(&|c| values[row * cols + c]).powi(2);
            }
        }
        error / all
    };
    let outcome = weighted.outcome.unwrap();
    assert!((outcome.error() / output_error(&weighted.weight) - 1.0).abs() < 1e-3);
    assert!(output_error(&weighted.weight) < output_error(&plain.weight));
    assert!(outcome.method_error < outcome.plain_error && outcome.words().is_empty(), "{outcome:?}");
    assert_eq!(KMeans::new(bits(3)).importance(ValueImportance::Inputs).needs(), Needs::Hessian);
    // as many values as there are weights: integers of so many bits cannot be beaten where nothing is lost
    let importance: Vec<f32> = (0..rows * cols).map(|i| if i % cols == 3 { 1e6 } else { 1.0 }).collect();
    let by_value = KMeans::new(bits(3)).compress_by(&layer, &importance).unwrap().dequantize();
    for row in 0..rows {
        assert!((by_value[[row, 3]] - values[row * cols + 3]).abs() < 1e-3);
    }
    assert!(KMeans::new(bits(3)).compress_by(&layer, &[1.0]).is_err());
    assert!(KMeans::new(bits(3)).compress_by(&layer, &vec![-1.0; rows * cols]).is_err());
}

#[test]
fn levels_and_threads_do_not_change_a_bit() {
    let (rows, cols) = (70, 3000);
    let values = waves(rows * cols);
    let shape = [rows, cols];
    let layer = Layer::new(&shape, &values, Precision::F32);
    let run = |level: CpuLevel, threads: usize, granularity| {
        level.set_current().unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let weight =
            pool.install(|| KMeans::new(bits(4)).granularity(granularity).compress(&layer).unwrap().weight);
        CpuLevel::detected().set_current().unwrap();
        stored_tensors("w", &weight)
    };
    for granularity in [Granularity::Tensor, Granularity::Channel] {
        let expected = run(CpuLevel::Portable, 1, granularity);
        for level in CpuLevel::ALL.into_iter().filter(|level| *level <= CpuLevel::detected()) {
            assert!(run(level, 2, granularity) == expected, "{level}");
        }
    }
}

#[test]
fn a_nan_is_named() {
    let mut values = waves(64);
    values[17] = f32::NAN;
    let error = KMeans::new(bits(4)).compress(&Layer::new(&[4, 16], &values, Precision::F32)).unwrap_err();
    assert!(error.to_string().contains("17"), "{error}");
}
