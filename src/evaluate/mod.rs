//! Scores: how well a network does, how far a compressed weight is from the original, how long it takes.

mod classify;
mod error;
mod images;
mod score;
mod task;
mod weight_error;

pub use classify::{classify, time_per_sample};
pub use error::EvaluateError;
pub use images::{DataError, ImageSet};
pub use score::{Better, Score};
pub use task::Task;
pub use weight_error::WeightErrors;
pub(crate) use weight_error::piece_rows;
