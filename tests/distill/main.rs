//! The distillation losses against PyTorch in float64, finite differences, naive formulas, and bad input.

#[path = "../common/golden.rs"]
mod golden;

mod errors;
mod every_loss;
mod extremes;
mod losses;
mod naive;
mod pytorch;
