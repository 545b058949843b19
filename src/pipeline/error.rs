use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::layer::MethodError;
use crate::recipe::RecipeError;
use crate::weight::WeightError;

/// Why a plan could not be made or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A file could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The recipe contradicts itself.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A method could not do what was asked of it.
    #[error("{}: tensor `{tensor}`: {source}", path.display())]
    Method {
        /// The source.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why not.
        source: MethodError,
    },
    /// A step or an ignore pattern names no tensor.
    #[error("{}: {what} matches no tensor{hint}", path.display())]
    MatchesNothing {
        /// The source.
        path: PathBuf,
        /// The step or pattern.
        what: String,
        /// Names that exist.
        hint: String,
    },
    /// Every tensor that the recipe names is ignored.
    #[error(
        "{}: `ignore` leaves the recipe nothing to do: every tensor that a step names is named by {patterns} too; ignore less",
        path.display()
    )]
    NothingLeft {
        /// The source.
        path: PathBuf,
        /// The patterns that name its tensors.
        patterns: String,
    },
    /// The output format cannot hold a weight.
    #[error("{}: tensor `{tensor}`: compressed-tensors cannot hold {form}: {reason}", path.display())]
    Format {
        /// The source.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The form it would have.
        form: String,
        /// What the format lacks, and what to do.
        reason: String,
    },
    /// Two tensors of the output would have the same name.
    #[error("{}: tensor `{tensor}` would be written as `{name}`, a name that is taken; rename one of them", path.display())]
    NameTaken {
        /// The source.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The name.
        name: String,
    },
    /// Inputs are to be quantized by a scale that nobody found.
    #[error(
        "{}: the input of `{tensor}` needs {what}, which calibration finds; calibrate, or quantize inputs \
         dynamically",
        path.display()
    )]
    InputScales {
        /// The source.
        path: PathBuf,
        /// The layer's weight.
        tensor: String,
        /// What is missing.
        what: &'static str,
    },
    /// The caller stopped the run.
    #[error("stopped; nothing was written")]
    Stopped,
}

impl PipelineError {
    pub(super) fn method(path: &std::path::Path, tensor: &str) -> impl FnOnce(MethodError) -> Self {
        move |source| Self::Method { path: path.to_path_buf(), tensor: tensor.to_owned(), source }
    }

    pub(super) fn weight(path: &std::path::Path, tensor: &str) -> impl FnOnce(WeightError) -> Self {
        move |source| Self::method(path, tensor)(source.into())
    }
}
