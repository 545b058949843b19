use crate::checkpoint::CheckpointError;
use crate::error::NonFinite;
use crate::kernels::reduce;
use crate::model::ModelError;

/// Why a model could not be transformed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransformError {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// It is not known how the model's layers feed each other.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The network cannot be rotated without changing its function.
    #[error("a network of model_type `{model_type}` cannot be rotated: {reason}")]
    NotRotatable {
        /// What it is.
        model_type: String,
        /// What stands in the way.
        reason: &'static str,
    },
    /// There is no construction of a Hadamard matrix of this size.
    #[error(
        "{what} is {order}, for which no Hadamard matrix is known here: it must be a product of a power of 2 and of \
         orders q + 1 (q ≡ 3 mod 4) or 2(q + 1) (q ≡ 1 mod 4) for a power q of a prime{advice}"
    )]
    Order {
        /// The size, as `config.json` calls it.
        what: &'static str,
        /// Its value.
        order: usize,
        /// What can be done without.
        advice: &'static str,
    },
    /// The checkpoint has a tensor of which it is not known what the transform would have to make of it.
    #[error(
        "`{name}` is no tensor that a network of this config.json has, so that it is not known what becomes of it"
    )]
    Unknown {
        /// The tensor.
        name: String,
    },
    /// A tensor is missing.
    #[error("there is no tensor `{name}`")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A tensor has another number of values than its layer.
    #[error("`{name}` has {actual} values, not {expected}")]
    Length {
        /// The tensor.
        name: String,
        /// Values that the layer has.
        expected: usize,
        /// Values that are there.
        actual: usize,
    },
    /// A tensor holds NaN or an infinity, before the transform or after it.
    #[error("`{name}`: {value}")]
    NonFinite {
        /// The tensor.
        name: String,
        /// Where, and what.
        value: NonFinite,
    },
    /// There are more or fewer scales than channels.
    #[error("{actual} scales for the {expected} channels that `{layer}` takes")]
    Scales {
        /// A layer that takes the channels.
        layer: String,
        /// Channels.
        expected: usize,
        /// Scales.
        actual: usize,
    },
    /// A scale that nothing can be divided by.
    #[error("the scale of channel {channel} of what `{layer}` takes is {scale}, not a positive number")]
    Scale {
        /// A layer that takes the channels.
        layer: String,
        /// The channel, counted from 0.
        channel: usize,
        /// Its scale.
        scale: f32,
    },
    /// Channels that are one channel before attention repeats it have different scales.
    #[error(
        "channels {first} and {second} of what `{layer}` takes are the same output of `{producer}`, but their scales are \
         {first_scale} and {second_scale}; make them equal with `Fold::share`"
    )]
    Shared {
        /// The layer that takes the channels.
        layer: String,
        /// The layer that gives them.
        producer: String,
        /// A channel, counted from 0.
        first: usize,
        /// Its scale.
        first_scale: f32,
        /// Another.
        second: usize,
        /// Its scale.
        second_scale: f32,
    },
}

/// Refuses NaN and infinities.
pub(super) fn check_finite(name: &str, values: &[f32]) -> Result<(), TransformError> {
    match reduce::first_non_finite(values) {
        None => Ok(()),
        Some(value) => Err(TransformError::NonFinite { name: name.to_owned(), value }),
    }
}

/// Refuses a tensor with another number of values than its layer has.
pub(super) fn check_length(name: &str, values: &[f32], expected: usize) -> Result<(), TransformError> {
    if values.len() == expected {
        return Ok(());
    }
    Err(TransformError::Length { name: name.to_owned(), expected, actual: values.len() })
}
