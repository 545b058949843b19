//! Slices in, slices out: the operations that touch every weight.
//!
//! One folder per operation: `mod.rs` is what the rest of the crate calls, `portable.rs` is the specification that
//! every faster version must equal bit for bit.

pub(crate) mod convert;
pub(crate) mod matmul;
pub(crate) mod pack;
pub(crate) mod quantize;
pub(crate) mod reduce;
pub(crate) mod select;

/// Elements below which an operation stays on the calling thread: splitting costs more than it saves.
pub(crate) const PARALLEL_MIN: usize = 1 << 15;

/// Elements one task works on at a time: small enough for the second-level cache.
pub(crate) const CHUNK: usize = 1 << 14;
