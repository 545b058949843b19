use std::num::NonZeroUsize;
use std::sync::Arc;

use super::product::{FactorType, Weighting, factors, scratch_bytes, weighted};
use crate::dtype::Precision;
use crate::layer::{Alternative, Compressed, Layer, Method, MethodError, Needs};
use crate::quantize::ValueImportance;
use crate::quantize::calibrated::{Found, Plain, comparison_bytes, hessian, hessian_of, keep_better};
use crate::weight::{Coding, LowRankForm};

/// What another method makes of a weight, and two factors added to it that make good most of what that lost.
///
/// The error `W − Ŵ` is factorized as [`Factorize`](super::Factorize) factorizes a weight: for itself (Yao et al., "ZeroQuant-V2",
/// 2023, section 5), or with [`ValueImportance::Inputs`] for the layer's output (Zhang et al., "LQER", 2024, with the whole Hessian in
/// place of its diagonal).
///
/// ```
/// use std::num::NonZeroUsize;
/// use tersor::{Bits, Corrected, Layer, Method, Precision, RoundToNearest};
///
/// let values: Vec<f32> = (0..64 * 96).map(|i| (i as f32 * 0.37).sin() + (i % 96) as f32 / 96.0).collect();
/// let layer = Layer::new(&[64, 96], &values, Precision::F32);
/// let rounding = RoundToNearest::int(Bits::new(3).unwrap());
/// let error = |method: &dyn Method| -> Result<f32, tersor::MethodError> {
///     let weight = method.compress(&layer)?.weight.dequantize();
///     Ok(weight.iter().zip(&values).map(|(q, w)| (q - w).powi(2)).sum())
/// };
/// let corrected = Corrected::new(rounding, NonZeroUsize::new(8).unwrap());
/// assert!(error(&corrected)? < 0.8 * error(&rounding)?);
/// # Ok::<(), tersor::MethodError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Corrected {
    base: Arc<dyn Method>,
    rank: NonZeroUsize,
    factor_type: FactorType,
    importance: ValueImportance,
}

impl Corrected {
    /// Adds factors of this rank, or of all that a smaller matrix has, to what a method makes of a weight.
    pub fn new(base: impl Method + 'static, rank: NonZeroUsize) -> Self {
        Self::of(Arc::new(base), rank)
    }

    /// As [`new`](Self::new), with a method that is shared.
    pub fn of(base: Arc<dyn Method>, rank: NonZeroUsize) -> Self {
        let (factor_type, importance) = (FactorType::Float(Precision::F16), ValueImportance::default());
        Self { base, rank, factor_type, importance }
    }

    /// Chooses how values of factors are written: in f16, unless chosen otherwise.
    #[must_use]
    pub fn factor_type(self, factor_type: FactorType) -> Self {
        Self { factor_type, ..self }
    }

    /// Chooses how much the error of each weight counts.
    #[must_use]
    pub fn importance(self, importance: ValueImportance) -> Self {
        Self { importance, ..self }
    }
}

impl Method for Corrected {
    fn name(&self) -> String {
        let weighted = weighted(self.importance);
        format!("{} + {weighted}rank {}", self.base.name(), self.rank)
    }

    fn coding(&self, before: Coding) -> Coding {
        self.base.coding(before)
    }

    fn correction(&self, shape: &[usize], before: Coding) -> Option<LowRankForm> {
        let (rows, cols): (usize, usize) =
            (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let rank = self.rank.get().min(rows).min(cols);
        (rank > 0).then(|| LowRankForm { rank, coding: self.factor_type.coding(before) })
    }

    fn needs(&self) -> Needs {
        self.base.needs().max(self.importance.needs())
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let (rows, cols): (usize, usize) =
            (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let error = (size_of::<f32>() * rows * cols) as u64;
        let own = scratch_bytes(rows, cols, self.importance == ValueImportance::Inputs);
        self.base.scratch_bytes(shape).max(error + own.max(comparison_bytes(rows, cols) as u64))
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        let Compressed { weight, clamped, outcome } = self.base.compress(layer)?;
        let (precision, shape) = (layer.precision, [layer.rows(), layer.cols()]);
        let Some(form) = self.correction(layer.shape, Coding::Float(precision)) else {
            return Ok(Compressed { weight, clamped, outcome });
        };
        let weighting = match self.importance {
            ValueImportance::Equal => None,
            ValueImportance::Inputs => Some(Weighting::new(hessian(layer, || self.name())?.1, layer.cols())?),
        };
        let found = |values: &[f32], weighting: Option<&Weighting>, precision: Precision| {
            factors(values, shape, form.rank, self.factor_type, precision, weighting)
        };
        let mut error = weight.dequantize().into_raw_vec_and_offset().0;
        error.iter_mut().zip(layer.values).for_each(|(q, w)| *q = w - *q);
        let corrected = weight.clone().with_correction(found(&error, weighting.as_ref(), precision)?)?;
        let seen = layer.stats.and_then(|stats| Some((stats, hessian_of(stats, || self.name()).ok()?)));
        let Some(seen) = seen else {
            return Ok(Compressed { weight: corrected, clamped, outcome });
        };
        error.fill(0.0);
        let plain = weight.with_correction(found(&error, None, precision)?)?;
        let (damping, mut notes) =
            weighting.map_or((0.0, Vec::new()), |weighting| (weighting.damping, weighting.notes));
        // what the method before had to say
        notes.extend(outcome.map(|outcome| outcome.words()).filter(|words| !words.is_empty()));
        let plain = Plain { what: Alternative::Uncorrected, weight: plain };
        let compressed = keep_better(layer, seen, plain, Found { damping, notes, ..Found::new(corrected) });
        Ok(Compressed { clamped, ..compressed })
    }
}
