use std::path::PathBuf;

use crate::calibrate::CalibrateError;
use crate::checkpoint::CheckpointError;
use crate::layer::MethodError;
use crate::model::ModelError;
use crate::recipe::RecipeError;
use crate::transform::TransformError;
use crate::weight::WeightError;

/// Why a plan could not be made or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// Factors of low rank that make no tensor smaller.
    #[error(
        "{path}: factors make no tensor smaller (`{tensor}`: {reason}); ask for a lower rank, or name other tensors",
        path = path.display()
    )]
    NothingSmaller {
        /// The checkpoint.
        path: PathBuf,
        /// The first tensor that was to be factorized.
        tensor: String,
        /// Why it is not.
        reason: String,
    },
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
    /// The network could not be calibrated.
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// The recipe needs calibration.
    #[error("{}: {method} needs to see what goes into the layers: give calibration samples", path.display())]
    NeedsCalibration {
        /// The source.
        path: PathBuf,
        /// The method.
        method: String,
    },
    /// A tensor whose input calibration does not see.
    #[error(
        "{}: tensor `{tensor}`: {method} needs to see what goes into the layer, but it is in none of the network's blocks; \
         ignore this tensor, or quantize it with a method that needs no calibration",
        path.display()
    )]
    NotSeen {
        /// The source.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The method.
        method: String,
    },
    /// The network does not allow a transform.
    #[error(transparent)]
    Transform(#[from] TransformError),
    /// A transform changes a tensor that is compressed already and would have to stay as it is.
    #[error(
        "{}: tensor `{tensor}` is {form} and would be changed by a transform, for which it must be dense, and plain or compressed by the \
         recipe; start from the original model",
        path.display()
    )]
    Transformed {
        /// The source.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it is.
        form: String,
    },
    /// Something did not go as asked in a strict run.
    #[error("{}: tensor `{tensor}`: {reasons} (an error because the run is strict)", path.display())]
    Strict {
        /// The source.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What happened.
        reasons: String,
    },
    /// The folder of an unfinished run is not this run's.
    #[error("{}: {reason}", path.display())]
    Unfinished {
        /// The folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
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
    /// Blocks cannot be reconstructed.
    #[error("{}: {reason}", path.display())]
    Reconstruct {
        /// The source.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// A compressed network cannot be distilled, or is no better for it.
    #[error("{}: {reason}", path.display())]
    Distill {
        /// The compressed network.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// What was to be left out cannot be.
    #[error("{}: {reason}", path.display())]
    Shrink {
        /// The source.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// The caller stopped the run.
    #[error("stopped; nothing was written")]
    Stopped,
}

impl From<ModelError> for PipelineError {
    fn from(error: ModelError) -> Self {
        CalibrateError::from(error).into()
    }
}

impl PipelineError {
    pub(super) fn method(path: &std::path::Path, tensor: &str) -> impl FnOnce(MethodError) -> Self {
        move |source| Self::Method { path: path.to_path_buf(), tensor: tensor.to_owned(), source }
    }

    pub(super) fn weight(path: &std::path::Path, tensor: &str) -> impl FnOnce(WeightError) -> Self {
        move |source| Self::method(path, tensor)(source.into())
    }
}
