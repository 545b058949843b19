//! What every compression method is given, and what it gives back.

use std::num::NonZeroUsize;

use crate::dtype::Precision;
use crate::error::NonFinite;
use crate::kernels::quantize::QuantizeError;
use crate::kernels::reduce;
use crate::weight::{Coding, CompressedWeight, LayoutKind, Mask, WeightError};

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
    /// The precision the model is kept in.
    pub precision: Precision,
    /// How the result is to be laid out. A method that prunes ignores a dense layout's mask.
    pub layout: LayoutKind,
}

impl Layer<'_> {
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
}

/// A way to compress one layer.
pub trait Method: std::fmt::Debug + Send + Sync {
    /// What the method is called in plans and reports.
    fn name(&self) -> String;

    /// The coding that the result will have, if the weight has `coding` before.
    fn coding(&self, before: Coding) -> Coding;

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
