//! Pruning through the public API, against sorting.

use proptest::prelude::*;
use tersor::{
    Axis, Compressed, CubicSchedule, Layer, LayoutKind, Magnitude, MagnitudeThreshold, Mask, Method,
    MethodError, NofM, Precision, Sparsity, Structured, n_of_m_mask,
};

fn layer<'a>(shape: &'a [usize], values: &'a [f32], layout: LayoutKind) -> Layer<'a> {
    Layer { layout, ..Layer::new(shape, values, Precision::F32) }
}

fn sparsity(fraction: f64) -> Sparsity {
    Sparsity::new(fraction).unwrap()
}

fn unstructured(fraction: f64) -> Magnitude {
    Magnitude::Unstructured(sparsity(fraction))
}

fn n_of_m(pattern: NofM) -> Magnitude {
    Magnitude::NofM(pattern)
}

/// Which of some keys stay when the `drop` smallest go: sorted, among equals the higher index first.
fn keep_largest<T: PartialOrd>(keys: &[T], drop: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by(|a, b| keys[*a].partial_cmp(&keys[*b]).unwrap().then(b.cmp(a)));
    let mut keep = vec![true; keys.len()];
    order[..drop].iter().for_each(|i| keep[*i] = false);
    keep
}

fn magnitudes(values: &[f32]) -> Vec<f32> {
    values.iter().map(|x| x.abs()).collect()
}

fn bools(mask: &Mask) -> Vec<bool> {
    (0..mask.rows()).flat_map(|row| (0..mask.cols()).map(move |col| mask.keeps(row, col))).collect()
}

/// Checks mask, stored mask and values of a pruned layer.
fn assert_pruned(result: &Compressed, values: &[f32], keep: &[bool]) {
    assert_eq!(bools(&result.weight.mask().unwrap()), keep);
    assert_eq!(result.weight.form().kept(), keep.iter().filter(|k| **k).count());
    let expected: Vec<f32> = values.iter().zip(keep).map(|(x, k)| if *k { *x } else { 0.0 }).collect();
    assert_eq!(result.weight.dequantize().as_slice().unwrap(), expected);
}

/// A mixture of frequent ties, zeros of both signs, denormals, and values of their own.
fn values(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        (-2..=2i8).prop_map(f32::from),
        Just(-0.0f32),
        any::<f32>().prop_map(|x| if x.is_finite() { x } else { f32::MIN_POSITIVE / 3.0 }),
    ];
    proptest::collection::vec(value, len)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn magnitude_drops_exactly_the_smallest(
        (rows, cols, values, drop) in (1..20usize, 1..40usize).prop_flat_map(|(rows, cols)| {
            (Just(rows), Just(cols), values(rows * cols), 0..rows * cols)
        }),
        layout in prop_oneof![Just(LayoutKind::Bitmask), Just(LayoutKind::CompressedRows)],
    ) {
        let method = unstructured(drop as f64 / values.len() as f64);
        let shape = [rows, cols];
        let layer = layer(&shape, &values, layout);
        let keep = keep_largest(&magnitudes(&values), drop);
        prop_assert_eq!(bools(&method.mask(&layer).unwrap()), &keep[..]);
        assert_pruned(&method.compress(&layer).unwrap(), &values, &keep);
    }

    #[test]
    fn a_threshold_cuts_across_tensors_like_one_sort(
        tensors in proptest::collection::vec((1..6usize, 0..30usize), 0..6),
        all in values(6 * 5 * 30),
        fraction in 0.0..=1.0f64,
        piece in 1..50usize,
    ) {
        let count = tensors.iter().map(|(rows, cols)| rows * cols).sum::<usize>();
        let all = &all[..count];
        let drop = (fraction * count as f64) as usize;
        let mut calls = 0;
        let mut threshold = MagnitudeThreshold::find(drop as u64, |show| {
            calls += 1;
            all.chunks(piece).for_each(&mut *show);
            Ok::<(), MethodError>(())
        })
        .unwrap();
        prop_assert!(calls <= 3);
        let mut kept = Vec::new();
        for (rows, cols) in &tensors {
            let values = &all[kept.len()..kept.len() + rows * cols];
            kept.extend(bools(&threshold.next_mask(*rows, *cols, values).unwrap()));
        }
        prop_assert_eq!(kept, keep_largest(&magnitudes(all), drop));
        prop_assert_eq!(threshold.kept_ties(), 0, "every tie must have been spent");
    }

    #[test]
    fn structured_drops_the_smallest_norms(
        shape in prop_oneof![
            (1..30usize, 1..30usize).prop_map(|(r, c)| vec![r, c]),
            (1..10usize, 1..5usize, 1..4usize, 1..4usize).prop_map(|(o, i, h, w)| vec![o, i, h, w]),
        ],
        seed in proptest::collection::vec(-3..=3i32, 900),
        rows_go in any::<bool>(),
        share in 0.0..1.0f64,
    ) {
        let (rows, cols) = (shape[0], shape[1..].iter().product::<usize>());
        // small integers: the squared norms are exact, and often equal
        let integers = &seed[..rows * cols];
        let values: Vec<f32> = integers.iter().map(|x| *x as f32).collect();
        let unit = |i: usize| if rows_go { i / cols } else { i % cols };
        let mut norms = vec![0; if rows_go { rows } else { cols }];
        integers.iter().enumerate().for_each(|(i, x)| norms[unit(i)] += x * x);
        let drop = (share * norms.len() as f64) as usize;
        let kept = keep_largest(&norms, drop);
        let keep: Vec<bool> = (0..values.len()).map(|i| kept[unit(i)]).collect();
        let axis = if rows_go { Axis::Rows } else { Axis::Cols };
        let method = Structured::new(axis, sparsity(drop as f64 / norms.len() as f64));
        let layer = layer(&shape, &values, LayoutKind::CompressedRows);
        prop_assert_eq!(bools(&method.mask(&layer).unwrap()), &keep[..]);
        assert_pruned(&method.compress(&layer).unwrap(), &values, &keep);
    }
}

#[test]
fn every_n_of_m_keeps_the_largest_of_each_group() {
    let mut patterns = 0;
    for m in 1..=16 {
        for n in 1..=m {
            let pattern = NofM::new(n, m).unwrap();
            for cols in [0, 1, m - 1, m, m + 1, 2 * m - 1, 3 * m + m / 2, 37] {
                let rows = 5;
                // magnitudes 0 to 6 in a scattered order, so that ties are frequent; signs of their own
                let value = |i: usize| {
                    ((i * i + 3 * i) % 7) as f32 * if (i * 5).is_multiple_of(3) { -1.0 } else { 1.0 }
                };
                let values: Vec<f32> = (0..rows * cols).map(value).collect();
                let mut keep = Vec::new();
                for row in 0..rows {
                    for group in values[row * cols..(row + 1) * cols].chunks(m) {
                        keep.extend(keep_largest(&magnitudes(group), group.len().saturating_sub(n)));
                    }
                }
                let mask = n_of_m_mask(pattern, rows, cols, &values).unwrap();
                assert_eq!(bools(&mask), keep, "{pattern} of {cols} columns");
                assert_eq!(mask.kept(), rows * pattern.kept_per_row(cols), "{pattern} of {cols} columns");
                let shape = [rows, cols];
                let method = n_of_m(pattern);
                for layout in [LayoutKind::NofM(pattern), LayoutKind::Bitmask, LayoutKind::CompressedRows] {
                    assert_pruned(&method.compress(&layer(&shape, &values, layout)).unwrap(), &values, &keep);
                }
            }
            patterns += 1;
        }
    }
    assert_eq!(patterns, 136);
}

#[test]
fn counts_round_to_the_nearest_and_halves_away_from_zero() {
    let counts = [(0.5, 3), (0.5, 5), (0.1, 4), (0.9, 1), (0.25, 10), (0.0, 7), (0.7, 1_000_000_007)];
    assert_eq!(counts.map(|(s, n)| sparsity(s).of(n)), [2, 3, 0, 1, 3, 0, 700_000_005]);
}

#[test]
fn an_earlier_mask_stays_and_decides_the_layout() {
    let values = [4.0, 0.0, 2.0, 1.0, 0.0, 6.0, 7.0, 8.0];
    let pattern = NofM::new(2, 4).unwrap();
    let method = n_of_m(pattern);
    let shape = [1, 8];
    // fits the pattern: what the method would keep is kept
    let fits = Mask::from_fn(1, 8, |_, col| ![1, 4].contains(&col));
    let with = |mask| Layer { mask: Some(mask), ..layer(&shape, &values, LayoutKind::NofM(pattern)) };
    let result = method.compress(&with(&fits)).unwrap();
    assert_eq!(result.weight.form().layout(), LayoutKind::NofM(pattern));
    assert_pruned(&result, &values, &[true, false, true, false, false, false, true, true]);
    // takes one of the two that 2:4 needs: a bitmask holds what is left
    let conflicts = Mask::from_fn(1, 8, |_, col| col != 7);
    let result = method.compress(&with(&conflicts)).unwrap();
    assert_eq!(result.weight.form().layout(), LayoutKind::Bitmask);
    assert_pruned(&result, &values, &[true, false, true, false, false, false, true, false]);
}

#[test]
fn a_dense_layout_holds_zeros_where_weights_went() {
    let values = [3.0, -1.0, -2.0, 0.5];
    let weight = unstructured(0.5).compress(&layer(&[2, 2], &values, LayoutKind::Dense)).unwrap().weight;
    assert_eq!(weight.mask(), None);
    assert_eq!(weight.dequantize().as_slice().unwrap(), [3.0, 0.0, -2.0, 0.0]);
}

#[test]
fn nan_and_infinity_are_refused_with_their_index() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let values = [1.0, 2.0, bad, bad];
        let layer = layer(&[2, 2], &values, LayoutKind::Bitmask);
        let errors = [
            unstructured(0.5).compress(&layer).unwrap_err(),
            n_of_m(NofM::new(1, 2).unwrap()).compress(&layer).unwrap_err(),
            Structured::new(Axis::Rows, sparsity(0.5)).compress(&layer).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(&error, MethodError::NonFinite(found) if found.index == 2), "{error}");
        }
    }
}

#[test]
fn what_visit_returns_comes_out() {
    assert_eq!(MagnitudeThreshold::find(1, |_| Err("unreadable")), Err("unreadable"));
}

#[test]
fn the_cubic_schedule_by_hand() {
    let schedule = CubicSchedule::new(sparsity(0.25), sparsity(0.75), 1000, 1400).unwrap();
    // s = 0.75 − 0.5 · (1 − done)³, every number a sum of powers of two
    let by_hand = [
        (0, 0.25),
        (1000, 0.25),
        (1100, 0.75 - 0.5 * 27.0 / 64.0),
        (1200, 0.75 - 0.5 / 8.0),
        (1300, 0.75 - 0.5 / 64.0),
        (1400, 0.75),
        (u64::MAX, 0.75),
    ];
    for (step, expected) in by_hand {
        assert_eq!(schedule.at(step).get(), expected, "step {step}");
    }
    // downwards, too
    let falling = CubicSchedule::new(sparsity(0.5), sparsity(0.0), 0, 2).unwrap();
    assert_eq!([0, 1, 2].map(|t| falling.at(t).get()), [0.5, 0.0625, 0.0]);
    for end in [0, 5] {
        let error = CubicSchedule::new(sparsity(0.0), sparsity(0.5), 5, end).unwrap_err();
        assert!(error.to_string().starts_with(&format!("last step is {end}")), "{error}");
    }
}

#[test]
fn a_cubic_schedule_never_leaves_its_ends_or_turns_back() {
    let schedule = CubicSchedule::new(sparsity(0.1), sparsity(0.9), 3, 3003).unwrap();
    let curve: Vec<f64> = (0..3010).map(|t| schedule.at(t).get()).collect();
    assert!(curve.windows(2).all(|w| w[0] <= w[1]));
    assert_eq!((curve[0], curve[3009]), (0.1, 0.9));
}
