//! Memory that an operation uses for a moment. Every thread keeps some for the next operation, because memory that is new
//! to a process costs more than what is done in it.

use std::cell::RefCell;

use super::matmul::panels::{Aligned, Word};

/// Bytes of the largest piece that is kept, and of all pieces that a thread keeps.
const KEPT: usize = 1 << 24;

thread_local! {
    static PIECES: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

/// A piece of memory of arbitrary content, which goes back to its thread.
#[derive(Debug)]
pub(crate) struct Spare(Aligned);

impl Spare {
    /// Room for so many numbers.
    pub(crate) fn of<T: Word>(count: usize) -> Self {
        let bytes = count * size_of::<T>();
        let piece = PIECES.with_borrow_mut(|pieces| {
            // the smallest that is large enough, or else the largest
            let fits = (0..pieces.len()).filter(|i| pieces[*i].capacity() >= bytes);
            let best = fits.min_by_key(|i| pieces[*i].capacity());
            let best = best.or_else(|| (0..pieces.len()).max_by_key(|i| pieces[*i].capacity()));
            best.map(|i| pieces.swap_remove(i))
        });
        let mut piece =
            piece.filter(|piece| piece.capacity() >= bytes).unwrap_or_else(|| Aligned::zeroed(bytes));
        piece.resize(bytes);
        Self(piece)
    }

    pub(crate) fn words<T: Word>(&self) -> &[T] {
        self.0.words()
    }

    pub(crate) fn words_mut<T: Word>(&mut self) -> &mut [T] {
        self.0.words_mut()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    /// At least room for so many numbers.
    pub(crate) fn reserve<T: Word>(&mut self, count: usize) {
        if self.0.bytes().len() < count * size_of::<T>() {
            *self = Self::of::<T>(count);
        }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        let piece = std::mem::replace(&mut self.0, Aligned::zeroed(0));
        // a thread that ends has no place to keep it
        let _ = PIECES.try_with(|pieces| {
            let mut pieces = pieces.borrow_mut();
            let kept: usize = pieces.iter().map(Aligned::capacity).sum();
            if piece.capacity() > 0 && kept + piece.capacity() <= KEPT {
                pieces.push(piece);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_used_again_and_have_the_length_asked_for() {
        std::thread::spawn(|| {
            let first = Spare::of::<f32>(1000);
            let place = first.bytes().as_ptr();
            drop(first);
            let again = Spare::of::<i32>(900);
            assert_eq!(again.bytes().as_ptr(), place);
            assert_eq!((again.words::<i32>().len(), again.bytes().len()), (900, 3600));
            // while that one is in use, another is made
            let mut other = Spare::of::<f32>(10);
            assert_ne!(other.bytes().as_ptr(), place);
            other.words_mut::<f32>().fill(1.0);
            other.reserve::<f32>(20);
            assert_eq!(other.words::<f32>().len(), 20);
            // too large to be kept
            drop(Spare::of::<f32>(KEPT));
            assert!(PIECES.with_borrow(|pieces| pieces.iter().all(|p| p.capacity() <= KEPT)));
        })
        .join()
        .unwrap();
    }
}
