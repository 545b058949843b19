//! Networks that are not as they should be, what a tap sees, and compressed networks: with the tiny models of
//! `fixtures/golden/transformers`, whose outputs `tests/transformers.rs` holds against the reference.

#[path = "../common/mod.rs"]
mod common;

mod beside;
mod compressed;
mod config;
mod inputs;
mod levels;
mod model;
mod mutations;
mod own_text;
mod quantized_inputs;
mod taps;
mod tensors;
