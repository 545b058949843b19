use std::ops::Range;

use rayon::prelude::*;

use super::affine::Affine;
use super::calibrated::{self, Found};
use super::observer::Observer;
use super::round::{self, CodeType, RoundToNearest};
use crate::kernels::cholesky::factor_upper;
use crate::kernels::level::Isa;
use crate::kernels::matmul::panels::Aligned;
use crate::kernels::memory::zeros;
use crate::kernels::quantize::feedback::{Feedback, Squares, expected_weights, round_with_feedback};
use crate::kernels::reduce;
use crate::kernels::update::{self, Lanes, PANEL};
use crate::layer::{Compressed, Layer, Method, MethodError, Needs};
use crate::weight::{Bits, Coding, CompressedWeight, DenseValues, Granularity, ScaleGrid, Scales};

/// Fractions of the mean diagonal that are tried, from the one asked for on, until the Hessian can be factorized.
const DAMPING: [f64; 5] = [0.01, 0.03, 0.1, 0.3, 1.0];

/// Columns whose sums over all earlier columns are made together; it does not change the result.
const BLOCK: usize = 128;

/// GPTQ: rounds column by column, each making good what the rounding of earlier columns did to the layer's output.
///
/// Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022). The paper's
/// equation 3 updates the later weights with rows of the Cholesky factor of `H⁻¹`; here `H + λI = U·Uᵀ` with `U` upper triangular
/// gives the same values without an inverse: column `j` becomes the code nearest to
/// `w_j + Σ_{i<j} U_ij (w_i − q_i) / U_jj`.
///
/// - Scales of a group are found, by the [`Observer`], from its weights as they stand when their turn comes, or with
///   [`static_groups`](Self::static_groups) from the weights of the layer. Whole channels, tensors and blocks always have the
///   latter.
/// - `λ` is a fraction of the mean of `H`'s diagonal over the channels that are not dead. When the factorization fails, the next
///   larger of 0.01, 0.03, 0.1, 0.3 and 1 is taken, which the outcome notes.
/// - The weights of dead channels (whose input was always zero) change nothing and are rounded to nearest.
/// - Pruned weights stay zero; the others make good what that does to the output as they change.
/// - Of the result and plain rounding to nearest the one with the smaller error of the output is kept.
///
/// ```
/// use tersor::{Bits, Gptq, Layer, LayerStats, Method, Needs, Precision};
///
/// let values = [0.4, 0.4, 7.5];
/// let mut stats = LayerStats::new(3, Needs::Hessian);
/// // the first two channels always are the same, the third is another
/// stats.observe(ndarray::array![[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]].view())?;
/// let mut layer = Layer::new(&[1, 3], &values, Precision::F32);
/// layer.stats = Some(&stats);
///
/// let compressed = Gptq::int(Bits::new(4).unwrap()).compress(&layer)?;
/// // their sum, 0.8, is rounded, not each by itself
/// assert_eq!(compressed.weight.dequantize().as_slice().unwrap(), [0.0, 1.0, 7.0]);
/// let outcome = compressed.outcome.unwrap();
/// assert!(outcome.method_error < outcome.rounding_error);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gptq {
    rounding: RoundToNearest,
    act_order: bool,
    static_groups: bool,
    damping: f64,
}

impl Gptq {
    /// Symmetric integers, one scale per channel, range from smallest to largest value.
    pub fn int(bits: Bits) -> Self {
        Self::codes(CodeType::Int { bits, symmetric: true })
    }

    /// Codes of this type, one scale per channel, range from smallest to largest value.
    pub fn codes(codes: CodeType) -> Self {
        let rounding = RoundToNearest::codes(codes);
        Self { rounding, act_order: false, static_groups: false, damping: DAMPING[0] }
    }

    /// Chooses which weights share a scale.
    #[must_use]
    pub fn granularity(self, granularity: Granularity) -> Self {
        Self { rounding: self.rounding.granularity(granularity), ..self }
    }

    /// Chooses how the range of each tile is found.
    #[must_use]
    pub fn observer(self, observer: Observer) -> Self {
        Self { rounding: self.rounding.observer(observer), ..self }
    }

    /// Chooses whether columns are rounded in the order of their input's mean square, largest first, instead of from left to
    /// right. Groups then are static, so that they stay where they are.
    #[must_use]
    pub fn act_order(self, act_order: bool) -> Self {
        Self { act_order, ..self }
    }

    /// Chooses whether the scales of groups are those of the weights before anything is rounded.
    #[must_use]
    pub fn static_groups(self, static_groups: bool) -> Self {
        Self { static_groups, ..self }
    }

    /// Chooses what is added to the Hessian's diagonal, as a fraction of its mean; 0.01 unless chosen.
    #[must_use]
    pub fn damping(self, damping: f64) -> Self {
        Self { damping, ..self }
    }

    /// Columns of a group whose scale is found when its turn comes.
    fn dynamic_group(&self) -> Option<usize> {
        match self.rounding.scale_granularity() {
            Granularity::Group(size) if !self.act_order && !self.static_groups => Some(size.get()),
            _ => None,
        }
    }

    /// The order of the columns.
    fn order(&self, hessian: &[f32], cols: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..cols).collect();
        if self.act_order {
            order.sort_by(|a, b| hessian[b * (cols + 1)].total_cmp(&hessian[a * (cols + 1)]));
        }
        order
    }

    /// Factorizes the Hessian in this order.
    fn factor(&self, hessian: &[f32], order: &[usize]) -> Result<Factor, MethodError> {
        let size = order.len();
        let failed = |damping: f64, reason: &dyn ToString| MethodError::Hessian {
            size,
            damping,
            reason: reason.to_string(),
        };
        if let Some(found) = reduce::first_non_finite(hessian) {
            return Err(failed(0.0, &found));
        }
        let diagonal = || hessian.iter().step_by(size + 1).map(|x| f64::from(*x)).filter(|x| *x > 0.0);
        let mean = diagonal().sum::<f64>() / diagonal().count().max(1) as f64;
        // what is dead stands alone, whatever is on the diagonal
        let alone = if mean > 0.0 { mean } else { 1.0 };
        let mut damping = self.damping;
        loop {
            let mut factor = zeros(size * size);
            factor.par_chunks_mut(size).enumerate().for_each(|(i, row)| {
                let from = &hessian[order[i] * size..][..size];
                if self.act_order {
                    row[i..].iter_mut().zip(&order[i..]).for_each(|(to, j)| *to = from[*j]);
                } else {
                    row[i..].copy_from_slice(&from[i..]);
                }
                let own = if row[i] > 0.0 { f64::from(row[i]) } else { alone };
                row[i] = (own + damping * mean) as f32;
            });
            let diagonal = factor.iter().step_by(size + 1).zip(order);
            let added = diagonal.map(|(with, j)| with - hessian[j * (size + 1)]).collect();
            let Err(pivot) = factor_upper(Isa::current(), &mut factor, size) else {
                return Ok(Factor { upper: factor, damping, added });
            };
            damping = *DAMPING.iter().find(|next| **next > damping).ok_or_else(|| failed(damping, &pivot))?;
        }
    }

    /// Rounds a layer that has weights; also the squared error of the output of 32 rows each.
    fn round(
        &self,
        layer: &Layer<'_>,
        factor: &Factor,
        order: &[usize],
    ) -> Result<(CompressedWeight, Vec<Squares>), MethodError> {
        let (rows, cols, codes) = (layer.rows(), layer.cols(), self.rounding.code_type());
        let grid = self.rounding.scale_granularity().grid(rows, cols);
        let dynamic = self.dynamic_group();
        let tiles =
            if dynamic.is_some() { Vec::new() } else { self.rounding.affine_of_tiles(layer, grid)? };
        let shared = Shared { rounding: &self.rounding, layer, factor, order, grid, dynamic };
        let mut errors = Aligned::zeroed(rows.next_multiple_of(PANEL) * cols * size_of::<f32>());
        let errors = errors.words_mut().par_chunks_exact_mut(PANEL * cols).enumerate();
        let mut all: Vec<Rows<'_>> =
            errors.map(|(panel, errors)| Rows::new(&shared, panel * PANEL, &tiles, errors)).collect();
        // groups do not cross from one block into the next
        let block = dynamic.map_or(BLOCK, |group| (BLOCK / group).max(1).saturating_mul(group).min(cols));
        update::sweep(Isa::current(), &factor.upper, cols, block, &mut all);

        let mut found = vec![0u8; rows * cols];
        found.par_chunks_mut(PANEL * cols).zip(&all).for_each(|(out, from)| {
            for (lane, out) in out.chunks_exact_mut(cols).enumerate() {
                for (column, codes) in order.iter().zip(from.codes.as_chunks::<PANEL>().0) {
                    out[*column] = codes[lane];
                }
            }
        });
        let tiles = if dynamic.is_some() { dynamic_tiles(&mut all, grid)? } else { tiles };
        let (scales, zero_points) = self.rounding.scales_of(&tiles);
        let scales = Scales::new(self.rounding.scale_granularity(), layer.precision, scales, zero_points)?;
        let encode = |values| CompressedWeight::encode(layer.shape, layer.layout, layer.mask, values);
        let weight = match codes {
            CodeType::F8E4M3 => encode(DenseValues::F8E4M3(&found, &scales))?,
            CodeType::Int { bits, .. } => {
                let signed: Vec<i8> = found.par_iter().map(|code| *code as i8).collect();
                encode(DenseValues::Int(bits, &signed, &scales))?
            }
        };
        round::check_range(layer, &weight)?;
        Ok((weight, all.iter().map(|rows| rows.squares).collect()))
    }
}

/// A factorized Hessian, its columns in the order of their turn.
struct Factor {
    /// `[size, size]`
    upper: Vec<f32>,
    /// Fraction of the mean diagonal that was added.
    damping: f64,
    /// What was added, and what dead channels have been given.
    added: Vec<f32>,
}

/// The squared error that all rows have without damping, unless little else is left of it and rounding errors would show.
fn error_without_damping(rows: &[Squares]) -> Option<f64> {
    let sum = |of: fn(&Squares) -> &[f64; PANEL]| rows.iter().flat_map(of).sum::<f64>();
    let all = sum(|rows| &rows.all);
    let error = all - sum(|rows| &rows.damping);
    (error > 0.02 * all).then_some(error)
}

impl Method for Gptq {
    fn name(&self) -> String {
        let order = if self.act_order { ", act-order" } else { "" };
        let groups = if self.static_groups && !self.act_order { ", static groups" } else { "" };
        format!("GPTQ to {}{order}{groups}", self.rounding.target())
    }

    fn coding(&self, before: Coding) -> Coding {
        self.rounding.coding(before)
    }

    fn needs(&self) -> Needs {
        Needs::Hessian
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let cols: usize = shape.iter().skip(1).product();
        let values: usize = shape.iter().product();
        // the factor and a block of it; codes twice and the plainly rounded layer; errors are gone when results are compared
        let bytes = (cols * cols + (BLOCK + update::TILE) * cols) * size_of::<f32>() + values * (2 + 1);
        (bytes + calibrated::comparison_bytes(values)) as u64 + self.rounding.scratch_bytes(shape)
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        if !(0.0..=1.0).contains(&self.damping) {
            let (option, expected) = ("damping", "from 0 to 1");
            return Err(MethodError::Option { option, value: self.damping, expected });
        }
        let (stats, hessian) = calibrated::hessian(layer, || self.name())?;
        // this also checks the weights, the mask and the observer
        let rounded = self.rounding.compress(layer)?.weight;
        let (mut damping, mut notes, mut squared_error) = (0.0, Vec::new(), None);
        let mut weight = rounded.clone();
        if !layer.values.is_empty() {
            let order = self.order(hessian, layer.cols());
            let factor = self.factor(hessian, &order)?;
            damping = factor.damping;
            if damping > self.damping {
                notes.push(format!(
                    "the Hessian could not be factorized with damping {}: {damping} was taken",
                    self.damping
                ));
            }
            let squares;
            (weight, squares) = self.round(layer, &factor, &order)?;
            squared_error = error_without_damping(&squares);
        }
        let found = Found { weight, damping, notes, squared_error };
        Ok(calibrated::keep_better(layer, (stats, hessian), rounded, found))
    }
}

/// What all rows are rounded with.
struct Shared<'a> {
    rounding: &'a RoundToNearest,
    layer: &'a Layer<'a>,
    factor: &'a Factor,
    order: &'a [usize],
    grid: ScaleGrid,
    dynamic: Option<usize>,
}

/// 32 rows that are being rounded; columns stand in the order of their turn.
struct Rows<'a> {
    shared: &'a Shared<'a>,
    first: usize,
    /// `w − q`, `[cols][32]`.
    errors: &'a mut [f32],
    codes: Vec<u8>,
    /// `[groups][32]`, and 1 for rows that do not exist.
    scales: Vec<f32>,
    zero_points: Vec<f32>,
    squares: Squares,
    failed: Option<MethodError>,
}

impl<'a> Rows<'a> {
    fn new(shared: &'a Shared<'a>, first: usize, tiles: &[Affine], errors: &'a mut [f32]) -> Self {
        let (size, grid) = (shared.order.len() * PANEL, shared.grid);
        let (mut scales, mut zero_points) = (vec![1.0; grid.cols * PANEL], vec![0.0; grid.cols * PANEL]);
        if !tiles.is_empty() {
            for row in first..shared.layer.rows().min(first + PANEL) {
                for group in 0..grid.cols {
                    let tile = tiles[row / grid.block_rows * grid.cols + group];
                    scales[group * PANEL + row - first] = tile.scale;
                    zero_points[group * PANEL + row - first] = f32::from(tile.zero_point);
                }
            }
        }
        let codes = vec![0; size];
        let squares = Squares::default();
        Self { shared, first, errors, codes, scales, zero_points, squares, failed: None }
    }

    /// Original weights of some columns, `[columns][32]`, and which of them are kept.
    fn weights(&self, columns: &Range<usize>) -> (Vec<f32>, Vec<u32>) {
        let Shared { layer, order, .. } = self.shared;
        let (cols, order) = (order.len(), &order[columns.clone()]);
        let mut weights = vec![0.0; columns.len() * PANEL];
        let rows = layer.values[self.first * cols..].chunks_exact(cols).take(PANEL);
        for (lane, row) in rows.enumerate() {
            let lanes = weights.as_chunks_mut::<PANEL>().0;
            lanes.iter_mut().zip(order).for_each(|(to, column)| to[lane] = row[*column]);
        }
        let kept = layer.mask.map_or_else(Vec::new, |mask| {
            let bit = |column, lane| u32::from(mask.keeps(self.first + lane, column)) << lane;
            order.iter().map(|column| (0..PANEL).fold(0, |bits, lane| bits | bit(*column, lane))).collect()
        });
        (weights, kept)
    }

    /// Finds the scales of a group from its weights as they stand now.
    fn find_scales(&mut self, group: usize, weights: &[f32], kept: &[u32]) -> Result<(), MethodError> {
        let layer = self.shared.layer;
        let mut values = Vec::with_capacity(weights.len() / PANEL);
        for lane in 0..PANEL.min(layer.rows() - self.first) {
            let keeps = |at: usize| kept.get(at).is_none_or(|bits| bits >> lane & 1 == 1);
            let all = weights.as_chunks::<PANEL>().0.iter().enumerate();
            values.clear();
            values.extend(all.filter(|(at, _)| keeps(*at)).map(|(_, lanes)| lanes[lane]));
            let affine = self.shared.rounding.affine_of(&values, layer.precision)?;
            self.scales[group * PANEL + lane] = affine.scale;
            self.zero_points[group * PANEL + lane] = f32::from(affine.zero_point);
        }
        Ok(())
    }
}

impl Lanes for Rows<'_> {
    fn columns(&self) -> &[f32] {
        self.errors
    }

    fn block(&mut self, isa: Isa, columns: Range<usize>, sums: &mut [f32]) {
        let (shared, size) = (self.shared, self.shared.order.len());
        let (weights, kept) = self.weights(&columns);
        let groups: Vec<usize> =
            shared.order[columns.clone()].iter().map(|column| column / shared.grid.block_cols).collect();
        let step = shared.dynamic.unwrap_or(columns.len());
        for start in (0..columns.len()).step_by(step) {
            let run = start..(start + step).min(columns.len());
            let lanes = run.start * PANEL..run.end * PANEL;
            let of_layer = columns.start + run.start..columns.start + run.end;
            let kept = if kept.is_empty() { &[][..] } else { &kept[run.clone()] };
            if shared.dynamic.is_some() {
                let (mut now, mut sums) = (weights[lanes.clone()].to_vec(), sums[lanes.clone()].to_vec());
                expected_weights(isa, &shared.factor.upper, size, of_layer.clone(), &mut now, &mut sums);
                if let Err(error) = self.find_scales(groups[run.start], &now, kept) {
                    self.failed.get_or_insert(error);
                }
            }
            let in_order = of_layer.start * PANEL..of_layer.end * PANEL;
            round_with_feedback(Feedback {
                isa,
                codes: shared.rounding.code_type().kernel(),
                precision: shared.layer.precision,
                factor: &shared.factor.upper,
                size,
                columns: of_layer.clone(),
                weights: &weights[lanes],
                kept,
                groups: &groups[run],
                scales: &self.scales,
                zero_points: &self.zero_points,
                sums: &mut sums[start * PANEL..],
                out: &mut self.codes[in_order.clone()],
                errors: &mut self.errors[in_order],
                damping: &shared.factor.added[of_layer.clone()],
                squares: &mut self.squares,
            });
        }
    }
}

/// The scales that rows have found, row-major; or the first error.
fn dynamic_tiles(all: &mut [Rows<'_>], grid: ScaleGrid) -> Result<Vec<Affine>, MethodError> {
    let mut tiles = Vec::with_capacity(grid.len());
    for rows in all {
        if let Some(error) = rows.failed.take() {
            return Err(error);
        }
        for lane in 0..PANEL.min(grid.rows - rows.first) {
            let (scales, zero_points) =
                (rows.scales.chunks_exact(PANEL), rows.zero_points.chunks_exact(PANEL));
            tiles.extend(
                scales.zip(zero_points).map(|(s, z)| Affine { scale: s[lane], zero_point: z[lane] as i8 }),
            );
        }
    }
    Ok(tiles)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use ndarray::Array2;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::dtype::Precision;
    use crate::kernels::gram::quadratic_form;
    use crate::kernels::level::CpuLevel;
    use crate::layer::LayerStats;
    use crate::weight::{LayoutKind, Mask};

    fn int4() -> Gptq {
        Gptq::int(Bits::new(4).unwrap())
    }

    fn groups(size: usize) -> Granularity {
        Granularity::Group(NonZeroUsize::new(size).unwrap())
    }

    /// Weights, and statistics of inputs whose channels go together; `dead` channels are zero.
    fn layer_of(rows: usize, cols: usize, tokens: usize, dead: &[usize]) -> (Vec<f32>, LayerStats) {
        let mut random = ChaCha8Rng::seed_from_u64((rows * cols) as u64);
        let values = (0..rows * cols).map(|_| random.random_range(-1.0..1.0)).collect();
        let common = Array2::from_shape_fn((tokens, 7), |_| random.random_range(-1.0..1.0f32));
        let inputs = Array2::from_shape_fn((tokens, cols), |(t, c)| {
            if dead.contains(&c) { 0.0 } else { common[[t, c % 7]] + random.random_range(-0.4..0.4) }
        });
        let mut stats = LayerStats::new(cols, Needs::Hessian);
        stats.observe(inputs.view()).unwrap();
        (values, stats)
    }

    #[test]
    fn the_output_is_much_closer_than_rounded_whatever_the_codes_and_granularity() {
        let (values, stats) = layer_of(37, 200, 300, &[]);
        let shape = [37, 10, 20];
        for precision in [Precision::F32, Precision::Bf16, Precision::F16] {
            let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &values, precision) };
            let block = Granularity::Block(NonZeroUsize::new(16).unwrap(), NonZeroUsize::new(24).unwrap());
            let asymmetric = Gptq::codes(CodeType::Int { bits: Bits::new(3).unwrap(), symmetric: false });
            for method in [
                int4().granularity(Granularity::Tensor),
                int4().granularity(block).observer(Observer::Mse),
                int4().granularity(groups(7)),
                int4().granularity(groups(150)).act_order(true),
                asymmetric.granularity(groups(199)),
                Gptq::codes(CodeType::F8E4M3),
            ] {
                let compressed = method.compress(&layer).unwrap();
                let outcome = compressed.outcome.unwrap();
                assert_eq!(compressed.weight.form().coding(), method.coding(Coding::Float(precision)));
                assert_eq!((outcome.tokens, outcome.damping, outcome.dead_channels), (300, 0.01, 0));
                assert!(outcome.notes.is_empty() && !outcome.kept_rounding);
                let decoded = compressed.weight.dequantize();
                let difference: Vec<f32> = values.iter().zip(&decoded).map(|(w, q)| w - q).collect();
                let hessian = stats.hessian().unwrap();
                let [error, output] = [&difference, &values].map(|x| quadratic_form(x, 200, hessian));
                approx::assert_relative_eq!(outcome.method_error, error / output, max_relative = 1e-4);
                let ratio = outcome.method_error / outcome.rounding_error;
                assert!(ratio < 0.6, "{} of {precision:?}: {ratio}", method.name());
            }
        }
    }

    #[test]
    fn threads_and_levels_do_not_change_the_result() {
        let (values, stats) = layer_of(70, 300, 400, &[5]);
        let shape = [70, 300];
        let layer = Layer { stats: Some(&stats), ..Layer::new(&shape, &values, Precision::F32) };
        for method in [int4().granularity(groups(32)), int4().granularity(groups(32)).act_order(true)] {
            let before = CpuLevel::current();
            let expected = method.compress(&layer).unwrap();
            for level in CpuLevel::ALL.into_iter().filter(|level| level.set_current().is_ok()) {
                for threads in [1, 3] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let found = pool.install(|| method.compress(&layer).unwrap());
                    assert!(found == expected, "{level} with {threads} threads");
                }
            }
            before.set_current().unwrap();
        }
    }

    #[test]
    fn dead_channels_are_rounded_to_nearest_and_counted() {
        let (values, stats) = layer_of(5, 40, 100, &[3, 39]);
        let layer = Layer { stats: Some(&stats), ..Layer::new(&[5, 40], &values, Precision::F32) };
        let found = int4().compress(&layer).unwrap();
        let rounded =
            RoundToNearest::int(Bits::new(4).unwrap()).compress(&layer).unwrap().weight.dequantize();
        let outcome = found.outcome.unwrap();
        assert_eq!(outcome.dead_channels, 2);
        let decoded = found.weight.dequantize();
        for column in [3, 39] {
            assert_eq!(decoded.column(column), rounded.column(column));
        }
        assert!(!outcome.kept_rounding && decoded != rounded);
    }

    #[test]
    fn a_layer_of_dead_channels_only_is_rounded() {
        let values = [1.0, -0.4, 7.5];
        let mut stats = LayerStats::new(3, Needs::Hessian);
        stats.observe(Array2::zeros((4, 3)).view()).unwrap();
        let layer = Layer { stats: Some(&stats), ..Layer::new(&[1, 3], &values, Precision::F32) };
        let found = int4().compress(&layer).unwrap();
        assert_eq!(found.weight.dequantize().as_slice().unwrap(), [1.0, 0.0, 7.0]);
        let outcome = found.outcome.unwrap();
        assert_eq!((outcome.dead_channels, outcome.method_error, outcome.rounding_error), (3, 0.0, 0.0));
    }

    #[test]
    fn pruned_weights_stay_zero_and_the_others_make_good_for_it() {
        let (mut values, stats) = layer_of(40, 64, 200, &[]);
        let mask = Mask::from_fn(40, 64, |row, col| (row + col) % 2 == 0);
        mask.apply(&mut values).unwrap();
        for (layout, symmetric) in
            [(LayoutKind::Dense, true), (LayoutKind::Dense, false), (LayoutKind::Bitmask, false)]
        {
            let layer = Layer {
                stats: Some(&stats),
                mask: Some(&mask),
                layout,
                ..Layer::new(&[40, 64], &values, Precision::F32)
            };
            let codes = CodeType::Int { bits: Bits::new(4).unwrap(), symmetric };
            let found = Gptq::codes(codes).granularity(groups(16)).compress(&layer).unwrap();
            let decoded = found.weight.dequantize();
            assert!(decoded.indexed_iter().all(|((row, col), x)| mask.keeps(row, col) || *x == 0.0));
            let outcome = found.outcome.unwrap();
            assert!(outcome.method_error < 0.7 * outcome.rounding_error, "{outcome:?}");
        }
    }

    #[test]
    fn damping_grows_until_the_hessian_can_be_factorized() {
        // 20 tokens of 60 channels: singular
        let (values, stats) = layer_of(8, 60, 20, &[]);
        let layer = Layer { stats: Some(&stats), ..Layer::new(&[8, 60], &values, Precision::F32) };
        let outcome = int4().damping(0.0).compress(&layer).unwrap().outcome.unwrap();
        assert_eq!(outcome.damping, 0.01);
        assert_eq!(
            outcome.notes,
            [
                "the Hessian could not be factorized with damping 0: 0.01 was taken",
                "20 tokens say little of 60 input features: calibrate with more"
            ]
        );
        assert_eq!(int4().damping(0.2).compress(&layer).unwrap().outcome.unwrap().damping, 0.2);
    }

    #[test]
    fn a_hessian_that_is_none_is_refused() {
        let order = [0, 1];
        let refused = |hessian: &[f32]| int4().factor(hessian, &order).err().unwrap().to_string();
        // negative beyond what the largest damping makes good
        let text = refused(&[1.0, 9.0, 9.0, 1.0]);
        assert!(text.contains("of 2 input features") && text.contains("even with 1 of its mean"), "{text}");
        assert!(text.contains("pivot 0 is"), "{text}");
        assert!(
            refused(&[1.0, f32::NAN, 0.0, 1.0]).contains("NaN"),
            "{}",
            refused(&[1.0, f32::NAN, 0.0, 1.0])
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let values = [1.0; 6];
        let layer = Layer::new(&[2, 3], &values, Precision::F32);
        let text = |layer: &Layer<'_>, method: Gptq| method.compress(layer).unwrap_err().to_string();
        assert!(text(&layer, int4()).contains("GPTQ to int4, channel needs samples"));
        let stats = layer_of(1, 4, 3, &[]).1;
        assert!(text(&Layer { stats: Some(&stats), ..layer }, int4()).contains("4 input features"));
        let mut stats = LayerStats::new(3, Needs::Channels);
        stats.observe(Array2::ones((2, 3)).view()).unwrap();
        assert!(
            text(&Layer { stats: Some(&stats), ..layer }, int4()).contains("the products of all channels")
        );
        let stats = layer_of(1, 3, 9, &[]).1;
        let layer = Layer { stats: Some(&stats), ..layer };
        assert!(text(&layer, int4().damping(f64::NAN)).contains("damping is NaN"));
        let broken = [1.0, f32::INFINITY, 0.0, 0.0, 0.0, 0.0];
        assert!(text(&Layer { values: &broken, ..layer }, int4()).contains("index 1"));
        let empty = Layer { values: &[], ..Layer { shape: &[0, 3], ..layer } };
        assert_eq!(int4().compress(&empty).unwrap().weight.shape(), [0, 3]);
    }

    #[test]
    fn rounding_is_kept_where_it_is_better() {
        let (values, stats) = layer_of(3, 8, 50, &[]);
        let layer = Layer { stats: Some(&stats), ..Layer::new(&[3, 8], &values, Precision::F32) };
        let rounded = RoundToNearest::int(Bits::new(4).unwrap()).compress(&layer).unwrap().weight;
        let zeros = CompressedWeight::from_f32(&[3, 8], Precision::F32, &[0.0; 24]).unwrap();
        let hessian = stats.hessian().unwrap();
        let found = Found { weight: zeros, damping: 0.5, notes: Vec::new(), squared_error: None };
        let kept = calibrated::keep_better(&layer, (&stats, hessian), rounded.clone(), found);
        assert_eq!(kept.weight, rounded);
        let outcome = kept.outcome.unwrap();
        assert!(outcome.kept_rounding && outcome.rounding_error < 0.1);
        // nothing is left of the output
        assert!((outcome.method_error - 1.0).abs() < 1e-6);
    }
}
