//! Pruning: which weights to drop.
//!
//! A pruning method gives a [`Mask`](crate::Mask); as a step of a recipe it stores the weights that the mask keeps. Selection is
//! exact: as many weights go as were asked for, and among equals the ones with the higher index go first.
//!
//! [`Magnitude`] looks at the weights alone; [`Wanda`] and [`SparseGpt`] also at what calibration saw at the layer's input, and
//! the latter changes the weights that stay. How much each of several layers loses is an [`Allocation`].
//!
//! Whole units, such as the neurons of a hidden layer, go by their [`Importance`]; the layer that takes them, their [`Consumer`],
//! is then fitted anew to what stays.
//!
//! # While a network is trained
//!
//! Training is the caller's. A [`CubicSchedule`] says how much is to be zero at a step, a [`Mask`](crate::Mask) keeps it so, and a
//! network that was pruned before can be pruned further: zeros are the smallest magnitudes, so that they stay, and the sparsity is
//! that of the whole.
//!
//! ```
//! use tersor::{CubicSchedule, MagnitudeThreshold, Sparsity};
//!
//! let mut weights = vec![0.9, -0.1, 0.4, 0.05, -0.7, 0.3, 0.2, -0.6];
//! let schedule = CubicSchedule::new(Sparsity::new(0.0)?, Sparsity::new(0.75)?, 0, 30)?;
//! let mut earlier = None;
//! for step in 0..=30 {
//!     if step % 10 == 0 {
//!         let drop = schedule.at(step).of(weights.len() as u64);
//!         let mask = MagnitudeThreshold::of(drop, &[&weights]).next_mask(1, weights.len(), &weights)?;
//!         // what went before is gone now, too
//!         if let Some(earlier) = earlier.replace(mask.clone()) {
//!             assert_eq!(mask.and(&earlier)?, mask);
//!         }
//!     }
//!     // a step of the optimizer, here one that pushes every weight upwards
//!     weights.iter_mut().for_each(|w| *w += 0.001);
//!     if let Some(mask) = &earlier {
//!         mask.apply(&mut weights)?;
//!     }
//! }
//! assert_eq!(weights.iter().filter(|w| **w == 0.0).count(), 6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod allocation;
mod consumer;
mod elimination;
mod importance;
mod magnitude;
mod pattern;
mod plain;
mod pruning;
mod schedule;
mod sparse_gpt;
mod structured;
mod wanda;

pub use allocation::{Allocation, erdos_renyi_kernel};
pub use consumer::{Consumer, Repaired};
pub use importance::Importance;
pub use magnitude::{Magnitude, MagnitudeThreshold, Sparsity, n_of_m_mask};
pub use pattern::SparsityPattern;
pub use pruning::Pruning;
pub use schedule::CubicSchedule;
pub use sparse_gpt::SparseGpt;
pub use structured::{Axis, Structured};
pub use wanda::Wanda;
