//! Plots as SVG: quality against what it takes, and the error of every layer.

mod axis;
mod blocks;
mod figures;
mod heatmap;
mod labels;
mod scatter;
mod svg;

pub(super) use figures::figures_of;
pub(super) use svg::{Drawing, STYLE};
