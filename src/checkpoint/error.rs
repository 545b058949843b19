use std::io;
use std::path::{Path, PathBuf};

use crate::error::NonFinite;
use crate::weight::WeightError;

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A folder without weights, or a file that is no safetensors file.
    #[error("{}: {reason}", path.display())]
    NotACheckpoint {
        /// The file or folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// The header of a safetensors file is malformed.
    #[error("{}: {reason}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the numbers that clash.
        reason: String,
    },
    /// A tensor's description is malformed or contradicts the file.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong, with the numbers that clash.
        reason: String,
    },
    /// The index of a sharded checkpoint is malformed or contradicts its shards.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// `config.json` or other metadata cannot be understood.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that was asked for does not exist.
    #[error("{}: there is no tensor `{tensor}`", path.display())]
    Missing {
        /// The checkpoint.
        path: PathBuf,
        /// The name that was asked for.
        tensor: String,
    },
    /// The parts of a compressed weight do not fit together.
    #[error("{}: tensor `{tensor}`: {source}", path.display())]
    Weight {
        /// The file.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// What does not fit.
        source: WeightError,
    },
    /// A weight holds NaN or an infinity.
    #[error("{}: tensor `{tensor}`: {source}", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// The first such value.
        source: NonFinite,
    },
    /// Something stands where the output is to be written.
    #[error("{}: already exists; choose another output or remove it first", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The output would be written into the input.
    #[error("{}: the output lies inside the input {}; inputs are never modified", path.display(), input.display())]
    OutputInsideInput {
        /// The output.
        path: PathBuf,
        /// The input.
        input: PathBuf,
    },
    /// The disk has less room than the output takes.
    #[error("{}: the output takes {needed} bytes, but only {free} are free on this disk", path.display())]
    DiskFull {
        /// The output.
        path: PathBuf,
        /// Bytes the output takes.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
}

impl CheckpointError {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_path_buf(), action, source }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { path: path.to_path_buf(), tensor: tensor.to_owned(), reason: reason.into() }
    }

    pub(crate) fn weight(path: &Path, tensor: &str) -> impl FnOnce(WeightError) -> Self {
        move |source| Self::Weight { path: path.to_path_buf(), tensor: tensor.to_owned(), source }
    }

    pub(crate) fn config(path: &Path, reason: impl Into<String>) -> Self {
        Self::Config { path: path.to_path_buf(), reason: reason.into() }
    }
}
