use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rayon::prelude::*;

use super::pattern::SparsityPattern;
use super::plain::by_hessian;
use crate::kernels::cholesky::solve_rows;
use crate::kernels::level::Isa;
use crate::layer::{Compressed, Layer, Method, MethodError, Needs};
use crate::quantize::Damping;
use crate::quantize::calibrated::comparison_bytes;
use crate::quantize::factor::Factor;
use crate::quantize::sweep::Swept;
use crate::weight::{Coding, Mask, NofM};

/// Optimal brain compression: of every row drops one weight after the other, each time the one that the output misses least,
/// and all others, before and behind it, make good for it. For small layers.
///
/// Frantar & Alistarh, "Optimal Brain Compression: A Framework for Accurate Post-Training Quantization and Pruning" (2022),
/// algorithms 1 and 2, after Hassibi & Stork, "Second Order Derivatives for Network Pruning: Optimal Brain Surgeon" (1992). Weight
/// `p` costs `w_p² / [H⁻¹]_pp`; when it goes, `w −= H⁻¹_:p · w_p / [H⁻¹]_pp` and `H⁻¹ −= H⁻¹_:p · H⁻¹_p: / [H⁻¹]_pp`. What
/// [`SparseGpt`](crate::SparseGpt) does for all rows with one inverse, column by column, is done here for each row in the best
/// order, at the cost of the cube of the columns for every row.
///
/// - Unstructured, every row is gone through to its end, and of all rows as many first steps are taken, the cheapest next one
///   each time, as weights are to go.
/// - N:M, a weight goes only while its neighbours still have more than `n`.
/// - What an earlier step pruned goes first, and stays zero; then what meets an input that was always zero.
/// - `H + λI` as for [`Gptq`](crate::Gptq); everything else in `f64`. Kept weights are rounded to the layer's precision at the end.
/// - Of the result and magnitude pruning to the same pattern the one with the smaller error of the output is kept.
///
/// ```
/// use tersor::{Layer, LayerStats, Method, Needs, Obc, Precision, Sparsity, SparsityPattern};
///
/// let mut stats = LayerStats::new(3, Needs::Hessian);
/// // the first and the last channel always are the same
/// stats.observe(ndarray::array![[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]].view())?;
/// let layer = Layer { stats: Some(&stats), ..Layer::new(&[1, 3], &[1.0, 1.0, 2.0], Precision::F32) };
/// let third = SparsityPattern::Unstructured(Sparsity::new(1.0 / 3.0)?);
/// let weight = Obc::new(third).damping(1e-4).compress(&layer)?.weight.dequantize();
/// // either of the two can do the other's work: the smaller one goes, though it comes first
/// assert_eq!((weight[[0, 0]], weight[[0, 2]].round()), (0.0, 3.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Obc {
    pattern: SparsityPattern,
    damping: Damping,
}

impl Obc {
    /// Most input features of a layer: more would take hours, and [`SparseGpt`](crate::SparseGpt) is made for them.
    pub const MAX_FEATURES: usize = 1024;

    /// Prunes to this pattern.
    pub fn new(pattern: SparsityPattern) -> Self {
        Self { pattern, damping: Damping::default() }
    }

    /// The pattern.
    pub fn pattern(&self) -> SparsityPattern {
        self.pattern
    }

    /// The same to another pattern.
    #[must_use]
    pub(super) fn to(self, pattern: SparsityPattern) -> Self {
        Self { pattern, ..self }
    }

    /// Chooses what is added to the Hessian's diagonal: a fraction of its mean, 0.01 unless chosen, or more.
    #[must_use]
    pub fn damping(self, damping: impl Into<Damping>) -> Self {
        Self { damping: damping.into(), ..self }
    }

    /// Values, and what of them is kept; `None` if the inverse is none any more.
    fn eliminate(&self, layer: &Layer<'_>, inverse: &[f64]) -> Option<(Vec<f32>, Mask)> {
        let (rows, cols) = (layer.rows(), layer.cols());
        let start = |row: usize| Row::new(layer, inverse, row);
        let chosen: Vec<Vec<usize>> = match self.pattern {
            SparsityPattern::NofM(pattern) => {
                let go = |row: usize| start(row).steps_within(pattern);
                (0..rows).into_par_iter().map(go).collect::<Option<_>>()?
            }
            SparsityPattern::Unstructured(sparsity) => {
                let all = (0..rows).into_par_iter().map(|row| start(row).steps(cols));
                let all = all.collect::<Option<Vec<_>>>()?;
                let counts = cheapest_first(&all, sparsity.of((rows * cols) as u64) as usize);
                let of_row = |(steps, count): (Vec<Step>, usize)| {
                    steps[..count].iter().map(|step| step.column).collect()
                };
                all.into_iter().zip(counts).map(of_row).collect()
            }
        };
        let mut values = layer.values.to_vec();
        let rows_of = values.par_chunks_mut(cols).zip(&chosen).enumerate();
        rows_of.try_for_each(|(row, (values, chosen))| {
            let mut state = start(row);
            state.remove_all(chosen)?;
            state.write(values);
            Some(())
        })?;
        let mut mask = vec![true; rows * cols];
        for (row, chosen) in chosen.iter().enumerate() {
            for column in chosen {
                mask[row * cols + column] = false;
            }
        }
        Some((values, Mask::from_fn(rows, cols, |row, column| mask[row * cols + column])))
    }
}

impl Method for Obc {
    fn name(&self) -> String {
        format!("OBC {}{}", self.pattern, self.damping.suffix())
    }

    fn coding(&self, before: Coding) -> Coding {
        before
    }

    fn needs(&self) -> Needs {
        Needs::Hessian
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let cols: usize = shape.iter().skip(1).product();
        let values: usize = shape.iter().product();
        let rows = shape.first().copied().unwrap_or(1);
        // the inverse, before it is widened too, and one more for every thread; the steps of every row, results and masks
        let inverses =
            cols * cols * (size_of::<f32>() + size_of::<f64>() * (1 + rayon::current_num_threads()));
        (inverses + values * (size_of::<Step>() + 24) + comparison_bytes(rows, cols)) as u64
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        let cols = layer.cols();
        if cols > Self::MAX_FEATURES {
            return Err(MethodError::Option {
                option: "the number of input features of a layer that OBC prunes",
                value: cols as f64,
                expected: "at most 1024: its time grows with their cube for every row; use SparseGPT, which is made for more",
            });
        }
        by_hessian(self, layer, self.pattern, self.damping, |factor| {
            let (values, mask) =
                self.eliminate(layer, &inverse(factor)).ok_or_else(|| MethodError::Hessian {
                    size: cols,
                    damping: factor.damping,
                    reason: "its inverse is not positive definite any more when weights have gone".into(),
                })?;
            Ok(Swept { result: values, mask: Some(mask), squared_error: None })
        })
    }
}

/// `(H + λI)⁻¹`, with zeros where an input was always zero.
fn inverse(factor: &Factor) -> Vec<f64> {
    let size = factor.size();
    let mut inverse = vec![0f32; size * size];
    inverse.iter_mut().step_by(size + 1).for_each(|x| *x = 1.0);
    solve_rows(Isa::current(), &factor.upper, size, &mut inverse);
    let mut wide: Vec<f64> = inverse.into_iter().map(f64::from).collect();
    for i in 0..size {
        if factor.cost(i) == 0.0 {
            wide[i * (size + 1)] = 0.0;
        }
        // rounding has not left it quite symmetric
        for j in 0..i {
            let mean = f64::midpoint(wide[i * size + j], wide[j * size + i]);
            (wide[i * size + j], wide[j * size + i]) = (mean, mean);
        }
    }
    wide
}

/// A weight that goes, and what that costs.
struct Step {
    column: usize,
    cost: f64,
}

/// How many steps of each row are taken, if of all next ones the cheapest is, and among equals that of the last row, until so many
/// weights have gone.
fn cheapest_first(rows: &[Vec<Step>], drop: usize) -> Vec<usize> {
    let mut taken = vec![0; rows.len()];
    // costs are not negative: their bits have their order
    let next =
        |row: usize, taken: usize| rows[row].get(taken).map(|step| (Reverse(step.cost.to_bits()), row));
    let mut heap: BinaryHeap<_> = (0..rows.len()).filter_map(|row| next(row, 0)).collect();
    for _ in 0..drop {
        let Some((_, row)) = heap.pop() else { break };
        taken[row] += 1;
        heap.extend(next(row, taken[row]));
    }
    taken
}

/// A row on its way: the weights that it still has, and the inverse of the Hessian without the others.
struct Row {
    /// The original row's length, which is also what rows of `inverse` are apart.
    cols: usize,
    /// Which column stands at each place; what has gone has none.
    columns: Vec<usize>,
    weights: Vec<f64>,
    inverse: Vec<f64>,
    /// What an earlier step pruned.
    earlier: Vec<usize>,
}

impl Row {
    fn new(layer: &Layer<'_>, inverse: &[f64], row: usize) -> Self {
        let cols = layer.cols();
        let is_pruned =
            |column: &usize| [layer.mask, layer.frozen].into_iter().flatten().any(|m| !m.keeps(row, *column));
        Self {
            cols,
            columns: (0..cols).collect(),
            weights: layer.values[row * cols..(row + 1) * cols].iter().map(|w| f64::from(*w)).collect(),
            inverse: inverse.to_vec(),
            earlier: (0..cols).filter(is_pruned).collect(),
        }
    }

    /// What the weight at a place costs; nothing where the input was always zero.
    fn cost(&self, place: usize) -> f64 {
        let (w, pivot) = (self.weights[place], self.inverse[place * (self.cols + 1)]);
        if pivot > 0.0 { w * w / pivot } else { 0.0 }
    }

    /// Takes out the weight at a place; the others make good for it. `None` if the inverse is none any more.
    fn remove(&mut self, place: usize) -> Option<()> {
        let (stride, count, last) = (self.cols, self.columns.len(), self.columns.len() - 1);
        let pivot = self.inverse[place * (stride + 1)];
        let gone = self.inverse[place * stride..][..count].to_vec();
        // with a pivot of zero, nothing else depends on it
        if pivot > 0.0 {
            let share = self.weights[place] / pivot;
            if !share.is_finite() {
                return None;
            }
            self.weights.iter_mut().zip(&gone).for_each(|(w, x)| *w -= x * share);
            for (row, x) in self.inverse.chunks_exact_mut(stride).zip(&gone) {
                let share = x / pivot;
                row[..count].iter_mut().zip(&gone).for_each(|(to, x)| *to -= share * x);
            }
        } else if pivot.is_nan() || gone.iter().any(|x| *x != 0.0) {
            return None;
        }
        // the last takes its place
        self.columns.swap_remove(place);
        self.weights.swap_remove(place);
        let (before, from) = self.inverse.split_at_mut(last * stride);
        if place < last {
            before[place * stride..][..count].copy_from_slice(&from[..count]);
        }
        for row in self.inverse.chunks_exact_mut(stride).take(last) {
            row[place] = row[last];
        }
        Some(())
    }

    /// Takes out columns, one after the other; first what was pruned before.
    fn remove_all(&mut self, columns: &[usize]) -> Option<()> {
        for column in std::mem::take(&mut self.earlier).iter().chain(columns) {
            if let Some(place) = self.columns.iter().position(|other| other == column) {
                self.remove(place)?;
            }
        }
        Some(())
    }

    /// The cheapest place of those that may go; among equals the higher column.
    fn cheapest(&self, may_go: impl Fn(usize) -> bool) -> Option<(usize, f64)> {
        let places = (0..self.columns.len()).filter(|place| may_go(self.columns[*place]));
        let costs = places.map(|place| (place, self.cost(place)));
        costs.min_by(|(i, a), (j, b)| a.total_cmp(b).then(self.columns[*j].cmp(&self.columns[*i])))
    }

    /// Up to so many weights in the order in which they go; first, for nothing, what was pruned before.
    fn steps(mut self, most: usize) -> Option<Vec<Step>> {
        let mut steps: Vec<Step> =
            self.earlier.iter().rev().map(|column| Step { column: *column, cost: 0.0 }).collect();
        self.remove_all(&[])?;
        while steps.len() < most
            && let Some((place, cost)) = self.cheapest(|_| true)
        {
            steps.push(Step { column: self.columns[place], cost });
            self.remove(place)?;
        }
        Some(steps)
    }

    /// The weights that go so that at most `n` of every `m` neighbours stay.
    fn steps_within(mut self, pattern: NofM) -> Option<Vec<usize>> {
        let (m, cols) = (pattern.m(), self.cols);
        // how many of each group still have to go
        let mut left: Vec<usize> = (0..cols.div_ceil(m))
            .map(|group| {
                let size = m.min(cols - group * m);
                size - pattern.n().min(size)
            })
            .collect();
        let mut steps = Vec::new();
        for column in self.earlier.iter().rev() {
            if left[column / m] > 0 {
                left[column / m] -= 1;
                steps.push(*column);
            }
        }
        self.remove_all(&[])?;
        while let Some((place, _)) = self.cheapest(|column| left[column / m] > 0) {
            let column = self.columns[place];
            left[column / m] -= 1;
            steps.push(column);
            self.remove(place)?;
        }
        Some(steps)
    }

    /// Writes what is left where it stood; all else is zero.
    fn write(&self, values: &mut [f32]) {
        values.fill(0.0);
        for (column, w) in self.columns.iter().zip(&self.weights) {
            values[*column] = *w as f32;
        }
    }
}
