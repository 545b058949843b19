use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

use crate::dtype::FloatType;

/// A plain tensor of floats where its file is mapped: it takes no memory but the file's.
#[derive(Clone)]
pub(crate) struct MappedTensor {
    pub(super) map: Arc<Mmap>,
    pub(super) span: Range<usize>,
    pub(super) float: FloatType,
}

impl MappedTensor {
    /// Little-endian elements, row-major.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[self.span.clone()]
    }

    /// Type of the elements.
    pub(crate) fn float(&self) -> FloatType {
        self.float
    }
}

impl fmt::Debug for MappedTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedTensor")
            .field("span", &self.span)
            .field("float", &self.float)
            .finish_non_exhaustive()
    }
}
