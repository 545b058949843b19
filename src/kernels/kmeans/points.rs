use std::ops::Range;

use rayon::prelude::*;

/// Values up to which they are sorted, and not gathered into bins.
const SORTED: usize = 1 << 17;

/// Lower bits of a value's mantissa that bins do not tell apart.
const LOW_BITS: u32 = 12;
const BINS: usize = 1 << (32 - LOW_BITS);

/// Bits of an integer weight at most: with 12 bits of the mantissa and 2^24 values, sums have 63.
const WEIGHT_BITS: u32 = 27;

/// Sorted positions and their weights.
pub(super) struct Points {
    positions: Vec<f64>,
    /// Sums of weights, and of weighted positions, before each point and behind the last.
    weights: Vec<f64>,
    sums: Vec<f64>,
}

/// What is known of the values of a bin: the sum of their weights, and that of their weighted lower bits.
type Bin = [u64; 2];

impl Points {
    /// The distinct values and the weight of each, or the means of bins of values that agree in the upper half of their
    /// mantissa.
    pub(super) fn gather(values: &[f32], weights: Option<&[f32]>) -> Self {
        if weights.is_none() && values.len() <= SORTED {
            let mut keys: Vec<u32> = values.iter().map(|x| key(*x)).collect();
            keys.sort_unstable();
            let mut points = Self::none();
            for run in keys.chunk_by(|a, b| a == b) {
                points.push(f64::from(value(run[0])), run.len() as f64);
            }
            return points;
        }
        let largest = weights.map_or(0.0, |weights| weights.iter().fold(0.0f32, |most, w| most.max(*w)));
        // where nothing weighs anything, everything weighs the same
        let Some(weights) = weights.filter(|_| largest > 0.0) else {
            return Self::gather_by(values, |_| 1);
        };
        let bits = WEIGHT_BITS.min(51u32.saturating_sub(values.len().next_power_of_two().ilog2()));
        let unit = f64::from(1u32 << bits) / f64::from(largest);
        Self::gather_by(values, |i| (f64::from(weights[i]) * unit).round_ties_even() as u64)
    }

    fn gather_by(values: &[f32], weight: impl Fn(usize) -> u64 + Sync) -> Self {
        if values.len() <= SORTED {
            let mut keys: Vec<(u32, u64)> =
                values.iter().enumerate().map(|(i, x)| (key(*x), weight(i))).collect();
            keys.sort_unstable();
            let mut points = Self::none();
            for run in keys.chunk_by(|a, b| a.0 == b.0) {
                points.push(f64::from(value(run[0].0)), run.iter().map(|(_, weight)| *weight as f64).sum());
            }
            return points;
        }
        let pieces = values.len().div_ceil(rayon::current_num_threads().min(8));
        let of_piece = |(piece, values): (usize, &[f32])| {
            let mut bins = vec![[0u64; 2]; BINS];
            for (i, x) in values.iter().enumerate() {
                let (key, weight) = (key(*x), weight(piece * pieces + i));
                let bin: &mut Bin = &mut bins[(key >> LOW_BITS) as usize];
                bin[0] += weight;
                bin[1] += weight * u64::from(x.to_bits() & ((1 << LOW_BITS) - 1));
            }
            bins
        };
        // sums of integers: the same in any order
        let add = |mut a: Vec<Bin>, b: Vec<Bin>| {
            for (a, b) in a.iter_mut().zip(b) {
                *a = [a[0] + b[0], a[1] + b[1]];
            }
            a
        };
        let bins = values.par_chunks(pieces).enumerate().map(of_piece).reduce_with(add).unwrap_or_default();
        let mut points = Self::none();
        for (bin, [weight, low]) in bins.into_iter().enumerate().filter(|(_, bin)| bin[0] > 0) {
            points.push(mean_of_bin(bin, weight, low), weight as f64);
        }
        points
    }

    /// Every value a point, from sorted ones.
    #[cfg(test)]
    pub(super) fn sorted(values: &[f32]) -> Self {
        let mut points = Self::none();
        for x in values {
            points.push(f64::from(*x), 1.0);
        }
        points
    }

    fn none() -> Self {
        Self { positions: Vec::new(), weights: vec![0.0], sums: vec![0.0] }
    }

    fn push(&mut self, x: f64, weight: f64) {
        if weight > 0.0 {
            self.weights.push(self.weights[self.len()] + weight);
            self.sums.push(self.sums[self.len()] + weight * x);
            self.positions.push(x);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    pub(super) fn position(&self, point: usize) -> f64 {
        self.positions[point]
    }

    pub(super) fn positions(&self) -> impl Iterator<Item = f64> {
        self.positions.iter().copied()
    }

    /// Positions and weights.
    pub(super) fn iter(&self) -> impl Iterator<Item = (f64, f64)> {
        self.positions().zip(self.weights.windows(2).map(|pair| pair[1] - pair[0]))
    }

    /// The mean of a run of points, which must not be empty.
    pub(super) fn mean(&self, run: Range<usize>) -> f64 {
        let (low, high) = (self.positions[run.start], self.positions[run.end - 1]);
        let weight = self.weights[run.end] - self.weights[run.start];
        // a difference of large sums can be off by more than the run is wide
        ((self.sums[run.end] - self.sums[run.start]) / weight).clamp(low, high)
    }

    /// Means of the runs that end here.
    pub(super) fn means(&self, ends: &[usize]) -> Vec<f64> {
        let mut first = 0;
        let runs = ends.iter().map(|end| std::mem::replace(&mut first, *end)..*end);
        runs.filter(|run| !run.is_empty()).map(|run| self.mean(run)).collect()
    }

    /// The position that a fraction of all weight lies below.
    pub(super) fn quantile(&self, fraction: f64) -> f64 {
        let weight = fraction * self.weights[self.len()];
        let at = self.weights.partition_point(|before| *before <= weight);
        self.positions[(at - 1).min(self.len() - 1)]
    }

    /// At most `most` points that stand for runs of these, as narrow as that allows, and the first point of each run.
    pub(super) fn merged(&self, most: usize) -> (Self, Vec<usize>) {
        if self.len() <= most {
            return (self.clone_points(), (0..self.len()).collect());
        }
        let firsts = |width: f64| {
            let (mut firsts, mut until) = (Vec::new(), f64::NEG_INFINITY);
            for (point, x) in self.positions().enumerate() {
                if x > until {
                    firsts.push(point);
                    until = x + width;
                }
            }
            firsts
        };
        // the narrowest of bisections that are enough, of as many as it takes to separate what lies close together beside an
        // outlier
        let (mut low, mut high) = (0.0, self.positions[self.len() - 1] - self.positions[0]);
        let mut found = vec![0];
        loop {
            let width = f64::midpoint(low, high);
            if width <= low || width >= high {
                break;
            }
            let tried = firsts(width);
            if tried.len() > most {
                low = width;
            } else {
                let enough = tried.len() * 8 > most * 7;
                (high, found) = (width, tried);
                if enough {
                    break;
                }
            }
        }
        let mut merged = Self::none();
        for (i, first) in found.iter().enumerate() {
            let end = found.get(i + 1).copied().unwrap_or(self.len());
            merged.push(self.mean(*first..end), self.weights[end] - self.weights[*first]);
        }
        (merged, found)
    }

    fn clone_points(&self) -> Self {
        Self { positions: self.positions.clone(), weights: self.weights.clone(), sums: self.sums.clone() }
    }

    /// Lloyd's algorithm over the points, until nothing moves: every centroid becomes the mean of what is nearest to it. One that
    /// nothing is nearest to stays.
    pub(super) fn lloyd(&self, mut centroids: Vec<f64>, steps: usize) -> Vec<f64> {
        for _ in 0..steps {
            let mut first = 0;
            let mut next = Vec::with_capacity(centroids.len());
            for (i, centroid) in centroids.iter().enumerate() {
                let end = match centroids.get(i + 1) {
                    Some(above) => {
                        let middle = f64::midpoint(*centroid, *above);
                        first + self.positions[first..].partition_point(|x| *x <= middle)
                    }
                    None => self.len(),
                };
                next.push(if end > first { self.mean(first..end) } else { *centroid });
                first = end;
            }
            if next == centroids {
                break;
            }
            centroids = next;
        }
        centroids
    }
}

/// A number whose order is that of the values; −0 is 0.
fn key(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

/// The value of a key.
fn value(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

/// The mean of the values in a bin.
fn mean_of_bin(bin: usize, weight: u64, low: u64) -> f64 {
    // the values' common bits, and what one step of the lower ones is worth
    let any = value((bin as u32) << LOW_BITS).to_bits() & !((1 << LOW_BITS) - 1);
    let (base, next) = (f64::from(f32::from_bits(any)), f64::from(f32::from_bits(any + 1)));
    base + (next - base) * (low as f64 / weight as f64)
}
