//! Plots as SVG: quality against what it takes, the error of every layer, and curves.

mod axis;
mod blocks;
mod figures;
mod frame;
mod heatmap;
mod labels;
mod lines;
mod scatter;
mod svg;

pub(super) use figures::figures_of;
pub use lines::{Curve, LinePlot};
pub(super) use svg::{Drawing, STYLE};
