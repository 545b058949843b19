//! Scores: how well a network does, how far a compressed weight is from the original, how long it takes.

mod classify;
mod images;
mod weight_error;

pub use classify::{Score, classify, time_per_sample};
pub use images::{DataError, ImageSet};
pub use weight_error::WeightErrors;
pub(crate) use weight_error::piece_rows;
