use super::{RecipeError, Selection};
use crate::prune::{Allocation, Magnitude, Obc, Pruning, SparseGpt, SparsityPattern, Wanda};
use crate::quantize::Damping;

/// How it is chosen which single weights are dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub enum Criterion {
    /// The smallest.
    #[default]
    Magnitude,
    /// Those that are smallest times the norm of what they meet.
    Wanda,
    /// Those that the output misses least, with the others making good for them.
    SparseGpt {
        /// What is added to the Hessian's diagonal.
        damping: Damping,
    },
    /// The same, exactly and one weight at a time, for small layers.
    Obc {
        /// As for [`SparseGpt`](Self::SparseGpt).
        damping: Damping,
    },
}

impl Criterion {
    /// Names that [`from_name`](Self::from_name) knows, and what they are.
    pub const NAMES: [(&'static str, &'static str); 4] = [
        ("magnitude", "the smallest go"),
        ("wanda", "Wanda: the smallest times the norm of their inputs, row by row"),
        ("sparsegpt", "SparseGPT: what the output misses least; the others make good for it"),
        ("obc", "optimal brain compression: the same, exactly, for layers of at most 1024 inputs"),
    ];

    /// The criterion of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_name(name: &str) -> Result<Self, RecipeError> {
        Ok(match name {
            "magnitude" => Self::Magnitude,
            "wanda" => Self::Wanda,
            "sparsegpt" => Self::SparseGpt { damping: Damping::default() },
            "obc" => Self::Obc { damping: Damping::default() },
            _ => {
                let valid = Self::NAMES.map(|(name, _)| name);
                return Err(RecipeError::unknown_name("pruning method", name, &valid));
            }
        })
    }

    /// The same with another damping; `None` if it has none.
    #[must_use]
    pub fn damped(self, damping: Damping) -> Option<Self> {
        match self {
            Self::SparseGpt { .. } => Some(Self::SparseGpt { damping }),
            Self::Obc { .. } => Some(Self::Obc { damping }),
            Self::Magnitude | Self::Wanda => None,
        }
    }

    /// The method that prunes to a pattern by this criterion.
    pub fn to(self, pattern: SparsityPattern) -> Pruning {
        match self {
            Self::Magnitude => Magnitude::from(pattern).into(),
            Self::Wanda => Wanda::new(pattern).into(),
            Self::SparseGpt { damping } => SparseGpt::new(pattern).damping(damping).into(),
            Self::Obc { damping } => Obc::new(pattern).damping(damping).into(),
        }
    }

    /// What a step drops whose sparsity is that of every layer, or as `allocation` says.
    ///
    /// # Errors
    /// When the pattern leaves nothing to allocate.
    pub(super) fn selection(
        self,
        place: &str,
        pattern: SparsityPattern,
        allocation: Option<Allocation>,
    ) -> Result<Selection, RecipeError> {
        match (allocation, pattern) {
            (None, _) => Ok(Selection::Layer(self.to(pattern))),
            (Some(Allocation::Global), SparsityPattern::Unstructured(sparsity))
                if self == Self::Magnitude =>
            {
                Ok(Selection::Global(sparsity))
            }
            (Some(allocation), SparsityPattern::Unstructured(_)) => {
                Ok(Selection::Allocated(self.to(pattern), allocation))
            }
            (Some(_), SparsityPattern::NofM(pattern)) => {
                let reason =
                    format!("{pattern} is the same sparsity in every layer: there is nothing to allocate");
                Err(RecipeError::value(place, reason))
            }
        }
    }
}

impl Allocation {
    /// Names that [`from_name`](Self::from_name) knows, and what they are.
    pub const NAMES: [(&'static str, &'static str); 4] = [
        ("layer", "every layer loses the same share"),
        ("global", "as the smallest magnitudes of all layers together are spread"),
        ("erk", "by shape: small layers keep more (Erdős–Rényi-Kernel)"),
        (
            "sensitivity",
            "by the error that pruning makes of each layer's output on samples, or without, of its weights",
        ),
    ];

    /// The allocation of this name; `None` is the same sparsity in every layer.
    ///
    /// # Errors
    /// When there is none.
    pub fn from_name(name: &str) -> Result<Option<Self>, RecipeError> {
        Ok(match name {
            "layer" => None,
            "global" => Some(Self::Global),
            "erk" => Some(Self::ErdosRenyiKernel),
            "sensitivity" => Some(Self::Sensitivity),
            _ => return Err(RecipeError::unknown_name("scope", name, &Self::NAMES.map(|(name, _)| name))),
        })
    }
}

impl std::fmt::Display for Allocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::ErdosRenyiKernel => "by shape",
            Self::Sensitivity => "by sensitivity",
        })
    }
}
