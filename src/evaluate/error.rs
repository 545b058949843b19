use super::DataError;
use crate::model::ModelError;

/// Why a model could not be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The model could not be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The data could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The task cannot be done with this data or this model.
    #[error("task `{task}`: {reason}")]
    Task {
        /// The task.
        task: String,
        /// What is missing or clashes.
        reason: String,
    },
}
