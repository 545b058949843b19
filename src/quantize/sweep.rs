//! A layer gone through column by column, each making good what became of those before it: what GPTQ and SparseGPT share.

use std::ops::Range;

use rayon::prelude::*;

use super::affine::Affine;
use super::calibrated::comparison_bytes;
use super::factor::Factor;
use super::round::RoundToNearest;
use crate::kernels::cholesky;
use crate::kernels::level::Isa;
use crate::kernels::matmul::panels::Aligned;
use crate::kernels::memory::zeros;
use crate::kernels::quantize::feedback::{
    CodeColumns, Feedback, Squares, Target, expected_weights, round_with_feedback,
};
use crate::kernels::select;
use crate::kernels::transpose::{from_lanes, to_lanes};
use crate::kernels::update::{self, Lanes, PANEL};
use crate::layer::{Layer, MethodError};
use crate::prune::{Sparsity, SparsityPattern, n_of_m_mask};
use crate::weight::{Mask, NofM, ScaleGrid};

/// Columns whose sums over all earlier columns are made together, which does not change the result; and among whose weights
/// unstructured pruning chooses, which does.
pub(crate) const BLOCK: usize = 128;

/// Bytes that a sweep over a layer of this shape takes, and comparing its result: the factor and some columns of it, what waits of a
/// block, and so many bytes of results for every weight. Errors are gone when results are compared.
pub(crate) fn scratch_bytes(shape: &[usize], of_weight: usize) -> u64 {
    let cols: usize = shape.iter().skip(1).product();
    let values: usize = shape.iter().product();
    let rows = shape.first().copied().unwrap_or(1);
    let factor = (cols * cols + cholesky::STEP.max(BLOCK + update::TILE) * cols) * size_of::<f32>();
    let waiting = 3 * BLOCK.min(cols) * rows * size_of::<f32>();
    (factor + waiting + values * of_weight + comparison_bytes(rows, cols)) as u64
}

/// How weights become codes.
#[derive(Clone, Copy)]
pub(crate) struct Codes<'a> {
    pub(crate) rounding: &'a RoundToNearest,
    /// Columns of a group whose scale is found when its turn comes; all other scales are those of the weights before.
    pub(crate) dynamic: Option<usize>,
}

/// Codes, `[rows, cols]`, and the scales of all tiles, row by row.
pub(crate) type CodesAndScales = (Vec<u8>, Vec<Affine>);

/// A layer after the sweep, `[rows, cols]`.
pub(crate) struct Swept<T> {
    pub(crate) result: T,
    /// What was chosen to be kept, if anything had to be chosen. Of that, what an earlier step pruned is zero.
    pub(crate) mask: Option<Mask>,
    /// `‖(W − Ŵ)·Xᵀ‖²`, unless damping makes up nearly all of it, so that rounding errors would show.
    pub(crate) squared_error: Option<f64>,
}

/// Rounds a layer that has weights to codes, integers in two's complement or e4m3, with their scales, row-major. What `pruning`
/// does not keep becomes zero.
///
/// # Errors
/// When an observer finds no range.
pub(crate) fn to_codes(
    layer: &Layer<'_>,
    factor: &Factor,
    codes: Codes<'_>,
    pruning: Option<SparsityPattern>,
) -> Result<Swept<CodesAndScales>, MethodError> {
    let Codes { rounding, dynamic } = codes;
    let grid = rounding.scale_granularity().grid(layer.rows(), layer.cols());
    let tiles = if dynamic.is_some() { Vec::new() } else { rounding.affine_of_tiles(layer, grid)? };
    let choice = Choice::new(layer, factor, dynamic, pruning)?;
    let shared = Shared { layer, factor, coding: Some(Coding { rounding, grid, dynamic }), choice };
    let mut codes = vec![0; layer.values.len()];
    let mut errors = errors_of(&shared);
    let parts = codes.chunks_mut(PANEL * layer.cols()).enumerate();
    let made = parts.map(|(panel, codes)| Made::codes(codes, (panel * PANEL, layer.rows()), &tiles, grid));
    let mut all = sweep(&shared, made.collect(), &mut errors);
    let tiles = if dynamic.is_some() { dynamic_tiles(&mut all, grid)? } else { tiles };
    let (mask, squared_error) = finish(&all, &shared);
    Ok(Swept { result: (codes, tiles), mask, squared_error })
}

/// Prunes a layer that has weights; those that are kept have the layer's precision.
///
/// # Errors
/// When the pattern does not fit the layer.
pub(crate) fn to_values(
    layer: &Layer<'_>,
    factor: &Factor,
    pruning: SparsityPattern,
) -> Result<Swept<Vec<f32>>, MethodError> {
    let choice = Choice::new(layer, factor, None, Some(pruning))?;
    let shared = Shared { layer, factor, coding: None, choice };
    let mut values = zeros(layer.values.len());
    let mut errors = errors_of(&shared);
    let made = values.chunks_mut(PANEL * layer.cols()).map(Made::Values);
    let all = sweep(&shared, made.collect(), &mut errors);
    let (mask, squared_error) = finish(&all, &shared);
    Ok(Swept { result: values, mask, squared_error })
}

/// Room for the errors of all weights.
fn errors_of(shared: &Shared<'_>) -> Aligned {
    let (rows, cols) = (shared.layer.rows(), shared.factor.size());
    Aligned::zeroed(rows.next_multiple_of(PANEL) * cols * size_of::<f32>())
}

/// Goes through all columns of a layer; `made` is what every 32 rows become.
fn sweep<'a>(shared: &'a Shared<'a>, made: Vec<Made<'a>>, errors: &'a mut Aligned) -> Vec<Rows<'a>> {
    let cols = shared.factor.size();
    // neither groups with a scale nor neighbours of a pattern cross from one block into the next
    let unit = match (shared.dynamic(), &shared.choice) {
        (None, Choice::Neighbours(pattern)) => pattern.m(),
        (dynamic, _) => dynamic.unwrap_or(1),
    };
    let block = (BLOCK / unit).max(1).saturating_mul(unit).min(cols);
    let errors = errors.words_mut().chunks_exact_mut(PANEL * cols);
    let of_panel = |(panel, (errors, made))| Rows::new(shared, panel * PANEL, made, errors);
    let mut all: Vec<Rows<'_>> = errors.zip(made).enumerate().map(of_panel).collect();
    update::sweep(Isa::current(), &shared.factor.upper, cols, block, &mut all);
    all
}

/// What was chosen, and the squared error.
fn finish(all: &[Rows<'_>], shared: &Shared<'_>) -> (Option<Mask>, Option<f64>) {
    let mask = match &shared.choice {
        Choice::Given(mask) => mask.clone(),
        Choice::Blocks(_) | Choice::Neighbours(_) => Some(chosen_mask(all, shared)),
    };
    (mask, squared_error(all))
}

/// How weights become codes, and the tiles that share a scale.
struct Coding<'a> {
    rounding: &'a RoundToNearest,
    grid: ScaleGrid,
    dynamic: Option<usize>,
}

/// When and among which it is chosen what is kept.
enum Choice {
    /// Before; `None`: everything.
    Given(Option<Mask>),
    /// When the turn of a block of columns has come, among all of its weights as they stand then.
    Blocks(Sparsity),
    /// When the turn of some neighbours has come, among them.
    Neighbours(NofM),
}

impl Choice {
    fn new(
        layer: &Layer<'_>,
        factor: &Factor,
        dynamic: Option<usize>,
        pruning: Option<SparsityPattern>,
    ) -> Result<Self, MethodError> {
        let pattern = match pruning {
            None => return Ok(Self::Given(None)),
            Some(SparsityPattern::Unstructured(sparsity)) => return Ok(Self::Blocks(sparsity)),
            Some(SparsityPattern::NofM(pattern)) => pattern,
        };
        if factor.in_order && dynamic.is_none_or(|group| group.is_multiple_of(pattern.m())) {
            return Ok(Self::Neighbours(pattern));
        }
        // neighbours have their turns at different times, or under different scales: their weights before have to do
        let mut costs = vec![0.0; factor.size()];
        factor.order.iter().enumerate().for_each(|(turn, column)| costs[*column] = factor.cost(turn));
        let rows = layer.values.chunks_exact(costs.len().max(1));
        let saliency: Vec<f32> =
            rows.flat_map(|row| row.iter().zip(&costs).map(|(w, cost)| w * cost)).collect();
        Ok(Self::Given(Some(n_of_m_mask(pattern, layer.rows(), layer.cols(), &saliency)?)))
    }
}

/// What all rows go by.
struct Shared<'a> {
    layer: &'a Layer<'a>,
    factor: &'a Factor,
    coding: Option<Coding<'a>>,
    choice: Choice,
}

impl Shared<'_> {
    /// Columns of a group whose scale is found when its turn comes.
    fn dynamic(&self) -> Option<usize> {
        self.coding.as_ref().and_then(|coding| coding.dynamic)
    }
}

/// What weights of up to 32 rows become, `[rows, cols]`, columns in the layer's order.
enum Made<'a> {
    Codes {
        codes: &'a mut [u8],
        /// `[groups][32]`, and 1 for rows that do not exist.
        scales: Vec<f32>,
        zero_points: Vec<f32>,
    },
    Values(&'a mut [f32]),
}

impl<'a> Made<'a> {
    /// Codes of the rows from `first` on, of so many in all, with the scales that are known before.
    fn codes(codes: &'a mut [u8], (first, rows): (usize, usize), tiles: &[Affine], grid: ScaleGrid) -> Self {
        let mut scales = vec![1.0; grid.cols * PANEL];
        let mut zero_points = vec![0.0; grid.cols * PANEL];
        if !tiles.is_empty() {
            for row in first..rows.min(first + PANEL) {
                for group in 0..grid.cols {
                    let tile = tiles[row / grid.block_rows * grid.cols + group];
                    scales[group * PANEL + row - first] = tile.scale;
                    zero_points[group * PANEL + row - first] = f32::from(tile.zero_point);
                }
            }
        }
        Self::Codes { codes, scales, zero_points }
    }
}

/// 32 rows on their way; columns stand in the order of their turn.
struct Rows<'a> {
    shared: &'a Shared<'a>,
    first: usize,
    /// `w − q`, `[cols][32]`.
    errors: &'a mut [f32],
    made: Made<'a>,
    /// What was chosen to be kept, a bit for every row of every column; empty if that is not chosen on the way.
    chosen: Vec<u32>,
    waiting: Waiting,
    squares: Squares,
    failed: Option<MethodError>,
}

/// A block of columns about which all rows have to decide together, `[columns][32]` each.
#[derive(Default)]
struct Waiting {
    weights: Vec<f32>,
    sums: Vec<f32>,
    saliency: Vec<f32>,
}

impl<'a> Rows<'a> {
    fn new(shared: &'a Shared<'a>, first: usize, made: Made<'a>, errors: &'a mut [f32]) -> Self {
        let chosen = match shared.choice {
            Choice::Given(_) => Vec::new(),
            Choice::Blocks(_) | Choice::Neighbours(_) => vec![0; shared.factor.size()],
        };
        Self {
            shared,
            first,
            errors,
            made,
            chosen,
            waiting: Waiting::default(),
            squares: Squares::default(),
            failed: None,
        }
    }

    /// Original weights of some columns, `[columns][32]`.
    fn weights(&self, isa: Isa, columns: &Range<usize>) -> Vec<f32> {
        let Shared { layer, factor, .. } = self.shared;
        let (cols, order) = (factor.size(), &factor.order[columns.clone()]);
        let mut weights = vec![0.0; columns.len() * PANEL];
        let rows = &layer.values[self.first * cols..layer.rows().min(self.first + PANEL) * cols];
        if factor.in_order {
            to_lanes(isa, rows, cols, columns.clone(), &mut weights);
            return weights;
        }
        for (lane, row) in rows.chunks_exact(cols).enumerate() {
            let lanes = weights.as_chunks_mut::<PANEL>().0;
            lanes.iter_mut().zip(order).for_each(|(to, column)| to[lane] = row[*column]);
        }
        weights
    }

    /// Which of some columns a mask keeps, a bit for every row.
    fn bits_of(&self, mask: &Mask, columns: &Range<usize>) -> Vec<u32> {
        let rows = self.first..mask.rows().min(self.first + PANEL);
        let bit = |column, row: usize| u32::from(mask.keeps(row, column)) << (row - self.first);
        let bits = |column: &usize| rows.clone().fold(0, |bits, row| bits | bit(*column, row));
        self.shared.factor.order[columns.clone()].iter().map(bits).collect()
    }

    /// What no earlier step or run pruned of some columns; `None`: nothing was.
    fn earlier(&self, columns: &Range<usize>) -> Option<Vec<u32>> {
        let Layer { mask, frozen, .. } = self.shared.layer;
        let bits = [mask, frozen].into_iter().flatten().map(|mask| self.bits_of(mask, columns));
        bits.reduce(|a, b| a.iter().zip(b).map(|(a, b)| a & b).collect())
    }

    /// Which of some columns are kept: what was chosen, and what no earlier step pruned. Empty: all.
    fn kept(&self, columns: &Range<usize>) -> Vec<u32> {
        let earlier = self.earlier(columns);
        let chosen = match &self.shared.choice {
            Choice::Given(mask) => mask.as_ref().map(|mask| self.bits_of(mask, columns)),
            _ => Some(self.chosen[columns.clone()].to_vec()),
        };
        match (earlier, chosen) {
            (Some(earlier), Some(chosen)) => earlier.iter().zip(chosen).map(|(a, b)| a & b).collect(),
            (earlier, chosen) => earlier.or(chosen).unwrap_or_default(),
        }
    }

    /// What weights would be if they were left as they are from here on, having made good what became of those before.
    fn expected(&self, isa: Isa, columns: &Range<usize>, weights: &[f32], sums: &[f32]) -> Vec<f32> {
        let (mut now, mut sums) = (weights.to_vec(), sums.to_vec());
        let Factor { upper, order, .. } = self.shared.factor;
        expected_weights(isa, upper, order.len(), columns.clone(), &mut now, &mut sums);
        now
    }

    /// What losing each of some weights would cost, as a square root; nothing for what is pruned already.
    fn saliency(&self, columns: &Range<usize>, mut weights: Vec<f32>) -> Vec<f32> {
        let earlier = self.earlier(columns).unwrap_or_default();
        for (at, lanes) in weights.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            let cost = self.shared.factor.cost(columns.start + at);
            let earlier = earlier.get(at).copied().unwrap_or(u32::MAX);
            for (lane, x) in lanes.iter_mut().enumerate() {
                // what was pruned goes before what no output sees
                *x = if earlier >> lane & 1 == 1 { (x.abs() * cost).max(f32::from_bits(1)) } else { 0.0 };
            }
        }
        weights
    }

    /// Finds the scales of a group from its weights as they stand now.
    fn find_scales(
        &mut self,
        isa: Isa,
        group: usize,
        weights: &[f32],
        kept: &[u32],
    ) -> Result<(), MethodError> {
        let layer = self.shared.layer;
        let (Some(coding), Made::Codes { scales, zero_points, .. }) = (&self.shared.coding, &mut self.made)
        else {
            return Ok(());
        };
        let (rows, len) = (PANEL.min(layer.rows() - self.first), weights.len() / PANEL);
        let mut of_rows = vec![0.0; rows * len];
        from_lanes(isa, weights, &mut of_rows, len, 0);
        let mut some = Vec::new();
        for (lane, row) in of_rows.chunks_exact(len).enumerate() {
            let mut values = row;
            if !kept.is_empty() {
                some.clear();
                some.extend(row.iter().zip(kept).filter(|(_, bits)| *bits >> lane & 1 == 1).map(|(x, _)| *x));
                values = &some;
            }
            let affine = coding.rounding.affine_of(values, layer.precision)?;
            scales[group * PANEL + lane] = affine.scale;
            zero_points[group * PANEL + lane] = f32::from(affine.zero_point);
        }
        Ok(())
    }

    /// Goes through the columns of a block, whose original weights and sums over all earlier columns these are.
    fn pass(&mut self, isa: Isa, columns: Range<usize>, weights: &[f32], sums: &mut [f32]) {
        let shared = self.shared;
        let dynamic = shared.dynamic();
        for run in parts(columns.clone(), dynamic) {
            if let (Some(_), Some(coding)) = (dynamic, &shared.coding) {
                let at = lanes_of(&run, &columns);
                let now = self.expected(isa, &run, &weights[at.clone()], &sums[at]);
                if let Choice::Neighbours(pattern) = shared.choice {
                    // the best guess of what will be kept
                    self.choose(pattern, &run, now.clone());
                }
                let kept = self.kept(&run);
                let group = shared.factor.order[run.start] / coding.grid.block_cols;
                if let Err(error) = self.find_scales(isa, group, &now, &kept) {
                    self.failed.get_or_insert(error);
                }
            }
            let pattern = match shared.choice {
                Choice::Neighbours(pattern) => Some(pattern),
                _ => None,
            };
            for part in parts(run, pattern.map(NofM::m)) {
                let at = lanes_of(&part, &columns);
                if let Some(pattern) = pattern {
                    let now = self.expected(isa, &part, &weights[at.clone()], &sums[at.clone()]);
                    self.choose(pattern, &part, now);
                }
                self.advance(isa, part, &weights[at.clone()], &mut sums[at.start..]);
            }
        }
    }

    /// Chooses, of every neighbours in some columns, those to keep.
    fn choose(&mut self, pattern: NofM, columns: &Range<usize>, weights: Vec<f32>) {
        let saliency = self.saliency(columns, weights);
        let groups = saliency.chunks(pattern.m() * PANEL);
        let chosen = self.chosen[columns.clone()].chunks_mut(pattern.m());
        for (group, chosen) in groups.zip(chosen) {
            let group = group.as_chunks::<PANEL>().0;
            for (i, (own, chosen)) in group.iter().zip(chosen).enumerate() {
                let mut before = [0u8; PANEL];
                for (j, other) in group.iter().enumerate() {
                    for (before, (own, other)) in before.iter_mut().zip(own.iter().zip(other)) {
                        *before += u8::from(other > own || (j < i && other == own));
                    }
                }
                let bit =
                    |(lane, before): (usize, &u8)| u32::from(usize::from(*before) < pattern.n()) << lane;
                *chosen = before.iter().enumerate().map(bit).sum();
            }
        }
    }

    /// Rounds or prunes some columns, whose original weights and sums over all earlier columns these are.
    fn advance(&mut self, isa: Isa, columns: Range<usize>, weights: &[f32], sums: &mut [f32]) {
        let (shared, factor) = (self.shared, self.shared.factor);
        let kept = self.kept(&columns);
        let (first, order) = (columns.start, &factor.order[columns.clone()]);
        let feedback = Feedback {
            isa,
            precision: shared.layer.precision,
            factor: &factor.upper,
            size: factor.size(),
            columns: columns.clone(),
            weights,
            kept: &kept,
            sums,
            errors: &mut self.errors[columns.start * PANEL..columns.end * PANEL],
            damping: &factor.added[columns],
            squares: &mut self.squares,
        };
        match (&mut self.made, &shared.coding) {
            (Made::Codes { codes, scales, zero_points }, Some(coding)) => {
                let groups: Vec<usize> = order.iter().map(|column| column / coding.grid.block_cols).collect();
                let mut out = vec![0; weights.len()];
                let to = CodeColumns {
                    codes: coding.rounding.code_type().kernel(),
                    groups: &groups,
                    scales,
                    zero_points,
                    out: &mut out,
                };
                round_with_feedback(feedback, Target::Codes(to));
                put(&out, order, (codes, factor.size()));
            }
            (Made::Values(values), _) => {
                let mut out = vec![0.0; weights.len()];
                round_with_feedback(feedback, Target::Values(&mut out));
                if factor.in_order {
                    from_lanes(isa, &out, values, factor.size(), first);
                } else {
                    put(&out, order, (values, factor.size()));
                }
            }
            (Made::Codes { .. }, None) => {}
        }
    }
}

impl Lanes for Rows<'_> {
    fn columns(&self) -> &[f32] {
        self.errors
    }

    fn block(&mut self, isa: Isa, columns: Range<usize>, sums: &mut [f32]) {
        let weights = self.weights(isa, &columns);
        if !matches!(self.shared.choice, Choice::Blocks(_)) {
            return self.pass(isa, columns, &weights, sums);
        }
        let now = self.expected(isa, &columns, &weights, sums);
        let mut saliency = self.saliency(&columns, now);
        let rows = PANEL.min(self.shared.layer.rows() - self.first);
        // rows that do not exist do not go
        saliency.as_chunks_mut::<PANEL>().0.iter_mut().for_each(|lanes| lanes[rows..].fill(f32::INFINITY));
        self.waiting = Waiting { weights, sums: sums.to_vec(), saliency };
    }

    fn together(isa: Isa, columns: Range<usize>, all: &mut [Self]) {
        let Some(Shared { layer, choice: Choice::Blocks(sparsity), .. }) =
            all.first().map(|rows| rows.shared)
        else {
            return;
        };
        // so many that all blocks together drop as many as the layer is to lose
        let until = |column: usize| sparsity.of((layer.rows() * column) as u64);
        let drop = until(columns.end) - until(columns.start);
        let saliencies: Vec<&[f32]> = all.iter().map(|rows| rows.waiting.saliency.as_slice()).collect();
        let mut cut = select::magnitude_cut(&saliencies, drop);
        let mut bytes = vec![0; columns.len() * PANEL / 8];
        for rows in &mut *all {
            select::mask_from(&rows.waiting.saliency, PANEL, &mut cut, &mut bytes);
            let bits = bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
            rows.chosen[columns.clone()].iter_mut().zip(bits).for_each(|(to, bits)| *to = bits);
        }
        all.par_iter_mut().for_each(|rows| {
            let Waiting { weights, mut sums, .. } = std::mem::take(&mut rows.waiting);
            rows.pass(isa, columns.clone(), &weights, &mut sums);
        });
    }
}

/// A range in parts of some length, or as a whole.
fn parts(range: Range<usize>, len: Option<usize>) -> impl Iterator<Item = Range<usize>> {
    let len = len.unwrap_or(range.len()).max(1);
    let end = range.end;
    range.step_by(len).map(move |start| start..(start + len).min(end))
}

/// Where the lanes of some columns of a block stand in those of the block.
fn lanes_of(part: &Range<usize>, block: &Range<usize>) -> Range<usize> {
    (part.start - block.start) * PANEL..(part.end - block.start) * PANEL
}

/// Writes `[columns][32]` into those columns of `[rows, cols]`.
fn put<T: Copy>(from: &[T], columns: &[usize], (to, cols): (&mut [T], usize)) {
    for (lane, to) in to.chunks_exact_mut(cols).enumerate() {
        columns.iter().zip(from.as_chunks::<PANEL>().0).for_each(|(column, lanes)| to[*column] = lanes[lane]);
    }
}

/// What was chosen by all rows.
fn chosen_mask(all: &[Rows<'_>], shared: &Shared<'_>) -> Mask {
    let mut turns = vec![0; shared.factor.size()];
    shared.factor.order.iter().enumerate().for_each(|(turn, column)| turns[*column] = turn);
    let stride = turns.len().div_ceil(8);
    Mask::fill(shared.layer.rows(), turns.len(), |bytes| {
        bytes.par_chunks_mut(PANEL * stride).zip(all).for_each(|(bytes, rows)| {
            for (byte, turns) in turns.chunks(8).enumerate() {
                let mut of_lanes = [0u8; PANEL];
                for (bit, turn) in turns.iter().enumerate() {
                    let chosen = rows.chosen[*turn];
                    for (lane, to) in of_lanes.iter_mut().enumerate() {
                        *to |= ((chosen >> lane & 1) as u8) << bit;
                    }
                }
                bytes[byte..].iter_mut().step_by(stride).zip(of_lanes).for_each(|(to, bits)| *to = bits);
            }
        });
    })
}

/// The squared error that all rows have without damping, unless little else is left of it and rounding errors would show.
fn squared_error(all: &[Rows<'_>]) -> Option<f64> {
    let sum = |of: fn(&Squares) -> &[f64; PANEL]| all.iter().flat_map(|rows| of(&rows.squares)).sum::<f64>();
    let all = sum(|rows| &rows.all);
    let error = all - sum(|rows| &rows.damping);
    (error > 0.02 * all).then_some(error)
}

/// The scales that rows have found, row-major; or the first error.
fn dynamic_tiles(all: &mut [Rows<'_>], grid: ScaleGrid) -> Result<Vec<Affine>, MethodError> {
    let mut tiles = Vec::with_capacity(grid.len());
    for rows in all {
        if let Some(error) = rows.failed.take() {
            return Err(error);
        }
        let Made::Codes { scales, zero_points, .. } = &rows.made else { continue };
        for lane in 0..PANEL.min(grid.rows - rows.first) {
            let (scales, zero_points) = (scales.chunks_exact(PANEL), zero_points.chunks_exact(PANEL));
            tiles.extend(
                scales.zip(zero_points).map(|(s, z)| Affine { scale: s[lane], zero_point: z[lane] as i8 }),
            );
        }
    }
    Ok(tiles)
}
