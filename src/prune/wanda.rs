use rayon::prelude::*;

use super::pattern::SparsityPattern;
use super::plain::{magnitude_of, store};
use crate::kernels::memory::copy;
use crate::kernels::select;
use crate::layer::{Alternative, Compressed, Layer, Method, MethodError, Needs};
use crate::quantize::calibrated::{Found, Plain, comparison_bytes, keep_better, statistics};
use crate::weight::{Coding, Mask};

/// The smallest score of a weight that is there.
const LEAST: f32 = f32::from_bits(1);

/// Wanda: drops the weights whose magnitude, times the norm of the input that they meet, is smallest.
///
/// Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (2023), equation 1: `|W_ij| · ‖X_j‖₂`, compared
/// within each row, which is one output. The weights that stay do not change.
///
/// - Of every row the same number goes: the nearest whole number to the sparsity's share. Among equals the ones with the higher
///   index go first; what an earlier step pruned goes before all.
/// - With the Hessian of the layer's inputs, the error of the output is held against that of as many weights chosen by magnitude
///   in the whole layer, and the better is kept. With the channels' magnitudes only, there is no [outcome](Compressed::outcome).
///
/// ```
/// use tersor::{Layer, LayerStats, Method, Needs, Precision, Sparsity, SparsityPattern, Wanda};
///
/// let mut stats = LayerStats::new(4, Needs::Channels);
/// stats.observe(ndarray::array![[0.1, 1.0, 3.0, 1.0]].view())?;
/// let values = [4.0, 3.0, 2.0, -1.0]; // times the inputs: 0.4, 3, 6, 1
/// let layer = Layer { stats: Some(&stats), ..Layer::new(&[1, 4], &values, Precision::F32) };
/// let half = SparsityPattern::Unstructured(Sparsity::new(0.5)?);
/// let weight = Wanda::new(half).compress(&layer)?.weight;
/// assert_eq!(weight.dequantize().as_slice().unwrap(), [0.0, 3.0, 2.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanda {
    pattern: SparsityPattern,
}

impl Wanda {
    /// Prunes to this pattern.
    pub fn new(pattern: SparsityPattern) -> Self {
        Self { pattern }
    }

    /// The pattern.
    pub fn pattern(&self) -> SparsityPattern {
        self.pattern
    }

    /// How many weights of a `[rows, cols]` matrix are kept.
    pub fn kept(&self, rows: usize, cols: usize) -> usize {
        rows * self.pattern.kept(1, cols)
    }

    /// What the method keeps of a layer.
    ///
    /// # Errors
    /// When a value is NaN or infinite, or nothing is known of the layer's input.
    pub fn mask(&self, layer: &Layer<'_>) -> Result<Mask, MethodError> {
        layer.check()?;
        layer.mask.map_or(Ok(()), |mask| mask.check(layer.rows(), layer.cols()))?;
        let stats = statistics(layer, || self.name())?;
        let norms: Vec<f32> = stats.mean_square().iter().map(|x| x.sqrt() as f32).collect();
        let (rows, cols) = (layer.rows(), layer.cols());
        let drop = cols - self.pattern.kept(1, cols);
        Ok(Mask::fill(rows, cols, |bits| {
            if cols == 0 {
                return;
            }
            let rows = bits.par_chunks_mut(cols.div_ceil(8)).zip(layer.values.par_chunks(cols)).enumerate();
            rows.for_each_init(Vec::new, |saliency: &mut Vec<f32>, (row, (bits, values))| {
                saliency.clear();
                // what is pruned below goes before what no output sees
                saliency.extend(values.iter().zip(&norms).map(|(w, norm)| (w.abs() * norm).max(LEAST)));
                if let Some(earlier) = layer.mask {
                    let pruned = |column: &usize| !earlier.keeps(row, *column);
                    (0..cols).filter(pruned).for_each(|column| saliency[column] = 0.0);
                }
                match self.pattern {
                    SparsityPattern::NofM(pattern) => {
                        select::mask_n_of_m(saliency, cols, pattern.n(), pattern.m(), bits);
                    }
                    SparsityPattern::Unstructured(_) => {
                        let mut cut = select::magnitude_cut(&[saliency], drop as u64);
                        select::mask_from(saliency, cols, &mut cut, bits);
                    }
                }
            });
        }))
    }
}

impl Method for Wanda {
    fn name(&self) -> String {
        format!("Wanda {}", self.pattern)
    }

    fn coding(&self, before: Coding) -> Coding {
        before
    }

    fn needs(&self) -> Needs {
        Needs::Hessian
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        // both masks, and what they keep
        let (rows, cols): (usize, usize) =
            (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let values = rows * cols;
        (2 * (values * size_of::<f32>() + values / 8) + comparison_bytes(rows, cols)) as u64
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        let found = store(layer, &self.mask(layer)?, copy(layer.values))?;
        let stats = statistics(layer, || self.name())?;
        let Some(hessian) = stats.hessian() else { return Ok(Compressed::plain(found)) };
        let weight = magnitude_of(layer, self.kept(layer.rows(), layer.cols()), self.pattern)?;
        let plain = Plain { what: Alternative::Magnitude, weight };
        Ok(keep_better(layer, (stats, hessian), plain, Found::new(found)))
    }
}
