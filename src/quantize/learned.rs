//! Integer codes that are learned together with their scales.

use rayon::prelude::*;

use crate::dtype::Precision;
use crate::kernels::learn::{self, Codes, Descent};
use crate::kernels::level::Isa;
use crate::layer::MethodError;
use crate::weight::{
    Bits, Coding, CompressedWeight, DenseValues, Form, Granularity, LayoutKind, QuantizedInput, ScaleGrid,
    Scales,
};

/// How far within its code's cell, in steps, a weight may start from the code.
const REACH: f32 = 0.49;

/// Codes and scales of a weight that are learned by descent from what a method found.
///
/// Every weight has a place, in steps of its scale from the zero point, and the code that is nearest to it: `ŵ = s · clamp(round(v))`.
/// Gradients pass through the rounding as they are, so that a place that is driven far enough takes another code. It starts where the
/// uncompressed weight lies, moved into its code's cell. Zero points stay.
///
/// Chen et al., "`EfficientQAT`: Efficient Quantization-Aware Training for Large Language Models" (2024): the block-wise training of all
/// parameters, but for the zero points.
#[derive(Debug, Clone)]
pub(crate) struct LearnedCodes {
    shape: Vec<usize>,
    bits: Bits,
    granularity: Granularity,
    precision: Precision,
    input: Option<QuantizedInput>,
    grid: ScaleGrid,
    cols: usize,
    zero_points: Option<Vec<i8>>,
    places: Learned,
    /// What the scales were, and the logarithm of what each has been multiplied by.
    scales: Vec<f32>,
    factors: Learned,
}

/// Values and the moments of their gradients.
#[derive(Debug, Clone)]
struct Learned {
    values: Vec<f32>,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Learned {
    fn new(values: Vec<f32>) -> Self {
        let zeros = vec![0.0; values.len()];
        Self { values, mean: zeros.clone(), square: zeros }
    }
}

/// How far one step goes, in steps of the scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    /// Of places.
    pub(crate) places: f32,
    /// Of the ends of symmetric codes, by way of the scale.
    pub(crate) ends: f32,
}

impl LearnedCodes {
    /// What is learned of a weight, of which `values` are those before it was compressed; `None` unless it
    /// [is of this kind](Self::is_learned), and no scale is 0.
    ///
    /// # Shapes
    /// `values` is `[rows, cols]`.
    pub(crate) fn of(weight: &CompressedWeight, values: &[f32]) -> Option<Self> {
        let form = weight.form();
        let Coding::Int { bits, granularity, scales: precision, .. } = form.coding() else { return None };
        let fits = Self::is_learned(form) && values.len() == weight.rows() * weight.cols();
        let scales = weight.scales().filter(|scales| fits && scales.scales().iter().all(|s| *s > 0.0))?;
        let (grid, cols) = (form.grid()?, weight.cols());
        let mut learned = Self {
            shape: weight.shape().to_vec(),
            bits,
            granularity,
            precision,
            input: weight.input(),
            grid,
            cols,
            zero_points: scales.zero_points().map(<[i8]>::to_vec),
            places: Learned::new(weight.dequantize().into_raw_vec_and_offset().0),
            scales: scales.scales().to_vec(),
            factors: Learned::new(vec![0.0; scales.scales().len()]),
        };
        let mut places = std::mem::take(&mut learned.places.values);
        places.par_chunks_mut(cols.max(1)).zip(values.par_chunks(cols.max(1))).enumerate().for_each(
            |(row, (places, values))| {
                let runs = places.chunks_mut(grid.block_cols).zip(values.chunks(grid.block_cols));
                for (run, (places, values)) in runs.enumerate() {
                    let codes = learned.codes(row, run);
                    for (place, value) in places.iter_mut().zip(values) {
                        let code = (*place / codes.scale).round_ties_even().clamp(codes.low, codes.high);
                        *place = (value / codes.scale).clamp(code - REACH, code + REACH);
                    }
                }
            },
        );
        learned.places.values = places;
        Some(learned)
    }

    /// Whether a weight of this form consists of integer codes for every position, and nothing else.
    pub(crate) fn is_learned(form: &Form) -> bool {
        let is_int = matches!(form.coding(), Coding::Int { .. });
        is_int && form.layout() == LayoutKind::Dense && form.low_rank().is_none()
    }

    /// Bytes that learning takes for each weight: its place, and the two moments of its gradient.
    pub(crate) const BYTES: usize = 3 * size_of::<f32>();

    /// The codes of a run of a row that shares a scale.
    fn codes(&self, row: usize, run: usize) -> Codes {
        let tile = self.grid.index(row, run * self.grid.block_cols);
        let (low, high) = self.bits.range();
        let zero_point = self.zero_points.as_ref().map_or(0, |zero_points| i32::from(zero_points[tile]));
        let scale = self.scale(tile);
        Codes { low: (low - zero_point) as f32, high: (high - zero_point) as f32, scale }
    }

    /// A scale as it is stored.
    fn scale(&self, tile: usize) -> f32 {
        let factor = self.factors.values[tile];
        if factor == 0.0 {
            return self.scales[tile];
        }
        self.precision.round(self.scales[tile] * crate::kernels::activate::portable::exp(factor))
    }

    /// The values as they are now.
    ///
    /// # Shapes
    /// `[rows, cols]`.
    pub(crate) fn values(&self) -> Vec<f32> {
        let isa = Isa::current();
        let mut values = vec![0.0; self.places.values.len()];
        let rows =
            values.par_chunks_mut(self.cols.max(1)).zip(self.places.values.par_chunks(self.cols.max(1)));
        rows.enumerate().for_each(|(row, (values, places))| {
            let runs = values.chunks_mut(self.grid.block_cols).zip(places.chunks(self.grid.block_cols));
            for (run, (values, places)) in runs.enumerate() {
                learn::learned_values(isa, places, self.codes(row, run), values);
            }
        });
        values
    }

    /// Descends by step number `step`, counted from 0, along a gradient with respect to the values, which is of no use afterwards.
    ///
    /// # Shapes
    /// `gradient` is `[rows, cols]`.
    pub(crate) fn descend(&mut self, gradient: &mut [f32], step: usize, rates: Rates) {
        assert_eq!(gradient.len(), self.places.values.len(), "gradients of the weight");
        if gradient.is_empty() {
            return;
        }
        let isa = Isa::current();
        let (cols, block_cols) = (self.cols, self.grid.block_cols);
        let mut of_runs = vec![0.0f32; gradient.len() / cols * self.grid.cols];
        let rows = gradient.par_chunks_mut(cols).zip(self.places.values.par_chunks(cols));
        rows.zip(of_runs.par_chunks_mut(self.grid.cols)).enumerate().for_each(
            |(row, ((gradient, places), of_runs))| {
                let runs = gradient.chunks_mut(block_cols).zip(places.chunks(block_cols)).zip(of_runs);
                for (run, ((gradient, places), of_scale)) in runs.enumerate() {
                    learn::through_codes(isa, places, self.codes(row, run), gradient, of_scale);
                }
            },
        );
        let mut of_tiles = vec![0.0f32; self.grid.len()];
        for (row, of_row) in of_runs.chunks_exact(self.grid.cols).enumerate() {
            let first = self.grid.index(row, 0);
            of_tiles[first..].iter_mut().zip(of_row).for_each(|(tile, of_run)| *tile += of_run);
        }
        let Learned { values, mean, square } = &mut self.factors;
        let rate = rates.ends / -self.bits.range().0 as f32;
        learn::adam(isa, Descent::new(step, rate), &of_tiles, [mean, square], values);
        let Learned { values, mean, square } = &mut self.places;
        let moments = mean.par_chunks_mut(cols).zip(square.par_chunks_mut(cols));
        let rows = values.par_chunks_mut(cols).zip(gradient.par_chunks(cols)).zip(moments);
        let descent = Descent::new(step, rates.places);
        rows.for_each(|((values, gradient), (mean, square))| {
            learn::adam(isa, descent, gradient, [mean, square], values);
        });
    }

    /// The weight that was learned.
    ///
    /// # Errors
    /// When a scale is not finite in its precision.
    pub(crate) fn weight(&self) -> Result<CompressedWeight, MethodError> {
        let isa = Isa::current();
        let mut codes = vec![0i8; self.places.values.len()];
        let rows =
            codes.par_chunks_mut(self.cols.max(1)).zip(self.places.values.par_chunks(self.cols.max(1)));
        rows.enumerate().for_each_init(Vec::new, |steps, (row, (codes, places))| {
            let runs = codes.chunks_mut(self.grid.block_cols).zip(places.chunks(self.grid.block_cols));
            for (run, (codes, places)) in runs.enumerate() {
                let of_run = self.codes(row, run);
                let zero_point = self.bits.range().0 as f32 - of_run.low;
                steps.resize(places.len(), 0.0);
                learn::nearest_codes(isa, places, of_run, steps);
                codes.iter_mut().zip(&*steps).for_each(|(code, step)| *code = (step + zero_point) as i8);
            }
        });
        let scales = (0..self.scales.len()).map(|tile| self.scale(tile)).collect();
        let scales = Scales::new(self.granularity, self.precision, scales, self.zero_points.clone())?;
        let values = DenseValues::Int(self.bits, &codes, &scales);
        let weight = CompressedWeight::encode(&self.shape, LayoutKind::Dense, None, values)?;
        Ok(match self.input {
            Some(input) => weight.with_input(input)?,
            None => weight,
        })
    }
}
