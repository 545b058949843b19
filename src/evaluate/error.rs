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
    /// The network gives NaN or an infinity.
    #[error("{network} gives {value} for {place}; its weights or input are not sound")]
    NonFinite {
        /// Which network, where there are two: `the network` or `the reference`.
        network: &'static str,
        /// Where: the window and token, or the sentence.
        place: String,
        /// The value.
        value: f32,
    },
}

impl EvaluateError {
    pub(super) fn task(task: &str, reason: impl Into<String>) -> Self {
        Self::Task { task: task.to_owned(), reason: reason.into() }
    }
}
