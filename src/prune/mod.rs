//! Pruning: which weights to drop.
//!
//! A pruning method gives a [`Mask`](crate::Mask); as a step of a recipe it stores the weights that the mask keeps. Selection is
//! exact: as many weights go as were asked for, and among equal magnitudes the ones with the higher index go first.

mod magnitude;
mod schedule;
mod structured;

pub use magnitude::{Magnitude, MagnitudeThreshold, Sparsity, n_of_m_mask};
pub use schedule::CubicSchedule;
pub use structured::{Axis, Structured};
