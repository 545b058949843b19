//! Scales that are learned while the codes under them stay.

use super::learned::Learned;
use crate::kernels::activate::portable::exp;
use crate::kernels::learn::{self, Descent};
use crate::kernels::level::Isa;
use crate::weight::{Coding, CompressedWeight, ScaleGrid, WeightError};

/// Steps from 0 to a value of e4m3, of the size of those around it: between 8 and 16, its mantissa having three bits.
const F8_STEPS: f32 = 16.0;

/// The scales of a weight, learned by descent from what a method found; codes, zero points and layout stay.
///
/// Chen et al., "`EfficientQAT`: Efficient Quantization-Aware Training for Large Language Models" (2024): the end-to-end training of
/// quantization parameters.
#[derive(Debug, Clone)]
pub(crate) struct LearnedScales {
    /// With the scales as they are now.
    weight: CompressedWeight,
    grid: ScaleGrid,
    /// What the scales were, and the logarithm of what each has been multiplied by.
    first: Vec<f32>,
    factors: Learned,
    /// Codes from zero to what moves by the rate.
    steps: f32,
}

impl LearnedScales {
    /// The scales of a weight; `None` if it has none, or factors are added to what they scale.
    pub(crate) fn of(weight: CompressedWeight) -> Option<Self> {
        let steps = match weight.form().coding() {
            Coding::Int { bits, .. } => -bits.range().0 as f32,
            Coding::F8E4M3 { .. } => F8_STEPS,
            Coding::Float(_) | Coding::Codebook { .. } => return None,
        };
        let (grid, first) = (weight.form().grid()?, weight.scales()?.scales().to_vec());
        let factors = Learned::new(vec![0.0; first.len()]);
        weight.factors().is_none().then_some(Self { weight, grid, first, factors, steps })
    }

    /// The weight as it is now.
    pub(crate) fn weight(&self) -> &CompressedWeight {
        &self.weight
    }

    /// The values as they are now.
    ///
    /// # Shapes
    /// `[rows, cols]`.
    pub(crate) fn values(&self) -> Vec<f32> {
        self.weight.dequantize().into_raw_vec_and_offset().0
    }

    /// Descends by step number `step`, counted from 0, along a gradient with respect to the values. A first step moves a weight that is
    /// `2^(bits − 1)` codes from zero by about `rate` of the distance between two codes.
    ///
    /// # Shapes
    /// `gradient` is `[rows, cols]`.
    ///
    /// # Errors
    /// When a scale is no longer finite in its precision; the weight stays as it was then.
    pub(crate) fn descend(&mut self, gradient: &[f32], step: usize, rate: f32) -> Result<(), WeightError> {
        let (isa, values) = (Isa::current(), self.values());
        assert_eq!(gradient.len(), values.len(), "gradients of the weight");
        if gradient.is_empty() {
            return Ok(());
        }
        let ScaleGrid { block_cols, .. } = self.grid;
        let mut of_tiles = vec![0.0f32; self.grid.len()];
        let cols = self.weight.cols();
        for (row, (values, gradient)) in
            values.chunks_exact(cols).zip(gradient.chunks_exact(cols)).enumerate()
        {
            let first = self.grid.index(row, 0);
            let runs = values.chunks(block_cols).zip(gradient.chunks(block_cols));
            for (of_tile, (values, gradient)) in of_tiles[first..].iter_mut().zip(runs) {
                *of_tile += learn::of_scale(isa, values, gradient);
            }
        }
        let Learned { values, mean, square } = &mut self.factors;
        learn::adam(isa, Descent::new(step, rate / self.steps), &of_tiles, [mean, square], values);
        self.set()
    }

    /// Gives the weight the scales that have been learned.
    fn set(&mut self) -> Result<(), WeightError> {
        let factors = self.first.iter().zip(&self.factors.values);
        let scales = factors.map(|(scale, factor)| scale * exp(*factor)).collect();
        self.weight = self.weight.clone().with_scales(scales)?;
        Ok(())
    }

    /// The logarithms of what scales have been multiplied by, and the two moments of their gradients.
    pub(crate) fn state(&self) -> [&[f32]; 3] {
        let Learned { values, mean, square } = &self.factors;
        [values, mean, square]
    }

    /// Goes on from what [`state`](Self::state) gave.
    ///
    /// # Errors
    /// When it is not of so many scales, or gives one that is not finite.
    pub(crate) fn go_on_from(&mut self, state: [Vec<f32>; 3]) -> Result<(), WeightError> {
        for part in &state {
            WeightError::check_len("scales", self.first.len(), part.len())?;
        }
        let [values, mean, square] = state;
        self.factors = Learned { values, mean, square };
        self.set()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Precision;
    use crate::layer::{Layer, Method};
    use crate::quantize::{CodeType, RoundToNearest};
    use crate::weight::{Bits, Granularity, LayoutKind, LowRank};

    fn values(len: usize, by: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * by % 1009) as f32 / 1009.0 - 0.4) * 3.0).collect()
    }

    fn weights() -> Vec<CompressedWeight> {
        let group = |size: usize| Granularity::Group(size.try_into().unwrap());
        let block = Granularity::Block(2.try_into().unwrap(), 5.try_into().unwrap());
        let int = |bits, symmetric| CodeType::Int { bits: Bits::new(bits).unwrap(), symmetric };
        let mut all = Vec::new();
        for granularity in [Granularity::Tensor, Granularity::Channel, group(4), group(7), block] {
            for codes in [int(2, false), int(4, true), int(8, false), CodeType::F8E4M3] {
                for (shape, layout) in [
                    ([5, 13], LayoutKind::Dense),
                    ([4, 20], LayoutKind::Bitmask),
                    ([0, 4], LayoutKind::Dense),
                ] {
                    let values = values(shape[0] * shape[1], 97);
                    let layer = Layer { layout, ..Layer::new(&shape, &values, Precision::F32) };
                    let method = RoundToNearest::codes(codes).granularity(granularity);
                    all.extend(method.compress(&layer).map(|compressed| compressed.weight));
                }
            }
        }
        assert!(all.len() > 40, "{} weights", all.len());
        all
    }

    /// Every scale finds the place at which its codes are nearest to values that another scale would give.
    #[test]
    fn descent_finds_the_scales_that_values_were_made_with() {
        for weight in weights() {
            let scales = weight.scales().unwrap().scales();
            let wanted: Vec<f32> =
                scales.iter().enumerate().map(|(i, scale)| scale * (1.0 + (i % 3) as f32 / 20.0)).collect();
            let target = weight.clone().with_scales(wanted.clone()).unwrap();
            let mut learned = LearnedScales::of(weight.clone()).unwrap();
            for step in 0..400 {
                let rate = 0.01 * learned.steps * (1.0 - step as f32 / 400.0);
                let values = learned.values();
                let gradient: Vec<f32> =
                    values.iter().zip(&target.dequantize()).map(|(now, target)| now - target).collect();
                learned.descend(&gradient, step, rate).unwrap();
            }
            let found = learned.weight();
            assert_eq!(found.form(), weight.form());
            let distance =
                |weight: &CompressedWeight| (weight.dequantize() - target.dequantize()).mapv(f32::abs).sum();
            assert!(distance(found) <= 0.05 * distance(&weight), "{}: {}", weight.form(), distance(found));
        }
    }

    #[test]
    fn it_goes_on_where_it_was() {
        for weight in weights() {
            let gradient = values(weight.rows() * weight.cols(), 31);
            let mut whole = LearnedScales::of(weight.clone()).unwrap();
            let mut first = whole.clone();
            for step in 0..6 {
                whole.descend(&gradient, step, 0.1).unwrap();
                if step < 3 {
                    first.descend(&gradient, step, 0.1).unwrap();
                }
            }
            let mut second = LearnedScales::of(weight).unwrap();
            second.go_on_from(first.state().map(<[f32]>::to_vec)).unwrap();
            for step in 3..6 {
                second.descend(&gradient, step, 0.1).unwrap();
            }
            assert!(second.weight() == whole.weight());
            let wrong = [vec![0.0; 99], vec![0.0; 99], vec![0.0; 99]];
            assert!(matches!(second.go_on_from(wrong), Err(WeightError::Length { .. })));
        }
    }

    #[test]
    fn plain_floats_and_corrected_weights_are_not_learned() {
        let float = |shape: [usize; 2]| {
            CompressedWeight::from_f32(&shape, Precision::F32, &values(shape[0] * shape[1], 5)).unwrap()
        };
        assert!(LearnedScales::of(float([3, 4])).is_none());
        let factors = LowRank::new(float([5, 1]), float([1, 13])).unwrap();
        for weight in weights().into_iter().filter(|weight| weight.shape() == [5, 13]) {
            assert!(LearnedScales::of(weight.clone()).is_some());
            assert!(LearnedScales::of(weight.with_correction(factors.clone()).unwrap()).is_none());
        }
    }
}
