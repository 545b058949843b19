use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::level::Isa;
use super::*;

/// The least cost of all ways to cut sorted values into runs.
fn least_by_trying(sorted: &[(f64, f64)], clusters: usize) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    if clusters == 0 {
        return f64::INFINITY;
    }
    let cost = |run: &[(f64, f64)]| {
        let weight: f64 = run.iter().map(|(_, w)| w).sum();
        let mean = run.iter().map(|(x, w)| x * w).sum::<f64>() / weight;
        run.iter().map(|(x, w)| w * (x - mean) * (x - mean)).sum::<f64>()
    };
    (1..=sorted.len())
        .map(|first| cost(&sorted[..first]) + least_by_trying(&sorted[first..], clusters - 1))
        .fold(f64::INFINITY, f64::min)
}

proptest::proptest! {
    #[test]
    fn clusters_are_the_best_there_are(
        steps in proptest::collection::vec((-20i16..20, 0u8..5), 1..9),
        clusters in 1usize..5,
        weighted: bool,
    ) {
        let values: Vec<f32> = steps.iter().map(|(x, _)| f32::from(*x) / 4.0).collect();
        let weights: Vec<f32> = steps.iter().map(|(_, w)| if weighted { f32::from(*w) } else { 1.0 }).collect();
        let found = centroids(&values, Some(&weights), clusters, Start::Optimal).unwrap();
        // where nothing weighs anything, everything weighs the same
        let weights = if weights.iter().all(|w| *w == 0.0) { vec![1.0; weights.len()] } else { weights };
        let mut sorted: Vec<(f64, f64)> = values.iter().zip(&weights)
            .map(|(x, w)| (f64::from(*x), f64::from(*w)))
            .filter(|(_, w)| *w > 0.0)
            .collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let least = least_by_trying(&sorted, clusters);
        let error = squared_error(&values, Some(&weights), &found);
        proptest::prop_assert!((error - least).abs() <= 1e-5 * (1.0 + least), "{error} {least} {found:?}");
        proptest::prop_assert!(found.is_sorted() && found.len() <= clusters);
    }

    #[test]
    fn every_level_finds_the_nearest(
        values in proptest::collection::vec(-3.0f32..3.0, 0..200),
        mut centers in proptest::collection::vec(-2.0f32..2.0, 1..40),
    ) {
        centers.sort_by(f32::total_cmp);
        let ends: Vec<f32> = centers.windows(2).map(|pair| end_between(pair[0], pair[1])).collect();
        for isa in Isa::all() {
            let mut codes = vec![0xee; values.len()];
            nearest_in(isa, &values, &ends, &mut codes);
            for (x, code) in values.iter().zip(codes) {
                let distance = |c: &f32| (f64::from(*c) - f64::from(*x)).abs();
                let least = centers.iter().map(distance).fold(f64::INFINITY, f64::min);
                proptest::prop_assert_eq!(distance(&centers[usize::from(code)]), least);
            }
        }
    }

    #[test]
    fn every_level_fills_the_table_with_the_least(
        steps in proptest::collection::vec((0.0f64..0.1, 1u8..4), 2..150),
        equal: bool,
    ) {
        // sorted positions with weights, some of them equally far from each other, so that starts are as good as others
        let mut x = 0.0;
        let sums: Vec<[f64; 3]> = std::iter::once([0.0; 3]).chain(steps.iter().scan([0.0; 3], |sums, (step, weight)| {
            x += if equal { 0.125 } else { *step };
            let weight = f64::from(*weight);
            *sums = [sums[0] + weight, sums[1] + weight * x, sums[2] + weight * x * x];
            Some(*sums)
        })).collect();
        let sums = [0, 1, 2].map(|i| sums.iter().map(|sums| sums[i]).collect::<Vec<f64>>());
        let points = steps.len();
        let cost = |start: usize, end: usize| {
            let [weight, sum, squares] = [0, 1, 2].map(|i| sums[i][end] - sums[i][start]);
            squares - sum * sum / weight
        };
        let mut before: Vec<f64> = (0..=points).map(|end| if end == 0 { 0.0 } else { cost(0, end) }).collect();
        let mut not_before = vec![0u32; points + 1];
        for row in 2..=points.min(6) {
            let mut filled: Option<(Vec<f64>, Vec<u32>)> = None;
            for isa in Isa::all() {
                let (mut costs, mut starts) = (vec![f64::INFINITY; points + 1], vec![0u32; points + 1]);
                let views = [0, 1, 2].map(|i| sums[i].as_slice());
                let range = [row - 1, points - 1];
                fill_in(isa, &before, views, &not_before, row, &mut costs[row..], &mut starts[row..], range);
                for end in row..=points {
                    let least = (row - 1..end).map(|start| before[start] + cost(start, end)).fold(f64::INFINITY, f64::min);
                    // bounds can cut off what roundings alone make less
                    proptest::prop_assert!((costs[end] - least).abs() <= 1e-12 * (1.0 + sums[2][points]), "{row} {end}");
                    let start = starts[end] as usize;
                    proptest::prop_assert_eq!(costs[end], before[start] + cost(start, end));
                }
                let first = filled.get_or_insert_with(|| (costs.clone(), starts.clone()));
                proptest::prop_assert_eq!((&first.0, &first.1), (&costs, &starts));
            }
            (before, not_before) = filled.unwrap();
        }
    }
}

/// Normal values with some far larger ones.
fn heavy_tailed(count: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut value = |i: usize| {
        let normal: f32 = (0..12).map(|_| random.random::<f32>()).sum::<f32>() - 6.0;
        if i.is_multiple_of(1000) { normal * 40.0 } else { normal }
    };
    (0..count).map(&mut value).collect()
}

#[test]
fn binned_values_are_as_good_as_sorted_ones() {
    let values = heavy_tailed(300_000);
    // what the exact program makes of all distinct values: a table of 16 × 300,000
    let mut sorted = values.clone();
    sorted.sort_by(f32::total_cmp);
    let exact = |clusters: usize| {
        let points = Points::sorted(&sorted);
        let means = points.means(&Lines::of(&points).clusters(clusters));
        let means: Vec<f32> = means.into_iter().map(|x| x as f32).collect();
        squared_error(&values, None, &means)
    };
    for clusters in [2, 16] {
        let found = centroids(&values, None, clusters, Start::Optimal).unwrap();
        assert_eq!(found.len(), clusters);
        let (error, least) = (squared_error(&values, None, &found), exact(clusters));
        assert!(error < least * 1.0001 && error > least * 0.999_999, "{clusters}: {error} {least}");
    }
}

#[test]
fn threads_do_not_matter() {
    let values = heavy_tailed(200_000);
    let weights: Vec<f32> = values.iter().map(|x| x.abs()).collect();
    let run = |threads: usize, weights: Option<&[f32]>| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| centroids(&values, weights, 16, Start::Optimal).unwrap())
    };
    for weights in [None, Some(weights.as_slice())] {
        let expected = run(1, weights);
        assert_eq!(run(2, weights), expected);
        assert_eq!(run(5, weights), expected);
    }
}

#[test]
fn starts_by_hand() {
    // Lloyd's algorithm ends at two clusters of three
    let values = [0.0f32, 1.0, 2.0, 10.0, 11.0, 12.0];
    for start in [Start::Linear, Start::Density, Start::Random { seed: 3 }, Start::Optimal] {
        assert_eq!(centroids(&values, None, 2, start).unwrap(), [1.0, 11.0], "{start:?}");
    }
    assert_eq!(centroids(&values, None, 1, Start::Linear).unwrap(), [6.0]);
    assert_eq!(centroids(&[], None, 3, Start::Optimal).unwrap(), [0.0f32; 0]);
    assert_eq!(centroids(&[-0.0, 0.0, 5.0], None, 3, Start::Optimal).unwrap(), [0.0, 5.0]);
    // a far heavier value draws its cluster
    let drawn = centroids(&values, Some(&[1e-3, 1e-3, 1.0, 1.0, 1e-3, 1e-3]), 2, Start::Optimal).unwrap();
    assert!((drawn[0] - 2.0).abs() < 0.01 && (drawn[1] - 10.0).abs() < 0.01, "{drawn:?}");
    let error = centroids(&[1.0, f32::NAN], None, 2, Start::Optimal).unwrap_err();
    assert!(error.to_string().contains('1'), "{error}");
}

#[test]
fn largest_numbers_have_a_middle() {
    assert_eq!(end_between(f32::MIN, f32::MAX), 0.0);
    assert_eq!(end_between(1.0, 1.0f32.next_up()), 1.0);
    let centers = [-f32::MAX, f32::MAX];
    assert_eq!(centroids(&centers, None, 2, Start::Optimal).unwrap(), centers);
}

/// All but one of many values lie so close together beside it that bisections of the span hardly tell them apart.
#[test]
fn an_outlier_beyond_all_measure_takes_one_cluster() {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut values: Vec<f32> = (0..70_000).map(|_| random.random_range(-0.1..0.1)).collect();
    values.push(1e20);
    let centers = centroids(&values, None, 16, Start::Optimal).unwrap();
    assert_eq!((centers.len(), centers[15]), (16, 1e20));
    assert!(centers[..15].iter().all(|x| x.abs() < 0.1), "{centers:?}");
}
