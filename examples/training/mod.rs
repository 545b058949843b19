//! What the examples that train share: a trainer, optimizers that can be resumed, image data, small networks, and a small encoder.
#![allow(dead_code)] // every example compiles this module and uses some of it

pub(crate) mod arguments;
pub(crate) mod encoder;
pub(crate) mod images;
pub(crate) mod network;
mod operations;
pub(crate) mod optimizer;
pub(crate) mod text;
pub(crate) mod trainer;
pub(crate) mod vocabulary;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
