use super::pattern::SparsityPattern;
use super::plain::by_hessian;
use crate::layer::{Compressed, Layer, Method, MethodError, Needs};
use crate::quantize::Damping;
use crate::quantize::sweep;
use crate::weight::Coding;

/// SparseGPT: goes through the columns, drops the weights that the output misses least, and lets later columns make good for it.
///
/// Frantar & Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (2023), algorithm 1. The paper
/// chooses by `w_j² / [H⁻¹]_jj`, where `H⁻¹` is of the columns from `j` on: those that can still change. Its diagonal element
/// is the square of the diagonal element of the Cholesky factor of the whole `H⁻¹ = RᵀR`. Here `H + λI = U·Uᵀ` with `U` upper
/// triangular, so that `R = U⁻¹` and `R_jj = 1 / U_jj`: what is compared is `(w_j · U_jj)²`, without an inverse. The update is
/// that of [`Gptq`](crate::Gptq): `w_j` becomes `w_j + Σ_{i<j} U_ij (w_i − ŵ_i) / U_jj`.
///
/// - Unstructured, the weights of 128 columns at a time are compared, over all rows, as they stand when their turn comes. So many
///   go of each block that of all blocks together exactly the sparsity's share does.
/// - N:M, the neighbours are compared as they stand when the first of them has its turn.
/// - What an earlier step pruned goes first, and stays zero; then what meets an input that was always zero.
/// - Kept weights are rounded to the layer's precision on the way, so that this is made good, too.
/// - `λ` is as for [`Gptq`](crate::Gptq). With [`Gptq::pruning`](crate::Gptq::pruning) the weights that stay become codes in the
///   same sweep.
/// - Of the result and magnitude pruning to the same pattern the one with the smaller error of the output is kept.
///
/// ```
/// use tersor::{Layer, LayerStats, Method, Needs, Precision, SparseGpt, Sparsity, SparsityPattern};
///
/// let mut stats = LayerStats::new(3, Needs::Hessian);
/// // the first and the last channel always are the same
/// stats.observe(ndarray::array![[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]].view())?;
/// let values = [2.0, 1.0, 1.0];
/// let layer = Layer { stats: Some(&stats), ..Layer::new(&[1, 3], &values, Precision::F32) };
/// let third = SparsityPattern::Unstructured(Sparsity::new(1.0 / 3.0)?);
/// let weight = SparseGpt::new(third).damping(1e-4).compress(&layer)?.weight.dequantize();
/// // the largest weight goes, because the last one can do its work
/// assert_eq!((weight[[0, 0]], weight[[0, 2]].round()), (0.0, 3.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SparseGpt {
    pattern: SparsityPattern,
    damping: Damping,
}

impl SparseGpt {
    /// Prunes to this pattern.
    pub fn new(pattern: SparsityPattern) -> Self {
        Self { pattern, damping: Damping::default() }
    }

    /// The pattern.
    pub fn pattern(&self) -> SparsityPattern {
        self.pattern
    }

    /// What is added to the Hessian's diagonal at least.
    pub(super) fn least_damping(self) -> Damping {
        self.damping
    }

    /// The same to another pattern.
    #[must_use]
    pub(super) fn to(self, pattern: SparsityPattern) -> Self {
        Self { pattern, ..self }
    }

    /// Chooses what is added to the Hessian's diagonal: a fraction of its mean, 0.01 unless chosen, or more.
    #[must_use]
    pub fn damping(self, damping: impl Into<Damping>) -> Self {
        Self { damping: damping.into(), ..self }
    }
}

impl Method for SparseGpt {
    fn name(&self) -> String {
        format!("SparseGPT {}{}", self.pattern, self.damping.suffix())
    }

    fn coding(&self, before: Coding) -> Coding {
        before
    }

    fn needs(&self) -> Needs {
        Needs::Hessian
    }

    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        // what is kept, and the same by magnitude; both masks
        sweep::scratch_bytes(shape, 2 * size_of::<f32>() + 1)
    }

    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError> {
        by_hessian(self, layer, self.pattern, self.damping, |factor| {
            sweep::to_values(layer, factor, self.pattern)
        })
    }
}
