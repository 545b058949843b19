use std::io;
use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::evaluate::DataError;
use crate::model::ModelError;
#[cfg(feature = "text")]
use crate::model::TokenizerError;

/// Why a network could not be calibrated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// The samples cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The network does not take them.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A text has no tokens.
    #[cfg(feature = "text")]
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The samples are not what is needed.
    #[error("{}{reason}", path.as_ref().map(|path| format!("{}: ", path.display())).unwrap_or_default())]
    Samples {
        /// The file that they come from, if any.
        path: Option<PathBuf>,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A layer's input is NaN or infinite.
    #[error(
        "the input of layer `{layer}` is {value} at feature {feature} of token {token}, in sample {sample} (counted from 0): the \
         weights before it, or the sample, are not sound"
    )]
    NonFinite {
        /// The layer.
        layer: String,
        /// The sample.
        sample: usize,
        /// The token, or the row of the layer's input.
        token: usize,
        /// The input feature.
        feature: usize,
        /// The value.
        value: f32,
    },
    /// The file of hidden states cannot be written or read.
    #[error("{}: hidden states cannot be kept: {source}", path.display())]
    Store {
        /// The folder of the file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}
