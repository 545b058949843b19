use std::borrow::Cow;

use super::Rank;
use super::product::{FactorType, Weighting, factors, scratch_bytes, weighted};
use crate::layer::{Alternative, Compressed, Layer, Method, MethodError, Needs};
use crate::quantize::ValueImportance;
use crate::quantize::calibrated::{Found, Plain, comparison_bytes, hessian, keep_better};
use crate::weight::{Coding, CompressedWeight, LowRankForm};

/// Two factors in the place of a weight: its truncated singular value decomposition.
///
/// With [`ValueImportance::Inputs`], the best factors for the layer's output on what calibration saw (Yuan et al., "ASVD", 2023;
/// Wang et al., "SVD-LLM", 2024, section 3.1: `W·L` is decomposed, where `H = L·Lᵀ`). Where those of the weight alone serve the output
/// better, they are kept.
///
/// ```
/// use tersor::{Factorize, Layer, Method, Precision, Rank};
///
/// // every row is a multiple of the same numbers
/// let values: Vec<f32> = (0..8 * 6).map(|i| (1 + i / 6) as f32 * (1 + i % 6) as f32).collect();
/// let layer = Layer::new(&[8, 6], &values, Precision::F32);
/// let weight = Factorize::new(Rank::bytes(0.5)?).compress(&layer)?.weight;
/// assert_eq!(weight.form().to_string(), "rank 1 × f32");
/// assert_eq!(weight.form().bytes().total(), 4 * (8 + 6));
/// for (found, value) in weight.dequantize().iter().zip(&values) {
///     assert!((found - value).abs() < 1e-4);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factorize {
    rank: Rank,
    factor_type: FactorType,
    importance: ValueImportance,
}

impl Factorize {
    /// Factors of this rank.
    pub fn new(rank: Rank) -> Self {
        Self { rank, factor_type: FactorType::default(), importance: ValueImportance::default() }
    }

    /// Chooses how values of factors are written: as floats of the model's precision, unless chosen otherwise.
    #[must_use]
    pub fn factor_type(self, factor_type: FactorType) -> Self {
        Self { factor_type, ..self }
    }

    /// Chooses how much the error of each weight counts.
    #[must_use]
    pub fn importance(self, importance: ValueImportance) -> Self {
        Self { importance, ..self }
    }

    /// The same with another rank.
    #[must_use]
    pub fn with_rank(self, rank: Rank) -> Self {
        Self { rank, ..self }
    }

    /// The rank asked for.
    pub fn rank(&self) -> Rank {
        self.rank
    }
}

impl Method for Factorize {
    fn name(&self) -> String {
        let weighted = weighted(self.importance);
        format!("{weighted}SVD, {}", self.rank)
    }

    fn coding(&self, before: Coding) -> Coding {
        self.factor_type.coding(before)
    }

    fn needs(&self) -> Needs {
        self.importance.needs()
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let (rows, cols): (usize, usize) =
            (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let weighted = self.importance == ValueImportance::Inputs;
        let compared = if weighted { comparison_bytes(rows, cols) as u64 } else { 0 };
        scratch_bytes(rows, cols, weighted) + compared
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        layer.check()?;
        let (dense, shape) = (Coding::Float(layer.precision), [layer.rows(), layer.cols()]);
        let values = || Ok::<_, MethodError>(Cow::Borrowed(layer.values));
        let rank = self.rank.of(shape, dense, self.coding(dense), values)?;
        // says what is wrong with a rank of 0
        LowRankForm { rank, coding: self.coding(dense) }.factors(shape[0], shape[1])?;
        let found = |weighting: Option<&Weighting>| {
            let found = factors(layer.values, shape, rank, self.factor_type, layer.precision, weighting)?;
            Ok::<_, MethodError>(CompressedWeight::low_rank(layer.shape, found)?)
        };
        if self.importance == ValueImportance::Equal {
            return Ok(Compressed::plain(found(None)?));
        }
        let (stats, hessian) = hessian(layer, || self.name())?;
        let weighting = Weighting::new(hessian, layer.cols())?;
        let plain = Plain { what: Alternative::Svd, weight: found(None)? };
        let weighted = found(Some(&weighting))?;
        let Weighting { damping, notes, .. } = weighting;
        Ok(keep_better(layer, (stats, hessian), plain, Found { damping, notes, ..Found::new(weighted) }))
    }
}
