//! Slices in, slices out: the operations that touch every weight.
//!
//! One folder per operation: `mod.rs` is what the rest of the crate calls, `portable.rs` is the specification that
//! every faster version must equal bit for bit. Most faster versions are the same body, compiled once per level
//! (`multiversion!`); `avx2.rs` and `avx512.rs` exist where the compiler does not find the instructions.
//!
//! Nothing here starts threads of its own: work is split with rayon, in the pool of the calling thread.

pub mod activate;
pub(crate) mod attention;
pub(crate) mod cholesky;
pub(crate) mod compare;
pub mod convert;
pub(crate) mod eigen;
pub mod entropy;
pub mod gram;
pub mod hadamard;
pub mod kmeans;
pub(crate) mod learn;
pub(crate) mod level;
pub mod mask;
pub(crate) mod matmul;
pub(crate) mod memory;
pub mod norm;
pub mod normalize;
pub(crate) mod orthonormal;
pub mod pack;
pub(crate) mod product;
pub mod quantize;
pub mod reduce;
pub(crate) mod rotary;
pub mod select;
pub(crate) mod slab;
pub(crate) mod softmax;
pub(crate) mod spare;
pub(crate) mod symmetric;
pub(crate) mod transpose;
pub(crate) mod update;
pub(crate) mod view;

use std::sync::OnceLock;

/// Elements below which an operation stays on the calling thread: splitting costs more than it saves.
pub(crate) const PARALLEL_MIN: usize = 1 << 15;

/// Elements one task works on at a time: small enough for the second-level cache.
pub(crate) const CHUNK: usize = 1 << 14;

/// Bytes of output from which stores go past the caches: more than what a core finds there again.
pub(crate) const STREAM_MIN: usize = 1 << 23;

/// Runs something that starts many small operations in the pool of the calling thread, whose threads then need not be woken for
/// each of them; a pool of one thread, too, would be woken and waited for.
pub(crate) fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() { work() } else { rayon::scope(|_| work()) }
}

/// What a cell holds, made now if it is empty.
///
/// Unlike in [`OnceLock::get_or_init`] nobody waits for another who makes it: what is made in a pool lets its thread do other work
/// meanwhile, which may ask for the same cell and would wait for itself. At worst it is made more than once, and the first is
/// kept.
pub(crate) fn get_or_make<T>(cell: &OnceLock<T>, make: impl FnOnce() -> T) -> &T {
    cell.get().unwrap_or_else(|| {
        let made = make();
        cell.get_or_init(|| made)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_may_ask_for_itself_meanwhile() {
        let cell = OnceLock::new();
        let make = || {
            assert_eq!(get_or_make(&cell, || 1), &1);
            2
        };
        assert_eq!(get_or_make(&cell, make), &1);
        assert_eq!(get_or_make(&cell, || 3), &1);
    }
}
