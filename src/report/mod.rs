//! Reports: what compression cost and what it saved, side by side.
//!
//! A [`Comparison`] puts checkpoints next to the one they were made from, with the scores that a [`Task`](crate::Task)
//! gave them: sizes, the error of every layer, what running them costs, and which of them is the cheapest that is good
//! enough. It is a [`Table`] for a terminal, Markdown and CSV; a value that serializes to JSON; and a page of HTML with
//! plots, which needs nothing but a browser.
//!
#![doc = include_str!("../../docs/report.md")]

mod comparison;
mod cost;
mod environment;
mod escape;
mod html;
mod input;
mod keep;
mod layers;
mod manifest;
mod metric;
mod number;
mod pareto;
mod plot;
mod summary;
mod table;
mod tables;

pub use comparison::{Comparison, SCHEMA, Variant};
pub use cost::{Cost, Memory, Pricing, PricingError};
pub use environment::Environment;
pub use input::InputFile;
pub use keep::{Keep, Verdict};
pub use layers::{LayerError, NotCompared};
pub use manifest::{Made, MadeStep, MadeTensor};
pub use pareto::pareto_front;
pub use plot::{Curve, LinePlot};
pub use table::{Align, Cell, Table};
pub use tables::{
    inspect_table, layers_table, plan_table, shrink_plan_table, shrunk_table, verification_table,
};
