//! Products with prepacked weights against their definition, at every instruction level and number of threads.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ndarray::{Array2, ArrayView2};
use proptest::prelude::*;
use tersor::{
    ActivationCodes, Activations, Bits, CodeType, CodebookBits, CompressedWeight, CpuLevel, DenseValues,
    Epilogue, FloatCast, Granularity, KMeans, Layer, LayoutKind, Magnitude, Method, NofM, PackedWeight,
    Precision, RoundToNearest, Sparsity,
};

/// The level is the whole program's: one test at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every level that this processor has.
fn levels() -> impl Iterator<Item = CpuLevel> {
    CpuLevel::ALL.into_iter().filter(|level| *level <= CpuLevel::detected())
}

fn at_level<T>(level: CpuLevel, threads: usize, f: impl FnOnce() -> T + Send) -> T
where
    T: Send,
{
    level.set_current().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let result = pool.install(f);
    CpuLevel::detected().set_current().unwrap();
    result
}

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| uniform() + uniform() + uniform()).collect()
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Float(Precision),
    F8(Granularity),
    Int(u8, bool, Granularity),
    Codebook(u8, Granularity, Precision),
}

fn weight(rows: usize, cols: usize, kind: Kind, layout: LayoutKind) -> CompressedWeight {
    let values = values(rows * cols, (rows * 1000 + cols) as u64);
    let shape = [rows, cols];
    let precision = if let Kind::Codebook(_, _, precision) = kind { precision } else { Precision::F32 };
    let layer = Layer { layout, ..Layer::new(&shape, &values, precision) };
    let prune = match layout {
        LayoutKind::NofM(pattern) => Some(Magnitude::NofM(pattern)),
        LayoutKind::Dense | LayoutKind::Empty => None,
        // so few that 8-bit activations leave the others out
        LayoutKind::CompressedRows => Some(Magnitude::Unstructured(Sparsity::new(0.8).unwrap())),
        LayoutKind::Bitmask => Some(Magnitude::Unstructured(Sparsity::new(0.6).unwrap())),
    };
    let mask = prune.map(|prune| prune.mask(&layer).unwrap());
    let mut kept = values.clone();
    if let Some(mask) = &mask {
        mask.apply(&mut kept).unwrap();
    }
    let layer = Layer { values: &kept, mask: mask.as_ref(), ..layer };
    let method: Box<dyn Method> = match kind {
        Kind::Float(precision) => Box::new(FloatCast::to(precision)),
        Kind::F8(granularity) => Box::new(RoundToNearest::f8_e4m3().granularity(granularity)),
        Kind::Int(bits, symmetric, granularity) => {
            let codes = CodeType::Int { bits: Bits::new(bits).unwrap(), symmetric };
            Box::new(RoundToNearest::codes(codes).granularity(granularity))
        }
        Kind::Codebook(bits, granularity, _) => {
            Box::new(KMeans::new(CodebookBits::new(bits).unwrap()).granularity(granularity))
        }
    };
    method.compress(&layer).unwrap().weight
}

/// Codes and scale of a row of activations, by the definition.
fn quantized(x: &[f32], how: ActivationCodes) -> Vec<f64> {
    let (min, max) = x.iter().fold((0f32, 0f32), |(low, high), x| (low.min(*x), high.max(*x)));
    let (scale, zero) = match how {
        ActivationCodes::PerToken => (max.max(-min) / 127.0, 0.0),
        ActivationCodes::PerTokenAsymmetric => {
            let scale = (max / 2.0 - min / 2.0) / 127.5;
            (scale, (-128.0 - min / scale).round_ties_even().clamp(-128.0, 127.0))
        }
        ActivationCodes::Static { scale, zero_point } => (scale, f32::from(zero_point)),
    };
    if scale == 0.0 {
        return vec![0.0; x.len()];
    }
    let inverse = 1.0 / scale;
    x.iter()
        .map(|x| {
            let code = (x * inverse + zero).clamp(-128.0, 127.0).round_ties_even();
            f64::from(code - zero) * f64::from(scale)
        })
        .collect()
}

/// `x · Wᵀ + bias` in f64, and for each result the sum of the magnitudes that were added.
fn oracle(x: &[Vec<f64>], w: ArrayView2<'_, f32>, bias: &[f32]) -> Vec<(f64, f64)> {
    let mut all = Vec::new();
    for x in x {
        for (w, bias) in w.outer_iter().zip(bias) {
            let terms = || x.iter().zip(w).map(|(x, w)| x * f64::from(*w));
            let sum = terms().sum::<f64>() + f64::from(*bias);
            all.push((sum, terms().map(f64::abs).sum::<f64>() + f64::from(bias.abs())));
        }
    }
    all
}

fn check(rows: usize, cols: usize, batch: usize, kind: Kind, layout: LayoutKind, activations: Activations) {
    let weight = weight(rows, cols, kind, layout);
    let what = format!("{rows}×{cols}, batch {batch}, {kind:?}, {layout}, {activations:?}");
    let fastest = PackedWeight::new(&weight, activations).unwrap();
    let smallest = PackedWeight::smallest(&weight, activations).unwrap();
    assert!(smallest.sparse_batch() >= fastest.sparse_batch(), "{what}");
    assert_eq!(fastest.sparse_batch().is_none(), layout == LayoutKind::Dense, "{what}");
    let both = if fastest == smallest { vec![fastest] } else { vec![fastest, smallest] };
    for packed in &both {
        check_products(packed, &weight, batch, activations, &what);
    }
}

fn check_products(
    packed: &PackedWeight,
    weight: &CompressedWeight,
    batch: usize,
    activations: Activations,
    what: &str,
) {
    let (rows, cols) = (packed.rows(), packed.cols());
    let (x, bias) = (values(batch * cols, 5), values(rows, 9));
    let rows_of_x: Vec<Vec<f64>> = (0..batch)
        .map(|row| {
            let x = &x[row * cols..(row + 1) * cols];
            match activations {
                Activations::Float => x.iter().map(|x| f64::from(*x)).collect(),
                Activations::Int8(how) => quantized(x, how),
            }
        })
        .collect();
    let expected = oracle(&rows_of_x, weight.dequantize().view(), &bias);
    let mut first: Option<Vec<f32>> = None;
    for level in levels() {
        let mut of_level: Option<Vec<f32>> = None;
        for threads in [1, 3] {
            let y = at_level(level, threads, || {
                let mut y = vec![f32::NAN; batch * rows];
                packed.matmul_into(&x, Epilogue { bias: Some(&bias), relu: false }, &mut y).unwrap();
                y
            });
            // a sum of n floats is off by at most n half units of the last place of what was added, scaling and bias by a few more
            let unit = f64::from(f32::EPSILON) / 2.0 * (cols as f64 + 8.0);
            for (i, (y, (sum, magnitude))) in y.iter().zip(&expected).enumerate() {
                let error = (f64::from(*y) - sum).abs();
                assert!(error <= unit * magnitude, "{what}, {level}: y[{i}] = {y}, not {sum}");
            }
            assert_eq!(of_level.get_or_insert_with(|| y.clone()), &y, "{what}, {level}, {threads} threads");
        }
        assert_eq!(first.get_or_insert(of_level.clone().unwrap()), &of_level.unwrap(), "{what}, {level}");
    }
}

fn group(size: usize) -> Granularity {
    Granularity::Group(NonZeroUsize::new(size).unwrap())
}

const HOW: [ActivationCodes; 3] = [
    ActivationCodes::PerToken,
    ActivationCodes::PerTokenAsymmetric,
    ActivationCodes::Static { scale: 0.01, zero_point: -7 },
];

#[test]
fn every_kind_of_weight_at_every_edge_of_tiles_panels_and_pieces() {
    let _turn = turn();
    let block = Granularity::Block(NonZeroUsize::new(20).unwrap(), NonZeroUsize::new(24).unwrap());
    let kinds = [
        Kind::Float(Precision::F32),
        Kind::Float(Precision::F16),
        Kind::Float(Precision::Bf16),
        Kind::F8(Granularity::Channel),
        Kind::F8(block),
        Kind::Int(8, true, Granularity::Channel),
        Kind::Int(8, false, Granularity::Tensor),
        Kind::Int(8, true, group(128)),
        Kind::Int(4, true, group(32)),
        Kind::Int(4, false, group(10)),
        Kind::Int(3, true, Granularity::Channel),
        Kind::Codebook(4, Granularity::Channel, Precision::F32),
        Kind::Codebook(1, Granularity::Tensor, Precision::F16),
        Kind::Codebook(2, group(16), Precision::F16),
        Kind::Codebook(3, group(10), Precision::F16),
        Kind::Codebook(5, block, Precision::Bf16),
        Kind::Int(6, false, block),
        Kind::Int(2, true, group(64)),
    ];
    for (rows, cols) in [(1, 1), (33, 70), (64, 1300), (31, 257)] {
        for kind in kinds {
            for batch in [1, 2, 3, 7, 12, 13, 27] {
                check(rows, cols, batch, kind, LayoutKind::Dense, Activations::Float);
                if let Kind::Int(..) = kind {
                    for how in HOW {
                        check(rows, cols, batch, kind, LayoutKind::Dense, Activations::Int8(how));
                    }
                }
            }
        }
    }
}

#[test]
fn groups_too_long_for_exact_sums_are_cut_within_themselves() {
    let _turn = turn();
    for how in HOW {
        let kind = Kind::Int(8, true, group(50_048));
        check(2, 100_100, 2, kind, LayoutKind::Dense, Activations::Int8(how));
        check(2, 100_100, 2, kind, LayoutKind::Bitmask, Activations::Int8(how));
    }
}

#[test]
fn sparse_weights_of_every_layout() {
    let _turn = turn();
    let layouts =
        [LayoutKind::Bitmask, LayoutKind::NofM(NofM::new(2, 4).unwrap()), LayoutKind::CompressedRows];
    let kinds = [
        Kind::Float(Precision::F32),
        Kind::Float(Precision::F16),
        Kind::Float(Precision::Bf16),
        Kind::F8(Granularity::Channel),
        Kind::Int(8, true, Granularity::Channel),
        Kind::Int(8, true, group(128)),
        Kind::Int(4, false, group(32)),
        Kind::Int(4, true, group(64)),
        Kind::Codebook(4, Granularity::Channel, Precision::F32),
        Kind::Codebook(3, group(10), Precision::F16),
    ];
    for (rows, cols) in [(0, 5), (5, 0), (1, 1), (17, 64), (40, 300), (9, 641)] {
        for layout in layouts {
            for kind in kinds {
                for batch in [1, 2, 5, 8, 9, 27] {
                    check(rows, cols, batch, kind, layout, Activations::Float);
                    if let Kind::Int(..) = kind {
                        for how in HOW {
                            check(rows, cols, batch, kind, layout, Activations::Int8(how));
                        }
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shape(
        rows in 0usize..80,
        cols in 0usize..400,
        batch in 0usize..40,
        bits in 2u8..=8,
        symmetric: bool,
        size in 1usize..200,
        how in 0usize..4,
    ) {
        let _turn = turn();
        let activations = HOW.get(how).map_or(Activations::Float, |how| Activations::Int8(*how));
        check(rows, cols, batch, Kind::Int(bits, symmetric, group(size)), LayoutKind::Dense, activations);
    }
}

/// A weight of int8 codes with scale 1 a row.
fn codes(rows: usize, cols: usize, code: i8, zero: Option<i8>) -> CompressedWeight {
    let zeros = zero.map(|zero| vec![zero; rows]);
    let scales = tersor::Scales::new(Granularity::Channel, Precision::F32, vec![1.0; rows], zeros).unwrap();
    let all = vec![code; rows * cols];
    let values = DenseValues::Int(Bits::new(8).unwrap(), &all, &scales);
    CompressedWeight::encode(&[rows, cols], LayoutKind::Dense, None, values).unwrap()
}

#[test]
fn the_largest_integer_sums_are_exact() {
    let _turn = turn();
    // static codes of scale 1 are the activations themselves
    let how = |zero_point| Activations::Int8(ActivationCodes::Static { scale: 1.0, zero_point });
    let cols = 32_768 + 24;
    for (code, zero, activation, activation_zero) in [
        (-128i8, Some(127), 127.0, -128i8),
        (127, Some(-128), -128.0, 127),
        (-128, None, -128.0, 0),
        (127, None, 127.0, 0),
    ] {
        let packed = PackedWeight::new(&codes(2, cols, code, zero), how(activation_zero)).unwrap();
        let x = vec![activation - f32::from(activation_zero); cols];
        // more than 2^24, so that the float result is rounded; every partial sum is a multiple of 2^10 or less than 2^24
        let product = i64::from(code) - i64::from(zero.unwrap_or(0));
        let expected = product * i64::from((activation as i32) - i32::from(activation_zero)) * cols as i64;
        for level in levels() {
            let y = at_level(level, 2, || {
                let mut y = vec![0.0; 2];
                packed.matmul_into(&x, Epilogue::default(), &mut y).unwrap();
                y
            });
            for y in y {
                let error = (f64::from(y) - expected as f64).abs() / expected as f64;
                assert!(error.abs() <= f64::from(f32::EPSILON), "{level}: {y}, not {expected}");
            }
        }
    }
}

#[test]
fn rows_that_are_not_finite_stay_so_and_relu_keeps_them() {
    let _turn = turn();
    let weight = codes(3, 40, 1, None);
    let mut x = Array2::<f32>::ones((3, 40));
    x[[1, 7]] = f32::NAN;
    x[[2, 3]] = f32::INFINITY;
    for activations in HOW.map(Activations::Int8) {
        let packed = PackedWeight::new(&weight, activations).unwrap();
        for level in levels() {
            let y = at_level(level, 1, || {
                let mut y = vec![0.0; 9];
                let epilogue = Epilogue { bias: Some(&[-100.0; 3]), relu: true };
                packed.matmul_into(x.as_slice().unwrap(), epilogue, &mut y).unwrap();
                y
            });
            assert_eq!(y[..3], [0.0; 3], "{level}");
            assert!(y[3..].iter().all(|y| y.is_nan()), "{level}: {y:?}");
        }
    }
    let packed = PackedWeight::new(&weight, Activations::Float).unwrap();
    let y = packed.matmul(x.view()).unwrap();
    assert_eq!((y[[0, 0]], y[[2, 0]]), (40.0, f32::INFINITY));
    assert!(y[[1, 1]].is_nan());
}

#[test]
fn what_cannot_be_multiplied_is_refused() {
    let per_token = Activations::Int8(ActivationCodes::PerToken);
    let error = |weight: &CompressedWeight, activations| {
        PackedWeight::new(weight, activations).unwrap_err().to_string()
    };
    let floats = weight(4, 8, Kind::Float(Precision::F16), LayoutKind::Dense);
    assert!(error(&floats, per_token).contains("this weight holds f16"));
    let ints = codes(2, 8, 1, None);
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-45] {
        let how = ActivationCodes::Static { scale, zero_point: 0 };
        assert!(error(&ints, Activations::Int8(how)).contains("scale"), "{scale}");
    }
    let packed = PackedWeight::new(&ints, per_token).unwrap();
    assert!(packed.matmul(Array2::zeros((2, 7)).view()).is_err());
    assert!(packed.matmul_into(&[0.0; 8], Epilogue::default(), &mut [0.0; 3]).is_err());
    assert!(packed.matmul_into(&[0.0; 9], Epilogue::default(), &mut [0.0; 2]).is_err());
    let epilogue = Epilogue { bias: Some(&[0.0]), relu: false };
    assert!(packed.matmul_into(&[0.0; 8], epilogue, &mut [0.0; 2]).is_err());
}
