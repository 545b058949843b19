use super::observer::Range;
use crate::error::NonFinite;
use crate::kernels::reduce;

/// Bins on each side of zero.
const SIDE: usize = 4096;

/// Bins that the entropy search sees: neighbours are merged until so many are left.
const ENTROPY_BINS: usize = 2048;

/// A histogram of values that stream by, in constant memory.
///
/// Bins are a power of two wide, and wide enough for the largest magnitude seen; when a larger one arrives,
/// neighbours are merged. Merging is exact, so that the result does not depend on the order or the batches in which
/// the values came.
///
/// ```
/// use tersor::Histogram;
///
/// let mut histogram = Histogram::new();
/// histogram.observe(&[0.5, -1.0])?;
/// histogram.observe(&[100.0])?;
/// assert_eq!(histogram.count(), 3);
/// assert_eq!((histogram.min(), histogram.max()), (-1.0, 100.0));
/// # Ok::<(), tersor::NonFinite>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// Bin `i` counts the values in `[(i − SIDE) · width, (i − SIDE + 1) · width)`.
    counts: Vec<u64>,
    /// Logarithm to base 2 of the width of a bin.
    exponent: i32,
    min: f32,
    max: f32,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty histogram.
    pub fn new() -> Self {
        Self { counts: vec![0; 2 * SIDE], exponent: i32::MIN, min: 0.0, max: 0.0, count: 0 }
    }

    /// Adds values.
    ///
    /// # Errors
    /// When one is NaN or infinite; then none is added.
    pub fn observe(&mut self, values: &[f32]) -> Result<(), NonFinite> {
        if values.is_empty() {
            return Ok(());
        }
        let (min, max) = reduce::min_max(values)?;
        if self.count == 0 {
            (self.min, self.max) = (min, max);
        }
        (self.min, self.max) = (self.min.min(min), self.max.max(max));
        self.widen_for(max.max(-min));
        self.count += values.len() as u64;
        // without a width yet, there are only zeros
        let per_unit = if self.exponent == i32::MIN { 0.0 } else { 2f64.powi(-self.exponent) };
        for x in values {
            // exact: a product with a power of two in f64
            let bin = (f64::from(*x) * per_unit).floor() as i64 + SIDE as i64;
            self.counts[bin.clamp(0, 2 * SIDE as i64 - 1) as usize] += 1;
        }
        Ok(())
    }

    /// Number of values seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Smallest value seen, 0 if none.
    pub fn min(&self) -> f32 {
        self.min
    }

    /// Largest value seen, 0 if none.
    pub fn max(&self) -> f32 {
        self.max
    }

    /// Non-empty bins as `(middle, count)`.
    pub fn bins(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let width = 2f64.powi(self.exponent.max(-1100));
        self.counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
            .map(move |(i, count)| ((i as f64 - SIDE as f64 + 0.5) * width, *count))
    }

    /// The value below which a fraction `q` of the values lies, to within one bin; inside the observed range.
    pub fn quantile(&self, q: f64) -> f32 {
        let rank = q.clamp(0.0, 1.0) * self.count as f64;
        let width = 2f64.powi(self.exponent.max(-1100));
        let mut below = 0.0;
        for (middle, count) in self.bins() {
            let count = count as f64;
            if below + count >= rank {
                let inside = (rank - below) / count - 0.5;
                return ((middle + inside * width) as f32).clamp(self.min, self.max);
            }
            below += count;
        }
        self.max
    }

    /// The range clipped at the magnitude whose quantized distribution diverges least; `None` if there are too few
    /// distinct magnitudes to search.
    ///
    /// For every threshold of `i` bins: the reference `P` is the first `i` bins with all that lies beyond added to the
    /// last; `Q` is the first `i` bins merged into `levels` and spread again evenly over the bins that were not
    /// empty; the threshold with the least `Σ P·ln(P/Q)` wins, the first among equals.
    pub fn entropy_range(&self, levels: usize) -> Option<Range> {
        let largest = self.max.max(-self.min);
        if largest == 0.0 {
            return None;
        }
        // magnitudes in ENTROPY_BINS bins; the largest magnitude lies in the upper half of them
        let per_bin = SIDE / ENTROPY_BINS;
        let mut magnitudes = vec![0.0f64; ENTROPY_BINS];
        for i in 0..SIDE {
            magnitudes[i / per_bin] += (self.counts[SIDE + i] + self.counts[SIDE - 1 - i]) as f64;
        }
        let used = ENTROPY_BINS - magnitudes.iter().rev().take_while(|c| **c == 0.0).count();
        let width = 2f64.powi(self.exponent) * per_bin as f64;
        let mut best: Option<(f64, usize)> = None;
        for bins in levels..=used {
            let divergence = divergence(&magnitudes, bins, used, levels);
            if best.is_none_or(|(least, _)| divergence < least) {
                best = Some((divergence, bins));
            }
        }
        let (_, bins) = best?;
        let threshold = if bins == used { largest } else { (bins as f64 * width) as f32 };
        Some(Range { min: self.min.max(-threshold), max: self.max.min(threshold) })
    }

    /// Makes the bins wide enough for a magnitude.
    fn widen_for(&mut self, magnitude: f32) {
        if magnitude == 0.0 {
            return;
        }
        // the smallest power of two with magnitude < 2^exponent · SIDE
        let log = f64::from(magnitude).log2().floor() as i32 + 1;
        let log = if f64::from(magnitude) < 2f64.powi(log) { log } else { log + 1 };
        let needed = log - SIDE.ilog2() as i32;
        if self.exponent == i32::MIN {
            // only zeros so far, all in the bin that starts at zero
            self.exponent = needed;
            return;
        }
        while self.exponent < needed {
            let mut merged = vec![0u64; 2 * SIDE];
            for (i, count) in self.counts.iter().enumerate() {
                let bin = (i as i64 - SIDE as i64).div_euclid(2) + SIDE as i64;
                merged[bin as usize] += count;
            }
            self.counts = merged;
            self.exponent += 1;
        }
    }
}

/// `Σ P·ln(P/Q)` for a threshold of `bins` bins.
fn divergence(magnitudes: &[f64], bins: usize, used: usize, levels: usize) -> f64 {
    let beyond: f64 = magnitudes[bins..used].iter().sum();
    let inside: f64 = magnitudes[..bins].iter().sum();
    let (p_total, q_total) = (inside + beyond, inside);
    if q_total == 0.0 {
        return f64::INFINITY;
    }
    let mut sum = 0.0;
    for level in 0..levels {
        let (from, to) = (level * bins / levels, (level + 1) * bins / levels);
        let level_bins = &magnitudes[from..to];
        let filled = level_bins.iter().filter(|c| **c > 0.0).count();
        let q = level_bins.iter().sum::<f64>() / filled.max(1) as f64 / q_total;
        for (i, count) in level_bins.iter().enumerate() {
            let outliers = if from + i == bins - 1 { beyond } else { 0.0 };
            let p = (count + outliers) / p_total;
            if p > 0.0 {
                // an empty bin that receives outliers has no counterpart in Q
                if *count == 0.0 {
                    return f64::INFINITY;
                }
                sum += p * (p / q).ln();
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_the_batches_does_not_matter() {
        let values: Vec<f32> =
            (0..5000u32).map(|i| ((i * 7919 % 5003) as f32 - 2500.0) * 1e-3 + 1e-6).collect();
        let mut all = Histogram::new();
        all.observe(&values).unwrap();
        let mut pieces = Histogram::new();
        pieces.observe(&[0.0; 0]).unwrap();
        let mut order: Vec<&[f32]> = values.chunks(617).collect();
        order.sort_by(|a, b| a[0].total_cmp(&b[0]));
        for piece in order {
            pieces.observe(piece).unwrap();
        }
        assert_eq!(all, pieces);
        assert_eq!(all.count(), 5000);
    }

    #[test]
    fn zeros_before_the_first_magnitude_are_counted_as_zeros() {
        let mut histogram = Histogram::new();
        histogram.observe(&[0.0, -0.0, 0.0]).unwrap();
        histogram.observe(&[1.0]).unwrap();
        assert_eq!(histogram.bins().map(|(_, count)| count).collect::<Vec<_>>(), [3, 1]);
    }

    #[test]
    fn quantiles_are_right_to_a_bin() {
        let values: Vec<f32> = (0..10_000u16).map(f32::from).collect();
        let mut histogram = Histogram::new();
        histogram.observe(&values).unwrap();
        for q in [0.0, 0.1, 0.5, 0.999, 1.0] {
            // 10,000 < 2^14 = 4 · SIDE: bins are 4 wide
            assert!((f64::from(histogram.quantile(q)) - q * 1e4).abs() <= 4.0, "{q}");
        }
    }

    #[test]
    fn entropy_cuts_a_sparse_tail_and_keeps_a_uniform_range() {
        // uniform on (−1, 1): nothing to gain from clipping
        let uniform: Vec<f32> = (0..200_000).map(|i| (i as f32 - 99_999.5) / 100_000.0).collect();
        let mut histogram = Histogram::new();
        histogram.observe(&uniform).unwrap();
        let range = histogram.entropy_range(128).unwrap();
        assert!(range.max > 0.99, "{range:?}");
        // a bell (sums of four uniform digits: standard deviation 1.15, largest 3.8), and three values far outside
        let digit = |i: u32, base: u32| (i / base % 20) as f32 / 10.0 - 0.95;
        let bell: Vec<f32> =
            (0..160_000).map(|i| [1, 20, 400, 8000].iter().map(|b| digit(i, *b)).sum()).collect();
        let mut histogram = Histogram::new();
        histogram.observe(&bell).unwrap();
        histogram.observe(&[11.0, -12.0, 12.5]).unwrap();
        for levels in [8, 128] {
            let range = histogram.entropy_range(levels).unwrap();
            assert!(range.max > 2.0 && range.max < 4.0, "{range:?}");
            assert!(range.min > -4.0 && range.min < -2.0, "{range:?}");
        }
    }

    #[test]
    fn nan_is_refused_and_changes_nothing() {
        let mut histogram = Histogram::new();
        histogram.observe(&[1.0]).unwrap();
        let before = histogram.clone();
        assert_eq!(histogram.observe(&[2.0, f32::NAN]).unwrap_err().index, 1);
        assert_eq!(histogram, before);
    }
}
