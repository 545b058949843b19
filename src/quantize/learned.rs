//! Integer codes that are learned together with their scales.

use rayon::prelude::*;

use crate::dtype::Precision;
use crate::kernels::activate::portable::exp;
use crate::kernels::learn::{self, CodeSpan, Descent};
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
pub(super) struct Learned {
    pub(super) values: Vec<f32>,
    pub(super) mean: Vec<f32>,
    pub(super) square: Vec<f32>,
}

impl Learned {
    pub(super) fn new(values: Vec<f32>) -> Self {
        let zeros = vec![0.0; values.len()];
        Self { values, mean: zeros.clone(), square: zeros }
    }
}

/// How far one step goes, in steps of the scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rates {
    /// Of places.
    pub(crate) places: f32,
    /// Of the last of symmetric codes, by way of its scale, whose logarithm thus moves by `ends / 2^(bits−1)`.
    pub(crate) ends: f32,
}

impl LearnedCodes {
    /// Bytes that learning takes for each weight, or scale: its place, or factor, and the two moments of its gradient.
    pub(crate) const BYTES: usize = 3 * size_of::<f32>();

    /// What is learned of a weight, of which `values` are those before it was compressed; `None` unless it
    /// [is of this kind](Self::is_learned), and no scale is 0.
    ///
    /// # Shapes
    /// `values` is `[rows, cols]`.
    pub(crate) fn of(weight: &CompressedWeight, values: &[f32]) -> Option<Self> {
        let form = weight.form();
        let Coding::Int { bits, granularity, scales: precision, .. } = form.coding() else { return None };
        let (grid, cols) = (form.grid()?, weight.cols());
        let stored = weight.dense_int_codes().filter(|codes| codes.len() == values.len())?;
        let scales = weight.scales().filter(|scales| scales.scales().iter().all(|scale| *scale > 0.0))?;
        if !Self::is_learned(form) {
            return None;
        }
        let mut learned = Self {
            shape: weight.shape().to_vec(),
            bits,
            granularity,
            precision,
            input: weight.input(),
            grid,
            cols,
            zero_points: scales.zero_points().map(<[i8]>::to_vec),
            places: Learned::new(values.to_vec()),
            scales: scales.scales().to_vec(),
            factors: Learned::new(vec![0.0; scales.scales().len()]),
        };
        let mut places = std::mem::take(&mut learned.places.values);
        places.par_chunks_mut(cols.max(1)).zip(stored.par_chunks(cols.max(1))).enumerate().for_each(
            |(row, (places, stored))| {
                let runs = places.chunks_mut(grid.block_cols).zip(stored.chunks(grid.block_cols));
                for (run, (places, stored)) in runs.enumerate() {
                    let codes = learned.codes(row, run);
                    let zero_point = bits.range().0 as f32 - codes.low;
                    for (place, stored) in places.iter_mut().zip(stored) {
                        let code = f32::from(*stored) - zero_point;
                        *place = (*place / codes.scale).clamp(code - REACH, code + REACH);
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

    /// The codes of a run of a row that shares a scale.
    fn codes(&self, row: usize, run: usize) -> CodeSpan {
        let tile = self.grid.index(row, run * self.grid.block_cols);
        let (low, high) = self.bits.range();
        let zero_point = self.zero_points.as_ref().map_or(0, |zero_points| i32::from(zero_points[tile]));
        let scale = self.scale(tile);
        CodeSpan { low: (low - zero_point) as f32, high: (high - zero_point) as f32, scale }
    }

    /// A scale as it is stored.
    fn scale(&self, tile: usize) -> f32 {
        self.precision.round(self.scales[tile] * exp(self.factors.values[tile]))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Layer, Method};
    use crate::quantize::{CodeType, Observer, RoundToNearest};

    fn values(len: usize, by: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * by % 1009) as f32 / 1009.0 - 0.4) * 3.0).collect()
    }

    fn weights() -> Vec<(Vec<f32>, CompressedWeight)> {
        let group = |size: usize| Granularity::Group(size.try_into().unwrap());
        let block = Granularity::Block(2.try_into().unwrap(), 5.try_into().unwrap());
        let mut all = Vec::new();
        for granularity in [Granularity::Tensor, Granularity::Channel, group(4), group(7), block] {
            for (bits, precision) in
                [(2, Precision::F32), (3, Precision::F16), (8, Precision::Bf16), (8, Precision::F16)]
            {
                for (rows, cols, symmetric) in [(5, 13, true), (3, 20, false), (0, 4, false), (2, 0, true)] {
                    let values = values(rows * cols, 97 + usize::from(bits));
                    let codes = CodeType::Int { bits: Bits::new(bits).unwrap(), symmetric };
                    let method = RoundToNearest::codes(codes);
                    let method = method.granularity(granularity).observer(Observer::Mse);
                    let shape = [rows, cols];
                    let weight = method.compress(&Layer::new(&shape, &values, precision)).unwrap().weight;
                    all.push((values, weight));
                }
            }
        }
        all
    }

    #[test]
    fn what_has_not_learned_is_what_was_found() {
        for (values, weight) in weights() {
            let learned = LearnedCodes::of(&weight, &values).unwrap();
            assert!(learned.weight().unwrap() == weight, "{}", weight.form());
        }
    }

    /// A weight decodes to the values that were learned with, but for the rounding of values to the scales' precision.
    #[test]
    fn what_was_learned_is_what_is_stored() {
        for (values, weight) in weights() {
            let mut learned = LearnedCodes::of(&weight, &values).unwrap();
            let target: Vec<f32> = values.iter().rev().copied().collect();
            let distance =
                |now: &[f32]| -> f32 { now.iter().zip(&target).map(|(a, b)| (a - b).powi(2)).sum() };
            let before = distance(&learned.values());
            for step in 0..50 {
                let mut gradient: Vec<f32> =
                    learned.values().iter().zip(&target).map(|(now, target)| now - target).collect();
                learned.descend(&mut gradient, step, Rates { places: 0.05, ends: 0.02 });
            }
            let (now, stored) = (learned.values(), learned.weight().unwrap());
            assert!(values.is_empty() || distance(&now) < before, "{}", weight.form());
            assert_eq!(stored.form(), weight.form());
            let epsilon = 1.0 / 128.0;
            for (now, stored) in now.iter().zip(&stored.dequantize()) {
                assert!((now - stored).abs() <= epsilon * now.abs(), "{}: {now} {stored}", weight.form());
            }
        }
    }

    #[test]
    fn floats_and_sparse_weights_are_not_learned() {
        let values = values(12, 5);
        let plain = CompressedWeight::from_f32(&[3, 4], Precision::F32, &values).unwrap();
        assert!(LearnedCodes::of(&plain, &values).is_none());
        let sparse = RoundToNearest::int(Bits::new(4).unwrap());
        let layer = Layer { layout: LayoutKind::Bitmask, ..Layer::new(&[3, 4], &values, Precision::F32) };
        assert!(LearnedCodes::of(&sparse.compress(&layer).unwrap().weight, &values).is_none());
    }
}
