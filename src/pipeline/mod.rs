//! Plan, then run, then verify.
//!
//! [`Plan::new`] says for every tensor what a recipe does to it and why, with the exact bytes out, before any work.
//! [`Plan::run`] does it, one tensor at a time, and gives a [`Run`] with the error of every layer. [`verify`] compares a
//! finished output with its source. Where samples say how much each layer is to lose, [`Plan::calibrated`] runs the network on them first.
//!
//! [`Distillation`] lets a compressed decoder learn its scales anew from what the original predicts.
//!
//! [`Shrink`] makes ordinary smaller models, with fewer neurons, heads, channels or blocks: [`ShrinkPlan`] is its plan and its run.

mod advice;
mod calibrated;
mod coded;
mod config;
mod distill;
mod error;
mod global;
mod memory;
mod plan;
mod prepared;
mod resume;
mod run;
mod sensitivity;
mod shrink;
mod stream;
mod transforms;
mod verify;

pub use calibrated::{BlockInputs, Calibration};
pub use coded::EntropyReport;
pub use distill::{Distillation, DistillationProgress, Distilled};
pub use error::PipelineError;
pub use plan::{Plan, PlannedAction, PlannedTensor};
pub use run::{LayerReport, Progress, Run};
pub use shrink::{
    Amount, BlockChoice, BlockReport, PlannedUnits, Shrink, ShrinkPlan, Shrunk, ShrunkTensor, UnitReport,
};
pub use verify::{Check, Verification, VerifyOptions, verify};
