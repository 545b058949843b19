use crate::layer::MethodError;

/// How little the inputs' products are trusted that a method goes by: what is added to the diagonal of `H = XᵀX / tokens`.
///
/// - A fraction of the mean of the diagonal is added to all of it, so that `H` can be factorized: 0.01 unless chosen, as in Frantar
///   et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022). Where some channels
///   are far larger than the others, it drowns these and does little to those.
/// - With a [`shrinkage`](Self::shrinkage) `α` what different channels have in common counts `1 − α` times what was seen:
///   `(1 − α)·H + α·diag(H)`, as in Ledoit & Wolf, "A well-conditioned estimator for large-dimensional covariance matrices"
///   (2004). It pays where samples are few, or are not of the kind that the network will see. None unless chosen.
///
/// ```
/// use tersor::{Bits, Damping, Gptq};
///
/// let gptq = Gptq::int(Bits::new(3).unwrap());
/// // a fraction of the mean alone
/// assert_eq!(gptq.damping(0.05), gptq.damping(Damping::of_mean(0.05)));
/// let _robust = gptq.damping(Damping::default().shrinkage(0.2));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Damping {
    of_mean: f64,
    shrinkage: f64,
}

impl Damping {
    /// Adds this fraction of the diagonal's mean, from 0 to 1.
    pub fn of_mean(fraction: f64) -> Self {
        Self { of_mean: fraction, shrinkage: 0.0 }
    }

    /// Chooses how much less counts what different channels have in common: from 0, as it was seen, to below 1.
    #[must_use]
    pub fn shrinkage(self, shrinkage: f64) -> Self {
        Self { shrinkage, ..self }
    }

    /// The fraction of the diagonal's mean that is added.
    pub(crate) fn mean(self) -> f64 {
        self.of_mean
    }

    /// What all of the diagonal is multiplied by while the other elements stay as they are: a factor of the whole matrix changes
    /// nothing.
    pub(crate) fn scale(self) -> f64 {
        1.0 / (1.0 - self.shrinkage)
    }

    /// The larger of both, and of a number and none the latter, so that it is found out.
    pub(crate) fn max(self, other: Self) -> Self {
        let larger = |a: f64, b: f64| if a.is_nan() || b <= a { a } else { b };
        let of_mean = larger(self.of_mean, other.of_mean);
        Self { of_mean, shrinkage: larger(self.shrinkage, other.shrinkage) }
    }

    /// `, shrinkage 0.2`; nothing if there is none.
    pub(crate) fn suffix(self) -> String {
        if self.shrinkage == 0.0 { String::new() } else { format!(", shrinkage {}", self.shrinkage) }
    }

    /// # Errors
    /// When a number is none, or out of its range.
    pub(crate) fn check(self) -> Result<(), MethodError> {
        let Self { of_mean, shrinkage } = self;
        if !(0.0..=1.0).contains(&of_mean) {
            return Err(MethodError::Option { option: "damping", value: of_mean, expected: "from 0 to 1" });
        }
        if !(0.0..1.0).contains(&shrinkage) {
            let (option, expected) = ("shrinkage", "from 0 to below 1");
            return Err(MethodError::Option { option, value: shrinkage, expected });
        }
        Ok(())
    }
}

impl Default for Damping {
    /// 0.01 of the mean, no shrinkage.
    fn default() -> Self {
        Self::of_mean(0.01)
    }
}

impl From<f64> for Damping {
    fn from(fraction: f64) -> Self {
        Self::of_mean(fraction)
    }
}
