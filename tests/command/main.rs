//! The `tersor` command, run as a user runs it.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/models.rs"]
mod models;
mod run;

mod bytes;
mod calibrated;
mod distill;
mod entropy;
mod interrupted;
mod networks;
mod output;
mod recipes;
mod refused;
mod report;
mod sample;
mod shrink;
mod styles;
mod tasks;
