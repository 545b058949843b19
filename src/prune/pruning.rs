use std::any::Any;

use super::magnitude::{Magnitude, Sparsity};
use super::obc::Obc;
use super::pattern::SparsityPattern;
use super::sparse_gpt::SparseGpt;
use super::wanda::Wanda;
use crate::layer::Method;
use crate::quantize::Gptq;

/// A method that chooses single weights of a layer to drop.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Pruning {
    /// By magnitude.
    Magnitude(Magnitude),
    /// By magnitude and the norm of the input.
    Wanda(Wanda),
    /// By what the output misses, with the other weights making good for it.
    SparseGpt(SparseGpt),
    /// The same, exactly, for small layers.
    Obc(Obc),
}

impl Pruning {
    /// The pattern.
    pub fn pattern(&self) -> SparsityPattern {
        match self {
            Self::Magnitude(magnitude) => (*magnitude).into(),
            Self::Wanda(wanda) => wanda.pattern(),
            Self::SparseGpt(sparse_gpt) => sparse_gpt.pattern(),
            Self::Obc(obc) => obc.pattern(),
        }
    }

    /// The same method with this sparsity.
    #[must_use]
    pub fn with_sparsity(&self, sparsity: Sparsity) -> Self {
        let pattern = SparsityPattern::Unstructured(sparsity);
        match self {
            Self::Magnitude(_) => Self::Magnitude(pattern.into()),
            Self::Wanda(_) => Self::Wanda(Wanda::new(pattern)),
            Self::SparseGpt(sparse_gpt) => Self::SparseGpt(sparse_gpt.to(pattern)),
            Self::Obc(obc) => Self::Obc(obc.to(pattern)),
        }
    }

    /// How many weights of a `[rows, cols]` matrix are kept.
    pub fn kept(&self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Wanda(wanda) => wanda.kept(rows, cols),
            Self::Magnitude(_) | Self::SparseGpt(_) | Self::Obc(_) => self.pattern().kept(rows, cols),
        }
    }

    /// The method.
    pub fn method(&self) -> &dyn Method {
        match self {
            Self::Magnitude(magnitude) => magnitude,
            Self::Wanda(wanda) => wanda,
            Self::SparseGpt(sparse_gpt) => sparse_gpt,
            Self::Obc(obc) => obc,
        }
    }

    /// The rounding that also prunes, if both can be done in one sweep, so that the kept weights make good for both:
    /// [`SparseGpt`] with [`Gptq`], and the larger damping of both.
    pub fn jointly_with(&self, rounding: &dyn Method) -> Option<Gptq> {
        let rounding: &dyn Any = rounding;
        match self {
            Self::SparseGpt(sparse_gpt) => {
                let gptq = rounding.downcast_ref::<Gptq>()?.pruning(sparse_gpt.pattern());
                Some(gptq.damped_at_least(sparse_gpt.least_damping()))
            }
            Self::Magnitude(_) | Self::Wanda(_) | Self::Obc(_) => None,
        }
    }
}

impl From<Magnitude> for Pruning {
    fn from(magnitude: Magnitude) -> Self {
        Self::Magnitude(magnitude)
    }
}

impl From<Wanda> for Pruning {
    fn from(wanda: Wanda) -> Self {
        Self::Wanda(wanda)
    }
}

impl From<Obc> for Pruning {
    fn from(obc: Obc) -> Self {
        Self::Obc(obc)
    }
}

impl From<SparseGpt> for Pruning {
    fn from(sparse_gpt: SparseGpt) -> Self {
        Self::SparseGpt(sparse_gpt)
    }
}
