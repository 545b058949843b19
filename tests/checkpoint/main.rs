//! Checkpoints: what is read from well-formed files, and what is refused of malformed ones.

// `json!` values and byte arrays read best where they are used
#![allow(clippy::needless_pass_by_value)]

#[path = "../common/mod.rs"]
mod common;

mod coded;
mod drafts;
mod files;
mod folders;
mod forms;
mod masks;
mod mutations;
mod quantized;
mod refused_forms;
