use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::weight::WeightError;

/// Why a network could not be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// It is not known how the tensors form a network.
    #[error("{}: {reason}", path.display())]
    Architecture {
        /// The checkpoint.
        path: PathBuf,
        /// What is missing or unknown.
        reason: String,
    },
    /// A layer's tensors do not fit the layer or what comes before it.
    #[error("{}: layer `{layer}`: {reason}", path.display())]
    Layer {
        /// The checkpoint.
        path: PathBuf,
        /// The layer.
        layer: String,
        /// What clashes.
        reason: String,
    },
    /// The input has the wrong number of features.
    #[error("the input has {actual} features, but the network takes {expected}")]
    Input {
        /// Features of the network.
        expected: usize,
        /// Features of the input.
        actual: usize,
    },
    /// The network gives NaN or an infinity.
    #[error(
        "the network gives {value} for sample {sample}, class {class}; its weights or input are not sound"
    )]
    NonFinite {
        /// The sample, counted from 0.
        sample: usize,
        /// The class.
        class: usize,
        /// The value.
        value: f32,
    },
    /// The network cannot do what is asked of it.
    #[error("a network of model_type `{model_type}` is no {kind}")]
    Kind {
        /// What it is.
        model_type: String,
        /// What it would have to be.
        kind: &'static str,
    },
    /// A sequence of tokens that the network cannot take.
    #[error("{reason}")]
    Tokens {
        /// What is wrong with it.
        reason: String,
    },
    /// A product does not fit.
    #[error(transparent)]
    Weight(#[from] WeightError),
}
