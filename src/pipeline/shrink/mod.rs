//! Networks with fewer neurons, heads, channels or blocks: ordinary smaller models.
//!
//! [`Shrink`] says what is left out, [`ShrinkPlan`] what becomes of every tensor, and its run writes the smaller checkpoint with the
//! `config.json` that fits it. What is left out is judged block by block on what the smaller blocks before it give, and the layer
//! that took it is fitted anew to what stays.

mod amount;
mod blocks;
mod config;
mod options;
mod plan;
mod run;
mod write;

pub use amount::Amount;
pub use options::{BlockChoice, Shrink};
pub use plan::{PlannedUnits, ShrinkPlan, ShrunkTensor};
pub use run::{BlockReport, Shrunk, UnitReport};
