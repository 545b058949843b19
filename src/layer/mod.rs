//! What every compression method is given, and what it gives back.

mod stats;

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

use crate::dtype::Precision;
use crate::error::NonFinite;
use crate::file::infinite;
use crate::kernels::quantize::QuantizeError;
use crate::kernels::reduce;
use crate::weight::{Coding, CompressedWeight, LayoutKind, LowRankForm, Mask, WeightError};

pub(crate) use stats::StatsParts;
pub use stats::{LayerStats, Needs};

/// One layer's weight, as a method sees it.
///
/// # Shapes
/// `values` is `[rows, cols]` row-major, where `rows` is `shape[0]` and `cols` the product of the other
/// dimensions; `mask`, if any, has the same rows and columns.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Shape of the tensor.
    pub shape: &'a [usize],
    /// The weights; zero where an earlier step pruned.
    pub values: &'a [f32],
    /// What an earlier step kept; `None` if nothing was pruned.
    pub mask: Option<&'a Mask>,
    /// What of the kept weights an earlier run left; the others are zero, and stay so. `None`: nothing is known of it.
    pub frozen: Option<&'a Mask>,
    /// The precision the model is kept in.
    pub precision: Precision,
    /// How the result is to be laid out. A method that prunes ignores a dense layout's mask.
    pub layout: LayoutKind,
    /// What calibration saw at its input; `None` if there was none.
    pub stats: Option<&'a LayerStats>,
}

impl<'a> Layer<'a> {
    /// A dense weight that nothing was pruned from, and of whose input nothing is known.
    pub fn new(shape: &'a [usize], values: &'a [f32], precision: Precision) -> Self {
        Self { shape, values, mask: None, frozen: None, precision, layout: LayoutKind::Dense, stats: None }
    }

    /// Rows of the matrix: output features.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Columns of the matrix: input features.
    pub fn cols(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Checks what every method relies on: as many values as the shape has, all of them finite.
    ///
    /// # Errors
    /// When that is not so.
    pub fn check(&self) -> Result<(), MethodError> {
        self.check_len()?;
        reduce::first_non_finite(self.values).map_or(Ok(()), |found| Err(found.into()))
    }

    /// [`Layer::check`] for a method that finds out by itself whether all values are finite.
    pub(crate) fn check_len(&self) -> Result<(), MethodError> {
        let [rows, cols] = crate::weight::matrix_shape(self.shape)?;
        Ok(WeightError::check_len("values of the layer", rows * cols, self.values.len())?)
    }
}

/// A layer after a method.
#[derive(Debug, Clone, PartialEq)]
pub struct Compressed {
    /// The weight as it will be stored.
    pub weight: CompressedWeight,
    /// Values that were beyond the target's largest and were set to it, because the caller allowed that.
    pub clamped: u64,
    /// What a calibrated method made of the layer's output; `None` of one that works on the weights alone.
    pub outcome: Option<Outcome>,
}

impl Compressed {
    /// A weight of which nothing more is to be said.
    pub fn plain(weight: CompressedWeight) -> Self {
        Self { weight, clamped: 0, outcome: None }
    }
}

/// What becomes of a layer, with as many weights and bits, without what the method adds: regard to the layer's output, or to the
/// block's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Alternative {
    /// Rounding to nearest.
    Rounding,
    /// Keeping the largest magnitudes.
    Magnitude,
    /// Keeping the largest magnitudes, and rounding them to nearest.
    MagnitudeAndRounding,
    /// The best factors of the weight itself.
    Svd,
    /// The same without factors added to it.
    Uncorrected,
    /// What was found for every layer of the block on its own.
    LayerByLayer,
}

impl std::fmt::Display for Alternative {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rounding => "plain rounding",
            Self::Magnitude => "magnitude pruning",
            Self::MagnitudeAndRounding => "magnitude pruning with plain rounding",
            Self::Svd => "plain SVD",
            Self::Uncorrected => "no correction",
            Self::LayerByLayer => "each layer on its own",
        })
    }
}

/// What a calibrated method did to a layer, beside the plain alternative.
///
/// Errors are those of the output over the calibration inputs, `‖(W − Ŵ)·Xᵀ‖² / ‖W·Xᵀ‖²`; of a block that was learned as a whole, the
/// mean over tokens of `‖ŷ − y‖² / ‖y‖²`, where `y` is what it gave before anything was compressed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The plain alternative.
    pub plain: Alternative,
    /// Its error.
    #[serde(deserialize_with = "infinite")]
    pub plain_error: f64,
    /// The error of what the method found.
    #[serde(deserialize_with = "infinite")]
    pub method_error: f64,
    /// Whether the method lost, and the plain alternative was kept.
    pub kept_plain: bool,
    /// What was added to the Hessian's diagonal, as a fraction of its mean; 0 if nothing.
    pub damping: f64,
    /// Input channels that were zero throughout.
    pub dead_channels: usize,
    /// Rows of activations behind it.
    pub tokens: u64,
    /// What else did not go as asked.
    pub notes: Vec<String>,
}

impl Outcome {
    /// The error of what was kept.
    pub fn error(&self) -> f64 {
        if self.kept_plain { self.plain_error } else { self.method_error }
    }

    /// What did not go as asked with several methods, one after the other.
    pub(crate) fn words_of(outcomes: &[Self]) -> String {
        let words = outcomes.iter().map(Self::words).filter(|words| !words.is_empty());
        words.collect::<Vec<_>>().join("; ")
    }

    /// What did not go as asked, in words; empty if all did.
    pub fn words(&self) -> String {
        let lost = self.kept_plain.then(|| format!("lost to {}, which was kept", self.plain));
        lost.into_iter().chain(self.notes.iter().cloned()).collect::<Vec<_>>().join("; ")
    }
}

/// A way to compress one layer.
///
/// A method is [`Any`](std::any::Any), so that one that prunes can tell whether it and one that rounds can be done jointly.
pub trait Method: std::any::Any + std::fmt::Debug + Send + Sync {
    /// What the method is called in plans and reports.
    fn name(&self) -> String;

    /// The coding that the result will have, if the weight has `coding` before.
    fn coding(&self, before: Coding) -> Coding;

    /// The factors whose product the result will have added to its values, for a tensor of this shape; `None`: there are none.
    fn correction(&self, shape: &[usize], before: Coding) -> Option<LowRankForm> {
        let _ = (shape, before);
        None
    }

    /// What it needs to know of the layer's input.
    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    /// Bytes that [`compress`](Self::compress) takes for a tensor of this shape beside the values, their codes and the result,
    /// such as a sorted copy. What it takes for each tile at a time counts once for every thread.
    fn scratch_bytes(&self, shape: &[usize]) -> u64 {
        let _ = shape;
        0
    }

    /// Compresses a layer.
    ///
    /// # Errors
    /// When a value is NaN or infinite, or the method cannot do what its options ask for.
    fn compress(&self, layer: &Layer<'_>) -> Result<Compressed, MethodError>;

    /// How many rows, or a multiple of it, can be compressed apart from the rest of the layer, counted from its first row:
    /// what becomes of them must depend on nothing else. `None`, unless a method says otherwise, when the layer has to be
    /// seen as a whole.
    ///
    /// A pipeline then need not hold the layer in memory. Of an error in some rows it learns the layer's by compressing
    /// the layer as a whole.
    fn row_block(&self) -> Option<NonZeroUsize> {
        None
    }
}

/// Why a method could not compress a layer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MethodError {
    /// A weight is NaN or infinite.
    #[error(
        "the weight holds {0}; compressing it would hide the fault, so repair the checkpoint or ignore this tensor"
    )]
    NonFinite(#[from] NonFinite),
    /// Values that the target type cannot hold.
    #[error(
        "{count} values are beyond ±{limit}, the largest {target} (first: {value} at index {index}); \
         choose another target, or allow clamping"
    )]
    Overflow {
        /// Number of such values.
        count: usize,
        /// The target's largest value.
        limit: f32,
        /// Name of the target type.
        target: &'static str,
        /// Index of the first.
        index: usize,
        /// The first.
        value: f32,
    },
    /// The range of the weights overflows the model's precision.
    #[error(
        "the range {min} to {max} is too wide for the model's precision: the scale or the largest code overflows; \
         convert the model to bf16 or f32 first, or ignore this tensor"
    )]
    Range {
        /// Smallest value.
        min: f32,
        /// Largest value.
        max: f32,
    },
    /// An option outside its range.
    #[error("{option} is {value}, but must be {expected}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
    /// Nothing, or too little, is known of the layer's input.
    #[error("{method} needs {what} of the layer's input, which calibration did not gather")]
    NotCalibrated {
        /// Name of the method.
        method: String,
        /// What it needs.
        what: &'static str,
    },
    /// The statistics are of another layer.
    #[error("the statistics are of {actual} input features, but the layer has {expected}")]
    StatsShape {
        /// Features of the layer.
        expected: usize,
        /// Features of the statistics.
        actual: usize,
    },
    /// The Hessian cannot be factorized, however much is added to its diagonal.
    #[error(
        "the Hessian of {size} input features cannot be factorized even with {damping} of its mean diagonal added: {reason}"
    )]
    Hessian {
        /// Input features.
        size: usize,
        /// The largest fraction that was tried.
        damping: f64,
        /// What went wrong.
        reason: String,
    },
    /// The parts do not fit together.
    #[error(transparent)]
    Weight(#[from] WeightError),
}

impl From<QuantizeError> for MethodError {
    fn from(error: QuantizeError) -> Self {
        match error {
            QuantizeError::NonFinite(found) => found.into(),
            QuantizeError::Range { min, max } => Self::Range { min, max },
        }
    }
}
