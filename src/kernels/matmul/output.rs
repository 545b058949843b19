//! The matrix that a product writes, shared between tasks that write different columns of it.

use std::marker::PhantomData;
use std::ops::Range;

/// `[batch, outputs]`, row-major, of which every task writes columns of its own.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Output<'y> {
    first: *mut f32,
    batch: usize,
    outputs: usize,
    matrix: PhantomData<&'y mut [f32]>,
}

// SAFETY: an `Output` gives access only through `Output::columns`, whose callers promise that no two threads write the
// same columns.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'y> Output<'y> {
    /// # Panics
    /// When `y` is not `[batch, outputs]`.
    pub(in crate::kernels) fn new(y: &'y mut [f32], batch: usize, outputs: usize) -> Self {
        assert_eq!(y.len(), batch * outputs);
        Self { first: y.as_mut_ptr(), batch, outputs, matrix: PhantomData }
    }

    /// Some columns of some rows.
    ///
    /// # Panics
    /// When they lie outside the matrix.
    ///
    /// # Safety
    /// While the result or a copy of it is in use, nothing else may access these elements.
    pub(in crate::kernels) unsafe fn columns(&self, rows: Range<usize>, columns: Range<usize>) -> Rows<'y> {
        assert!(rows.start <= rows.end && rows.end <= self.batch);
        assert!(columns.start <= columns.end && columns.end <= self.outputs);
        Rows {
            // wrapping: an empty matrix has no element to point to
            first: self.first.wrapping_add(rows.start * self.outputs + columns.start),
            count: rows.len(),
            width: columns.len(),
            stride: self.outputs,
            matrix: PhantomData,
        }
    }
}

/// Some columns of some rows of an [`Output`].
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Rows<'y> {
    first: *mut f32,
    count: usize,
    width: usize,
    stride: usize,
    matrix: PhantomData<&'y mut [f32]>,
}

impl Rows<'_> {
    pub(in crate::kernels) fn rows(&self) -> usize {
        self.count
    }

    pub(in crate::kernels) fn width(&self) -> usize {
        self.width
    }

    /// Pointer to the `width` elements of a row.
    #[inline(always)]
    pub(in crate::kernels) fn pointer(&self, row: usize) -> *mut f32 {
        debug_assert!(row < self.count);
        self.first.wrapping_add(row * self.stride)
    }

    /// The elements of a row.
    #[inline(always)]
    pub(in crate::kernels) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.count);
        // SAFETY: `Output::columns` checked that the row lies in the matrix, and its caller that nobody else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(row), self.width) }
    }
}
