//! Slices in, slices out: the operations that touch every weight.
//!
//! One folder per operation: `mod.rs` is what the rest of the crate calls, `portable.rs` is the specification that
//! every faster version must equal bit for bit. Most faster versions are the same body, compiled once per level
//! ([`level::multiversion`]); `avx2.rs` and `avx512.rs` exist where the compiler does not find the instructions.
//!
//! Nothing here starts threads of its own: work is split with rayon, in the pool of the calling thread.

pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod level;
pub(crate) mod matmul;
pub mod pack;
pub mod quantize;
pub mod reduce;
pub(crate) mod select;
pub(crate) mod view;

/// Elements below which an operation stays on the calling thread: splitting costs more than it saves.
pub(crate) const PARALLEL_MIN: usize = 1 << 15;

/// Elements one task works on at a time: small enough for the second-level cache.
pub(crate) const CHUNK: usize = 1 << 14;

/// An empty vector with room for `len` elements that are about to be written from one end to the other.
///
/// Where the system lets programs choose, large ones get large pages: new memory costs a fault per page, which for small
/// pages takes longer than writing them.
pub(crate) fn room<T>(len: usize) -> Vec<T> {
    let room: Vec<T> = Vec::with_capacity(len);
    #[cfg(target_os = "linux")]
    {
        const LARGE_PAGE: usize = 2 << 20;
        let start = (room.as_ptr() as usize).next_multiple_of(LARGE_PAGE);
        let end = (room.as_ptr() as usize + room.capacity() * size_of::<T>()) / LARGE_PAGE * LARGE_PAGE;
        if start < end {
            // SAFETY: whole pages inside this allocation, and the advice changes no contents. Failure costs only time.
            let _ = unsafe {
                rustix::mm::madvise(start as *mut _, end - start, rustix::mm::Advice::LinuxHugepage)
            };
        }
    }
    room
}
