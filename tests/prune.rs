//! Pruning through the public API, against sorting.

use ndarray::Array2;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tersor::{
    Alternative, Axis, Bits, Compressed, CpuLevel, CubicSchedule, Damping, Gptq, Granularity, Layer,
    LayerStats, LayoutKind, Magnitude, MagnitudeThreshold, Mask, Method, MethodError, Needs, NofM, Precision,
    Pruning, SparseGpt, Sparsity, SparsityPattern, Structured, Wanda, n_of_m_mask,
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

/// Weights, inputs whose channels go together, and statistics of these.
fn calibrated(rows: usize, cols: usize, tokens: usize) -> (Vec<f32>, Array2<f32>, LayerStats) {
    let mut random = ChaCha8Rng::seed_from_u64((rows * cols) as u64);
    let values = (0..rows * cols).map(|_| random.random_range(-1.0..1.0)).collect();
    let common = Array2::from_shape_fn((tokens, 7), |_| random.random_range(-1.0..1.0f32));
    let inputs = Array2::from_shape_fn((tokens, cols), |(t, c)| {
        (1.0 + (c % 5) as f32) * (common[[t, c % 7]] + random.random_range(-0.4..0.4))
    });
    let mut stats = LayerStats::new(cols, Needs::Hessian);
    stats.observe(inputs.view()).unwrap();
    (values, inputs, stats)
}

fn half() -> SparsityPattern {
    SparsityPattern::Unstructured(sparsity(0.5))
}

fn of(n: usize, m: usize) -> SparsityPattern {
    SparsityPattern::NofM(NofM::new(n, m).unwrap())
}

/// What a pattern keeps of the neighbours, or of all, by these numbers.
fn keep_by(pattern: SparsityPattern, saliency: &[f64]) -> Vec<bool> {
    match pattern {
        SparsityPattern::Unstructured(s) => keep_largest(saliency, s.of(saliency.len() as u64) as usize),
        SparsityPattern::NofM(p) => saliency
            .chunks(p.m())
            .flat_map(|group| keep_largest(group, group.len().saturating_sub(p.n())))
            .collect(),
    }
}

#[test]
fn wanda_compares_weights_times_norms_within_each_row() {
    for (rows, cols, pattern) in [
        (5, 40, half()),
        (1, 1, half()),
        (33, 37, SparsityPattern::Unstructured(sparsity(0.83))),
        (4, 22, of(2, 4)),
        (4, 22, of(3, 5)),
    ] {
        let (values, inputs, stats) = calibrated(rows, cols, 60);
        let shape = [rows, cols];
        let layer = Layer { stats: Some(&stats), ..layer(&shape, &values, LayoutKind::Bitmask) };
        let norms: Vec<f64> = inputs
            .columns()
            .into_iter()
            .map(|x| x.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt())
            .collect();
        let keep: Vec<bool> = values
            .chunks(cols)
            .flat_map(|row| {
                let saliency: Vec<f64> =
                    row.iter().zip(&norms).map(|(w, norm)| f64::from(w.abs()) * norm).collect();
                keep_by(pattern, &saliency)
            })
            .collect();
        let wanda = Wanda::new(pattern);
        assert_eq!(bools(&wanda.mask(&layer).unwrap()), keep, "{rows} × {cols}, {pattern}");
        assert_eq!(wanda.kept(rows, cols), keep.iter().filter(|keep| **keep).count());
        let compressed = wanda.compress(&layer).unwrap();
        if compressed.outcome.as_ref().is_some_and(|outcome| !outcome.kept_plain) {
            assert_pruned(&compressed, &values, &keep);
        }
    }
}

#[test]
fn magnitude_is_kept_where_it_is_better() {
    // the second row hardly matters, but Wanda takes as much of the first
    let values = [4.0, 3.0, 0.1, 0.2];
    let mut stats = LayerStats::new(2, Needs::Hessian);
    stats.observe(ndarray::array![[1.0, 0.0], [0.0, 1.0]].view()).unwrap();
    let layer = Layer { stats: Some(&stats), ..layer(&[2, 2], &values, LayoutKind::Bitmask) };
    let compressed = Wanda::new(half()).compress(&layer).unwrap();
    assert_pruned(&compressed, &values, &[true, true, false, false]);
    let outcome = compressed.outcome.unwrap();
    assert_eq!((outcome.kept_plain, outcome.plain), (true, Alternative::Magnitude));
    assert!((outcome.plain_error - 0.05 / 25.05).abs() < 1e-6 && outcome.error() == outcome.plain_error);
    assert!((outcome.method_error - 9.01 / 25.05).abs() < 1e-6);
    assert_eq!(outcome.words(), "lost to magnitude pruning, which was kept");
    // without the products of channels there is nothing to compare
    let mut stats = LayerStats::new(2, Needs::Channels);
    stats.observe(ndarray::array![[1.0, 0.0], [0.0, 1.0]].view()).unwrap();
    let compressed = Wanda::new(half()).compress(&Layer { stats: Some(&stats), ..layer }).unwrap();
    assert_pruned(&compressed, &values, &[true, false, false, true]);
    assert_eq!(compressed.outcome, None);
}

/// By Gauss and Jordan.
fn inverse(mut a: Array2<f64>) -> Array2<f64> {
    let n = a.nrows();
    let mut inverse = Array2::eye(n);
    for i in 0..n {
        let pivot = a[[i, i]];
        a.row_mut(i).mapv_inplace(|x| x / pivot);
        inverse.row_mut(i).mapv_inplace(|x| x / pivot);
        for k in (0..n).filter(|k| *k != i) {
            let factor = a[[k, i]];
            for j in 0..n {
                a[[k, j]] -= factor * a[[i, j]];
                inverse[[k, j]] -= factor * inverse[[i, j]];
            }
        }
    }
    inverse
}

/// Algorithm 1 of the paper on a layer of one block, with the inverse of what is left of the Hessian in every step.
fn sparse_gpt_by_definition(
    values: &[f32],
    inputs: &Array2<f32>,
    pattern: SparsityPattern,
) -> (Vec<bool>, Array2<f64>) {
    let cols = inputs.ncols();
    let x = inputs.mapv(f64::from);
    let mut hessian = x.t().dot(&x) / x.nrows() as f64;
    let damping = 0.01 * hessian.diag().sum() / cols as f64;
    hessian.diag_mut().mapv_inplace(|x| x + damping);
    let inverses: Vec<Array2<f64>> =
        (0..cols).map(|j| inverse(hessian.slice(ndarray::s![j.., j..]).to_owned())).collect();
    let mut w = Array2::from_shape_fn((values.len() / cols, cols), |(r, c)| f64::from(values[r * cols + c]));
    let mut keep = vec![true; values.len()];
    for j in 0..cols {
        let width = match pattern {
            SparsityPattern::Unstructured(_) => cols,
            SparsityPattern::NofM(p) => p.m(),
        };
        if j % width == 0 {
            let columns = j..(j + width).min(cols);
            let saliency = |r: usize| {
                columns.clone().map(|c| w[[r, c]].powi(2) / inverses[c][[0, 0]]).collect::<Vec<_>>()
            };
            let all: Vec<f64> = (0..w.nrows()).flat_map(saliency).collect();
            let kept: Vec<bool> = match pattern {
                SparsityPattern::Unstructured(_) => keep_by(pattern, &all),
                SparsityPattern::NofM(_) => {
                    all.chunks(columns.len()).flat_map(|row| keep_by(pattern, row)).collect()
                }
            };
            for (i, kept) in kept.iter().enumerate() {
                keep[i / columns.len() * cols + j + i % columns.len()] = *kept;
            }
        }
        for r in 0..w.nrows() {
            if !keep[r * cols + j] {
                let factor = w[[r, j]] / inverses[j][[0, 0]];
                for c in j..cols {
                    w[[r, c]] -= factor * inverses[j][[c - j, 0]];
                }
            }
        }
    }
    (keep, w)
}

#[test]
fn sparse_gpt_is_that_of_the_definition() {
    for (rows, cols, pattern) in [
        (34, 24, half()),
        (7, 30, SparsityPattern::Unstructured(sparsity(0.8))),
        (40, 24, of(2, 4)),
        (3, 25, of(1, 3)),
        (5, 31, of(4, 8)),
    ] {
        let (values, inputs, stats) = calibrated(rows, cols, 100);
        let shape = [rows, cols];
        let layer = Layer { stats: Some(&stats), ..layer(&shape, &values, LayoutKind::CompressedRows) };
        let compressed = SparseGpt::new(pattern).compress(&layer).unwrap();
        let (keep, expected) = sparse_gpt_by_definition(&values, &inputs, pattern);
        assert_eq!(bools(&compressed.weight.mask().unwrap()), keep, "{rows} × {cols}, {pattern}");
        let found = compressed.weight.dequantize();
        let off = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(off < 1e-4, "{rows} × {cols}, {pattern}: {off}");
        // every weight's error as it is, by the definition
        let x = inputs.mapv(f64::from);
        let dense = Array2::from_shape_fn((rows, cols), |(r, c)| f64::from(values[r * cols + c]));
        let energy = |w: &Array2<f64>| w.dot(&x.t()).mapv(|y| y * y).sum();
        let outcome = compressed.outcome.unwrap();
        let error = energy(&(&dense - &found.mapv(f64::from))) / energy(&dense);
        assert!((outcome.error() / error - 1.0).abs() < 1e-3, "{outcome:?} {error}");
        assert!(outcome.method_error < 0.7 * outcome.plain_error, "{outcome:?}");
    }
}

/// Everything that looks at the inputs, on 70 rows: three panels, of which the last is not full.
fn calibrated_methods() -> Vec<Box<dyn Method>> {
    let groups = |size: usize| Granularity::Group(size.try_into().unwrap());
    let int4 = Gptq::int(Bits::new(4).unwrap());
    vec![
        Box::new(Wanda::new(half())),
        Box::new(Wanda::new(of(2, 4))),
        Box::new(SparseGpt::new(half())),
        Box::new(SparseGpt::new(of(2, 4))),
        Box::new(SparseGpt::new(of(3, 7))),
        Box::new(int4.pruning(half())),
        Box::new(int4.granularity(groups(32)).pruning(half())),
        Box::new(int4.granularity(groups(32)).pruning(of(2, 4))),
        Box::new(int4.granularity(groups(30)).pruning(of(2, 4))),
        Box::new(int4.granularity(groups(32)).act_order(true).pruning(of(2, 4))),
        Box::new(int4.act_order(true).pruning(half())),
    ]
}

#[test]
fn calibrated_pruning_depends_on_neither_threads_nor_instructions() {
    let (values, _, stats) = calibrated(70, 300, 400);
    let shape = [70, 300];
    let layer = Layer { stats: Some(&stats), ..layer(&shape, &values, LayoutKind::Bitmask) };
    let before = CpuLevel::current();
    for method in calibrated_methods() {
        let expected = method.compress(&layer).unwrap();
        for level in CpuLevel::ALL.into_iter().filter(|level| level.set_current().is_ok()) {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let found = pool.install(|| method.compress(&layer).unwrap());
                assert!(found == expected, "{}: {level} with {threads} threads", method.name());
            }
        }
        before.set_current().unwrap();
    }
}

#[test]
fn what_an_earlier_step_pruned_stays_zero_and_counts() {
    let (mut values, _, stats) = calibrated(70, 300, 400);
    let shape = [70, 300];
    // one quarter, and more than half of the first row
    let earlier = Mask::from_fn(70, 300, |row, col| (row + col) % 4 > 0 && (row > 0 || col > 200));
    earlier.apply(&mut values).unwrap();
    let layer = layer(&shape, &values, LayoutKind::Bitmask);
    let layer = Layer { stats: Some(&stats), mask: Some(&earlier), ..layer };
    for method in calibrated_methods() {
        let compressed = method.compress(&layer).unwrap();
        let decoded = compressed.weight.dequantize();
        let revived = |((row, col), w): &((usize, usize), &f32)| !earlier.keeps(*row, *col) && **w != 0.0;
        assert_eq!(decoded.indexed_iter().filter(revived).count(), 0, "{}", method.name());
        assert!(compressed.outcome.unwrap().error() < 0.5, "{}", method.name());
        // the sparsity is that of the whole
        let kept = compressed.weight.form().kept();
        assert!((kept as i64 - 70 * 150).abs() <= 70 * 22, "{}: {kept}", method.name());
    }
}

#[test]
fn rounding_and_pruning_together_is_better_than_one_after_the_other() {
    let (values, _, stats) = calibrated(70, 256, 400);
    let shape = [70, 256];
    let groups = Granularity::Group(32.try_into().unwrap());
    for pattern in [half(), of(2, 4)] {
        let layer = Layer { stats: Some(&stats), ..layer(&shape, &values, LayoutKind::Bitmask) };
        let gptq = Gptq::int(Bits::new(3).unwrap()).granularity(groups);
        let pruning = Pruning::from(SparseGpt::new(pattern));
        let joint = pruning.jointly_with(&gptq).unwrap().compress(&layer).unwrap();
        let pruned = pruning.method().compress(&layer).unwrap().weight;
        let (mask, between) = (pruned.mask().unwrap(), pruned.dequantize());
        let after = Layer { values: between.as_slice().unwrap(), mask: Some(&mask), ..layer };
        let in_turn = gptq.compress(&after).unwrap().weight;
        let error = |w: &tersor::CompressedWeight| -> f64 {
            let hessian = stats.hessian().unwrap();
            let difference: Vec<f64> =
                w.dequantize().iter().zip(&values).map(|(a, b)| f64::from(a - b)).collect();
            let row = |d: &[f64]| -> f64 {
                d.iter()
                    .zip(hessian.chunks(256))
                    .map(|(x, h)| x * h.iter().zip(d).map(|(h, y)| f64::from(*h) * y).sum::<f64>())
                    .sum()
            };
            difference.chunks(256).map(row).sum()
        };
        let (joint, in_turn) = (error(&joint.weight), error(&in_turn));
        assert!(joint < 0.97 * in_turn, "{pattern}: {joint} beside {in_turn}");
        assert!(Pruning::from(Wanda::new(pattern)).jointly_with(&gptq).is_none());
    }
}

#[test]
fn rounding_and_pruning_together_take_the_larger_damping_of_both() {
    let (values, _, stats) = calibrated(6, 32, 60);
    let layer = Layer { stats: Some(&stats), ..layer(&[6, 32], &values, LayoutKind::Bitmask) };
    for (pruning, rounding) in [(0.2, 0.05), (0.05, 0.2)] {
        let pruning = Pruning::from(SparseGpt::new(half()).damping(pruning));
        let gptq = Gptq::int(Bits::new(4).unwrap()).damping(rounding);
        let joint = pruning.jointly_with(&gptq).unwrap().compress(&layer).unwrap();
        assert_eq!(joint.outcome.unwrap().damping, 0.2);
    }
    let shrunk = Pruning::from(SparseGpt::new(half()).damping(Damping::of_mean(0.02).shrinkage(0.1)));
    let gptq = Gptq::int(Bits::new(4).unwrap()).damping(Damping::of_mean(0.03).shrinkage(0.05));
    let joint = shrunk.jointly_with(&gptq).unwrap();
    assert!(joint.name().ends_with(", shrinkage 0.1"), "{}", joint.name());
    assert_eq!(joint.compress(&layer).unwrap().outcome.unwrap().damping, 0.03);
    for (pruning, rounding) in [(f64::NAN, 0.01), (0.01, f64::NAN)] {
        let unusable = Pruning::from(SparseGpt::new(half()).damping(pruning));
        let gptq = Gptq::int(Bits::new(4).unwrap()).damping(rounding);
        let error = unusable.jointly_with(&gptq).unwrap().compress(&layer).unwrap_err().to_string();
        assert!(error.contains("damping"), "{error}");
    }
}
