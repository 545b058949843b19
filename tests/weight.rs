//! Compressed weights of every layout and coding against their definition.

use std::num::NonZeroUsize;

use half::{bf16, f16};
use ndarray::Array2;
use proptest::prelude::*;
use tersor::{
    Bits, CodebookBits, Codebooks, Coding, CompressedWeight, DenseValues, Granularity, LayoutKind, LowRank,
    Mask, NofM, Precision, Scales, WeightError, stored_tensors,
};

/// What proptest chooses; all numbers follow from the seed.
#[derive(Debug, Clone)]
struct Case {
    shape: Vec<usize>,
    layout: LayoutKind,
    coding: Coding,
    /// Chance in 8 that a position is kept; above 8, no mask is given.
    density: u64,
    batch: usize,
    seed: u64,
}

/// A weight beside what it must be.
struct Built {
    weight: CompressedWeight,
    expected: Vec<f32>,
    mask: Option<Mask>,
}

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// In `[−1, 1)`, a multiple of 2⁻²³.
    fn unit(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }
}

fn rounded(precision: Precision, x: f64) -> f32 {
    match precision {
        Precision::F32 => x as f32,
        Precision::F16 => f16::from_f32(x as f32).to_f32(),
        Precision::Bf16 => bf16::from_f32(x as f32).to_f32(),
    }
}

/// OCP e4m3: sign · 2^(e − 7) · (1 + m / 8), denormal for e = 0.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
    let magnitude =
        if exponent == 0 { 2f64.powi(-6) * mantissa } else { 2f64.powi(exponent - 7) * (1.0 + mantissa) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

fn mask_of(case: &Case, rows: usize, cols: usize, random: &mut Random) -> Option<Mask> {
    if case.density > 8 && !matches!(case.layout, LayoutKind::NofM(p) if p.n() < p.m()) {
        return None;
    }
    let mut keep = vec![false; rows * cols];
    for row in 0..rows {
        let keep = &mut keep[row * cols..(row + 1) * cols];
        if let LayoutKind::NofM(pattern) = case.layout {
            for group in keep.chunks_mut(pattern.m()) {
                for _ in 0..pattern.n().min(group.len()) {
                    let free: Vec<usize> = (0..group.len()).filter(|i| !group[*i]).collect();
                    group[free[random.below(free.len() as u64) as usize]] = true;
                }
            }
        } else {
            keep.fill_with(|| random.below(8) < case.density);
        }
    }
    Some(Mask::from_fn(rows, cols, |row, col| keep[row * cols + col]))
}

/// Tile numbers of all positions and the number of tiles, counted from the definition of the granularity.
fn tiles(granularity: Granularity, rows: usize, cols: usize) -> (Vec<usize>, usize) {
    let (tile_rows, tile_cols) = match granularity {
        Granularity::Tensor => return (vec![0; rows * cols], 1),
        Granularity::Channel => return ((0..rows * cols).map(|i| i / cols).collect(), rows),
        Granularity::Group(size) => (1, size.get()),
        Granularity::Block(r, c) => (r.get(), c.get()),
    };
    let across = cols.div_ceil(tile_cols);
    let tile = |i: usize| i / cols / tile_rows * across + i % cols / tile_cols;
    ((0..rows * cols).map(tile).collect(), rows.div_ceil(tile_rows) * across)
}

fn build(case: &Case) -> Built {
    let rows = case.shape.first().copied().unwrap_or(1);
    let cols: usize = case.shape.iter().skip(1).product();
    let mut random = Random(case.seed);
    let mask = mask_of(case, rows, cols, &mut random);
    let encode = |values: DenseValues<'_>| {
        CompressedWeight::encode(&case.shape, case.layout, mask.as_ref(), values).unwrap()
    };
    let mut scales_for = |granularity, precision, zero_points: Option<Bits>| {
        let (tile, count) = tiles(granularity, rows, cols);
        let scales = (0..count)
            .map(|_| {
                rounded(
                    precision,
                    f64::from(random.unit().abs() + 0.5) * 2f64.powi(random.below(14) as i32 - 9),
                )
            })
            .collect();
        let zero_points = zero_points.map(|bits| (0..count).map(|_| code_of(bits, &mut random)).collect());
        (tile, Scales::new(granularity, precision, scales, zero_points).unwrap())
    };
    let (weight, mut expected): (_, Vec<f32>) = match case.coding {
        Coding::Float(precision) => {
            let values: Vec<f32> =
                (0..rows * cols).map(|_| random.unit() * 2f32.powi(random.below(26) as i32 - 20)).collect();
            let expected = values.iter().map(|x| rounded(precision, f64::from(*x))).collect();
            (encode(DenseValues::Float(precision, &values)), expected)
        }
        Coding::F8E4M3 { granularity, scales: precision } => {
            let (tile, scales) = scales_for(granularity, precision, None);
            // 0x7f and 0xff are NaN
            let codes: Vec<u8> =
                (0..rows * cols).map(|_| random.below(0x7f) as u8 | (random.below(2) as u8) << 7).collect();
            let value = |i: usize| rounded(precision, e4m3(codes[i]) * f64::from(scales.scales()[tile[i]]));
            (encode(DenseValues::F8E4M3(&codes, &scales)), (0..rows * cols).map(value).collect())
        }
        Coding::Int { bits, symmetric, granularity, scales: precision } => {
            let (tile, scales) = scales_for(granularity, precision, (!symmetric).then_some(bits));
            let codes: Vec<i8> = (0..rows * cols).map(|_| code_of(bits, &mut random)).collect();
            let value = |i: usize| {
                let zero_point = scales.zero_points().map_or(0, |z| z[tile[i]]);
                let steps = i32::from(codes[i]) - i32::from(zero_point);
                rounded(precision, f64::from(steps) * f64::from(scales.scales()[tile[i]]))
            };
            (encode(DenseValues::Int(bits, &codes, &scales)), (0..rows * cols).map(value).collect())
        }
        Coding::Codebook { bits, granularity, values: precision } => {
            let (tile, count) = tiles(granularity, rows, cols);
            let entries = 1usize << bits.get();
            let values: Vec<f32> =
                (0..count * entries).map(|_| rounded(precision, f64::from(random.unit()))).collect();
            let codes: Vec<u8> = (0..rows * cols).map(|_| random.below(entries as u64) as u8).collect();
            let expected =
                (0..rows * cols).map(|i| values[tile[i] * entries + usize::from(codes[i])]).collect();
            let books = Codebooks::new(bits, granularity, precision, values).unwrap();
            (encode(DenseValues::Codebook(&codes, &books)), expected)
        }
    };
    let mask = (case.layout != LayoutKind::Dense).then(|| mask.unwrap_or(Mask::keep_all(rows, cols)));
    if let Some(mask) = &mask {
        mask.apply(&mut expected).unwrap();
    }
    Built { weight, expected, mask }
}

fn code_of(bits: Bits, random: &mut Random) -> i8 {
    let (low, high) = bits.range();
    (low + random.below((high - low + 1) as u64) as i32) as i8
}

fn activations(case: &Case, cols: usize) -> Array2<f32> {
    let mut random = Random(!case.seed);
    Array2::from_shape_simple_fn((case.batch, cols), || random.unit())
}

/// Any order of summation, with or without fused multiply-add, stays within γ·Σ|x·w| of the exact product, where
/// γ = n·u / (1 − n·u) and u = 2⁻²⁴ (Higham, "Accuracy and Stability of Numerical Algorithms", equation 3.5).
fn assert_product(x: &Array2<f32>, w: &[f32], y: &Array2<f32>) {
    let cols = x.ncols();
    let nu = cols as f64 * 2f64.powi(-24);
    for ((b, r), y) in y.indexed_iter() {
        let terms = (0..cols).map(|c| f64::from(x[[b, c]]) * f64::from(w[r * cols + c]));
        let (sum, magnitudes) = terms.fold((0.0, 0.0), |(s, m), t| (s + t, m + t.abs()));
        let error = (f64::from(*y) - sum).abs();
        assert!(error <= nu / (1.0 - nu) * magnitudes, "y[{b}, {r}] is {y}, not {sum}");
    }
}

fn precision() -> impl Strategy<Value = Precision> {
    prop_oneof![Just(Precision::F32), Just(Precision::F16), Just(Precision::Bf16)]
}

fn granularity() -> impl Strategy<Value = Granularity> {
    let size = |n| NonZeroUsize::new(n).unwrap();
    prop_oneof![
        Just(Granularity::Tensor),
        Just(Granularity::Channel),
        (1..80usize).prop_map(move |n| Granularity::Group(size(n))),
        (1..50usize, 1..80usize).prop_map(move |(r, c)| Granularity::Block(size(r), size(c))),
    ]
}

fn coding() -> impl Strategy<Value = Coding> {
    prop_oneof![
        1 => precision().prop_map(Coding::Float),
        1 => (granularity(), precision()).prop_map(|(granularity, scales)| Coding::F8E4M3 { granularity, scales }),
        2 => (1..=8u8, granularity(), precision()).prop_map(|(bits, granularity, values)| {
            Coding::Codebook { bits: CodebookBits::new(bits).unwrap(), granularity, values }
        }),
        3 => (2..=8u8, any::<bool>(), granularity(), precision()).prop_map(|(bits, symmetric, granularity, scales)| {
            Coding::Int { bits: Bits::new(bits).unwrap(), symmetric, granularity, scales }
        }),
    ]
}

fn layout() -> impl Strategy<Value = LayoutKind> {
    let pattern = (1..=16usize).prop_flat_map(|m| (1..=m).prop_map(move |n| NofM::new(n, m).unwrap()));
    prop_oneof![
        Just(LayoutKind::Dense),
        Just(LayoutKind::Bitmask),
        pattern.prop_map(LayoutKind::NofM),
        Just(LayoutKind::CompressedRows),
    ]
}

fn case(shape: impl Strategy<Value = Vec<usize>>) -> impl Strategy<Value = Case> {
    (shape, layout(), coding(), 0..=10u64, 0..=5usize, any::<u64>()).prop_map(
        |(shape, layout, coding, density, batch, seed)| Case { shape, layout, coding, density, batch, seed },
    )
}

fn small_shape() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        4 => (0..=40usize, 0..=70usize).prop_map(|(r, c)| vec![r, c]),
        2 => (0..=12usize, 0..=5usize, 0..=4usize, 0..=4usize).prop_map(|(o, i, h, w)| vec![o, i, h, w]),
        1 => (0..=40usize).prop_map(|n| vec![n]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_form_keeps_its_promises(case in case(small_shape())) {
        let Built { weight, expected, mask } = build(&case);
        prop_assert_eq!((weight.shape(), weight.form().layout()), (&case.shape[..], case.layout));
        prop_assert_eq!(weight.form().coding(), case.coding);

        let tensors = stored_tensors("w", &weight);
        for t in &tensors {
            prop_assert_eq!(t.bytes.len(), t.shape.iter().product::<usize>() * t.dtype.bitsize() / 8, "{}", t.name);
        }
        let (shape, data): (Vec<_>, Vec<_>) = tensors.iter().partition(|t| t.name == "w_shape");
        prop_assert_eq!(weight.form().bytes().total(), data.iter().map(|t| t.bytes.len() as u64).sum::<u64>());
        for t in shape {
            let dims: Vec<u8> = case.shape.iter().flat_map(|d| (*d as u64).to_le_bytes()).collect();
            prop_assert_eq!(&t.bytes, &dims);
        }

        prop_assert_eq!(weight.mask(), mask);
        let dequantized = weight.dequantize();
        prop_assert_eq!(dequantized.dim(), (weight.rows(), weight.cols()));
        for (i, (ours, expected)) in dequantized.iter().zip(&expected).enumerate() {
            prop_assert_eq!(ours.to_bits(), expected.to_bits(), "index {}: {} and not {}", i, ours, expected);
        }

        let x = activations(&case, weight.cols());
        let y = weight.matmul(x.view()).unwrap();
        prop_assert_eq!(y.dim(), (case.batch, weight.rows()));
        assert_product(&x, &expected, &y);
        // columns in reverse memory order: the same matrix, not the same strides
        let transposed = x.t().as_standard_layout().into_owned().reversed_axes();
        prop_assert_eq!(&weight.matmul(transposed.view()).unwrap(), &y);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Enough rows for several tasks, so that threads matter.
    #[test]
    fn threads_do_not_change_a_bit(case in case((60..400usize, 1..=300usize).prop_map(|(r, c)| vec![r, c]))) {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let Built { weight, expected, .. } = build(&case);
                let x = activations(&case, weight.cols());
                let y = weight.matmul(x.view()).unwrap();
                assert_product(&x, &expected, &y);
                let bits = |a: &Array2<f32>| a.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                (stored_tensors("w", &weight), bits(&weight.dequantize()), bits(&y))
            })
        };
        prop_assert_eq!(on(1), on(2));
    }
}

#[test]
fn activations_of_another_width_are_refused() {
    let weight = CompressedWeight::from_f32(&[2, 3], Precision::F32, &[0.0; 6]).unwrap();
    let error = weight.matmul(Array2::zeros((4, 2)).view()).unwrap_err();
    assert_eq!(error.to_string(), "activations of shape [4, 2] do not fit a weight of 3 input features");
}

#[test]
fn scales_are_what_the_file_will_hold() {
    let scales = |precision, value| Scales::new(Granularity::Tensor, precision, vec![value], None);
    // 0.1 is 0x2e66 in f16
    let tenth = scales(Precision::F16, 0.1).unwrap();
    assert_eq!(tenth.scales(), [f16::from_bits(0x2e66).to_f32()]);
    assert!(scales(Precision::F32, 1e5).is_ok());
    for (precision, bad) in [(Precision::F16, 1e5), (Precision::F32, -1.0), (Precision::Bf16, f32::NAN)] {
        assert!(scales(precision, bad).is_err(), "{bad}");
    }
}

#[test]
fn codes_stay_under_other_scales() {
    let scales =
        Scales::new(Granularity::Channel, Precision::F16, vec![0.5, 2.0], Some(vec![1, -3])).unwrap();
    let codes = [1, -8, 7, 0, 3, -1];
    for layout in [LayoutKind::Dense, LayoutKind::Bitmask] {
        let values = DenseValues::Int(Bits::new(4).unwrap(), &codes, &scales);
        let weight = CompressedWeight::encode(&[2, 3], layout, None, values).unwrap();
        let factor = |shape: [usize; 2], values: &[f32]| {
            CompressedWeight::from_f32(&shape, Precision::F32, values).unwrap()
        };
        let factors = LowRank::new(factor([2, 1], &[1.0, 2.0]), factor([1, 3], &[3.0, 0.0, 5.0])).unwrap();
        let corrected = weight.with_correction(factors).unwrap();
        let other = corrected.clone().with_scales(vec![0.1, 4.0]).unwrap();
        let rounded = |x: f32| f16::from_f32(x).to_f32();
        let tenth = rounded(0.1);
        assert_eq!(other.scales().unwrap().scales(), [tenth, 4.0]);
        assert_eq!(other.scales().unwrap().zero_points(), Some(&[1, -3][..]));
        assert_eq!((other.form(), other.factors()), (corrected.form(), corrected.factors()));
        let expected = [3.0, rounded(-9.0 * tenth), rounded(6.0 * tenth) + 5.0, 18.0, 24.0, 18.0];
        assert_eq!(other.dequantize().as_slice(), Some(&expected[..]), "{layout:?}");

        let refused = |scales: Vec<f32>| corrected.clone().with_scales(scales).unwrap_err().to_string();
        assert_eq!(refused(vec![1.0]), "scales: expected 2, got 1");
        assert_eq!(refused(vec![1.0, 1e6]), "scale inf at index 1");
    }
    let plain = CompressedWeight::from_f32(&[1, 2], Precision::F32, &[1.0, 2.0]).unwrap();
    let error = plain.with_scales(vec![1.0]).unwrap_err().to_string();
    assert!(error.contains("f32") || error.contains("F32"), "{error}");
}

#[test]
fn codes_that_the_coding_does_not_have_are_refused() {
    let encode = |values: DenseValues<'_>| {
        CompressedWeight::encode(&[1, 3], LayoutKind::Dense, None, values).map(|_| ())
    };
    let scales = |zero_point| {
        Scales::new(Granularity::Tensor, Precision::F32, vec![1.0], Some(vec![zero_point])).unwrap()
    };
    let int3 = |codes: [i8; 3], zero_point| {
        encode(DenseValues::Int(Bits::new(3).unwrap(), &codes, &scales(zero_point)))
    };
    assert_eq!(int3([-4, 0, 3], 3), Ok(()));
    let text = |result: Result<(), WeightError>| result.unwrap_err().to_string();
    assert_eq!(text(int3([0, -5, 4], 3)), "code -5 at index 1 is not between -4 and 3");
    assert_eq!(text(int3([0; 3], 4)), "zero point 4 at index 0 is not between -4 and 3");
    let nan = encode(DenseValues::F8E4M3(&[0, 0x7e, 0xff], &scales(0)));
    assert_eq!(text(nan), "the e4m3 code at index 2 is NaN");
}

#[test]
fn a_mask_of_another_pattern_is_refused() {
    let layout = LayoutKind::NofM(NofM::new(2, 4).unwrap());
    // three kept in the second group of row 1
    let mask = Mask::from_fn(2, 8, |row, col| col % 4 < 2 || (row, col) == (1, 6));
    let error = CompressedWeight::encode(
        &[2, 8],
        layout,
        Some(&mask),
        DenseValues::Float(Precision::F32, &[1.0; 16]),
    );
    assert_eq!(error.unwrap_err().to_string(), "row 1: group 1 keeps 3 values where 2:4 has 2");
    let no_mask =
        CompressedWeight::encode(&[2, 8], layout, None, DenseValues::Float(Precision::F32, &[1.0; 16]));
    assert_eq!(no_mask.unwrap_err().to_string(), "row 0: group 0 keeps 4 values where 2:4 has 2");
}
