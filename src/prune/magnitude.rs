use super::pattern::SparsityPattern;
use crate::kernels::select::{self, Cut, Standing};
use crate::layer::{Compressed, Layer, Method, MethodError};
use crate::weight::{Coding, CompressedWeight, DenseValues, LayoutKind, Mask, NofM};

/// Fraction of weights to drop, in `[0, 1)`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Sparsity(f64);

impl Sparsity {
    /// A sparsity.
    ///
    /// # Errors
    /// When `fraction` is not in `[0, 1)`.
    pub fn new(fraction: f64) -> Result<Self, MethodError> {
        if (0.0..1.0).contains(&fraction) {
            Ok(Self(fraction))
        } else {
            Err(MethodError::Option {
                option: "sparsity",
                value: fraction,
                expected: "at least 0 and below 1",
            })
        }
    }

    /// The fraction.
    pub fn get(self) -> f64 {
        self.0
    }

    /// How many of `count` go: the nearest whole number, halves away from zero.
    pub fn of(self, count: u64) -> u64 {
        (self.0 * count as f64).round() as u64
    }
}

/// The magnitude at which pruning cuts, exact over any number of tensors.
///
/// Everything above the threshold is kept, and of the weights whose magnitude equals it the first
/// [`kept_ties`](Self::kept_ties), in the order of the tensors.
///
/// ```
/// use tersor::MagnitudeThreshold;
///
/// let (mut a, mut b) = ([0.5, -3.0, 1.0], [-1.0, 1.0]);
/// let mut threshold = MagnitudeThreshold::of(2, &[&a, &b]);
/// assert_eq!((threshold.magnitude(), threshold.kept_ties()), (1.0, 2));
/// threshold.apply_next(&mut a);
/// threshold.apply_next(&mut b);
/// assert_eq!((a, b), ([0.0, -3.0, 1.0], [-1.0, 0.0]));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MagnitudeThreshold(Cut);

impl MagnitudeThreshold {
    /// Finds the threshold that drops exactly `drop` values of tensors that are in memory: one pass over them.
    pub fn of(drop: u64, tensors: &[&[f32]]) -> Self {
        Self(select::magnitude_cut(tensors, drop))
    }

    /// Finds the threshold that drops exactly `drop` values.
    ///
    /// `visit` is called twice and must show the same values each time, in pieces of any size: nothing is
    /// copied or sorted, so that a model far larger than memory can be read from its file.
    ///
    /// # Errors
    /// Whatever `visit` returns.
    pub fn find<E>(drop: u64, visit: impl FnMut(&mut dyn FnMut(&[f32])) -> Result<(), E>) -> Result<Self, E> {
        select::cut_by_digits(drop, visit).map(Self)
    }

    pub(crate) fn from_cut(cut: Cut) -> Self {
        Self(cut)
    }

    /// Of a tensor that stands so to the threshold, how many values are kept; they take their share of the ties.
    pub(crate) fn next_kept(&mut self, standing: Standing) -> u64 {
        let ties = self.0.kept_ties.min(standing.ties);
        self.0.kept_ties -= ties;
        standing.above + ties
    }

    /// Among values of exactly the threshold's magnitude, how many are kept.
    pub fn kept_ties(self) -> u64 {
        self.0.kept_ties
    }

    /// The magnitude.
    pub fn magnitude(self) -> f32 {
        f32::from_bits(self.0.bits)
    }

    /// The mask of the next tensor, which takes its share of the ties from the threshold.
    ///
    /// # Shapes
    /// `values` is `[rows, cols]`.
    ///
    /// # Errors
    /// When there are not `rows · cols` values.
    pub fn next_mask(&mut self, rows: usize, cols: usize, values: &[f32]) -> Result<Mask, MethodError> {
        crate::weight::WeightError::check_len("values to prune", rows * cols, values.len())?;
        Ok(Mask::fill(rows, cols, |bits| select::mask_from(values, cols, &mut self.0, bits)))
    }

    /// Zeroes, in place, what is dropped of the next tensor, which takes its share of the ties from the threshold.
    pub fn apply_next(&mut self, values: &mut [f32]) {
        select::zero_below(values, &mut self.0);
    }
}

/// The mask that keeps the `n` largest magnitudes of every `m` neighbours in a row.
///
/// # Shapes
/// `values` is `[rows, cols]`; a last group of `t < m` columns keeps `min(n, t)`.
///
/// # Errors
/// When there are not `rows · cols` values.
pub fn n_of_m_mask(pattern: NofM, rows: usize, cols: usize, values: &[f32]) -> Result<Mask, MethodError> {
    crate::weight::WeightError::check_len("values to prune", rows * cols, values.len())?;
    let (n, m) = (pattern.n(), pattern.m());
    Ok(Mask::fill(rows, cols, |bits| select::mask_n_of_m(values, cols, n, m, bits)))
}

/// Magnitude pruning (Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015).
///
/// ```
/// use tersor::{Layer, LayoutKind, Magnitude, Method, Precision, Sparsity};
///
/// let values = [0.1, -2.0, 0.3, 4.0];
/// let layer = Layer { layout: LayoutKind::Bitmask, ..Layer::new(&[1, 4], &values, Precision::F32) };
/// let weight = Magnitude::Unstructured(Sparsity::new(0.5)?).compress(&layer)?.weight;
/// assert_eq!(weight.dequantize().as_slice(), Some(&[0.0, -2.0, 0.0, 4.0][..]));
/// assert_eq!(weight.form().bytes().total(), 1 + 2 * 4); // four bits, two values
/// # Ok::<(), tersor::MethodError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Magnitude {
    /// Drops the smallest magnitudes of the layer.
    Unstructured(Sparsity),
    /// Keeps the `n` largest magnitudes of every `m` neighbours in a row (Mishra et al., "Accelerating Sparse Deep Neural
    /// Networks", 2021, for 2:4).
    NofM(NofM),
}

impl From<SparsityPattern> for Magnitude {
    fn from(pattern: SparsityPattern) -> Self {
        match pattern {
            SparsityPattern::Unstructured(sparsity) => Self::Unstructured(sparsity),
            SparsityPattern::NofM(pattern) => Self::NofM(pattern),
        }
    }
}

impl From<Magnitude> for SparsityPattern {
    fn from(magnitude: Magnitude) -> Self {
        match magnitude {
            Magnitude::Unstructured(sparsity) => Self::Unstructured(sparsity),
            Magnitude::NofM(pattern) => Self::NofM(pattern),
        }
    }
}

impl Magnitude {
    /// How many weights of a `[rows, cols]` matrix are kept.
    pub fn kept(&self, rows: usize, cols: usize) -> usize {
        SparsityPattern::from(*self).kept(rows, cols)
    }

    /// What the method keeps of a layer.
    ///
    /// # Errors
    /// When a value is NaN or infinite.
    pub fn mask(&self, layer: &Layer<'_>) -> Result<Mask, MethodError> {
        layer.check()?;
        let (rows, cols) = (layer.rows(), layer.cols());
        match self {
            Self::NofM(pattern) => n_of_m_mask(*pattern, rows, cols, layer.values),
            Self::Unstructured(sparsity) => {
                let drop = sparsity.of(layer.values.len() as u64);
                MagnitudeThreshold::of(drop, &[layer.values]).next_mask(rows, cols, layer.values)
            }
        }
    }
}

impl Method for Magnitude {
    fn name(&self) -> String {
        format!("magnitude {}", SparsityPattern::from(*self))
    }

    fn coding(&self, before: Coding) -> Coding {
        before
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        keep(layer, &self.mask(layer)?)
    }
}

/// Stores what `mask` and the layer's own mask keep, in the layer's precision.
pub(crate) fn keep(layer: &Layer<'_>, mask: &Mask) -> Result<Compressed, MethodError> {
    let both;
    let (mask, layout) = match layer.mask {
        Some(before) => {
            both = mask.and(before)?;
            // two patterns together are in general neither of them
            let layout = if both == *mask { layer.layout } else { LayoutKind::Bitmask };
            (&both, layout)
        }
        None => (mask, layer.layout),
    };
    let mut zeroed;
    let mut values = layer.values;
    if layout == LayoutKind::Dense {
        // the other layouts leave out what is dropped
        zeroed = values.to_vec();
        mask.apply(&mut zeroed)?;
        values = &zeroed;
    }
    let values = DenseValues::Float(layer.precision, values);
    let weight = CompressedWeight::encode(layer.shape, layout, Some(mask), values)?;
    Ok(Compressed::plain(weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sort by magnitude, then by index: drop the smallest, among equals the last.
    fn oracle(values: &[f32], drop: usize) -> Vec<bool> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|a, b| values[*a].abs().total_cmp(&values[*b].abs()).then(b.cmp(a)));
        let mut keep = vec![true; values.len()];
        order[..drop].iter().for_each(|i| keep[*i] = false);
        keep
    }

    fn mask_of(values: &[f32], rows: usize, drop: usize) -> Mask {
        let mut threshold = MagnitudeThreshold::find(drop as u64, |show| {
            let _: () = show(values);
            Ok::<(), MethodError>(())
        })
        .unwrap();
        threshold.next_mask(rows, values.len() / rows, values).unwrap()
    }

    #[test]
    fn every_count_is_exact_with_many_ties() {
        let values: Vec<f32> =
            (0..60u32).map(|i| [0.0, -0.0, 1.0, -1.0, 1e-40, 3e38, 0.5][(i * i % 7) as usize]).collect();
        for drop in 0..=values.len() {
            let mask = mask_of(&values, 5, drop);
            let expected = oracle(&values, drop);
            assert_eq!(mask.kept(), values.len() - drop);
            for (i, keep) in expected.iter().enumerate() {
                assert_eq!(mask.keeps(i / 12, i % 12), *keep, "drop {drop}, index {i}");
            }
        }
    }

    #[test]
    fn large_tensors_take_the_parallel_path() {
        let values: Vec<f32> =
            (0..200_000u64).map(|i| ((i * 2_654_435_761 % 1_000_003) as f32 - 5e5) * 1e-3).collect();
        let mask = mask_of(&values, 8, 123_457);
        let expected = oracle(&values, 123_457);
        assert!((0..values.len()).all(|i| mask.keeps(i / 25_000, i % 25_000) == expected[i]));
    }

    #[test]
    fn one_threshold_cuts_across_tensors_and_ties_go_in_order() {
        let tensors = [vec![1.0f32, 2.0, 1.0, 0.5], vec![1.0, 1.0, 3.0, 0.1]];
        // of the eight, drop four: 0.1, 0.5 and the last two of the four ones
        let mut threshold = MagnitudeThreshold::find(4, |show| {
            for t in &tensors {
                show(t);
            }
            Ok::<(), MethodError>(())
        })
        .unwrap();
        assert_eq!((threshold.magnitude(), threshold.kept_ties()), (1.0, 2));
        let kept = |mask: Mask| mask.kept_in_row(0).collect::<Vec<_>>();
        assert_eq!(kept(threshold.next_mask(1, 4, &tensors[0]).unwrap()), [0, 1, 2]);
        assert_eq!(kept(threshold.next_mask(1, 4, &tensors[1]).unwrap()), [2]);
    }

    #[test]
    fn sparsity_is_a_fraction() {
        assert!(
            Sparsity::new(1.0).is_err() && Sparsity::new(-0.1).is_err() && Sparsity::new(f64::NAN).is_err()
        );
        assert_eq!(Sparsity::new(0.5).unwrap().of(3), 2);
    }
}
