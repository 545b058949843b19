use rayon::prelude::*;

use super::magnitude::{Magnitude, Sparsity};
use super::pattern::SparsityPattern;
use super::pruning::Pruning;
use super::wanda::Wanda;
use crate::kernels::gram::quadratic_forms;
use crate::layer::{Layer, MethodError};
use crate::quantize::calibrated::hessian_of;

/// Rows whose errors are measured together.
const ROWS: usize = 512;

/// What pruning costs a layer, measured at several sparsities.
///
/// ```
/// use tersor::{Layer, Magnitude, Precision, Sensitivity, Sparsity};
///
/// let values: Vec<f32> = (1..=10).map(|i| i as f32).collect();
/// let layer = Layer::new(&[1, 10], &values, Precision::F32);
/// let half = Magnitude::Unstructured(Sparsity::new(0.5)?);
/// let sensitivity = Sensitivity::measure(&layer, &half.into())?;
/// // of 385, the squares of all, the five smallest have 55
/// assert_eq!(sensitivity.points()[5], (0.5, 55.0 / 385.0));
/// # Ok::<(), tersor::MethodError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Sensitivity {
    weights: usize,
    points: Vec<(f64, f64)>,
}

impl Sensitivity {
    /// Sparsities at which a layer is measured.
    pub const SPARSITIES: [f64; 12] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99];

    /// Measures a layer: with the Hessian of its inputs, the relative squared error of its output,
    /// `‖(W − Ŵ)·Xᵀ‖² / ‖W·Xᵀ‖²`; without, that of its weights, `‖W − Ŵ‖² / ‖W‖²`.
    ///
    /// Weights are chosen by magnitude or, with the Hessian and any other method than [`Magnitude`], by [`Wanda`], and those that
    /// stay do not change: for methods that make good what goes this stands in, since each would have to run for every sparsity.
    ///
    /// # Errors
    /// When a value is NaN or infinite, or the statistics are of another layer.
    pub fn measure(layer: &Layer<'_>, pruning: &Pruning) -> Result<Self, MethodError> {
        layer.check()?;
        let hessian = match layer.stats {
            Some(stats) if stats.size() == layer.cols() => Some(hessian_of(stats, || "sensitivity".into())?),
            Some(stats) => {
                return Err(MethodError::StatsShape { expected: layer.cols(), actual: stats.size() });
            }
            None => None,
        };
        let mut masks = Vec::with_capacity(Self::SPARSITIES.len());
        for share in Self::SPARSITIES {
            let pattern = SparsityPattern::Unstructured(Sparsity::new(share)?);
            masks.push(match pruning {
                Pruning::Magnitude(_) => Magnitude::from(pattern).mask(layer)?,
                _ if hessian.is_none() => Magnitude::from(pattern).mask(layer)?,
                _ => Wanda::new(pattern).mask(layer)?,
            });
        }
        let cols = layer.cols();
        let mut sums = vec![0.0f64; 1 + masks.len()];
        for (part, values) in layer.values.chunks((ROWS * cols).max(1)).enumerate() {
            let gone = masks.par_iter().map(|mask| {
                let mut gone = values.to_vec();
                for (row, values) in gone.chunks_exact_mut(cols).enumerate() {
                    mask.kept_in_row(part * ROWS + row).for_each(|column| values[column] = 0.0);
                }
                gone
            });
            let gone: Vec<Vec<f32>> = gone.collect();
            let all: Vec<&[f32]> = std::iter::once(values).chain(gone.iter().map(Vec::as_slice)).collect();
            let of_part = match hessian {
                Some(hessian) => quadratic_forms(&all, cols, hessian),
                None => all.par_iter().map(|values| sum_of_squares(values)).collect(),
            };
            sums.iter_mut().zip(of_part).for_each(|(sum, x)| *sum += x);
        }
        let relative = |squared: f64| if squared <= 0.0 { 0.0 } else { squared / sums[0] };
        let measured = Self::SPARSITIES.into_iter().zip(sums[1..].iter().map(|sum| relative(*sum)));
        let points = std::iter::once((0.0, 0.0)).chain(measured).collect();
        Ok(Self { weights: layer.values.len(), points })
    }

    /// Sparsities, ascending from 0, and the error at each.
    pub fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// Pieces of the largest convex curve below the points: the share at which each ends, and what a weight costs on it.
    fn pieces(&self) -> Vec<(f64, f64)> {
        // at least one weight stays, since a sparsity is less than all; without the others the output is gone
        let all = 1.0 - 1.0 / self.weights.max(1) as f64;
        let inner = self.points.iter().copied().filter(|(share, _)| *share < all);
        let whole = if self.points.last().is_some_and(|(_, error)| *error > 0.0) { 1.0 } else { 0.0 };
        let mut hull: Vec<(f64, f64)> = Vec::new();
        for point in inner.chain((all > 0.0).then_some((all, whole))) {
            while let [.., a, b] = hull[..]
                && slope(a, b) >= slope(b, point)
            {
                hull.pop();
            }
            hull.push(point);
        }
        hull.windows(2)
            .map(|ends| (ends[1].0, slope(ends[0], ends[1]) / self.weights.max(1) as f64))
            .collect()
    }
}

fn slope(from: (f64, f64), to: (f64, f64)) -> f64 {
    (to.1 - from.1) / (to.0 - from.0)
}

fn sum_of_squares(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}

/// The sparsities of layers by what pruning costs them, so that all together lose the share that is asked for and the sum of
/// their relative errors is least.
///
/// Between the sparsities at which a layer was measured its error is taken to lie on the largest convex curve below them. Then
/// what costs least goes first, a piece of a curve after the other, which is the exact minimum (every layer ends with the same
/// slope, the Lagrange multiplier, up to the piece on which the budget ends). Rounding to whole weights moves the sum of all by
/// half a weight a layer at most.
///
/// ```
/// use tersor::{Layer, Magnitude, Precision, Sensitivity, Sparsity, by_sensitivity};
///
/// let half = Sparsity::new(0.5)?;
/// let measure = |values: &[f32]| {
///     Sensitivity::measure(&Layer::new(&[1, 100], values, Precision::F32), &Magnitude::Unstructured(half).into())
/// };
/// // one layer has few weights that count, the other has none that does not
/// let few: Vec<f32> = (0..100).map(|i| if i < 20 { 1.0 } else { 0.001 }).collect();
/// let of = by_sensitivity(&[measure(&few)?, measure(&[1.0; 100])?], half);
/// let percent: Vec<f64> = of.iter().map(|s| (s.get() * 100.0).round()).collect();
/// assert_eq!(percent, [80.0, 20.0]);
/// # Ok::<(), tersor::MethodError>(())
/// ```
pub fn by_sensitivity(layers: &[Sensitivity], sparsity: Sparsity) -> Vec<Sparsity> {
    let mut pieces: Vec<(f64, usize, f64)> = Vec::new();
    for (layer, sensitivity) in layers.iter().enumerate() {
        pieces.extend(sensitivity.pieces().into_iter().map(|(end, cost)| (cost, layer, end)));
    }
    // stable: the pieces of a layer stay in their order
    pieces.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all: u64 = layers.iter().map(|layer| layer.weights as u64).sum();
    let mut left = sparsity.of(all) as f64;
    let mut shares = vec![0.0f64; layers.len()];
    for (_, layer, end) in pieces {
        let weights = layers[layer].weights as f64;
        let goes = ((end - shares[layer]) * weights).min(left);
        left -= goes;
        shares[layer] += goes / weights;
        if left <= 0.0 {
            break;
        }
    }
    shares.into_iter().map(|share| Sparsity::new(share).unwrap_or(sparsity)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(weights: usize, points: &[(f64, f64)]) -> Sensitivity {
        Sensitivity { weights, points: points.to_vec() }
    }

    /// The error of a layer on its convex curve, by the definition: the least of all lines between two points.
    fn error(of: &Sensitivity, share: f64) -> f64 {
        let all = 1.0 - 1.0 / of.weights as f64;
        let points: Vec<(f64, f64)> =
            of.points.iter().copied().filter(|p| p.0 < all).chain([(all, 1.0)]).collect();
        let mut least = f64::INFINITY;
        for a in &points {
            for b in &points {
                if a.0 <= share && share <= b.0 {
                    let t = if a.0 == b.0 { 0.0 } else { (share - a.0) / (b.0 - a.0) };
                    least = least.min(a.1 + t * (b.1 - a.1));
                }
            }
        }
        least
    }

    #[test]
    fn no_other_spread_of_the_same_sparsity_costs_less() {
        let layers = [
            curve(200, &[(0.0, 0.0), (0.25, 0.001), (0.5, 0.3), (0.75, 0.31)]),
            curve(100, &[(0.0, 0.0), (0.5, 0.05), (0.9, 0.4)]),
            curve(400, &[(0.0, 0.0), (0.3, 0.01), (0.6, 0.2), (0.95, 0.9)]),
        ];
        for asked in [0.1, 0.35, 0.5, 0.8, 0.9] {
            let of = by_sensitivity(&layers, Sparsity::new(asked).unwrap());
            let gone: f64 = of.iter().zip(&layers).map(|(s, l)| s.get() * l.weights as f64).sum();
            assert!((gone - asked * 700.0).abs() < 0.5, "{asked}: {gone}");
            let cost: f64 = of.iter().zip(&layers).map(|(s, l)| error(l, s.get())).sum();
            // all spreads in steps of a weight of the first two
            for a in 0..200 {
                for b in 0..100 {
                    let c = (gone - f64::from(a) - f64::from(b)) / 400.0;
                    if !(0.0..=399.0 / 400.0).contains(&c) {
                        continue;
                    }
                    let shares = [f64::from(a) / 200.0, f64::from(b) / 100.0, c];
                    let other: f64 = shares.iter().zip(&layers).map(|(s, l)| error(l, *s)).sum();
                    assert!(cost <= other + 1e-9, "{asked}: {cost} by {of:?}, {other} by {shares:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_and_layers_of_one_weight_are_no_trouble() {
        let half = Sparsity::new(0.5).unwrap();
        assert!(by_sensitivity(&[], half).is_empty());
        let of = by_sensitivity(&[curve(1, &[(0.0, 0.0)]), curve(100, &[(0.0, 0.0), (0.5, 0.1)])], half);
        assert_eq!(of[0].get(), 0.0);
        assert_eq!(of[1].of(100), 51);
    }
}
