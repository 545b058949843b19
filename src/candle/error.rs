//! What can be wrong with the tensors that training hands over.

use candle_core::DType;

/// A tensor that this room cannot use.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// A tensor of another number of dimensions.
    #[error("{what} has shape {shape:?}, but is taken as {expected}: reshape or flatten it first")]
    Rank {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// The dimensions it must have, in words.
        expected: &'static str,
    },
    /// Two shapes that must agree do not.
    #[error("{what} has shape {actual:?}, but {expected:?} is needed: {rule}")]
    Shape {
        /// Which tensor.
        what: String,
        /// Its shape.
        actual: Vec<usize>,
        /// The shape that it must have.
        expected: Vec<usize>,
        /// Why.
        rule: &'static str,
    },
    /// A tensor of an element type that cannot be used here.
    #[error("{what} is made of {actual:?}, but {expected} is needed: convert it with `to_dtype`")]
    ElementType {
        /// Which tensor.
        what: String,
        /// Its element type.
        actual: DType,
        /// The element types that can be used, in words.
        expected: &'static str,
    },
    /// A learned scale that is NaN or infinite.
    #[error("the learned scale {index} is {value}: training has diverged, so lower the learning rate")]
    Scale {
        /// Index of the scale, row-major.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// Variables that a checkpoint does not have.
    #[error("{path}: has no tensor for {count} of the variables, the first `{name}`")]
    Missing {
        /// The checkpoint.
        path: String,
        /// How many variables.
        count: usize,
        /// The first of them, by name.
        name: String,
    },
    /// A weight without codebooks.
    #[error("the weight is {form}, which has no codebooks: make some with `KMeans` first")]
    NoCodebooks {
        /// What the weight is.
        form: String,
    },
    /// An operation that came too early.
    #[error("{what} has seen no values yet: run it on training batches first")]
    Unseen {
        /// What.
        what: &'static str,
    },
}

/// An error as candle reports it.
pub(super) fn wrap(error: impl std::error::Error + Send + Sync + 'static) -> candle_core::Error {
    candle_core::Error::wrap(error)
}
