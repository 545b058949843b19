//! Reports: what compression cost and what it saved, side by side.
//!
//! A [`Comparison`] puts checkpoints next to the one they were made from. [`Table`] writes rows for a terminal, as
//! Markdown or as CSV; every report is also a value that serializes to JSON.

mod comparison;
mod table;
mod tables;

pub use comparison::{Comparison, NotCompared, Variant, WorstLayer};
pub use table::{Align, Cell, Table};
pub(crate) use tables::percent;
pub use tables::{inspect_table, layers_table, plan_table, verification_table};
