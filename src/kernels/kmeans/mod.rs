//! K-means of numbers on a line: the values of a codebook, and the nearest of them for every number.
//!
//! Clusters of sorted numbers are runs, so that the best `k` of them can be found by dynamic programming (Wang and Song,
//! "Ckmeans.1d.dp", 2011), here by divide and conquer over each row of its table. Numbers are first gathered into sorted
//! points: all distinct ones of up to 2^17 numbers, of more of them bins of a 2048th of their own size, whose sums are exact integers. Where
//! the table would become too large, the program runs over merged points, and Lloyd's steps over the points themselves
//! follow. Nothing depends on the number of threads or the instruction level.

mod lines;
mod points;
mod portable;

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::level::{Isa, multiversion};
use super::reduce::first_non_finite;
use super::{CHUNK, PARALLEL_MIN};
use crate::error::NonFinite;
use lines::Lines;
use points::Points;

multiversion! {
    #[allow(clippy::too_many_arguments)] // slices of a table, and where in them
    pub(super) fn fill_in(
        before: &[f64],
        s: [&[f64]; 3],
        not_before: &[u32],
        first: usize,
        costs: &mut [f64],
        starts: &mut [u32],
        range: [usize; 2],
    ) = portable::fill
}

multiversion! {
    fn nearest_in(values: &[f32], ends: &[f32], codes: &mut [u8]) = portable::nearest
}

/// Lloyd's steps at most.
const STEPS: usize = 300;

/// Where the search for centroids starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At the best clusters, by dynamic programming.
    #[default]
    Optimal,
    /// Evenly from the smallest to the largest value (Han et al., "Deep Compression", section 3.2).
    Linear,
    /// Evenly over the cumulative distribution (the same).
    Density,
    /// At random values (the same: Forgy).
    Random {
        /// Seed of the choice.
        seed: u64,
    },
}

/// The centroids of at most `clusters` clusters with a small sum of `weight · (value − centroid)²`, ascending.
///
/// From [`Start::Optimal`] it is the smallest there is for up to 2^17 values of which up to `2^20 / clusters` are distinct, and
/// within a fraction of a thousandth of it for more; from any other start it is what Lloyd's algorithm ends at. Of more than 2^17
/// values those that agree in sign, exponent and the upper 11 bits of the mantissa count as one. There are fewer centroids
/// than asked for when there are fewer values that differ, and none of no values. Values of weight 0 count only if all are.
///
/// # Shapes
/// `weights`, finite and at least 0, has as many elements as `values`; without it all weigh the same.
///
/// ```
/// use tersor::kernels::kmeans::{Start, centroids, nearest};
///
/// let values = [0.9f32, -1.0, 1.1, 0.0, -1.2, 1.0];
/// let centers = centroids(&values, None, 3, Start::Optimal)?;
/// assert_eq!(centers, [-1.1, 0.0, 1.0]);
/// let mut codes = [0; 6];
/// nearest(&values, &centers, &mut codes);
/// assert_eq!(codes, [2, 0, 2, 1, 0, 2]);
/// # Ok::<(), tersor::NonFinite>(())
/// ```
///
/// # Errors
/// When a value or weight is NaN or infinite.
///
/// # Panics
/// When the lengths differ, or a weight is negative.
pub fn centroids(
    values: &[f32],
    weights: Option<&[f32]>,
    clusters: usize,
    start: Start,
) -> Result<Vec<f32>, NonFinite> {
    first_non_finite(values).map_or(Ok(()), Err)?;
    if let Some(weights) = weights {
        assert_eq!(weights.len(), values.len(), "weights");
        first_non_finite(weights).map_or(Ok(()), Err)?;
        assert!(weights.iter().all(|weight| *weight >= 0.0), "a negative weight");
    }
    let points = Points::gather(values, weights);
    if points.len() <= clusters {
        return Ok(points.positions().map(|x| x as f32).collect());
    }
    if clusters == 0 {
        return Ok(Vec::new());
    }
    let starts = match start {
        Start::Optimal => {
            let (merged, firsts) = points.merged(lines::most_points(clusters));
            let ends = Lines::of(&merged).clusters(clusters.min(merged.len()));
            // from merged points to those they were made of
            let ends: Vec<usize> =
                ends.into_iter().map(|end| firsts.get(end).copied().unwrap_or(points.len())).collect();
            points.means(&ends)
        }
        Start::Linear => {
            let (low, high) = (points.position(0), points.position(points.len() - 1));
            let step = (high - low) / (clusters.max(2) - 1) as f64;
            (0..clusters).map(|i| low + step * i as f64).collect()
        }
        Start::Density => {
            (0..clusters).map(|i| points.quantile((i as f64 + 0.5) / clusters as f64)).collect()
        }
        Start::Random { seed } => {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut chosen = Vec::new();
            while chosen.len() < clusters {
                let at = random.random_range(0..points.len());
                if !chosen.contains(&at) {
                    chosen.push(at);
                }
            }
            chosen.sort_unstable();
            chosen.into_iter().map(|at| points.position(at)).collect()
        }
    };
    Ok(points.lloyd(starts, STEPS).into_iter().map(|x| x as f32).collect())
}

/// The number of the nearest centroid of every value, of two as near as each other the lower.
///
/// # Shapes
/// `codes` has as many elements as `values`; `centroids` is 1 to 256 numbers, ascending.
///
/// # Panics
/// When they have other lengths.
pub fn nearest(values: &[f32], centroids: &[f32], codes: &mut [u8]) {
    assert_eq!(values.len(), codes.len(), "codes");
    assert!((1..=256).contains(&centroids.len()), "{} centroids", centroids.len());
    let ends: Vec<f32> = centroids.windows(2).map(|pair| end_between(pair[0], pair[1])).collect();
    let isa = Isa::current();
    if values.len() < PARALLEL_MIN {
        return nearest_in(isa, values, &ends, codes);
    }
    let pieces = values.par_chunks(CHUNK).zip(codes.par_chunks_mut(CHUNK));
    pieces.for_each(|(values, codes)| nearest_in(isa, values, &ends, codes));
}

/// The largest number that is no nearer to `above` than to `below`.
fn end_between(below: f32, above: f32) -> f32 {
    // exact: both have 24 bits, and what is lost of a far smaller one is less than the distance of neighbours
    let middle = f64::from(below) / 2.0 + f64::from(above) / 2.0;
    let rounded = middle as f32;
    if f64::from(rounded) > middle { rounded.next_down() } else { rounded }
}

/// The sum of `weight · (value − nearest centroid)²`, in `f64`.
///
/// # Shapes
/// As of [`centroids`]; the centroids are ascending, and at least one.
///
/// # Panics
/// When there is none.
pub fn squared_error(values: &[f32], weights: Option<&[f32]>, centroids: &[f32]) -> f64 {
    assert!(!centroids.is_empty(), "no centroids");
    let of_piece = |piece: usize| {
        let span = piece * CHUNK..((piece + 1) * CHUNK).min(values.len());
        let mut codes = vec![0u8; span.len()];
        nearest(&values[span.clone()], centroids, &mut codes);
        let squares = span.zip(codes).map(|(i, code)| {
            let distance = f64::from(values[i]) - f64::from(centroids[usize::from(code)]);
            weights.map_or(1.0, |weights| f64::from(weights[i])) * distance * distance
        });
        squares.sum::<f64>()
    };
    let pieces: Vec<f64> = (0..values.len().div_ceil(CHUNK)).into_par_iter().map(of_piece).collect();
    pieces.into_iter().sum()
}

#[cfg(test)]
mod tests;
