//! Memory for what is written once and read many times: many small pieces lie together in large pages.
//!
//! A product that streams weights from memory finds its place once per page. Few weights fill a large page of their own, so
//! they share.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::memory::prefer_large_pages;

/// Bytes of a slab; only those that are handed out are ever touched.
const SLAB: usize = 1 << 25;

/// Bytes from which a piece is better off with memory of its own.
pub(crate) const LARGE_PIECE: usize = 1 << 22;

/// Bytes to which every piece is aligned: a cache line.
const LINE: usize = 64;

/// Bytes to which slabs are aligned: a large page.
const PAGE: usize = 1 << 21;

/// Memory that is shared by pieces.
#[derive(Debug)]
struct Slab {
    memory: NonNull<u8>,
}

// SAFETY: the memory is reached through pieces alone, which do not overlap.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

/// Where the next piece will be, as long as somebody holds one of that slab.
static CURRENT: Mutex<(Weak<Slab>, usize)> = Mutex::new((Weak::new(), 0));

/// Some bytes of a slab, which nothing else refers to.
#[derive(Debug)]
pub(crate) struct Piece {
    slab: Arc<Slab>,
    start: usize,
    len: usize,
}

impl Slab {
    const LAYOUT: Layout = match Layout::from_size_align(SLAB + PAGE, 16) {
        Ok(layout) => layout,
        Err(_) => panic!("a slab is no larger than memory"),
    };

    fn new() -> Self {
        // Alignment to a page is done by hand: allocators give zeros without touching the memory for small alignments only.
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc_zeroed(Self::LAYOUT) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(Self::LAYOUT) };
        let slab = Self { memory };
        // SAFETY: the slab has that many bytes from its start on, and nobody refers to them yet.
        let all = unsafe { std::slice::from_raw_parts_mut(slab.start().cast::<MaybeUninit<u8>>(), SLAB) };
        prefer_large_pages(all);
        slab
    }

    /// The first byte on a page's edge.
    fn start(&self) -> *mut u8 {
        let start = self.memory.as_ptr();
        start.wrapping_add(start.align_offset(PAGE))
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and the last piece is gone.
        unsafe { dealloc(self.memory.as_ptr(), Self::LAYOUT) }
    }
}

impl Piece {
    /// `len` bytes of zero.
    ///
    /// # Panics
    /// When that is more than [`LARGE_PIECE`].
    pub(crate) fn zeroed(len: usize) -> Self {
        assert!(len <= LARGE_PIECE, "a piece of {len} bytes");
        let room = len.next_multiple_of(LINE);
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, used) = &mut *current;
        let slab = slab.upgrade().filter(|_| *used + room <= SLAB).unwrap_or_else(|| {
            let new = Arc::new(Slab::new());
            (*slab, *used) = (Arc::downgrade(&new), 0);
            new
        });
        let start = *used;
        *used += room;
        Self { slab, start, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies in the slab, was handed out to this piece alone, and is zero or was written.
        unsafe { std::slice::from_raw_parts(self.slab.start().add(self.start), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.slab.start().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zero_aligned_and_apart() {
        let work = |seed: u8| {
            let mut pieces = Vec::new();
            for i in 0..200 {
                let mut piece = Piece::zeroed(i * 977);
                assert_eq!(piece.bytes().as_ptr() as usize % LINE, 0);
                assert!(piece.bytes().iter().all(|b| *b == 0));
                piece.bytes_mut().fill(seed ^ i as u8);
                pieces.push(piece);
            }
            for (i, piece) in pieces.iter().enumerate() {
                assert_eq!(piece.bytes().len(), i * 977);
                assert!(piece.bytes().iter().all(|b| *b == seed ^ i as u8));
            }
        };
        // more than a slab, from two threads, and again after all of it is gone
        std::thread::scope(|scope| {
            scope.spawn(|| work(7));
            work(200);
        });
        work(13);
    }

    #[test]
    fn a_slab_that_is_full_is_followed_by_another() {
        let pieces: Vec<Piece> = (0..20).map(|_| Piece::zeroed(LARGE_PIECE)).collect();
        let mut starts: Vec<usize> = pieces.iter().map(|p| p.bytes().as_ptr() as usize).collect();
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= LARGE_PIECE));
    }
}
