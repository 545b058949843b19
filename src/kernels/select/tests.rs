use proptest::prelude::*;

use super::*;

/// Sort by magnitude, then by index: drop the smallest, among equals the last.
fn oracle(values: &[f32], drop: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|i| (magnitude_bits(values[*i]), std::cmp::Reverse(*i)));
    let mut keep = vec![true; values.len()];
    order.iter().take(drop).for_each(|i| keep[*i] = false);
    keep
}

fn bit(bits: &[u8], i: usize) -> bool {
    bits[i / 8] >> (i % 8) & 1 == 1
}

/// Ties, zeros of both signs, denormals, the largest, NaN with payloads, and values of their own.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        (-2..=2i8).prop_map(f32::from),
        Just(-0.0f32),
        Just(f32::MAX),
        Just(f32::from_bits(3)),
        (0..=u32::MAX).prop_map(f32::from_bits),
    ]
}

#[test]
fn n_of_m_keeps_the_largest_and_the_first_of_equals() {
    let keep = |group: &[f32], n| portable::keep_n_of_group(group, n);
    assert_eq!(keep(&[1.0, -3.0, 2.0, 0.5], 2), 0b0110);
    assert_eq!(keep(&[1.0, -1.0, 1.0, 1.0], 2), 0b0011);
    assert_eq!(keep(&[0.0, 0.0, 0.0, 5.0], 2), 0b1001);
    assert_eq!(keep(&[1.0, 2.0, 3.0], 5), 0b111);
}

#[test]
fn magnitude_bits_order_like_magnitudes() {
    let values = [0.0f32, -1e-45, 1e-40, -0.5, 0.5f32.next_up(), -3e38];
    assert!(values.windows(2).all(|w| magnitude_bits(w[0]) < magnitude_bits(w[1])));
    assert_eq!(magnitude_bits(-0.0), magnitude_bits(0.0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_level_brackets_alike(
        values in proptest::collection::vec(value(), 0..100),
        ends: (u32, u32),
        from_values in any::<Option<(proptest::sample::Index, proptest::sample::Index)>>(),
    ) {
        let (mut a, mut b) = (ends.0 >> 1, ends.1 >> 1);
        if let (Some((i, j)), false) = (from_values, values.is_empty()) {
            (a, b) = (magnitude_bits(*i.get(&values)), magnitude_bits(*j.get(&values)));
        }
        let (low, high) = (a.min(b), a.max(b));
        let keys: Vec<u32> = values.iter().map(|x| magnitude_bits(*x)).collect();
        let count = |f: &dyn Fn(u32) -> bool| keys.iter().filter(|k| f(**k)).count() as u64;
        let expected = Counts {
            below: count(&|k| k < low),
            at_low: count(&|k| k == low),
            at_high: count(&|k| k == high && low != high),
            above: count(&|k| k > high),
            largest: keys.iter().copied().max().unwrap_or(0),
        };
        let mut expected_inside: Vec<u32> = keys.iter().copied().filter(|k| *k > low && *k < high).collect();
        expected_inside.push(17);
        expected_inside.sort_unstable();
        for isa in Isa::all() {
            let mut inside = vec![17];
            prop_assert_eq!(bracket(isa, &values, low, high, &mut inside), expected, "{:?}", isa);
            inside.sort_unstable();
            prop_assert_eq!(&inside, &expected_inside);
        }
    }

    #[test]
    fn every_bracket_leads_to_the_cut_or_nowhere(
        values in proptest::collection::vec(value(), 0..100),
        drop in 0..110u64,
        ends: (u32, u32),
        parts in 1..4usize,
    ) {
        let (low, high) = ((ends.0 >> 1).min(ends.1 >> 1), (ends.0 >> 1).max(ends.1 >> 1));
        let tensors: Vec<&[f32]> = values.chunks(values.len().div_ceil(parts).max(1)).collect();
        let sources: Vec<Source<'_>> = tensors.iter().map(|t| Source::Values(t)).collect();
        let selection = select(&sources, drop);
        let by_digits = cut_by_digits(drop, |show| {
            values.chunks(7).for_each(show);
            Ok::<(), ()>(())
        });
        prop_assert_eq!(by_digits, Ok(selection.cut));
        let keep = oracle(&values, drop as usize);
        let mut cut = selection.cut;
        let mut start = 0;
        for (tensor, standing) in tensors.iter().zip(&selection.standings) {
            let ties = standing.ties.min(cut.kept_ties);
            let kept = keep[start..start + tensor.len()].iter().filter(|k| **k).count() as u64;
            prop_assert_eq!(standing.above + ties, kept);
            cut.kept_ties -= ties;
            start += tensor.len();
        }
        prop_assert_eq!(cut.kept_ties, 0);
        prop_assert_eq!(selection.finite, values.iter().all(|x| x.is_finite()));
        for isa in Isa::all() {
            if drop < values.len() as u64 && let Some(other) = select_between(isa, &sources, drop, low, high) {
                prop_assert_eq!(&other, &selection);
            }
        }
    }

    #[test]
    fn cuts_are_applied_alike_at_every_level(
        values in proptest::collection::vec(value(), 0..200),
        cols in 1..70usize,
        drop in 0..210u64,
    ) {
        let rows = values.len() / cols;
        let values = &values[..rows * cols];
        let keep = oracle(values, drop as usize);
        let cut = magnitude_cut(&[values], drop);
        for isa in Isa::all() {
            let mut bits = vec![0xff; rows * cols.div_ceil(8)];
            mask_from_with(isa, values, cols, &mut { cut }, &mut bits);
            for (i, keep) in keep.iter().enumerate() {
                prop_assert_eq!(bit(&bits, i / cols * cols.div_ceil(8) * 8 + i % cols), *keep, "{:?}", isa);
            }
            let count: u32 = bits.iter().map(|b| b.count_ones()).sum();
            prop_assert_eq!(count as usize, keep.iter().filter(|k| **k).count(), "bits beyond the columns");
            let mut zeroed = values.to_vec();
            let ties = zero_below_in(isa, &mut zeroed, cut.bits);
            prop_assert_eq!(ties, values.iter().filter(|x| magnitude_bits(**x) == cut.bits).count() as u64);
            for (x, y) in values.iter().zip(&zeroed) {
                let expected = if magnitude_bits(*x) < cut.bits { 0 } else { x.to_bits() };
                prop_assert_eq!(y.to_bits(), expected);
            }
        }
        let mut zeroed = values.to_vec();
        let mut left = cut;
        zero_below(&mut zeroed, &mut left);
        prop_assert_eq!(left.kept_ties, 0);
        for ((x, y), keep) in values.iter().zip(&zeroed).zip(&keep) {
            prop_assert_eq!(y.to_bits(), if *keep { x.to_bits() } else { 0 });
        }
    }

    #[test]
    fn groups_are_masked_alike_at_every_level(
        values in proptest::collection::vec(value(), 0..300),
        cols in 1..90usize,
        (n, m) in (1..=16usize).prop_flat_map(|m| (1..=m, Just(m))),
    ) {
        let rows = values.len() / cols;
        let values = &values[..rows * cols];
        for isa in Isa::all() {
            let mut bits = vec![0xff; rows * cols.div_ceil(8)];
            mask_n_of_m_with(isa, values, cols, n, m, &mut bits);
            for (row, bits) in values.chunks(cols).zip(bits.chunks(cols.div_ceil(8))) {
                let keep: Vec<bool> =
                    row.chunks(m).flat_map(|g| oracle(g, g.len().saturating_sub(n))).collect();
                let beyond = std::iter::repeat_n(false, bits.len() * 8 - cols);
                for (i, keep) in keep.into_iter().chain(beyond).enumerate() {
                    prop_assert_eq!(bit(bits, i), keep, "{:?}, column {}", isa, i);
                }
            }
        }
    }
}

#[test]
fn large_tensors_are_sampled_and_misleading_ones_counted() {
    let count = 3 * SAMPLE;
    let scattered = |i: usize| ((i as u64 * 2_654_435_761 % 1_000_003) as f32 - 5e5) * 1e-3;
    let cases: [(&str, Vec<f32>); 4] = [
        ("scattered", (0..count).map(scattered).collect()),
        ("all equal", vec![-0.25; count]),
        ("two thirds zero", (0..count).map(|i| if i % 3 == 0 { scattered(i) } else { -0.0 }).collect()),
        ("ascending", (0..count).map(|i| i as f32).collect()),
    ];
    for (name, values) in cases {
        let tensors: Vec<&[f32]> = values.chunks(100_003).collect();
        let mut sorted: Vec<u32> = values.iter().map(|x| magnitude_bits(*x)).collect();
        sorted.sort_unstable();
        for drop in [0, 1, count / 3, count / 2, 2 * count / 3, count - 1, count, count + 1] {
            let cut = magnitude_cut(&tensors, drop as u64);
            let Some(bits) = sorted.get(drop).copied() else {
                assert_eq!(cut, Cut::ALL, "{name}");
                continue;
            };
            let not_below = count - sorted.partition_point(|k| *k <= bits);
            let expected = Cut { bits, kept_ties: (count - drop - not_below) as u64 };
            assert_eq!(cut, expected, "{name}, drop {drop}");
            let sources: Vec<Source<'_>> = tensors.iter().map(|t| Source::Values(t)).collect();
            // brackets beside the cut, around everything, and of one magnitude
            for isa in Isa::all() {
                assert_eq!(select_between(isa, &sources, drop as u64, bits + 1, u32::MAX >> 1), None);
                let exact = select_between(isa, &sources, drop as u64, bits, bits).unwrap();
                assert_eq!(exact.cut, expected, "{name}");
            }
            let mut zeroed = values.clone();
            zero_below(&mut zeroed, &mut { cut });
            let kept = zeroed.iter().zip(&values).filter(|(x, y)| x.to_bits() == y.to_bits()).count();
            assert!(kept >= count - drop, "{name}, drop {drop}: {kept}");
            let by_digits = cut_by_digits(drop as u64, |show| {
                for tensor in &tensors {
                    show(tensor);
                }
                Ok::<(), ()>(())
            });
            assert_eq!(by_digits, Ok(expected), "{name}");
        }
    }
}

#[test]
fn bytes_of_any_type_and_alignment_are_selected_from() {
    let values: Vec<f32> = (0..3000).map(|i| ((i * 37 % 1001) as f32 - 500.0) * 0.25).collect();
    let expected = select(&[Source::Values(&values)], 1234);
    for (precision, float) in [
        (crate::Precision::F32, FloatType::F32),
        (crate::Precision::F16, FloatType::F16),
        (crate::Precision::Bf16, FloatType::Bf16),
    ] {
        for offset in 0..4 {
            let mut bytes = vec![0; offset];
            convert::narrow(precision, &values, &mut bytes);
            let rounded: Vec<f32> = values.iter().map(|x| precision.round(*x)).collect();
            let expected_here = if precision == crate::Precision::F32 {
                expected.clone()
            } else {
                select(&[Source::Values(&rounded)], 1234)
            };
            assert_eq!(select(&[Source::of(float, &bytes[offset..])], 1234), expected_here);
        }
    }
}
