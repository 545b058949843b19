use rayon::prelude::*;

use super::affine::Affine;
use super::calibrated::{better_of, comparison_bytes, hessian};
use super::observer::Range;
use super::tiles::{IntTarget, is_pruned};
use crate::dtype::Precision;
use crate::kernels::symmetric::{SymmetricTiles, inner};
use crate::layer::{Compressed, Layer, Method, MethodError, Needs};
use crate::weight::{Bits, Coding, Granularity, ScaleGrid};

/// Rows that are learned together, at least.
const ROWS: usize = 32;

/// Integers whose rounding is learned: each weight may be moved by up to half a step before it is rounded, and the ends of each
/// range drawn in, by descent along the sign of the gradient of the layer's output error.
///
/// `Ŵ = s · (clamp(round(W/s + z + V)) − z)` with the range `α·min W` to `β·max W`; `V ∈ [−½, ½]` starts at 0, `α, β ∈ [0, 1]` at 1.
/// Every step moves each of them by the learning rate, which falls linearly to 0, against the sign of its gradient, where the
/// gradient passes through rounding unchanged. The loss `tr((W − Ŵ)·H·(W − Ŵ)ᵀ)` is that of the layer alone; rows that share no
/// scale do not depend on each other, so that each keeps its best step. Rows with a common scale are learned by one thread.
///
/// Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs" (2023), equations 3 to 5.
///
/// ```
/// use tersor::{AutoRound, Bits, Layer, LayerStats, Method, Needs, Precision};
///
/// let mut stats = LayerStats::new(4, Needs::Hessian);
/// stats.observe(ndarray::array![[1.0, 1.1, 0.9, 1.0], [0.5, 0.4, 0.5, 0.6]].view())?;
/// let values = [0.24, 0.26, 0.25, 0.75]; // inputs that go together: errors of one sign add up
/// let layer = Layer { stats: Some(&stats), ..Layer::new(&[1, 4], &values, Precision::F32) };
/// let outcome = AutoRound::int(Bits::new(2).unwrap()).compress(&layer)?.outcome.unwrap();
/// assert!(outcome.method_error < 0.5 * outcome.plain_error);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AutoRound {
    target: IntTarget,
    iterations: usize,
    learning_rate: Option<f32>,
    tune_range: bool,
}

impl AutoRound {
    /// Symmetric integers, one scale per channel; 200 steps.
    pub fn int(bits: Bits) -> Self {
        Self { target: IntTarget::new(bits), iterations: 200, learning_rate: None, tune_range: true }
    }

    /// Whether the zero point is fixed at 0.
    #[must_use]
    pub fn symmetric(self, symmetric: bool) -> Self {
        Self { target: IntTarget { symmetric, ..self.target }, ..self }
    }

    /// Chooses which weights share a scale.
    #[must_use]
    pub fn granularity(self, granularity: Granularity) -> Self {
        Self { target: IntTarget { granularity, ..self.target }, ..self }
    }

    /// Chooses the number of steps.
    #[must_use]
    pub fn iterations(self, iterations: usize) -> Self {
        Self { iterations, ..self }
    }

    /// Chooses the first learning rate; 1 / steps unless chosen.
    #[must_use]
    pub fn learning_rate(self, learning_rate: f32) -> Self {
        Self { learning_rate: Some(learning_rate), ..self }
    }

    /// Whether the ranges are learned, too; they are unless chosen otherwise.
    #[must_use]
    pub fn tune_range(self, tune_range: bool) -> Self {
        Self { tune_range, ..self }
    }

    fn rate(&self) -> Result<f32, MethodError> {
        if self.iterations == 0 {
            return Err(MethodError::Option { option: "steps", value: 0.0, expected: "at least 1" });
        }
        match self.learning_rate {
            Some(rate) if rate <= 0.0 || !rate.is_finite() => {
                let (option, expected) = ("the learning rate", "positive");
                Err(MethodError::Option { option, value: f64::from(rate), expected })
            }
            rate => Ok(rate.unwrap_or(1.0 / self.iterations as f32)),
        }
    }
}

impl Method for AutoRound {
    fn name(&self) -> String {
        format!("auto-round to {}", self.coding(Coding::Float(Precision::F32)))
    }

    fn coding(&self, before: Coding) -> Coding {
        self.target.coding(before)
    }

    fn needs(&self) -> Needs {
        Needs::Hessian
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let (rows, cols): (usize, usize) =
            (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let grid = self.target.granularity.grid(rows, cols);
        let together = rows.min(ROWS.next_multiple_of(grid.block_rows));
        let at_once = rows.min(together * rayon::current_num_threads());
        // the packed Hessian; of the rows at work offsets, errors, products and two sets of codes; all codes; the final check
        let of_rows = at_once * cols * (3 * size_of::<f32>() + 2);
        let hessian = size_of::<f32>() * cols * cols.next_multiple_of(12);
        (hessian + of_rows + rows * cols + comparison_bytes(rows, cols)) as u64
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        let rate = self.rate()?;
        let rounding = self.target.rounding().compress(layer)?;
        let (stats, hessian) = hessian(layer, || self.name())?;
        let cols = layer.cols();
        if layer.values.is_empty() {
            return Ok(better_of(layer, stats, hessian, rounding.clone(), rounding.weight));
        }
        let grid = self.target.grid(layer);
        let matrix = SymmetricTiles::new(hessian, cols);
        let together = ROWS.next_multiple_of(grid.block_rows);
        let learned: Result<Vec<Best>, MethodError> = layer
            .values
            .par_chunks(together * cols)
            .enumerate()
            .map(|(part, values)| {
                let first_row = part * together;
                let mut learner = Learner::new(self, layer, grid, first_row, values);
                for step in 0..self.iterations {
                    let left = 1.0 - step as f32 / self.iterations as f32;
                    learner.step(&matrix, rate * left)?;
                }
                Ok(learner.best)
            })
            .collect();
        let (mut tiles, mut codes) = (Vec::with_capacity(grid.len()), Vec::with_capacity(layer.values.len()));
        for best in learned? {
            tiles.extend(best.tiles);
            codes.extend(best.codes);
        }
        let found = self.target.with_codes(layer, &tiles, &codes)?;
        Ok(better_of(layer, stats, hessian, rounding, found))
    }
}

/// The step with the least loss so far, for every band of rows that share scales.
struct Best {
    losses: Vec<f64>,
    tiles: Vec<Affine>,
    codes: Vec<i8>,
}

/// A tile's range and how much of it is used.
#[derive(Clone, Copy)]
struct Ends {
    full: Range,
    alpha: f32,
    beta: f32,
}

/// Gradients of the loss of a tile.
#[derive(Clone, Copy, Default)]
struct Slope {
    scale: f64,
    /// By way of the zero point, of codes that are clamped.
    min: f64,
}

/// Some rows while they are learned.
struct Learner<'a> {
    method: &'a AutoRound,
    layer: &'a Layer<'a>,
    grid: ScaleGrid,
    first_row: usize,
    values: &'a [f32],
    offsets: Vec<f32>,
    ends: Vec<Ends>,
    codes: Vec<i8>,
    difference: Vec<f32>,
    products: Vec<f32>,
    best: Best,
}

impl<'a> Learner<'a> {
    fn new(
        method: &'a AutoRound,
        layer: &'a Layer<'a>,
        grid: ScaleGrid,
        first_row: usize,
        values: &'a [f32],
    ) -> Self {
        let (cols, len) = (layer.cols(), values.len());
        let bands = (len / cols).div_ceil(grid.block_rows);
        // every range includes zero, and so may what was pruned
        let full = Range { min: 0.0, max: 0.0 };
        let mut ends = vec![Ends { full, alpha: 1.0, beta: 1.0 }; bands * grid.cols];
        for (i, w) in values.iter().enumerate() {
            let Range { min, max } = &mut ends[grid.index(i / cols, i % cols)].full;
            (*min, *max) = (min.min(*w), max.max(*w));
        }
        let best = Best {
            losses: vec![f64::INFINITY; bands],
            tiles: vec![Affine { scale: 1.0, zero_point: 0 }; ends.len()],
            codes: vec![0; len],
        };
        let (offsets, difference, products) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        let codes = vec![0; len];
        Self { method, layer, grid, first_row, values, offsets, ends, codes, difference, products, best }
    }

    /// Measures the loss, keeps what is better than before, and descends.
    fn step(&mut self, matrix: &SymmetricTiles, rate: f32) -> Result<(), MethodError> {
        let codes = self.method.target.codes();
        let precision = self.layer.precision;
        let tiles: Result<Vec<Affine>, MethodError> = self
            .ends
            .iter()
            .map(|Ends { full, alpha, beta }| {
                Affine::from_range(Range { min: full.min * alpha, max: full.max * beta }, codes, precision)
            })
            .collect();
        let tiles = tiles?;
        self.round(&tiles);
        matrix.product(&self.difference, &mut self.products);
        self.keep_best(&tiles);
        let slopes = self.descend(&tiles, rate);
        if self.method.tune_range {
            for (ends, slope) in self.ends.iter_mut().zip(slopes) {
                ends.descend(slope, self.method.target.symmetric, self.method.target.bits, rate);
            }
        }
        Ok(())
    }

    /// Codes and their errors.
    fn round(&mut self, tiles: &[Affine]) {
        let (cols, precision) = (self.layer.cols(), self.layer.precision);
        let (low, high) = self.method.target.bits.range();
        let grid = self.grid;
        let mut levels = Vec::new();
        for (row, values) in self.values.chunks_exact(cols).enumerate() {
            let at = row * cols;
            let of_row = values
                .chunks(grid.block_cols)
                .zip(self.offsets[at..at + cols].chunks(grid.block_cols))
                .zip(self.codes[at..at + cols].chunks_mut(grid.block_cols))
                .zip(self.difference[at..at + cols].chunks_mut(grid.block_cols));
            for (run, (((values, offsets), codes), differences)) in of_row.enumerate() {
                let tile = tiles[grid.index(row, run * grid.block_cols)];
                let zero_point = f32::from(tile.zero_point);
                // what every code stands for
                levels.clear();
                levels.extend(
                    (low..=high).map(|code| precision.round((code as f32 - zero_point) * tile.scale)),
                );
                let places = values.iter().zip(offsets).zip(codes.iter_mut().zip(differences));
                for ((w, offset), (code, difference)) in places {
                    let place = w / tile.scale + zero_point + offset;
                    let nearest = place.clamp(low as f32, high as f32).round_ties_even();
                    *code = nearest as i8;
                    *difference = levels[(nearest as i32 - low) as usize] - w;
                }
            }
        }
        if self.layer.mask.is_some() {
            self.skip_pruned(tiles);
        }
    }

    /// What was pruned stays zero.
    fn skip_pruned(&mut self, tiles: &[Affine]) {
        let cols = self.layer.cols();
        for (i, (code, difference)) in self.codes.iter_mut().zip(&mut self.difference).enumerate() {
            if is_pruned(self.layer, self.first_row + i / cols, i % cols) {
                *code = tiles[self.grid.index(i / cols, i % cols)].zero_point;
                *difference = -self.values[i];
            }
        }
    }

    fn keep_best(&mut self, tiles: &[Affine]) {
        let cols = self.layer.cols();
        let band_len = self.grid.block_rows * cols;
        let errors = self.difference.chunks(band_len).zip(self.products.chunks(band_len));
        for (band, (difference, products)) in errors.enumerate() {
            let loss = inner(difference, products);
            if loss < self.best.losses[band] || self.best.losses[band].is_infinite() {
                self.best.losses[band] = loss;
                let values = band * band_len..band * band_len + difference.len();
                self.best.codes[values.clone()].copy_from_slice(&self.codes[values]);
                let scales = band * self.grid.cols..(band + 1) * self.grid.cols;
                self.best.tiles[scales.clone()].copy_from_slice(&tiles[scales]);
            }
        }
    }

    /// Moves the offsets, and gathers the gradients of the ranges.
    fn descend(&mut self, tiles: &[Affine], rate: f32) -> Vec<Slope> {
        let cols = self.layer.cols();
        let (low, high) = self.method.target.bits.range();
        let symmetric = self.method.target.symmetric;
        let (low, high) = (low as f32, high as f32);
        let grid = self.grid;
        let mut slopes = vec![Slope::default(); tiles.len()];
        for (row, values) in self.values.chunks_exact(cols).enumerate() {
            let at = row * cols;
            let of_row = values
                .chunks(grid.block_cols)
                .zip(self.offsets[at..at + cols].chunks_mut(grid.block_cols))
                .zip(self.codes[at..at + cols].chunks(grid.block_cols))
                .zip(self.products[at..at + cols].chunks(grid.block_cols));
            for (run, (((values, offsets), codes), gradients)) in of_row.enumerate() {
                let first = run * grid.block_cols;
                let index = grid.index(row, first);
                let (tile, slope, ends) = (tiles[index], &mut slopes[index], &self.ends[index]);
                let zero_point = f32::from(tile.zero_point);
                let places = values.iter().zip(offsets).zip(codes.iter().zip(gradients)).enumerate();
                for (i, ((w, offset), (code, gradient))) in places {
                    if *gradient == 0.0 || is_pruned(self.layer, self.first_row + row, first + i) {
                        continue;
                    }
                    let steps = f32::from(*code) - zero_point;
                    let place = (w / tile.scale + zero_point + *offset).round_ties_even();
                    let gradient = f64::from(*gradient);
                    if (low..=high).contains(&place) {
                        slope.scale += gradient * f64::from(steps - w / tile.scale);
                        *offset = (*offset - rate * gradient.signum() as f32).clamp(-0.5, 0.5);
                    } else if symmetric {
                        slope.scale += gradient * f64::from(steps);
                    } else {
                        slope.scale += gradient * f64::from(steps - ends.full.min * ends.alpha / tile.scale);
                        slope.min += gradient;
                    }
                }
            }
        }
        slopes
    }
}

impl Ends {
    fn descend(&mut self, slope: Slope, symmetric: bool, bits: Bits, rate: f32) {
        let Range { min, max } = self.full;
        let (alpha, beta) = if symmetric {
            // the end with the larger magnitude makes the scale
            let (below, above) = (-min * self.alpha, max * self.beta);
            let of = |end: f32, decides| if decides { slope.scale * f64::from(end) } else { 0.0 };
            (of(-min, below >= above), of(max, above >= below))
        } else {
            let steps = f64::from((1u32 << bits.get()) - 1);
            (f64::from(min) * (slope.min - slope.scale / steps), f64::from(max) * slope.scale / steps)
        };
        let moved = |x: f32, gradient: f64| {
            if gradient == 0.0 { x } else { (x - rate * gradient.signum() as f32).clamp(0.0, 1.0) }
        };
        (self.alpha, self.beta) = (moved(self.alpha, alpha), moved(self.beta, beta));
    }
}
